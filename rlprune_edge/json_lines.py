"""Files of JSON lines that outlive a kill or a power cut: whole lines appended, a torn last one dropped."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlprune_edge.errors import UserError


def append_line(path: Path, entry: Mapping[str, Any], *, go_on: str) -> None:
    """Write one entry through to the disk before returning.

    Raises UserError where the disk is full; `go_on` says what to do once there is space.
    """
    line = json.dumps(entry, separators=(",", ":"), allow_nan=False)
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # no half line for the next reader, who could drop one himself
        with contextlib.suppress(OSError), path.open("r+b") as half:
            half.truncate(before)
        raise UserError(f"Cannot write {path}: {error.strerror}.\nFree some space, then go on with: {go_on}") from error


def read_lines(path: Path, read: Callable[[Any], None], *, format_: int, go_on: str) -> None:
    """Hand every whole line of the file to `read`, in order; a last line without its end is cut off the file.

    Raises UserError where a line has another format, or is damaged: no JSON, or what `read` answers with KeyError,
    TypeError or pydantic's ValidationError. `go_on` says how the rest is had again after the damage was deleted.
    """
    data = path.read_bytes()
    lines = data.split(b"\n")
    if lines[-1]:
        with path.open("r+b") as file:
            file.truncate(len(data) - len(lines[-1]))
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
            if entry["format"] != format_:
                raise UserError(
                    f"{path}, line {number}: format {entry['format']}, this version reads {format_}.\n"
                    "Use the version of rlprune-edge that wrote it."
                )
            read(entry)
        except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
            raise UserError(
                f"{path}, line {number} is damaged ({type(error).__name__}).\n"
                f"Delete line {number} and all after it; {go_on}."
            ) from error
