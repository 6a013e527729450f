"""What may be claimed of two models, and how often the claim is right (F44, F45)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rlprune_agent.simulate import Conditions
from rlprune_edge.device.simulated import SimulatedDevice
from rlprune_edge.device.verdict import verdict
from rlprune_edge.measurements import Interval

_SEEDS = 30


@pytest.mark.parametrize(
    ("interval", "floor", "word"),
    [
        (Interval(1.10, 1.08, 1.12), None, "faster"),
        (Interval(0.90, 0.88, 0.92), None, "slower"),
        (Interval(1.01, 1.005, 1.015), None, "same"),
        (Interval(1.01, 1.005, 1.015), 0.005, "faster"),
        (Interval(1.10, 1.08, 1.12), 0.15, "same"),
        (Interval(0.99, 0.985, 0.995), 0.0, "slower"),
        (Interval(1.10, 0.99, 1.12), None, "noisy"),
        (Interval(1.00, 0.97, 1.07), None, "noisy"),
        (Interval(1.00, 0.97, 1.04), None, "same"),
    ],
)
def test_nothing_within_the_interval_or_the_noise_floor_is_a_gain(
    interval: Interval, floor: float | None, word: str
) -> None:
    found = verdict(interval, floor)
    assert (found.word, found.speedup) == (word, interval)


def _words(folder: Path, *, gain: float) -> Counter[str]:
    """Verdicts in mode `verify` on a board that drifts, throttles and steps; `tools/bench/aa_simulated.py` has more."""
    conditions = Conditions(
        sigma=0.03,
        outliers=0.02,
        drift=0.10,
        hidden_step=1.5,
        hidden_step_chance=0.3,
        ambient_c=32.0,
        rise_c=60.0,
        start_c=58.0,
        tau_seconds=5.0,
    )
    found: Counter[str] = Counter()
    model, reference = folder / "model", folder / "reference"
    model.write_bytes(b"model")
    reference.write_bytes(b"reference")
    for seed in range(_SEEDS):
        times = {b"model": 20 / (1 + gain), b"reference": 20.0}
        device = SimulatedDevice(times.__getitem__, conditions=conditions, seed=seed)
        measured = device.measure(
            model,
            model_sha256="m",
            graph_sha256="g",
            reference=(reference, "r"),
            inputs={},
            expected={},
            mode="verify",
        )
        assert measured.source == "simulated"
        assert measured.speedup is not None
        found[verdict(measured.speedup).word] += 1
    return found


def test_f44_the_same_model_twice_is_the_same(tmp_path: Path) -> None:
    assert _words(tmp_path, gain=0.0)["same"] >= 0.95 * _SEEDS


def test_f45_a_planted_gain_of_five_percent_is_found(tmp_path: Path) -> None:
    assert _words(tmp_path, gain=0.05)["faster"] >= 0.90 * _SEEDS


def test_f45_a_planted_gain_of_two_percent_is_never_slower(tmp_path: Path) -> None:
    assert _words(tmp_path, gain=0.02)["slower"] == 0
