"""The kinds of device we know: one TOML file each, in `device_profiles/`, loaded and checked.

Looked for inside the installed package first, then in the root of a checkout (editable installs).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlprune_edge.errors import UserError
from rlprune_edge.measurements import Ceiling

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""ONNX Runtime's execution providers by the names we give them"""

FAMILIES = ("this machine", "Raspberry Pi", "NVIDIA Jetson", "other")
"""in the order in which they are listed"""

_CEILING = ("cpu.peak_gflops", "memory.bandwidth_gb_s")
_CACHE_BYTES_MOST = 16e6
"""no processor of these boards has more last-level cache; what fits it need not come from memory at every run"""

_FOLDER = "device_profiles"
_BLOCKLIST = "blocklist.toml"

M = TypeVar("M", bound=BaseModel)
Names = Annotated[tuple[str, ...], Field(strict=False)]
Numbers = Annotated[tuple[int, ...], Field(strict=False)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Cpu(_Table):
    """The processor; figures are the most it can do, because they serve to recognise impossible latencies."""

    name: str
    cores: int = Field(ge=1)
    mhz: int | None = Field(default=None, ge=1)
    min_mhz: int | None = Field(default=None, ge=1)
    isa: Names = ()
    peak_gflops: float | None = Field(default=None, gt=0)


class Memory(_Table):
    """RAM of the models sold, in MB, and its bandwidth at most."""

    mb: Numbers
    bandwidth_gb_s: float | None = Field(default=None, gt=0)


class Software(_Table):
    """One operating system that fits, its Python, and the newest ONNX Runtime there is for it ("": no end known)."""

    os: str
    python: str = Field(pattern=r"^3\.\d+$")
    onnxruntime_newest: str = Field(default="", pattern=r"^(\d+\.\d+\.\d+)?$")


class Telemetry(_Table):
    """Which sensors to ask."""

    sources: Annotated[
        tuple[Literal["vcgencmd", "thermal", "cpufreq", "nvpmodel", "ina3221", "pmic"], ...], Field(strict=False)
    ] = ()


class Limits(_Table):
    """When a figure is refused: the gates' thresholds."""

    start_celsius: float | None = Field(default=None, gt=0, le=120)
    stop_celsius: float | None = Field(default=None, gt=0, le=120)
    throttle: bool = False
    undervoltage: bool = False
    max_clock_loss: float = Field(default=0.03, gt=0, lt=1)
    load_percent: float = Field(default=5.0, gt=0, le=100_000)
    memory_share: float = Field(default=0.6, gt=0, le=1)


class Profile(_Table):
    """One kind of device; `device_profiles/README.md` says what each key means."""

    format: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    family: Literal["this machine", "Raspberry Pi", "NVIDIA Jetson", "other"] = "other"
    source: Literal["board", "local", "emulated", "simulated"]
    threads: int = Field(ge=1, le=256)
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    channel_multiple: int = Field(default=1, ge=1)
    patience: float = Field(default=1.0, ge=1, le=1000)
    models: Names = ()
    notes: Names = ()
    unsure: Names = ()
    cpu: Cpu | None = None
    memory: Memory | None = None
    telemetry: Telemetry = Telemetry()
    limits: Limits = Limits()
    software: Annotated[tuple[Software, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _unsure_facts_exist(self) -> Profile:
        for name in self.unsure:
            if self.fact(name) is None:
                raise ValueError(f"'unsure' names '{name}', which this profile does not state")
        return self

    def fact(self, name: str) -> Any:
        """The value of a key by its full name, such as `memory.bandwidth_gb_s`; `None` where it is not stated."""
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part) if isinstance(value, BaseModel) and part in type(value).model_fields else None
        return value


def ceiling_of(profile: Profile) -> Ceiling | None:
    """What this kind of device can do at the very most on its processor; `None` where the profile does not say.

    A fact that nothing backs counts twice: a mistake in it must not condemn every model.
    """
    facts = [profile.fact(name) for name in _CEILING]
    if None in facts:
        return None
    flops, bandwidth = (
        1e9 * fact * (2 if name in profile.unsure else 1) for name, fact in zip(_CEILING, facts, strict=True)
    )
    return Ceiling(flops, bandwidth, _CACHE_BYTES_MOST)


class Blocked(_Table):
    """A version of a package that must not be installed on processors without a feature."""

    package: str
    version: str
    machine: str
    without_isa: str
    reason: str


class _Blocklist(_Table):
    format: Literal[1]
    blocked: Annotated[tuple[Blocked, ...], Field(strict=False)]


def _folder() -> Traversable:
    inside = files("rlprune_edge") / _FOLDER
    return inside if inside.is_dir() else Path(str(files("rlprune_edge"))).parent / _FOLDER


def parse(kind: type[M], text: str, where: str) -> M:
    """The TOML document `text` as a checked model; `where` begins the sentence of a `UserError` about it."""
    try:
        return kind.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(_keys_beside(kind, first["loc"]))
            raise UserError(f"{where}: unknown key '{key}'; the keys are {known}") from None
        if not key:
            raise UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
        raise UserError(f"{where}: key '{key}': {first['msg']}") from None


def _keys_beside(kind: type[BaseModel], place: Sequence[int | str]) -> Iterable[str]:
    """The keys that may stand where the last one of `place` does."""
    tables: dict[str, type[BaseModel]] = {
        "cpu": Cpu,
        "memory": Memory,
        "telemetry": Telemetry,
        "limits": Limits,
        "software": Software,
        "blocked": Blocked,
    }
    inside = tables[str(place[0])] if len(place) > 1 and str(place[0]) in tables else kind
    return inside.model_fields


def profiles() -> dict[str, Profile]:
    """All profiles that came with the product, by name: families in their order, names in the alphabet's."""
    found = (
        parse(Profile, entry.read_text(encoding="utf-8"), entry.name)
        for entry in _folder().iterdir()
        if entry.name.endswith(".toml") and entry.name != _BLOCKLIST
    )
    return {p.name: p for p in sorted(found, key=lambda p: (FAMILIES.index(p.family), p.name))}


def blocklist() -> tuple[Blocked, ...]:
    """Versions that must not be installed on some processors."""
    return parse(_Blocklist, (_folder() / _BLOCKLIST).read_text(encoding="utf-8"), _BLOCKLIST).blocked


def load_profile(name_or_path: str) -> Profile:
    """The profile of that name, or of that TOML file. Raises `UserError` for an unknown name or a wrong file."""
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        try:
            return parse(Profile, path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read the device profile {path}: {getattr(error, 'strerror', None) or error}"
            ) from None
    known = profiles()
    if name_or_path not in known:
        raise UserError(
            f"no device profile is called '{name_or_path}'; there are: {', '.join(known)} "
            "(or give the path of a .toml file)"
        )
    return known[name_or_path]
