"""The pruning problem as a gymnasium environment: cut the network step by step, be told once what it was worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlprune_edge.errors import UserError
from rlprune_edge.records import Baseline, Plan, PruningSpace, Target, Trial, WidthTimes
from rlprune_edge.search.arrays import Bools
from rlprune_edge.search.latency import LatencyModel
from rlprune_edge.search.limits import Limits, filled
from rlprune_edge.search.reward import judged_latency_ms, latency_target_ms
from rlprune_edge.search.sensitivity import Prior, Sensitivity
from rlprune_edge.search.walk import Walk, mean_random_episode

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
        masks: bool = True,
        evaluate_all: Callable[[Iterable[Plan]], Iterator[Trial]] | None = None,
    ) -> None:
        """`space` offers the levels to use (see `staircase.paying_levels`); `evaluate` is called once per episode.

        With `sensitivity` the observation ends with the prior of every action, see `sensitivity.Prior`, and slack is
        given back where the most quality was lost. Without `masks` every action is called possible. `evaluate_all` is
        `evaluate` for many plans, where they are faster together.
        """
        if not space.groups and not space.blocks:
            raise UserError("Nothing in this model can be cut: no group of channels and no removable block was found.")
        if target.memory_mb is not None and baseline.memory_mb is None:
            raise UserError("A memory target was set, but the memory of the uncut model could not be measured.")
        self.space = space
        self.evaluate = evaluate
        self.evaluate_all = evaluate_all or (lambda plans: (evaluate(plan) for plan in plans))
        self.baseline = baseline
        self.target = target
        self.limits = Limits(latency_target_ms(target, baseline), target.memory_mb)
        self.model = LatencyModel(space, tables, baseline_ms=baseline.latency_ms, baseline_memory_mb=baseline.memory_mb)
        self.fill = fill
        self.masks = masks
        self.prior = Prior(space, sensitivity) if sensitivity is not None else None
        self.trials: dict[str, Trial] = {}
        """every distinct trial so far, in order, by plan key"""
        self.predicted: dict[str, float] = {}
        """what the latency model said of each measured plan before it was told, in ms, by plan key"""
        self.episodes = 0

        rehearsal = Walk(self.model, self.limits, None, count=_ROLLOUTS)
        self.mean_episode = mean_random_episode(rehearsal)
        """steps of an episode of the random policy, predicted"""
        self.horizon = horizon if horizon is not None else max(4, round(_HORIZON_FACTOR * self.mean_episode))
        self.walk = self.walks(1)
        self.action_space = gym.spaces.Discrete(self.walk.actions)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (self.walk.observation_size,), dtype=np.float32)

    # ------------------------------------------------------------ gymnasium

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,  # noqa: ARG002  (gymnasium calls it so)
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.walk.start()
        return self._observe(), {}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        ended = bool(self.walk.take(np.array([action]))[0])
        if not ended and self.walk.steps[0] < self.horizon:
            return self._observe(), 0.0, False, False, {}
        trial, new = self.try_plan(self.proposal())
        self.episodes += 1
        if self.prior is not None:
            self.prior.cool() if new else self.prior.heat()
        # At the horizon, too, the network has been built and paid for: the end is real, nothing is cut off to estimate.
        return self._observe(), trial.score.reward, True, False, {"trial": trial, "new": new}

    def action_masks(self) -> Bools:
        """Which actions are possible now: bool [groups + blocks + 1]."""
        possible: Bools = self.walk.masks()[0] if self.masks else np.ones(self.walk.actions, dtype=np.bool_)
        return possible

    # ------------------------------------------------------------ for the searchers

    def walks(self, count: int) -> Walk:
        """So many episodes of this problem side by side, for a searcher to rehearse in."""
        walk = Walk(self.model, self.limits, self.prior, count=count)
        walk.horizon = self.horizon
        return walk

    def completed(self, plan: Plan) -> Plan:
        """The plan with slack given back, where this environment does so."""
        return filled(plan, self.model, self.limits, prior=self.prior) if self.fill else plan

    def proposal(self) -> Plan:
        """The plan the episode has come to, with slack given back."""
        return self.completed(self.walk.plan())

    def try_plan(self, plan: Plan) -> tuple[Trial, bool]:
        """Evaluate a plan, let the latency model learn from it; the trial, and whether the plan is new here."""
        return self._learned(self.evaluate(plan))

    def try_plans(self, plans: Iterable[Plan]) -> Iterator[tuple[Trial, bool]]:
        """`try_plan` of each in their order, which is decided beforehand: the next is made while one is being timed."""
        yield from map(self._learned, self.evaluate_all(plans))

    def _learned(self, trial: Trial) -> tuple[Trial, bool]:
        plan = trial.plan
        new = plan.key not in self.trials
        self.trials.setdefault(plan.key, trial)
        if trial.measurement is not None:
            self.predicted.setdefault(plan.key, self.model.predict_ms(plan))
            self.model.observe(plan, self.judged_ms(trial), trial.measurement.memory_mb)
        return trial, new

    def judged_ms(self, trial: Trial) -> float:
        """The latency that a measured trial is judged by."""
        assert trial.measurement is not None
        return judged_latency_ms(trial.measurement, self.baseline)

    def _observe(self) -> NDArray[np.float32]:
        seen: NDArray[np.float32] = self.walk.observe()[0]
        return seen
