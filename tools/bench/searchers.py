"""Searchers on a planted problem, where nothing has to be measured: ablations of PPO in minutes instead of hours.

    .venv/bin/python tools/bench/searchers.py [--agents ppo,ppo:no-prior,knapsack,...] [--budget 100] [--speedup 2]
                                              [--seeds 5] [--blocks 3]

The board and the data set follow laws that are known to nobody who searches (tests/search/planted.py); 3 blocks a stage
make 12 groups and 7 removable blocks, 9 make 30 and 27 as in a ResNet-56. Probes count as candidates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from rlprune_edge.comparison_stats import interquartile_mean, verdict
from rlprune_edge.records import Target
from rlprune_edge.search import agents
from rlprune_edge.search.agents import Entrant

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "search"))
from planted import Planted

AGENTS = "ppo,ppo:no-prior,ppo:no-demonstrations,ppo:no-surrogate,ppo:neighbours,ppo:masks,knapsack,gp,random"
PROBED = 0.4
"""share of the budget that single cuts may take, as in `compare`"""


def best_found(entrant: Entrant, seed: int, *, budget: int, speedup: float, blocks: int) -> float:
    """The best reward of a plan that meets the target; -1 if none does."""
    planted, target = Planted(seed=1 + seed, blocks=blocks), Target(speedup=speedup)
    known = None
    if agents.informed(entrant.agent, prior=entrant.prior, target=target):
        known = planted.sensitivity(most=int(PROBED * budget))
    probes = 0 if known is None else sum(map(len, known.groups.values())) + len(known.blocks)
    env = planted.env(target, budget - probes, sensitivity=known, masks=entrant.parts.masks)
    end = agents.search(entrant.agent, env, seed=seed, budget=budget - probes, parts=entrant.parts)
    return max((t.score.reward for t in end.trials if t.score.feasible), default=-1.0)


def compared(own: list[float], other: list[float]) -> str:
    """The word of `compare` and the interval of the differences, problem by problem."""
    difference = interquartile_mean(np.array([own]).T - np.array([other]).T)[0]
    return f"{verdict(difference, len(own))}: {difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", default=AGENTS)
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=3)
    words = parser.parse_args()
    first, *_ = names = words.agents.split(",")
    print(f"| agent | mean | lowest | highest | against {first}, problem by problem | seconds |\n{'|---' * 6}|")  # noqa: T201
    rows: dict[str, list[float]] = {}
    for name in names:
        began = time.perf_counter()
        rows[name] = found = [
            best_found(agents.entrant(name), seed, budget=words.budget, speedup=words.speedup, blocks=words.blocks)
            for seed in range(words.seeds)
        ]
        seconds = (time.perf_counter() - began) / words.seeds
        figures = " | ".join(f"{value:.3f}" for value in (statistics.mean(found), min(found), max(found)))
        against = "" if name == first else compared(found, rows[first])
        print(f"| {name} | {figures} | {against} | {seconds:.0f} |", flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
