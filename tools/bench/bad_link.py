"""Seconds per candidate over a weak Wi-Fi: the graph alone against the whole file, for a pruned ResNet-50.

    sudo .venv/bin/python tools/bench/bad_link.py [--candidates 3] [--link "rate_mbit=20 delay_ms=30 loss_pct=1"]

The board is a real sshd in namespaces of its own (tools/virtual/netns_device.sh; root, Linux), set up by `device setup
--offline` over a good link, which then becomes the bad one: 20 Mbit/s, 30 ms each way, 1 % of packets lost each way.
Every candidate is another one (its inner widths), at 224 pixels, measured in mode `reward` without a reference.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from rlprune_edge.device.boards import load_device
from rlprune_edge.export import host, onnx_graph, skeleton, torch_export
from rlprune_edge.inputs import SINGLE
from rlprune_edge.tasks.torchvision_models import import_torchvision

SCRIPT = Path(__file__).parents[1] / "virtual" / "netns_device.sh"
NAME = "shed"
# What else runs on this machine is no reason to refuse a figure here: it is the way to the board that is timed.
PROFILE = """format = 1
name = "namespace"
title = "a machine in namespaces"
source = "emulated"
threads = 1
[limits]
load_percent = 6400
max_clock_loss = 0.99
"""


def device(work: Path, *words: str, **settings: str) -> str:
    command = ["bash", str(SCRIPT), str(work), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **settings})
    return done.stdout


def rlprune(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "rlprune_edge", *words], check=True)


def candidate(path: Path, width: int) -> None:
    import_torchvision()
    models = importlib.import_module("torchvision.models")
    network = models.resnet50(weights=None, width_per_group=width).eval()
    torch_export.export(network, torch.zeros(1, 3, 224, 224), path)


def bench(work: Path, candidates: int, link: str) -> None:
    folder = work / "host"
    folder.mkdir()
    os.environ.update(RLPRUNE_CONFIG=str(folder / "config"), RLPRUNE_CACHE=str(folder / "cache"))
    (folder / "profile.toml").write_text(PROFILE)
    (folder / "ssh_config").write_text(device(work, "ssh-config"))
    where = ["--host", "edge-device", "--ssh-config", str(folder / "ssh_config"), "--yes"]
    rlprune("device", "add", NAME, "--profile", str(folder / "profile.toml"), *where)
    rlprune("device", "setup", NAME, "--offline")
    device(work, "link", *link.split())
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    seconds: dict[str, list[float]] = {"graph alone": [], "whole file": []}
    sent: dict[str, list[float]] = {"graph alone": [], "whole file": []}
    latency: dict[str, list[float]] = {"graph alone": [], "whole file": []}
    for number in range(candidates):
        path = folder / f"{number}.onnx"
        candidate(path, 24 + 2 * number)
        artifact = onnx_graph.describe(path, max_difference=0.0)
        expected = host.outputs(path, {SINGLE: x})
        for how in seconds:
            bare = skeleton.strip(path.read_bytes()) if how == "graph alone" else None
            with load_device(NAME, cache_dir=folder / "cache") as station:
                _ = station.facts  # what is timed is a candidate, not a connection
                began = time.monotonic()
                found = station.measure(
                    path,
                    model_sha256=artifact.sha256,
                    graph_sha256=artifact.graph_sha256,
                    reference=None,
                    inputs={SINGLE: x},
                    expected=expected,
                    mode="reward",
                    tolerance=1e-2,
                    use_cache=False,
                    skeleton=bare,
                )
                seconds[how].append(time.monotonic() - began)
            sent[how].append((len(bare.data) if bare else artifact.bytes) / 1e3)
            latency[how].append(found.latency_ms.value)
            print(f"{how}: {seconds[how][-1]:.1f} s, {found.options['weights']} weights", flush=True)  # noqa: T201
    print("| what is sent | kB | latency ms | seconds per candidate |\n|---|---|---|---|")  # noqa: T201
    for how, values in seconds.items():
        row = f"| {how} | {median(sent[how]):,.1f} | {median(latency[how]):.1f} | {median(values):.1f} |"
        print(row, flush=True)  # noqa: T201


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--link", default="rate_mbit=20 delay_ms=30 loss_pct=1")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, for namespaces")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        print(device(work, "start", LINK=""), end="", flush=True)  # noqa: T201
        try:
            bench(work, options.candidates, options.link)
        finally:
            device(work, "stop")
    return 0


if __name__ == "__main__":
    sys.exit(main())
