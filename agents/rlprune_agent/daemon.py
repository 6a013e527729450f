"""The agent as a process: `serve` listens on a Unix socket for many conversations, `alone` has one and ends with it.

The main loop accepts, looks after the lease once a second, and is what the watchdog hears from: a thread that only
reports that it reports would prove nothing.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator

from rlprune_agent import durable, sockets
from rlprune_agent.agent import Agent
from rlprune_agent.protocol import FRAME_BODY_MAX, Channel, Failure
from rlprune_agent.server import Server

log = logging.getLogger(__name__)

CONVERSATIONS_MAX = 16

_TICK_SECONDS = 1.0
_TAKEOVER_SECONDS = 3.0
_DRAIN_SECONDS = 5.0
_SEND_SECONDS = 2.0
_LOG_BYTES = 512 * 1024


def _log_to(folder: Path) -> None:
    """Keep a log of at most 1 MiB; a disk that does not take it is no reason to stop."""
    logging.raiseExceptions = False
    durable.private_folder(folder)
    handler = logging.handlers.RotatingFileHandler(
        str(folder / "agent.log"), maxBytes=_LOG_BYTES, backupCount=1, delay=True
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("rlprune_agent")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False


class Notifier:
    """Tells the service manager how we are, where there is one. Children must not inherit the way to it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        watchdog = environment.pop("WATCHDOG_USEC", "")
        environment.pop("WATCHDOG_PID", None)
        self._every = int(watchdog) / 2e6 if watchdog.isdigit() and int(watchdog) else None
        self._last = 0.0

    @property
    def managed(self) -> bool:
        """Is there a service manager?"""
        return bool(self._address)

    def tell(self, state: str) -> None:
        """Send `READY=1` and the like."""
        if not self._address:
            return
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), name)

    def alive(self) -> None:
        """To be called from the main loop, as often as one likes."""
        now = time.monotonic()
        if self._every is not None and now - self._last >= self._every:
            self._last = now
            self.tell("WATCHDOG=1")


class _Wake:
    """Ends the main loop's wait: from a signal, or when a conversation has ended."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self.asked_to_end = False

    def fileno(self) -> int:
        return self._read_fd

    def call(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_fd, b"x")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_fd, 4096)

    def end(self, *_: Any) -> None:
        self.asked_to_end = True
        self.call()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[_Wake]:
    wake = _Wake()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, wake.end)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    yield wake


def alone(agent: Agent, read_fd: int, write_fd: int) -> int:
    """Serve one conversation over a pair of descriptors, end with it, and take along what it started."""
    status = [0]
    with _ended_by_signals() as wake:

        def converse() -> None:
            channel = Channel(read_fd, write_fd, body_max=FRAME_BODY_MAX)
            try:
                Server(channel, agent).serve()
            except Failure as failure:
                log.warning("%s", failure.message)
                status[0] = 1
            finally:
                wake.end()

        threading.Thread(target=converse, name="conversation", daemon=True).start()
        while not wake.asked_to_end and agent.worker.lives:
            select.select([wake], [], [], _TICK_SECONDS)
            wake.clear()
            agent.tick()
        agent.end()
    return status[0]


class _Conversation:
    """One connection, served by a thread of its own."""

    def __init__(self, connection: socket.socket, agent: Agent, wake: _Wake, *, trusted: bool) -> None:
        self.ended = False
        self._connection = connection
        self._wake = wake
        channel = Channel(connection.fileno(), connection.fileno(), body_max=FRAME_BODY_MAX)
        self._server = Server(channel, agent, trusted=trusted)
        threading.Thread(target=self._serve, name="conversation", daemon=True).start()

    @property
    def answering(self) -> bool:
        return self._server.answering and not self.ended

    def _serve(self) -> None:
        try:
            self._server.serve()
        except Failure as failure:
            log.info("a conversation ended: %s", failure.message)
        except Exception:  # one conversation is not to take the others along
            log.exception("a conversation ended")
        finally:
            self.ended = True
            self._connection.close()
            self._wake.call()


class Daemon:
    """Listens at `path` until told to end, or until there was nothing to do for `idle_seconds`."""

    def __init__(self, agent: Agent, path: Path, *, idle_seconds: float | None, notifier: Notifier) -> None:
        self._agent = agent
        self._path = path
        self._idle_seconds = idle_seconds
        self._notifier = notifier
        self._conversations: list[_Conversation] = []

    def run(self) -> int:
        """The main loop; the exit status. 1: another agent process does the jobs of this home, or nobody does."""
        if not self._agent.jobs.open(_TAKEOVER_SECONDS):
            sys.stderr.write(f"another agent process does the jobs of {self._agent.home}\n")
            return 1
        with _ended_by_signals() as wake, contextlib.closing(sockets.listen(self._path)) as listener:
            listener.settimeout(0)
            log.info("listening at %s", self._path)
            self._notifier.tell("READY=1")
            idle_since = time.monotonic()
            while not wake.asked_to_end and self._agent.worker.lives:
                self._notifier.alive()
                ready = select.select([listener.fileno(), wake.fileno()], [], [], _TICK_SECONDS)[0]
                wake.clear()
                if listener.fileno() in ready:
                    self._accept(listener, wake)
                self._conversations = [c for c in self._conversations if not c.ended]
                self._agent.tick()
                busy = bool(self._agent.jobs.unfinished())
                if busy or self._conversations:
                    idle_since = time.monotonic()
                elif self._idle_seconds is not None and time.monotonic() - idle_since > self._idle_seconds:
                    break
                if self._agent.retiring.is_set() and not busy:
                    break
            self._notifier.tell("STOPPING=1")
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            self._drain()
        lives = self._agent.worker.lives
        self._agent.end()
        log.info("ended" if lives else "ended: the thread that does jobs is dead")
        return 0 if lives else 1

    def _accept(self, listener: socket.socket, wake: _Wake) -> None:
        try:
            connection, _ = listener.accept()
            uid = sockets.peer_uid(connection)
        except OSError:  # gone again
            return
        if not sockets.may_talk(uid, self._path):
            _refuse(connection, Failure("auth_failed", f"user {uid} may not talk to this agent"))
        elif len(self._conversations) >= CONVERSATIONS_MAX:
            _refuse(connection, Failure("busy", f"{CONVERSATIONS_MAX} conversations are going on already"))
        else:
            trusted = uid == os.geteuid()
            try:
                self._conversations.append(_Conversation(connection, self._agent, wake, trusted=trusted))
            except RuntimeError:  # the limit on processes counts threads as well
                _refuse(connection, Failure("busy", "the device has no room for another thread"))

    def _drain(self) -> None:
        """Let requests that are being answered get their answer, unless that takes long."""
        end = time.monotonic() + _DRAIN_SECONDS
        while any(c.answering for c in self._conversations) and time.monotonic() < end:
            time.sleep(0.02)


def _refuse(connection: socket.socket, failure: Failure) -> None:
    log.warning("refused: %s", failure.message)
    with contextlib.closing(connection), contextlib.suppress(Failure):
        fd = connection.fileno()
        Channel(fd, fd).send({**failure.header(), "id": None}, seconds=_SEND_SECONDS)


def serve(
    home: Path,
    *,
    root: Path,
    quota_bytes: int,
    lease_seconds: float,
    idle_seconds: float | None,
    path: Path | None,
) -> int:
    """Be the daemon of `home`; its exit status."""
    notifier = Notifier(os.environ)  # type: ignore[arg-type]
    os.umask(0o077)
    _log_to(durable.private_folder(home) / "log")
    if path is None:
        path = sockets.home_socket(home)
        durable.private_folder(path.parent)
    agent = Agent(
        home,
        root=root,
        quota_bytes=quota_bytes,
        lease_seconds=lease_seconds,
        isolation="systemd" if notifier.managed else "user",
    )
    return Daemon(agent, path, idle_seconds=idle_seconds, notifier=notifier).run()
