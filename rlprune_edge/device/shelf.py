"""Put bundles where apps on a board find them, whole or not at all; `rlprune_agent/shelf.py` is the other end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprune_agent.protocol import printable
from rlprune_edge.device.shell import Shell, Tell, do
from rlprune_edge.errors import DeviceError

_SECONDS = 600.0
_BYTES_PER_SECOND = 200_000
_ROLLBACK_SECONDS = 60.0


@dataclass(frozen=True)
class Shelved:
    """Where an app finds the bundle now."""

    path: str
    """the link on the board that it opens"""
    release: str
    previous: str | None
    """what `rollback` would go back to"""
    tried: str | None
    """what the bundle said of its first golden example there; `None` where it was not asked"""


def push(
    shell: Shell,
    folder: Path,
    files: Sequence[str],
    *,
    name: str,
    to: str | None,
    sums: bytes,
    tell: Tell = lambda _: None,
) -> Shelved:
    """Send these files of a bundle and switch to it. Raises `UserError`, `DeviceError`; the old one stays then."""
    size = sum((folder / file).stat().st_size for file in files)
    params = {"name": name, "to": to, "digest": hashlib.sha256(sums).hexdigest()[:16]}
    answer = do(
        shell,
        "push",
        params,
        files_to_send=[folder / file for file in files],
        names=files,
        program="shelf.py",
        seconds=_SECONDS + size / _BYTES_PER_SECOND,
        tell=tell,
    )
    return _shelved(answer)


def rollback(shell: Shell, *, name: str, to: str | None) -> Shelved:
    """Switch back to the bundle before. Raises `UserError` where there is none, `DeviceError`."""
    params = {"name": name, "to": to}
    return _shelved(do(shell, "rollback", params, program="shelf.py", seconds=_ROLLBACK_SECONDS))


def _shelved(answer: dict[str, Any]) -> Shelved:
    path, release = answer.get("path"), answer.get("current")
    others = [answer.get("previous"), answer.get("tried")]
    if not isinstance(path, str) or not isinstance(release, str) or not all(isinstance(o, str | None) for o in others):
        raise DeviceError("version_mismatch", "the board's answer about its bundles does not make sense")
    previous, tried = (None if words is None else printable(words)[:1000] for words in others)
    return Shelved(printable(path), printable(release), previous, tried)
