"""The spine of `bundle push` and `bundle rollback`: a verified bundle goes where an app on a board finds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rlprune_edge.bundle import verify as bundles
from rlprune_edge.device import boards, shelf
from rlprune_edge.device.board import Board, connect
from rlprune_edge.device.boards import BoardFile, load_device
from rlprune_edge.device.shelf import Shelved
from rlprune_edge.errors import UserError


def push(
    folder: Path,
    board: str,
    *,
    name: str | None,
    to: str | None,
    trust: Sequence[Path],
    cache_dir: Path,
    tell: Callable[[str], None] = lambda _: None,
) -> Shelved:
    """Verify a bundle here, send it, have it checked and tried there, and switch to it; see `device/shelf.py`.

    Raises BundleError, UserError, DeviceError; whatever happens, an app finds the old bundle or the new one.
    """
    where = _board(board)
    for line in bundles.verify(folder, trust):
        tell(line)
    sums = bundles.checked_sums(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    wanted = name or name_for(bundles.inspect(folder)["task"])
    with load_device(board, cache_dir=cache_dir) as station:
        assert isinstance(station, Board), "whatever has a host is reached by SSH"
        station.check_free()  # what somebody measures there would be measured beside the transfer
    with connect(where) as session:
        return shelf.push(session, folder, files, name=wanted, to=to, sums=sums, tell=tell)


def rollback(board: str, *, name: str, to: str | None) -> Shelved:
    """Switch a board back to the bundle before. Raises UserError, DeviceError."""
    with connect(_board(board)) as session:
        return shelf.rollback(session, name=name, to=to)


def name_for(task: str) -> str:
    """A task's name with nothing in it that a folder could not be called."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in task).lstrip(".-") or "bundle"


def _board(name: str) -> BoardFile:
    if name == "local":
        raise UserError("'local' is this machine: copy the bundle's folder to where your app looks for it.")
    return boards.load(name)
