"""Everything that was asked for, checked once: flags over a TOML file over the defaults."""

from __future__ import annotations

import json
import math
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlprune_edge.errors import UserError
from rlprune_edge.records import Target

AGENTS = (
    "ppo",
    "ppo-cold",
    "dqn",
    "knapsack",
    "greedy",
    "evolution",
    "tpe",
    "gp",
    "random",
    "random-policy",
    "uniform",
)
FILE = "request.toml"


class Request(BaseModel):
    """One `compress` run. Field names are the flags' names with underscores, and the keys of `--config` files."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    task: str = "digits"
    model: str | None = None
    """name in the task's list, or package.module:factory"""
    weights: str | None = None
    data: str | None = None
    benchmark: str | None = None
    """a second labelled set (folder or hub id), reported before and after"""
    max_length: int | None = Field(None, ge=8)
    """tokens that a text is cut to"""
    sequence_length: int | None = Field(None, ge=3)
    """tokens of the text that is timed"""
    audio_seconds: float | None = Field(None, gt=0)
    """of the recording that is timed"""
    train_epochs: int | None = Field(None, ge=1)
    train_learning_rate: float | None = Field(None, gt=0)
    train_batch_size: int | None = Field(None, ge=1)
    train_warmup_steps: int | None = Field(None, ge=0)
    train_weight_decay: float | None = Field(None, ge=0)
    train_dropout: float | None = Field(None, ge=0, lt=1)
    device: str = "local"
    threads: int | None = Field(None, ge=1)
    provider: str | None = None
    strict: bool = False
    """a developer's machine is refused, too, for what disturbs it"""

    target_speedup: float | None = None
    target_latency_ms: float | None = None
    max_memory_mb: float | None = None
    max_drop: float | None = None

    agent: str = "ppo"
    prior: bool = True
    """what single cuts cost steers `ppo`"""
    demonstrations: bool = True
    """plans of a latency knapsack are tried first and shown to `ppo`"""
    surrogate: bool = True
    """`ppo` practises on predictions; without, every episode is evaluated"""
    neighbours: bool = False
    """plans next to the best ones are proposed beside `ppo`'s own"""
    masks: bool = False
    """impossible actions are hidden from `ppo`; without, they cost it a step"""
    profile: str | None = None
    """a board's latency table for this model, as `rlprune-edge profile` wrote it"""
    warm_start: str | None = None
    """a former run's folder, whose policy and figures the search begins with"""
    budget: int = 60
    device_seconds: float | None = Field(None, gt=0)
    seed: int = Field(0, ge=0)
    step: float = Field(0.10, gt=0, lt=1)
    importance: str | None = None
    """`taylor`, `fisher` or `magnitude`; `None`: fisher for transformers, else taylor"""
    calibration_examples: int = Field(256, ge=1)
    search_examples: int | None = Field(None, ge=1)
    search_mode: str = "reward"
    """how thoroughly candidates are timed"""

    finalists: int = Field(3, ge=1)
    ladder: int = Field(1, ge=1, le=10)
    """rungs: how often is cut and fine-tuned on the way to the target"""
    recipe: str = "prescribed"
    """of fine-tuning: `prescribed`, `long` or `auto`"""
    recipe_minutes: float = Field(10.0, gt=0)
    """that `auto` may take for its tests"""
    epochs: int | None = Field(None, ge=0)
    learning_rate: float | None = Field(None, gt=0)
    batch_size: int | None = Field(None, ge=1)
    distillation: bool = True
    reconstruction: bool = True
    """before its fine-tuning a finalist's layers are fitted anew to what they gave in the uncut network"""
    precision: str = "fp32"
    """of what is handed over; `auto` measures int8 (and fp16 on a GPU) and keeps what is faster"""
    final_mode: str = "report"
    sign: str | None = None
    """file of the private key that the bundle is signed with"""

    @property
    def training(self) -> dict[str, Any] | None:
        """What was asked for of the baseline's own training, by the recipe's names; `None`: nothing."""
        asked = {k.removeprefix("train_"): v for k, v in self if k.startswith("train_") and v is not None}
        return asked or None

    @property
    def target(self) -> Target:
        return Target(self.target_speedup, self.target_latency_ms, self.max_memory_mb, self.max_drop)

    @model_validator(mode="after")
    def _sensible(self) -> Request:
        for name, value in self:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name.replace('_', '-')} {value} is not a finite number")
        if self.target_speedup is not None and self.target_latency_ms is not None:
            raise ValueError("--target-speedup and --target-latency contradict each other: give one of them")
        if self.target_speedup is not None and self.target_speedup <= 1:
            raise ValueError(f"--target-speedup {self.target_speedup:g} would make it slower: give a number above 1")
        for name, value in (("--target-latency", self.target_latency_ms), ("--max-memory", self.max_memory_mb)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, not {value:g}")
        if self.max_drop is not None and self.max_drop < 0:
            raise ValueError(f"--max-drop {self.max_drop:g} asks for a gain: give 0 or more points")
        if self.ladder > 1 and not self.target.hard:
            raise ValueError(
                f"--ladder {self.ladder} has nothing to climb to: give --target-speedup, --target-latency or "
                "--max-memory"
            )
        if self.budget < 1:
            raise ValueError(f"--budget {self.budget} leaves nothing to try: give at least 1 candidate")
        if self.ladder > self.budget:
            raise ValueError(f"--ladder {self.ladder} needs a --budget of at least as many candidates")
        for name, word, known in (
            ("--agent", self.agent, AGENTS),
            ("--importance", self.importance, (None, "taylor", "fisher", "magnitude")),
            ("--recipe", self.recipe, ("prescribed", "long", "auto")),
            ("--precision", self.precision, ("auto", "fp32", "int8", "fp16")),
            ("--search-mode", self.search_mode, ("brief", "reward", "verify")),
            ("--final-mode", self.final_mode, ("reward", "verify", "report")),
        ):
            if word not in known:
                raise ValueError(f"{name} {word} is not known: choose {', '.join(filter(None, known))}")
        return self

    def save(self, folder: Path) -> None:
        """Write request.toml; what is not set is left out."""
        # JSON's strings, numbers and booleans are TOML's, too, as long as nothing is escaped into surrogates
        lines = [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in self.model_dump(exclude_none=True).items()]
        (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def command(self) -> str:
        """The command line that asks for the same again."""
        words = ["rlprune-edge compress"]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.default:
                continue
            flag = "--" + name.replace("_", "-")
            if name == "target_latency_ms":
                words.append(f"--target-latency {value:g}ms")
            elif name == "max_memory_mb":
                words.append(f"--max-memory {value:g}MB")
            elif isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-", 1))
            else:
                words.append(f"{flag} {shlex.quote(str(value))}")
        return " ".join(words)


def make(words: dict[str, Any], config: Path | None = None) -> Request:
    """A Request from flags (None = not given) over a TOML file. Raises UserError with every problem found."""
    merged = _read(config) if config else {}
    merged.update({k: v for k, v in words.items() if v is not None})
    return _checked(merged, source=str(config) if config else None)


def load(folder: Path) -> Request:
    """The request of a run folder. Raises UserError where the folder holds no run."""
    if not (folder / FILE).is_file():
        raise UserError(
            f"{folder} holds no run to resume ({FILE} is missing).\nGive the folder a former run wrote to with --out."
        )
    return _checked(_read(folder / FILE), source=str(folder / FILE))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from error


def _checked(values: dict[str, Any], source: str | None) -> Request:
    try:
        return Request(**values)
    except ValidationError as error:
        raise UserError("\n".join(_sentence(e, source) for e in error.errors())) from error


def _sentence(problem: Any, source: str | None) -> str:
    where = ".".join(str(p) for p in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{source or 'the request'}: unknown key {where!r}. Known: {', '.join(Request.model_fields)}."
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message + "." if not where else f"--{where.replace('_', '-')}: {message}."


def milliseconds(text: str) -> float:
    """`30ms`, `30`, `0.03s` -> 30.0. Raises UserError."""
    return _quantity(text, {"": 1.0, "ms": 1.0, "s": 1000.0, "us": 0.001}, "30ms or 0.03s")


def megabytes(text: str) -> float:
    """`200MB`, `200`, `0.2GB` -> 200.0 (1 MB = 10**6 bytes). Raises UserError."""
    return _quantity(text, {"": 1.0, "mb": 1.0, "gb": 1000.0, "kb": 0.001}, "200MB or 0.2GB")


def _quantity(text: str, units: dict[str, float], examples: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in units:
        raise UserError(f"{text!r} is not understood: write {examples}.")
    return float(match[1]) * units[match[2].lower()]
