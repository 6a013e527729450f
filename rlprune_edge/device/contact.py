"""Stay in touch with one agent: connect when needed, hold its lease, get a lost connection back, try again what is
nobody's fault, decide who has to act.

How the agent is reached is the subclass's business (`_connect`).
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import random
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from rlprune_agent.protocol import (
    CANDIDATE_KINDS,
    MEASUREMENT_VERSION,
    OPERATOR_KINDS,
    RETRY_KINDS,
    Failure,
    printable,
)
from rlprune_edge.device.link import Link, LinkBroken
from rlprune_edge.errors import CandidateError, DeviceError, UserError

log = logging.getLogger(__name__)

T = TypeVar("T")
OnWait = Callable[[str, int], None]
"""hears who has the device and which place in the queue is ours"""

ATTEMPTS = 3
ATTEMPTS_REWARD = 2
RECONNECT_SECONDS = 180.0
"""how long a connection that was lost is tried to get back"""

_POLL_SECONDS = 2.0
_RENEW_SECONDS = 15.0
_WAIT_SECONDS = 3600.0
_DELAY_MAX_SECONDS = 30.0
_JITTER = 0.2
_HELD_SECONDS = 60.0
"""a connection that held this long is a new one to lose"""
_LET_GO_SECONDS = 2.0
_CLOSE_SECONDS = 5.0
_FIRST_TRIES = 2
"""further tries of a device that never answered yet"""


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} pid {os.getpid()}"


def _tell(owner: str, position: int) -> None:
    log.warning("the device is in use by %s; waiting, place %d in the queue", owner, position)


class Contact(ABC):
    """A context manager around at most one link at a time; the first request makes it.

    `on_wait` is called when somebody else has the device, and again when the place in the queue changes.
    """

    _reconnect_seconds = RECONNECT_SECONDS
    """0: one more try, at once"""
    _ends_with_link = False
    """the agent, and all it runs, is gone when the link is closed"""

    def __init__(self, threads: int, *, on_wait: OnWait = _tell, wait_seconds: float = _WAIT_SECONDS) -> None:
        self.threads = threads
        self._on_wait = on_wait
        self._wait_seconds = wait_seconds
        self._session = secrets.token_hex(8)
        self._hello: dict[str, Any] | None = None
        self._link: Link | None = None
        # One request at a time: timing two things at once would time neither, whichever thread asks.
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._broken_off = threading.Event()
        self._keeper: threading.Thread | None = None

    @abstractmethod
    def _connect(self) -> Link:
        """A new conversation. Raises `DeviceError`."""

    @abstractmethod
    def _where(self) -> str:
        """The device in words, to begin a sentence with."""

    def _ensure_fit(self) -> None:  # noqa: B027 - a plain contact has no opinion
        """Called before each attempt at something that needs the lease. Raises `DeviceError` to refuse."""

    def _failed(self, kind: str) -> None:  # noqa: B027 - as above
        """An attempt failed in a way that is nobody's fault."""

    def _rebooted(self) -> None:  # noqa: B027 - as above
        """The device was restarted since the last hello."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the device back and end the conversation."""
        self._closed.set()
        with self._lock:
            if self._link and self._link.in_step and not self._ends_with_link:
                with contextlib.suppress(Failure):
                    self._link.release()
            self._drop()
            keeper, self._keeper = self._keeper, None
        if keeper:
            keeper.join(_CLOSE_SECONDS)

    def break_off(self) -> None:
        """End what another thread has going on here, and free the device: its request fails within seconds.

        For good: there is no further request after this one.
        """
        self._broken_off.set()
        link = self._link
        if link is not None and link.token is not None:
            self._release_anew(link.token)

    def hold(self) -> None:
        """Take the device, waiting for whoever has it. Raises `DeviceError`, `UserError` (threads)."""
        self._with_agent(lambda *_: None)

    @property
    def boot_id(self) -> Any:
        """Of the boot that the device is in: two names with the same one are one device. Raises `DeviceError`."""
        return _boot_id(self.facts)

    @property
    def facts(self) -> dict[str, Any]:
        """The agent's hello: `protocol`, `facts`, `vitals`, `runtime`. Raises `DeviceError`."""
        if self._hello is None:
            self._with_agent(lambda *_: None, lease=False)
        assert self._hello is not None, "set by _linked"
        return self._hello

    def status(self) -> dict[str, Any]:
        """Lease, queue, disk and agents of the device, for people. Needs no lease. Raises `DeviceError`."""
        return self._with_agent(lambda link, _: link.status(), lease=False)

    def break_lease(self) -> str | None:
        """Take the device away from whoever has it, ending the job that runs; says who had it."""
        return self._with_agent(lambda link, _: link.break_lease(), lease=False)

    def upgrade(self, sha256: str, data: bytes) -> None:
        """Make this the device's agent; the next request reaches it. Raises `DeviceError`; the old one stays then."""
        self._with_agent(lambda link, _: link.upgrade(sha256, data))
        with self._lock:
            self._drop()
            self._hello = None

    def _with_agent(self, work: Callable[[Link, int], T], *, attempts: int = ATTEMPTS_REWARD, lease: bool = True) -> T:
        """Do `work(link, attempt)`; try again what is nobody's fault, with the next number; at most `attempts` times.

        The same attempt is begun anew over a new link when a connection is lost; `work` has to be such that this does
        nothing twice. Raises `CandidateError` for failures of the candidate, `DeviceError` for all others.
        """
        with self._lock:
            attempt = 1
            while True:
                self._check_broken_off()
                try:
                    if lease:
                        self._ensure_fit()
                    return self._persistently(work, attempt, lease)
                except Failure as failure:
                    if failure.kind == "lease_lost" and self._link:
                        self._link.token = None
                    self._check_broken_off()
                    if failure.kind in RETRY_KINDS and failure.kind != "lease_lost":
                        self._failed(failure.kind)
                    if attempt == attempts or failure.kind in CANDIDATE_KINDS + OPERATOR_KINDS:
                        raise self._error(failure) from None
                    log.info("%s: %s, attempt %d: %s", self._where(), failure.kind, attempt, failure.message)
                    attempt += 1
                except (DeviceError, CandidateError, UserError):
                    raise
                except BaseException:  # Ctrl-C in mid-answer: the device is to be free within seconds
                    self._let_go()
                    raise

    def _persistently(self, work: Callable[[Link, int], T], attempt: int, lease: bool) -> T:
        """One attempt, over as many links as it takes. Raises `Failure`; `LinkBroken` when the device stays away."""
        lost, tries, made = 0.0, 0, time.monotonic()
        while True:
            try:
                link = self._linked(lease)
                made = time.monotonic()
                return work(link, attempt)
            except LinkBroken as broken:
                self._drop()
                self._check_broken_off()
                now = time.monotonic()
                if tries == 0 or now - made > _HELD_SECONDS:
                    lost, tries = now, 0
                wait = min(2.0**tries, _DELAY_MAX_SECONDS) * random.uniform(1 - _JITTER, 1 + _JITTER)
                if self._reconnect_seconds == 0:
                    wait, given_up = 0.0, tries > 0
                else:
                    given_up = now + wait - lost > self._reconnect_seconds
                if self._hello is None and tries >= _FIRST_TRIES:
                    given_up = True  # nothing to come back to: whoever set it up is waiting for the reason
                if given_up or broken.kind not in RETRY_KINDS:
                    raise
                log.info("%s: connection lost (%s); trying again in %.0f s", self._where(), broken.message, wait)
                self._broken_off.wait(wait)
                self._check_broken_off()
                tries += 1

    def _check_broken_off(self) -> None:
        """Nothing is begun any more after `break_off`, and what that ends is no failure of the device's."""
        if self._broken_off.is_set():
            raise DeviceError("connection_lost", f"{self._where()}: broken off")

    def _linked(self, lease: bool) -> Link:
        if self._link is None:
            self._link = self._greeted()
        if lease and self._link.token is None:
            self._check_able()
            self._acquire(self._link)
            self._keep()
        return self._link

    def _greeted(self) -> Link:
        """A new link whose agent said who it is."""
        try:
            link = self._connect()
        except DeviceError as error:
            if self._hello is not None and error.kind in RETRY_KINDS:  # it was there before: it may come back
                raise LinkBroken(error.kind, str(error)) from None
            raise
        self._closed.clear()
        self._link = link
        try:
            hello = link.hello(_owner())
            if "runtime" not in hello:
                raise Failure("runtime_missing", str(hello.get("runtime_error")))
        except Failure:
            self._drop()
            raise
        if self._hello is not None and _boot_id(hello) != _boot_id(self._hello):
            self._rebooted()
        self._hello = hello
        return link

    def _check_able(self) -> None:
        """Before it is taken: can it do what it is wanted for? Raises `UserError`, `DeviceError`."""
        assert self._hello is not None, "greeted"
        online, version = self._hello["facts"]["online_cpus"], self._hello.get("measurement_version")
        if self.threads > online:
            raise UserError(
                f"{self.threads} threads were asked for, {self._where()} has {online} CPUs; "
                "more threads than CPUs wait for each other and the figures mean nothing. "
                f"Ask for at most {online}."
            )
        if version != MEASUREMENT_VERSION:
            raise DeviceError(
                "version_mismatch",
                f"{self._where()} has an agent that measures in another way than this host expects; "
                "put the host's own there: rlprune-edge device setup NAME",
            )

    def _acquire(self, link: Link) -> None:
        """Wait for the lease. Raises `Failure("device_locked")` when somebody else keeps it for too long."""
        end, told = time.monotonic() + self._wait_seconds, None
        owner = _owner()
        while True:
            reply = link.acquire(owner, self._session)
            if reply.get("granted") is True:
                return
            holder = reply.get("holder")
            name = printable(str(holder.get("owner")))[:200] if isinstance(holder, dict) else "another agent process"
            position = reply.get("position")
            place = (name, position if isinstance(position, int) else 0)
            if place != told:
                self._on_wait(*place)
                told = place
            if time.monotonic() >= end:
                raise Failure("device_locked", f"in use by {name}, for longer than {self._wait_seconds:.0f} s")
            self._broken_off.wait(_POLL_SECONDS)
            self._check_broken_off()

    def _keep(self) -> None:
        """Have the lease renewed while nothing else is said: training between two measurements may take minutes."""
        if self._ends_with_link or (self._keeper and self._keeper.is_alive()):
            return
        self._keeper = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._keeper.start()

    def _renew(self) -> None:
        every = _RENEW_SECONDS
        while not self._closed.wait(every):
            if not self._lock.acquire(blocking=False):
                continue  # whoever has it talks to the agent, which renews the lease as well
            try:
                if self._link and self._link.token is not None:
                    every = min(_RENEW_SECONDS, self._link.lease_seconds / 4)
                    self._link.renew()
            except LinkBroken:
                self._drop()  # the next request makes a new one
            except Failure:
                if self._link:
                    self._link.token = None
            finally:
                self._lock.release()

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link:
            link.close()

    def _let_go(self) -> None:
        """Free the device although an answer is still to come, or a request was sent in part."""
        link, self._link = self._link, None
        if link is None:
            return
        token = link.token
        try:
            if token is None or self._ends_with_link:
                return
            if link.in_step:
                with contextlib.suppress(Failure):
                    link.release(seconds=_LET_GO_SECONDS)
                    return
            self._release_anew(token)
        finally:
            link.close()

    def _release_anew(self, token: int) -> None:
        """Give the lease back over a link of its own."""
        with contextlib.suppress(Failure, DeviceError):
            other = self._connect()
            other.token = token
            with contextlib.suppress(Failure):
                other.release(seconds=_LET_GO_SECONDS)
            other.close()

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


def _boot_id(hello: dict[str, Any]) -> Any:
    vitals = hello.get("vitals")
    return vitals.get("boot_id") if isinstance(vitals, dict) else None
