"""Make a board ready to measure, and make it forget us. Each step has a deadline; repeating them all is harmless."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from rlprune_agent.protocol import printable
from rlprune_edge.device import wheels
from rlprune_edge.device.agent_zip import agent_zip
from rlprune_edge.device.profiles import Profile
from rlprune_edge.device.shell import Shell, Tell, Who, do
from rlprune_edge.errors import DeviceError, UserError

Service = Literal["system", "user", "none"]

PYTHON_LEAST = (3, 8)
DISK_BYTES = 700 * 10**6
"""free space that setting up needs: two virtual environments, the old one and the new one, and the wheels"""

_LOOK_SECONDS = 240.0  # a first import of onnxruntime from an SD card takes a minute
_PACKAGES_SECONDS = 2400.0
_AGENT_SECONDS = 180.0
_SERVICE_SECONDS = 240.0
_REMOVE_SECONDS = 240.0

_PYTHON_VERSION = re.compile(r"3\.\d{1,2}\Z")
_UNIT = "rlprune-edge-agent.service"
_USER_UNIT = "rlprune-edge-agent-user.service"


@dataclass(frozen=True)
class Wanted:
    """How a board is to be set up."""

    system: bool = False
    """as a system service with a user of its own, which needs root"""
    offline: bool = False
    """the wheels come from this machine instead of the board's network"""
    renew: bool = False
    """install the newest packages although others are there"""
    home: str | None = None
    """another folder on the board for all of it, e.g. on a larger disk"""


@dataclass(frozen=True)
class Installed:
    """What a board has after `setup`."""

    packages: dict[str, str]
    agent_sha256: str
    service: Service
    words: str
    """how the daemon is started, as a sentence"""


def units() -> Traversable:
    """The folder of systemd's files: in the installed package, else in a checkout."""
    inside = files("rlprune_edge") / "systemd"
    return inside if inside.is_dir() else Path(str(files("rlprune_edge"))).parent / "agents" / "systemd"


def look(shell: Shell, *, system: bool = False, home: str | None = None) -> dict[str, Any]:
    """All that a board says of itself before it has an agent; each value of the type it should have.

    `system` or `home` is where the agent is to be, if that is not the usual place: free disk is looked up there.
    """
    found = do(shell, "look", {"system": system, "home": home}, seconds=_LOOK_SECONDS)
    kinds: Mapping[str, tuple[type, ...]] = {
        "machine": (str,),
        "bits": (int,),
        "python": (str, type(None)),
        "python_version": (str,),
        "venv": (bool,),
        "ensurepip": (bool,),
        "libc": (str,),
        "user": (str,),
        "root": (bool,),
        "sudo": (bool,),
        "systemd_system": (bool,),
        "systemd_user": (bool,),
        "free_bytes": (int,),
        "features": (list,),
        "model": (str, type(None)),
        "l4t": (list,),
        "page_bytes": (int,),
        "governors": (list,),
        "throttled": (str, type(None)),
        "vcio": (bool, type(None)),
        "pressure": (bool,),
        "cgroup_memory": (bool,),
        "swaps": (list,),
        "clock_synchronized": (bool, type(None)),
        "rtc": (bool,),
        "packages": (dict,),
        "packages_broken": (str,),
        "agent": (str, type(None)),
        "unit": (str, type(None)),
        "home": (str,),
        "home_exists": (bool,),
    }
    for name, kind in kinds.items():
        value = found.get(name)
        texts = isinstance(value, list) and not all(isinstance(item, str) for item in value)
        if not isinstance(value, kind) or texts:
            raise DeviceError("version_mismatch", f"the board's answer about '{name}' does not make sense")
    if not _PYTHON_VERSION.match(found["python_version"]):  # it becomes part of a path in our cache
        raise DeviceError("version_mismatch", "the board's answer about 'python_version' does not make sense")
    return {name: _tame(found[name]) for name in kinds}


def _tame(value: Any) -> Any:
    """The value with nothing in it that could drive a terminal, and nothing endless."""
    if isinstance(value, str):
        return printable(value)[:2000]
    if isinstance(value, list):
        return [_tame(item) for item in value[:1000]]
    if isinstance(value, dict):
        return {_tame(str(key)): _tame(item) for key, item in list(value.items())[:100]}
    return value


def obstacles(board: Mapping[str, Any], *, offline: bool, packages: bool = True) -> list[str]:
    """Why such a board cannot be set up, each with what to do about it. `packages`: some will have to be installed."""
    found = []
    if board["bits"] != 64 or board["machine"] not in wheels.MACHINES:
        found.append(
            f"a 64-bit system is needed, this is {board['machine']} with {board['bits']}-bit programs: there is no "
            "onnxruntime for it. Install the 64-bit edition of its operating system"
        )
    if board["python"] is None:
        found.append(
            f"Python {'.'.join(map(str, PYTHON_LEAST))} or newer is needed, the board has {board['python_version']}. "
            "Install one beside it, e.g. with: sudo apt install python3.8 python3.8-venv"
        )
    elif not board["venv"]:
        found.append("Python's venv module is missing. Install it with: sudo apt install python3-venv")
    elif not board["ensurepip"] and not offline:
        found.append(
            "pip for virtual environments is missing. Install it with: sudo apt install python3-venv "
            "(or use --offline, which does without)"
        )
    if packages and board["free_bytes"] < DISK_BYTES:
        found.append(
            f"{DISK_BYTES / 1e6:.0f} MB of free disk are needed, there are {board['free_bytes'] / 1e6:.0f}. "
            "Make room, or choose another disk with --home"
        )
    return found


def setup(
    shell: Shell,
    profile: Profile,
    wanted: Wanted,
    *,
    cache_dir: Path,
    tell: Tell = lambda _: None,
    check_free: Callable[[], None] = lambda: None,
) -> Installed:
    """Bring everything the agent needs onto the board. What is there already and works stays as it is.

    A board that has the agent as a system service keeps it so.
    `check_free` is called before an agent is replaced and raises if somebody is measuring. Raises `UserError` with all
    that is in the way, `DeviceError` where a step fails.
    """
    tell("looking at the board")
    board = look(shell, system=wanted.system, home=None if wanted.system else wanted.home)
    system = wanted.system or board["unit"] == "system"
    what = printable(board["model"] or board["machine"])
    tell(f"{what}, Python {board['python_version']}, {board['free_bytes'] // 10**6} MB free")
    there = board["unit"] == "system" or (_fine(board) and not system)
    packages = wanted.renew or not there
    if in_the_way := obstacles(board, offline=wanted.offline, packages=packages):
        raise UserError("\n".join(in_the_way))
    if system and not (board["sudo"] and board["systemd_system"]):
        raise UserError(
            "a system service needs systemd and root: log in as root, or as a user who may use sudo without a "
            "password. Without --system, on a board that does not have one yet, the agent runs under your own login"
        )
    if board["agent"]:
        check_free()
    steps = _Steps(shell, board, wanted, agent_zip(cache_dir), cache_dir, tell)
    return steps.as_system(profile) if system else steps.as_login()


@dataclass(frozen=True)
class _Steps:
    shell: Shell
    board: Mapping[str, Any]
    wanted: Wanted
    agent: Path
    cache_dir: Path
    tell: Tell

    @property
    def _sha256(self) -> str:
        return self.agent.stem.removeprefix("agent-")

    def as_login(self) -> Installed:
        """Everything under the login's own home."""
        place = {"python": self.board["python"], "home": self.wanted.home}
        packages, installed = self._packages(place, "login", self.board["packages"])
        changed = self._agent(place, "login") or installed
        if self.board["systemd_user"]:
            unit = {"unit": _text(_USER_UNIT), "restart": changed}
            lingers = self._do("user-service", unit, _SERVICE_SECONDS).get("linger") is True
            still = (
                "from boot on" if lingers else "while you are logged in; for longer: sudo loginctl enable-linger $USER"
            )
            return Installed(packages, self._sha256, "user", f"your own systemd runs the agent ({still})")
        if changed:
            self._do("restart", place, _SERVICE_SECONDS)
        words = "the agent starts when a host asks for it, and ends when it has been idle for a while"
        return Installed(packages, self._sha256, "none", words)

    def as_system(self, profile: Profile) -> Installed:
        """The daemon under a user of its own; under the login only the bridge that leads to it."""
        root: Who = "login" if self.board["root"] else "root"
        agent: Who = "agent, from root" if self.board["root"] else "agent"
        self._do("prepare-system", {"login": self.board["user"]}, _SERVICE_SECONDS, root)
        place = {"python": self.board["python"], "system": True}
        found = self._do("found", place, _LOOK_SECONDS, agent).get("packages")
        packages, _ = self._packages(place, agent, _tame(found) if isinstance(found, dict) else {})
        self._agent(place, agent)
        bridge = {"python": self.board["python"], "home": self.wanted.home}
        self._do("packages", bridge | {"packages": []}, _PACKAGES_SECONDS)
        self._agent(bridge, "login")
        # a daemon of the login's own would not know of the other's lease
        self._do("drop-user-service", bridge, _SERVICE_SECONDS)
        additions = {"jetson.conf": _text("jetson.conf")} if profile.family == "NVIDIA Jetson" else {}
        unit = {"unit": _text(_UNIT), "additions": additions, "restart": True}
        self._do("system-service", unit, _SERVICE_SECONDS, root)
        return Installed(packages, self._sha256, "system", "systemd runs the agent as the user rlprune, from boot on")

    def _packages(self, place: Mapping[str, Any], who: Who, there: Mapping[str, str]) -> tuple[dict[str, str], bool]:
        """Versions of the packages, and whether they had to be installed: those that are there and work stay."""
        if _fine({**self.board, "packages": there}) and not self.wanted.renew:
            self.tell(f"onnxruntime {there['onnxruntime']} is there already")
            return dict(there), False
        sent = wheels.fetch(self.board, self.cache_dir, renew=self.wanted.renew) if self.wanted.offline else []
        if sent:
            self.tell(f"sending {', '.join(path.name for path in sent)}")
        params = {**place, "packages": wheels.requirements(self.board["machine"], self.board["features"])}
        try:
            found = self._do("packages", params, _PACKAGES_SECONDS, who, sent).get("packages")
        except DeviceError as error:
            if self.wanted.offline:
                raise
            hint = "If the board cannot reach a package index: the same command with --offline sends them from here."
            raise DeviceError(error.kind, f"{error}\n{hint}") from error
        return (_tame(found) if isinstance(found, dict) else {}), True

    def _agent(self, place: Mapping[str, Any], who: Who) -> bool:
        """Send the agent; is it another than before?"""
        self.tell(f"sending the agent ({self._sha256[:12]})")
        return self._do("agent", place, _AGENT_SECONDS, who, [self.agent]).get("changed") is True

    def _do(
        self, action: str, params: Mapping[str, Any], seconds: float, who: Who = "login", sent: Sequence[Path] = ()
    ) -> dict[str, Any]:
        return do(self.shell, action, params, files_to_send=sent, who=who, seconds=seconds, tell=self.tell)


def _fine(board: Mapping[str, Any]) -> bool:
    """Are the packages there, importable, and not known to be bad on this processor?"""
    found = board["packages"]
    return set(wheels.PACKAGES) <= set(found) and not any(
        wheels.blocked(name, str(found[name]), machine=board["machine"], features=board["features"])
        for name in wheels.PACKAGES
    )


def _text(name: str) -> str:
    return (units() / name).read_text(encoding="utf-8")


def remove(shell: Shell, *, tell: Tell = lambda _: None) -> bool:
    """Delete all that setup made on the board; was there anything?"""
    tell("looking at the board")
    board = look(shell)
    if board["unit"] == "system":
        if not board["sudo"]:
            raise UserError(
                "the agent is a system service: log in as root to remove it, or allow sudo without a password"
            )
        tell("removing the system service and its user")
        root: Who = "login" if board["root"] else "root"
        do(shell, "remove-system", who=root, seconds=_REMOVE_SECONDS, tell=tell)
    tell(f"removing {board['home']}")
    return do(shell, "remove", seconds=_REMOVE_SECONDS, tell=tell).get("removed") is True
