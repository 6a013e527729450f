"""The user's boards: one TOML file each in their configuration folder; and what a word given to `--device` means."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rlprune_edge import whole_file
from rlprune_edge.device.profiles import Profile, load_profile, parse, profiles
from rlprune_edge.errors import UserError
from rlprune_edge.places import config_dir

if TYPE_CHECKING:
    from rlprune_edge.device.fleet import Fleet
    from rlprune_edge.device.station import Station

_REMOTE = ("board", "emulated")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_HOST = re.compile(r"[^\s\x00-\x1f\x7f,;'\"`$\\-][^\s\x00-\x1f\x7f,;'\"`$\\]*\Z")


class Calibration(BaseModel):
    """What `device calibrate` found out about a board."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    threads: int = Field(ge=1)
    """the number of threads with the better p90"""
    clock_ns: float | None = Field(default=None, gt=0)
    """the agent's arithmetic loop at its fastest: how fast the processor really runs"""
    golden_ms: float = Field(gt=0)
    """latency of the golden model: a board on which it differs is not the board it was"""
    noise_floor: float = Field(ge=0)
    """the largest deviation from 1 among the ratios of a model to itself; nothing smaller is called a difference"""
    rounds: int = Field(ge=1)
    mode: str
    device_key: str
    """under which conditions this holds"""
    measured_at: str


class BoardFile(BaseModel):
    """One board of the user's, as its file has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    profile: str
    """name of a profile, or path of a TOML file"""
    host: str
    """what one would type after `ssh`: a name, USER@HOST, or an alias of ~/.ssh/config"""
    port: int | None = Field(default=None, ge=1, le=65535)
    identity: str | None = None
    ssh_config: str | None = None
    """in place of ~/.ssh/config"""
    home: str | None = None
    """another folder on the board than the usual one"""
    calibration: Calibration | None = None

    def calibration_for(self, threads: int) -> Calibration | None:
        """The calibration, if it was made with so many threads: with others its figures mean nothing."""
        return self.calibration if self.calibration and self.calibration.threads == threads else None


def known_hosts() -> Path:
    """Host keys of the user's boards."""
    return config_dir() / "known_hosts"


def file_of(name: str) -> Path:
    """Where the board of that name is remembered."""
    return config_dir() / "boards" / f"{name}.toml"


def check_new(name: str, board: BoardFile) -> Profile:
    """The profile of a board about to be added. Raises `UserError` for a name, host or profile that cannot be."""
    if not _NAME.match(name):
        raise UserError(
            f"'{name}' cannot be a board's name: use small letters, digits and '-', e.g. pi4 or pi4-kitchen"
        )
    known = profiles()
    if name in known and known[name].source not in _REMOTE:
        raise UserError(f"'{name}' is {known[name].title}; give the board another name")
    if file_of(name).exists():
        raise UserError(
            f"there is a board called '{name}' already. Remove it first (rlprune-edge device remove {name}), "
            "or choose another name"
        )
    if not _HOST.match(board.host):
        raise UserError(f"'{board.host}' is no host: give what you would type after ssh, e.g. pi@raspberrypi.local")
    profile = load_profile(board.profile)
    if profile.source not in _REMOTE:
        raise UserError(f"the profile '{profile.name}' is for {profile.title}, which needs not be added")
    if board.identity is not None and not Path(board.identity).expanduser().is_file():
        raise UserError(f"there is no key file {board.identity}")
    if board.home is not None and not board.home.startswith("/"):
        raise UserError(f"--home wants the whole path of a folder on the board, not '{board.home}'")
    return profile


def save(name: str, board: BoardFile) -> None:
    """Write a board's file, in place of an older one."""
    values = board.model_dump(exclude_none=True)
    calibration = values.pop("calibration", None)
    lines = _toml(values)
    if calibration:
        lines += ["", "[calibration]", *_toml(calibration)]
    path = file_of(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        whole_file.write_text(path, "\n".join(lines) + "\n", shared=True, private=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _toml(values: dict[str, object]) -> list[str]:
    # JSON's strings and numbers are TOML's, too, as long as nothing is escaped into surrogates.
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def forget(name: str) -> None:
    """Delete a board's file. Raises `UserError` if there is none."""
    load(name)
    file_of(name).unlink()


def load(name: str) -> BoardFile:
    """The board of that name. Raises `UserError` where there is none, or its file is wrong."""
    if not _NAME.match(name) or not file_of(name).is_file():
        raise UserError(_unknown(name))
    return _read(file_of(name))


def _read(path: Path) -> BoardFile:
    try:
        return parse(BoardFile, path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def names() -> list[str]:
    """All the user's boards, in alphabetical order."""
    return sorted(path.stem for path in (config_dir() / "boards").glob("*.toml") if _NAME.match(path.stem))


def _unknown(name: str) -> str:
    there = names()
    have = f"Your boards: {', '.join(there)}." if there else "You have added none so far."
    known = profiles()
    if name in known and known[name].source in _REMOTE:
        return (
            f"'{name}' is a kind of board ({known[name].title}), and none of yours is called that. {have}\n"
            f"Add it: {_how_to_add(name, name, known[name].family)}"
        )
    return (
        f"no board is called '{name}'. {have}\n"
        f"Add it, e.g.: {_how_to_add(name if _NAME.match(name) else 'pi4', 'pi4', 'Raspberry Pi')}\n"
        "(`rlprune-edge device list` shows the profiles; `local` is this machine)"
    )


def _how_to_add(name: str, profile: str, family: str) -> str:
    host = "pi@raspberrypi.local" if family == "Raspberry Pi" else "USER@HOST"
    return f"rlprune-edge device add {name} --profile {profile} --host {host}"


def split(words: str) -> list[str]:
    """`pi4-a,pi4-b` as two words. Raises `UserError` where one is missing or there twice."""
    devices = [word.strip() for word in words.split(",")]
    if "" in devices or len(set(devices)) < len(devices):
        raise UserError(f"--device {words}: give each device once, e.g. pi4-a,pi4-b")
    return devices


def check_device(device: str) -> None:
    """Raises `UserError` for something given to `--device` that means nothing; contacts nobody."""
    for word in split(device):
        _meaning(word)


def noise_floor_of(device: str, *, threads: int, provider: str) -> float | None:
    """The noise floor of a word given to `--device`, `None` where it was not calibrated so. Raises `UserError`."""
    board = _meaning(device)[0]
    calibration = board.calibration_for(threads) if board and provider == "cpu" else None
    return calibration.noise_floor if calibration else None


def _meaning(device: str) -> tuple[BoardFile | None, Profile]:
    """A board of the user's with its profile, or the profile of this machine."""
    if device.endswith(".toml"):
        path = Path(device)
        try:
            is_board = re.search(r"^host\s*=", path.read_text(encoding="utf-8"), re.MULTILINE) is not None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
        if is_board:
            board = _read(path)
            return board, load_profile(board.profile)
        profile = load_profile(device)
        if profile.source in _REMOTE:
            raise UserError(
                f"{device} describes a kind of board but does not say where one is. Add one of that kind: "
                f"rlprune-edge device add {profile.name} --profile {device} --host USER@HOST"
            )
        return None, profile
    if device in names():
        board = load(device)
        return board, load_profile(board.profile)
    known = profiles()
    if device in known and known[device].source not in _REMOTE:
        return None, known[device]
    raise UserError(_unknown(device))


def load_devices(device: str, *, cache_dir: Path, threads: int | None = None, **settings: Any) -> Station | Fleet:
    """What `--device` measures on: one device, or several boards of one kind; as `load_device`."""
    from rlprune_edge.device.fleet import Fleet

    stations = [load_device(word, cache_dir=cache_dir, threads=threads, **settings) for word in split(device)]
    return stations[0] if len(stations) == 1 else Fleet(stations)


def load_device(device: str, *, cache_dir: Path, threads: int | None = None, **settings: Any) -> Station:
    """What a word given to `--device` measures on: `local`, a board of the user's, or a TOML file that describes one.

    Nothing is contacted before it is used; `settings` are those of `Station`. Raises `UserError` for a word that means
    nothing, saying how to add a board.
    """
    # Here, so that `device list` and the like do not wait for the SSH library.
    from rlprune_edge.device.board import Board
    from rlprune_edge.device.local import LocalDevice

    board, profile = _meaning(device)
    if board is None:
        return LocalDevice(profile, cache_dir=cache_dir, threads=threads, **settings)
    return Board(Path(device).stem, board, profile, cache_dir=cache_dir, threads=threads, **settings)
