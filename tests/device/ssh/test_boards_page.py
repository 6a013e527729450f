"""The page on boards does what it says: its commands run in their order, on a board that is a real sshd on loopback."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from device.ssh.board import fingerprint
from device.ssh.host import Host, a_host
from processes import MISSED, TRIES
from test_docs import a_model
from typer.testing import CliRunner

from rlprune_edge.cli import app
from rlprune_edge.device import health
from rlprune_edge.device.meter import MODES
from rlprune_edge.device.profiles import profiles

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "boards.md").read_text()
COMMANDS = [
    line[2:]
    for block in re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
# Tried as written, but with less of everything; the last of two equal options wins.
CHEAPER = {
    "device setup": "--offline",
    "device calibrate": "--mode reward",
    "measure": "--mode reward",
    "bundle verify": "--mode reward",
    # what is shown does not depend on the network; of so small a one the latency model has to learn the overhead first
    "compress": "--task own_task:Bars --budget 8 --epochs 0 --finalists 1 --final-mode reward --target-speedup 1.1",
}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with a_host(tmp_path) as host:
        host.has_wheels()
        yield host


def test_the_commands_of_the_page_on_boards_run_in_their_order(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "examples")
    a_model(tmp_path / "model.onnx", 8192)
    a_model(tmp_path / "other.onnx", 512)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(health, "DRIFT_REFUSED", 100.0)  # the neighbours of these tests come and go
    short = {"warmup_seconds": 0.02, "warmup_cap_seconds": 0.1, "window_ms": 5, "block_ms": 5, "sample_ms": 0.5}
    for mode in ("reward", "verify"):
        monkeypatch.setitem(MODES, mode, replace(MODES["reward"], **short))
    said = {}
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        name = " ".join(words[:2] if words[0] in ("device", "bundle") else words[:1])
        words += shlex.split(CHEAPER.get(name, ""))
        if name == "device add":
            board = host.board
            words += ["--profile", str(host.profile), "--host", f"{board.user}@{board.host}", "--port", str(board.port)]
            words += ["--ssh-config", str(host.ssh_config), "--fingerprint", fingerprint(board.host_key())]
        for _ in range(TRIES):
            done = CliRunner().invoke(app, words)
            if done.exit_code != MISSED:
                break
            shutil.rmtree(words[words.index("--out") + 1])
            shutil.rmtree(host.cache / "measurements")
        assert done.exit_code == 0, (command, done.stdout, done.stderr, done.exception)
        said[name] = done.stdout
    assert "added 'pi4'" in said["device add"]
    assert "PASS  agent" in said["device check"]
    assert "noise floor" in said["device calibrate"]
    assert "pi4 (measured there)" in said["measure"]
    assert "is the noise floor" not in said["measure"]
    assert "the noise floor this device was calibrated at" in said["measure"]
    assert "faster on pi4" in said["compress"]
    assert said["device release"] == "'pi4' is free\n"
    assert "3 golden examples reproduced on pi4" in said["bundle verify"]
    assert "it gives its recorded answer there" in said["bundle push"]
    (left,) = host.board.home.iterdir()
    assert (left.name, (left / "digits" / "current" / "model.onnx").is_file()) == ("rlprune-bundles", True)


@pytest.mark.parametrize("page", ["raspberry-pi", "jetson"])
def test_the_pages_on_kinds_of_boards_have_the_same_commands(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    assert len(commands) == 7
    for command in commands:
        known = command.replace(" --profile jetson-orin-nano", "").replace("me@jetson.local", "pi@raspberrypi.local")
        assert re.sub(r"\borin\b", "pi4", known) in COMMANDS
    named = re.search(r"--profile (\S+)", " ".join(commands))
    assert named is None or named[1] in profiles()
