"""Files that are there whole or not at all: written beside their place, then put into it in one step."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False, private: bool = False, beside: Path | None = None) -> Iterator[Path]:
    """A path to write to, of a file that takes the place of `path` when the block ends well, and is removed otherwise.

    Raises OSError. What a kill leaves of it is overwritten by the next one, or lies there where it is `shared`.

    Args:
        path: the file; its folder has to be there
        shared: others may write the same file meanwhile, so each writes under a name of his own
        private: for the owner's eyes alone (mode 0600), from its first byte on where it is `shared`, too
        beside: a file on the same disk beside which it is written, where the folder of `path` may hold nothing else
    """
    near = beside or path
    part = near.with_name(f".{near.name}.{secrets.token_hex(4)}.part" if shared else f".{near.name}.part")
    try:
        if private:
            part.touch(0o600)
        yield part
        os.replace(part, path)
    except BaseException:  # Ctrl-C, too, leaves nothing behind
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, shared: bool = False, private: bool = False) -> None:
    """The text in UTF-8, in place of `path`. Raises OSError."""
    with replacing(path, shared=shared, private=private) as part:
        part.write_text(text, encoding="utf-8")
