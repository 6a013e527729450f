"""One job in one fresh child process: started, watched, killed in time, its end judged."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Sequence

from rlprune_agent import limits
from rlprune_agent.protocol import WAITING_PHASES, Channel, Failure, Message, printable

# Works the same from a folder and from inside a zip; `-m` would need PYTHONPATH, which would leak into the child. The
# current folder, which comes first with `-c`, gives way: there may be anybody's `signal.py` in it.
BOOT = "import sys; sys.path[0] = sys.argv[1]; from rlprune_agent.__main__ import main; main(sys.argv[2:])"
BOOT_CHILD = "import sys; sys.path[0] = sys.argv[1]; from rlprune_agent.child import main; main(*sys.argv[2:])"
CODE = Path(__file__).resolve().parent.parent
"""the zip, or the folder, that this very agent runs from"""

_STDERR_KEPT = 4096
_END_SECONDS = 5.0
_TERM_SECONDS = 2.0
_RESIDENT_POLL_SECONDS = 0.1
_CRASH = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
_OWN_PHASES = ("candidate", "prepare", "timing", "energy")
"""phases in which the candidate's code is what runs; in the others a crash is ours, the runtime's or the reference's"""


class Cancel:
    """A wish to end a running child, as a descriptor that can be waited on; `failure` is what its end will be told as.

    Set from any thread, at most once counts; `close` when the child is gone.
    """

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self._lock = threading.Lock()
        self._read_fd, self._write_fd = os.pipe()

    def set(self, failure: Failure) -> None:
        """Ask for the end."""
        with self._lock:
            if self.failure is None and self._write_fd >= 0:
                self.failure = failure
                os.write(self._write_fd, b"x")

    def fileno(self) -> int:
        """Readable once the end is asked for."""
        return self._read_fd

    def close(self) -> None:
        """Free the descriptors."""
        with self._lock:
            for fd in (self._read_fd, self._write_fd):
                if fd >= 0:
                    os.close(fd)
            self._read_fd = self._write_fd = -1


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
    if number == signal.SIGXCPU:
        return Failure("timeout_model", "the measuring process used up its processor time", phase=phase)
    if number in _CRASH and phase == "runtime":
        text = "importing onnxruntime kills the process (signal %d); its 1.21.0 does so on CPUs without LSE atomics"
        return Failure("runtime_missing", text % number, phase=phase)
    if number in _CRASH and phase in _OWN_PHASES:
        return Failure("load_failed", f"the model crashes onnxruntime (signal {number}): {stderr}", phase=phase)
    how = f"signal {number}" if number else f"exit status {status}"
    return Failure("agent_crashed", f"the measuring process ended with {how}: {stderr}", phase=phase)


class _Child:
    def __init__(self, job: dict[str, Any], keep_fds: Sequence[int], code: Path) -> None:
        self.phase = "runtime"
        self.stderr = b""
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-c", BOOT_CHILD, str(code), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=keep_fds,
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

    def end(self, *, gently: bool) -> int:
        """Reap the child: `gently` waits for its own end, else its group is told to end; the exit status.

        Whatever is left of the group after that is killed.
        """
        try:
            if not gently:
                self._signal(signal.SIGTERM)
            status = self._process.wait(_END_SECONDS if gently else _TERM_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        self._signal(signal.SIGKILL)
        if status is None:
            status = self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()
        return status

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def run_child(
    job: dict[str, Any],
    *,
    seconds: float,
    bounds: limits.Limits | None = None,
    cancel: Cancel | None = None,
    on_phase: Callable[[str], None] = lambda _: None,
    count_oom: Callable[[], int | None] = lambda: None,
    keep_fds: Sequence[int] = (),
    code: Path = CODE,
) -> Message:
    """Run `job` in a child; its result message. Raises `Failure` (with `phase` in the details).

    `bounds` are what the kernel holds it to; `cancel` ends it early, with the failure that was given as the reason;
    `on_phase` hears what it is at; `count_oom` is the kernel's count of processes killed for memory; `keep_fds` stay
    open for as long as the child lives; `code` is the zip or folder that it imports this agent from. To be called from
    a thread that outlives the child: it dies with that.
    """
    before = count_oom()
    if bounds is not None:
        job = dict(job, limits=bounds._asdict())
    child = _Child(job, keep_fds, code)
    finished = False
    try:
        result = _watch(child, seconds, bounds.resident if bounds else None, cancel, on_phase)
        finished = True
    finally:
        status = child.end(gently=finished)
    if result is not None:
        return result
    after = count_oom()
    killed = None if before is None or after is None else after - before
    raise judge(status, child.phase, oom_kills=killed, stderr=child.last_words())


class _Time:
    """How long a child may still take: its job's seconds, and what its waiting phases are allowed besides."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._phase, self._since = "runtime", time.monotonic()

    def enter(self, phase: str) -> None:
        now = time.monotonic()
        if self._phase in WAITING_PHASES:
            self._end += now - self._since
        self._phase, self._since = phase, now

    @property
    def end(self) -> float:
        if self._phase in WAITING_PHASES:
            return self._since + WAITING_PHASES[self._phase]
        return self._end


def _overdue(phase: str) -> Failure:
    if phase == "gates":
        return Failure("gate_timed_out", "the board did not become fit to measure in time", phase=phase)
    ours = phase in ("runtime", "energy")  # by then the model has been timed
    kind, who = ("agent_crashed", "the agent") if ours else ("timeout_model", "the model")
    return Failure(kind, f"{who} did not finish in time (phase: {phase})", phase=phase)


def _watch(
    child: _Child, seconds: float, resident: int | None, cancel: Cancel | None, on_phase: Callable[[str], None]
) -> Message | None:
    """Wait for the child's result; `None` when its output ends without one."""
    allowed = _Time(seconds)
    readers = [child.channel.fileno(), child.error_fd] + ([cancel.fileno()] if cancel else [])
    while True:
        left = allowed.end - time.monotonic()
        if left <= 0:
            raise _overdue(child.phase)
        wait = left if resident is None else min(left, _RESIDENT_POLL_SECONDS)
        ready = select.select(readers, [], [], wait)[0]
        if cancel and cancel.failure:
            raise cancel.failure
        if resident is not None and limits.resident_bytes(child.pid) > resident:
            text = f"the measuring process grew above {resident / 1e6:.0f} MB, which is what the device can spare"
            raise Failure("oom", text, phase=child.phase)
        if child.error_fd in ready and not child.take_stderr():
            readers.remove(child.error_fd)
        if child.channel.fileno() in ready:
            open_end = child.channel.pump()
            phase = child.phase
            result = _hear(child)
            if child.phase != phase:
                allowed.enter(child.phase)
                on_phase(child.phase)
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
