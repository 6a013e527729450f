"""Stay in touch with one agent: connect when needed, try again what is nobody's fault, decide who has to act.

How the agent is reached is the subclass's business (`_connect`).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from rlprune_agent.protocol import CANDIDATE_KINDS, OPERATOR_KINDS, RETRY_KINDS, Failure
from rlprune_edge.device.link import Link, LinkBroken
from rlprune_edge.errors import CandidateError, DeviceError, UserError

T = TypeVar("T")

_ATTEMPTS = 2


class Contact(ABC):
    """A context manager around at most one link at a time; the first request makes it."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._hello: dict[str, Any] | None = None
        self._link: Link | None = None
        # One request at a time: timing two things at once would time neither, whichever thread asks.
        self._lock = threading.RLock()

    @abstractmethod
    def _connect(self) -> Link:
        """A new conversation. Raises `DeviceError`."""

    @abstractmethod
    def _where(self) -> str:
        """The device in words, to begin a sentence with."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation; the agent ends with it."""
        with self._lock:
            link, self._link = self._link, None
            if link:
                link.close()

    @property
    def facts(self) -> dict[str, Any]:
        """The agent's hello: `protocol`, `facts`, `vitals`, `runtime`. Raises `DeviceError`, `UserError` (threads)."""
        if self._hello is None:
            self._hello = self._with_agent(lambda _: self._hello)
        assert self._hello is not None, "set by _linked"
        return self._hello

    def _with_agent(self, work: Callable[[Link], T]) -> T:
        """Do `work` over the link; make the link if there is none; try once more what is nobody's fault.

        Raises `CandidateError` for failures of the candidate, `DeviceError` for all others.
        """
        with self._lock:
            attempt = 1
            while True:
                try:
                    return work(self._linked())
                except Failure as failure:
                    if isinstance(failure, LinkBroken):
                        self.close()
                    if attempt == _ATTEMPTS or failure.kind in CANDIDATE_KINDS + OPERATOR_KINDS:
                        raise self._error(failure) from None
                    attempt += 1
                except BaseException:  # Ctrl-C in mid-answer: the rest of it must not meet the next question
                    self.close()
                    raise

    def _linked(self) -> Link:
        if self._link is not None:
            return self._link
        self._link = self._connect()
        hello = self._link.hello()
        if "runtime" not in hello:
            raise Failure("runtime_missing", str(hello.get("runtime_error")))
        online = hello["facts"]["online_cpus"]
        if self.threads > online:
            raise UserError(
                f"{self.threads} threads were asked for, {self._where()} has {online} CPUs; "
                "more threads than CPUs wait for each other and the figures mean nothing. "
                f"Ask for at most {online}."
            )
        self._hello = hello
        return self._link

    def _error(self, failure: Failure) -> CandidateError | DeviceError:
        """The same failure, as the error of whoever has to act."""
        where, kind, message = self._where(), failure.kind, failure.message
        if kind in CANDIDATE_KINDS:
            if failure.details.get("phase") != "reference":
                return CandidateError(kind, message)
            return DeviceError(kind, f"{where} cannot run the model that candidates are compared with: {message}")
        if kind in RETRY_KINDS + OPERATOR_KINDS:
            return DeviceError(kind, f"{where}: {message}")
        if kind in ("unknown_verb", "bad_request"):
            return DeviceError("version_mismatch", f"{where} has an agent that does not understand us: {message}")
        return DeviceError("connection_lost", f"{where} did not keep the files sent to it: {message}")
