"""One conversation with an agent: requests with a deadline, uploads that resume. Knows nothing of how it got there."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rlprune_agent.protocol import (
    FRAME_BODY_MAX,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    SILENCE_SECONDS,
    Failure,
    Message,
    printable,
)

CONTROL_SECONDS = 10.0

_HELLO_SECONDS = 90.0  # the first hello after a daemon's start waits for the runtime to be tried
_PUT_SECONDS = 30.0
_PUT_BYTES_PER_SECOND = 500_000
_STALLED_SECONDS = 20.0
_UPLOAD_TRIES = 3
_FILES_AT_ONCE = 500
_HELLO: Mapping[str, Any] = {
    "agent": str,
    "protocol": int,
    "isolation": str,
    "agent_sha256": str | None,
    "runtime": dict,
    "runtime_error": str,
}
"""what is read in a hello, and what it has to be"""


class Conversation(Protocol):
    """Messages there and back, whatever carries them; raises `Failure("connection_lost")` when it is over."""

    @property
    def noise(self) -> str:
        """What arrived before the first message."""

    def send(self, header: dict[str, Any], body: bytes = b"", seconds: float = SILENCE_SECONDS) -> None:
        """Send one message; `seconds` without any progress are the end."""

    def receive(self, seconds: float | None) -> Message | None:
        """The next message; `None` at the end of the conversation."""


class LinkBroken(Failure):
    """The conversation itself ended; whoever made the link has to make a new one."""


class Link:
    """Talks over `channel`. `close` ends the conversation; `last_words` is what the agent left on its standard error.

    `token` is the lease that goes with every request once there is one. `silence_seconds` without a byte mean that the
    other side is dead. All deadlines are stretched by `patience`, for a device whose clock falls behind ours.
    """

    def __init__(
        self,
        channel: Conversation,
        *,
        close: Callable[[], None],
        last_words: Callable[[], str],
        silence_seconds: float = SILENCE_SECONDS,
        patience: float = 1.0,
    ) -> None:
        self._channel = channel
        self._last_words = last_words
        self._silence_seconds = silence_seconds
        self._patience = patience
        self._number = 0
        self.token: int | None = None
        self.lease_seconds = 60.0
        self.in_step = True
        """no request has been sent in part: another one can follow, even if nobody waited for the last one's answer"""
        self.close = close

    def hello(self, owner: str) -> dict[str, Any]:
        """What the agent is and runs on; agrees on a protocol. The first thing to be said."""
        fields = {"verb": "hello", "protocol_min": PROTOCOL_MIN, "protocol_max": PROTOCOL_MAX, "owner": owner}
        try:
            hello = self.request(fields, seconds=_HELLO_SECONDS).header
        except LinkBroken:
            raise
        except Failure as failure:
            if failure.kind != "version_mismatch":
                raise
            ours = "to put this host's agent there: rlprune-edge device setup NAME"
            raise Failure(failure.kind, f"{failure.message}; {ours}", **failure.details) from None
        facts = hello.get("facts")
        if not isinstance(facts, dict) or not isinstance(facts.get("online_cpus"), int):
            raise LinkBroken("version_mismatch", "the agent's hello says nothing about the device")
        for name, kind in _HELLO.items():
            if name in hello and not isinstance(hello[name], kind):
                raise LinkBroken("version_mismatch", f"the agent's hello has a '{name}' that does not make sense")
        if not all(name in hello for name in ("agent", "protocol", "isolation")):
            raise LinkBroken("version_mismatch", "the agent's hello does not say which agent it is")
        return hello

    def request(self, header: Mapping[str, Any], body: bytes = b"", *, seconds: float = CONTROL_SECONDS) -> Message:
        """Ask and wait for the answer, at most `seconds`, and never for long without a sign of life.

        Raises `Failure` as the agent answered it, `LinkBroken` if it did not answer.
        """
        self._number += 1
        deadline = time.monotonic() + seconds * self._patience
        silence = max(self._silence_seconds, _STALLED_SECONDS) if body else self._silence_seconds
        silence *= self._patience
        lease = {} if self.token is None else {"token": self.token}
        try:
            self.in_step = False
            self._channel.send({**lease, **header, "id": self._number}, body, seconds=silence)
            self.in_step = True
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    waited = seconds * self._patience
                    raise Failure("connection_lost", f"no answer to '{header['verb']}' within {waited:.0f} s")
                message = self._channel.receive(min(left, silence))
                if message is None:
                    raise Failure("agent_crashed", "the agent ended unexpectedly")
                answered = message.header.get("id")
                if answered is None and message.header.get("ok") is False:
                    raise _failure_in(message.header)  # its last word: it does not listen any more
                if answered == self._number and not message.header.get("alive"):
                    break
        except Failure as failure:
            self.in_step = False
            raise LinkBroken(failure.kind, failure.message + self._last_said(failure.kind)) from None
        if message.header.get("ok") is not True:
            raise _failure_in(message.header)
        return message

    # ------------------------------------------------------------ the lease

    def acquire(self, owner: str, session: str) -> dict[str, Any]:
        """Ask for the device once: `granted`, else `position` in the queue and perhaps `holder`."""
        fields = {"verb": "lease", "action": "acquire", "owner": owner, "session": session}
        reply = self.request(fields).header
        if reply.get("granted") is True:
            token, seconds = reply.get("token"), reply.get("seconds")
            if not isinstance(token, int) or not isinstance(seconds, int | float) or not seconds > 0:
                raise LinkBroken("version_mismatch", "the agent's answer to 'lease' does not make sense")
            self.token, self.lease_seconds = token, float(seconds)
        return reply

    def renew(self) -> None:
        """Keep the lease. Raises `Failure("lease_lost")` if it was lost."""
        self.request({"verb": "lease", "action": "renew"})

    def release(self, *, seconds: float = CONTROL_SECONDS) -> None:
        """Give the device back; a job of ours that still runs is ended."""
        if self.token is not None:
            self.request({"verb": "lease", "action": "release"}, seconds=seconds)
            self.token = None

    def break_lease(self) -> str | None:
        """Take the device away from whoever has it; says who had."""
        broken = self.request({"verb": "lease", "action": "break"}).header.get("broken")
        return None if broken is None else printable(str(broken))[:200]

    # ------------------------------------------------------------ files and jobs

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

    def submit(self, job_id: str, job: Mapping[str, Any]) -> str:
        """Queue a job, unless it is known already; its state: queued, running or done."""
        return _text(self.request({"verb": "submit", "job_id": job_id, **job}).header, "state")

    def wait(self, job_id: str, seconds: float) -> Message | tuple[str, str]:
        """Wait for a job's result, at most `seconds`; what it is at (state, phase) if it is not done by then.

        Raises the job's failure, with `state` "done" in its details.
        """
        fields = {"verb": "wait", "job_id": job_id, "seconds": seconds}
        message = self.request(fields, seconds=seconds + CONTROL_SECONDS)
        state = _text(message.header, "state")
        return message if state == "done" else (state, _text(message.header, "phase"))

    def acknowledge(self, job_id: str) -> None:
        """The result has been read: the agent may forget it."""
        self.request({"verb": "ack", "job_id": job_id})

    def cancel(self, job_id: str) -> None:
        """End a job."""
        self.request({"verb": "cancel", "job_id": job_id})

    def status(self) -> dict[str, Any]:
        """Lease, queue, disk and agents of the device, for the doctor; nothing in it is checked."""
        return self.request({"verb": "status"}).header

    def upgrade(self, sha256: str, data: bytes) -> None:
        """Make this file the agent that is started next; the one that answers now ends when nothing runs."""
        self.upload({sha256: lambda: data})
        self.request({"verb": "upgrade", "sha256": sha256}, seconds=_HELLO_SECONDS)

    def _missing(self, files: list[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for start in range(0, len(files), _FILES_AT_ONCE):
            asked = files[start : start + _FILES_AT_ONCE]
            missing = self.request({"verb": "have", "files": asked}).header.get("missing")
            if not isinstance(missing, dict) or not all(k in asked and isinstance(v, int) for k, v in missing.items()):
                raise LinkBroken("version_mismatch", "the agent's answer to 'have' does not make sense")
            found |= missing
        return found

    def _put(self, sha256: str, data: bytes, offset: int) -> None:
        whole, backwards = False, 0
        while not whole:
            part = data[offset : offset + FRAME_BODY_MAX]
            fields = {"verb": "put", "sha256": sha256, "size": len(data), "offset": offset, "crc32": zlib.crc32(part)}
            reply = self.request(fields, part, seconds=_PUT_SECONDS + len(part) / _PUT_BYTES_PER_SECOND).header
            here, whole = reply.get("offset"), reply.get("whole") is True
            if not isinstance(here, int) or not 0 <= here <= len(data) or not (whole or here != offset):
                raise LinkBroken("version_mismatch", "the agent's answer to 'put' does not make sense")
            backwards += here < offset
            if backwards > _UPLOAD_TRIES:
                raise LinkBroken("version_mismatch", "the agent wants the same bytes of a file again and again")
            offset = here

    def _last_said(self, kind: str) -> str:
        """What the agent left behind, to follow the sentence about its end: the reason is there more often than not.

        An agent may be gone before a request is sent, while it is, or before it answers; its words count in each case.
        """
        if kind not in ("agent_crashed", "connection_lost"):
            return ""
        words = printable(self._last_words()).strip() or self._channel.noise
        return f": {words[-1000:]}" if words else ""


def _text(header: Mapping[str, Any], name: str) -> str:
    value = header.get(name)
    if not isinstance(value, str):
        raise LinkBroken("version_mismatch", f"the agent's answer has no '{name}'")
    return printable(value)[:100]


def _failure_in(header: Mapping[str, Any]) -> Failure:
    """The failure a reply speaks of; nothing in it is believed to be of the right type."""
    message = printable(str(header.get("message", "")))[:2000]
    details = {name: header[name] for name in ("phase", "missing", "state") if name in header}
    try:
        return Failure(str(header.get("kind")), message, **details)
    except ValueError:
        return Failure(
            "version_mismatch", f"a kind of failure this host does not know: {header.get('kind')!r}: {message}"
        )
