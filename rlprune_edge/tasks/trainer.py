"""Baselines of transformers' networks, trained here by its Trainer: once, seeded, kept, resumed where they stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlprune_edge.bfloat16 import has_bfloat16, mixed
from rlprune_edge.errors import UserError
from rlprune_edge.tasks import weights
from rlprune_edge.tasks.pretrained import Encoder, described
from rlprune_edge.tasks.task import LoadedModel, Progress, Task

import transformers  # isort: skip  # after pretrained.py has made it importable

# Part of the cached files' names; raise it when a change below would train another network from the same recipe.
CODE_VERSION = 1
TOLD_EVERY = 25
"""steps between two words on how far a training is"""
CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class BaselineRecipe:
    """How a pretrained encoder is fine-tuned to the task before anything is cut; AdamW, linear decay."""

    epochs: int = 3
    learning_rate: float = 2e-5
    """the highest of the schedule"""
    batch_size: int = 8
    weight_decay: float = 0.01
    warmup_steps: int = 500
    """optimizer steps over which the learning rate rises from 0; at most a tenth of all"""
    dropout: float | None = 0.3
    """share left out before the classifier; `None`: as the network's configuration says"""
    seed: int = 0

    def with_changes(self, fields: Mapping[str, Any]) -> BaselineRecipe:
        """The same recipe with some fields set by the user. Raises UserError for a value that makes no sense."""
        recipe = dataclasses.replace(self, **fields)
        wrong = [
            name
            for name, fine in (
                ("epochs", recipe.epochs >= 1),
                ("learning_rate", 0 < recipe.learning_rate < math.inf),
                ("batch_size", recipe.batch_size >= 1),
                ("weight_decay", 0 <= recipe.weight_decay < math.inf),
                ("warmup_steps", recipe.warmup_steps >= 0),
                ("dropout", recipe.dropout is None or 0 <= recipe.dropout < 1),
            )
            if not fine
        ]
        if wrong:
            raise UserError(
                "; ".join(f"--train-{n.replace('_', '-')} {getattr(recipe, n)} makes no sense" for n in wrong)
                + ": epochs and batch size are at least 1, the learning rate is above 0, and dropout is from 0 to "
                "below 1."
            )
        return recipe


def train_baseline(
    build: Callable[[], Encoder],
    task: Task,
    recipe: BaselineRecipe,
    *,
    name: str,
    data: str,
    cache_dir: Path,
    progress: Progress | None = None,
) -> tuple[Encoder, tuple[str, ...]]:
    """The network that `build` makes, trained on the task's `train` split or taken from the cache; in evaluation mode.

    With it come notes on how it was trained. `name` names the network and `data` is a hash of all besides that the
    result depends on (training data, pretrained weights, tokenizer). `progress` counts optimizer steps. Each finished
    epoch is kept under `cache_dir` until the whole is done, and a training that was cut short goes on from there, with
    the same result. The caller's random state is left as it was. Raises UserError if the training diverges or the cache
    cannot be written.
    """
    steps = recipe.epochs * math.ceil(task.size("train") / recipe.batch_size)
    warmup = min(recipe.warmup_steps, steps // 10)
    lean = has_bfloat16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    notes = [
        f"{_counted(recipe.epochs, 'epoch')} with AdamW, learning rate {recipe.learning_rate:g} falling linearly, "
        f"batches of {recipe.batch_size}{', mixed precision (bfloat16)' if lean else ''}"
    ]
    if warmup < recipe.warmup_steps:
        notes.append(f"warm-up {warmup} steps instead of {recipe.warmup_steps} because the training has {steps} steps")
    facts = {
        "code": CODE_VERSION,
        "task": task.name,
        "network": name,
        "data": data,
        "bfloat16": lean,
        **dataclasses.asdict(recipe),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    stem = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    path = cache_dir / "models" / f"{task.name}-{stem}-{key}.safetensors"
    unfinished = path.with_suffix(".unfinished")
    with _random_state_kept():
        torch.manual_seed(recipe.seed)
        encoder = build()
        if path.exists() and _fits(encoder, path, name):
            return encoder.eval(), tuple(notes)
        started = time.perf_counter()
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            _train(encoder, task, recipe, warmup, lean, unfinished, progress)
        except OSError as error:
            raise UserError(f"The training could not be kept in {unfinished}: {error}.") from error
    about = {"training": json.dumps(facts, sort_keys=True), "seconds": f"{time.perf_counter() - started:.1f}"}
    weights.save(encoder, path, about=about)
    shutil.rmtree(unfinished, ignore_errors=True)
    return encoder.eval(), tuple(notes)


def own_network(
    build: Callable[[], Encoder],
    task: Task,
    recipe: BaselineRecipe,
    *,
    name: str,
    description: str | None = None,
    weights_file: Path | None,
    fingerprint: Callable[[], str],
    cache_dir: Path,
    progress: Progress | None = None,
) -> LoadedModel:
    """A network that has no pretrained weights: those of `weights_file`, or trained here from nothing.

    `fingerprint` hashes the training data; it is asked only where there is something to train.
    """
    if weights_file is None:
        encoder, notes = train_baseline(
            build, task, recipe, name=name, data=fingerprint(), cache_dir=cache_dir, progress=progress
        )
        source, notes = "trained here", (f"trained from nothing: {notes[0]}", *notes[1:])
    else:
        with torch.random.fork_rng(devices=[]):
            encoder = build()
        weights.load(encoder.network, weights_file, name=name)
        source, notes = f"file {weights_file.name}", ()
    return LoadedModel(encoder, name, description or described(encoder), source, notes)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _fits(encoder: Encoder, path: Path, name: str) -> bool:
    try:
        weights.load(encoder, path, name=name)
    except UserError:
        return False  # a damaged file; it is trained again and replaced
    return True


@contextmanager
def _random_state_kept() -> Iterator[None]:
    # transformers seeds all three generators.
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class _Epochs:
    """The task's training batches as the data loader that Trainer expects: another order in every epoch."""

    def __init__(self, task: Task, recipe: BaselineRecipe) -> None:
        self._task, self._recipe, self._epoch = task, recipe, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._task.size("train") / self._recipe.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        seed = self._recipe.seed + self._epoch
        for x, y in self._task.batches("train", self._recipe.batch_size, augment=True, seed=seed):
            yield {"x": x, "y": y}


class _Trainer(transformers.Trainer):  # type: ignore[misc]
    """Trainer with the task's batches and the task's loss."""

    def __init__(self, encoder: Encoder, task: Task, recipe: BaselineRecipe, lean: bool, **options: Any) -> None:
        super().__init__(model=encoder, **options)
        self._task, self._recipe, self._lean = task, recipe, lean
        self.losses: list[float] = []
        """of the steps since `losses` was last emptied"""

    def get_train_dataloader(self) -> _Epochs:
        return _Epochs(self._task, self._recipe)

    def compute_loss(self, model: Encoder, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        device = self.args.device
        # Here and not through TrainingArguments(bf16=True), which replaces the network's forward for good.
        with mixed(device, wanted=self._lean):
            logits = model(inputs["x"].to(device))
        loss = self._task.loss(logits.float(), inputs["y"].to(device))
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(
                f"Training the baseline of {self._task.name} diverged (the loss is not finite after "
                f"{self.state.global_step} steps); a learning rate below {self._recipe.learning_rate:g} may help."
            )
        self.losses.append(value)
        return loss


class _Telling(transformers.TrainerCallback):  # type: ignore[misc]
    """Passes on how far the training is."""

    def __init__(self, progress: Progress, losses: Callable[[], list[float]]) -> None:
        self._progress, self._losses = progress, losses

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step % TOLD_EVERY and state.global_step != state.max_steps:
            return
        losses = self._losses()
        self._progress(state.global_step, state.max_steps, sum(losses) / len(losses))
        losses.clear()


def _train(
    encoder: Encoder,
    task: Task,
    recipe: BaselineRecipe,
    warmup: int,
    lean: bool,
    folder: Path,
    progress: Progress | None,
) -> None:
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    on_gpu = torch.cuda.is_available()
    if on_gpu:  # memory is what a GPU lacks first; on a CPU it would only cost time
        encoder.network.gradient_checkpointing_enable()
    try:
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=warmup,
            lr_scheduler_type="linear",
            optim="adamw_torch",
            seed=recipe.seed,
            use_cpu=not on_gpu,
            save_strategy="epoch",
            save_total_limit=1,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # named inputs cannot be spread over several
        trainer = _Trainer(encoder, task, recipe, lean, args=arguments)
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)  # writes on stdout
        if progress is not None:
            trainer.add_callback(_Telling(progress, lambda: trainer.losses))
        with warnings.catch_warnings():  # of which checkpoint is older it is told by their numbers, too
            warnings.filterwarnings("ignore", "mtime may not be reliable")
            trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    finally:
        transformers.logging.set_verbosity(verbosity)
        if on_gpu:
            encoder.network.gradient_checkpointing_disable()
        encoder.to("cpu")


def _last_checkpoint(folder: Path) -> str | None:
    """The last whole one: its state is written after all else."""
    whole = [path for path in folder.glob(f"{CHECKPOINT}*") if (path / "trainer_state.json").is_file()]
    return str(max(whole, key=lambda path: int(path.name.removeprefix(CHECKPOINT)))) if whole else None
