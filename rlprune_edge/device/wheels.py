"""Fetch, on this machine, the wheels that a board without a network needs: pip does, from wherever it is set to."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlprune_agent.protocol import printable
from rlprune_edge.device.profiles import blocklist
from rlprune_edge.errors import UserError

PACKAGES = ("onnxruntime", "numpy")
"""what the agent needs, and all it needs: onnxruntime's other requirements serve its tools"""
MACHINES = ("aarch64", "x86_64")

_SECONDS = 900.0
_GLIBC_LEAST = 17  # manylinux2014


def blocked(package: str, version: str, *, machine: str, features: Iterable[str]) -> str | None:
    """Why this version must not be used on such a processor; `None` if nothing speaks against it."""
    for entry in blocklist():
        if (entry.package, entry.version, entry.machine) == (package, version, machine):
            return None if entry.without_isa in set(features) else entry.reason
    return None


def requirements(machine: str, features: Iterable[str]) -> list[str]:
    """What to ask pip for: the two packages, without the versions that do not run on such a processor."""
    known = set(features)
    bad = [entry for entry in blocklist() if entry.machine == machine and entry.without_isa not in known]
    return [p + ",".join(f"!={entry.version}" for entry in bad if entry.package == p) for p in PACKAGES]


def platforms(machine: str, libc: str) -> list[str]:
    """pip's names for what such a system can run, the newest first; `libc` is such as `glibc 2.31`.

    Raises `UserError` where there are no wheels for it.
    """
    match = re.fullmatch(r"glibc 2\.(\d{1,3})", libc.strip())
    if machine not in MACHINES or match is None or int(match.group(1)) < _GLIBC_LEAST:
        raise UserError(
            f"there is no onnxruntime for {printable(machine)} with {printable(libc) or 'an unknown C library'}; "
            f"a 64-bit system ({' or '.join(MACHINES)}) with glibc 2.{_GLIBC_LEAST} or newer is needed"
        )
    newest = int(match.group(1))
    return [f"manylinux_2_{n}_{machine}" for n in range(newest, _GLIBC_LEAST - 1, -1)] + [f"manylinux2014_{machine}"]


def fetch(board: Mapping[str, Any], cache_dir: Path, *, renew: bool = False) -> list[Path]:
    """The wheels that fit what `board` (the bootstrap's look) says of itself, from the cache if they are there.

    Raises `UserError` where pip does not find them.
    """
    machine, python, features = str(board["machine"]), str(board["python_version"]), list(board["features"])
    names = platforms(machine, str(board["libc"]))
    wanted = requirements(machine, features)
    folder = cache_dir / "wheels" / f"cp{python}-{names[0]}" / "-".join(wanted)
    if not renew and (there := _whole(folder)):
        return there
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        _download(python, names, wanted, Path(temporary))
        fetched = _whole(Path(temporary))
        if not fetched:
            raise UserError(f"pip said it fetched onnxruntime and numpy for Python {python}, but they are not there")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(temporary, folder)
    return _whole(folder)


def _whole(folder: Path) -> list[Path]:
    """One wheel of each package, or none at all."""
    found = [sorted(folder.glob(f"{package}-*.whl")) for package in PACKAGES]
    return [wheels[0] for wheels in found] if all(len(wheels) == 1 for wheels in found) else []


def _download(python: str, names: Sequence[str], wanted: Sequence[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for name in names:
        command += ["--platform", name]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), *wanted],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"pip did not fetch {' and '.join(PACKAGES)} within {_SECONDS / 60:.0f} minutes") from None
    if done.returncode:
        raise UserError(
            f"pip cannot fetch {' and '.join(wanted)} for Python {python} on {names[0]}: "
            f"{printable(done.stderr).strip()[-1500:]}"
        )
