"""The agent as a service of the login's own; systemd's programs are stand-ins that write down what they were asked."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from accounts import Account

from rlprune_agent import bootstrap
from rlprune_edge.device import setup
from rlprune_edge.device.setup import Wanted
from rlprune_edge.device.shell import LocalShell, do


class Systemd:
    """Programs named as systemd's; `lingers` says whether the login may have its services outlive its sessions."""

    def __init__(self, account: Account, folder: Path, *, lingers: bool) -> None:
        self._asked = folder / "asked"
        folder.mkdir()
        for name, status in (("systemctl", 0), ("loginctl", 0 if lingers else 1)):
            program = folder / name
            program.write_text(f'#!/bin/sh\necho {name} "$@" >> {self._asked}\nexit {status}\n')
            program.chmod(0o755)
        account.environment["PATH"] = f"{folder}:{account.environment['PATH']}"
        account.shell = LocalShell(account.environment)
        self.unit = account.home / bootstrap.USER_UNITS / bootstrap.UNIT

    def asked(self) -> list[str]:
        """What has been asked since the last time, but for whether there is a systemd at all."""
        lines = self._asked.read_text().splitlines()
        self._asked.write_text("")
        known = [line for line in lines if line.startswith(("systemctl --user", "loginctl"))]
        return [line for line in known if not line.endswith("show-environment")]


@pytest.fixture(autouse=True)
def _not_lingering_yet() -> None:
    if (Path("/var/lib/systemd/linger") / pwd.getpwuid(os.getuid()).pw_name).exists():
        pytest.skip("this login's services outlive its sessions already")


def test_started_from_boot_on_and_undone_as_it_was(account: Account, tmp_path: Path) -> None:
    systemd = Systemd(account, tmp_path / "systemd", lingers=True)
    account.offers()
    done = account.setup(Wanted())
    assert done.words == "your own systemd runs the agent (from boot on)"
    unit = bootstrap.UNIT
    began = [f"systemctl --user {words}" for words in ("daemon-reload", f"enable {unit}", f"restart {unit}")]
    assert systemd.asked() == [*began, "loginctl enable-linger"]
    assert f"%h/{bootstrap.BASE}/bin/rlprune-edge-agent serve" in systemd.unit.read_text()

    account.setup(Wanted())  # nothing has changed: what runs goes on
    assert f"systemctl --user start {unit}" in systemd.asked()

    assert setup.remove(account.shell) is True
    gone = [f"systemctl --user {words}" for words in (f"disable --now {unit}", "daemon-reload")]
    assert systemd.asked() == [*gone, "loginctl disable-linger"]
    assert not systemd.unit.exists()
    assert not account.base.exists()


def test_where_lingering_is_refused_that_is_said_and_not_undone(account: Account, tmp_path: Path) -> None:
    systemd = Systemd(account, tmp_path / "systemd", lingers=False)
    account.offers()
    assert "while you are logged in; for longer: sudo loginctl enable-linger" in account.setup(Wanted()).words
    systemd.asked()
    assert setup.remove(account.shell) is True
    assert not [line for line in systemd.asked() if line.startswith("loginctl")]


def test_a_service_of_the_logins_own_makes_way_for_the_systems(account: Account, tmp_path: Path) -> None:
    """As `setup --system` asks it to, on a board that was set up without before."""
    systemd = Systemd(account, tmp_path / "systemd", lingers=True)
    account.offers()
    account.setup(Wanted())
    systemd.asked()
    do(account.shell, "drop-user-service", {}, seconds=60)
    assert f"systemctl --user disable --now {bootstrap.UNIT}" in systemd.asked()
    assert not systemd.unit.exists()
    assert account.launcher("--version").returncode == 0  # the bridge to the system's service needs it
    do(account.shell, "drop-user-service", {}, seconds=60)
    assert systemd.asked() == []
