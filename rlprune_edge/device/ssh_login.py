"""Log in with keys: those of the ssh-agent, then key files. Nothing is asked for in batch mode, nothing is kept.

The second home of paramiko; how the connection itself fails is for `ssh` to tell, what fails here is `auth_failed`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import getpass
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.agent import AgentKey, AgentSSH
from paramiko.pkey import UnknownKeyType

from rlprune_agent.protocol import printable
from rlprune_edge.device.ssh_config import DEFAULT_PORT, Hop
from rlprune_edge.errors import DeviceError

_AGENT_SECONDS = 5.0
_UNREADABLE = (OSError, ValueError, TypeError, UnknownKeyType, paramiko.SSHException)
"""what loading a key file raises; a TypeError means a passphrase that is missing"""


def log_in(transport: paramiko.Transport, hop: Hop, *, seconds: float, batch: bool) -> None:
    """Log in to `hop`, whose key has been checked, in at most `seconds` (without the user's own).

    Raises `DeviceError("auth_failed")` with the keys that were tried; what paramiko raises for a broken connection
    passes through.
    """
    login = _Login(transport, hop, seconds)
    with contextlib.closing(_Agent(hop.agent, seconds)) as agent:
        login.perform(_keys(hop, agent, batch))


@dataclass(frozen=True)
class _Key:
    """A key to log in with, or why it cannot be used."""

    label: str
    key: paramiko.PKey | None
    trouble: str = ""


class _Agent(AgentSSH):  # type: ignore[misc] # paramiko has no types
    """The ssh-agent at a socket of our choice, with an end to every wait; paramiko's own has neither."""

    def __init__(self, path: str | None, seconds: float) -> None:
        super().__init__()
        self.trouble = ""
        if path is None:
            return
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(min(seconds, _AGENT_SECONDS))
        try:
            connection.connect(path)
            self._connect(connection)
            connection.settimeout(seconds)  # to sign, it may have to ask a person
        except (OSError, paramiko.SSHException) as error:
            connection.close()
            self.trouble = f"{path} does not answer: {error}"

    def close(self) -> None:
        self._close()


class _Login:
    def __init__(self, transport: paramiko.Transport, hop: Hop, seconds: float) -> None:
        self._transport, self._hop = transport, hop
        self._left = self._seconds = seconds
        self._tried: list[str] = []
        self._unusable: list[str] = []

    def perform(self, keys: Iterator[_Key]) -> None:
        allowed = self._without_key()
        if allowed is None:
            return
        if "publickey" not in allowed:
            raise self._refused(f"{self._hop} accepts no keys, only: {', '.join(allowed)}. Keys are needed here")
        for key in keys:
            if key.key is None:
                self._unusable.append(f"{key.label} ({key.trouble})")
            elif self._with_key(key):
                return
        found = "accepts none of the keys" if self._tried else "cannot be logged in to: there is no key to try"
        raise self._refused(f"{self._hop} {found}{self._keys_so_far()}. It accepts: {', '.join(allowed)}")

    def _without_key(self) -> list[str] | None:
        """The ways in, `None` if there is no need for one; servers tell when asked for nothing."""
        try:
            return self._attempt(lambda: self._transport.auth_none(self._hop.user)) or None
        except paramiko.BadAuthenticationType as error:
            return [printable(str(name)) for name in error.allowed_types]

    def _with_key(self, key: _Key) -> bool:
        """Whether this key opened the door."""
        self._tried.append(key.label)
        try:
            further = self._attempt(lambda: self._transport.auth_publickey(self._hop.user, key.key))
        except paramiko.AuthenticationException as error:
            if self._transport.is_active():
                return False
            if len(self._tried) == 1:
                raise
            raise DeviceError(
                "auth_failed",
                f"{self._hop} hung up after {len(self._tried)} keys ({error}){self._keys_so_far()}. Servers allow few "
                "attempts: name the one key to use with --identity FILE, or in ~/.ssh/config with IdentityFile and "
                "IdentitiesOnly yes",
            ) from None
        except paramiko.SSHException as error:
            if not isinstance(key.key, AgentKey):
                raise
            raise DeviceError("auth_failed", f"the ssh-agent did not sign with {key.label}: {error}") from None
        if further:
            raise self._refused(f"{self._hop} wants more than the key {key.label}: {', '.join(further)}")
        return True

    def _attempt(self, step: Callable[[], list[str]]) -> list[str]:
        self._transport.auth_timeout = max(self._left, 0.1)
        start = time.monotonic()
        try:
            return step()
        except paramiko.AuthenticationException:
            if time.monotonic() - start < self._transport.auth_timeout or not self._transport.is_active():
                raise
            raise TimeoutError(f"no answer within {self._seconds:.0f} s (does your ssh-agent wait for you?)") from None
        finally:
            self._left -= time.monotonic() - start

    def _keys_so_far(self) -> str:
        tried = f": tried {'; '.join(self._tried)}" if self._tried else ""
        return tried + (f"; not usable: {'; '.join(self._unusable)}" if self._unusable else "")

    def _refused(self, what: str) -> DeviceError:
        port = "" if self._hop.port == DEFAULT_PORT else f"-p {self._hop.port} "
        return DeviceError(
            "auth_failed",
            f"{what}. Put your key there (ssh-copy-id {port}{self._hop.user}@{self._hop.host}; ssh-keygen -t ed25519 "
            "makes one), or name another with --identity FILE",
        )


def _keys(hop: Hop, agent: _Agent, batch: bool) -> Iterator[_Key]:
    """The keys to try: those of the ssh-agent, the configured ones first, then the key files that it does not hold."""
    if agent.trouble:
        yield _Key("the ssh-agent", None, agent.trouble)
    halves = {path: _public_half(path) for path in hop.identities}
    held = list(agent.get_keys())
    configured = [key for key in held if key.asbytes() in halves.values()]
    for key in [*configured, *(k for k in held if not hop.identities_only and k not in configured)]:
        yield _Key(f"{printable(key.comment)} of the ssh-agent ({_short(key)})", key)
    blobs = {key.asbytes() for key in held}
    for path, half in halves.items():
        if half not in blobs and path.exists():
            yield _load(path, batch)


def _public_half(path: Path) -> bytes | None:
    """The public key beside a key file (or in it: an agent's keys are configured so), `None` where there is none."""
    for place in (path.with_name(path.name + ".pub"), path):
        try:
            words = place.read_text(encoding="utf-8").split(maxsplit=2)
            if len(words) > 1 and words[0].startswith(("ssh-", "ecdsa-", "sk-")):
                return base64.b64decode(words[1], validate=True)
        except (OSError, ValueError, binascii.Error):
            continue
    return None


def _load(path: Path, batch: bool) -> _Key:
    try:
        key = paramiko.PKey.from_path(path)
    except TypeError:
        return _unlock(path) if not batch else _Key(str(path), None, f"has a passphrase; type: ssh-add {path}")
    except _UNREADABLE as error:
        return _Key(str(path), None, f"cannot be read as a private key: {_first_line(error)}")
    return _Key(f"{path} ({_short(key)})", key)


def _unlock(path: Path) -> _Key:
    try:
        key = paramiko.PKey.from_path(path, password=getpass.getpass(f"Passphrase for {path}: ").encode())
    except (EOFError, *_UNREADABLE) as error:
        return _Key(str(path), None, f"the passphrase does not open it: {_first_line(error)}")
    return _Key(f"{path} ({_short(key)})", key)


def _short(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.fingerprint}"


def _first_line(error: BaseException) -> str:
    return printable(str(error) or type(error).__name__).split("\n")[0][:200]
