"""Five targets served by one policy, against knapsack searches that share the same probes and evaluations.

    .venv/bin/python tools/bench/warm_start.py [--task digits] [--budget 150] [--seeds 3] [compress's words ...]

Each agent serves the targets one after the other within one budget of distinct candidates, probes among them: half of
what is left for the first target, the rest shared by the others. PPO hands on its policy and what its plans were worth;
both agents get back at no cost what they had evaluated for an earlier target.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rlprune_edge import probing
from rlprune_edge import request as requests
from rlprune_edge.compress import prepared
from rlprune_edge.errors import BudgetSpent
from rlprune_edge.places import cache_dir
from rlprune_edge.progress import Silent
from rlprune_edge.records import Plan, Score, Target, Trial, WidthTimes
from rlprune_edge.run import Run
from rlprune_edge.run_folder import RunFolder
from rlprune_edge.search import agents, reward
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.sensitivity import Sensitivity
from rlprune_edge.search.warm_start import WarmStart, known_from

TARGETS = (1.5, 1.8, 2.2, 2.6, 3.0)


class Account:
    """The distinct candidates of one agent over all targets."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.seen: dict[str, Trial] = {}
        self.limit = 0

    def evaluate(self, plan: Plan) -> Trial:
        if plan.key not in self.seen and len(self.seen) >= self.limit:
            raise BudgetSpent("enough")
        trial = self._run.evaluated(plan)
        self.seen[plan.key] = trial
        return trial


def served(
    run: Run, tables: tuple[WidthTimes, ...], known: Sensitivity, agent: str, seed: int, budget: int, scratch: Path
) -> list[float]:
    """The best quality found for each target; -1 where none was met."""
    account, found = Account(run), []
    first = (budget - run.probes) // 2
    each = (budget - run.probes - first) // (len(TARGETS) - 1)
    warm = None
    for number, speedup in enumerate(TARGETS):
        target = Target(speedup=speedup)
        account.limit += each if number else first

        def scored(trial: Trial, target: Target = target) -> Score:
            measured = trial.measurement if trial.failure is None else None
            return reward.score(
                trial.quality,
                reward.judged_latency_ms(measured, run.baseline) if measured else None,
                measured.memory_mb if measured else None,
                baseline=run.baseline,
                target=target,
                metric=run.task.metric,
                chance_loss=run.task.chance_loss,
            )

        def evaluate(plan: Plan, scored=scored) -> Trial:  # type: ignore[no-untyped-def]
            trial = account.evaluate(plan)
            return replace(trial, score=scored(trial))

        env = PruningEnv(run.space, evaluate, baseline=run.baseline, target=target, tables=tables, sensitivity=known)
        for trial in account.seen.values():  # what was measured for another target is known of the board
            if trial.measurement is not None:
                env.model.observe(trial.plan, env.judged_ms(trial), trial.measurement.memory_mb)
        policy = scratch / f"{agent}-{seed}-{number}.zip"
        left = account.limit - len(account.seen)
        end = agents.search(agent, env, seed=seed, budget=left, policy=policy, warm_start=warm)
        candidates = [*end.trials, *(t for t in account.seen.values())]
        scores = [scored(trial) for trial in candidates]
        found.append(max((s.quality for s in scores if s.feasible), default=-1.0))
        warm = WarmStart(policy, known_from(tuple(account.seen.values()), scored, target))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--data")
    parser.add_argument("--search-examples", type=int)
    parser.add_argument("--budget", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    words = vars(parser.parse_args())
    budget, seeds = words["budget"], words.pop("seeds")
    request = requests.make(words | {"target_speedup": TARGETS[0], "search_mode": "brief"})
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder.create(Path(scratch) / "run", request)
        with prepared(request, folder, Silent(), cache_dir=cache_dir()) as (run, tables):
            known = probing.probe_sensitivity(run, most=int(0.4 * budget))
            print(f"{run.probes} probes, {budget} candidates in all, {seeds} seeds\n")  # noqa: T201
            print("| agent | " + " | ".join(f"{t:g}x" for t in TARGETS) + " | mean |")  # noqa: T201
            print("|---" * (len(TARGETS) + 2) + "|")  # noqa: T201
            for agent in ("ppo", "knapsack"):
                rows = [served(run, tables, known, agent, seed, budget, Path(scratch)) for seed in range(seeds)]
                means = [statistics.mean(row[i] for row in rows) for i in range(len(TARGETS))]
                cells = [f"{m:.3f}" for m in [*means, statistics.mean(means)]]
                print(f"| {agent} | " + " | ".join(cells) + " |", flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
