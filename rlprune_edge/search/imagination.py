"""Episodes that nobody measures: the policy walks side by side, and surrogates say what each network would be worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from rlprune_edge.records import Plan
from rlprune_edge.search.arrays import Ints
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.promise import Promise

MISSED = 1.0
"""what an imagined episode loses that ends without meeting the budget"""


class Imagination(VecEnv):
    """`count` walks of the environment's problem at once; the reward at an end is the `promise` of its plan.

    The promise is set anew whenever more is known; `plans` holds what was met since then, by key.
    """

    def __init__(self, env: PruningEnv, *, count: int, masked: bool) -> None:
        self._env, self._walk, self._masked = env, env.walks(count), masked
        self._actions: Ints = np.zeros(count, dtype=np.int64)
        self._promise: Promise | None = None
        self._ends: dict[bytes, tuple[Plan, float]] = {}
        self.plans: dict[str, Plan] = {}
        super().__init__(count, env.observation_space, env.action_space)

    def believe(self, promise: Promise) -> None:
        """From here on this is what plans are worth; what was met before is forgotten."""
        self._promise = promise
        self._ends.clear()
        self.plans.clear()

    def reset(self) -> NDArray[np.float32]:
        self._walk.start()
        return self._walk.observe()

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = np.asarray(actions, dtype=np.int64)

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        ended = self._walk.take(self._actions) | (self._walk.steps >= self._env.horizon)
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        for row in np.flatnonzero(ended):
            rewards[row] = self._worth(int(row))
            self._walk.start(int(row))
        return self._walk.observe(), rewards, ended, [{} for _ in range(self.num_envs)]

    def _worth(self, row: int) -> float:
        walk = self._walk
        end = walk.widths[row].tobytes() + walk.dropped[row].tobytes()
        if end not in self._ends:
            assert self._promise is not None
            plan = self._env.completed(walk.plan(row))
            widths, dropped = walk.arrays.encode(plan)
            worth = float(self._promise.rewards(widths, dropped)[0])
            if not self._env.limits.met(self._env.model, widths, dropped)[0]:
                worth -= MISSED
            self._ends[end] = plan, worth
        plan, worth = self._ends[end]
        self.plans.setdefault(plan.key, plan)
        return worth

    # ------------------------------------------------------------ what stable-baselines3 asks of a vector of envs

    def env_method(self, method_name: str, *_args: Any, indices: Any = None, **_options: Any) -> list[Any]:
        if method_name != "action_masks":
            raise AttributeError(method_name)
        masks = self._walk.masks() if self._masked else np.ones((self.num_envs, self._walk.actions), dtype=np.bool_)
        return [masks[i] for i in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        return attr_name == "action_masks"

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name != "render_mode":
            raise AttributeError(attr_name)
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:  # noqa: ARG002
        raise AttributeError(attr_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:  # noqa: ARG002
        return [False for _ in self._get_indices(indices)]

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        return [seed] * self.num_envs  # it draws no random numbers

    def close(self) -> None:
        return None
