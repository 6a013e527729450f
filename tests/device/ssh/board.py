"""A real OpenSSH server on loopback as a board, and a link to it that fails on demand.

For every test that needs a board: `LoopbackBoard(folder)` is an account of its own (home folder, keys, host keys) of
whoever runs the tests; as root another user can be named. `LinkFault(board)` is the cable.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from rlprune_edge.device.ssh_config import SshTarget

HOST = "127.0.0.1"
_START_SECONDS = 20.0


def require_sshd() -> str:
    """The server's path. Without one the test is skipped, or fails where CI promises to have it."""
    path = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if path and shutil.which("ssh-keygen"):
        return path
    missing = "no OpenSSH server here (sshd, ssh-keygen); install openssh-server to run the tests over SSH"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "", comment: str = "") -> Path:
    """A key pair at `path` and `path`.pub."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    size = ["-b", "2048"] if kind == "rsa" else []  # the usual 3072 bits take seconds to find
    words = ["ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-C", comment or path.name, "-f", str(path)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    return path


def fingerprint(key: Path) -> str:
    """`SHA256:...` as OpenSSH computes it."""
    done = subprocess.run(["ssh-keygen", "-lf", str(key)], check=True, capture_output=True, text=True)
    return done.stdout.split()[1]


def wait_for(claim: Callable[[], object], what: str, seconds: float = _START_SECONDS) -> None:
    """Until `claim` holds; the test fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.01)


class LoopbackBoard:
    """An sshd of its own on a free port of 127.0.0.1: a context manager, also to be stopped and started again.

    Commands run with `home` as HOME and working folder, whoever runs the tests, and with nothing of the environment of
    the tests but PATH, so that this is a fresh account. With `user` (needs root, a folder which that user can read,
    and an account that is not locked: `usermod -p '*' USER`) they run as that user, in its own home.
    `settings` are lines of sshd_config, `host_keys` types of keys. `identity` may log in; `authorize` changes that.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host_keys: Sequence[str] = ("ed25519",),
        settings: Sequence[str] = (),
        user: str | None = None,
    ) -> None:
        self._sshd = require_sshd()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.host = HOST
        self.port = _free_port()
        self.user = user or pwd.getpwuid(os.getuid()).pw_name
        self.home = Path(pwd.getpwnam(user).pw_dir) if user else folder / "home"
        self._emulated = user is None
        self._settings = list(settings)
        self._kinds = list(host_keys)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "sshd.log"
        if self._emulated:
            self.home.mkdir(exist_ok=True)
        self.identity = make_key(folder / "client" / "id_ed25519")
        self._authorized = folder / "authorized_keys"
        self.authorize(self.identity)
        self.new_host_keys()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def new_host_keys(self) -> None:
        """Fresh host keys, as after a new installation; they count from the next start on."""
        for kind in self._kinds:
            for path in (self.host_key(kind), self.host_key(kind).with_suffix(".pub")):
                path.unlink(missing_ok=True)
            make_key(self.host_key(kind), kind)

    def host_key(self, kind: str = "ed25519") -> Path:
        """The private host key of that type; `.pub` beside it."""
        return self.folder / f"host_{kind}"

    def authorize(self, *keys: Path, options: str = "") -> None:
        """Let the owners of those private keys log in, and nobody else."""
        lines = [f"{options} {key.with_name(key.name + '.pub').read_text()}".lstrip() for key in keys]
        self._authorized.write_text("".join(lines))

    def known_hosts(self, path: Path | None = None, *, name: str | None = None, port: int | None = None) -> Path:
        """A known_hosts file that has this board's keys, under its own name or that of a link to it."""
        path = path or self.folder / "known_hosts"
        name = name or f"[{self.host}]:{port or self.port}"
        keys = [self.host_key(kind).with_suffix(".pub").read_text() for kind in self._kinds]
        path.write_text("".join(f"{name} {' '.join(key.split()[:2])}\n" for key in keys))
        return path

    def target(self, *, port: int | None = None, identity: Path | None = None) -> SshTarget:
        """How to get here; with nothing of the configuration of whoever runs the tests."""
        return SshTarget(f"{self.user}@{self.host}", port or self.port, identity or self.identity, self.empty_config())

    def empty_config(self) -> Path:
        """An ssh_config that says nothing but that nobody else's files count."""
        return self.config("")

    def config(self, text: str) -> Path:
        """An ssh_config with that text; no ssh-agent, keys or known hosts of whoever runs the tests."""
        path = self.folder / f"config-{len(list(self.folder.glob('config-*')))}"
        defaults = "Host *\nIdentityAgent none\nUserKnownHostsFile none\nGlobalKnownHostsFile none\n"
        path.write_text(f"{text}\n{defaults}IdentityFile {self.identity}\n")
        return path

    def start(self) -> None:
        """Start the server and wait until it listens."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self.folder / "sshd_config"
        lines = self._lines()
        config.write_text("\n".join([*lines, "PerSourcePenalties no"]) + "\n")
        if subprocess.run([self._sshd, "-t", "-f", str(config)], capture_output=True, check=False).returncode:
            config.write_text("\n".join(lines) + "\n")  # an sshd before 9.8 has no such penalties
        with self._log.open("ab") as log:
            command = [self._sshd, "-D", "-e", "-f", str(config)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self._listens, "sshd listening")

    def stop(self) -> None:
        """Kill the server with all its sessions and their commands, as a power cut would."""
        if self._process is None:
            return
        family = [self._process.pid, *_descendants(self._process.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def processes(self) -> list[int]:
        """Ids of all processes of the board but the listening server."""
        return _descendants(self._process.pid) if self._process else []

    def log(self) -> str:
        """What the server has said."""
        return self._log.read_text(errors="replace")

    def _lines(self) -> list[str]:
        lines = [
            *self._settings,  # the first value of a keyword counts
            f"ListenAddress {self.host}",
            f"Port {self.port}",
            *(f'HostKey "{self.host_key(kind)}"' for kind in self._kinds),
            f'AuthorizedKeysFile "{self._authorized}"',
            "AuthenticationMethods publickey",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "PidFile none",
            "PrintLastLog no",
            "StrictModes no",
            "UsePAM no",
        ]
        if self._emulated:
            wrapper = self.folder / "login"
            home = shlex.quote(str(self.home))
            # As a login would: in the home folder, with the shell's start-up file, which only bash reads by itself.
            wrapper.write_text(
                f"#!/bin/sh\ncd {home} || exit 1\n"
                'case "$SHELL" in */bash) ;; *) [ -r .bashrc ] && . ./.bashrc ;; esac\n'
                'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
            )
            wrapper.chmod(0o755)
            path = shlex.quote(os.environ.get("PATH", os.defpath))
            lines += [f"SetEnv HOME={home} PATH={path}", f"ForceCommand {shlex.quote(str(wrapper))}"]
        return lines

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"sshd ended: {self.log()}"
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0


class LinkFault:
    """A TCP proxy before a board, whose failures are ordered: a context manager that listens on `port`.

    Counts what went through: `sent` bytes to the board and `received` bytes from it, over all connections.
    """

    def __init__(self, board: LoopbackBoard) -> None:
        self._board = board
        self.port = _free_port()
        self.sent = 0
        self.received = 0
        self.connections = 0
        self._reset_at: int | None = None
        self._stall_at: int | None = None
        self._delay = 0.0
        self._rate: float | None = None
        self._changed = threading.Condition()
        self._stalled = False
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self.reopen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume()
        self.shut()
        for thread in self._threads:
            thread.join(5)

    def reset_after(self, count: int) -> None:
        """RST to both ends once `count` more bytes went to the board; once."""
        self._reset_at = self.sent + count

    def stall_after(self, count: int) -> None:
        """`stall` once `count` more bytes went to the board."""
        self._stall_at = self.sent + count

    def stall(self) -> None:
        """Carry nothing any more, in either direction, and let nobody know."""
        with self._changed:
            self._stalled = True

    def resume(self) -> None:
        """Carry again, what was held back first."""
        with self._changed:
            self._stalled, self._stall_at = False, None
            self._changed.notify_all()

    def delay(self, seconds: float) -> None:
        """Hold every portion back for so long."""
        self._delay = seconds

    def throttle(self, bytes_per_second: float | None) -> None:
        """Carry at most so much to the board; `None` for as much as there is."""
        self._rate = bytes_per_second

    def drop(self) -> None:
        """RST to both ends of all connections."""
        with self._changed:
            ends, self._open = self._open, []
        for end in ends:
            _reset(end)

    def shut(self) -> None:
        """Refuse connections, and end those there are: a board without power."""
        listener, self._listener = self._listener, None
        if listener:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.drop()

    def reopen(self) -> None:
        """Accept connections (again)."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self.port))
        listener.listen()
        self._listener = listener
        self._start(self._accept, listener)

    def _start(self, work: Callable[..., None], *words: object) -> None:
        thread = threading.Thread(target=work, args=words, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection((self._board.host, self._board.port))
                except OSError:
                    _reset(near)
                    continue
                with self._changed:
                    self.connections += 1
                    self._open += [near, far]
                self._start(self._carry, near, far, True)
                self._start(self._carry, far, near, False)

    def _carry(self, source: socket.socket, sink: socket.socket, towards_board: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16 * 1024):
                if self._delay:
                    time.sleep(self._delay)
                if towards_board and self._rate:
                    time.sleep(len(data) / self._rate)
                self._hold()
                sink.sendall(data)
                self._count(len(data), towards_board)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._changed:
            if source in self._open:
                self._open.remove(source)
                source.close()

    def _hold(self) -> None:
        with self._changed:
            while self._stalled:
                self._changed.wait()

    def _count(self, count: int, towards_board: bool) -> None:
        if not towards_board:
            self.received += count
            return
        self.sent += count
        if self._stall_at is not None and self.sent >= self._stall_at:
            self._stall_at = None
            self.stall()
        if self._reset_at is not None and self.sent >= self._reset_at:
            self._reset_at = None
            self.drop()


@contextlib.contextmanager
def ssh_agent(folder: Path, *keys: Path, confirm: bool = False) -> Iterator[str]:
    """A real ssh-agent that holds those keys; its socket. With `confirm` it asks a person, who is not there."""
    path = folder / "agent.sock"
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "SSH_ASKPASS")}
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        wait_for(path.exists, "ssh-agent listening")
        for key in keys:
            environment["SSH_AUTH_SOCK"] = str(path)
            subprocess.run(
                ["ssh-add", "-q", *(["-c"] if confirm else []), str(key)],
                check=True,
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        yield str(path)
    finally:
        agent.terminate()
        agent.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side may have ended it already
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closing alone would wait for the thread that reads from it.
        end.shutdown(socket.SHUT_RD)
    end.close()


def _descendants(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    children = [int(word) for word in text.split()]
    return children + [found for child in children for found in _descendants(child)]
