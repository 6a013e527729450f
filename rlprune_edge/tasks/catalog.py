"""Which tasks there are: names of ours, and `package.module:factory` for a user's own; imports no torch."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprune_edge.errors import RlpruneError, UserError

if TYPE_CHECKING:
    from rlprune_edge.inputs import Input
    from rlprune_edge.tasks.task import LoadedModel, Task


@dataclass(frozen=True)
class Entry:
    """A task of ours: where its factory is, and one line for the help text."""

    spec: str
    summary: str


TASKS = {
    "digits": Entry(
        "rlprune_edge.tasks.digits:DigitsTask",
        "scikit-learn's handwritten digits; needs no network and trains its own baseline",
    ),
    "cifar10": Entry(
        "rlprune_edge.tasks.images:Cifar10Task",
        "CIFAR-10 photographs from the hub or --data DIR; ResNet-20/32/44/56 and ResNet-50",
    ),
    "imdb": Entry(
        "rlprune_edge.tasks.text:ImdbTask",
        "film reviews from the hub, or any labelled texts in --data DIR; BERT, DistilBERT and the like",
    ),
    "toy-text": Entry(
        "rlprune_edge.tasks.toy_text:ToyTextTask",
        "generated reviews and a tiny BERT that is trained here in a minute; needs no network",
    ),
    "librispeech": Entry(
        "rlprune_edge.tasks.speech:LibriSpeechTask",
        "read speech from the hub, or any transcribed recordings in --data DIR; Wav2Vec2 and HuBERT with CTC",
    ),
    "toy-speech": Entry(
        "rlprune_edge.tasks.toy_speech:ToySpeechTask",
        "generated sounds and a tiny Wav2Vec2 that is trained here in a minute; needs no network",
    ),
}

# What `load_task` looks for on the object that a user's factory returns.
CONTRACT = ("name", "metric", "preprocessing", "chance_loss")


def check_task(name_or_spec: str) -> None:
    """Raises UserError for what is neither a task of ours nor `package.module:factory`; imports neither."""
    if name_or_spec in TASKS or ":" in name_or_spec:
        return
    near = difflib.get_close_matches(name_or_spec, TASKS, n=1)
    raise UserError(
        f"There is no task {name_or_spec!r}."
        + (f" Did you mean {near[0]}?" if near else "")
        + f" There are {', '.join(TASKS)}, and your own as package.module:factory."
    )


def load_task(name_or_spec: str, *, data: str | None, seed: int, cache_dir: Path, **options: Any) -> Task:
    """The task called so. `data`: a folder or hub id; of `data`, `seed`, `cache_dir` a factory gets those it names.

    `options`: what only some tasks take (`max_length`, `sequence_length`, `audio_seconds`, `recipe_changes`); `None`:
    not asked for. Raises UserError for an unknown name, an option that the task does not take, a factory that cannot be
    found or fails, and for what is no task.
    """
    check_task(name_or_spec)
    spec = TASKS[name_or_spec].spec if name_or_spec in TASKS else name_or_spec
    factory = _find(spec, "--task")
    if data is not None and not _accepts(factory, "data"):
        raise UserError(f"Task {name_or_spec} brings its own data and takes no --data.")
    asked = {name: value for name, value in options.items() if value is not None}
    for name, value in asked.items():
        if not _accepts(factory, name):
            flag = f"train-{next(iter(value))}" if name == "recipe_changes" else name
            raise UserError(f"Task {name_or_spec} takes no --{flag.replace('_', '-')}.")
    made = _call(factory, spec, {"data": data, "seed": seed, "cache_dir": cache_dir, **asked})

    from rlprune_edge.tasks.task import Task

    if not isinstance(made, Task):
        raise UserError(
            f"{spec} returned {_a(made)}, which is no task: it has to be an instance of a class derived from "
            "rlprune_edge.tasks.task.Task or rlprune_edge.tasks.arrays.InMemoryTask."
        )
    absent = [attribute for attribute in CONTRACT if not hasattr(made, attribute)]
    if absent:
        raise UserError(f"The task that {spec} returned lacks {', '.join(absent)}; set them in {type(made).__name__}.")
    return made


def is_factory(name: str, task: Task) -> bool:
    """Whether a model's name is a user's own `package.module:factory`, and not one of the task's with a word behind."""
    base, _, how = name.partition(":")
    return bool(how) and base not in task.model_names and not re.fullmatch(r"untrained|train(=.*)?", how)


def load_own_model(spec: str, *, task: Task, weights: Path | None, seed: int, cache_dir: Path) -> LoadedModel:
    """A user's own network, from `package.module:factory`, tried on one example of the task.

    Of `weights`, `seed`, `cache_dir` the factory gets those it names; where it does not take `weights`, the file is
    loaded into what it returned. Raises UserError if the factory cannot be found or fails, if it returns no
    torch.nn.Module, if the weights do not fit, or if the network does not take the task's inputs or has not one output
    per label.
    """
    if not task.takes_modules:
        raise UserError(
            f"Task {task.name} takes no network from a module ({spec}), since its inputs belong to the network: give a "
            "folder that save_pretrained wrote, --model FOLDER, or a hub id."
        )
    factory = _find(spec, "--model")
    made = _call(factory, spec, {"weights": weights, "seed": seed, "cache_dir": cache_dir})

    import torch

    from rlprune_edge.tasks import weights as weight_files
    from rlprune_edge.tasks.task import LoadedModel

    if not isinstance(made, torch.nn.Module):
        raise UserError(f"{spec} returned {_a(made)}; it has to return a torch.nn.Module.")
    if weights is not None and not _accepts(factory, "weights"):
        weight_files.load(made, weights, name=spec)
    made.eval()
    example = task.example_input()
    try:
        with torch.no_grad():
            output = made(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"The network of {spec} does not take the inputs of task {task.name}, {_shapes(example)}: {error}"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise UserError(f"The network of {spec} returns {_a(output)}; it has to return one tensor.")
    if task.labels and output.shape[-1] != len(task.labels):
        raise UserError(
            f"The network of {spec} has {output.shape[-1]} outputs; task {task.name} has {len(task.labels)} labels."
        )
    source = f"file {weights.name}" if weights is not None else f"weights from {spec}"
    return LoadedModel(made, spec, f"{type(made).__name__} from {spec}", source)


def _find(spec: str, option: str) -> Callable[..., Any]:
    module_name, _, name = spec.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".") or "package.module"
        raise UserError(
            f"{option} {spec} is no package.module:factory; write {option} {dotted}:{name or 'factory'} "
            "(a module's name, without .py, as in an import)."
        )
    # An installed script does not look into the current folder, where a user's own module usually lies. The entry
    # stays, since that module may import its neighbours later.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(
                f"{option} {spec}: there is no module {error.name} in the current folder ({os.getcwd()}) or among the "
                "installed packages."
            ) from error
        raise UserError(f"{option} {spec}: {module_name} imports {error.name}, which is not installed.") from error
    except Exception as error:  # whatever a user's module does while it is imported
        raise UserError(f"{option} {spec}: {module_name} could not be imported: {_told(error)}") from error
    factory = getattr(module, name, None)
    if factory is None:
        near = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=1)
        raise UserError(
            f"{option} {spec}: {module_name} ({module.__file__}) has no {name}."
            + (f" Did you mean {near[0]}?" if near else "")
        )
    if not callable(factory):
        raise UserError(f"{option} {spec}: {name} is {_a(factory)}, not a function or class that can be called.")
    return factory  # type: ignore[no-any-return]


def _accepts(factory: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _call(factory: Callable[..., Any], spec: str, offered: dict[str, Any]) -> Any:
    arguments = {name: value for name, value in offered.items() if _accepts(factory, name)}
    try:
        return factory(**arguments)
    except RlpruneError:
        raise
    except Exception as error:  # whatever a user's factory does, e.g. TypeError for an abstract method left open
        raise UserError(f"{spec} failed: {_told(error)}") from error


def _told(error: Exception) -> str:
    """An error of someone else's code in one line, with the place it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _shapes(x: Input) -> str:
    from rlprune_edge.inputs import named

    return ", ".join(str(tuple(tensor.shape)) for tensor in named(x).values())


def _a(value: object) -> str:
    return "nothing" if value is None else f"an object of type {type(value).__name__}"
