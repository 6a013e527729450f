"""Bytecode for an agent's children, made once: that it is used, and that nothing depends on it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from talk import PYTHON, over_pipes, wait_for

from rlprune_agent.compiled import compiled
from rlprune_agent.supervise import run_child
from rlprune_edge.device.agent_zip import agent_zip

IMPORTS = "import rlprune_agent.child, rlprune_agent.measure, rlprune_agent.runtime"
NO_COMPILER = """
import builtins, sys
really = builtins.compile
def compile(source, path, *rest, **words):
    if "rlprune_agent" in str(path):
        raise SystemExit(f"compiles {path}")
    return really(source, path, *rest, **words)
sys.path[0] = sys.argv[1]
builtins.compile = compile
"""


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return agent_zip(tmp_path / "packed")


def imported(code: Path) -> subprocess.CompletedProcess[str]:
    """What becomes of a process that imports what a child does and may not compile it."""
    command = [sys.executable, "-B", "-c", NO_COMPILER + IMPORTS, str(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_children_need_not_compile_what_was_compiled_before(packed: Path, tmp_path: Path) -> None:
    assert "compiles" in imported(packed).stderr
    done = imported(compiled(packed, tmp_path / "compiled"))
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_made_once_and_holds_the_same_sources(packed: Path, tmp_path: Path) -> None:
    path = compiled(packed, tmp_path / "compiled")
    made = path.stat().st_ino
    assert compiled(packed, tmp_path / "compiled") == path
    assert path.stat().st_ino == made
    with zipfile.ZipFile(packed) as before, zipfile.ZipFile(path) as after:
        assert all(after.read(name) == before.read(name) for name in before.namelist())
        assert {name for name in after.namelist() if name.endswith(".pyc")} == {n + "c" for n in before.namelist()}


@pytest.mark.parametrize("damage", [lambda data: data[:-1000], lambda data: data.replace(b"import", b"exports", 1)])
def test_a_damaged_one_is_made_again(packed: Path, tmp_path: Path, damage: object) -> None:
    path = compiled(packed, tmp_path / "compiled")
    good = path.read_bytes()
    assert callable(damage)
    path.write_bytes(damage(good))
    assert compiled(packed, tmp_path / "compiled") == path
    assert path.read_bytes() == good


def test_without_room_for_it_children_import_the_sources(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "compiled").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert compiled(packed, tmp_path / "compiled") == packed
    assert "compile the agent's code anew" in caplog.text
    assert compiled(tmp_path, tmp_path / "other") == tmp_path, "a folder is no zip"


def test_those_of_old_agents_go(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    folder.mkdir()
    for age in range(6):
        (folder / f"{age}.zip").write_bytes(b"")
        os.utime(folder / f"{age}.zip", (1e9 - age, 1e9 - age))
    path = compiled(packed, folder)
    assert {p.name for p in folder.iterdir()} == {path.name, "0.zip", "1.zip", "2.zip"}


def test_an_agent_from_a_zip_starts_its_children_from_it_and_makes_it_anew(packed: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [PYTHON, str(packed), "stdio", "--alone", "--home", str(home)]
    host, process = over_pipes(command, env=dict(os.environ))
    hello = host.hello()
    assert "onnxruntime" in hello["runtime"]
    (made,) = (home / "compiled").iterdir()
    assert packed.stem.split("-")[1] in made.name
    made.unlink()
    job = host.job(b"not a model")
    assert host.do(**job).header["kind"] == "load_failed"
    assert wait_for(made.is_file), "it is there again"
    host.close()
    assert process.wait(30) == 0


def test_a_child_runs_from_it(packed: Path, tmp_path: Path) -> None:
    path = compiled(packed, tmp_path / "compiled")
    found = run_child({"kind": "probe"}, seconds=60, code=path).header["result"]
    assert found["python"] == sys.version.split()[0]
