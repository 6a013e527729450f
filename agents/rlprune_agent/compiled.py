"""The agent's code with its bytecode, made once for this Python: who imports a zip of sources compiles them anew.

Every measurement is a process of its own, and compiling was over a quarter of its start (tools/bench/agent_start.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import py_compile
import sys
import tempfile
import zipfile
from pathlib import Path

from rlprune_agent import durable

log = logging.getLogger(__name__)

_KEPT = 4
"""files: agents of other versions may still run from theirs"""


def compiled(code: Path, folder: Path) -> Path:
    """The zip `code` with bytecode beside its sources, kept in `folder`; `code` itself where that cannot be had.

    That may be for want of room, or because `code` is a folder of sources. Children do the same either way.
    """
    if not code.is_file():
        return code
    try:
        sources = code.read_bytes()
        path = folder / _name(sources)
        if not _whole(path):
            durable.private_folder(folder)
            durable.replace(path, _packed(sources))
            _tidy(folder)
        os.utime(str(path))
    except (OSError, zipfile.BadZipFile, py_compile.PyCompileError) as error:
        log.warning("children compile the agent's code anew: %s", error)
        return code
    return path


def _name(sources: bytes) -> str:
    python = f"{sys.implementation.cache_tag}-{importlib.util.MAGIC_NUMBER.hex()}"
    return f"{hashlib.sha256(sources).hexdigest()}-{python}.zip"


def _whole(path: Path) -> bool:
    """Is it there, and as it was written? A card that forgets would otherwise be the end of every child."""
    try:
        with zipfile.ZipFile(str(path)) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _packed(sources: bytes) -> bytes:
    buffer = io.BytesIO()
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(zipfile.ZipFile(io.BytesIO(sources)))
        after = stack.enter_context(zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source, made = work / "source.py", work / "made.pyc"
        for name in before.namelist():
            data = before.read(name)
            after.writestr(zipfile.ZipInfo(name), data)  # without today's date: a board without a clock has none
            if not name.endswith(".py"):
                continue
            source.write_bytes(data)
            # Unchecked: source and bytecode lie in one file, whose name says what it was made of.
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(str(source), str(made), dfile=name, doraise=True, invalidation_mode=mode)
            after.writestr(zipfile.ZipInfo(name + "c"), made.read_bytes())
    return buffer.getvalue()


def _tidy(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another agent may be at the same
        for old in sorted(folder.glob("*.zip"), key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
            old.unlink()
