"""The simulated board as a device: repeatable, stamped, and with a real board's failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlprune_agent.simulate import Conditions
from rlprune_edge.device.cache import MeasurementCache
from rlprune_edge.device.meter import MODES, Meter
from rlprune_edge.device.simulated import SimulatedDevice
from rlprune_edge.errors import CandidateError, DeviceError
from rlprune_edge.measurements import Measurement

_LAW = {b"small": 10.0, b"large": 20.0, b"never": -1.0}


def _measure(device: Meter, folder: Path, *, reference: str | None = "large", mode: str = "reward") -> Measurement:
    for name in _LAW:
        (folder / name.decode()).write_bytes(name)
    return device.measure(
        folder / "small",
        model_sha256="small",
        graph_sha256="small",
        reference=(folder / reference, reference) if reference else None,
        inputs={},
        expected={},
        mode=mode,
    )


def _device(**conditions: Any) -> SimulatedDevice:
    return SimulatedDevice(_LAW.__getitem__, conditions=Conditions(**conditions), seed=4)


def test_a_measurement_like_any_other_but_for_its_stamp(tmp_path: Path) -> None:
    device = _device()
    found = _measure(device, tmp_path, mode="report")
    assert (found.source, found.device, found.mode, len(found.processes)) == ("simulated", "simulated", "report", 5)
    assert found.speedup is not None
    assert found.speedup.low <= 2.0 <= found.speedup.high
    assert found.latency_ms.value == pytest.approx(10.0, rel=0.02)
    assert found.percentiles_ms["p99"] is not None
    assert found.energy is not None
    assert found.energy.gross_mj == pytest.approx(5000 * 10e-3, rel=0.05)
    assert found.memory_mb == pytest.approx(60.0, abs=0.1)
    assert found.device_seconds == device.device_seconds > 5 * 10
    gates = found.processes[0].gates
    assert gates is not None
    assert gates["start"]["power_mode"] == "MAXN"
    assert device.key.startswith("simulated-")


def test_the_same_seed_gives_the_same_figures_and_every_process_draws_on(tmp_path: Path) -> None:
    first, second = _device(), _device()
    one, other = (replace(_measure(d, tmp_path), measured_at="") for d in (first, second))
    assert one == other
    assert _measure(first, tmp_path).processes != one.processes


def test_a_record_of_it_survives_the_cache(tmp_path: Path) -> None:
    hot = {"ambient_c": 32, "rise_c": 90, "start_c": 58, "tau_seconds": 5, "sigma": 0.05}
    found = _measure(_device(**hot), tmp_path, mode="verify")
    assert any(process.dropped for process in found.processes)
    assert "blocks_dropped" in found.flags
    cache = MeasurementCache(tmp_path / "cache")
    cache.keep_measurement("a" * 64, found)
    assert cache.measurement("a" * 64) == replace(found, cached=True)


def test_a_board_in_trouble_is_a_device_error_after_as_many_attempts_as_a_mode_has(tmp_path: Path) -> None:
    for mode, attempts in (("reward", 2), ("verify", 3)):
        device = _device(undervoltage=True)
        with pytest.raises(DeviceError, match="official power supply") as caught:
            _measure(device, tmp_path, mode=mode)
        assert caught.value.kind == "undervoltage"
        waited = MODES[mode].gate_load_wait_seconds
        assert waited * attempts <= device.device_seconds < (waited + 5) * attempts


def test_f17_only_a_report_refuses_a_warm_room(tmp_path: Path) -> None:
    warm = {"ambient_c": 64, "rise_c": 5}
    for mode in ("reward", "verify"):
        assert "gate_timed_out" in _measure(_device(**warm), tmp_path, mode=mode).flags
    with pytest.raises(DeviceError) as caught:
        _measure(_device(**warm), tmp_path, mode="report")
    assert caught.value.kind == "gate_timed_out"


def test_a_board_that_never_becomes_steady_is_not_reported(tmp_path: Path) -> None:
    restless = {"slow_mode": 2.0, "slow_mode_share": 0.5, "slow_mode_runs": 30}
    assert "very_noisy" in _measure(_device(**restless), tmp_path, mode="verify").flags
    with pytest.raises(DeviceError) as caught:
        _measure(_device(**restless), tmp_path, mode="report")
    assert caught.value.kind == "not_steady"


def test_a_model_that_fails_fails(tmp_path: Path) -> None:
    device = SimulatedDevice(_LAW.__getitem__)
    with pytest.raises(DeviceError) as caught:
        _measure(device, tmp_path, reference="never")
    assert caught.value.kind == "bad_request"
    assert not isinstance(caught.value, CandidateError)


def test_without_a_reference_there_is_no_ratio(tmp_path: Path) -> None:
    found = _measure(_device(), tmp_path, reference=None)
    assert (found.speedup, found.reference_ms) == (None, None)


def test_a_sweep_follows_the_law() -> None:
    assert _device().sweep([b"large", b"small"]) == [20e6, 10e6]
