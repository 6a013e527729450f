"""The agent's Unix sockets: paths of any length, and who is at the other end."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
import struct
from pathlib import Path
from typing import Iterator

SYSTEM_SOCKET = Path("/run/rlprune-edge/agent.sock")
"""where the agent listens that runs as a system service"""

_PATH_MAX = 100
_CREDENTIALS = struct.Struct("3i")


def home_socket(home: Path) -> Path:
    """Where the agent of that home listens."""
    return home / "run" / "agent.sock"


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """A name for the socket that the kernel takes: it allows 107 bytes, and homes may be longer than that."""
    if len(os.fsencode(str(path))) <= _PATH_MAX:
        yield str(path)
        return
    fd = os.open(str(path.parent), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def connect(path: Path) -> socket.socket:
    """A connection to the agent that listens there. Raises `OSError`."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(path) as name:
            connection.connect(name)
    except OSError:
        connection.close()
        raise
    return connection


def listen(path: Path) -> socket.socket:
    """Listen there, in place of an agent that is gone: for our own user, in a shared folder for its group as well."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with address(path) as name:
        listener.bind(name)
    os.chmod(str(path), 0o660 if is_shared(path) else 0o600)
    listener.listen(16)
    return listener


def is_shared(path: Path) -> bool:
    """May the group of the socket's folder talk to the agent?"""
    return bool(os.stat(str(path.parent)).st_mode & 0o070)


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as the kernel saw it connect."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return int(uid)


def may_talk(uid: int, path: Path) -> bool:
    """Our own user; where the socket's folder is shared, members of its group, too."""
    if uid == os.geteuid():
        return True
    if not is_shared(path):
        return False
    group = os.stat(str(path.parent)).st_gid
    try:
        user = pwd.getpwuid(uid)
        return group == user.pw_gid or user.pw_name in grp.getgrgid(group).gr_mem
    except KeyError:
        return False
