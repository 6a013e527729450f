"""How far the quick measuring modes are off: random plans of a model, each timed several times in both.

.venv/bin/python tools/bench/modes.py [--plans 12] [compress's --task, --model, --weights, --data]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rlprune_edge import request as requests
from rlprune_edge.compress import prepared
from rlprune_edge.places import cache_dir
from rlprune_edge.progress import Silent
from rlprune_edge.run_folder import RunFolder
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.moves import random_plan

MODES = ("brief", "reward", "brief", "reward")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--data")
    parser.add_argument("--plans", type=int, default=12)
    words = vars(parser.parse_args())
    plans = words.pop("plans")
    request = requests.make(words | {"target_speedup": 2.0})
    found: dict[str, list[list[float]]] = {"brief": [], "reward": []}
    seconds: dict[str, list[float]] = {"brief": [], "reward": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder.create(Path(scratch) / "run", request)
        with prepared(request, folder, Silent(), cache_dir=cache_dir()) as (run, tables):
            env = PruningEnv(run.space, run.evaluate, baseline=run.baseline, target=request.target, tables=tables)
            rng = np.random.default_rng(0)
            for _ in range(plans):
                candidate = run.make_candidate(random_plan(env, rng), {})
                artifact, outputs = run.export(candidate.module, run.folder.scratch("candidate.onnx"), {})
                for row in found.values():
                    row.append([])
                for mode in MODES:
                    began = time.perf_counter()
                    measured = run.measure(artifact, outputs, mode)
                    seconds[mode].append(time.perf_counter() - began)
                    assert measured.speedup is not None
                    found[mode][-1].append(measured.speedup.value)
    print("| mode | seconds | twice the same network | against the mean of mode reward |\n|---|---|---|---|")  # noqa: T201
    truth = [statistics.mean(row) for row in found["reward"]]
    for mode, rows in found.items():
        twice = [abs(a / b - 1) for a, b in rows]
        off = [abs(value / true - 1) for row, true in zip(rows, truth, strict=True) for value in row]
        print(  # noqa: T201
            f"| {mode} | {statistics.median(seconds[mode]):.2f} | median {statistics.median(twice):.2%}, "
            f"largest {max(twice):.2%} | median {statistics.median(off):.2%}, largest {max(off):.2%} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
