"""Energy per inference: planted powers, sensors that fail, and a real sampling thread."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from agent.boards import FakeBoard

from rlprune_agent import energy
from rlprune_agent.energy import integral_mj, measure_energy
from rlprune_agent.protocol import WAITING_PHASES
from rlprune_agent.sensors import PowerMeter
from rlprune_agent.simulate import Conditions, SimBoard, SimModel
from rlprune_agent.world import ThisDevice


def test_trapezoids_between_samples_and_level_to_the_edges() -> None:
    s = 10**9
    assert integral_mj([(1 * s, 1000.0), (2 * s, 3000.0)], 0, 3 * s) == pytest.approx(1000 + 2000 + 3000)
    assert integral_mj([(0, 9e9), (1 * s, 500.0), (2 * s, 500.0)], s, 2 * s) == 500.0
    with pytest.raises(ValueError, match="gave 1 readings"):
        integral_mj([(1, 5.0)], 0, 2)


def test_gross_and_net_of_a_planted_board() -> None:
    board = SimBoard(Conditions(sigma=0.0, idle_mw=2000.0, busy_mw=5000.0), seed=1)
    model = SimModel(board, 20.0)
    found = measure_energy(lambda: model.run(None, {}), board)
    assert found["idle_mw"] == pytest.approx(2000.0)
    assert found["latency_ms"] == pytest.approx(20.0, rel=1e-3)
    assert found["gross_mj"] == pytest.approx(100.0, rel=0.01)
    assert found["net_mj"] == pytest.approx(60.0, rel=0.01)
    assert found["inferences"] == 500
    assert found["samples_hz"] >= 10
    assert 0 < found["sampler_share"] < 0.01
    assert found["sensor"] == "simulated"


def test_no_sensor_is_a_reason_and_no_figure() -> None:
    board = SimBoard(Conditions(power_sensor=False), seed=1)
    assert measure_energy(lambda: None, board) == {"missing": "the simulated board was made without a power sensor"}


def test_a_sensor_that_is_too_slow_is_a_reason() -> None:
    class Slow(ThisDevice):
        def power_meter(self) -> PowerMeter:
            return PowerMeter("slow", "rail", lambda: time.sleep(0.15) or 1.0)

    found = measure_energy(lambda: time.sleep(0.01), Slow(), idle_seconds=0.6, loop_seconds=0.6)
    assert found["missing"].startswith("the power sensor gave")


def test_a_sensor_that_fails_on_the_way_is_a_reason() -> None:
    class Failing(ThisDevice):
        reads = 0

        def power_meter(self) -> PowerMeter:
            return PowerMeter("broken", "rail", self.read_mw)

        def read_mw(self) -> float:
            self.reads += 1
            if self.reads > 2:
                raise OSError("the bus is stuck")
            return 1.0

    assert measure_energy(lambda: None, Failing(), idle_seconds=0.3)["missing"] == "the bus is stuck"


def test_a_real_thread_samples_a_jetsons_rail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_FEWEST_HZ", 0.0)  # a busy machine may not let the thread run 10 times a second
    board = FakeBoard(tmp_path)
    folder = "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
    board.write(f"{folder}/in1_label", "VDD_IN")
    board.write(f"{folder}/in1_input", "5000")
    board.write(f"{folder}/curr1_input", "800")
    device = ThisDevice(board.root, ["ina3221"])
    found = measure_energy(lambda: time.sleep(0.005), device, idle_seconds=0.6, loop_seconds=0.6)
    assert found["rail"] == "VDD_IN"
    # Constant power: what an inference takes is its share of the window, and nothing above idle.
    assert found["gross_mj"] == pytest.approx(4000 * found["latency_ms"] / 1e3)
    assert found["net_mj"] == pytest.approx(0.0, abs=1e-6)


def test_the_deadline_holds_both_windows() -> None:
    assert WAITING_PHASES["energy"] > energy.IDLE_SECONDS + energy.LOOP_SECONDS
