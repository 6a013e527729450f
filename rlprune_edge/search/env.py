"""The pruning problem as a gymnasium environment: cut the network step by step, be told once what it was worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlprune_edge.errors import UserError
from rlprune_edge.records import Baseline, Plan, PruningSpace, Target, Trial, WidthTimes
from rlprune_edge.search import observation
from rlprune_edge.search.arrays import Bools, Ints
from rlprune_edge.search.latency import LatencyModel
from rlprune_edge.search.limits import Limits, filled
from rlprune_edge.search.observation import Observer
from rlprune_edge.search.reward import judged_latency_ms, latency_target_ms
from rlprune_edge.search.sensitivity import FLOOR, Prior, Sensitivity

_ROLLOUTS = 32  # imagined random episodes that tell how long an episode is
_HORIZON_FACTOR = 3


class PruningEnv(gym.Env[NDArray[np.float32], np.int64]):
    """From the uncut model, one action at a time, until the predicted budget is met; then one real evaluation.

    Actions, `Discrete(groups + blocks + 1)`:
        0 .. G-1      cut this group to its next offered width (10 % of its full width or more, to one that pays)
        G .. G+D-1    remove this block
        G+D           do nothing: ends the episode if the budget is met (always so without a hard one), else a step
                      passes

    `action_masks()` says which are possible: not a group at its last width or in a removed block, not a block already
    removed or begun (a layer without one of its parts); doing nothing always is. An impossible action changes nothing
    and costs a step.

    Observation: `Box(0, 1, float32)`, see `observation.py`; with a prior followed by `1 + logit / FLOOR` per action.

    An episode ends when the predicted latency and memory meet the hard budget (less a margin that follows the model's
    running error), at the horizon (three times the mean length of a random episode) or when nothing is left to cut.
    Then slack is given back (`limits.filled`), `evaluate` is called exactly once, its `score.reward` is the only reward
    other than 0, and the latency model learns what was measured. `info` of the last step holds `trial`, and `new`:
    whether this environment met the plan for the first time.

    The environment draws no random numbers: what happens depends on actions and measurements alone.
    Whatever `evaluate` raises (`BudgetSpent`, `DeviceError`, `KeyboardInterrupt`) passes through.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (gymnasium reads it from the class)

    def __init__(
        self,
        space: PruningSpace,
        evaluate: Callable[[Plan], Trial],
        *,
        baseline: Baseline,
        target: Target,
        tables: tuple[WidthTimes, ...] = (),
        horizon: int | None = None,
        fill: bool = True,
        sensitivity: Sensitivity | None = None,
    ) -> None:
        """`space` offers the levels to use (see `staircase.paying_levels`); `evaluate` is called once per episode.

        With `sensitivity` the observation ends with the prior of every action, see `sensitivity.Prior`, and slack is
        given back where the most quality was lost.
        """
        if not space.groups and not space.blocks:
            raise UserError("Nothing in this model can be cut: no group of channels and no removable block was found.")
        if target.memory_mb is not None and baseline.memory_mb is None:
            raise UserError("A memory target was set, but the memory of the uncut model could not be measured.")
        self.space = space
        self.evaluate = evaluate
        self.baseline = baseline
        self.target = target
        self.limits = Limits(latency_target_ms(target, baseline), target.memory_mb)
        self.model = LatencyModel(space, tables, baseline_ms=baseline.latency_ms, baseline_memory_mb=baseline.memory_mb)
        self.fill = fill
        self.prior = Prior(space, sensitivity) if sensitivity is not None else None
        self.trials: dict[str, Trial] = {}
        """every distinct trial so far, in order, by plan key"""
        self.episodes = 0

        self._groups, self._blocks = len(space.groups), len(space.blocks)
        self._levels = _padded([g.levels for g in space.groups])
        self._last_level = np.array([len(g.levels) - 1 for g in space.groups], dtype=np.int64)
        self._observer = Observer(self.model.arrays)
        self.action_space = gym.spaces.Discrete(self._groups + self._blocks + 1)
        length = observation.size(self._groups, self._blocks) + (int(self.action_space.n) if self.prior else 0)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (length,), dtype=np.float32)
        self._steps = 0
        self._dropped: Bools = np.zeros(self._blocks, dtype=np.bool_)
        self._start()
        self.mean_episode = _mean_random_episode(self)
        """steps of an episode of the random policy, predicted"""
        self.horizon = horizon if horizon is not None else max(4, round(_HORIZON_FACTOR * self.mean_episode))
        self._start()

    # ------------------------------------------------------------ gymnasium

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,  # noqa: ARG002  (gymnasium calls it so)
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._start()
        return self._observe(), {}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        ended = self.apply(int(action))
        if not ended and self._steps < self.horizon:
            return self._observe(), 0.0, False, False, {}
        trial, new = self.try_plan(self.proposal())
        self.episodes += 1
        if self.prior is not None:
            self.prior.cool() if new else self.prior.heat()
        # At the horizon, too, the network has been built and paid for: the end is real, nothing is cut off to estimate.
        return self._observe(), trial.score.reward, True, False, {"trial": trial, "new": new}

    def action_masks(self) -> Bools:
        """Which actions are possible now: bool [groups + blocks + 1]."""
        a = self.model.arrays
        gone = (a.block_of_group >= 0) & np.append(self._dropped, False)[a.block_of_group]
        # what is left of a layer without one of its parts is the other part: that has an action of its own
        begun = (a.parts & self._dropped).any(axis=1)
        return np.concatenate([(self._level < self._last_level) & ~gone, ~self._dropped & ~begun, [True]])

    # ------------------------------------------------------------ for the searchers

    def apply(self, action: int) -> bool:
        """Take one action without evaluating anything; True if the episode has reached its end (horizon aside)."""
        self._steps += 1
        nothing = action == self._groups + self._blocks
        if not nothing and self.action_masks()[action]:
            if action < self._groups:
                self._level[action] += 1
            else:
                self._dropped = self.model.arrays.removed(self._dropped, action - self._groups)
        if self.limits.hard:
            widths, dropped = self._state()
            if self.limits.met(self.model, widths[None], dropped[None])[0]:
                return True
        elif nothing:
            return True
        return not self.action_masks()[:-1].any()

    def proposal(self) -> Plan:
        """The plan the episode has come to, with slack given back."""
        plan = self.model.arrays.decode(*self._state())
        return filled(plan, self.model, self.limits, prior=self.prior) if self.fill else plan

    def try_plan(self, plan: Plan) -> tuple[Trial, bool]:
        """Evaluate a plan, let the latency model learn from it; the trial, and whether the plan is new here."""
        trial = self.evaluate(plan)
        new = plan.key not in self.trials
        self.trials.setdefault(plan.key, trial)
        if trial.measurement is not None:
            self.model.observe(plan, judged_latency_ms(trial.measurement, self.baseline), trial.measurement.memory_mb)
        return trial, new

    # ------------------------------------------------------------ inside

    def _start(self) -> None:
        self._level = np.zeros(self._groups, dtype=np.int64)
        self._dropped = np.zeros(self._blocks, dtype=np.bool_)
        self._steps = 0

    def _state(self) -> tuple[Ints, Bools]:
        return self._levels[np.arange(self._groups), self._level], self._dropped

    def _observe(self) -> NDArray[np.float32]:
        widths, dropped = self._state()
        can = self.action_masks()[:-1]
        next_level = np.minimum(self._level + 1, self._last_level)
        next_widths = self._levels[np.arange(self._groups), next_level]
        # Row 0 is the state itself, row 1 + i the state after cut i.
        rows = 1 + self._groups + self._blocks
        w, d = np.tile(widths, (rows, 1)), np.tile(dropped, (rows, 1))
        w[1 + np.arange(self._groups), np.arange(self._groups)] = next_widths
        for block in range(self._blocks):
            d[1 + self._groups + block] = self.model.arrays.removed(dropped, block)
        ms = self.model.predict_many(w, d)
        weights = self.model.arrays.op_weights(w, d).sum(axis=1)
        seen = self._observer.vector(
            widths=widths,
            next_widths=np.where(self._level < self._last_level, next_widths, 0),
            dropped=dropped,
            can=can,
            freed=ms[0] - ms[1:],
            freed_weights=weights[0] - weights[1:],
            globals_=self._globals(float(ms[0]), float(weights[0])),
        )
        if self.prior is None:
            return seen
        logits = self.prior.logits(widths, next_widths, freed=ms[0] - ms[1:], can=can)
        return np.concatenate([seen, (1.0 + logits / FLOOR).astype(np.float32)])

    def _globals(self, ms: float, weights: float) -> NDArray[np.float64]:
        arrays = self.model.arrays
        widths, dropped = self._state()
        widths, dropped = widths[None], dropped[None]
        memory = self.limits.memory_mb
        return np.array(
            [
                ms / self.baseline.latency_ms,
                self.limits.latency_ms / ms if self.limits.latency_ms is not None else 1.0,
                memory / float(self.model.predict_memory_many(widths, dropped)[0]) if memory is not None else 1.0,
                float(arrays.op_macs(widths, dropped).sum()) / arrays.full_macs,
                weights / arrays.full_weights,
                self._dropped.mean() if self._blocks else 0.0,
                1.0 - self._steps / self.horizon,
                float(self.limits.met(self.model, widths, dropped)[0]),
            ]
        )


def _padded(levels: list[tuple[int, ...]]) -> Ints:
    longest = max((len(row) for row in levels), default=1)
    return np.array([[*row, *[row[-1]] * (longest - len(row))] for row in levels], dtype=np.int64).reshape(-1, longest)


def _mean_random_episode(env: PruningEnv) -> float:
    """Steps that a uniformly random policy takes to the predicted end; its own generator, so always the same."""
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(_ROLLOUTS):
        env._start()
        steps = 1
        while not env.apply(int(rng.choice(np.flatnonzero(env.action_masks())))):
            steps += 1
        lengths.append(steps)
    return float(np.mean(lengths))
