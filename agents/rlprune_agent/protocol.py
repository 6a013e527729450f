"""What host and agent say to each other: frames, versions and the closed list of failure kinds.

Standard library only; the host imports this very file. One message is a JSON header and a binary body:

    magic (8) | frame version (1) | flags (1) | header length (4) | body length (4) | header | body

A body above 1 MiB is split over frames; all but the last carry the flag `_MORE`, all but the first an empty header.
The layout of a frame never changes (else two versions could not even exchange a hello); what the headers mean is
negotiated in hello by `negotiate`.

Requests   {"verb": ..., "id": n, "token": of the lease, ...}
Replies    {"id": n, "ok": true, ...}  |  {"id": n, "ok": false, "kind": ..., "message": ..., ...}
           and, while a long request runs, {"id": n, "alive": true} every few seconds. A failure with the id null is
           the last word of a side that does not listen any more.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any, Iterator, NamedTuple

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

# How a figure comes about. Raised whenever timing changes, so that no cached figure outlives the way it was taken.
MEASUREMENT_VERSION = 2

VERBS = ("hello", "lease", "have", "put", "submit", "wait", "ack", "cancel", "status", "upgrade")

MAGIC = b"\x93RLPRUNE"
HEADER_MAX = 64 * 1024
FRAME_BODY_MAX = 1024 * 1024
MESSAGE_BODY_MAX = 64 * 1024 * 1024
NOISE_MAX = 4096

_FRAME_VERSION = 1
_MORE = 1
_PREFIX = struct.Struct(">8sBBII")

ALIVE_SECONDS = 5.0
SILENCE_SECONDS = 15.0

# What a job may spend beyond its own time on waiting for the board to be fit (at most 15 minutes for heat and 90 s for
# other processes), on building an engine, and on the two windows of energy; its process tells when one begins.
WAITING_PHASES = {"gates": 1020.0, "prepare": 600.0, "energy": 60.0}

# Statuses of a measurement, by who must act. Infrastructure never becomes a reward, so the sorting is the contract.
RETRY_KINDS = (
    "throttled",
    "undervoltage",
    "busy",
    "clock_unstable",
    "not_steady",
    "swapping",
    "config_changed",
    "device_rebooted",
    "agent_crashed",
    "connection_lost",
    "lease_lost",
    "gate_timed_out",
)
CANDIDATE_KINDS = ("oom", "timeout_model", "load_failed", "unsupported_op", "output_mismatch", "too_big", "impossible")
OPERATOR_KINDS = (
    "host_key_mismatch",
    "host_key_unknown",
    "auth_failed",
    "version_mismatch",
    "disk_full",
    "device_locked",
    "device_quarantined",
    "runtime_missing",
)
# Refusals belong to the conversation, not to a measurement; the host's link deals with them and passes none on.
REFUSALS = ("unknown_verb", "bad_request", "missing_files", "damaged_upload")
KINDS = RETRY_KINDS + CANDIDATE_KINDS + OPERATOR_KINDS + REFUSALS


class Failure(Exception):
    """Something did not work, with a kind of the closed list. `details` travel beside the message in the reply."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of failure: {kind!r}")
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.details = details

    def header(self) -> dict[str, Any]:
        """The failure as the fields of a reply."""
        fields = dict(self.details)
        fields.update({"ok": False, "kind": self.kind, "message": self.message[:4000]})
        return fields


class Message(NamedTuple):
    """One header with its body."""

    header: dict[str, Any]
    body: bytes


def negotiate(low: int, high: int) -> int:
    """The newest protocol both sides speak; raises `Failure("version_mismatch")` if there is none."""
    chosen = min(high, PROTOCOL_MAX)
    if chosen < max(low, PROTOCOL_MIN):
        raise Failure(
            "version_mismatch",
            f"one side speaks protocol {low} to {high}, the other {PROTOCOL_MIN} to {PROTOCOL_MAX}",
        )
    return chosen


def printable(text: str) -> str:
    """`text` without control characters: what comes from a board must not drive the user's terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def encode(header: dict[str, Any], body: bytes = b"") -> Iterator[bytes]:
    """The frames of one message. Raises `ValueError` for a header or body above its limit, or NaN in the header."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("utf-8")
    if len(text) > HEADER_MAX:
        raise ValueError(f"header of {len(text)} bytes; at most {HEADER_MAX} are allowed, send more in the body")
    if len(body) > MESSAGE_BODY_MAX:
        raise ValueError(f"body of {len(body)} bytes; at most {MESSAGE_BODY_MAX} are allowed")
    starts = range(0, max(1, len(body)), FRAME_BODY_MAX)
    for start in starts:
        part = body[start : start + FRAME_BODY_MAX]
        flags = _MORE if start + FRAME_BODY_MAX < len(body) else 0
        head = text if start == 0 else b""
        yield _PREFIX.pack(MAGIC, _FRAME_VERSION, flags, len(head), len(part)) + head + part


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:  # "1e999" is JSON, and infinite
        raise ValueError(f"{text[:20]} is out of range")
    return value


def _header_of(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Failure("bad_request", f"a header that is not JSON: {str(error)[:200]}") from None
    if not isinstance(header, dict):
        raise Failure("bad_request", f"a header must be a JSON object, this is a {type(header).__name__}")
    return header


class FrameReader:
    """Turns bytes, in whatever portions they arrive, into messages. Memory is bounded by the limits above.

    Bytes before the first magic are tolerated up to `NOISE_MAX` (greetings, shell start-up files); later ones are not.
    """

    def __init__(self, body_max: int = MESSAGE_BODY_MAX) -> None:
        self._body_max = body_max
        self._buffer = bytearray()
        self._noise = bytearray()
        self._started = False
        self._header: dict[str, Any] | None = None
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def noise(self) -> str:
        """What arrived before the first message, fit to print; with no message at all, everything that arrived."""
        data = bytes(self._noise) if self._started else bytes(self._noise + self._buffer)
        return printable(data[:NOISE_MAX].decode("utf-8", "replace")).strip()

    @property
    def holds_more(self) -> bool:
        """Bytes have arrived that no message has been made of yet."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take in bytes as they came."""
        self._buffer += data

    def next(self) -> Message | None:
        """The next whole message, or `None` until more bytes are fed. Raises `Failure` for anything but messages."""
        while True:
            frame = self._frame()
            if frame is None:
                return None
            flags, head, part = frame
            if self._header is None:
                self._header, self._parts, self._size = _header_of(head), [], 0
            elif head:
                raise Failure("bad_request", "a header in the middle of a message")
            if flags & _MORE and not part:
                raise Failure("bad_request", "an empty frame in the middle of a message")
            self._parts.append(part)
            self._size += len(part)
            if self._size > self._body_max:
                raise Failure("bad_request", f"a body above {self._body_max} bytes")
            if not flags & _MORE:
                message = Message(self._header, b"".join(self._parts))
                self._header, self._parts = None, []
                return message

    def _frame(self) -> tuple[int, bytes, bytes] | None:
        if not self._started and not self._skip_noise():
            return None
        if len(self._buffer) < _PREFIX.size:
            return None
        magic, version, flags, head_size, part_size = _PREFIX.unpack_from(self._buffer)
        if magic != MAGIC:
            text = printable(bytes(self._buffer[:200]).decode("utf-8", "replace"))
            raise Failure("connection_lost", f"text in the middle of the conversation: {text}")
        if version != _FRAME_VERSION:
            raise Failure("version_mismatch", f"frames of version {version}; this side knows {_FRAME_VERSION}")
        if head_size > HEADER_MAX or part_size > FRAME_BODY_MAX:
            raise Failure("bad_request", f"a frame of {head_size} + {part_size} bytes is above the limit")
        end = _PREFIX.size + head_size + part_size
        if len(self._buffer) < end:
            return None
        middle = _PREFIX.size + head_size
        head, part = bytes(self._buffer[_PREFIX.size : middle]), bytes(self._buffer[middle:end])
        del self._buffer[:end]
        return flags, head, part

    def _skip_noise(self) -> bool:
        at = self._buffer.find(MAGIC)
        # Without a magic, the last bytes may still be the beginning of one.
        skip = at if at >= 0 else max(0, len(self._buffer) - len(MAGIC) + 1)
        self._noise += self._buffer[:skip]
        del self._buffer[:skip]
        if len(self._noise) > NOISE_MAX:
            raise Failure("version_mismatch", f"this is not an rlprune-edge agent; it says: {self.noise}")
        self._started = at >= 0
        return self._started


class Channel:
    """Messages over a pair of file descriptors, with a deadline on every wait.

    The descriptors are set non-blocking: a peer that stops reading must not be able to hold us for ever.
    """

    def __init__(self, read_fd: int, write_fd: int, *, body_max: int = MESSAGE_BODY_MAX) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._reader = FrameReader(body_max)

    def fileno(self) -> int:
        """The descriptor to wait on for incoming bytes."""
        return self._read_fd

    @property
    def noise(self) -> str:
        """See `FrameReader.noise`."""
        return self._reader.noise

    @property
    def holds_more(self) -> bool:
        """See `FrameReader.holds_more`."""
        return self._reader.holds_more

    def send(self, header: dict[str, Any], body: bytes = b"", seconds: float = SILENCE_SECONDS) -> None:
        """Send one message; `seconds` without any progress, or a closed pipe, raise `Failure("connection_lost")`."""
        for frame in encode(header, body):
            rest = memoryview(frame)
            while rest:
                if not select.select([], [self._write_fd], [], seconds)[1]:
                    raise Failure("connection_lost", f"the other side took no bytes for {seconds:.0f} s")
                try:
                    rest = rest[os.write(self._write_fd, rest) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise Failure("connection_lost", f"the other side is gone ({error.strerror})") from None

    def pump(self) -> bool:
        """Take in what has arrived, without waiting; `False` at end of input."""
        try:
            data = os.read(self._read_fd, 256 * 1024)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._reader.feed(data)
        return bool(data)

    def pop(self) -> Message | None:
        """A message that has arrived already, if there is one."""
        return self._reader.next()

    def receive(self, seconds: float | None) -> Message | None:
        """The next message; `None` at end of input. Raises `Failure("connection_lost")` after `seconds` without one."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            message = self.pop()
            if message is not None:
                return message
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._read_fd], [], [], left)[0]:
                raise Failure("connection_lost", "no answer for %.0f s" % (seconds or 0))
            if not self.pump():
                return None
