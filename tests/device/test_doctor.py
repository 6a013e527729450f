"""What the doctor says of planted circumstances, and of this machine."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from rlprune_edge.cli import app
from rlprune_edge.device import doctor
from rlprune_edge.device.profiles import load_profile

PI4, ZERO, PI5 = (load_profile(name) for name in ("pi4", "pi-zero-2w", "pi5"))

HEALTHY: dict[str, Any] = {
    "machine": "aarch64",
    "bits": 64,
    "python": "/usr/bin/python3",
    "python_version": "3.11",
    "features": ["asimd", "crc32", "fp"],
    "model": "Raspberry Pi 4 Model B Rev 1.4",
    "page_bytes": 4096,
    "governors": ["performance"],
    "throttled": "throttled=0x0",
    "vcio": True,
    "free_bytes": 10**10,
    "swaps": [],
    "pressure": True,
    "cgroup_memory": True,
    "clock_synchronized": True,
    "rtc": False,
    "agent": "a" * 64,
    "unit": None,
    "packages": {"onnxruntime": "1.22.0", "numpy": "2.2.0"},
    "packages_broken": "",
}


def test_a_healthy_board_passes_everything() -> None:
    found = [*doctor.system(PI4, HEALTHY), *doctor.installation("attic", HEALTHY, "a" * 64)]
    assert [f.name for f in found if f.status != "PASS"] == []
    names = {f.name for f in found}
    assert {"64-bit", "Python", "processor features", "page size", "governor", "throttling", "free disk"} <= names
    assert {"swap", "pressure (PSI)", "memory cgroup", "time of day", "battery clock (RTC)", "agent"} <= names


@pytest.mark.parametrize(
    ("changes", "name", "status", "words"),
    [
        ({"machine": "armv7l", "bits": 32}, "64-bit", "FAIL", "64-bit edition"),
        ({"python": None, "python_version": "3.6"}, "Python", "FAIL", "sudo apt install python3.8"),
        ({"features": ["asimd"]}, "processor features", "WARN", "profile of this board"),
        ({"model": "Raspberry Pi 5 Model B"}, "model", "WARN", "profile that fits"),
        ({"governors": ["ondemand"]}, "governor", "WARN", "scaling_governor"),
        ({"throttled": "throttled=0x50005"}, "throttling", "FAIL", "power supply"),
        ({"throttled": "throttled=0x80000"}, "throttling", "WARN", "cool it"),
        ({"throttled": None, "vcio": False}, "throttling", "WARN", "usermod -aG video"),
        ({"throttled": "VCHI failed"}, "throttling", "WARN", "libraspberrypi-bin"),
        ({"free_bytes": 10**8}, "free disk", "FAIL", "make room"),
        ({"free_bytes": 5 * 10**8}, "free disk", "WARN", "make room"),
        ({"swaps": ["zram", "file"]}, "swap", "WARN", "swapoff"),
        ({"pressure": False}, "pressure (PSI)", "WARN", "psi=1"),
        ({"cgroup_memory": False}, "memory cgroup", "WARN", "cgroup_enable=memory"),
        ({"clock_synchronized": False}, "time of day", "WARN", "set-ntp"),
    ],
)
def test_what_spoils_figures_is_named_with_what_helps(
    changes: dict[str, Any], name: str, status: str, words: str
) -> None:
    (found,) = (f for f in doctor.system(PI4, HEALTHY | changes) if f.name == name)
    assert found.status == status
    assert words in found.advice


def test_bits_of_a_detector_that_is_not_there_mean_nothing() -> None:
    assert doctor.throttling(ZERO, "throttled=0x10001", True).status == "PASS"
    assert doctor.throttling(ZERO, "throttled=0x10005", True).text == "right now: throttled"


@pytest.mark.parametrize(
    ("changes", "name", "status", "words"),
    [
        ({"agent": None}, "agent", "FAIL", "rlprune-edge device setup attic"),
        ({"agent": "b" * 64}, "agent", "WARN", "rlprune-edge device setup attic"),
        ({"packages": {}, "packages_broken": "no module"}, "onnxruntime", "FAIL", "--renew"),
        ({"packages": {"onnxruntime": "1.21.0", "numpy": "2.2.0"}}, "onnxruntime", "FAIL", "--renew"),
    ],
)
def test_an_installation_that_will_not_do(changes: dict[str, Any], name: str, status: str, words: str) -> None:
    (found,) = (f for f in doctor.installation("attic", HEALTHY | changes, "a" * 64) if f.name == name)
    assert found.status == status
    assert words in found.advice


def test_the_blocked_runtime_is_fine_on_a_pi_5() -> None:
    pi5 = HEALTHY | {
        "packages": {"onnxruntime": "1.21.0", "numpy": "2.2.0"},
        "features": [*(PI5.cpu.isa if PI5.cpu else ()), "fp"],
    }
    assert [f.status for f in doctor.installation("attic", pi5, "a" * 64)] == ["PASS", "PASS"]


@pytest.mark.parametrize(
    ("zones", "status"),
    [
        ({"cpu": 45.0, "gpu": 48.5}, "PASS"),
        ({"cpu": 45.0, "gpu": 71.0}, "WARN"),
        ({}, "WARN"),
        (None, "WARN"),
        ({"cpu": "hot"}, "WARN"),
    ],
)
def test_temperature_is_that_of_the_hottest_zone(zones: Any, status: str) -> None:
    assert doctor.temperature(PI4, zones).status == status


def test_this_machine_can_be_checked_as_well(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLPRUNE_CACHE", str(tmp_path))
    done = CliRunner().invoke(app, ["device", "check", "local"])
    assert done.exit_code == 0, done.stdout
    assert "PASS  golden run: " in done.stdout
    assert "FAIL" not in done.stdout


def test_the_agent_that_answers_counts_and_not_the_one_that_leads_to_it() -> None:
    (finding,) = doctor.running("shed", {"agent_sha256": "b" * 64}, "a" * 64)
    assert (finding.status, finding.advice) == ("WARN", "rlprune-edge device setup shed")
    assert list(doctor.running("shed", {"agent_sha256": "a" * 64}, "a" * 64)) == []
