"""The folder of one run: who may write in it, and what lies where."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import shutil
from pathlib import Path
from typing import IO, Any

from rlprune_edge import whole_file
from rlprune_edge.errors import UserError
from rlprune_edge.request import FILE, Request, load

LOCK = ".lock"


class RunFolder:
    """A run's files: request.toml, trials.jsonl, time.json, staircase.json, report.json, report.html, bundle/ and more.

    One process at a time may hold it; the lock goes with the process, so a killed run never leaves it locked.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: Path, request: Request, *, command: str = "compress") -> RunFolder:
        """A new, empty run folder. Raises UserError where it already holds a run or anything else."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            strangers = sorted(p.name for p in path.iterdir() if p.name != LOCK)
            if (path / FILE).exists():
                raise UserError(
                    f"{path} already holds a run.\n"
                    f"To go on with it:   rlprune-edge {command} --resume {path}\n"
                    "For a new run, give another folder with --out."
                )
            if strangers:
                raise UserError(f"{path} is not empty ({strangers[0]} ...). Give a new or empty folder with --out.")
            folder = cls(path, _locked(path))
            request.save(path)
        except OSError as error:
            raise _cannot_write(path, error) from error
        return folder

    @classmethod
    def reopen(cls, path: Path) -> tuple[RunFolder, Request]:
        """A former run's folder and its request. Raises UserError where there is none or it is in use."""
        request = load(path)
        try:
            return cls(path, _locked(path)), request
        except OSError as error:
            raise _cannot_write(path, error) from error

    def discard(self, *others: str) -> None:
        """Leave no trace of a run that never evaluated anything; a folder with trials stays as it is.

        `others`: files beside the request that were written at the start.
        """
        if not self.trials.exists():
            shutil.rmtree(self.path / "work", ignore_errors=True)
            for name in (FILE, LOCK, *others):
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def close(self) -> None:
        """Let others use the folder."""
        self._lock.close()

    @property
    def trials(self) -> Path:
        return self.path / "trials.jsonl"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    def scratch(self, name: str) -> Path:
        """A path in the folder for files made on the way."""
        path = self.path / "work" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(path, error) from error
        return path

    def read_json(self, name: str) -> Any | None:
        """A JSON file of this folder, `None` where it was not written yet."""
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}.\nDelete it and resume: it is made again.") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file whole or not at all."""
        path = self.path / name
        try:
            whole_file.write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise _cannot_write(path, error) from error


def _locked(path: Path) -> IO[str]:
    lock = (path / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise UserError(f"Another rlprune-edge is working in {path}. Wait for it, or give another --out.") from error
    return lock


def _cannot_write(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    help_ = "Free some space, then go on with --resume" if full else "Give a folder you may write to with --out"
    return UserError(f"Cannot write {path}: {error.strerror}.\n{help_}.")
