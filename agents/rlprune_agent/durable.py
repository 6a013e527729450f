"""Files that survive a power cut, and locks that end with whoever holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Iterator

from rlprune_agent.protocol import Failure

_POLL_SECONDS = 0.01
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
"""errors that a person has to deal with: no room, a card that turned read-only, one that is dying"""


def private_folder(path: Path) -> Path:
    """`path`, made if need be, readable by its owner alone. The parents are made with the usual mode."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def disk_failure(error: OSError, where: Path) -> Failure:
    """The `disk_full` that an error of writing is, the error itself raised again if it is something else."""
    if error.errno not in _FULL:
        raise error
    broken = error.errno in (errno.EROFS, errno.EIO)
    hint = "its disk is failing or read-only; dmesg on the device says why" if broken else "make room on the device"
    return Failure("disk_full", f"cannot write below {where}: {error.strerror}; {hint}, then try again")


def _sync_folder(folder: Path) -> None:
    fd = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`: a full disk may take only a part of it before it says so."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def replace(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Put `data` in place of the file in one step; with `sync` it is there after a power cut. Raises `OSError`."""
    temporary = path.parent / f"{path.name}.{os.getpid()}.tmp"
    try:
        fd = os.open(str(temporary), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(str(temporary), str(path))
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        _sync_folder(path.parent)


def append(path: Path, data: bytes) -> int:
    """Append, and return the file's size once it is on the disk. Raises `OSError`."""
    fd = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def try_lock(path: Path) -> int | None:
    """An exclusive lock on the file, as a descriptor whose closing frees it; `None` while somebody else has it."""
    # Opened for reading only: a card that turned read-only must not keep us from looking.
    fd = os.open(str(path), os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def lock(path: Path, seconds: float) -> int | None:
    """As `try_lock`, but waits up to `seconds`."""
    end = time.monotonic() + seconds
    while True:
        fd = try_lock(path)
        if fd is not None or time.monotonic() >= end:
            return fd
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock meanwhile. Raises `Failure("busy")` if it cannot be had within `seconds`."""
    fd = lock(path, seconds)
    if fd is None:
        raise Failure("busy", f"another agent process has held {path} for {seconds:.0f} s")
    try:
        yield
    finally:
        os.close(fd)
