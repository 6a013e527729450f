"""One job in one fresh child process: started, watched, killed in time, its end judged."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

from rlprune_agent.protocol import ALIVE_SECONDS, Channel, Failure, Message, printable

# Works the same from a folder and from inside a zip; `-m` would need PYTHONPATH, which would leak into the child.
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from rlprune_agent.__main__ import main; main(sys.argv[2:])"
_HOME = str(Path(__file__).resolve().parent.parent)

_PR_SET_PDEATHSIG = 1
_STDERR_KEPT = 4096
_END_SECONDS = 5.0
_CRASH = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
_OWN_PHASES = ("candidate", "timing")
"""phases in which the candidate's code is what runs; in the others a crash is ours, the runtime's or the reference's"""


class HostGone(Exception):
    """The host closed its side while a job ran."""


def become_child(parent: int) -> None:
    """First thing in a child: die with the parent, leave no core file, be the first to go when memory is short."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)
    try:
        Path("/proc/self/oom_score_adj").write_text("800")
    except OSError:  # a sandbox may forbid it; then the kernel chooses by size, which mostly hits us as well
        return


def judge(status: int, phase: str, *, oom_kills: int | None, stderr: str) -> Failure:
    """Whose fault it is that a child ended with this exit status (as `Popen.returncode`) and without a result.

    `oom_kills` is how many processes the kernel killed for memory meanwhile, `None` where it does not count them.
    - SIGKILL and the kernel killed something (or cannot say): out of memory. SIGKILL although it killed nothing:
      somebody else did, which says nothing about the model.
    - a crash while the candidate's own code ran: a model that kills the runtime cannot be used.
    - anything else: the agent's, to be tried again.
    """
    number = -status if status < 0 else 0
    if number == signal.SIGKILL and oom_kills != 0 and phase != "runtime":
        return Failure("oom", "the kernel killed the measuring process for want of memory", phase=phase)
    if number in _CRASH and phase == "runtime":
        text = "importing onnxruntime kills the process (signal %d); its 1.21.0 does so on CPUs without LSE atomics"
        return Failure("runtime_missing", text % number, phase=phase)
    if number in _CRASH and phase in _OWN_PHASES:
        return Failure("load_failed", f"the model crashes onnxruntime (signal {number}): {stderr}", phase=phase)
    how = f"signal {number}" if number else f"exit status {status}"
    return Failure("agent_crashed", f"the measuring process ended with {how}: {stderr}", phase=phase)


class _Child:
    def __init__(self, job: dict[str, Any]) -> None:
        self.phase = "runtime"
        self.stderr = b""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, _HOME, "child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.pid = self._process.pid
        self.error_fd = self._process.stderr.fileno()
        self.channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())
        with contextlib.suppress(Failure):  # it died at once; its exit status tells why
            self.channel.send(job)
        self._process.stdin.close()

    def take_stderr(self) -> bool:
        """Keep the last words; `False` at end of file."""
        data = os.read(self.error_fd, 65536)
        self.stderr = (self.stderr + data)[-_STDERR_KEPT:]
        return bool(data)

    def last_words(self) -> str:
        return printable(self.stderr.decode("utf-8", "replace")).strip()[-1000:]

    def end(self, kill: bool) -> int:
        """Reap the child, its whole group if it has to be killed or does not end by itself; the exit status."""
        try:
            status = self._process.wait(0 if kill else _END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            status = self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()
        return status


def run_child(
    job: dict[str, Any],
    *,
    seconds: float,
    host: Channel | None = None,
    alive: Callable[[], None] = lambda: None,
    count_oom: Callable[[], int | None] = lambda: None,
) -> Message:
    """Run `job` in a child; its result message. Raises `Failure` (with `phase` in the details) or `HostGone`.

    `host` is watched meanwhile, so that a host that goes away leaves no child behind; `alive` is called every
    few seconds; `count_oom` is the kernel's count of processes killed for memory.
    """
    before = count_oom()
    child = _Child(job)
    finished = False
    try:
        result = _watch(child, time.monotonic() + seconds, host, alive)
        finished = True
    finally:
        status = child.end(kill=not finished)
    if result is not None:
        return result
    after = count_oom()
    killed = None if before is None or after is None else after - before
    raise judge(status, child.phase, oom_kills=killed, stderr=child.last_words())


def _watch(child: _Child, deadline: float, host: Channel | None, alive: Callable[[], None]) -> Message | None:
    """Wait for the child's result; `None` when its output ends without one."""
    beat = time.monotonic() + ALIVE_SECONDS
    readers = [child.channel.fileno(), child.error_fd] + ([host.fileno()] if host else [])
    while True:
        now = time.monotonic()
        if now >= deadline:
            ours = child.phase == "runtime"
            kind, who = ("agent_crashed", "onnxruntime") if ours else ("timeout_model", "the model")
            raise Failure(kind, f"{who} did not finish in time (phase: {child.phase})", phase=child.phase)
        if now >= beat:
            alive()
            beat = now + ALIVE_SECONDS
        ready = select.select(readers, [], [], max(0.0, min(deadline, beat) - now))[0]
        if host and host.fileno() in ready and not host.pump():
            raise HostGone()
        if child.error_fd in ready and not child.take_stderr():
            readers.remove(child.error_fd)
        if child.channel.fileno() in ready:
            open_end = child.channel.pump()
            result = _hear(child)
            if result is not None or not open_end:
                return result


def _hear(child: _Child) -> Message | None:
    while True:
        message = child.channel.pop()
        if message is None:
            return None
        header = message.header
        if "phase" in header:
            child.phase = str(header["phase"])
        elif "failure" in header:
            fields = dict(header["failure"])
            for key in ("ok", "phase"):
                fields.pop(key, None)
            raise Failure(fields.pop("kind"), fields.pop("message"), phase=child.phase, **fields)
        elif "result" in header:
            return message
