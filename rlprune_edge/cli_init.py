"""The `init` command: a commented file with everything that can be asked of a run."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, get_args, get_type_hints

import typer

from rlprune_edge.errors import UserError
from rlprune_edge.request import Request

ASKED_FIRST = ("task", "model", "weights", "data", "device", "target_speedup", "target_latency_ms", "max_drop")
FLAGS = {"target_latency_ms": "target_latency", "max_memory_mb": "max_memory"}
"""keys whose flag has another name, and takes a unit"""
EXAMPLES: dict[str, Any] = {
    "model": "models/my-model",
    "weights": "my-model.safetensors",
    "data": "data",
    "target_latency_ms": 30.0,
    "max_drop": 1.0,
    "max_memory_mb": 200.0,
    "device_seconds": 3600.0,
}
_SET = {"task": "digits", "device": "local", "target_speedup": 2.0}
"""what the file asks for as it is written"""


def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("rlprune.toml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented TOML file with everything that `compress` can be asked; then: compress --config FILE."""
    if file.exists() and not force:
        raise UserError(f"{file} is there already; it was left alone.\nType: rlprune-edge init {file} --force")
    from rlprune_edge.cli import compress

    try:
        file.write_text(text(compress, file), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
    typer.echo(f"wrote {file}; change it, then: rlprune-edge compress --config {file}")


def text(command: Callable[..., None], file: Path) -> str:
    """The file's content: the command's own words about each of its flags, and the defaults."""
    helps = _helps(command)
    names = [*ASKED_FIRST, *(name for name in Request.model_fields if name not in ASKED_FIRST)]
    lines = [
        "# What to compress, where, and how fast it has to be, for:",
        f"#   rlprune-edge compress --config {file}",
        "# Every key is a flag of that command; a flag that is given as well wins. What has a # before it is not asked",
        "# for: it shows the default, or an example where there is none.",
    ]
    for name in names:
        about = helps[FLAGS.get(name, name)]
        lines += ["", *(f"# {line}" for line in wrap(about, 110)), _line(name, about)]
    return "\n".join(lines) + "\n"


def _line(name: str, about: str) -> str:
    if name in _SET:
        return f"{name} = {json.dumps(_SET[name])}"
    default = Request.model_fields[name].default
    if default is None:
        said = re.search(r"\[default: ([\d.e-]+\b)", about)  # where it depends on the task
        textual = "str" in str(Request.model_fields[name].annotation)
        default = EXAMPLES.get(name, "..." if textual else json.loads(said[1]) if said else 1)
    return f"# {name} = {json.dumps(default)}"


def _helps(command: Callable[..., None]) -> dict[str, str]:
    """What `--help` says of each flag, by parameter."""
    hints = get_type_hints(command, include_extras=True)
    return {
        name: next((o.help for o in get_args(hints[name])[1:] if getattr(o, "help", None)), "")
        for name in inspect.signature(command).parameters
    }
