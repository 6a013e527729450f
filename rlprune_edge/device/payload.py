"""The files that go with a job: named by their sha256, read when they have to be sent."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Files = dict[str, Callable[[], bytes]]
"""what may have to be sent: how to read each file, by sha256"""


def read(path: Path, sha256: str) -> bytes:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path} is not the file with the sha256 {sha256}")
    return data


def add_arrays(files: Files, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Add the arrays to the files to be sent; their hashes by name."""
    names = {}
    for name, value in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(value), allow_pickle=False)
        data = buffer.getvalue()
        names[name] = hashlib.sha256(data).hexdigest()
        files[names[name]] = lambda data=data: data  # type: ignore[misc]
    return names
