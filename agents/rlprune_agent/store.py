"""Files the host has sent, kept under their own sha256 and never under a name that came from outside."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import zlib
from pathlib import Path

from rlprune_agent.protocol import Failure

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_SPARE_BYTES = 500 * 10**6
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class Store:
    """A folder of content-addressed files: `aa/<sha256>` when whole, `part/<sha256>` while they arrive.

    Oldest use goes first when the quota is passed, forgotten uploads among them; a job touches all its files (`has`)
    before it sends the missing ones, so its own are always the youngest.
    """

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self.folder = folder
        self.quota_bytes = quota_bytes
        (folder / "part").mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a whole file lies. Raises `Failure("bad_request")` for anything but 64 hex digits."""
        if not isinstance(sha256, str) or not _HEX.match(sha256):
            raise Failure("bad_request", f"not a sha256: {sha256!r}")
        return self.folder / sha256[:2] / sha256

    def _part(self, sha256: str) -> Path:
        return self.folder / "part" / self.path(sha256).name

    def has(self, sha256: str) -> bool:
        """Is the whole file here? Marks it as used."""
        try:
            os.utime(str(self.path(sha256)))
        except FileNotFoundError:
            return False
        return True

    def offset(self, sha256: str) -> int:
        """Bytes of an unfinished upload that are here already."""
        try:
            return self._part(sha256).stat().st_size
        except FileNotFoundError:
            return 0

    def put(self, sha256: str, *, size: int, offset: int, crc32: int, data: bytes) -> tuple[int, bool]:
        """Write one portion; returns (bytes here, file is whole).

        A portion that does not start where the last one ended is not written: the reply tells where to go on.
        Raises `Failure`: `damaged_upload` (checksum; for the whole file the part is thrown away), `disk_full`.
        """
        if self.has(sha256):
            return size, True
        part, here = self._part(sha256), self.offset(sha256)
        if not 0 <= here <= size or not 0 <= offset <= size or offset + len(data) > size:
            if here > size:
                part.unlink()
            raise Failure("bad_request", "a portion outside the file")
        if zlib.crc32(data) != crc32:
            raise Failure("damaged_upload", "the checksum of a portion is wrong", sha256=sha256)
        if offset != here:
            return here, False
        try:
            if here == 0:
                self._make_room(size)
            with open(str(part), "ab") as file:
                file.write(data)
                if here + len(data) == size:
                    file.flush()
                    os.fsync(file.fileno())
            if here + len(data) < size:
                return here + len(data), False
            self._finish(part, sha256)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise Failure("disk_full", f"{self.folder}: {error.strerror}") from None
        return size, True

    def read(self, sha256: str) -> bytes:
        """The content, checked again: a file that rotted is thrown away and raises `Failure("missing_files")`."""
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise Failure("missing_files", f"not here: {sha256}", missing=[sha256]) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            path.unlink()
            raise Failure("missing_files", f"was damaged on disk: {sha256}", missing=[sha256])
        return data

    def _finish(self, part: Path, sha256: str) -> None:
        digest = hashlib.sha256()
        with open(str(part), "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != sha256:
            part.unlink()
            raise Failure("damaged_upload", "the file that arrived is not the one announced", sha256=sha256)
        target = self.path(sha256)
        target.parent.mkdir(exist_ok=True)
        os.replace(str(part), str(target))

    def _make_room(self, need: int) -> None:
        """Keep the quota, and the disk from filling up: a board without free space may not boot again."""
        files: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*/*"):
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files, key=lambda entry: entry[0]):
            if total + need <= self.quota_bytes:
                break
            path.unlink()
            total -= size
        disk = shutil.disk_usage(str(self.folder))
        spare = min(_SPARE_BYTES, disk.total // 10)
        if need + spare > disk.free:
            raise Failure(
                "disk_full",
                f"{need / 1e6:.0f} MB do not fit on the device: {disk.free / 1e6:.0f} MB are free, "
                f"{spare / 1e6:.0f} MB of them are not to be used",
            )
