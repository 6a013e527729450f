"""The user's boards as files, and what a word given to --device means. Nothing here contacts anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from device.bridge import CALM
from typer.testing import CliRunner

from rlprune_edge.cli import app
from rlprune_edge.device import acquaint, boards
from rlprune_edge.device.boards import BoardFile, Calibration
from rlprune_edge.device.known_hosts import host_key
from rlprune_edge.device.local import LocalDevice
from rlprune_edge.device.profiles import load_profile
from rlprune_edge.errors import UserError

KITCHEN = BoardFile(profile="pi4", host='pi@"kitchen".local', port=2222, identity="/keys/küche")
CALIBRATION = Calibration(
    threads=3,
    golden_ms=21.5,
    noise_floor=0.011,
    rounds=10,
    mode="verify",
    device_key="abc",
    measured_at="2026-01-01T00:00:00+00:00",
)


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "config"
    monkeypatch.setenv("RLPRUNE_CONFIG", str(folder))
    return folder


def test_a_board_is_read_as_it_was_written(config: Path) -> None:
    board = KITCHEN.model_copy(update={"calibration": CALIBRATION})
    boards.save("kitchen", board)
    assert boards.load("kitchen") == board
    assert boards.names() == ["kitchen"]
    assert [path.name for path in (config / "boards").iterdir()] == ["kitchen.toml"]


def test_the_configuration_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RLPRUNE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert boards.known_hosts() == tmp_path / "xdg" / "rlprune-edge" / "known_hosts"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert boards.known_hosts() == tmp_path / ".config" / "rlprune-edge" / "known_hosts"


def test_a_board_that_was_not_added_says_how_to() -> None:
    with pytest.raises(UserError) as caught:
        boards.check_device("pi4")
    assert "rlprune-edge device add pi4 --profile pi4 --host pi@raspberrypi.local" in str(caught.value)
    boards.save("kitchen", KITCHEN)
    with pytest.raises(UserError, match="Your boards: kitchen") as caught:
        boards.check_device("shed")
    assert "rlprune-edge device add shed --profile pi4 --host" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("Pi4", {}, "'Pi4' cannot be a board's name"),
        ("a/../b", {}, "cannot be a board's name"),
        ("local", {}, "'local' is this machine"),
        ("kitchen", {}, "already"),
        ("shed", {"host": "-oProxyCommand=x"}, "is no host"),
        ("shed", {"host": "a b"}, "is no host"),
        ("shed", {"profile": "pi99"}, "no device profile is called 'pi99'"),
        ("shed", {"profile": "local"}, "needs not be added"),
        ("shed", {"identity": "/no/such/key"}, "no key file /no/such/key"),
        ("shed", {"home": "disk"}, "whole path"),
    ],
)
def test_what_cannot_be_added(name: str, changes: dict[str, str], words: str) -> None:
    boards.save("kitchen", KITCHEN)
    fine = BoardFile(profile="pi4", host="pi@shed")
    assert boards.check_new("shed", fine) == load_profile("pi4")
    with pytest.raises(UserError) as caught:
        boards.check_new(name, fine.model_copy(update=changes))
    assert words in str(caught.value)


def test_a_wrong_file_names_itself_and_the_key(config: Path) -> None:
    boards.save("kitchen", KITCHEN)
    path = config / "boards" / "kitchen.toml"
    path.write_text(path.read_text().replace("port", "prot"))
    with pytest.raises(UserError, match=r"kitchen.toml: unknown key 'prot'; the keys are format, profile, host"):
        boards.load("kitchen")


def test_a_calibrated_board_uses_its_threads_and_its_own_name(tmp_path: Path) -> None:
    boards.save("kitchen", KITCHEN.model_copy(update={"calibration": CALIBRATION}))
    boards.save("shed", KITCHEN)
    kitchen, shed = (boards.load_device(name, cache_dir=tmp_path) for name in ("kitchen", "shed"))
    assert (kitchen.threads, kitchen.profile.name, kitchen.profile.title) == (3, "kitchen", "Raspberry Pi 4 Model B")
    assert kitchen.health.golden_ms == 21.5
    assert (shed.threads, shed.health.golden_ms) == (4, None)
    assert boards.load_device("kitchen", cache_dir=tmp_path, threads=1).threads == 1


def test_a_toml_file_may_be_a_board_or_this_machine_but_not_a_kind_of_board(tmp_path: Path) -> None:
    local = tmp_path / "mine.toml"
    local.write_text('format = 1\nname = "mine"\ntitle = "mine"\nsource = "local"\nthreads = 2\n')
    mine = boards.load_device(str(local), cache_dir=tmp_path)
    assert isinstance(mine, LocalDevice)
    assert mine.threads == 2

    kind = tmp_path / "odd.toml"
    kind.write_text('format = 1\nname = "odd"\ntitle = "odd"\nsource = "board"\nthreads = 2\n')
    with pytest.raises(UserError) as caught:
        boards.load_device(str(kind), cache_dir=tmp_path)
    assert f"rlprune-edge device add odd --profile {kind} --host USER@HOST" in str(caught.value)

    board = tmp_path / "attic.toml"
    board.write_text(f'profile = "{kind}"\nhost = "me@attic"\n')
    attic = boards.load_device(str(board), cache_dir=tmp_path)
    assert (attic.profile.name, attic.profile.title, attic.threads) == ("attic", "odd", 2)


def test_figures_of_an_emulated_board_say_so(sample: Callable[[int], Any], tmp_path: Path) -> None:
    model = sample(64)
    # what else runs on the machine of the tests is no reason to refuse the figure
    profile = load_profile("emulated-arm64").model_copy(update={"limits": CALM})
    with LocalDevice(profile, cache_dir=tmp_path / "cache") as device:
        found = device.measure(
            model.path,
            model_sha256=model.sha256,
            graph_sha256=model.sha256,
            reference=None,
            inputs=model.inputs,
            expected=model.expected,
            mode="reward",
        )
    assert (found.source, found.device) == ("emulated", "emulated-arm64")


def test_one_thread_is_called_one() -> None:
    boards.save("shed", KITCHEN.model_copy(update={"calibration": CALIBRATION.model_copy(update={"threads": 1})}))
    assert "1 thread, noise 1.1%" in CliRunner().invoke(app, ["device", "list"]).stdout


def test_list_and_show_know_both_kinds() -> None:
    boards.save("kitchen", KITCHEN.model_copy(update={"calibration": CALIBRATION}))
    runner = CliRunner()
    text = runner.invoke(app, ["device", "list"]).stdout
    assert text.index("kitchen") < text.index("Raspberry Pi\n") < text.index("NVIDIA Jetson") < text.index("Other")
    assert "3 threads, noise 1.1%" in text
    listed = json.loads(runner.invoke(app, ["device", "list", "--json"]).stdout)
    assert [board["name"] for board in listed["boards"]] == ["kitchen"]
    assert {"local", "pi4"} <= {profile["name"] for profile in listed["profiles"]}

    lines = runner.invoke(app, ["device", "show", "kitchen"]).stdout.splitlines()
    assert "calibration.threads = 3" in lines
    assert "profile.cpu.cores = 4" in lines
    assert "profile.cpu.peak_gflops = 57.6   (unsure)" in lines
    assert "threads = 1" in runner.invoke(app, ["device", "show", "local"]).stdout.splitlines()


def test_a_host_key_is_forgotten_with_the_last_board_that_has_it(config: Path) -> None:
    (config / "ssh").mkdir(parents=True)
    ssh_config = config / "ssh" / "config"
    ssh_config.write_text("Host nick\n  HostName kitchen.local\n")
    board, nick = (
        BoardFile(profile="pi4", host=host, ssh_config=str(ssh_config)) for host in ("pi@kitchen.local", "pi@nick")
    )
    elsewhere = board.model_copy(update={"port": 2222})
    key = host_key("ssh-ed25519", b"\x00\x00\x00\x0bssh-ed25519" + bytes(36))
    acquaint.trust(board, key)
    before = boards.known_hosts().read_text()
    acquaint.distrust(board, [nick])
    assert boards.known_hosts().read_text() == before, "the same machine by another name"
    acquaint.distrust(board, [elsewhere])
    assert boards.known_hosts().read_text() != before


def test_a_system_service_has_its_home_already() -> None:
    done = CliRunner().invoke(app, ["device", "setup", "kitchen", "--system", "--home", "/mnt/ssd"])
    assert "leave either --system or --home away" in str(done.exception)
