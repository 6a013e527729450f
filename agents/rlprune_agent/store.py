"""Files the host has sent, kept under their own sha256 and never under a name that came from outside.

Nothing in the folder is believed to be what it should: every file is opened relative to its folder without following
links, and has to be a regular file of ours with one name, or it is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import threading
import time
import zlib
from pathlib import Path
from typing import Callable, Iterable, Iterator, Tuple

from rlprune_agent import durable
from rlprune_agent.protocol import ALIVE_SECONDS, Failure

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_PART = "part"
_SPARE_BYTES = 500 * 10**6
_SYNC_BYTES = 8 * 1024 * 1024
"""what may be waiting for the disk: the last portion must not have to wait for all of a large file"""
_BLOCK = 1 << 20
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_SAFE_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK  # a named pipe in a file's place must not hold us

Entry = Tuple[float, int, str, str]
"""last use, bytes, folder, name"""


class Store:
    """A folder of content-addressed files: `aa/<sha256>` when whole, `part/<sha256>` while they arrive.

    Oldest use goes first when the quota is passed, forgotten uploads among them, but never a file in `pinned()` (what
    jobs need). A job touches all its files (`has`) before it sends the missing ones, so its own are the youngest.
    """

    def __init__(self, folder: Path, quota_bytes: int, *, pinned: Callable[[], Iterable[str]] = lambda: ()) -> None:
        self.folder = folder
        self.quota_bytes = quota_bytes
        self._pinned = pinned
        self._lock = threading.RLock()
        durable.private_folder(folder)

    def path(self, sha256: str) -> Path:
        """Where a whole file lies. Raises `Failure("bad_request")` for anything but 64 hex digits."""
        if not isinstance(sha256, str) or not _HEX.match(sha256):
            raise Failure("bad_request", f"not a sha256: {str(sha256)[:80]!r}")
        return self.folder / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Is the whole file here? Marks it as used."""
        self.path(sha256)
        with self._opened(sha256[:2], sha256, os.O_RDONLY) as fd:
            if fd is None:
                return False
            with contextlib.suppress(OSError):  # a card that turned read-only still has its files
                os.utime(fd)
            return True

    def size(self, sha256: str) -> int:
        """Bytes of a whole file, 0 if it is not here."""
        self.path(sha256)
        with self._opened(sha256[:2], sha256, os.O_RDONLY) as fd:
            return 0 if fd is None else os.fstat(fd).st_size

    def offset(self, sha256: str) -> int:
        """Bytes of an unfinished upload that are here already."""
        self.path(sha256)
        with self._opened(_PART, sha256, os.O_RDONLY) as fd:
            return 0 if fd is None else os.fstat(fd).st_size

    def put(
        self,
        sha256: str,
        *,
        size: int,
        offset: int,
        crc32: int,
        data: bytes,
        beat: Callable[[], None] = lambda: None,
    ) -> tuple[int, bool]:
        """Write one portion; returns (bytes here, file is whole). `beat` is called now and then while that takes long.

        A portion that does not start where the last one ended is not written: the reply tells where to go on.
        Raises `Failure`: `damaged_upload` (checksum; for the whole file the part is thrown away), `disk_full`.
        """
        with self._lock:
            if self.has(sha256):
                return size, True
            here = self.offset(sha256)
            if not 0 <= here <= size or not 0 <= offset <= size or offset + len(data) > size:
                if here > size:
                    self._remove(_PART, sha256)
                raise Failure("bad_request", "a portion outside the file")
            if zlib.crc32(data) != crc32:
                raise Failure("damaged_upload", "the checksum of a portion is wrong", sha256=sha256)
            if offset != here:
                return here, False
            if here == 0:
                self._make_room(size)
            self._append(sha256, data, here, size)
            if here + len(data) < size:
                return here + len(data), False
            self._finish(sha256, beat)
            return size, True

    def read(self, sha256: str) -> bytes:
        """The content, checked again: a file that rotted is thrown away and raises `Failure("missing_files")`."""
        self.path(sha256)
        with self._opened(sha256[:2], sha256, os.O_RDONLY) as fd:
            if fd is None:
                raise Failure("missing_files", f"not here: {sha256}", missing=[sha256])
            data = b"".join(_blocks(fd))
        if hashlib.sha256(data).hexdigest() != sha256:
            self._remove(sha256[:2], sha256)
            raise Failure("missing_files", f"was damaged on disk: {sha256}", missing=[sha256])
        return data

    def used_bytes(self) -> int:
        """Bytes of all files, unfinished ones included."""
        return sum(entry[1] for entry in self._entries())

    def free_bytes(self) -> int:
        """Bytes that can still be written to the disk it is on."""
        disk = os.statvfs(str(self.folder))
        return disk.f_bavail * disk.f_frsize

    @contextlib.contextmanager
    def _opened_folder(self, name: str, *, create: bool = False) -> Iterator[int | None]:
        """A descriptor of the folder of that name, `None` if there is none (or something else in its place)."""
        base = os.open(str(self.folder), os.O_RDONLY | os.O_DIRECTORY)
        try:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=base)
            try:
                fd = os.open(name, _FOLDER_FLAGS, dir_fd=base)
            except FileNotFoundError:
                yield None
                return
            except NotADirectoryError:
                raise Failure("disk_full", f"{self.folder / name} is not a folder; remove it and try again") from None
            try:
                yield fd
            finally:
                os.close(fd)
        finally:
            os.close(base)

    @contextlib.contextmanager
    def _opened(self, folder: str, name: str, flags: int) -> Iterator[int | None]:
        """A descriptor of the file, `None` if there is none. What is there but no file of ours is removed."""
        with self._opened_folder(folder, create=bool(flags & os.O_CREAT)) as base:
            fd = None
            if base is not None:
                try:
                    fd = os.open(name, flags | _SAFE_FLAGS, 0o600, dir_fd=base)
                    if not _ours(fd):
                        os.close(fd)
                        fd = None
                        self._remove(folder, name)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    if not os.path.islink(str(self.folder / folder / name)):
                        raise durable.disk_failure(error, self.folder) from None
                    self._remove(folder, name)
            try:
                yield fd
            finally:
                if fd is not None:
                    os.close(fd)

    def _remove(self, folder: str, name: str) -> None:
        with self._opened_folder(folder) as base, contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if base is not None:
                os.unlink(name, dir_fd=base)

    def _append(self, sha256: str, data: bytes, here: int, size: int) -> None:
        """Write a portion after the `here` bytes that are there; makes room once if the disk is full."""
        for attempt in (1, 2):
            try:
                with self._opened(_PART, sha256, os.O_WRONLY | os.O_CREAT) as fd:
                    if fd is None:
                        raise Failure("damaged_upload", "the unfinished upload is no file of ours", sha256=sha256)
                    os.lseek(fd, here, os.SEEK_SET)
                    durable.write_all(fd, data)
                    if (here + len(data)) // _SYNC_BYTES != here // _SYNC_BYTES or here + len(data) == size:
                        os.fsync(fd)
                return
            except OSError as error:
                failure = durable.disk_failure(error, self.folder)
                if attempt == 1 and self._collect(max(0, self.used_bytes() - (size - here)), keep=sha256):
                    continue
                self._remove_quietly(sha256)
                raise failure from None

    def _remove_quietly(self, sha256: str) -> None:
        with contextlib.suppress(OSError):  # a card that takes no write takes no removal either
            self._remove(_PART, sha256)

    def _finish(self, sha256: str, beat: Callable[[], None]) -> None:
        digest, last = hashlib.sha256(), time.monotonic()
        with self._opened(_PART, sha256, os.O_RDONLY) as fd:
            for block in _blocks(fd) if fd is not None else ():
                digest.update(block)
                if time.monotonic() - last > ALIVE_SECONDS:
                    beat()
                    last = time.monotonic()
        if digest.hexdigest() != sha256:
            self._remove(_PART, sha256)
            raise Failure("damaged_upload", "the file that arrived is not the one announced", sha256=sha256)
        try:
            with self._opened_folder(_PART) as source, self._opened_folder(sha256[:2], create=True) as target:
                os.rename(sha256, sha256, src_dir_fd=source, dst_dir_fd=target)
                assert target is not None, "it was created"
                os.fsync(target)
        except OSError as error:
            raise durable.disk_failure(error, self.folder) from None

    def _entries(self) -> list[Entry]:
        found = []
        for folder in os.listdir(str(self.folder)):
            if not (self.folder / folder).is_dir():
                continue
            with self._opened_folder(folder) as base:
                for name in os.listdir(base) if base is not None else ():
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(name, dir_fd=base, follow_symlinks=False)
                        found.append((status.st_mtime, status.st_size, folder, name))
        return found

    def _collect(self, allowed: int, *, keep: str = "") -> bool:
        """Remove what was used longest ago until all files together are at most `allowed` bytes; was it anything?"""
        pinned = {*self._pinned(), keep}
        entries = sorted(self._entries())
        total, removed = sum(entry[1] for entry in entries), False
        for _, size, folder, name in entries:
            if total <= allowed:
                break
            if name not in pinned:
                with contextlib.suppress(OSError):
                    self._remove(folder, name)
                    total, removed = total - size, True
        return removed

    def _make_room(self, need: int) -> None:
        """Keep the quota, and the disk from filling up: a board without free space may not boot again."""
        disk = os.statvfs(str(self.folder))
        spare = min(_SPARE_BYTES, disk.f_blocks * disk.f_frsize // 10)
        if need > self.quota_bytes:
            text = "a file of {:.0f} MB is above the quota of {:.0f} MB for files on the device"
            raise Failure("disk_full", text.format(need / 1e6, self.quota_bytes / 1e6))
        self._collect(self.quota_bytes - need)
        if need + spare > self.free_bytes():
            self._collect(max(0, self.used_bytes() - (need + spare - self.free_bytes())))
        free = self.free_bytes()
        if need + spare > free:
            raise Failure(
                "disk_full",
                f"{need / 1e6:.0f} MB do not fit on the device: {free / 1e6:.0f} MB are free, "
                f"{spare / 1e6:.0f} MB of them are not to be used",
            )


def _ours(fd: int) -> bool:
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()


def _blocks(fd: int) -> Iterator[bytes]:
    while True:
        block = os.read(fd, _BLOCK)
        if not block:
            return
        yield block
