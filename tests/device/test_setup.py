"""Setting up an account on this machine, as on a board: real Python, real files; onnxruntime and numpy are stand-ins.

The real packages, and SSH, are met in `ssh/test_real_board.py`.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from accounts import Account

from rlprune_agent import bootstrap
from rlprune_edge.device import setup, wheels
from rlprune_edge.device.setup import Wanted, obstacles
from rlprune_edge.device.shell import COMMANDS, LocalShell, do
from rlprune_edge.errors import DeviceError, UserError

KILLS = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"


def test_the_program_is_python_3_6_and_alone() -> None:
    source = Path(bootstrap.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    modules = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    modules += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert set(modules) <= sys.stdlib_module_names - {"__future__", "dataclasses"}


def test_from_the_boards_network_then_again_then_nothing_left(account: Account) -> None:
    account.offers()
    done = account.setup(Wanted())
    assert done.packages == {"onnxruntime": "1.99.0", "numpy": "1.99.0"}
    assert any(line.startswith("installing onnxruntime") for line in account.said)
    assert account.launcher("--version").stdout.strip() != ""
    assert account.base.stat().st_mode & 0o777 == 0o700
    before = (account.base / "venv" / "pyvenv.cfg").stat().st_mtime_ns

    again = account.setup(Wanted())
    assert again == done
    assert "onnxruntime 1.99.0 is there already" in account.said
    assert (account.base / "venv" / "pyvenv.cfg").stat().st_mtime_ns == before
    assert setup.look(account.shell)["agent"] == done.agent_sha256

    (account.home / ".config" / "pip" / "pip.conf").unlink()
    (account.home / ".config" / "pip").rmdir()
    assert setup.remove(account.shell) is True
    assert list(account.home.rglob("*")) == [account.home / ".config"]
    assert setup.remove(account.shell) is False


def test_a_board_without_a_network_is_told_of_the_other_way(account: Account) -> None:
    account.offers()
    closed = "[global]\nindex-url = http://127.0.0.1:9/simple\nretries = 1\n"
    (account.home / ".config" / "pip" / "pip.conf").write_text(closed)
    with pytest.raises(DeviceError, match=r"(?s)installing onnxruntime and numpy failed.*--offline sends them") as said:
        account.setup(Wanted())
    assert "Retrying" not in str(said.value), "the reason, not all that pip tried"
    assert not (account.base / "venv").exists()


def test_offline_on_another_disk_needs_no_pip_over_there(account: Account, tmp_path: Path) -> None:
    account.offers()
    (account.home / ".config" / "pip" / "pip.conf").write_text("[global]\nno-index = true\n")
    disk = tmp_path / "disk" / "agent"
    done = account.setup(Wanted(offline=True, home=str(disk)))
    assert done.packages["onnxruntime"] == "1.99.0"
    assert any(line.startswith("sending onnxruntime-1.99.0") for line in account.said)
    assert account.base.is_symlink()
    assert (disk / "venv" / "bin" / "python").exists()
    assert not list(disk.rglob("pip"))
    assert account.launcher("--version").returncode == 0
    with pytest.raises(UserError, match="is there already; remove it before it is set up in"):
        account.setup(Wanted(offline=True, renew=True, home=str(tmp_path / "elsewhere")))
    assert setup.remove(account.shell) is True
    assert not disk.exists()
    assert not account.base.is_symlink()


def test_a_runtime_that_kills_the_process_does_not_replace_one_that_works(account: Account) -> None:
    account.offers()
    account.setup(Wanted(offline=True))
    account.offers(onnxruntime=KILLS)
    place = {"python": sys.executable, "packages": ["onnxruntime", "numpy"]}
    with pytest.raises(DeviceError, match=r"onnxruntime was installed but cannot be imported.*SIGILL"):
        do(account.shell, "packages", place, files_to_send=sorted(account.index.iterdir()), seconds=120)
    assert setup.look(account.shell)["packages"] == {"onnxruntime": "1.99.0", "numpy": "1.99.0"}
    assert sorted(path.name for path in account.base.iterdir()) == ["agents", "bin", "current", "setup.lock", "venv"]


def test_a_daemon_that_still_runs_is_ended_with_the_old_agent_and_on_removal(account: Account) -> None:
    account.offers()
    account.setup(Wanted(offline=True))
    bridge = [str(account.base / "bin" / "rlprune-edge-agent"), "stdio"]
    subprocess.run(bridge, stdin=subprocess.DEVNULL, env=account.environment, check=True)
    assert (account.base / "run" / "agent.sock").exists()
    assert do(account.shell, "restart", {}, seconds=60)["ended"] is True
    assert not (account.base / "run" / "agent.sock").exists()
    assert do(account.shell, "restart", {}, seconds=60)["ended"] is False


def test_a_file_that_arrives_damaged_or_under_a_strange_name_is_refused(account: Account) -> None:
    def answer(name: str, sha256: str) -> dict[str, object]:
        params = {"action": "agent", "files": [{"name": name, "size": 4, "sha256": sha256}]}
        program = Path(bootstrap.__file__).read_bytes()
        stdin = b"%d\n%s%s\ndata" % (len(program), program, json.dumps(params).encode())
        done = account.shell.run(COMMANDS["login"], stdin=stdin, seconds=60)
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found

    right = hashlib.sha256(b"data").hexdigest()
    assert "not a file name" in str(answer("../../evil", right)["failed"])
    assert "arrived damaged" in str(answer("agent-x.pyz", "0" * 64)["failed"])
    assert list((account.base / "agents").glob("*.pyz")) == []


@pytest.mark.parametrize(
    ("changes", "offline", "words"),
    [
        ({"machine": "armv7l", "bits": 32}, False, "64-bit system is needed, this is armv7l"),
        ({"python": None, "python_version": "3.6"}, False, "Python 3.8 or newer is needed, the board has 3.6"),
        ({"venv": False}, True, "sudo apt install python3-venv"),
        ({"ensurepip": False}, False, "--offline"),
        ({"free_bytes": 10**8}, False, "700 MB of free disk are needed, there are 100"),
    ],
)
def test_what_is_in_the_way_is_said_with_what_to_do(changes: dict[str, object], offline: bool, words: str) -> None:
    board = {
        "machine": "aarch64",
        "bits": 64,
        "python": "/usr/bin/python3",
        "python_version": "3.11",
        "venv": True,
        "ensurepip": True,
        "free_bytes": 10**10,
    }
    assert obstacles(board, offline=offline) == []
    (said,) = obstacles(board | changes, offline=offline)
    assert words in said


def test_no_python_and_no_sudo_are_told_apart_from_the_rest(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    bare = LocalShell({"HOME": str(tmp_path), "PATH": str(tmp_path / "bin")})
    with pytest.raises(DeviceError, match=r"no python3 on the board.*sudo apt install python3"):
        do(bare, "look", seconds=30)
    sudo = tmp_path / "bin" / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    with pytest.raises(DeviceError, match=r"sudo wants a password.*leave --system away"):
        do(bare, "prepare-system", {"login": "x"}, who="root", seconds=30)


def test_noise_of_a_login_shell_is_no_answer_and_drives_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text('#!/bin/sh\necho welcome\necho \'{"failed": "\\u001b[2J gone"}\'\n')
    python.chmod(0o755)
    shell = LocalShell({"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"})
    with pytest.raises(DeviceError) as caught:
        do(shell, "look", seconds=30)
    assert str(caught.value) == "\ufffd[2J gone"


def test_a_step_has_a_deadline(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    shell = LocalShell({"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"})
    with pytest.raises(DeviceError, match="did not finish within 1 s"):
        do(shell, "look", seconds=1)


@pytest.mark.parametrize(
    ("libc", "newest", "oldest"), [("glibc 2.31", "manylinux_2_31_aarch64", "manylinux2014_aarch64")]
)
def test_platforms_of_a_jetpack_5(libc: str, newest: str, oldest: str) -> None:
    names = wheels.platforms("aarch64", libc)
    assert (names[0], names[-1], len(names)) == (newest, oldest, 16)


@pytest.mark.parametrize(
    ("machine", "libc"), [("armv7l", "glibc 2.31"), ("aarch64", "musl"), ("aarch64", "glibc 2.12")]
)
def test_systems_without_wheels_are_refused(machine: str, libc: str) -> None:
    with pytest.raises(UserError, match="there is no onnxruntime for"):
        wheels.platforms(machine, libc)


def test_what_kills_a_pi_4_is_not_asked_for_there() -> None:
    machine = "aarch64"
    assert wheels.requirements(machine, ["asimd", "crc32"]) == ["onnxruntime!=1.21.0", "numpy"]
    assert wheels.requirements(machine, ["asimd", "atomics"]) == ["onnxruntime", "numpy"]
    assert wheels.blocked("onnxruntime", "1.21.0", machine=machine, features=["asimd"]) is not None
    assert wheels.blocked("onnxruntime", "1.21.0", machine=machine, features=["atomics"]) is None
    assert wheels.blocked("onnxruntime", "1.20.0", machine=machine, features=["asimd"]) is None


def test_a_folder_of_the_users_is_set_up_in_but_not_deleted(account: Account, tmp_path: Path) -> None:
    account.offers()
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "thesis.tex").write_text("years of work")
    wanted = Wanted(offline=True, home=str(disk))
    account.setup(wanted)
    assert account.base.resolve() == disk / "rlprune-edge"
    account.setup(wanted)  # once more is harmless
    assert setup.remove(account.shell) is True
    assert [path.name for path in disk.iterdir()] == ["thesis.tex"]

    (disk / "rlprune-edge").mkdir()
    (disk / "rlprune-edge" / "checkout.py").touch()
    with pytest.raises(UserError, match=r"rlprune-edge holds something else already; choose another folder"):
        account.setup(wanted)
    account.base.parent.mkdir(parents=True)
    account.base.symlink_to(disk)
    with pytest.raises(UserError, match="which holds something else"):
        setup.remove(account.shell)
    assert (disk / "thesis.tex").exists()


def test_a_home_folder_that_is_empty_afterwards_stays(account: Account) -> None:
    account.base.mkdir(parents=True)
    assert setup.remove(account.shell) is True
    assert list(account.home.iterdir()) == []


def test_two_set_ups_at_once_do_not_get_in_each_others_way(account: Account) -> None:
    account.offers()
    account.setup(Wanted(offline=True))
    with (account.base / bootstrap.MARK).open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another set-up is going on"):
            account.setup(Wanted(offline=True, renew=True))
        with pytest.raises(UserError, match="another set-up is going on"):
            setup.remove(account.shell)
    assert setup.remove(account.shell) is True


def test_a_daemon_with_the_old_packages_is_ended_when_they_are_renewed(account: Account) -> None:
    account.offers()
    account.setup(Wanted(offline=True))
    bridge = [str(account.base / "bin" / "rlprune-edge-agent"), "stdio"]
    subprocess.run(bridge, stdin=subprocess.DEVNULL, env=account.environment, check=True)
    account.setup(Wanted(offline=True))
    assert (account.base / "run" / "agent.sock").exists()
    account.setup(Wanted(offline=True, renew=True))
    assert not (account.base / "run" / "agent.sock").exists()


def test_what_lies_in_the_current_folder_is_not_run(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("platform", "signal", "numpy", "venv"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')\n")
    account.offers()
    monkeypatch.chdir(tmp_path)
    assert account.setup(Wanted(offline=True)).packages["numpy"] == "1.99.0"
    assert setup.look(account.shell)["packages"]["numpy"] == "1.99.0"


def test_room_is_looked_for_on_the_disk_that_was_chosen(account: Account, tmp_path: Path) -> None:
    """/proc has none."""
    assert setup.look(account.shell, home="/proc/agent")["free_bytes"] == 0
    assert setup.look(account.shell, home=str(tmp_path / "not" / "yet"))["free_bytes"] > 0


def test_little_disk_is_enough_where_no_packages_are_installed() -> None:
    board = {"machine": "aarch64", "bits": 64, "python": "/usr/bin/python3", "venv": True, "ensurepip": True}
    assert obstacles(board | {"free_bytes": 10**8}, offline=False, packages=False) == []


@pytest.mark.parametrize(
    ("name", "value"), [("python_version", "3.11/../../x"), ("features", [["atomics"]]), ("governors", [1])]
)
def test_an_answer_that_is_not_what_it_should_be_is_refused(tmp_path: Path, name: str, value: object) -> None:
    true = setup.look(LocalShell())
    (tmp_path / "python3").write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps({'done': true | {name: value}})}\nEND\n")
    (tmp_path / "python3").chmod(0o755)
    with pytest.raises(DeviceError, match=f"about '{name}' does not make sense"):
        setup.look(LocalShell({"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}))
