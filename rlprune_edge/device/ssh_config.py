"""Where `ssh DEST` would go: the user's own ssh configuration, as OpenSSH itself resolves it.

`ssh -G` knows Include, Match, aliases and defaults better than any copy of its rules could. Without OpenSSH on this
machine a simpler reader has to do, which is handed in (`fallback`).
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlprune_agent.protocol import printable
from rlprune_edge.errors import UserError

log = logging.getLogger(__name__)

Settings = Mapping[str, Sequence[str]]
"""lower-case keyword -> its values; one value for most, several for `identityfile`"""
Fallback = Callable[[Path, str], Settings]
"""reads a configuration file for a host without OpenSSH"""

DEFAULT_PORT = 22

_RESOLVE_SECONDS = 10.0
_JUMPS_MAX = 8
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_URI = re.compile(r"ssh://(?:(?P<user>[^@/]+)@)?(?P<host>\[[^]]+\]|[^:/@]+)(?::(?P<port>\d+))?/?")
_PLACE = re.compile(r"(?:(?P<user>[^@]+)@)?(?P<host>\[[^]]+\]|[^:@]+)(?::(?P<port>\d+))?")


@dataclass(frozen=True)
class SshTarget:
    """What the user typed: an alias, `user@host` or `ssh://user@host:port`; `config` in place of ~/.ssh/config."""

    destination: str
    port: int | None = None
    identity: Path | None = None
    config: Path | None = None


@dataclass(frozen=True)
class Hop:
    """One machine on the way, with everything needed to log in to it."""

    host: str
    port: int
    user: str
    identities: tuple[Path, ...]
    identities_only: bool
    agent: str | None
    """the ssh-agent's socket"""
    alias: str | None
    known_hosts: tuple[Path, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Under what its key is looked up and remembered (the first), from the most exact on."""
        if self.alias:
            return (self.alias.lower(),)
        host = self.host.lower()
        return (host,) if self.port == DEFAULT_PORT else (f"[{host}]:{self.port}", host)

    def __str__(self) -> str:
        where = f"{self.user}@{self.host}"
        return where if self.port == DEFAULT_PORT else f"{where}, port {self.port}"


def resolve(target: SshTarget, *, fallback: Fallback, openssh: str | None = "ssh") -> list[Hop]:
    """The hops to the target, the target last: what OpenSSH would do with the same words.

    `openssh` is the program to ask, `None` for none. Raises `UserError` if there is no such configuration, or one we
    cannot follow.
    """
    if target.identity and not target.identity.expanduser().is_file():
        raise UserError(f"there is no key file {target.identity}")
    return _hops(target, None, fallback, shutil.which(openssh) if openssh else None, ())


def _hops(
    target: SshTarget, via: str | None, fallback: Fallback, program: str | None, seen: tuple[str, ...]
) -> list[Hop]:
    """`via`: jumps that stand in place of the configured ones, as in `ssh -J`."""
    if target.destination in seen or len(seen) >= _JUMPS_MAX:
        raise UserError(f"the ssh configuration jumps in a circle: {' -> '.join((*seen, target.destination))}")
    settings = _ask_openssh(program, target) if program else _read_simply(target, fallback)
    hop = _hop(settings, target)
    jump = via or _one(settings, "proxyjump")
    if jump is None:
        return [hop]
    *before, last = [word.strip() for word in jump.split(",")]
    place = _place(last)
    # A jump over a,b reaches b through a; what is configured for b counts, but for the way to it.
    inner = SshTarget(place.destination, place.port, None, target.config)
    way = _hops(inner, ",".join(before) or None, fallback, program, (*seen, target.destination))
    return [*way, hop]


def _place(text: str) -> SshTarget:
    found = _URI.fullmatch(text) or _PLACE.fullmatch(text)
    if not found:
        raise UserError(f"cannot make sense of the jump host '{printable(text)}' in the ssh configuration")
    host = found["host"].strip("[]")
    return SshTarget(
        f"{found['user']}@{host}" if found["user"] else host, int(found["port"]) if found["port"] else None
    )


def _ask_openssh(program: str, target: SshTarget) -> Settings:
    _check(target.destination)
    words = [program, "-G"]
    if target.config:
        words += ["-F", str(target.config.expanduser())]
    if target.port is not None:
        words += ["-p", str(target.port)]
    try:
        done = subprocess.run(
            [*words, "--", target.destination],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_RESOLVE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"'ssh -G {target.destination}' did not answer within {_RESOLVE_SECONDS:.0f} s; "
            "look for a slow 'Match exec' in your ssh configuration"
        ) from None
    if done.returncode:
        said = printable(done.stderr).strip()[-500:]
        raise UserError(f"'ssh -G {target.destination}' refuses the ssh configuration or the name: {said}")
    settings: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        settings.setdefault(keyword.lower(), []).append(value)
    return settings


def _check(destination: str) -> None:
    """What OpenSSH would take for an option, or could not be a name, never reaches it."""
    if not destination or destination.startswith("-") or not destination.isprintable() or " " in destination:
        raise UserError(f"'{printable(destination)}' is not a host: expected an ssh alias, user@host or ssh://...")


def _read_simply(target: SshTarget, fallback: Fallback) -> Settings:
    _check(target.destination)
    uri = _URI.fullmatch(target.destination)
    user, _, host = target.destination.rpartition("@")
    if uri:
        user, host = uri["user"] or "", uri["host"].strip("[]")
    path = (target.config or Path("~/.ssh/config")).expanduser()
    settings = {}
    if path.is_file():
        settings = {name.lower(): list(values) for name, values in fallback(path, host).items()}
        if re.search(r"^\s*include\b", path.read_text(errors="replace"), re.IGNORECASE | re.MULTILINE):
            log.warning(
                "OpenSSH's 'ssh' was not found, so what %s pulls in with Include is not used; install openssh-client",
                path,
            )
    port = target.port or (uri and uri["port"])
    settings.update({name: [str(value)] for name, value in {"user": user, "port": port}.items() if value})
    settings.setdefault("hostname", [host])
    settings.setdefault("user", [getpass.getuser()])
    settings.setdefault("identityfile", [f"~/.ssh/{name}" for name in _DEFAULT_KEYS])
    settings.setdefault("userknownhostsfile", ["~/.ssh/known_hosts"])
    settings.setdefault("globalknownhostsfile", ["/etc/ssh/ssh_known_hosts"])
    return settings


def _one(settings: Settings, keyword: str) -> str | None:
    values = settings.get(keyword)
    return values[0] if values and values[0].lower() != "none" else None


def _hop(settings: Settings, target: SshTarget) -> Hop:
    if _one(settings, "proxycommand"):
        raise UserError(
            f"the ssh configuration reaches '{target.destination}' by a ProxyCommand, which is not supported; "
            "write 'ProxyJump HOST' in its place, or 'ProxyCommand none' where the host can be reached directly"
        )
    host = _one(settings, "hostname") or target.destination
    given, named = target.identity and target.identity.expanduser(), settings.get("identityfile", ())
    files = [w for name in ("userknownhostsfile", "globalknownhostsfile") for w in _paths(_one(settings, name))]
    return Hop(
        host=host,
        port=int(_one(settings, "port") or DEFAULT_PORT),
        user=_one(settings, "user") or getpass.getuser(),
        identities=(given,) if given else tuple(_expanded(value, host) for value in named if value != "none"),
        # A key that was named with the target is the only one, so that no other uses up the server's few attempts.
        identities_only=bool(given) or (_one(settings, "identitiesonly") or "no").lower() in ("yes", "true"),
        agent=_agent(settings, host),
        alias=_one(settings, "hostkeyalias"),
        known_hosts=tuple(Path(word).expanduser() for word in files),
    )


def _agent(settings: Settings, host: str) -> str | None:
    value = _one(settings, "identityagent") if "identityagent" in settings else "SSH_AUTH_SOCK"
    if value is None:
        return None
    if value == "SSH_AUTH_SOCK" or value.startswith("$"):
        return os.environ.get(value.strip("${}")) or None
    return str(_expanded(value, host))


def _paths(value: str | None) -> list[str]:
    """File names separated by blanks; `ssh -G` does not say which blank belongs to a name, the next `/` or `~` does."""
    return re.split(r"\s+(?=[/~])", value.strip()) if value else []


def _expanded(value: str, host: str) -> Path:
    """A file name without the `~`, %-tokens and environment variables that `ssh -G` leaves in it."""
    tokens = {"%%": "%", "%d": str(Path.home()), "%h": host, "%u": getpass.getuser()}
    text = re.sub(r"%.", lambda found: tokens.get(found[0], found[0]), value.strip('"'))
    text = re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], ""), text)
    return Path(text).expanduser()
