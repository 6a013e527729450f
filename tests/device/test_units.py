"""systemd's files: as closed as they claim, and started as the agent wants to be."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rlprune_agent import bootstrap
from rlprune_edge.device import setup

SYSTEM, USER, JETSON = "rlprune-edge-agent.service", "rlprune-edge-agent-user.service", "jetson.conf"


def text(name: str) -> str:
    return (setup.units() / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("additions", ["", JETSON])
def test_the_system_service_is_hardly_exposed(tmp_path: Path, additions: str) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here")
    unit = tmp_path / SYSTEM
    unit.write_text(text(SYSTEM) + (text(additions) if additions else ""))
    command = [analyze, "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot look at a file: {done.stderr.strip()}")
    assert float(found.group(1)) <= 1.5


def settings(name: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text(name).splitlines() if "=" in line and not line.startswith("#"))


def test_the_services_run_the_launcher_that_setup_writes() -> None:
    assert settings(SYSTEM)["ExecStart"].startswith(f"{bootstrap.SYSTEM_HOME}/bin/rlprune-edge-agent serve ")
    assert settings(USER)["ExecStart"].startswith(f"%h/{bootstrap.BASE}/bin/rlprune-edge-agent serve ")
    assert settings(SYSTEM)["User"] == bootstrap.SYSTEM_USER
    for name in (SYSTEM, USER):
        assert (settings(name)["Type"], settings(name)["WatchdogSec"]) == ("notify", "30")


def test_the_traps_are_left_out() -> None:
    assert "~@resources" not in text(SYSTEM).replace("SystemCallFilter=~@resources would", "")
    assert settings(SYSTEM)["DeviceAllow"] == "/dev/vcio rw"
    assert settings(SYSTEM)["MemoryDenyWriteExecute"] == "yes"
    assert settings(JETSON)["MemoryDenyWriteExecute"] == "no"


def test_a_restart_keeps_the_sockets_folder_and_an_upgraded_agent_is_started_again() -> None:
    assert settings(SYSTEM)["RuntimeDirectoryPreserve"] == "restart"
    assert settings(USER)["Restart"] == "always"
