"""Profiles are checked when read; the packed agent is the same file every time."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rlprune_edge.device.agent_zip import agent_zip
from rlprune_edge.device.meter import MODES, mode_settings
from rlprune_edge.device.profiles import (
    Blocked,
    Cpu,
    Limits,
    Memory,
    Profile,
    Software,
    Telemetry,
    blocklist,
    load_profile,
    profiles,
)
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[limits]\nstart_celcius = 60\n",
            "unknown key 'limits.start_celcius'; the keys are start_celsius, stop_celsius",
        ),
        ("[[software]]\nos = 'x'\npython = '2.7'\n", "'software.0.python'"),
        ("[telemetry]\nsources = ['crystal ball']\n", "'telemetry.sources"),
        ("[cpu]\nname = 'x'\n", "'cpu.cores'"),
    ],
)
def test_a_wrong_table_names_its_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "shed.toml"
    path.write_text(_GOOD + text)
    with pytest.raises(UserError) as caught:
        load_profile(str(path))
    assert words in str(caught.value)


def test_what_is_marked_unsure_has_to_be_stated(tmp_path: Path) -> None:
    path = tmp_path / "shed.toml"
    path.write_text(_GOOD + 'unsure = ["memory.bandwidth_gb_s"]\n')
    with pytest.raises(UserError, match=r"'memory.bandwidth_gb_s', which this profile does not state"):
        load_profile(str(path))
    path.write_text(path.read_text() + "[memory]\nmb = [1024]\nbandwidth_gb_s = 3.5\n")
    assert load_profile(str(path)).fact("memory.bandwidth_gb_s") == 3.5


def test_the_boards_that_come_along() -> None:
    known = profiles()
    assert next(iter(known)) == "local"
    pis = ["pi-zero-2w", "pi3", "pi4", "pi5"]
    jetsons = ["jetson-agx-orin", "jetson-nano", "jetson-orin-nano", "jetson-orin-nx", "jetson-xavier-nx"]
    assert [name for name, p in known.items() if p.family == "Raspberry Pi"] == pis
    assert [name for name, p in known.items() if p.family == "NVIDIA Jetson"] == jetsons
    for name in pis + jetsons:
        profile = known[name]
        assert profile.cpu is not None
        assert profile.memory is not None
        assert 1 < profile.threads <= profile.cpu.cores
        assert profile.source == "board"
        assert profile.limits.start_celsius is not None
        assert profile.limits.throttle == (name in pis)
        # multiply-adds of 128 bits, one or two a cycle: anything else is a typing error
        assert profile.cpu.mhz is not None
        assert profile.cpu.peak_gflops is not None
        per_cycle = profile.cpu.peak_gflops / (profile.cpu.cores * profile.cpu.mhz / 1000)
        assert min(abs(per_cycle - 8), abs(per_cycle - 16)) < 0.01
    assert not known["pi-zero-2w"].limits.undervoltage
    assert known["pi3"].limits.stop_celsius == 58
    assert known["emulated-arm64"].source == "emulated"


def test_the_blocklist_names_the_version_that_kills_a_pi_4() -> None:
    pi4, pi5 = (load_profile(name).cpu for name in ("pi4", "pi5"))
    assert pi4 is not None
    assert pi5 is not None
    (entry,) = blocklist()
    assert (entry.package, entry.version, entry.machine) == ("onnxruntime", "1.21.0", "aarch64")
    assert entry.without_isa not in pi4.isa
    assert entry.without_isa in pi5.isa


def test_every_key_of_a_profile_is_documented() -> None:
    readme = Path(__file__).parents[2] / "device_profiles" / "README.md"
    text = readme.read_text()
    tables = [Profile, Cpu, Memory, Telemetry, Limits, Software, Blocked]
    keys = [key for table in tables for key in table.model_fields]
    assert [
        key for key in keys if f"`{key}`" not in text and f"`[{key}]`" not in text and f"[[{key}]]" not in text
    ] == []


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
