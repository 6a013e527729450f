"""A step of training on a quiet machine and beside one busy process, by how PyTorch's threads wait for each other.

    .venv/bin/python tools/bench/beside_work.py

40 convolutions of 32 channels on 32 images of 16 x 16 pixels: many small kernels, each of which ends with all threads
waiting for the slowest, as the networks of a search have them. Every way is a process of its own; the ways take turns.
The busy neighbour is a loop in Python in a session of its own, as another terminal's work is: Linux then shares the
processors between sessions and not between threads. `ours` is what the product sets where the user has chosen nothing.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from typing import Any

WAYS: dict[str, dict[str, str]] = {
    "as OpenMP comes": {"GOMP_SPINCOUNT": "300000"},  # its own default
    "ours": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
ROUNDS = 3
SECONDS = 6.0

STEP = f"""
import time
import rlprune_edge
import torch
from torch import nn
torch.manual_seed(0)
layers = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()) for _ in range(40)]
network, images = nn.Sequential(*layers), torch.randn(32, 32, 16, 16)
optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
times = []
while len(times) < 3 or sum(times) < {SECONDS}:
    began = time.perf_counter()
    optimizer.zero_grad()
    network(images).square().mean().backward()
    optimizer.step()
    times.append(time.perf_counter() - began)
print(sorted(times[1:])[len(times[1:]) // 2])
"""


def step_seconds(choice: dict[str, str]) -> float:
    clean = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-c", STEP], env=clean | choice, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def main() -> int:
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(ROUNDS):
        for beside in (False, True):
            neighbour: subprocess.Popen[Any] | None = None
            if beside:
                neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
            try:
                for way, choice in WAYS.items():
                    found.setdefault((way, beside), []).append(step_seconds(choice))
            finally:
                if neighbour is not None:
                    neighbour.kill()
                    neighbour.wait()
    lines = [
        f"{os.cpu_count()} cores, {ROUNDS} rounds, medians",
        "",
        "| way | quiet, ms | beside a busy process, ms | ratio |",
        "|---|---|---|---|",
    ]
    for way in WAYS:
        quiet, beside_ms = (1000 * statistics.median(found[way, beside]) for beside in (False, True))
        lines.append(f"| {way} | {quiet:.0f} | {beside_ms:.0f} | {beside_ms / quiet:.1f} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
