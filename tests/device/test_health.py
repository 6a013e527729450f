"""When a device has to prove itself, and the model it does that with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from rlprune_edge.device import golden, health
from rlprune_edge.device.health import Health


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "health" / "shed.json"


def test_three_failures_in_a_row_are_too_many_and_are_remembered(path: Path) -> None:
    device = Health(path)
    for kind in ("busy", "agent_crashed"):
        device.failed(kind)
        assert device.golden_run_due() is False
    Health(path).failed("connection_lost")
    again = Health(path)
    assert (again.failures, again.last, again.golden_run_due()) == (3, "connection_lost", True)


def test_one_job_that_works_wipes_the_slate(path: Path) -> None:
    device = Health(path)
    device.failed("busy")
    device.failed("busy")
    device.worked()
    assert Health(path).failures == 0


def test_a_quarantine_is_lifted_by_a_golden_run_and_by_nothing_else(path: Path) -> None:
    device = Health(path, golden_ms=20.0)
    device.failed("busy")
    device.quarantine("it smells of smoke")
    device.worked()
    again = Health(path, golden_ms=20.0)
    assert (again.quarantined, again.golden_run_due()) == ("it smells of smoke", True)
    assert again.judge(26.0) == "the golden model took 26.0 ms, which is +30 % against the 20.0 ms it was calibrated at"
    assert again.judge(21.5) is None
    assert (Health(path).quarantined, Health(path).failures) == (None, 0)


def test_a_calibrated_device_is_looked_at_on_first_use_each_hour_and_after_a_boot(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Health(path, golden_ms=20.0)
    assert device.golden_run_due() is True
    device.judge(20.1)
    assert device.golden_run_due() is False
    monkeypatch.setattr(health, "GOLDEN_EVERY_SECONDS", -1.0)
    assert device.golden_run_due() is True
    monkeypatch.setattr(health, "GOLDEN_EVERY_SECONDS", 3600.0)
    device.rebooted()
    assert device.golden_run_due() is True


def test_a_small_drift_makes_older_figures_void(path: Path) -> None:
    device = Health(path, golden_ms=20.0)
    device.judge(20.5)
    assert device.drifted_at == 0
    assert device.judge(21.8) is None
    assert Health(path).drifted_at > 1e9


@pytest.mark.parametrize("damage", ["", "[]", '{"format": 2}', '{"surprise": 1}'])
def test_a_damaged_file_is_a_device_of_which_nothing_is_known(path: Path, damage: str) -> None:
    path.parent.mkdir()
    path.write_text(damage)
    device = Health(path)
    assert (device.failures, device.quarantined) == (0, None)
    device.failed("busy")
    assert json.loads(path.read_text())["failures"] == 1


def test_the_golden_model_is_small_valid_and_exact() -> None:
    data = golden.model()
    assert len(data) < 10**6
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, golden.inputs())
    assert np.array_equal(got, golden.expected()["y"])
    assert len(np.unique(got)) > 100
    assert golden.sha256() == "eb8de0f316855c681a10c37dad5fd98a8437fd7fb7dc205e68420f65d95507b9"
