"""Join standard input and output to the daemon's socket; start the daemon if there is none.

This is what a host runs over SSH. It knows nothing of what is said: bytes go both ways until one side closes.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Sequence

from rlprune_agent import durable, sockets
from rlprune_agent.protocol import Failure, printable
from rlprune_agent.supervise import BOOT, CODE

SYSTEM_UNIT = Path("/etc/systemd/system/rlprune-edge-agent.service")

_START_SECONDS = 20.0
_POLL_SECONDS = 0.02
_CHUNK = 256 * 1024
_WORDS = 1000


def connected(
    home: Path, system_socket: Path, serve_arguments: Sequence[str], *, system_unit: Path = SYSTEM_UNIT
) -> socket.socket:
    """A connection to the daemon. Raises `Failure` if there is none and none can be started.

    A daemon that runs as a system service is the only one there may be: two would not know of each other's lease.
    While the service starts there is no socket yet, so its unit counts as well.
    """
    if _is_there(system_socket) or system_unit.exists():
        return _patiently(system_socket, "systemctl status rlprune-edge-agent says why")
    path = sockets.home_socket(home)
    with contextlib.suppress(OSError):
        return sockets.connect(path)
    durable.private_folder(home)
    durable.private_folder(path.parent)
    with durable.locked(path.parent / "start.lock", _START_SECONDS):
        with contextlib.suppress(OSError):  # somebody else started it while we waited
            return sockets.connect(path)
        return _start(home, path, serve_arguments)


def _is_there(path: Path) -> bool:
    try:
        os.stat(str(path))
    except PermissionError:  # in a folder that this login may not look into; Path.exists() hides it from 3.14 on
        return True
    except OSError:
        return False
    return True


def _patiently(path: Path, hint: str) -> socket.socket:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            return sockets.connect(path)
        except PermissionError:
            group = os.stat(str(path.parent)).st_gid
            raise Failure(
                "auth_failed", f"this login may not use {path}: it has to be a member of the group {group}"
            ) from None
        except OSError as error:
            if time.monotonic() > end:
                raise Failure("agent_crashed", f"nobody answers at {path} ({error.strerror}); {hint}") from None
        time.sleep(_POLL_SECONDS)


def _start(home: Path, path: Path, arguments: Sequence[str]) -> socket.socket:
    """Start the daemon, detached from this conversation, and wait until it listens."""
    words = durable.private_folder(home / "log") / "start.log"
    with open(str(words), "wb") as errors:
        daemon = subprocess.Popen(
            [sys.executable, "-c", BOOT, str(CODE), "serve", "--home", str(home), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
            cwd="/",
        )
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            return sockets.connect(path)
        if daemon.poll() is not None:
            said = printable(words.read_text(errors="replace"))[-_WORDS:].strip()
            log = home / "log" / "agent.log"
            raise Failure(
                "agent_crashed",
                f"the agent's daemon ended at once (exit status {daemon.returncode}): {said or f'see {log}'}",
            )
        time.sleep(_POLL_SECONDS)
    raise Failure("agent_crashed", f"the agent's daemon does not listen at {path} after {_START_SECONDS:.0f} s")


def copy(connection: socket.socket, read_fd: int, write_fd: int) -> None:
    """Bytes both ways until either side closes. What one side does not take stops the other from being read."""
    fd = connection.fileno()
    for each in (fd, read_fd, write_fd):
        os.set_blocking(each, False)
    ways = ((read_fd, fd), (fd, write_fd))
    pending = {read_fd: b"", fd: b""}
    while True:
        readers = [source for source, _ in ways if not pending[source]]
        writers = [target for source, target in ways if pending[source]]
        # No deadline: the host has its own for every answer, and the daemon closes on a host that is silent.
        readable, writable, _ = select.select(readers, writers, [])
        try:
            for source, target in ways:
                if source in readable and not pending[source]:
                    pending[source] = os.read(source, _CHUNK)
                    if not pending[source]:
                        return
                if pending[source] and (target in writable or source in readable):
                    pending[source] = pending[source][os.write(target, pending[source]) :]
        except BlockingIOError:
            continue
        except OSError:  # a side that is gone without a word
            return
