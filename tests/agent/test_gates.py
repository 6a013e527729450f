"""Boards in trouble: every gate, on the simulated board (its own clock) and on a real process with planted sensors."""

from __future__ import annotations

import array
import hashlib
import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent.boards import FakeBoard

from rlprune_agent.policy import KINDS, policy_of
from rlprune_agent.protocol import WAITING_PHASES, Failure, Message
from rlprune_agent.simulate import LOOP_NS, Conditions, SimBoard, simulate
from rlprune_agent.store import Store
from rlprune_agent.supervise import run_child

_TIMING = {
    "warmup_runs": 5,
    "warmup_seconds": 0.02,
    "window_runs": 5,
    "window_ms": 5,
    "warmup_cap_runs": 10,
    "warmup_cap_seconds": 0.1,
    "checks": [[6, 1]],
    "block_ms": 5,
    "min_runs": 18,
    "slow_run_ms": 1000,
    "min_runs_slow": 6,
    "reference_runs": 3,
    "sample_ms": 2,
    "target_half_width": 0.0,
    "cap_seconds": 20,
}
_SIMULATED_TIMING = {**_TIMING, "block_ms": 200, "warmup_seconds": 1, "warmup_cap_seconds": 5, "cap_seconds": 120}
_GATES = {"start_celsius": 60.0, "stop_celsius": 78.0}


def _simulate(conditions: Conditions, seed: int = 1, **gates: Any) -> tuple[Message, SimBoard]:
    board = SimBoard(conditions, seed)
    settings = {**_SIMULATED_TIMING, "gates": {**_GATES, **gates}}
    message = simulate(settings, candidate_ms=20, reference_ms=20, model_bytes=1, threads=1, board=board)
    return message, board


def _refusal(conditions: Conditions, **gates: Any) -> tuple[Failure, float]:
    """The failure, and the simulated seconds until it."""
    board = SimBoard(conditions, 1)
    settings = {**_SIMULATED_TIMING, "gates": {**_GATES, **gates}}
    with pytest.raises(Failure) as caught:
        simulate(settings, candidate_ms=20, reference_ms=20, model_bytes=1, threads=1, board=board)
    return caught.value, board.now_ns() / 1e9


def test_a_healthy_board_is_left_alone() -> None:
    message, _ = _simulate(Conditions())
    result = message.header["result"]
    assert (result["flags"], result["gates"]["dropped"], result["gates"]["waited_s"] < 0.1) == ([], [], True)
    assert len(result["gates"]["readings"]) == 12  # blocks of 200 ms: a look after each
    assert result["gates"]["clock_ns"] == pytest.approx(LOOP_NS, rel=0.01)


def test_without_gates_nothing_is_watched() -> None:
    board = SimBoard(Conditions(undervoltage=True, busy_until=1e9, busy_percent=90), 1)
    message = simulate(_SIMULATED_TIMING, candidate_ms=20, reference_ms=20, model_bytes=1, threads=1, board=board)
    assert "gates" not in message.header["result"]
    assert len(message.header["result"]["candidate_blocks"]) == 6


def test_f14_throttled_blocks_are_dropped_cooled_down_and_taken_again() -> None:
    hot = Conditions(ambient_c=32, rise_c=90, start_c=58, tau_seconds=5)
    message, board = _simulate(hot, stop_celsius=None)  # only the firmware's own bits can tell
    gates = message.header["result"]["gates"]
    dropped = gates["dropped"]
    assert {drop["kind"] for drop in dropped} == {"throttled"}
    assert gates["waited_s"] >= 2 * len(dropped)
    assert len(message.header["result"]["candidate_blocks"]) == 6
    samples = array.array("q", message.body)
    kept = sum(message.header["result"]["candidate_blocks"]) + sum(message.header["result"]["reference_blocks"])
    lost = sum(drop["candidate"] + drop["reference"] for drop in dropped)
    assert len(samples) == kept + lost
    # None of the blocks that were kept is one and a half times as slow as the others; some that were dropped are.
    assert max(samples[:kept]) < 1.25 * min(samples[:kept])
    assert max(samples[kept:]) > 1.4 * min(samples[:kept])
    assert board.now_ns() / 1e9 < _SIMULATED_TIMING["cap_seconds"] + WAITING_PHASES["gates"]


@pytest.mark.parametrize("flag_only", [[], ["gate_timed_out"]])
def test_f15_a_weak_supply_is_refused(flag_only: list[str]) -> None:
    failure, seconds = _refusal(Conditions(undervoltage=True), flag_only=flag_only)
    assert failure.kind == "undervoltage"
    assert "power supply" in failure.message
    assert seconds < 120


def test_a_board_without_a_low_voltage_detector_is_not_believed_about_it() -> None:
    message, _ = _simulate(Conditions(undervoltage=True), undervoltage=False)
    assert message.header["result"]["gates"]["dropped"] == []


def test_f16_a_silent_loss_of_clock_is_unstable_after_three_blocks() -> None:
    failure, _ = _refusal(Conditions(clock_step=1.1, clock_step_at=3.0), retries=3)
    assert failure.kind == "clock_unstable"
    assert "10 % slower" in failure.message
    failure, _ = _refusal(Conditions(clock_step=1.05), clock_ns=LOOP_NS, retries=9)
    assert "dropped for it 4 times" in failure.message
    message, _ = _simulate(Conditions(clock_step=1.05))  # slow from the start and never calibrated: nobody can know
    assert message.header["result"]["gates"]["dropped"] == []


def test_f17_a_board_that_never_cools_is_refused_in_time() -> None:
    oven = Conditions(ambient_c=84, rise_c=0, reports_throttle=False, throttle_c=200)
    for flag_only in ([], ["gate_timed_out"]):
        failure, seconds = _refusal(oven, wait_seconds=180.0, flag_only=flag_only)
        assert failure.kind == "gate_timed_out"
        assert "84 C" in failure.message
        assert 180 <= seconds < 200


def test_f17_a_warm_room_is_flagged_or_refused_as_the_mode_wants() -> None:
    warm = Conditions(ambient_c=64, rise_c=5)
    failure, _ = _refusal(warm, wait_seconds=180.0)
    assert failure.kind == "gate_timed_out"
    message, board = _simulate(warm, wait_seconds=180.0, flag_only=["gate_timed_out"])
    assert message.header["result"]["flags"] == ["gate_timed_out"]
    assert message.header["result"]["gates"]["waited_s"] >= 180  # and the cap of 120 s was not touched by it
    assert len(message.header["result"]["candidate_blocks"]) == 6
    assert board.now_ns() / 1e9 < 200


def test_f36_a_neighbour_is_waited_for_and_then_refused() -> None:
    failure, seconds = _refusal(Conditions(busy_until=1e9, busy_percent=60))
    assert failure.kind == "busy"
    assert "60 % of a CPU" in failure.message
    assert 90 <= seconds < 95
    message, _ = _simulate(Conditions(busy_until=30, busy_percent=60))
    assert 28 <= message.header["result"]["gates"]["waited_s"] < 33
    assert message.header["result"]["flags"] == []


def test_f36_a_neighbour_in_the_middle_costs_the_blocks_it_met() -> None:
    message, _ = _simulate(Conditions(busy_from=3.0, busy_until=4.0, busy_percent=60))
    dropped = message.header["result"]["gates"]["dropped"]
    assert {drop["kind"] for drop in dropped} == {"busy"}
    assert len(message.header["result"]["candidate_blocks"]) == 6


def test_on_a_developers_machine_a_neighbour_is_only_written_down() -> None:
    lenient = {"flag_only": list(KINDS), "load_wait_seconds": 1.0, "wait_seconds": 1.0, "poll_seconds": 1.0}
    message, board = _simulate(Conditions(busy_until=1e9, busy_percent=60), **lenient)
    assert message.header["result"]["flags"] == ["busy"]
    assert message.header["result"]["gates"]["dropped"] == []
    assert board.now_ns() / 1e9 < 10


def test_f37_waiting_for_the_disk_is_swapping() -> None:
    failure, _ = _refusal(Conditions(faults_at=2.0))
    assert failure.kind == "swapping"


def test_f38_another_power_mode_is_another_configuration() -> None:
    failure, _ = _refusal(Conditions(reconfigured_at=3.0))
    assert failure.kind == "config_changed"
    assert "the power mode changed" in failure.message
    assert "MAXN before, 15W now" in failure.message


def test_two_speeds_buy_one_more_round() -> None:
    settings = {**_SIMULATED_TIMING, "checks": [[6, 1], [8, 1], [10, 1]], "target_half_width": 1.0}
    pairs = []
    for share in (0.0, 0.5):
        board = SimBoard(Conditions(slow_mode=1.5, slow_mode_share=share, slow_mode_runs=2), 1)
        job = {**settings, "gates": _GATES}
        message = simulate(job, candidate_ms=20, reference_ms=20, model_bytes=1, threads=1, board=board)
        pairs.append(len(message.header["result"]["candidate_blocks"]))
    assert pairs == [6, 8]


def test_warming_up_by_more_than_fifteen_degrees_is_flagged() -> None:
    message, _ = _simulate(Conditions(ambient_c=20, rise_c=40, tau_seconds=5))
    assert message.header["result"]["flags"] == ["warming"]


@pytest.mark.parametrize(
    "gates",
    [
        [],
        "yes",
        {"wait_seconds": -1},
        {"wait_seconds": "9"},
        {"throttle": 1},
        {"flag_only": "busy"},
        {"retries": None},
        {"poll_seconds": 0},
        {"start_celsius": float("nan")},
        {"sources": [1]},
        {"load_percent": True},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(gates: Any) -> None:
    with pytest.raises(Failure) as caught:
        policy_of({"gates": gates})
    assert caught.value.kind == "bad_request"


# ---------------------------------------------------------------- the same in a real measuring process


class _Real:
    """Measures a tiny model in a real child process on a board of planted files and tools."""

    def __init__(self, folder: Path, model: bytes) -> None:
        self.board = FakeBoard(folder)
        self._folder = folder / "store"
        self._model = model

    def _put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        store = Store(self._folder, quota_bytes=10**9)
        store.put(sha256, size=len(data), offset=0, crc32=zlib.crc32(data), data=data)
        return sha256

    def measure(self, *, wrong_by: float = 0.0, **gates: Any) -> Message:
        x = np.ones((4, 16), np.float32)
        y = x @ np.random.default_rng(16).standard_normal((16, 16)).astype(np.float32) + np.float32(wrong_by)
        arrays = {}
        for name, value in (("x", x), ("y", y)):
            buffer = io.BytesIO()
            np.save(buffer, value)
            arrays[name] = self._put(buffer.getvalue())
        model = self._put(self._model)
        # This machine's own load and clock are not what is tried here.
        policy = {"max_clock_loss": None, "load_percent": None, "poll_seconds": 0.05, "wait_seconds": 5.0, **gates}
        job = {
            "kind": "measure",
            "store": str(self._folder),
            "root": str(self.board.root),
            "candidate": model,
            "reference": model,
            "inputs": {"x": arrays["x"]},
            "expected": {"y": arrays["y"]},
            "tolerance": 1e-3,
            "threads": 1,
            "settings": {**_TIMING, "gates": policy},
        }
        return run_child(job, seconds=60)

    def refusal(self, **gates: Any) -> Failure:
        with pytest.raises(Failure) as caught:
            self.measure(**gates)
        return caught.value

    def at_call(self, numbers: str, then: str, otherwise: str = "echo throttled=0x0") -> None:
        """A `vcgencmd` that does something else at these calls (a shell pattern) than at the others."""
        count = f"n=$(cat {self.board.bin}/n 2>/dev/null || echo 0); n=$((n+1)); echo $n > {self.board.bin}/n"
        self.board.tool("vcgencmd", f"{count}; case $n in {numbers}) {then};; *) {otherwise};; esac")


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense_model: Callable[[int], bytes]) -> _Real:
    found = _Real(tmp_path, dense_model(16))
    monkeypatch.setenv("PATH", f"{found.board.bin}{os.pathsep}{os.environ['PATH']}")
    return found


# `vcgencmd` is asked twice by the first look (throttle bits and clock), once when the gate finds the board fit, once
# when the blocks begin, and then after every pair.
_THIRD_PAIR = "7"


@pytest.mark.parametrize("bits", ["0x4", "0x40000"], ids=["now", "since the last look"])
def test_f14_a_real_vcgencmd_that_throttles_in_the_third_pair(real: _Real, bits: str) -> None:
    real.at_call(_THIRD_PAIR, f"echo throttled={bits}")
    gates = real.measure(sources=["vcgencmd"]).header["result"]["gates"]
    assert [(drop["pair"], drop["kind"]) for drop in gates["dropped"]] == [(2, "throttled")]
    assert bits in gates["dropped"][0]["why"]
    assert gates["waited_s"] >= 0.05
    assert [row.get("dropped") for row in gates["readings"]] == [None, None, "throttled", None, None, None, None]


def test_sticky_bits_from_before_are_no_disturbance(real: _Real) -> None:
    real.board.tool("vcgencmd", "echo throttled=0x50000")
    assert real.measure(sources=["vcgencmd"]).header["result"]["gates"]["dropped"] == []


def test_f15_a_real_vcgencmd_that_always_says_undervoltage(real: _Real) -> None:
    real.board.tool("vcgencmd", "echo throttled=0x50005")
    failure = real.refusal(sources=["vcgencmd"], load_wait_seconds=0.1)
    assert (failure.kind, failure.details["phase"]) == ("undervoltage", "gates")
    assert "official power supply" in failure.message


def test_f17_a_real_zone_stuck_at_84_degrees(real: _Real) -> None:
    real.board.zone(0, "cpu-thermal", "84000")
    failure = real.refusal(sources=["thermal"], start_celsius=60.0, stop_celsius=78.0, wait_seconds=0.2)
    assert failure.kind == "gate_timed_out"
    assert "84 C, and 60 C" in failure.message


def test_f18_a_board_without_a_single_sensor_is_measured_and_says_so(
    real: _Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(real.board.bin))
    gates = real.measure(start_celsius=60.0, load_percent=5.0).header["result"]["gates"]
    missing = {reason.split(":")[0] for reason in gates["start"]["missing"]}
    assert missing >= {"throttled", "arm_mhz", "temperature_c", "governor", "power_mode", "boot_id", "load_percent"}
    assert set(gates["start"]) == {"missing"}
    assert gates["dropped"] == []


def test_f36_real_pressure_is_busy(real: _Real) -> None:
    real.board.write("proc/pressure/cpu", "some avg10=41.00 avg60=0.00 avg300=0.00")
    failure = real.refusal(load_percent=5.0, load_wait_seconds=0.1)
    assert failure.kind == "busy"
    assert "41 % of a CPU" in failure.message
    lenient = real.measure(load_percent=5.0, load_wait_seconds=0.1, flag_only=["busy"]).header["result"]
    assert "busy" in lenient["flags"]


def test_f36_processes_that_want_a_cpu_are_seen_before_the_start(real: _Real) -> None:
    real.board.write("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\nprocs_running 4")
    failure = real.refusal(load_percent=5.0, load_wait_seconds=0.1)
    assert (failure.kind, "3 of them want a CPU" in failure.message) == ("busy", True)


def test_f37_pages_swapped_in_meanwhile(real: _Real) -> None:
    vmstat = real.board.write("proc/vmstat", "pswpin 100")
    real.at_call("*", f"echo pswpin $((100 * n)) > {vmstat}; echo throttled=0x0")
    failure = real.refusal(sources=["vcgencmd"], retries=2)
    assert (failure.kind, "3 times" in failure.message) == ("swapping", True)


def test_f38_a_real_governor_changed_meanwhile(real: _Real) -> None:
    real.board.cpus(governor="ondemand")
    file = real.board.root / "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor"
    real.at_call(_THIRD_PAIR, f"echo performance > {file}; echo throttled=0x0")
    failure = real.refusal(sources=["vcgencmd", "cpufreq"])
    assert failure.kind == "config_changed"
    assert "governor changed in the middle of the measurement: ondemand before, ondemand, performance now" in (
        failure.message
    )


def test_f38_a_real_nvpmodel_that_is_another_at_the_end(real: _Real) -> None:
    count = f"n=$(cat {real.board.bin}/n 2>/dev/null || echo 0); n=$((n+1)); echo $n > {real.board.bin}/n"
    real.board.tool(
        "nvpmodel", f'{count}; case $n in 1) echo "NV Power Mode: MAXN";; *) echo "NV Power Mode: 7W";; esac'
    )
    failure = real.refusal(sources=["nvpmodel"])
    assert (failure.kind, "MAXN before, 7W now" in failure.message) == ("config_changed", True)


def test_f39_cores_that_go_offline_meanwhile(real: _Real) -> None:
    real.board.cpus()
    online = real.board.root / "sys/devices/system/cpu/online"
    real.at_call(_THIRD_PAIR, f"echo 0-1 > {online}; echo throttled=0x0")
    failure = real.refusal(sources=["vcgencmd"])
    assert failure.kind == "config_changed"
    assert "CPUs that are online changed in the middle of the measurement: 0-3 before, 0-1 now" in failure.message


def test_another_boot_id_is_a_reboot(real: _Real) -> None:
    boot = real.board.write("proc/sys/kernel/random/boot_id", "one")
    real.at_call(_THIRD_PAIR, f"echo two > {boot}; echo throttled=0x0")
    assert real.refusal(sources=["vcgencmd"]).kind == "device_rebooted"


def test_f16_a_real_loop_far_from_its_calibration(real: _Real) -> None:
    failure = real.refusal(max_clock_loss=0.03, clock_ns=1.0, retries=2)
    assert (failure.kind, "3 times" in failure.message) == ("clock_unstable", True)


def test_f42_a_wrong_output_is_a_mismatch_whatever_is_watched(real: _Real) -> None:
    assert real.refusal(wrong_by=0.01).kind == "output_mismatch"
    assert real.measure(wrong_by=1e-5).header["result"]["max_output_difference"] < 1e-4
