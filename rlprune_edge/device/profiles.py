"""The boards we know: one TOML file each, in `device_profiles/`, loaded and checked.

Looked for inside the installed package first, then in the root of a checkout (editable installs).
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlprune_edge.errors import UserError

_FOLDER = "device_profiles"


class Profile(BaseModel):
    """One kind of device; `device_profiles/README.md` says what each key means."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    source: Literal["board", "local"]
    threads: int = Field(ge=1, le=256)
    provider: Literal["CPUExecutionProvider"] = "CPUExecutionProvider"


def _folder() -> Traversable:
    inside = files("rlprune_edge") / _FOLDER
    return inside if inside.is_dir() else Path(str(files("rlprune_edge"))).parent / _FOLDER


def _parse(text: str, where: str) -> Profile:
    try:
        return Profile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(Profile.model_fields)
            raise UserError(f"{where}: unknown key '{key}'; the keys are {known}") from None
        raise UserError(f"{where}: key '{key}': {first['msg']}") from None


def profiles() -> dict[str, Profile]:
    """All profiles that came with the product, by name, in alphabetical order."""
    found = (
        _parse(entry.read_text(encoding="utf-8"), entry.name)
        for entry in _folder().iterdir()
        if entry.name.endswith(".toml")
    )
    return {profile.name: profile for profile in sorted(found, key=lambda p: p.name)}


def load_profile(name_or_path: str) -> Profile:
    """The profile of that name, or of that TOML file. Raises `UserError` for an unknown name or a wrong file."""
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        try:
            return _parse(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise UserError(f"cannot read the device profile {path}: {error.strerror}") from None
    known = profiles()
    if name_or_path not in known:
        raise UserError(
            f"no device profile is called '{name_or_path}'; there are: {', '.join(known)} "
            "(or give the path of a .toml file)"
        )
    return known[name_or_path]
