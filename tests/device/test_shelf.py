"""A bundle on a board: whole or not there, switched to in one step, and back; the program runs as on a board."""

from __future__ import annotations

import ast
import fcntl
import os
import sys
import threading
from pathlib import Path

import pytest
from accounts import Account

from rlprune_agent import shelf as over_there
from rlprune_edge.device import shelf
from rlprune_edge.device.shell import LocalShell, do
from rlprune_edge.errors import DeviceError, UserError

SAYS = "import sys; print('golden', *sys.argv[1:]); sys.exit({})\n"


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path)


def bundle(folder: Path, words: str, predict: str = SAYS.format(0)) -> Path:
    (folder / "golden").mkdir(parents=True)
    (folder / "model.onnx").write_text(words)
    (folder / "predict.py").write_text(predict)
    (folder / "golden" / "0-input-0.npy").write_bytes(b"\x00\xff" * 70_000)
    return folder


def push(account: Account, folder: Path, name: str = "digits", to: str | None = None) -> shelf.Shelved:
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    sums = (folder / "model.onnx").read_bytes()
    return shelf.push(account.shell, folder, files, name=name, to=to, sums=sums, tell=account.said.append)


def has_python(account: Account) -> None:
    """What `device setup` leaves on a board."""
    python = account.home / over_there.PYTHON
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)


def test_the_program_is_python_3_6_and_alone() -> None:
    tree = ast.parse(Path(over_there.__file__).read_text(), feature_version=(3, 6))
    modules = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    modules += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert set(modules) <= sys.stdlib_module_names - {"__future__", "dataclasses"}


def test_put_there_replaced_and_taken_back(account: Account, tmp_path: Path) -> None:
    has_python(account)
    first = push(account, bundle(tmp_path / "one", "1"))
    current = Path(first.path)
    assert current == account.home / "rlprune-bundles" / "digits" / "current"
    assert (current / "model.onnx").read_text() == "1"
    assert (current / "golden" / "0-input-0.npy").read_bytes() == b"\x00\xff" * 70_000
    assert (first.tried, first.previous) == ("golden --golden 0", None)
    assert "model.onnx (1 bytes)" in account.said
    assert (current / "model.onnx").stat().st_mode & 0o777 == 0o644, "an app under another login reads it"

    second = push(account, bundle(tmp_path / "two", "2"))
    assert (current / "model.onnx").read_text() == "2"
    assert second.previous == first.release
    back = shelf.rollback(account.shell, name="digits", to=None)
    assert (current / "model.onnx").read_text() == "1"
    assert (back.release, back.previous) == (first.release, second.release)
    shelf.rollback(account.shell, name="digits", to=None)
    assert (current / "model.onnx").read_text() == "2"

    again = push(account, tmp_path / "two")
    assert again.release != second.release
    assert again.previous == first.release, "going back to the same again would be no use"
    push(account, bundle(tmp_path / "three", "3"))
    assert len(list((current.parent / "releases").iterdir())) == 2, "older ones go"


def test_a_bundle_that_fails_there_or_breaks_off_changes_nothing(account: Account, tmp_path: Path) -> None:
    has_python(account)
    first = push(account, bundle(tmp_path / "one", "1"))
    with pytest.raises(DeviceError, match=r"does not give its recorded answer .* the old one stays: golden"):
        push(account, bundle(tmp_path / "two", "2", SAYS.format(1)))
    broken = {"name": "digits", "to": None, "digest": "0" * 16}
    for entry, words in (
        ({"name": "model.onnx", "size": 9, "sha256": "0" * 64}, "broke off"),
        ({"name": "../model.onnx", "size": 0, "sha256": "0" * 64}, "not a file of a bundle"),
        ({"name": "model.onnx", "size": 0, "sha256": "0" * 64}, "arrived damaged"),
    ):
        with pytest.raises(DeviceError, match=words):
            do_push(account.shell, broken, [entry])
    folder = Path(first.path).parent
    assert (Path(first.path) / "model.onnx").read_text() == "1"
    assert [p.name for p in (folder / "releases").iterdir()] == [first.release]
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "current", "releases"]


def do_push(shell: LocalShell, params: dict[str, object], files: list[dict[str, object]]) -> None:
    """What a host that sends something else than it says would do."""

    class Cut:
        def run(self, command, *, stdin, seconds, on_output=None):  # type: ignore[no-untyped-def]
            import json

            end = stdin.index(b'{"name"')
            line = json.dumps({**params, "action": "push", "files": files}).encode()
            return shell.run(command, stdin=stdin[:end] + line + b"\n", seconds=seconds, on_output=on_output)

    do(Cut(), "push", params, program="shelf.py", seconds=30)


def test_an_app_never_finds_nothing(account: Account, tmp_path: Path) -> None:
    one, two = bundle(tmp_path / "one", "1"), bundle(tmp_path / "two", "2")
    current = Path(push(account, one).path) / "model.onnx"
    seen, ended = set(), threading.Event()

    def read() -> None:
        while not ended.is_set():
            try:
                seen.add(current.read_text())
            except OSError as error:
                seen.add(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for folder in (two, one, two, one):
        push(account, folder)
    ended.set()
    reader.join()
    assert seen == {"1", "2"}


def test_without_an_agent_it_is_not_run(account: Account, tmp_path: Path) -> None:
    assert push(account, bundle(tmp_path / "one", "1", SAYS.format(1))).tried is None


def test_another_folder_and_other_names(account: Account, tmp_path: Path) -> None:
    done = push(account, bundle(tmp_path / "one", "1"), name="eyes-2", to=str(tmp_path / "disk"))
    assert Path(done.path) == tmp_path / "disk" / "eyes-2" / "current"
    for name in ("../x", "", "a/b", ".hidden"):
        with pytest.raises(UserError, match="is no name for a bundle on a board"):
            push(account, tmp_path / "one", name=name)
    with pytest.raises(UserError, match="there is no bundle at"):
        shelf.rollback(account.shell, name="digits", to=None)
    with pytest.raises(UserError, match="holds no earlier bundle to go back to"):
        shelf.rollback(account.shell, name="eyes-2", to=str(tmp_path / "disk"))
    taken = account.home / "rlprune-bundles" / "mine"
    (taken / "current").mkdir(parents=True)
    with pytest.raises(UserError, match="is not a link: somebody else's"):
        push(account, tmp_path / "one", name="mine")
    assert list((taken / "current").iterdir()) == []


def test_two_at_once_do_not_mix(account: Account, tmp_path: Path) -> None:
    folder = Path(push(account, bundle(tmp_path / "one", "1")).path).parent
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another bundle is being put into"):
            push(account, bundle(tmp_path / "two", "2"))
    assert (folder / "current" / "model.onnx").read_text() == "1"


def test_a_push_that_was_killed_is_tidied_up_by_the_next(account: Account, tmp_path: Path) -> None:
    folder = Path(push(account, bundle(tmp_path / "one", "1")).path).parent
    (folder / "releases" / ".partial").mkdir()
    (folder / "releases" / ".partial" / "model.onnx").write_text("half")
    push(account, bundle(tmp_path / "two", "2"))
    assert not (folder / "releases" / ".partial").exists()
    assert os.readlink(folder / "current").startswith("releases/")


def test_an_answer_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text('#!/bin/sh\ncat >/dev/null\necho \'{"done": {"path": 7}}\'\n')
    (tmp_path / "python3").chmod(0o755)
    shell = LocalShell({"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)})
    with pytest.raises(DeviceError, match="does not make sense"):
        shelf.rollback(shell, name="x", to=None)
