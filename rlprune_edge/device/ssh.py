"""SSH to a board: its key is checked before anything is sent to it, and every wait has an end.

The home of paramiko, but for keys and the ssh-agent (`ssh_login`). What surprised there (5.1.0): its known_hosts reader
gives up at marked lines and its configuration reader ignores Include, so both are ours; keep-alives are sent but their
answers never missed, and writes repeat for ever, so `ssh_wire` watches the socket; `start_client` returns in silence
when its time is up; waiting for the answer to `exec` has no time-out at all; errors are logged, with a traceback,
before they are raised.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import LiteralString, Self

import paramiko

from rlprune_agent.protocol import Failure, printable
from rlprune_edge.device import known_hosts as trusted_keys
from rlprune_edge.device.known_hosts import Entry, HostKey, KnownHosts, host_key
from rlprune_edge.device.ssh_channel import Finished, SshChannel, collect
from rlprune_edge.device.ssh_config import Hop, Settings, SshTarget, resolve
from rlprune_edge.device.ssh_login import log_in
from rlprune_edge.device.ssh_wire import Stream, Wire, dial
from rlprune_edge.errors import DeviceError, UserError

__all__ = ["Deadlines", "Finished", "HostKey", "SshSession", "SshTarget", "names_of", "offered_host_key"]

log = logging.getLogger(__name__)
# Its errors reach the user as ours; without this they would reach standard error as well, and as tracebacks.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

_WEAK = {
    "ciphers": ["aes128-cbc", "aes192-cbc", "aes256-cbc", "3des-cbc"],
    "macs": ["hmac-sha1", "hmac-md5", "hmac-sha1-96", "hmac-md5-96"],
    "keys": ["ssh-rsa", "ssh-dss"],
    "pubkeys": ["ssh-rsa", "ssh-dss"],
}
_PULSE = "keepalive@openssh.com"
_FORBIDDEN_CHANNEL = 1
_RSA = ("rsa-sha2-512", "rsa-sha2-256")


@dataclass(frozen=True)
class Deadlines:
    """Seconds that each step may take. `silence`: a peer is given up after so long without a sign of life."""

    connect: float = 10.0
    banner: float = 15.0
    auth: float = 15.0
    channel: float = 10.0
    silence: float = 15.0
    pulse: float = 5.0
    """how often a peer is asked for a sign of life"""


def names_of(target: SshTarget) -> tuple[str, ...]:
    """The names under which the target's host key is looked up; it is to be remembered under the first.

    Raises `UserError` for a configuration that cannot be followed.
    """
    return resolve(target, fallback=_read_config)[-1].names


def offered_host_key(
    target: SshTarget, *, known_hosts: Path | None = None, deadlines: Deadlines | None = None
) -> HostKey:
    """The key that the target offers, for a person to compare; nothing is sent to it and it is not logged in to.

    Hosts on the way to it are logged in to, and have to be known. Raises `DeviceError` and `UserError`.
    """
    session = SshSession(target, deadlines or Deadlines(), batch=True)
    try:
        *way, last = resolve(target, fallback=_read_config)
        for hop in way:
            session.enter(hop, known_hosts)
        return session.greet(last, KnownHosts())
    finally:
        session.close()


class SshSession:
    """One connection to one board, with all the hosts it leads through. A context manager."""

    def __init__(self, target: SshTarget, deadlines: Deadlines, *, batch: bool) -> None:
        self._target = target
        self._deadlines = deadlines
        self._batch = batch
        self._transports: list[paramiko.Transport] = []
        self._wires: list[Wire] = []
        self._where = target.destination
        self._over = threading.Event()
        self._pulse: threading.Thread | None = None

    @classmethod
    def connect(
        cls, target: SshTarget, *, known_hosts: Path | None, batch: bool = True, deadlines: Deadlines | None = None
    ) -> Self:
        """Log in to the target through the hosts that the user's configuration names.

        `known_hosts` is our own file; the user's count as well. `batch`: never ask for a passphrase. Raises `UserError`
        and `DeviceError` of kind `host_key_unknown`, `host_key_mismatch`, `auth_failed`, `version_mismatch` or
        `connection_lost`; only the last is worth another try.
        """
        session = cls(target, deadlines or Deadlines(), batch=batch)
        try:
            for hop in resolve(target, fallback=_read_config):
                session.enter(hop, known_hosts)
            session.watch()
        except BaseException:
            session.close()
            raise
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and everything that runs over it; no thread stays behind."""
        self._over.set()
        for transport in reversed(self._transports):
            transport.packetizer.complete_handshake()  # or its timer would live on for its whole time
            transport.close()
        for wire in reversed(self._wires):
            wire.close()
        for transport in self._transports:
            if transport.is_alive():
                transport.join(self._deadlines.silence)
        if self._pulse:
            self._pulse.join(self._deadlines.silence)
        self._transports, self._wires, self._pulse = [], [], None

    def run(
        self,
        command: LiteralString,
        *,
        stdin: bytes = b"",
        seconds: float,
        on_output: Callable[[str], None] | None = None,
    ) -> Finished:
        """Run one command to its end. `command` is a constant: whatever varies goes over `stdin`.

        Raises `DeviceError("connection_lost")`, also if it takes longer than `seconds`; a command that fails has a
        status. `on_output` gets what it prints line by line, fit to print.
        """
        pipe = self._pipe(command)
        try:
            return collect(pipe, stdin, seconds, on_output)
        except Failure as failure:
            raise DeviceError(failure.kind, f"{self._where}: {failure.message}") from None
        finally:
            pipe.close()

    def converse(self, command: LiteralString) -> tuple[SshChannel, Callable[[], None], Callable[[], str]]:
        """Start an agent by a constant command: the conversation with it, how to end it, what it left on its stderr."""
        channel = SshChannel(self._pipe(command))
        return channel, channel.close, channel.last_words

    def enter(self, hop: Hop, known_hosts: Path | None) -> None:
        """One host further: connect to it, check its key, log in."""
        own = [known_hosts] if known_hosts else []
        known = trusted_keys.read([*own, *hop.known_hosts])
        key = self.greet(hop, known)
        for complaint in known.complaints:
            _warn_once(complaint)
        self._check(hop, key, known)
        self._log_in(hop)
        self._where = str(hop)

    def greet(self, hop: Hop, known: KnownHosts) -> HostKey:
        """The key of the next host, proven to be its own; the connection is encrypted from now on."""
        wire = Wire(self._reach(hop))
        self._wires.append(wire)
        transport = paramiko.Transport(wire, disabled_algorithms=_WEAK)
        self._transports.append(transport)
        transport.banner_timeout = transport.handshake_timeout = self._deadlines.banner
        transport.channel_timeout = self._deadlines.channel
        options = transport.get_security_options()
        first = [a for kind in known.kinds(hop.names) for a in (_RSA if kind == "ssh-rsa" else (kind,))]
        first = [a for a in first if a in options.key_types]
        options.key_types = [*first, *(a for a in options.key_types if a not in first)]
        try:
            transport.start_client(timeout=2 * self._deadlines.banner)
            key = transport.get_remote_server_key()
        except paramiko.IncompatiblePeer as error:
            raise DeviceError(
                "version_mismatch",
                f"{hop} speaks SSH, but no encryption that is still safe ({_words(error)}); update its SSH server",
            ) from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            why = wire.verdict or _words(error)
            raise DeviceError(
                "connection_lost", f"{hop} was reached, but there was no SSH handshake: {why}. Is it an SSH server?"
            ) from None
        return host_key(key.get_name(), key.asbytes())

    def watch(self) -> None:
        """Begin to ask for signs of life; without any the connection is given up."""
        for wire in self._wires:
            wire.watch(self._deadlines.silence)
        # One thread for all hops: the question goes through all of them, and so does the answer.
        self._pulse = threading.Thread(target=self._ask, args=(self._transports[-1],), name="ssh-pulse", daemon=True)
        self._pulse.start()

    def _ask(self, transport: paramiko.Transport) -> None:
        while not self._over.wait(self._deadlines.pulse) and transport.is_active():
            # Waits for the answer; that a dead peer gives none is seen by the wire, which then ends the transport.
            with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
                transport.global_request(_PULSE, wait=True)

    def _reach(self, hop: Hop) -> Stream:
        seconds = self._deadlines.connect
        if self._transports:
            try:
                stream: Stream = self._transports[-1].open_channel(
                    "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=seconds
                )
            except paramiko.ChannelException as error:
                if error.code == _FORBIDDEN_CHANNEL:
                    text = f"{self._where} does not let connections through (AllowTcpForwarding in its sshd_config)"
                    raise DeviceError("auth_failed", text) from None
                raise DeviceError(
                    "connection_lost", f"{self._where} cannot reach {hop}: {_words(error)}; is it switched on?"
                ) from None
            except (paramiko.SSHException, OSError, EOFError) as error:
                raise DeviceError(
                    "connection_lost", f"no way to {hop} through {self._where}: {_words(error)}"
                ) from None
            return stream
        try:
            return dial(hop.host, hop.port, seconds)
        except socket.gaierror:
            text = f"no machine is called '{hop.host}' here; is the board switched on and in this network?"
            raise DeviceError("connection_lost", text) from None
        except TimeoutError:
            text = f"{hop.host} does not answer (port {hop.port}, {seconds:.0f} s); is the board switched on?"
            raise DeviceError("connection_lost", text) from None
        except ConnectionRefusedError:
            text = f"{hop.host} answers, but no SSH server listens on its port {hop.port}; is it still starting?"
            raise DeviceError("connection_lost", text) from None
        except OSError as error:
            raise DeviceError("connection_lost", f"{hop.host} cannot be reached: {_words(error)}") from None

    def _check(self, hop: Hop, key: HostKey, known: KnownHosts) -> None:
        """Go no further unless this is the host's known key. Nothing but the handshake has been sent so far."""
        verdict = known.judge(hop.names, key)
        places = ", ".join(dict.fromkeys(entry.where for entry in verdict.entries))
        typed = self._target.destination
        if self._target.port and "://" not in typed:
            typed = f"ssh://{typed}:{self._target.port}"
        if verdict.state == "revoked":
            raise DeviceError(
                "host_key_mismatch",
                f"{hop} has the host key {key}, which is marked @revoked in {places}: it must not be trusted any more. "
                "Nothing was sent to it. Give the board a new host key (ssh-keygen -A), or remove that line.",
            )
        if verdict.state == "changed":
            raise DeviceError(
                "host_key_mismatch",
                f"{hop} is not the machine it was: its host key was {_keys(verdict.entries)} ({places}), now it has "
                f"{key}. Nothing was sent to it. If the board was set up anew, let the old key be forgotten and add it "
                "again: rlprune-edge device remove NAME --local-only, for a key in ~/.ssh/known_hosts also "
                f"ssh-keygen -R '{hop.names[0]}', then rlprune-edge device add NAME --host {typed}. Otherwise "
                "somebody may be listening in.",
            )
        if verdict.state == "unknown":
            authority = ""
            if verdict.authorities:
                where = ", ".join(entry.where for entry in verdict.authorities)
                authority = f" {where} trusts a certificate authority for it, which is not supported."
            raise DeviceError(
                "host_key_unknown",
                f"{hop} is not known yet; it has the host key {key}.{authority} Nothing was sent to it. Compare the "
                "key with the board's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, typed there) and have it "
                f"remembered: rlprune-edge device add NAME --host {typed}. For a host on the way: ssh {hop.host}",
            )

    def _log_in(self, hop: Hop) -> None:
        transport, wire = self._transports[-1], self._wires[-1]
        try:
            log_in(transport, hop, seconds=self._deadlines.auth, batch=self._batch)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise DeviceError(
                "connection_lost", f"{hop} broke off while logging in: {wire.verdict or _words(error)}"
            ) from None

    def _pipe(self, command: LiteralString) -> _Pipe:
        if not self._transports:
            raise DeviceError("connection_lost", f"the connection to {self._where} was closed")
        transport, wire, seconds = self._transports[-1], self._wires[-1], self._deadlines.channel
        channel: paramiko.Channel | None = None
        timer = None
        try:
            channel = transport.open_session(timeout=seconds)
            # The wait for the answer has no time-out of its own; to close the channel is what ends it.
            timer = threading.Timer(seconds, channel.close)
            timer.daemon = True
            timer.start()
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            if channel is not None:
                channel.close()
            raise DeviceError(
                "connection_lost", f"{self._where} does not start a command: {wire.verdict or _words(error)}"
            ) from None
        finally:
            if timer:
                timer.cancel()
        return _Pipe(channel, transport, wire)


class _Pipe:
    """A `ssh_channel.Pipe`: one channel of paramiko's, whose exceptions end here."""

    def __init__(self, channel: paramiko.Channel, transport: paramiko.Transport, wire: Wire) -> None:
        self._channel, self._transport, self._wire = channel, transport, wire

    def read(self, seconds: float) -> bytes | None:
        self._channel.settimeout(seconds)
        try:
            data: bytes = self._channel.recv(256 * 1024)
        except TimeoutError:
            return None
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._lost(error) from None
        if not data and self._connection_ended():
            raise self._lost(self._transport.get_exception())
        return data

    def read_errors(self) -> bytes:
        found = b""
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            while self._channel.recv_stderr_ready() and (data := self._channel.recv_stderr(256 * 1024)):
                found += data
        return found

    def write(self, data: bytes, seconds: float) -> int:
        self._channel.settimeout(seconds)
        try:
            count: int = self._channel.send(data)
        except TimeoutError:
            return 0
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._lost(error) from None
        if not count:
            raise self._lost(None)
        return count

    def writable(self) -> bool:
        return bool(self._channel.send_ready())

    def finish(self) -> None:
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            self._channel.shutdown_write()

    def status(self, seconds: float) -> int | None:
        if not self._channel.status_event.wait(seconds):
            return None
        status: int = self._channel.exit_status
        return None if status == -1 and not self._transport.is_active() else status

    def close(self) -> None:
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            self._channel.close()

    def _lost(self, error: BaseException | None) -> Failure:
        if self._connection_ended():
            return Failure("connection_lost", f"the connection broke: {self._wire.verdict or _words(error)}")
        return Failure("connection_lost", "the other side is gone")

    def _connection_ended(self) -> bool:
        """Whether a channel that closed did so because there is no connection any more.

        With an end of output the board closed it. Without one it may have been either; and a connection that ends
        closes its channels a moment before its thread is done.
        """
        if not self._channel.eof_received:
            self._transport.join(1.0)
        return not self._transport.is_alive()


def _read_config(path: Path, host: str) -> Settings:
    """For a host without OpenSSH: what paramiko makes of a configuration file. Raises `UserError`."""
    try:
        found = paramiko.SSHConfig.from_path(str(path)).lookup(host)
    except (paramiko.ConfigParseError, paramiko.CouldNotCanonicalize, OSError) as error:
        raise UserError(f"{path} cannot be read as an ssh configuration: {_words(error)}") from None
    return {name: value if isinstance(value, list) else [value] for name, value in found.items()}


@functools.cache
def _warn_once(text: str) -> None:
    """A line that is bad today is still bad at the next reconnect; once is enough."""
    log.warning("%s", text)


def _keys(entries: Iterable[Entry]) -> str:
    return ", ".join(dict.fromkeys(str(entry.key) for entry in entries))


def _words(error: BaseException | None) -> str:
    """What an exception says, in one printable line; what the other side wrote may be part of it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if error is None or isinstance(error, EOFError):
        return "the other side closed the connection"
    return printable(str(error) or type(error).__name__).replace("\n", " ")[:500]
