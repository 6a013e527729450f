"""What every searcher does with a plan: have it evaluated, tell of it if it is new, notice when nothing new comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rlprune_edge.records import Plan, Trial
from rlprune_edge.search.end import SearchEnd
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.repeats import Repeats

OnTrial = Callable[[Trial], None]


class Tally:
    """Proposals of one search, counted."""

    def __init__(self, env: PruningEnv, on_trial: OnTrial | None) -> None:
        self._env, self._on_trial = env, on_trial
        self._repeats = Repeats()

    def propose(self, plan: Plan) -> tuple[Trial, bool]:
        """The trial of a plan, and whether it is new here. Whatever `evaluate` raises passes through."""
        trial, new = self._env.try_plan(plan)
        self._env.episodes += 1
        self.count(trial, new=new)
        return trial, new

    def propose_all(self, plans: Iterable[Plan]) -> None:
        """`propose` each of a batch, in its order; what is made on the way may rest on the trials before."""
        for trial, new in self._env.try_plans(plans):
            self._env.episodes += 1
            self.count(trial, new=new)

    def count(self, trial: Trial, *, new: bool) -> None:
        """An episode of the environment itself has come to this trial."""
        self._repeats.count(new)
        if new and self._on_trial is not None:
            self._on_trial(trial)

    @property
    def stale(self) -> bool:
        """Hardly a proposal is new any more."""
        return self._repeats.many

    def end(self, reason: str) -> SearchEnd:
        return SearchEnd(tuple(self._env.trials.values()), self._env.episodes, reason)


def best_first(env: PruningEnv) -> list[Trial]:
    """All trials so far, those that meet the budget and have the higher reward first; the earlier of equals."""
    return sorted(env.trials.values(), key=lambda t: (not t.score.feasible, -t.score.reward))
