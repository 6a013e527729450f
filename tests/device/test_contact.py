"""A station and a daemon that are joined by a bridge, and all that can come between them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent.boards import FakeBoard
from device.bridge import Bridged
from talk import Daemon, Host, alive, children, wait_for

from rlprune_edge.device import contact, golden, station
from rlprune_edge.device.agent_zip import agent_zip
from rlprune_edge.device.local import LocalDevice
from rlprune_edge.device.meter import MODES
from rlprune_edge.device.profiles import load_profile
from rlprune_edge.device.station import Station
from rlprune_edge.errors import DeviceError, RlpruneError
from rlprune_edge.measurements import Measurement

Make = Callable[[int], Any]

# A figure that nobody relies on, in a tenth of the time; "reward" is what lasts long enough to be disturbed.
_QUICK = replace(MODES["reward"], warmup_seconds=0.02, warmup_cap_seconds=0.1, window_ms=5, block_ms=2, sample_ms=0.5)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODES, "quick", _QUICK)
    monkeypatch.setattr(contact, "_POLL_SECONDS", 0.1)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def daemon(home: Path) -> Iterator[Daemon]:
    daemon = Daemon(home)
    yield daemon
    daemon.stop()


@pytest.fixture
def board(daemon: Daemon, tmp_path: Path) -> Iterator[Bridged]:
    with Bridged(daemon.home, cache_dir=tmp_path / "cache") as board:
        yield board


def _measure(device: Station, model: Any, **changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "model_sha256": model.sha256,
        "graph_sha256": "graph of " + model.sha256,
        "reference": None,
        "inputs": model.inputs,
        "expected": model.expected,
        "mode": "quick",
        "use_cache": False,
    }
    return device.measure(model.path, **{**fields, **changes})


@contextlib.contextmanager
def _meanwhile(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Do `work` in a thread during the block; its result, or its error, is in the list afterwards."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except (RlpruneError, AssertionError) as error:  # for the test to look at
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield outcome
    thread.join(120)
    assert not thread.is_alive()


def _journal(daemon: Daemon, state: str) -> list[str]:
    lines = (daemon.home / "jobs" / "journal.jsonl").read_text().splitlines()
    return [entry["job"] for entry in map(json.loads, lines) if entry.get("state") == state]


def test_a_measurement_is_done_and_the_device_given_back(board: Bridged, daemon: Daemon, sample: Make) -> None:
    found = _measure(board, sample(256))
    assert (found.source, found.device) == ("board", "shed")
    assert board.status()["lease"]["holder"]["owner"].endswith(f"pid {os.getpid()}")
    assert _journal(daemon, "acked") == _journal(daemon, "running")
    assert list((daemon.home / "jobs").glob("*.result")) == []
    board.close()
    watcher = daemon.connect()
    assert watcher.ask(verb="status").header["lease"]["holder"] is None


def test_a_connection_that_drops_in_mid_measurement_costs_no_second_run(
    board: Bridged, daemon: Daemon, sample: Make
) -> None:
    """F4"""
    model = sample(512)
    assert board.facts["protocol"] == 1
    with _meanwhile(lambda: _measure(board, model, mode="reward")) as outcome:
        child = daemon.working()
        board.bridge.kill()
        assert wait_for(lambda: board.connections == 2)
        assert alive(child)
    assert len(outcome[0].processes) == 1
    assert len(_journal(daemon, "running")) == 1


@pytest.mark.parametrize("verb", ["hello", "lease", "have", "put", "submit", "wait", "ack"])
def test_whichever_answer_is_lost_the_job_is_done_once(board: Bridged, daemon: Daemon, sample: Make, verb: str) -> None:
    """F4, F33"""
    board.lose = verb
    assert len(_measure(board, sample(64)).processes) == 1
    assert board.connections == (1 if verb == "ack" else 2)
    assert len(_journal(daemon, "running")) == 1
    assert len(_measure(board, sample(64)).processes) == 1
    assert board.health.failures == 0


def test_a_daemon_that_is_killed_is_started_again_and_the_job_done_afresh(
    board: Bridged, daemon: Daemon, sample: Make
) -> None:
    """F12"""
    model = sample(512)
    assert board.facts["protocol"] == 1
    with _meanwhile(lambda: _measure(board, model, mode="reward")) as outcome:
        daemon.working()
        daemon.process.kill()
    assert len(outcome[0].processes) == 1
    ran = _journal(daemon, "running")
    assert [job[-2:] for job in ran] == ["02"]  # the first attempt's line went when the journal was rewritten
    assert board.health.failures == 0


def test_an_agent_that_hangs_is_noticed_and_asked_again(board: Bridged, daemon: Daemon, sample: Make) -> None:
    """F20"""
    assert board.facts["protocol"] == 1
    assert board._link is not None
    board._link._silence_seconds = 0.5  # of this link alone: the next one has time to be made
    daemon.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, daemon.process.pid, os.WSTOPPED)  # the signal arrives when the kernel comes to it
    with _meanwhile(lambda: _measure(board, sample(64))) as outcome:
        assert wait_for(lambda: board.connections == 2)
        daemon.process.send_signal(signal.SIGCONT)
    assert isinstance(outcome[0], Measurement), outcome[0]


def test_a_device_that_stays_away_is_a_device_error(
    board: Bridged, daemon: Daemon, sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F8"""
    monkeypatch.setattr(Bridged, "_reconnect_seconds", 2.0)
    assert board.facts["protocol"] == 1
    daemon.process.kill()
    daemon.process.wait()
    board._command = ["false"]
    with pytest.raises(DeviceError, match="the shed") as caught:
        _measure(board, sample(64))
    assert caught.value.kind in ("agent_crashed", "connection_lost")
    assert board.connections > 2


def test_a_board_that_loses_power_in_mid_measurement_is_waited_for_and_has_to_prove_itself(
    tmp_path: Path, sample: Make
) -> None:
    """F7"""
    planted = FakeBoard(tmp_path / "planted")
    boot_id = planted.write("proc/sys/kernel/random/boot_id", "first")
    words = ("--root", str(planted.root))
    daemon = Daemon(tmp_path / "home", *words)
    model = sample(512)
    with Bridged(daemon.home, cache_dir=tmp_path / "cache", words=words) as board:
        assert board.facts["protocol"] == 1
        with _meanwhile(lambda: _measure(board, model, mode="reward")) as outcome:
            child = daemon.working()
            daemon.process.kill()  # everything is gone at once
            board.bridge.kill()
            daemon.process.wait()
            assert wait_for(lambda: not alive(child))
            alive_again = board._command
            board._command = ["false"]
            assert wait_for(lambda: board.connections >= 3)
            boot_id.write_text("second\n")
            daemon = Daemon(tmp_path / "home", *words)
            board._command = alive_again
        assert isinstance(outcome[0], Measurement), outcome[0]
        assert len(outcome[0].processes) == 1
        assert (tmp_path / "home" / "store" / golden.sha256()[:2] / golden.sha256()).exists()
        assert board.health.failures == 0
    daemon.stop()


def test_a_file_that_rotted_on_the_device_is_sent_again(board: Bridged, daemon: Daemon, sample: Make) -> None:
    """F29"""
    model = sample(64)
    _measure(board, model)
    path = daemon.home / "store" / model.sha256[:2] / model.sha256
    path.write_bytes(path.read_bytes()[:-1])
    assert len(_measure(board, model).processes) == 1
    assert path.read_bytes() == model.path.read_bytes()


def test_ctrl_c_frees_the_device_within_five_seconds(board: Bridged, daemon: Daemon, sample: Make) -> None:
    model = sample(512)
    assert board.facts["protocol"] == 1
    watcher = daemon.connect()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        main = threading.main_thread().ident
        assert main is not None
        threading.Thread(target=lambda: daemon.working() and signal.pthread_kill(main, signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            _measure(board, model, mode="report")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert wait_for(lambda: not children(daemon.pid), 5)
    assert watcher.ask(verb="status").header["lease"]["holder"] is None


def test_the_lease_is_kept_while_the_host_does_something_else(
    home: Path, tmp_path: Path, sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact, "_RENEW_SECONDS", 0.1)
    daemon = Daemon(home, "--lease-seconds", "1")
    with Bridged(home, cache_dir=tmp_path / "cache") as board:
        _measure(board, sample(64))
        token = board._link and board._link.token
        other = daemon.connect("another")
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert other.acquire()["granted"] is False
        assert board._link
        assert board._link.token == token
    assert daemon.stop() == 0


def test_a_device_taken_away_in_mid_measurement_is_queued_for_again(
    board: Bridged, daemon: Daemon, sample: Make
) -> None:
    """F32"""
    model = sample(512)
    assert board.facts["protocol"] == 1
    other = daemon.connect("another")
    with _meanwhile(lambda: _measure(board, model, mode="reward")) as outcome:
        daemon.working()
        assert str(os.getpid()) in other.ask(verb="lease", action="break").header["broken"]
    assert len(outcome[0].processes) == 1
    assert [job[-2:] for job in _journal(daemon, "running")] == ["01", "02"]


def test_whoever_waits_is_told_behind_whom_and_gives_up_in_the_end(
    daemon: Daemon, tmp_path: Path, sample: Make
) -> None:
    daemon.connect("ada@laptop pid 7").held()
    told: list[Any] = []
    with (
        Bridged(
            daemon.home, cache_dir=tmp_path / "c", wait_seconds=0, on_wait=lambda *words: told.append(words)
        ) as board,
        pytest.raises(DeviceError, match="in use by ada@laptop pid 7") as caught,
    ):
        _measure(board, sample(64))
    assert caught.value.kind == "device_locked"
    assert told == [("ada@laptop pid 7", 1)]


def test_two_local_runs_take_turns(tmp_path: Path, sample: Make) -> None:
    """F32, without a daemon"""
    model = sample(256)
    told: list[Any] = []
    first = LocalDevice(load_profile("local"), cache_dir=tmp_path)
    _measure(first, model)
    with (
        LocalDevice(load_profile("local"), cache_dir=tmp_path, on_wait=lambda *words: told.append(words)) as second,
        _meanwhile(lambda: _measure(second, model)) as outcome,
    ):
        assert wait_for(lambda: told)
        first.close()
    assert isinstance(outcome[0], Measurement)
    assert told[0][1] == 1
    assert told[0][0].endswith(f"pid {os.getpid()}")


def _killer(daemon: Daemon, kills: int) -> Callable[[], None]:
    """Kills so many children of the daemon, one after the other, while they measure."""

    def run() -> None:
        for _ in range(kills):
            pid = daemon.working()
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: not alive(pid))  # type: ignore[misc]

    return run


def _no_oom_counter(tmp_path: Path) -> Path:
    """A /proc in which the kernel killed nobody, whatever goes on in the real one."""
    (tmp_path / "root" / "proc").mkdir(parents=True)
    (tmp_path / "root" / "proc" / "vmstat").write_text("oom_kill 0\n")
    return tmp_path / "root"


def test_three_failures_in_a_row_make_the_device_prove_itself(home: Path, tmp_path: Path, sample: Make) -> None:
    daemon = Daemon(home, "--root", str(_no_oom_counter(tmp_path)))
    model, cache = sample(512), tmp_path / "cache"
    with Bridged(home, cache_dir=cache, golden_ms=None) as board:
        assert board.facts["protocol"] == 1
        with (
            _meanwhile(_killer(daemon, 3)),
            pytest.raises(DeviceError, match=r"signal 9|ended with") as caught,
        ):
            _measure(board, model, mode="verify")
        assert caught.value.kind == "agent_crashed"
        assert board.health.failures == 3
    with (
        Bridged(home, cache_dir=cache, golden_ms=1e-4) as board,  # as if it had once been a thousand times faster
        pytest.raises(DeviceError, match="golden model took") as caught,
    ):
        _measure(board, model)
    assert caught.value.kind == "device_quarantined"
    assert "3 failures in a row" in str(caught.value)
    with Bridged(home, cache_dir=cache) as board:  # another run, which does not know when it was faster
        assert board.health.quarantined
        assert _measure(board, model).device == "shed"
        assert (board.health.quarantined, board.health.failures) == (None, 0)
    assert daemon.stop() == 0


def test_a_reward_is_tried_twice(home: Path, tmp_path: Path, sample: Make) -> None:
    daemon = Daemon(home, "--root", str(_no_oom_counter(tmp_path)))
    with Bridged(home, cache_dir=tmp_path / "cache") as board:
        assert board.facts["protocol"] == 1
        with _meanwhile(_killer(daemon, 2)), pytest.raises(DeviceError):
            _measure(board, sample(512), mode="reward")
        assert board.health.failures == 2
        assert isinstance(_measure(board, sample(64)), Measurement)
        assert board.health.failures == 0
    assert daemon.stop() == 0


def test_the_golden_model_runs_right_and_in_time(board: Bridged) -> None:
    assert board.golden_ms() > 0
    assert hashlib.sha256(golden.model()).hexdigest() == golden.sha256()


def test_an_upgrade_reaches_the_device_and_the_next_request_its_new_agent(
    home: Path, tmp_path: Path, sample: Make
) -> None:
    """F27"""
    home.mkdir()
    packed = agent_zip(tmp_path)
    data = packed.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    daemon = Daemon(home)
    with Bridged(home, cache_dir=tmp_path / "cache") as board:
        assert board.facts["agent_sha256"] is None
        board.upgrade(sha256, data)
        assert daemon.process.wait(20) == 0
        assert (home / "current").resolve().name == packed.name
        board._command = [sys.executable, str(home / "current"), *board._command[3:]]
        assert board.facts["agent_sha256"] == sha256
        assert len(_measure(board, sample(64)).processes) == 1
    assert wait_for(lambda: not (home / "run" / "agent.sock").exists(), 20)


def test_a_more_thorough_figure_answers_the_question(
    board: Bridged, sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "_NOT_KEPT", {"board": frozenset()})
    monkeypatch.setitem(MODES, "verify", _QUICK)
    model = sample(64)
    thorough = _measure(board, model, mode="verify", use_cache=True)
    found = _measure(board, model, mode="reward", use_cache=True)
    assert (found.mode, found.cached, found.latency_ms) == ("verify", True, thorough.latency_ms)
    assert _measure(board, model, mode="quick", use_cache=True).cached is False  # it comes after "verify"
    board.health.golden_ms = board.golden_ms() / 2
    assert board.health.judge(board.health.golden_ms * 1.1) is None  # the device has changed, by a little
    assert _measure(board, model, mode="verify", use_cache=True).cached is False


def test_a_host_that_talks_past_its_lease_is_not_listened_to(daemon: Daemon) -> None:
    host: Host = daemon.connect().held()
    host.token = (host.token or 0) + 5
    assert host.ask(verb="have", files=[]).header["kind"] == "lease_lost"
