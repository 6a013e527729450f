"""One conversation with an agent: requests with a deadline, uploads that resume. Knows nothing of how it got there."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from rlprune_agent.protocol import (
    FRAME_BODY_MAX,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    SILENCE_SECONDS,
    Channel,
    Failure,
    Message,
    printable,
)

_HELLO_SECONDS = 90.0
_CONTROL_SECONDS = 10.0
_PUT_SECONDS = 30.0
_UPLOAD_TRIES = 3


class LinkBroken(Failure):
    """The conversation itself ended; whoever made the link has to make a new one."""


class Link:
    """Talks over `channel`. `close` ends the agent; `last_words` is what it left on its standard error."""

    def __init__(self, channel: Channel, *, close: Callable[[], None], last_words: Callable[[], str]) -> None:
        self._channel = channel
        self._last_words = last_words
        self._number = 0
        self.close = close

    def hello(self) -> dict[str, Any]:
        """What the agent is and runs on; agrees on a protocol. The first thing to be said."""
        fields = {"verb": "hello", "protocol_min": PROTOCOL_MIN, "protocol_max": PROTOCOL_MAX}
        hello = self.request(fields, seconds=_HELLO_SECONDS).header
        facts = hello.get("facts")
        if not isinstance(facts, dict) or not isinstance(facts.get("online_cpus"), int):
            raise LinkBroken("version_mismatch", "the agent's hello says nothing about the device")
        return hello

    def request(self, header: Mapping[str, Any], body: bytes = b"", *, seconds: float = _CONTROL_SECONDS) -> Message:
        """Ask and wait for the answer, at most `seconds`, and never longer than 15 s without a sign of life.

        Raises `Failure` as the agent answered it, `LinkBroken` if it did not answer.
        """
        self._number += 1
        deadline = time.monotonic() + seconds
        try:
            self._channel.send({**header, "id": self._number}, body)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Failure("connection_lost", f"no answer to '{header['verb']}' within {seconds:.0f} s")
                message = self._channel.receive(min(left, SILENCE_SECONDS))
                if message is None:
                    raise Failure("agent_crashed", "the agent ended unexpectedly")
                if message.header.get("id") == self._number and not message.header.get("alive"):
                    break
        except Failure as failure:
            raise LinkBroken(failure.kind, failure.message + self._last_said(failure.kind)) from None
        if message.header.get("ok") is not True:
            raise _failure_in(message.header)
        return message

    def upload(self, contents: Mapping[str, Callable[[], bytes]]) -> None:
        """Send the files (sha256 -> how to read them) that the agent does not have, going on where a send broke off."""
        for sha256, offset in self._missing(list(contents)).items():
            data = contents[sha256]()
            for attempt in range(_UPLOAD_TRIES):
                try:
                    self._put(sha256, data, offset)
                    break
                except Failure as failure:
                    if failure.kind != "damaged_upload" or attempt == _UPLOAD_TRIES - 1:
                        raise
                    offset = self._missing([sha256]).get(sha256, 0)

    def _missing(self, files: list[str]) -> dict[str, int]:
        missing = self.request({"verb": "have", "files": files}).header.get("missing")
        if not isinstance(missing, dict) or not all(k in files and isinstance(v, int) for k, v in missing.items()):
            raise LinkBroken("version_mismatch", "the agent's answer to 'have' does not make sense")
        return missing

    def _put(self, sha256: str, data: bytes, offset: int) -> None:
        whole = False
        while not whole:
            part = data[offset : offset + FRAME_BODY_MAX]
            fields = {"verb": "put", "sha256": sha256, "size": len(data), "offset": offset, "crc32": zlib.crc32(part)}
            reply = self.request(fields, part, seconds=_PUT_SECONDS).header
            here, whole = reply.get("offset"), reply.get("whole") is True
            if not isinstance(here, int) or not (whole or here != offset):
                raise LinkBroken("version_mismatch", "the agent's answer to 'put' does not make sense")
            offset = here

    def _last_said(self, kind: str) -> str:
        """What the agent left behind, to follow the sentence about its end: the reason is there more often than not.

        An agent may be gone before a request is sent, while it is, or before it answers; its words count in each case.
        """
        if kind not in ("agent_crashed", "connection_lost"):
            return ""
        words = printable(self._last_words()).strip() or self._channel.noise
        return f": {words[-1000:]}" if words else ""


def _failure_in(header: dict[str, Any]) -> Failure:
    """The failure a reply speaks of; nothing in it is believed to be of the right type."""
    message = printable(str(header.get("message", "")))[:2000]
    details = {name: header[name] for name in ("phase", "missing") if name in header}
    try:
        return Failure(str(header.get("kind")), message, **details)
    except ValueError:
        return Failure(
            "version_mismatch", f"a kind of failure this host does not know: {header.get('kind')!r}: {message}"
        )
