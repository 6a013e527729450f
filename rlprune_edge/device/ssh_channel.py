"""One command on a board, over SSH: its output collected, or the protocol's messages exchanged with it.

Knows nothing of the SSH library: it works on a `Pipe`. What the command prints beside the protocol is kept (its end)
and made fit for a terminal.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rlprune_agent.protocol import SILENCE_SECONDS, Failure, FrameReader, Message, encode, printable

OUTPUT_MAX = 1024 * 1024
"""of what a command prints, the last so many bytes are kept"""

_ERRORS_KEPT = 4096
_LINE_MAX = 4000
_PART = 32 * 1024
_PARTS_AT_ONCE = 64
_SLICE_SECONDS = 0.5
_BUSY_SLICE_SECONDS = 0.02
_END_SECONDS = 2.0
_LINGER_SECONDS = 1.0


class Pipe(Protocol):
    """Standard input, output and errors of one command over there."""

    def read(self, seconds: float) -> bytes | None:
        """Output; `None` if there was none in time, `b""` at its end. Raises `Failure("connection_lost")`."""

    def read_errors(self) -> bytes:
        """What has come on standard error, without waiting."""

    def write(self, data: bytes, seconds: float) -> int:
        """How many bytes were taken in time, 0 for none. Raises `Failure("connection_lost")` if nobody reads."""

    def writable(self) -> bool:
        """Whether `write` would take something at once."""

    def finish(self) -> None:
        """Close standard input."""

    def status(self, seconds: float) -> int | None:
        """The exit status, -1 for a command killed by a signal; `None` if it is not known in time."""

    def close(self) -> None:
        """Let go of the command."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended. `cut` says that it printed more than `OUTPUT_MAX`; the last of it is kept."""

    status: int
    stdout: bytes
    stderr: bytes
    cut: bool = False


class SshChannel:
    """The messages of the protocol over a `Pipe`: the same doors as `rlprune_agent.protocol.Channel`."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._reader = FrameReader()
        self._errors = bytearray()
        self._ended = False

    @property
    def noise(self) -> str:
        """What the login shell printed before the first message, fit to print."""
        return self._reader.noise

    def send(self, header: dict[str, Any], body: bytes = b"", seconds: float = SILENCE_SECONDS) -> None:
        """Send one message; `seconds` without any progress, or nobody there, raise `Failure("connection_lost")`."""
        if self._ended:  # its input may stay open a moment longer, but nobody reads it
            raise Failure("connection_lost", "the other side is gone")
        for frame in encode(header, body):
            rest = memoryview(frame)
            while rest:
                taken = self._pipe.write(bytes(rest[:_PART]), seconds)
                if not taken:
                    raise Failure("connection_lost", f"the other side took no bytes for {seconds:.0f} s")
                rest = rest[taken:]

    def receive(self, seconds: float | None) -> Message | None:
        """The next message; `None` at end of output. Raises `Failure("connection_lost")` after `seconds` without."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            message = self._reader.next()
            if message is not None:
                return message
            left = _SLICE_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise Failure("connection_lost", f"no answer for {seconds or 0:.0f} s")
            data = self._pipe.read(min(left, _SLICE_SECONDS))
            self._keep_errors()
            if data == b"":
                self._ended = True
                return None
            if data:
                self._reader.feed(data)

    def last_words(self) -> str:
        """The end of what the command left on standard error, and how it ended, if it has."""
        status = self._pipe.status(_LINGER_SECONDS)
        self._keep_errors()
        words = printable(self._errors.decode("utf-8", "replace")).strip()
        if words or not status:
            return words
        return "it was killed by a signal" if status < 0 else f"it ended with exit status {status}"

    def close(self) -> None:
        """Close the command's standard input, which ends it, and wait a moment for that. Never raises `Failure`."""
        self._pipe.finish()
        self._pipe.status(_END_SECONDS)
        self._pipe.close()

    def _keep_errors(self) -> None:
        # Read even though nobody may ever ask: unread, it fills the window that the answers need as well.
        self._errors += self._pipe.read_errors()
        del self._errors[:-_ERRORS_KEPT]


def collect(pipe: Pipe, stdin: bytes, seconds: float, on_output: Callable[[str], None] | None = None) -> Finished:
    """Give `stdin` to a command and wait for its end; `on_output` gets every line of both its outputs meanwhile.

    Raises `Failure("connection_lost")`, also if it has not ended within `seconds`.
    """
    deadline = time.monotonic() + seconds
    out, errors = _Output(on_output), _Output(on_output)
    rest: memoryview | None = memoryview(stdin)
    ended: float | None = None
    while True:
        if rest is not None:
            rest = _feed(pipe, rest)
        data = pipe.read(_SLICE_SECONDS if rest is None else _BUSY_SLICE_SECONDS)
        out.take(data or b"")
        errors.take(pipe.read_errors())
        if data == b"":
            break
        now = time.monotonic()
        if now >= deadline:
            raise Failure("connection_lost", f"the command did not finish within {seconds:.0f} s")
        if data is None and pipe.status(0) is not None:
            # It has ended, but something that it started holds its output open: do not wait for that.
            ended = ended or now
            if now - ended > _LINGER_SECONDS:
                break
    status = pipe.status(max(_LINGER_SECONDS, deadline - time.monotonic()))
    if status is None:
        raise Failure("connection_lost", f"the command closed its output and did not end within {seconds:.0f} s")
    errors.take(pipe.read_errors())
    out.flush()
    errors.flush()
    return Finished(status, bytes(out.kept), bytes(errors.kept), out.cut or errors.cut)


def _feed(pipe: Pipe, rest: memoryview) -> memoryview | None:
    """Give some of `rest` without waiting; what is left, `None` once input is closed (or nobody reads it any more)."""
    try:
        for _ in range(_PARTS_AT_ONCE):
            if not rest or not pipe.writable():
                break
            rest = rest[pipe.write(bytes(rest[:_PART]), _SLICE_SECONDS) :]
    except Failure:  # the command has ended without reading it all; its status tells, or the reading does
        return None
    if not rest:
        pipe.finish()
        return None
    return rest


class _Output:
    """The end of one stream, and its lines as they come."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self.kept = bytearray()
        self.cut = False
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""

    def take(self, data: bytes) -> None:
        self.kept += data
        if len(self.kept) > OUTPUT_MAX:
            del self.kept[:-OUTPUT_MAX]
            self.cut = True
        if self._on_line and data:
            self._tell(self._decoder.decode(data))

    def flush(self) -> None:
        """Tell the last line, which may lack its end."""
        if self._on_line:
            self._tell(self._decoder.decode(b"", final=True) + "\n")

    def _tell(self, text: str) -> None:
        assert self._on_line is not None
        *lines, self._line = (self._line + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                self._on_line(printable(line[:_LINE_MAX]))
        self._line = self._line[:_LINE_MAX]
