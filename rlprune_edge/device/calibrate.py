"""Find out how far a board can be trusted: the golden model against itself, and how many threads serve it best."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rlprune_edge.device import golden
from rlprune_edge.device.boards import Calibration
from rlprune_edge.device.meter import mode_settings
from rlprune_edge.device.station import Station
from rlprune_edge.measurements import Measurement
from rlprune_edge.progress import threads_in_words

ROUNDS = 10

_TOLERANCE = 1e-3


def golden_file(cache_dir: Path) -> Path:
    """The golden model as a file."""
    path = cache_dir / f"golden-{golden.sha256()[:12]}.onnx"
    if not path.is_file() or path.read_bytes() != golden.model():
        cache_dir.mkdir(parents=True, exist_ok=True)
        path.write_bytes(golden.model())
    return path


def measure_golden(station: Station, cache_dir: Path, *, mode: str, against_itself: bool) -> Measurement:
    """Time the golden model, never from the cache. Raises `DeviceError`."""
    model, sha256 = golden_file(cache_dir), golden.sha256()
    return station.measure(
        model,
        model_sha256=sha256,
        graph_sha256=sha256,
        reference=(model, sha256) if against_itself else None,
        inputs=golden.inputs(),
        expected=golden.expected(),
        mode=mode,
        tolerance=_TOLERANCE,
        use_cache=False,
    )


def calibrate(
    station_with: Callable[[int], Station],
    cache_dir: Path,
    *,
    mode: str = "verify",
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Try all cores and all but one, keep the better, then time the golden model against itself `rounds` times.

    The noise floor is the largest deviation of a ratio from 1. After ten rounds the next one exceeds it once in eleven
    times; no smaller difference between two models is to be believed. Raises `DeviceError`, `UserError` (mode).
    """
    mode_settings(mode)
    with station_with(1) as station:
        cores = int(station.facts["facts"]["online_cpus"])
    tails = {}
    for threads in sorted({cores, max(1, cores - 1)}):
        with station_with(threads) as station:
            found = measure_golden(station, cache_dir, mode=mode, against_itself=False)
        tails[threads] = statistics.median(
            float(np.percentile([sample for block in process.candidate_ns for sample in block], 90)) / 1e6
            for process in found.processes
        )
        words = f"{found.latency_ms.value:.2f} ms, nine runs in ten below {tails[threads]:.2f} ms"
        tell(f"{threads_in_words(threads)}: {words}")
    threads = min(tails, key=lambda n: tails[n])
    with station_with(threads) as station:
        ratios, times, clocks = [], [], []
        for number in range(1, rounds + 1):
            found = measure_golden(station, cache_dir, mode=mode, against_itself=True)
            assert found.speedup is not None, "there was a reference"
            ratios.append(found.speedup.value)
            read = [process.gates["clock_ns"] for process in found.processes if process.gates]
            clocks += [float(ns) for ns in read if ns]
            times.append(station.golden_ms())  # alone, as it will be measured whenever the board has to prove itself
            tell(f"round {number}/{rounds}: {times[-1]:.2f} ms, {ratios[-1] - 1:+.2%} against itself")
        key, steady = station.key, 1 + station.profile.limits.max_clock_loss
    return Calibration(
        threads=threads,
        # A clock that is not the same from process to process cannot be held against one figure.
        clock_ns=statistics.median(clocks) if clocks and max(clocks) < steady * min(clocks) else None,
        golden_ms=round(statistics.median(times), 4),
        noise_floor=round(max(abs(ratio - 1) for ratio in ratios), 5),
        rounds=rounds,
        mode=mode,
        device_key=key,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
