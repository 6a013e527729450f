"""This very machine as a device: the same agent a board runs, as a process that serves this host alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rlprune_agent.protocol import Channel
from rlprune_edge.device.agent_zip import agent_zip
from rlprune_edge.device.link import Link
from rlprune_edge.device.profiles import Profile
from rlprune_edge.device.station import Station
from rlprune_edge.errors import DeviceError

_END_SECONDS = 4.0
_LAST_WORDS_BYTES = 2000


class LocalDevice(Station):
    """Measures on this machine. A context manager; the agent starts when first needed and ends with it.

    Neighbours on a developer's machine do not refuse a measurement, they are written down (`busy`). Other runs that
    share `cache_dir` share the lease: one measures, the others wait for it.
    """

    _reconnect_seconds = 0.0  # a process of ours that ended is started again, once
    _ends_with_link = True

    def __init__(
        self,
        profile: Profile,
        *,
        cache_dir: Path,
        threads: int | None = None,
        python: str = sys.executable,
        **settings: Any,
    ) -> None:
        super().__init__(profile, cache_dir=cache_dir, threads=threads, **settings)
        self._python = python

    def _where(self) -> str:
        return "this machine"

    def break_off(self) -> None:
        """See `Contact`; the agent's own child dies with it."""
        self._broken_off.set()
        if self._link is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.agent_pid, signal.SIGKILL)

    def _connect(self) -> Link:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the agent; closed by `close`
        home = self._cache_dir / "agent"
        command = [self._python, str(agent_zip(self._cache_dir)), "stdio", "--alone", "--home", str(home)]
        try:
            # A session of its own: Ctrl-C at the terminal is for the host, which then ends the agent in good order.
            agent = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        except OSError as error:
            raise DeviceError(
                "agent_crashed", f"cannot start the agent with {self._python}: {error.strerror}"
            ) from None
        self.agent_pid = agent.pid
        assert agent.stdin is not None
        assert agent.stdout is not None

        def close() -> None:
            for pipe in (agent.stdin, agent.stdout):
                if pipe:
                    pipe.close()
            try:
                agent.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(agent.pid, signal.SIGKILL)
                agent.wait()
            errors.close()

        def last_words() -> str:
            size = os.fstat(errors.fileno()).st_size
            return os.pread(errors.fileno(), _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES)).decode(
                errors="replace"
            )

        return Link(Channel(agent.stdout.fileno(), agent.stdin.fileno()), close=close, last_words=last_words)
