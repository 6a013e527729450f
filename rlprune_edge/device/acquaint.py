"""Get to know a board: whether its host key is trusted, and which key it shows where that is not so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rlprune_edge.device import board as ssh_board
from rlprune_edge.device import boards, known_hosts
from rlprune_edge.device.boards import BoardFile
from rlprune_edge.device.ssh import HostKey, names_of, offered_host_key
from rlprune_edge.errors import DeviceError, UserError


@dataclass(frozen=True)
class Introduction:
    """What came of a first contact."""

    login: str | None
    """why logging in did not work; `None` if it did"""
    new_key: HostKey | None
    """a key that somebody has to vouch for before anything is sent to the board"""


def introduce(board: BoardFile) -> Introduction:
    """Log in to the board if its key is known. Raises `DeviceError` where it cannot be reached or has changed."""
    try:
        ssh_board.connect(board).close()
    except DeviceError as error:
        if error.kind == "host_key_unknown":
            return Introduction(None, offered(board))
        if error.kind == "auth_failed":
            return Introduction(str(error), None)
        raise
    return Introduction(None, None)


def offered(board: BoardFile) -> HostKey:
    """The key the board shows to anybody."""
    return offered_host_key(ssh_board.target(board), known_hosts=boards.known_hosts())


def pinned(board: BoardFile, fingerprint: str) -> HostKey:
    """The key the board shows, if it is the one with that fingerprint. Raises `UserError` if it is not."""
    key = offered(board)
    if key.fingerprint.removeprefix("SHA256:").rstrip("=") != fingerprint.strip().removeprefix("SHA256:").rstrip("="):
        raise UserError(
            f"{board.host} shows the host key {key}, not {fingerprint}. Nothing was sent to it. Compare both with the "
            "board's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, typed there)"
        )
    return key


def trust(board: BoardFile, key: HostKey) -> None:
    """Remember the key: from now on the board has to show it."""
    boards.known_hosts().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    known_hosts.remember(boards.known_hosts(), names_of(ssh_board.target(board))[:1], key)


def distrust(board: BoardFile, others: Iterable[BoardFile]) -> None:
    """Forget the key that `trust` remembered, unless it is that of another board as well: of one with two names."""
    name = names_of(ssh_board.target(board))[0]
    if name not in [names_of(ssh_board.target(other))[0] for other in others]:
        known_hosts.forget(boards.known_hosts(), [name])
