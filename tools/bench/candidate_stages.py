"""Seconds of every stage of one candidate (cut, check, recover, score, export, parity, measure), per model.

    .venv/bin/python tools/bench/candidate_stages.py --data DIR --weights resnet20=FILE --weights resnet56=FILE

Every candidate halves all groups of channels (the nearest width that pays) and drops a third of the removable blocks;
the middle one of three candidates is shown. Models without weights are taken untrained: their times mean something.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from rlprune_edge import request as requests
from rlprune_edge.compress import prepared
from rlprune_edge.places import cache_dir
from rlprune_edge.progress import Silent
from rlprune_edge.records import Plan, PruningSpace, Trial
from rlprune_edge.run_folder import RunFolder

STAGES = ("cut", "check", "recover", "score", "export", "parity", "measure")
CANDIDATES = 3


def halved(space: PruningSpace, offset: int) -> Plan:
    """All groups at about half their width; every third removable block dropped, from the `offset`-th on."""
    widths = {g.name: min(g.levels, key=lambda n: abs(n - g.width / 2)) for g in space.groups}
    return space.plan(widths, tuple(b.name for b in space.blocks[offset::3]))


def bench(model: str, data: str, weights: str | None) -> list[str]:
    words = {
        "task": "cifar10",
        "data": data,
        "model": model if weights else f"{model}:untrained",
        "weights": weights,
        "budget": CANDIDATES,
        "target_speedup": 2.0,
    }
    with tempfile.TemporaryDirectory() as scratch:
        request = requests.make(words)
        folder = RunFolder.create(Path(scratch) / "run", request)
        with prepared(request, folder, Silent(), cache_dir=cache_dir()) as (run, _):
            trials: list[Trial] = [run.evaluate(halved(run.space, i)) for i in range(CANDIDATES)]
            space, uncut = run.space, run.baseline_trial
    middle = sorted(trials, key=lambda t: sum(t.seconds.values()))[CANDIDATES // 2]
    assert uncut.measurement is not None
    assert middle.measurement is not None
    assert middle.measurement.speedup is not None
    cells = [model, str(len(space.groups)), str(len(space.blocks)), f"{uncut.measurement.latency_ms.value:.2f}"]
    cells.append(f"{middle.measurement.speedup.value:.2f}x")
    cells += [f"{statistics.median(t.seconds[s] for t in trials):.2f}" for s in STAGES]
    return [*cells, f"{sum(middle.seconds.values()):.2f}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder (or hub id) of CIFAR-10")
    parser.add_argument("--weights", action="append", default=[], metavar="MODEL=FILE")
    parser.add_argument("--models", nargs="*", default=["resnet20", "resnet56", "resnet50"])
    asked = parser.parse_args()
    weights = dict(w.split("=", 1) for w in asked.weights)
    head = ["model", "groups", "blocks", "uncut ms", "speed-up", *STAGES, "all s"]
    sys.stdout.write("| " + " | ".join(head) + " |\n|" + "---|" * len(head) + "\n")
    for model in asked.models:
        sys.stdout.write("| " + " | ".join(bench(model, asked.data, weights.get(model))) + " |\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
