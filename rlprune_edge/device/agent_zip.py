"""Pack the agent into one file that any Python can run; the same sources give the same bytes on every machine."""

from __future__ import annotations

import hashlib
import io
import zipfile
from importlib.resources import files
from pathlib import Path

from rlprune_edge import whole_file

_START = "from rlprune_agent.__main__ import main\n\nmain()\n"


def _packed() -> bytes:
    sources = {
        f"rlprune_agent/{entry.name}": entry.read_bytes()
        for entry in files("rlprune_agent").iterdir()
        if entry.name.endswith(".py")
    }
    sources["__main__.py"] = _START.encode()
    buffer = io.BytesIO()
    # Stored, not deflated: zlib's output differs between its versions, and the file is 50 kB.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, sources[name])
    return buffer.getvalue()


def agent_zip(cache_dir: Path) -> Path:
    """`agent-<sha256>.pyz` in `cache_dir`, written atomically unless it is there already."""
    data = _packed()
    path = cache_dir / f"agent-{hashlib.sha256(data).hexdigest()}.pyz"
    if path.is_file() and path.read_bytes() == data:
        return path
    cache_dir.mkdir(parents=True, exist_ok=True)
    with whole_file.replacing(path, shared=True) as part:
        part.write_bytes(data)
    return path
