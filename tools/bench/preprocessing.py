"""What preprocessing inside a network costs of a speed-up: a run's files with it and without, in turns.

    .venv/bin/python tools/bench/preprocessing.py RUN_DIR [--turns 120]

RUN_DIR is that of a `compress` whose winner was measured. All four files (the uncut network's and the winner's, bare
and with their preprocessing inside) are loaded in one process on one thread; a turn is 60 ms of each, in an order drawn
anew. Medians over the turns, with the middle half.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

from rlprune_agent.runtime import Model

FILES = {
    "uncut": "bare-deployed-baseline.onnx",
    "uncut, with it": "deployed-baseline.onnx",
    "cut": "bare-model.onnx",
    "cut, with it": "model.onnx",
}
BLOCK_SECONDS, WARM_UP_SECONDS = 0.06, 0.5
FIRST_RUNS = 4
"""after a change of turns, not counted: the caches are another's"""


def block(infer: Callable[[], object], seconds: float) -> float:
    """The median inference of so many seconds, in ms."""
    for _ in range(FIRST_RUNS):
        infer()
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter_ns()
        infer()
        taken.append(time.perf_counter_ns() - began)
    return median(taken) / 1e6


def loaded(path: Path) -> Callable[[], object]:
    model = Model(path.read_bytes(), 1)
    feeds = model.random_inputs(0)
    return lambda: model.run(None, feeds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--turns", type=int, default=120)
    words = parser.parse_args()
    models = {name: loaded(words.run / "work" / file) for name, file in FILES.items()}
    for infer in models.values():
        block(infer, WARM_UP_SECONDS)
    order, turns = list(models), []
    for _ in range(words.turns):
        random.shuffle(order)
        turns.append({name: block(models[name], BLOCK_SECONDS) for name in order})
    lines = ["| | ms |", "|---|---|"]
    lines += [f"| {name} | {median(turn[name] for turn in turns):.3f} |" for name in models]
    bare = [turn["uncut"] / turn["cut"] for turn in turns]
    inside = [turn["uncut, with it"] / turn["cut, with it"] for turn in turns]
    lines += ["", "| speed-up | median | middle half |", "|---|---|---|"]
    for name, values in (
        ("without it", bare),
        ("with it", inside),
        ("share that is left", [b / a for a, b in zip(bare, inside, strict=True)]),
    ):
        low, middle, high = quantiles(values, n=4)
        lines.append(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
