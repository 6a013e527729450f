"""PPO with invalid actions masked, as the search's agent; home of stable-baselines3, sb3-contrib and torch in `search`.

What surprised us in sb3-contrib 2.9.2: its `train` normalises the advantages of every minibatch, and one of a single
step becomes NaN (stable-baselines3 guards against that, the masked version does not): no rollout leaves a small rest.
It draws minibatches from numpy's global generator and actions from torch's.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from rlprune_edge.errors import BudgetSpent
from rlprune_edge.records import Plan, Trial
from rlprune_edge.search.end import SearchEnd
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.repeats import Repeats
from rlprune_edge.search.sensitivity import FLOOR


@dataclass(frozen=True)
class PpoSettings:
    """Hyperparameters; the defaults of the first four are prescribed."""

    learning_rate: float = 3e-4
    gamma: float = 0.99
    clip_range: float = 0.2
    entropy: float = 0.01
    gae_lambda: float = 1.0
    """1: the reward comes once, at the end, so every step is credited with all of it"""
    hidden: tuple[int, ...] = (64, 64)
    episodes_per_update: int = 8
    batch_size: int = 64
    epochs: int = 10
    normalise_reward: bool = True


def search_with_ppo(
    env: PruningEnv,
    *,
    seed: int,
    settings: PpoSettings | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> SearchEnd:
    """Let PPO propose plans until the budget is spent or hardly a proposal is new; `on_trial` hears each distinct one.

    The same seed and the same answers of `evaluate` give the same plans in the same order. The policy runs on one torch
    thread and on its own random numbers; inside `evaluate`, and afterwards, the caller's threads and generators are
    back. Whatever else `evaluate` raises (`DeviceError`, `KeyboardInterrupt`) passes through.
    """
    settings = settings or PpoSettings()
    callers = env.evaluate
    watch = _Watch(env, on_trial, settings.normalise_reward)
    reason = "repeats"
    with _own_process_state() as put_back:

        def evaluate(plan: Plan) -> Trial:
            with put_back():
                return callers(plan)

        env.evaluate = evaluate
        try:
            _agent(env, seed, settings).learn(sys.maxsize, callback=watch, log_interval=sys.maxsize)
        except BudgetSpent:
            reason = "budget"
        finally:
            env.evaluate = callers
    return SearchEnd(tuple(env.trials.values()), env.episodes, reason)


def _agent(env: PruningEnv, seed: int, settings: PpoSettings) -> MaskablePPO:
    wanted = settings.episodes_per_update * env.mean_episode
    # Whole minibatches, or a rest of at least half of one: see the module's docstring.
    half = max(2, settings.batch_size // 2)
    n_steps = half * max(2, round(wanted / half + 0.5))
    return MaskablePPO(
        _PriorPolicy if env.prior is not None else "MlpPolicy",
        DummyVecEnv([lambda: env]),
        learning_rate=settings.learning_rate,
        n_steps=n_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        ent_coef=settings.entropy,
        policy_kwargs={"net_arch": list(settings.hidden)},
        seed=seed,
        device="cpu",  # 64 x 64: a transfer to a GPU costs more than the network
    )


class _PriorPolicy(MaskableActorCriticPolicy):
    """The usual network, its logits added to the prior's, which stand at the end of the observation.

    The action layer starts at almost zero, so that an untrained policy acts by the prior, and learns where it is wrong.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        actions = int(self.action_space.n)  # type: ignore[attr-defined]
        hidden = self.action_net
        assert isinstance(hidden, nn.Linear)
        self.mlp_extractor = _KeepPrior(self.mlp_extractor, actions)  # type: ignore[assignment]  # quacks like it
        self.action_net = _AddPrior(hidden, actions)
        options = {"lr": lr_schedule(1), **self.optimizer_kwargs}  # the base class of all optimizers names none
        self.optimizer = self.optimizer_class(self.parameters(), **options)


class _KeepPrior(nn.Module):
    """Hands the prior on, behind the hidden layer's output."""

    def __init__(self, inner: nn.Module, actions: int) -> None:
        super().__init__()
        self.inner, self.actions = inner, actions

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
        prior = (features[:, -self.actions :] - 1.0) * FLOOR
        return torch.cat([self.inner.forward_actor(features), prior], dim=1)  # type: ignore[operator]

    def forward_critic(self, features: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.inner.forward_critic(features)  # type: ignore[operator]
        return value


class _AddPrior(nn.Module):
    def __init__(self, learned: nn.Linear, actions: int) -> None:
        super().__init__()
        self.learned, self.actions = learned, actions

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.learned(latent[:, : -self.actions]) + latent[:, -self.actions :]
        return logits


class _Watch(BaseCallback):
    """Reports trials, stops a search that only repeats itself, normalises the rewards of a rollout."""

    def __init__(self, env: PruningEnv, on_trial: Callable[[Trial], None] | None, normalise: bool) -> None:
        super().__init__()
        self._env = env
        self._on_trial = on_trial
        self._normalise = normalise
        self._repeats = Repeats()
        self._rewards: list[float] = []

    def _on_step(self) -> bool:
        info: dict[str, Any] = self.locals["infos"][0]
        if "trial" in info:
            self._rewards.append(info["trial"].score.reward)
            self._repeats.count(info["new"])
            if info["new"] and self._on_trial is not None:
                self._on_trial(info["trial"])
        return not self._repeats.many

    def _on_rollout_end(self) -> None:
        """Rewards as standard scores among all episodes so far.

        Uncentred, a reward around 0.7 discounted by 0.99 per step differs more between the first and the last step of
        an episode than between a good plan and a bad one, and that is what the untrained critic lets through. Scores
        are cut at 3 so that one failed candidate does not drown the rest of a batch.
        """
        if not self._normalise or not self._rewards:
            return
        model = cast(MaskablePPO, self.model)
        buffer, starts, last_obs = model.rollout_buffer, model._last_episode_starts, model._last_obs
        assert starts is not None
        assert isinstance(last_obs, np.ndarray)
        past = np.array(self._rewards)
        middle = float(np.median(past))
        # Median and absolute deviation: failures and missed budgets are outliers, and common in the first batch.
        spread = 1.4826 * float(np.median(np.abs(past - middle)))
        spread = spread if spread > 1e-9 else max(1e-9, float(past.std()))
        ends = np.concatenate([buffer.episode_starts[1:], starts[None]]).astype(bool)
        buffer.rewards[ends] = np.clip((buffer.rewards[ends] - middle) / spread, -3.0, 3.0)
        with torch.no_grad():
            values = model.policy.predict_values(torch.as_tensor(last_obs, device=model.device))
        buffer.compute_returns_and_advantage(last_values=values, dones=starts)


@contextmanager
def _own_process_state() -> Iterator[Callable[[], Any]]:
    """Take over torch's threads and the global random generators; yields a context manager that puts the caller's back.

    They belong to the whole process. Without this a candidate's fine-tuning would decide what the policy tries next,
    and a resumed search, which skips it, would take another way. One thread: PPO's matrices are tiny, and with two
    threads a search's own share took 143 s instead of 8.
    """
    theirs = _State.now()

    @contextmanager
    def put_back() -> Iterator[None]:
        nonlocal theirs
        ours = _State.now()
        theirs.restore()
        try:
            yield
        finally:
            theirs = _State.now()
            ours.restore()

    torch.set_num_threads(1)
    try:
        yield put_back
    finally:
        theirs.restore()


@dataclass(frozen=True)
class _State:
    """What torch, numpy and Python keep per process."""

    threads: int
    torch_rng: torch.Tensor
    numpy_rng: Any
    python_rng: Any

    @classmethod
    def now(cls) -> _State:
        return cls(torch.get_num_threads(), torch.get_rng_state(), np.random.get_state(), random.getstate())

    def restore(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_rng_state(self.torch_rng)
        np.random.set_state(self.numpy_rng)
        random.setstate(self.python_rng)
