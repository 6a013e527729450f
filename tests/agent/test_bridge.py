"""The bridge: what leads an SSH connection to the daemon, and what it says where it cannot."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from talk import ENVIRONMENT, PYTHON, agent_command, over_pipes, wait_for

from rlprune_agent import sockets
from rlprune_agent.bridge import connected
from rlprune_agent.protocol import Failure
from rlprune_agent.supervise import BOOT, CODE


def test_a_home_with_a_long_name_works_as_well(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30) / ("name" * 30)
    host, process = over_pipes(agent_command("stdio", "--home", str(home), "--idle-seconds", "0"))
    assert host.hello()["ok"] is True
    host.close()
    assert process.wait(10) == 0
    assert wait_for(lambda: not sockets.home_socket(home).exists(), 10)


def test_a_daemon_that_cannot_start_is_told_with_its_words(tmp_path: Path) -> None:
    first, process = over_pipes(agent_command("stdio", "--alone", "--home", str(tmp_path)))
    assert first.acquire()["granted"] is True
    done = subprocess.run(
        agent_command("stdio", "--home", str(tmp_path)),
        input=b"",
        capture_output=True,
        env=ENVIRONMENT,
        check=False,
        timeout=60,
    )
    first.close()
    process.wait(30)
    assert done.returncode == 1
    assert b"another agent process does the jobs of" in done.stderr
    assert done.stdout == b""


def test_a_system_service_that_does_not_answer_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlprune_agent.bridge._START_SECONDS", 0.1)
    (tmp_path / "agent.sock").touch()
    with pytest.raises(Failure, match="systemctl status"):
        connected(tmp_path / "home", tmp_path / "agent.sock", [])
    assert not (tmp_path / "home").exists()


def test_a_system_service_without_its_socket_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlprune_agent.bridge._START_SECONDS", 0.1)
    unit = tmp_path / "rlprune-edge-agent.service"
    unit.touch()
    with pytest.raises(Failure, match="systemctl status"):
        connected(tmp_path / "home", tmp_path / "agent.sock", [], system_unit=unit)
    assert not (tmp_path / "home").exists()


def test_what_lies_in_the_current_folder_is_not_run(tmp_path: Path) -> None:
    for name in ("signal", "platform", "select"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')\n")
    command = [PYTHON, "-c", BOOT, str(CODE), "--self-test"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "planted" in done.stderr) == (0, False)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """As a login without rights: root may look into every folder."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o055])
def test_a_login_that_is_not_in_the_services_group_is_told_which_one(mode: int) -> None:
    """Whether the folder is closed to it or only the socket: no agent of its own is started beside the service."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "service"
        folder.mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "agent.sock"))
            listener.listen()
            (folder / "agent.sock").chmod(0)
            group = folder.stat().st_gid
            folder.chmod(mode)
            with _as_nobody(), pytest.raises(Failure, match=f"has to be a member of the group {group}$") as caught:
                connected(Path(place) / "home", folder / "agent.sock", [])
            folder.chmod(0o700)
        assert caught.value.kind == "auth_failed"
        assert [path.name for path in Path(place).iterdir()] == ["service"]


def test_a_card_that_is_read_only_is_said_by_the_bridge(tmp_path: Path) -> None:
    """F10"""
    before = """
import errno, os
def mkdir(*_, **__): raise OSError(errno.EROFS, "Read-only file system")
os.mkdir = mkdir
"""
    command = agent_command("stdio", "--home", str(tmp_path / "home"), before=before)
    done = subprocess.run(command, input=b"", capture_output=True, env=ENVIRONMENT, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("rlprune-edge-agent: ")
    assert "Read-only file system; its disk is failing or read-only; dmesg" in line
    assert str(tmp_path / "home") in line
