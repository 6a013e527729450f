"""A board from its first mention to its removal, by the `device` commands: real sshd, real packages, fresh account."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from device.ssh.board import fingerprint
from device.ssh.host import NAME, Host, a_host

from rlprune_edge import errors
from rlprune_edge.device import boards, calibrate, setup, wheels
from rlprune_edge.device.board import Board, connect
from rlprune_edge.device.profiles import load_profile
from rlprune_edge.errors import DeviceError, UserError

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with a_host(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture(scope="module")
def ready(host: Host) -> Host:
    """The board, added and set up."""
    added = host.add("--fingerprint", fingerprint(host.board.host_key()))
    assert added.exit_code == 0, added
    host.has_wheels()
    done = host.run("setup", NAME, "--offline")
    assert done.exit_code == 0, done
    assert done.stdout.startswith(f"'{NAME}' is set up: onnxruntime {importlib.metadata.version('onnxruntime')}, ")
    return host


def test_a_script_that_vouches_for_nothing_adds_nothing(host: Host) -> None:
    refused = host.add().exception
    assert isinstance(refused, UserError)
    assert f"--fingerprint {fingerprint(host.board.host_key())}" in str(refused)
    wrong = host.add("--fingerprint", "SHA256:AAAA").exception
    assert isinstance(wrong, UserError)
    assert "Nothing was sent to it" in str(wrong)
    assert boards.names() == []
    assert not boards.known_hosts().exists()


def test_a_person_is_asked_once_and_may_say_no(host: Host) -> None:
    words = ["device", "add", NAME, "--profile", "linux", "--host", f"{host.board.user}@{host.board.host}"]
    words += ["--port", str(host.board.port), "--ssh-config", str(host.ssh_config)]
    controller, terminal = pty.openpty()
    with os.fdopen(controller, "wb", buffering=0) as keys:
        keys.write(b"n\n")
        done = subprocess.run(
            [sys.executable, "-m", "rlprune_edge", *words], stdin=terminal, capture_output=True, text=True, check=False
        )
        os.close(terminal)
    assert done.returncode == errors.EXIT_USER
    assert fingerprint(host.board.host_key()) in done.stderr
    assert "nothing was added" in done.stderr
    assert boards.names() == []


def test_a_board_without_an_agent_says_how_to_get_one(host: Host) -> None:
    boards.save("bare", boards.BoardFile(**_where(host), profile="linux"))
    host.board.known_hosts(boards.known_hosts())
    try:
        with (
            boards.load_device("bare", cache_dir=host.cache) as station,
            pytest.raises(DeviceError, match=r"no agent on it yet.*rlprune-edge device setup bare"),
        ):
            _ = station.facts
        checked = host.run("check", "bare")
        assert checked.exit_code == errors.EXIT_DEVICE
        assert "FAIL  agent: there is none yet\n      -> rlprune-edge device setup bare" in checked.stdout
    finally:
        boards.forget("bare")
        boards.known_hosts().unlink()


def _where(host: Host) -> dict[str, object]:
    return {
        "host": f"{host.board.user}@{host.board.host}",
        "port": host.board.port,
        "ssh_config": str(host.ssh_config),
    }


def test_added_with_its_key_hashed_and_set_up_by_hash(ready: Host) -> None:
    assert boards.names() == [NAME]
    assert boards.known_hosts().read_text().startswith("|1|")
    board = boards.load(NAME)
    with connect(board) as session:
        about = setup.look(session)
    assert about["packages"] == {p: importlib.metadata.version(p) for p in wheels.PACKAGES}
    assert ready.board.home in Path(about["home"]).parents
    assert [p.name for p in (ready.board.home / ".local" / "share" / "rlprune-edge" / "agents").iterdir()] == [
        f"agent-{about['agent']}.pyz"
    ]


def test_doing_it_again_is_harmless(ready: Host) -> None:
    again = ready.run("setup", NAME)
    assert again.exit_code == 0
    assert "is there already" in again.stderr
    assert "installing" not in again.stderr


def test_the_doctor_finds_it_fit_but_not_calibrated(ready: Host) -> None:
    checked = ready.run("check", NAME, "--json")
    assert checked.exit_code == 0, checked.stdout
    report = json.loads(checked.stdout)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert (report["device"], report["ok"]) == (NAME, True)
    assert found["golden run"]["status"] == "WARN"
    assert found["golden run"]["advice"] == f"rlprune-edge device calibrate {NAME}"
    passed = {name for name, finding in found.items() if finding["status"] == "PASS"}
    assert {"host key", "64-bit", "Python", "page size", "agent", "service", "onnxruntime", "memory"} <= passed


def test_released_only_when_asked_twice(ready: Host) -> None:
    assert ready.run("release", NAME).stdout == f"'{NAME}' is free\n"
    with ready.station as other:
        other.sweep([calibrate.golden.model()])  # has the lease from now on
        used = ready.run("release", NAME).exception
        assert isinstance(used, DeviceError)
        assert used.kind == "device_locked"
        assert f"pid {os.getpid()}" in str(used)
        blocked = ready.run("setup", NAME).exception
        assert isinstance(blocked, DeviceError)
        assert blocked.kind == "device_locked"
        assert "it is free" in ready.run("release", NAME, "--force").stdout
    assert ready.run("release", NAME).exit_code == 0


def test_calibrated_it_knows_its_noise_and_its_threads(ready: Host) -> None:
    said: list[str] = []
    board = boards.load(NAME)
    profile = load_profile(board.profile)

    def station(threads: int) -> Board:
        return Board(NAME, board, profile, cache_dir=ready.cache, threads=threads)

    found = calibrate.calibrate(station, ready.cache, mode="reward", rounds=1, tell=said.append)
    boards.save(NAME, board.model_copy(update={"calibration": found}))
    cores = len(os.sched_getaffinity(0))
    assert found.threads in {cores, max(1, cores - 1)}
    assert found.golden_ms > 0
    assert 0 <= found.noise_floor < 1
    assert said[-1].startswith("round 1/1: ")
    with ready.station as calibrated:
        assert (calibrated.threads, calibrated.key) == (found.threads, found.device_key)
        assert calibrated.health.golden_ms == found.golden_ms


def test_removed_it_leaves_nothing(ready: Host) -> None:
    gone = ready.run("remove", NAME)
    assert gone.exit_code == 0, gone
    assert list(ready.board.home.rglob("*")) == []
    assert boards.names() == []
    assert boards.known_hosts().read_text() == ""
    assert [line for line in _commands() if str(ready.board.home) in line] == []


def _commands() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return lines
