"""Host keys that are trusted: files in OpenSSH's known_hosts format, read line by line and changed atomically.

A reader of our own, because paramiko's gives up the whole file at the first marked line and knows no wildcards. A bad
line costs a warning and nothing else. What a line can say:

    [@revoked|@cert-authority] hosts keytype base64 [comment]

where hosts are names, `[name]:port`, patterns with `*` and `?`, `!negated` ones, separated by commas, or one hashed
name `|1|salt|hash`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlprune_agent.protocol import printable
from rlprune_edge import whole_file
from rlprune_edge.errors import UserError

log = logging.getLogger(__name__)

State = Literal["known", "unknown", "changed", "revoked"]

_MARKERS = ("@revoked", "@cert-authority")
_SALT_BYTES = 20


@dataclass(frozen=True)
class HostKey:
    """The public key of a host: its type, `SHA256:...`, and `line`, the `type base64` that known_hosts holds."""

    kind: str
    fingerprint: str
    line: str

    def __str__(self) -> str:
        return f"{self.kind} {self.fingerprint}"


def host_key(kind: str, blob: bytes) -> HostKey:
    """The key with that binary form."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return HostKey(kind, f"SHA256:{digest}", f"{kind} {base64.b64encode(blob).decode()}")


@dataclass(frozen=True)
class Entry:
    """One line that could be read. `where` is the file with the number of the line."""

    marker: str
    hosts: str
    key: HostKey
    where: str

    def names(self, name: str) -> bool:
        """Whether the line speaks of that host."""
        return _matches(self.hosts, name)


@dataclass(frozen=True)
class Verdict:
    """What the files say of a key: `entries` are the lines that decided it (the expected keys, if it has changed)."""

    state: State
    entries: tuple[Entry, ...] = ()
    authorities: tuple[Entry, ...] = ()
    """lines that trust a certificate authority for this host, which is not supported"""


@dataclass
class KnownHosts:
    """All lines of some files, in order."""

    entries: list[Entry] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """one sentence for each line that could not be read"""

    def kinds(self, names: Sequence[str]) -> list[str]:
        """Types of the keys this host is known by: what to ask it for, since a host has one key of each type."""
        return list(dict.fromkeys(e.key.kind for e in self._of(names) if not e.marker))

    def judge(self, names: Sequence[str], key: HostKey) -> Verdict:
        """Whether `key` is the host's. `names` from the most exact on: a later one counts if the earlier are unknown.

        A revoked key is refused wherever the line is; otherwise one line that agrees is enough, as in OpenSSH.
        """
        revoked = [e for e in self.entries if e.marker == "@revoked" and e.key.line == key.line]
        revoked = [e for e in revoked if any(e.names(name) for name in names)]
        if revoked:
            return Verdict("revoked", tuple(revoked))
        about = self._of(names)
        authorities = tuple(e for e in about if e.marker == "@cert-authority")
        plain = [e for e in about if not e.marker]
        same = tuple(e for e in plain if e.key.line == key.line)
        if same:
            return Verdict("known", same)
        exact = tuple(e for e in plain if e.names(names[0]))
        return Verdict("changed" if exact else "unknown", exact, authorities)

    def _of(self, names: Sequence[str]) -> list[Entry]:
        for name in names:
            found = [e for e in self.entries if e.names(name)]
            if any(not e.marker for e in found):
                return found
        return [e for e in self.entries if any(e.names(name) for name in names)]


def read(paths: Sequence[Path]) -> KnownHosts:
    """All entries of those files; a file that is not there has none, one that cannot be read has a complaint."""
    known = KnownHosts()
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            known.complaints.append(f"{path} cannot be read ({error.strerror}): its host keys are not trusted")
            continue
        for number, line in enumerate(text.splitlines(), 1):
            _read_line(known, line, f"{path}:{number}")
    return known


def remember(path: Path, names: Sequence[str], key: HostKey) -> None:
    """Trust `key`, and no other, for those names: older lines for them go, marked ones stay. Names are hashed.

    Raises `UserError` if the file cannot be written.
    """
    lines = [line for line in _lines(path) if not _is_plainly_about(line, names)]
    lines += [f"{_hashed(name)} {key.line}" for name in names]
    _write(path, lines)


def forget(path: Path, names: Sequence[str]) -> int:
    """Remove the lines for those names (not patterns that happen to match, nor marked ones); how many there were.

    Raises `UserError` if the file cannot be written.
    """
    before = _lines(path)
    after = [line for line in before if not _is_plainly_about(line, names)]
    if len(after) != len(before):
        _write(path, after)
    return len(before) - len(after)


def _read_line(known: KnownHosts, line: str, where: str) -> None:
    words = line.split()
    if not words or words[0].startswith("#"):
        return
    marker = words.pop(0) if words[0].startswith("@") else ""
    try:
        if marker and marker not in _MARKERS:
            raise ValueError(f"unknown marker {marker}")
        if len(words) < 3:
            raise ValueError("expected 'hosts keytype key'")
        hosts, kind, text = words[:3]
        if hosts.startswith("|"):
            _salt_and_hash(hosts)
        known.entries.append(Entry(marker, hosts, host_key(kind, _blob(kind, text)), where))
    except ValueError as error:
        known.complaints.append(f"{where} is not a line of a known_hosts file and is ignored: {printable(str(error))}")


def _blob(kind: str, text: str) -> bytes:
    """The key's binary form, which begins with its own type. Raises `ValueError`."""
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("the key is not base64") from None
    head = len(kind).to_bytes(4, "big") + kind.encode("utf-8", "replace")
    if not blob.startswith(head) or len(blob) == len(head):
        raise ValueError(f"the key is not of the type {kind}")
    return blob


def _salt_and_hash(hosts: str) -> tuple[bytes, bytes]:
    parts = hosts.split("|")
    if len(parts) != 4 or parts[:2] != ["", "1"]:
        raise ValueError("unknown way of hashing the name")
    try:
        return base64.b64decode(parts[2], validate=True), base64.b64decode(parts[3], validate=True)
    except binascii.Error:
        raise ValueError("the hashed name is not base64") from None


def _digest(salt: bytes, name: str) -> bytes:
    # The format's choice. It only hides names from a casual reader; no trust rests on it.
    return hmac.new(salt, name.encode(), hashlib.sha1).digest()


def _hashed(name: str) -> str:
    salt = os.urandom(_SALT_BYTES)
    parts = (base64.b64encode(part).decode() for part in (salt, _digest(salt, name.lower())))
    return "|1|" + "|".join(parts)


def _matches(hosts: str, name: str) -> bool:
    name = name.lower()
    if hosts.startswith("|"):
        try:
            salt, digest = _salt_and_hash(hosts)
        except ValueError:
            return False
        return hmac.compare_digest(_digest(salt, name), digest)
    found = False
    for pattern in hosts.lower().split(","):
        if _pattern(pattern.removeprefix("!")).fullmatch(name):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _pattern(text: str) -> re.Pattern[str]:
    # Not fnmatch: it gives brackets a meaning, and here they belong to [name]:port.
    return re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in text))


def _is_plainly_about(line: str, names: Sequence[str]) -> bool:
    hosts = (line.split() or [""])[0]
    if hosts.startswith("|"):
        return any(_matches(hosts, name) for name in names)
    return hosts.lower() in [name.lower() for name in names]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _write(path: Path, lines: Sequence[str]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            whole_file.replacing(path, shared=True, private=True) as part,
            part.open("w", encoding="utf-8", errors="surrogateescape") as file,
        ):
            file.writelines(line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
