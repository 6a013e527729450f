"""The bytes below SSH: a socket that gives up a peer which neither speaks nor listens.

paramiko's keep-alives are sent and never looked for again, and its writes repeat for ever. So the socket it gets does
the watching: every call on it returns within a moment, and each adds up how long nothing has happened.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Protocol

_TICK_SECONDS = 0.1
_STEP_MAX_SECONDS = 1.0
"""The most that counts at once: a host that was suspended has not waited, it has slept."""
_UNSENT_BYTES = 128 * 1024
_BULK_BYTES = 1024
"""A packet above this is data; that the kernel takes a small one, such as a question for life, says nothing."""


class Stream(Protocol):
    """What there is of a socket in a TCP connection and in a channel through another host."""

    def recv(self, count: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def settimeout(self, seconds: float, /) -> None: ...
    def close(self) -> None: ...


class Wire:
    """A stream with a limit to its silence, from `watch` on.

    Silent is a peer from which nothing comes *and* which takes no data: a slow link under a large upload is alive.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._limit: float | None = None
        self._silent_seconds = 0.0
        self._looked_at = time.monotonic()
        self._closed = False  # paramiko looks at it, as at a socket's
        self.verdict: str | None = None
        """why the peer was given up, `None` while it was not"""

    def watch(self, seconds: float) -> None:
        """From now on the peer is given up after that many seconds of silence."""
        self._alive()
        self._limit = seconds

    def recv(self, count: int) -> bytes:
        """As a socket's; `b""` also when the peer is given up. Raises `TimeoutError` every 0.1 s."""
        try:
            data = self._stream.recv(count)
        except TimeoutError:
            if self._given_up():
                return b""
            raise
        if data:
            self._alive()
        return data

    def send(self, data: bytes) -> int:
        """As a socket's. Raises `TimeoutError` every 0.1 s, `ConnectionError` when the peer is given up."""
        try:
            count = self._stream.send(data)
        except TimeoutError:
            if self._given_up():
                raise ConnectionAbortedError(self.verdict) from None
            raise
        if count > _BULK_BYTES:
            self._alive()
        return count

    def settimeout(self, seconds: float) -> None:  # noqa: ARG002 - paramiko asks for what it gets anyway
        """The stream's waits are short, whatever is asked for: they are what the watching hangs on."""
        self._stream.settimeout(_TICK_SECONDS)

    def close(self) -> None:
        """Close the stream."""
        self._closed = True
        with contextlib.suppress(OSError, EOFError):
            self._stream.close()

    def _alive(self) -> None:
        self._silent_seconds, self._looked_at = 0.0, time.monotonic()

    def _given_up(self) -> bool:
        now = time.monotonic()
        self._silent_seconds += min(now - self._looked_at, _STEP_MAX_SECONDS)
        self._looked_at = now
        if self._limit is not None and self._silent_seconds > self._limit:
            self.verdict = f"no sign of life for {self._limit:.0f} s"
        return self.verdict is not None


def dial(host: str, port: int, seconds: float) -> Stream:
    """A TCP connection to the first address of `host` that answers, all together within `seconds`. Raises `OSError`."""
    deadline = time.monotonic() + seconds
    failure: OSError = OSError("it has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(left)
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
            continue
        # Small questions and answers must not wait for each other; and what the kernel has taken but not sent must
        # stay little, or a dead link would look alive until its buffer is full.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        return connection
    raise failure
