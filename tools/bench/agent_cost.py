"""What measuring costs the measured: `measure` on this machine against a bare ONNX Runtime loop, in turns.

    .venv/bin/python tools/bench/agent_cost.py [resnet20 resnet50 bert-2] [--polygraphy PROGRAM]

bert-2 (two layers, 128 tokens) needs one package more: `pip install -c constraints.txt transformers`. The bare loop is
a process of its own that imports onnxruntime, makes a session with its defaults and one thread, warms up and takes the
median of what `perf_counter_ns` says around `session.run`; no agent, no protocol, no gates. Both take turns A B B A,
and the ratio is that of neighbours, the figure their median with the interval of a sign test.

A third in turns, where it is installed beside the same onnxruntime, is NVIDIA's Polygraphy (`polygraphy run
--onnxrt`), held to one processor and so to one thread. It gives the mean, of inputs of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from models import build

from rlprune_edge.device.boards import load_device
from rlprune_edge.device.trust import median_interval
from rlprune_edge.export import host, onnx_graph
from rlprune_edge.places import cache_dir

MODELS = ("resnet20", "resnet50", "bert-2")
PAIRS = 12
BARE = """
import sys, time, numpy, onnxruntime
from statistics import median
onnxruntime.disable_telemetry_events()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = dict(numpy.load(sys.argv[2]))
def block(seconds):
    samples, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples) < 3:
        began = time.perf_counter_ns()
        session.run(None, feeds)
        samples.append(time.perf_counter_ns() - began)
    return median(samples)
block(0.5)
print(median(block(0.1) for _ in range(16)) / 1e6)
"""


def bare_ms(model: Path, feeds: Path) -> float:
    """The bare loop's figure."""
    done = subprocess.run([sys.executable, "-c", BARE, model, feeds], check=True, capture_output=True, text=True)
    return float(done.stdout)


def polygraphy_ms(program: str, model: Path) -> float:
    """The mean that Polygraphy prints."""
    command = [program, "run", model, "--onnxrt", "--sequential-runners", "--warm-up", "20", "--iterations", "60"]
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(["taskset", "-c", str(one), *command], check=True, capture_output=True, text=True)
    found = re.search(r"Average inference time: ([\d.]+) ms", done.stdout)
    if found is None:
        raise SystemExit(f"no figure in what Polygraphy said:\n{done.stdout[-2000:]}")
    return float(found.group(1))


def interval(values: list[float]) -> str:
    found = median_interval(values)
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def bench(name: str, folder: Path, polygraphy: str | None) -> str:
    path, feeds_path = folder / "model.onnx", folder / "feeds.npz"
    feeds = build(name, path)
    np.savez(feeds_path, **feeds)
    artifact = onnx_graph.describe(path, max_difference=0.0)
    expected = host.outputs(path, feeds)
    largest = max(float(np.abs(value).max()) for value in expected.values())
    ratios, ours_ms, theirs_ms, others_ms = [], [], [], []
    with load_device("local", cache_dir=cache_dir(), threads=1) as station:

        def ours() -> float:
            found = station.measure(
                path,
                model_sha256=artifact.sha256,
                graph_sha256=artifact.graph_sha256,
                reference=None,
                inputs=feeds,
                expected=expected,
                mode="reward",
                tolerance=1e-3 * max(1.0, largest),
                use_cache=False,
            )
            return found.latency_ms.value

        for pair in range(PAIRS):
            if pair % 2:
                theirs, mine = bare_ms(path, feeds_path), ours()
            else:
                mine, theirs = ours(), bare_ms(path, feeds_path)
            ours_ms.append(mine)
            theirs_ms.append(theirs)
            ratios.append(mine / theirs)
            if polygraphy:
                others_ms.append(polygraphy_ms(polygraphy, path))
    row = f"| {name} | {median(theirs_ms):.3f} | {median(ours_ms):.3f} | {interval(ratios)} |"
    if polygraphy:
        against = [mine / other for mine, other in zip(ours_ms, others_ms, strict=True)]
        row += f" {median(others_ms):.3f} | {interval(against)} |"
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--polygraphy", metavar="PROGRAM", help="the program polygraphy")
    options = parser.parse_args()
    columns = ["model", "bare loop ms", "measure ms", "measure : bare (interval)"]
    if options.polygraphy:
        columns += ["polygraphy ms", "measure : polygraphy (interval)"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)  # noqa: T201
    for name in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            print(bench(name, Path(scratch), options.polygraphy), flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
