"""Profiles are checked when read; the packed agent is the same file every time."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rlprune_edge.device.agent_zip import agent_zip
from rlprune_edge.device.meter import MODES, mode_settings
from rlprune_edge.device.profiles import load_profile, profiles
from rlprune_edge.errors import UserError

_GOOD = 'format = 1\nname = "shed"\ntitle = "the board in the shed"\nsource = "board"\nthreads = 4\n'


def test_local_is_one_thread_and_says_it_is_local() -> None:
    local = load_profile("local")
    assert (local.threads, local.source) == (1, "local")
    assert profiles()["local"] == local


def test_a_profile_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shed.toml"
    path.write_text(_GOOD)
    assert load_profile(str(path)).threads == 4


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(UserError, match=r"'pi99'.*local"):
        load_profile("pi99")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (_GOOD + "thread = 2\n", "unknown key 'thread'"),
        (_GOOD.replace("4", "0"), "'threads'"),
        (_GOOD.replace("4", '"four"'), "'threads'"),
        (_GOOD.replace("format = 1", "format = 2"), "'format'"),
        (_GOOD.replace('name = "shed"\n', ""), "'name'"),
        ("threads = = 1", "not TOML"),
    ],
)
def test_a_wrong_profile_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "shed.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_profile(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_key_of_a_profile_is_documented() -> None:
    readme = Path(__file__).parents[2] / "device_profiles" / "README.md"
    text = readme.read_text()
    assert [key for key in type(load_profile("local")).model_fields if f"`{key}`" not in text] == []


def test_the_packed_agent_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = agent_zip(tmp_path / "a"), agent_zip(tmp_path / "b")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    stamp = first.stat().st_mtime_ns
    assert agent_zip(tmp_path / "a").stat().st_mtime_ns == stamp
    assert {info.date_time for info in zipfile.ZipFile(first).infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_damaged_packed_agent_is_replaced(tmp_path: Path) -> None:
    path = agent_zip(tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    assert agent_zip(tmp_path).read_bytes() == good


def test_the_packed_agent_runs_on_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(agent_zip(tmp_path)), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env={"PATH": "/usr/bin"})
    assert "stdio" in done.stdout


def test_modes_get_more_thorough_and_allow_the_percentiles_they_promise() -> None:
    reward, verify, report = (MODES[name] for name in ("reward", "verify", "report"))
    assert reward.processes < verify.processes < report.processes
    assert (verify.min_runs, report.min_runs) == (64, 662)
    assert [rank for _, rank in verify.job()["checks"]] == [4, 7, 10, 17]
    with pytest.raises(UserError, match=r"'fast'.*reward, verify, report"):
        mode_settings("fast")
