"""What a plan promises, from all trials so far: the reward its surrogates expect, with a bonus for being unsure."""

from __future__ import annotations

import numpy as np

from rlprune_edge.records import Plan
from rlprune_edge.search.arrays import Bools, Floats, Ints
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.gaussian import PlanModel
from rlprune_edge.search.reward import imagined, scored_part

OPTIMISM = 0.7
"""standard deviations above the mean that a plan is ranked by"""


class Promise:
    """Surrogates of one moment: fitted to the environment's trials when it is made, then only asked."""

    def __init__(self, env: PruningEnv, model: PlanModel, *, further: tuple[tuple[Plan, float], ...] = ()) -> None:
        """`further`: plans of earlier searches and their scored parts, known beside this environment's own."""
        self._env, self._model = env, model
        known = {plan.key: (plan, part) for plan, part in further}
        known |= {key: (t.plan, scored_part(t.score, env.target)) for key, t in env.trials.items()}
        widths, dropped = self._encoded([plan for plan, _ in known.values()])
        model.fit(widths, dropped, np.array([part for _, part in known.values()]))

    def rewards(self, widths: Ints, dropped: Bools) -> Floats:
        """The rewards of plans as imagined, unsure ones a little better, [plans]; a hard budget is taken as met."""
        mean, spread = self._model.predict(widths, dropped)
        return self._rewards(mean + OPTIMISM * spread, widths, dropped)

    def _rewards(self, parts: Floats, widths: Ints, dropped: Bools) -> Floats:
        env = self._env
        if env.target.hard:
            return parts
        ms = env.model.predict_many(widths, dropped)
        memory = env.model.predict_memory_many(widths, dropped) if env.baseline.memory_mb is not None else None
        return np.array(
            [
                imagined(
                    float(part),
                    float(ms[i]),
                    float(memory[i]) if memory is not None else None,
                    baseline=env.baseline,
                    target=env.target,
                )
                for i, part in enumerate(parts)
            ]
        )

    def most(self, plans: list[Plan], count: int) -> list[Plan]:
        """The `count` most promising of them, those first that are predicted to meet the budget.

        One after the other, each as if the one before had come out as expected: what is learned from one plan need not
        be asked of its neighbour again (GP-BUCB, Desautels et al. 2014).
        """
        if not plans:
            return []
        widths, dropped = self._encoded(plans)
        mean, joint = self._model.predict_jointly(widths, dropped)
        met = self._env.limits.met(self._env.model, widths, dropped)
        left = np.ones(len(plans), dtype=np.bool_)
        chosen: list[Plan] = []
        while len(chosen) < min(count, len(plans)):
            spread = np.sqrt(np.maximum(0.0, np.diag(joint)))
            rewards = self._rewards(mean + OPTIMISM * spread, widths, dropped)
            best = max(np.flatnonzero(left), key=lambda i: (met[i], rewards[i]))
            chosen.append(plans[best])
            left[best] = False
            joint = joint - np.outer(joint[:, best], joint[best]) / (joint[best, best] + self._model.noise)
        return chosen

    def _encoded(self, plans: list[Plan]) -> tuple[Ints, Bools]:
        rows = [self._env.model.arrays.encode(plan) for plan in plans]
        return np.concatenate([w for w, _ in rows]), np.concatenate([d for _, d in rows])
