"""PPO that imagines: rounds of practice on surrogates, then the most promising plans are evaluated for real.

Knapsack plans are evaluated first and shown to the policy. Each round fits the surrogates to all real trials, lets PPO
practise on them, and evaluates the best of what it came to (with `parts.neighbours` also of plans next to the best),
new knapsack plans, and a few random ones in case the surrogates are wrong together. The result cannot be worse than the
knapsack's plan, which is the first to be evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
from sb3_contrib import MaskablePPO

from rlprune_edge.errors import UserError
from rlprune_edge.records import Plan
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.gaussian import PlanModel
from rlprune_edge.search.imagination import Imagination
from rlprune_edge.search.imitation import imitate, lesson
from rlprune_edge.search.knapsack import Coefficients, Knapsack
from rlprune_edge.search.moves import mutated, random_plan
from rlprune_edge.search.parts import Parts
from rlprune_edge.search.promise import Promise
from rlprune_edge.search.sensitivity import Prior
from rlprune_edge.search.tally import Tally, best_first
from rlprune_edge.search.warm_start import WarmStart

WALKS = 32
IMAGINED = 24
"""episodes for every candidate of a round"""
EPISODES_PER_UPDATE = 64
EPOCHS = 4
"""of PPO on imagined episodes, which cost nothing: more of them, each used less"""
FIRST = 8
"""plans before the first round: the knapsack's, or random ones"""
DEMONSTRATIONS = 16
CHANGED = 0.15
"""share of the factors on the knapsack's costs that are drawn anew around the best ones"""
SOLUTIONS = 40
"""of the knapsack a round"""
SHOWN = (0.25, 0.5, 0.75)
"""share of a round that is solved by the knapsack near its best factors: at least, at first, at most"""
PER_ROUND = (8, 30)
ROUNDS = 5
"""that a budget is divided into, if that gives each a sensible size"""
RANDOM_SHARE = 0.10
ELITES = 20
NEIGHBOURS = 200
BLUNT = 2.0
"""temperature of the prior: imagined episodes are many, and shall not all be the same"""


def search(
    env: PruningEnv,
    dream: Imagination,
    agent: MaskablePPO,
    tally: Tally,
    *,
    practise: Callable[[int], None],
    parts: Parts,
    budget: int | None,
    seed: int,
    warm_start: WarmStart | None = None,
) -> None:
    """Rounds until `BudgetSpent` passes through or hardly a proposal is new; `practise(steps)` trains the agent."""
    rng = np.random.default_rng(seed)
    if env.prior is not None:
        env.prior.temperature = BLUNT
    shown = introduce(env, agent, tally, parts=parts, seed=seed, warm_start=warm_start)
    known = warm_start.known if warm_start else ()
    while len(env.trials) + len(known) < FIRST:
        tally.propose(random_plan(env, rng))
        if tally.stale:
            return
    least, most = PER_ROUND
    per_round = min(most, max(least, (budget or most * ROUNDS) // ROUNDS))
    at_random = max(1, round(RANDOM_SHARE * per_round))
    while not tally.stale:
        promise = Promise(env, PlanModel(env.model.arrays, env.prior), further=known)
        dream.believe(promise)
        if parts.demonstrations:
            _imitate(env, agent, [t.plan for t in best_first(env)[:8]], parts, rng, steps=12, until=0.6)
        practise(round(IMAGINED * per_round * env.mean_episode))
        pool = dict(dream.plans)
        if parts.neighbours:
            pool |= _neighbours(env, promise, list(pool.values()), rng)
        if shown is not None:
            pool |= {plan.key: plan for plan in shown.plans(SOLUTIONS)}
        fresh = [plan for key, plan in pool.items() if key not in env.trials]
        solved = round(shown.share * (per_round - at_random)) if shown is not None else 0
        chosen = promise.most(fresh, per_round - at_random - solved)
        chosen += [random_plan(env, rng) for _ in range(at_random if fresh else per_round)]
        tally.propose_all(chosen if shown is None else chain(chosen, shown.one_by_one(solved)))


def introduce(
    env: PruningEnv, agent: MaskablePPO, tally: Tally, *, parts: Parts, seed: int, warm_start: WarmStart | None = None
) -> Demonstrator | None:
    """What the agent is told before its first episode: another search's policy, and the knapsack's plans."""
    rng = np.random.default_rng(seed)
    if warm_start is not None and warm_start.policy is not None:
        try:
            agent.set_parameters(str(warm_start.policy), exact_match=True, device="cpu")
        except (ValueError, RuntimeError, KeyError) as error:
            raise UserError(
                f"{warm_start.policy} is the policy of another search: with or without --prior, or of another size.\n"
                "Ask for the same as that run did, or leave --warm-start out."
            ) from error
    if env.prior is None or not env.limits.hard or not parts.demonstrations:
        return None
    shown = Demonstrator(env, env.prior, rng)
    for _ in range(FIRST):
        # one at a time: of the first few measurements the latency model learns most
        for plan in shown.plans(1):
            tally.propose(plan)
    plans = shown.plans(DEMONSTRATIONS)
    _imitate(env, agent, plans, parts, rng, steps=120, until=0.55)
    return shown


class Demonstrator:
    """Knapsack plans: the probes' own, and those of other factors on what cuts cost, near the best ones so far."""

    def __init__(self, env: PruningEnv, prior: Prior, rng: np.random.Generator) -> None:
        self._env, self._rng = env, rng
        self._knapsack = Knapsack(env.model, prior)
        self._factors: dict[str, Coefficients] = {}
        self._solved = 0

    @property
    def share(self) -> float:
        """Of a round, for knapsack plans alone: as they and all others have raised the best so far."""
        least, first, most = SHOWN
        best, mine, others = -np.inf, 0, 0
        for trial in self._env.trials.values():
            if trial.score.feasible and trial.score.reward > best:
                best = trial.score.reward
                mine, others = (mine + 1, others) if trial.plan.key in self._factors else (mine, others + 1)
        return min(most, max(least, (first + mine) / (1.0 + mine + others)))

    def one_by_one(self, count: int) -> Iterator[Plan]:
        """So many plans, each solved when it is asked for, near the best ones by then."""
        for _ in range(count):
            yield from self.plans(1)

    def plans(self, count: int) -> list[Plan]:
        """Distinct plans of at most `count` solutions under the latency model as it is now."""
        trials = self._env.trials
        tried = [key for key in self._factors if key in trials and trials[key].score.feasible]
        best = max(tried, key=lambda key: trials[key].score.reward, default=None)
        found: dict[str, Plan] = {}
        for _ in range(count):
            factors = self._knapsack.ones
            if self._solved and (best is None or self._solved % 2):
                factors = factors.redrawn(self._rng)
            elif self._solved and best is not None:
                factors = self._factors[best].redrawn(self._rng, share=CHANGED)
            self._solved += 1
            plan = self._knapsack.solve(self._env.limits, factors)
            if plan is not None:
                self._factors.setdefault(plan.key, factors)
                found.setdefault(plan.key, plan)
        return list(found.values())


def _imitate(
    env: PruningEnv,
    agent: MaskablePPO,
    plans: list[Plan],
    parts: Parts,
    rng: np.random.Generator,
    *,
    steps: int,
    until: float,
) -> None:
    if plans:
        imitate(agent.policy, lesson(env, plans, rng, masked=parts.masks), steps=steps, until=until, rng=rng)


def _neighbours(env: PruningEnv, promise: Promise, imagined: list[Plan], rng: np.random.Generator) -> dict[str, Plan]:
    """Plans next to the best evaluated and the most promising imagined ones."""
    elites = [t.plan for t in best_first(env)[:ELITES]]
    elites += promise.most(imagined, ELITES)
    found: dict[str, Plan] = {}
    for _ in range(NEIGHBOURS):
        plan = mutated(env, elites[int(rng.integers(len(elites)))], rng)
        found.setdefault(plan.key, plan)
    return found
