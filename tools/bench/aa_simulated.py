"""How often is the verdict right? The same model twice, and planted gains, on the simulated board.

    .venv/bin/python tools/bench/aa_simulated.py [--seeds 100] [--sigma 0.01 0.03 0.06]

Every row is one model against another, measured `seeds` times in mode `verify` (three processes each) on a board that
drifts by 10 %, becomes too warm within a measurement and throttles by 1.5x, has 2 % of outliers of 1.3x, and in 30 %
of the processes a slow-down of 1.5x that no sensor shows. `two speeds` adds a scheduler that makes every tenth run
15 % slower, in stretches; `gates off` is the first board with nothing watched, throttled blocks and all. It exits with
1 where a promise is broken: the same model is `same` in 95 %, a gain of 5 % is `faster` in 90 % up to a sigma of 3 %,
and no gain is ever `slower`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rlprune_agent.simulate import Conditions
from rlprune_edge.device.simulated import SimulatedDevice
from rlprune_edge.device.verdict import verdict
from rlprune_edge.errors import DeviceError

REFERENCE_MS = 20.0
GAINS = (0.0, 0.02, 0.05)


def conditions(sigma: float, **changes: float) -> Conditions:
    """A Raspberry Pi without a fan in a warm room: it reaches its throttling temperature within a measurement."""
    board = Conditions(
        sigma=sigma,
        rho=0.6,
        outliers=0.02,
        outlier_factor=1.3,
        drift=0.10,
        hidden_step=1.5,
        hidden_step_chance=0.3,
        ambient_c=32.0,
        rise_c=60.0,
        start_c=58.0,
        tau_seconds=5.0,
    )
    return board._replace(**changes)


BOARDS: dict[str, tuple[dict[str, float], bool]] = {
    "throttling": ({}, True),
    "two speeds": ({"slow_mode": 1.15, "slow_mode_share": 0.1}, True),
    "gates off": ({}, False),
}


def words(
    gain: float, sigma: float, seeds: int, folder: Path, *, board: str = "throttling", mode: str = "verify"
) -> tuple[Counter[str], int]:
    """Verdicts by word (or the device error's kind), and how many pairs of blocks were dropped in all."""
    paths = {name: folder / f"{name}.onnx" for name in ("candidate", "reference")}
    for name, path in paths.items():
        path.write_bytes(name.encode())
    found: Counter[str] = Counter()
    dropped = 0
    changes, watch = BOARDS[board]
    for seed in range(seeds):
        law = {b"candidate": REFERENCE_MS / (1 + gain), b"reference": REFERENCE_MS}.__getitem__
        device = SimulatedDevice(law, conditions=conditions(sigma, **changes), seed=seed, watch=watch)
        try:
            measured = device.measure(
                paths["candidate"],
                model_sha256="candidate",
                graph_sha256="candidate",
                reference=(paths["reference"], "reference"),
                inputs={},
                expected={},
                mode=mode,
            )
        except DeviceError as error:
            found[error.kind] += 1
            continue
        dropped += sum(len(process.dropped) for process in measured.processes)
        assert measured.speedup is not None
        found[verdict(measured.speedup).word] += 1
    return found, dropped


def kept(gain: float, sigma: float, found: Counter[str], seeds: int) -> bool:
    """Does a row keep what is promised?"""
    if gain == 0:
        return found["same"] >= 0.95 * seeds
    if gain >= 0.05 and sigma <= 0.03:
        return found["faster"] >= 0.90 * seeds
    return found["slower"] == 0


def say(line: str) -> None:
    """One line of the table, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.01, 0.03, 0.06])
    options = parser.parse_args()
    say("| board | sigma | planted gain | faster | same | noisy | slower | refused | pairs dropped | promise | s |")
    say("|---|---|---|---|---|---|---|---|---|---|---|")
    broken = False
    with tempfile.TemporaryDirectory() as folder:
        for board, sigma, gain in itertools.product(BOARDS, options.sigma, GAINS):
            began = time.monotonic()
            found, dropped = words(gain, sigma, options.seeds, Path(folder), board=board)
            refused = options.seeds - sum(found[w] for w in ("faster", "same", "noisy", "slower"))
            good = kept(gain, sigma, found, options.seeds)
            broken |= not good
            counts = " | ".join(str(found[word]) for word in ("faster", "same", "noisy", "slower"))
            say(
                f"| {board} | {sigma:.0%} | {gain:.0%} | {counts} | {refused} | {dropped} | "
                f"{'kept' if good else 'BROKEN'} | {time.monotonic() - began:.0f} |"
            )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
