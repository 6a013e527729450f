"""What measuring costs the measured: `measure` on this machine against a bare ONNX Runtime loop, in turns.

    .venv/bin/python tools/bench/agent_cost.py [resnet20 resnet50 bert-2]

bert-2 (two layers, 128 tokens) needs one package more: `pip install -c constraints.txt transformers`. The bare loop is
a process of its own that imports onnxruntime, makes a session with its defaults and one thread, warms up and takes the
median of what `perf_counter_ns` says around `session.run`; no agent, no protocol, no gates. Both take turns A B B A,
and the ratio is that of neighbours, the figure their median with the interval of a sign test.
"""

from __future__ import annotations

import argparse
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


def bench(name: str, folder: Path) -> str:
    path, feeds_path = folder / "model.onnx", folder / "feeds.npz"
    feeds = build(name, path)
    np.savez(feeds_path, **feeds)
    artifact = onnx_graph.describe(path, max_difference=0.0)
    expected = host.outputs(path, feeds)
    largest = max(float(np.abs(value).max()) for value in expected.values())
    ratios, ours_ms, theirs_ms = [], [], []
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
    found = median_interval(ratios)
    ratio = f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
    return f"| {name} | {median(theirs_ms):.3f} | {median(ours_ms):.3f} | {ratio} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help=", ".join(MODELS))
    print("| model | bare loop ms | measure ms | measure : bare (interval) |\n|---|---|---|---|", flush=True)  # noqa: T201
    for name in parser.parse_args().models:
        with tempfile.TemporaryDirectory() as scratch:
            print(bench(name, Path(scratch)), flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
