"""A graph with made-up weights against the model it came from: latency, memory, bytes to send; on this machine.

    .venv/bin/python tools/bench/graph_only.py [resnet20 resnet56 resnet50 bert wav2vec2]

bert and wav2vec2 (base size, random weights; 128 tokens, one second of sound) need one package more:
`pip install -c constraints.txt transformers`. All sessions of a model live in one process and take turns: the real
file, the graph with made-up weights, and the graph with the true weights put back, which is the control: its ratio to
the real file shows what two sessions of one and the same model differ by. Ratios are medians over 16 pairs of blocks,
with the interval of ranks 4 and 13 (97.9 %); those of CPU time beside them, because one thread does all the work and
its CPU time leaves out what other processes take. Memory is what the peak grows by while a model is loaded and run,
the median of three processes of their own.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from models import Feeds, build
from onnx import numpy_helper

from rlprune_agent import intake, synth
from rlprune_agent.measure import peak_bytes, reset_peak
from rlprune_agent.runtime import Model
from rlprune_agent.tensors import Synthetic
from rlprune_edge.export import skeleton

MODELS = ("resnet20", "resnet56", "resnet50", "bert", "wav2vec2")
SEED = 1
PAIRS, RANK = 16, 4
BLOCK_NS, BLOCK_RUNS = 200e6, 4
ROOM = 1 << 40


def with_true_values(graph: bytes, real: bytes) -> bytes:
    """The graph with the values it had, put where made-up ones would go."""
    model = onnx.load_model_from_string(real)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors |= {n.output[0]: a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute}

    def values(_: int, tensor: Synthetic) -> Iterable[bytes]:
        return [numpy_helper.to_array(tensors[tensor.name]).tobytes()]

    return synth.fill(graph, intake.check(graph, synthetic=True, memory_bytes=ROOM), values)


def block(model: Model, feeds: Feeds) -> tuple[float, float]:
    """Median wall clock and CPU time of one inference, over at least `BLOCK_RUNS` and `BLOCK_NS`."""
    wall, cpu = [], []
    end = time.perf_counter_ns() + BLOCK_NS
    while len(wall) < BLOCK_RUNS or time.perf_counter_ns() < end:
        began, worked = time.perf_counter_ns(), time.thread_time_ns()
        model.run(None, feeds)
        cpu.append(time.thread_time_ns() - worked)
        wall.append(time.perf_counter_ns() - began)
    return median(wall), median(cpu)


def interval(ratios: list[float]) -> str:
    ordered = sorted(ratios)
    return f"{median(ordered):.3f} ({ordered[RANK - 1]:.3f} to {ordered[-RANK]:.3f})"


def memory_mb(path: Path, feeds: Path, how: str) -> float:
    """What the peak grows by, in a fresh process."""
    words = [sys.executable, __file__, "--memory-of", str(path), "--feeds", str(feeds), "--how", how]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def print_memory(path: Path, feeds: Path, how: str) -> None:
    weights = {"seed": SEED} if how == "graph" else None
    data = synth.whole(path.read_bytes(), weights, ROOM)
    inputs = dict(np.load(feeds))
    reset_peak()
    before = peak_bytes()
    model = Model(data, 1)
    del data
    for _ in range(3):
        model.checked_run(inputs)
    after = peak_bytes()
    assert before is not None
    assert after is not None
    print((after - before) / 1e6)  # noqa: T201 - to the process that asked


def bench(name: str, folder: Path) -> list[str]:
    path, graph_path, feeds_path = folder / "real.onnx", folder / "graph.bin", folder / "feeds.npz"
    feeds = build(name, path)
    np.savez(feeds_path, **feeds)
    real = path.read_bytes()
    sent = skeleton.strip(real)
    graph_path.write_bytes(sent.data)
    began = time.perf_counter()
    made_up = synth.whole(sent.data, {"seed": SEED}, ROOM)
    fill_seconds = time.perf_counter() - began
    both = [(graph_path, "graph"), (path, "real")]
    memory = [median(memory_mb(file, feeds_path, how) for _ in range(3)) for file, how in both]
    true = with_true_values(zlib.decompress(sent.data), real)

    models = [Model(data, 1) for data in (real, made_up, true)]
    del real, made_up, true
    outputs = [model.checked_run(feeds) for model in models]
    models[1].check_made_up(outputs[1])
    same = all(np.array_equal(outputs[0][key], outputs[2][key]) for key in outputs[0])
    gc.collect()
    gc.disable()
    for model in models:
        block(model, feeds)
    taken: list[list[tuple[float, float]]] = [[], [], []]
    for pair in range(PAIRS):
        for index in (0, 1, 2) if pair % 2 == 0 else (2, 1, 0):
            taken[index].append(block(models[index], feeds))
    gc.enable()
    ratios = [
        interval([b[clock] / a[clock] for a, b in zip(taken[0], taken[index], strict=True)])
        for index in (1, 2)
        for clock in (0, 1)
    ]
    return [
        name,
        f"{median(wall for wall, _ in taken[0]) / 1e6:.2f}",
        *ratios,
        f"{path.stat().st_size / 1e6:.1f} MB",
        f"{sent.graph_bytes / 1e3:.1f} kB",
        f"{len(sent.data) / 1e3:.1f} kB",
        f"{fill_seconds:.2f}",
        f"{memory[0]:.1f} / {memory[1]:.1f} = {memory[0] / memory[1]:.3f}",
        "identical" if same else "DIFFERENT",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--feeds", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.memory_of, options.feeds, options.how)
        return 0
    ratios = "made-up : real | same, CPU time | control : real | same, CPU time"
    head = f"model | real ms | {ratios} | file | graph | sent | fill s | memory MB | true weights"
    print(f"| {head} |\n|{'---|' * 12}", flush=True)  # noqa: T201
    for name in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            print(f"| {' | '.join(bench(name, Path(scratch)))} |", flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
