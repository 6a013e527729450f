"""Put another agent beside this one and make it the current one, in a step that is whole or has not happened.

`agents/agent-<sha256>.pyz` lie side by side; `current` is a link to the one that is used. The old one is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from rlprune_agent import durable
from rlprune_agent.protocol import Failure, printable
from rlprune_agent.supervise import BOOT_CHILD, CODE

_SELF_TEST_SECONDS = 60.0
_AGENT_BYTES = 16 * 10**6


def own_sha256() -> str | None:
    """Of the zip that this agent runs from, `None` if it runs from a folder."""
    return hashlib.sha256(CODE.read_bytes()).hexdigest() if CODE.is_file() else None


def installed(home: Path) -> list[str]:
    """The agents that lie side by side in `home`, by sha256."""
    return sorted(path.stem[len("agent-") :] for path in (home / "agents").glob("agent-*.pyz"))


def current(home: Path) -> str | None:
    """The sha256 of the agent that is started next, `None` if nothing is installed in `home`."""
    try:
        return Path(os.readlink(str(home / "current"))).stem[len("agent-") :]
    except OSError:
        return None


def _self_test(path: Path) -> None:
    """Run the new agent's own test in a child. Raises `Failure("version_mismatch")` if it does not pass."""
    command = [sys.executable, "-B", "-c", BOOT_CHILD, str(CODE), str(os.getpid()), str(path)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_SELF_TEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure("version_mismatch", "the new agent's self-test did not end; the old one stays") from None
    if done.returncode != 0:
        words = printable(done.stderr.decode("utf-8", "replace")).strip()[-500:]
        raise Failure("version_mismatch", f"the new agent's self-test fails here, the old one stays: {words}")


def upgrade(home: Path, sha256: str, data: bytes) -> None:
    """Install `data` (whose hash is `sha256`), test it, make it the current one. Raises `Failure`; old stays then."""
    if len(data) > _AGENT_BYTES:
        raise Failure("bad_request", f"upgrade: {len(data)} bytes are no agent")
    path = durable.private_folder(home / "agents") / f"agent-{sha256}.pyz"
    try:
        durable.replace(path, data)
        _self_test(path)
        link = home / "current.tmp"
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        os.symlink(f"agents/{path.name}", str(link))
        os.replace(str(link), str(home / "current"))
    except OSError as error:
        raise durable.disk_failure(error, home) from None
