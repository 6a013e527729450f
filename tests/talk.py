"""Agents in processes of their own, and the host's side of a conversation with them, message by message."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import rlprune_agent
from rlprune_agent import sockets
from rlprune_agent.protocol import FRAME_BODY_MAX, Channel, Failure, Message

PYTHON = os.environ.get("RLPRUNE_AGENT_PYTHON", sys.executable)
"""what the agent runs under: boards have an older one than hosts"""
SOURCES = Path(rlprune_agent.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCES)}

SETTINGS = {
    "warmup_runs": 5,
    "warmup_seconds": 0.02,
    "window_runs": 5,
    "window_ms": 5,
    "warmup_cap_runs": 10,
    "warmup_cap_seconds": 0.1,
    "checks": [[4, 1], [6, 1]],
    "block_ms": 5,
    "min_runs": 12,
    "slow_run_ms": 1000,
    "min_runs_slow": 4,
    "reference_runs": 3,
    "sample_ms": 2,
    "target_half_width": 0.0,
    "cap_seconds": 20,
}
LONG = {**SETTINGS, "checks": [[4, 1], [100_000, 1]], "cap_seconds": 60}
"""settings of a job that is still at it when whatever a test does to it is done"""


def npy(value: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


def wait_for(claim: Callable[[], Any], seconds: float = 30) -> Any:
    """What `claim` says once it is true, or at the end of the time."""
    deadline = time.monotonic() + seconds
    while not (found := claim()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def alive(pid: int) -> bool:
    """Is there such a process, and is it no zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The living children of a process, whichever of its threads started them."""
    listings = list(Path(f"/proc/{pid}/task").glob("*/children"))
    try:
        return [int(p) for path in listings for p in path.read_text().split() if alive(int(p))]
    except OSError:
        return []


class Host:
    """One conversation. The lease is acquired when first needed."""

    def __init__(self, channel: Channel, close: Callable[[], None], owner: str = "a test") -> None:
        self.channel = channel
        self.close = close
        self.owner = owner
        self.token: int | None = None
        self._number = 0

    def ask(self, body: bytes = b"", *, patience: float = 60, **header: Any) -> Message:
        """The answer to one request; signs of life and answers to earlier ones are passed over."""
        self._number += 1
        lease = {} if self.token is None else {"token": self.token}
        self.channel.send({**lease, "id": self._number, **header}, body)
        return self.answer(patience)

    def answer(self, seconds: float = 60) -> Message:
        while True:
            message = self.channel.receive(seconds)
            assert message is not None, "the agent ended"
            if not message.header.get("alive") and message.header.get("id") in (self._number, None):
                return message

    def hello(self) -> dict[str, Any]:
        return self.ask(verb="hello", protocol_min=1, protocol_max=1).header

    def acquire(self, session: str | None = None) -> dict[str, Any]:
        """Ask for the lease once."""
        fields = {"owner": self.owner, "session": session or self.owner}
        reply = self.ask(verb="lease", action="acquire", **fields).header
        if reply.get("granted"):
            self.token = reply["token"]
        return reply

    def held(self) -> Host:
        """With the lease, whoever has it now."""
        assert self.token is not None or wait_for(lambda: self.acquire()["granted"])
        return self

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        for start in range(0, max(1, len(data)), FRAME_BODY_MAX):
            part = data[start : start + FRAME_BODY_MAX]
            fields = {"sha256": sha256, "size": len(data), "offset": start, "crc32": zlib.crc32(part)}
            answer = self.held().ask(part, verb="put", **fields).header
        assert answer.get("whole"), answer
        return sha256

    def job(self, model: bytes, **changes: Any) -> dict[str, Any]:
        """A measuring job for a `dense_model(16)`, with the files it needs already sent."""
        x = np.ones((4, 16), np.float32)
        y = x @ np.random.default_rng(16).standard_normal((16, 16)).astype(np.float32)
        fields = {
            "job": "measure",
            "candidate": self.put(model),
            "reference": None,
            "inputs": {"x": self.put(npy(x))},
            "expected": {"y": self.put(npy(y))},
            "tolerance": 1e-3,
            "threads": 1,
            "settings": SETTINGS,
        }
        return {**fields, **changes}

    def submit(self, job_id: str, job: Mapping[str, Any]) -> dict[str, Any]:
        return self.held().ask(verb="submit", job_id=job_id, **job).header

    def result(self, job_id: str, seconds: float = 60) -> Message:
        """Wait until the job is done; its result, or its failure."""
        end = time.monotonic() + seconds
        while True:
            answer = self.ask(verb="wait", job_id=job_id, seconds=0.5)
            if answer.header.get("state") == "done" or not answer.header["ok"] or time.monotonic() > end:
                return answer

    def do(self, **job: Any) -> Message:
        """Do one job: its result or failure."""
        job_id = os.urandom(8).hex()
        answer = self.held().ask(verb="submit", job_id=job_id, **job)
        if answer.header["ok"]:
            answer = self.result(job_id)
            self.ask(verb="ack", job_id=job_id)
        return answer


def over_pipes(command: list[str], *, owner: str = "a test", **settings: Any) -> tuple[Host, subprocess.Popen[bytes]]:
    """Start a process that talks over its standard input and output."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **{"env": ENVIRONMENT, **settings}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    pipes = [process.stdin, process.stdout]

    def close() -> None:
        for pipe in pipes:
            pipe.close()

    return Host(Channel(pipes[1].fileno(), pipes[0].fileno()), close, owner), process


def agent_command(*words: str, python: str = PYTHON, before: str = "") -> list[str]:
    """How to run the agent from its sources; `before` is Python code that comes first."""
    code = f"{before}\nfrom rlprune_agent.__main__ import main; main()"
    return [python, "-c", code, *words]


class Daemon:
    """A daemon in a process of its own."""

    def __init__(self, home: Path, *words: str, command: list[str] | None = None, **settings: Any) -> None:
        self.home = home
        start = command or agent_command("serve", "--home", str(home), *words)
        self.process = subprocess.Popen(start, **{"env": ENVIRONMENT, **settings})
        self._hosts: list[Host] = []
        self._bridges: list[subprocess.Popen[bytes]] = []
        path = sockets.home_socket(home)
        assert wait_for(lambda: self._listens(path)), "the daemon does not listen"

    def _listens(self, path: Path) -> bool:
        try:
            sockets.connect(path).close()
        except OSError:
            assert self.process.poll() is None, "the daemon ended"
            return False
        return True

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self, owner: str = "a test") -> Host:
        """A conversation straight over the socket, as soon as there is room for one more."""
        found: Host | None = wait_for(lambda: self._greeted(owner))
        assert found is not None, "the daemon took no further conversation"
        self._hosts.append(found)
        return found

    def _greeted(self, owner: str) -> Host | None:
        connection = self.socket()
        host = Host(Channel(connection.fileno(), connection.fileno()), connection.close, owner)
        try:
            # As a real host does; after it the runtime has been tried, and every child is a job's.
            hello = host.hello()
        except (AssertionError, Failure):  # refused and closed before our question arrived
            hello = {"ok": False, "kind": "busy"}
        if hello["ok"]:
            return host
        host.close()
        assert hello["kind"] == "busy", hello
        return None

    def socket(self) -> socket.socket:
        return sockets.connect(sockets.home_socket(self.home))

    def working(self) -> int:
        """The child that measures, once there is one; not the one that looked for onnxruntime at the start."""
        journal = self.home / "jobs" / "journal.jsonl"
        assert wait_for(lambda: journal.exists() and b'"running"' in journal.read_bytes())
        found: list[int] = wait_for(lambda: children(self.pid))
        return found[0]

    def stop(self) -> int:
        """End it in order; its exit status."""
        for host in self._hosts:
            host.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(30)
