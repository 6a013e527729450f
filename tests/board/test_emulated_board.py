"""A board from its first mention to a compressed model, on an emulated arm64 machine: `tools/check --board`.

Some half an hour: the emulated processor is about ten times slower than the clock it shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlprune_edge.device import golden

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "virtual-board"
CHEAP = "--budget 10 --epochs 1 --finalists 1 --final-mode reward --agent uniform --target-speedup 1.3"

pytestmark = [
    pytest.mark.skipif(not os.environ.get("RLPRUNE_BOARD"), reason="wants an emulated board: tools/check --board"),
    pytest.mark.timeout(3600),
]


class Host:
    """This machine, with a configuration and a cache of its own."""

    def __init__(self, folder: Path, ssh_config: Path) -> None:
        self.folder = folder
        self.ssh_config = ssh_config
        self._environment = {
            **os.environ,
            "RLPRUNE_CONFIG": str(folder / "config"),
            "RLPRUNE_CACHE": str(folder / "cache"),
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "rlprune_edge", *words],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def board(self, command: str) -> subprocess.CompletedProcess[str]:
        """What a shell on the board answers."""
        return subprocess.run([TOOL, "ssh", command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    subprocess.run([TOOL, "start"], check=True)
    try:
        folder = tmp_path_factory.mktemp("host")
        config = folder / "ssh_config"
        config.write_text(subprocess.run([TOOL, "ssh-config"], check=True, capture_output=True, text=True).stdout)
        host = Host(folder, config)
        where = ["--host", "edge-device", "--ssh-config", str(config)]
        assert "added 'emulated'" in host.run("device", "add", "emulated", "--profile", "emulated-arm64", *where).stdout
        assert "'emulated' is set up: onnxruntime" in host.run("device", "setup", "emulated", "--offline").stdout
        yield host
        host.run("device", "remove", "emulated")
        left = "id rlprune; ls -d /var/lib/rlprune-edge /etc/systemd/system/rlprune* ~/.local/share/rlprune-edge"
        assert " No such file" in host.board(left).stderr
        assert host.board(left).stdout == ""
    finally:
        subprocess.run([TOOL, "stop"], check=True)


def test_the_doctor_finds_an_arm_board(host: Host) -> None:
    report = json.loads(host.run("device", "check", "emulated", "--json").stdout)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert report["ok"]
    assert found["64-bit"]["text"] == "aarch64"
    assert found["onnxruntime"]["status"] == "PASS"


def test_a_short_search_and_its_winner_measured_again(host: Host) -> None:
    host.run("compress", "--task", "digits", "--device", "emulated", "--out", "run", *CHEAP.split())
    report = json.loads((host.folder / "run" / "report.json").read_text())
    assert (report["status"], report["source"]) == ("met", "emulated")
    trials = [json.loads(line)["trial"] for line in (host.folder / "run" / "trials.jsonl").read_text().splitlines()]
    measured = [trial["measurement"] for trial in trials if trial["measurement"]]
    assert {m["source"] for m in measured} == {"emulated"}
    assert {m["options"]["weights"] for m in measured[1:]} == {"made up"}
    assert "(emulated)" in (host.folder / "run" / "report.html").read_text()

    model = "run/bundle/model.onnx"
    first, again = (
        json.loads(host.run("measure", model, "--device", "emulated", "--mode", "reward", "--json").stdout)
        for _ in range(2)
    )
    times = [found["devices"][0]["models"][0]["latency_ms"]["value"] for found in (first, again)]
    assert times[1] == pytest.approx(times[0], rel=0.02)  # its clock counts instructions
    assert first["devices"][0]["models"][0]["source"] == "emulated"


def test_a_system_service_takes_over(host: Host) -> None:
    """Under a real systemd: a user of its own, shut in as the unit says, and what it measures is the same."""
    (host.folder / "golden.onnx").write_bytes(golden.model())
    words = ("measure", "golden.onnx", "--device", "emulated", "--mode", "reward", "--json")
    before = json.loads(host.run(*words).stdout)["devices"][0]["models"][0]["latency_ms"]["value"]
    said = host.run("device", "setup", "emulated", "--offline", "--system").stdout
    assert "systemd runs the agent as the user rlprune, from boot on" in said
    state = host.board("systemctl show rlprune-edge-agent -p ActiveState -p User -p NRestarts")
    assert set(state.stdout.split()) == {"User=rlprune", "ActiveState=active", "NRestarts=0"}
    assert host.board("test -e ~/.config/systemd/user/rlprune-edge-agent.service").returncode == 1
    report = json.loads(host.run("device", "check", "emulated", "--json").stdout)
    assert report["ok"]
    after = json.loads(host.run(*words).stdout)["devices"][0]["models"][0]["latency_ms"]["value"]
    assert after == pytest.approx(before, rel=0.02)
