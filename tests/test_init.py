"""`init` writes a file that says everything that can be asked, and asks for what it says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlprune_edge import request as requests
from rlprune_edge.cli import app
from rlprune_edge.errors import UserError
from rlprune_edge.request import Request

CHOSEN = ("importance",)
"""of a few words, none of which is the default"""


def test_the_file_is_a_request_with_every_key_in_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    done = CliRunner().invoke(app, ["init", str(file)])
    assert done.exit_code == 0
    assert f"rlprune-edge compress --config {file}" in done.stdout
    asked = requests.make({}, file)
    assert asked == Request(target_speedup=2.0)
    lines = file.read_text().splitlines()
    keys = [line.removeprefix("# ") for line in lines if " = " in line]
    every = tomllib.loads("\n".join(keys))
    assert set(every) == set(Request.model_fields), "each is there once, and is TOML when its # is taken away"
    for name, field in Request.model_fields.items():
        if field.default is not None and name != "target_speedup":
            assert every[name] == field.default
        at = next(i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{name} = "))
        assert lines[at - 1].startswith("# "), f"{name} is not explained"
        if name not in CHOSEN:
            Request(**{name: every[name]})  # what is shown can be asked for
    assert max(map(len, lines[2:])) <= 120


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("task = 'cifar10'")
    refused = CliRunner().invoke(app, ["init", str(file)]).exception
    assert isinstance(refused, UserError)
    assert f"rlprune-edge init {file} --force" in str(refused)
    assert file.read_text() == "task = 'cifar10'"
    assert CliRunner().invoke(app, ["init", str(file), "--force"]).exit_code == 0
    assert requests.make({}, file).task == "digits"


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["init", str(tmp_path / "no" / "folder.toml")]).exception
    assert isinstance(refused, UserError)
    assert "No such file" in str(refused)


@pytest.mark.parametrize("words", [[], ["--max-drop", "3"]])
def test_flags_win_over_the_file(tmp_path: Path, words: list[str]) -> None:
    file = tmp_path / "mine.toml"
    CliRunner().invoke(app, ["init", str(file)])
    given = {"max_drop": 3.0} if words else {}
    assert requests.make(given, file).max_drop == (3.0 if words else None)
