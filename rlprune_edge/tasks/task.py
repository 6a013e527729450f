"""The contract of a task: data in four splits, a loss, a metric, a trained model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlprune_edge.errors import UserError
from rlprune_edge.inputs import Input
from rlprune_edge.records import MetricSpec, Quality

SPLITS = ("train", "search", "validation", "test")
BENCHMARK = "benchmark"
"""a second labelled set, where one was asked for; like `test` it steers nothing"""

Batches = Iterator[tuple[Input, Any]]
"""pairs of inputs and targets; `len` of both counts examples, and both have `to(device)`"""

Progress = Callable[[int, int, float], None]
"""called after every epoch of a training with (epochs done, epochs in all, mean training loss)"""


@dataclass(frozen=True)
class Recipe:
    """How a cut network of this task is fine-tuned; the defaults are the product's prescribed ones."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-4
    epochs: int = 5
    batch_size: int = 32
    weight_decay: float = 1e-4
    momentum: float = 0.9
    """of SGD"""
    label_smoothing: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    """optimizer steps over which the learning rate rises from 0"""
    distillation_temperature: float = 4.0
    distillation_weight: float = 0.9
    """share of the loss that comes from the uncut model's outputs, 0 to 1"""
    mixed_precision: bool = False
    """in bfloat16 where the processor multiplies that itself"""
    feature_weight: float = 0.0
    """above 0: what is left of a cut network first learns the uncut one's features (rlprune_edge/prune/features.py)"""


@dataclass(frozen=True)
class LoadedModel:
    """A network that is ready to be compressed, and what a report should say about it."""

    module: nn.Module
    name: str
    description: str
    source: str
    """where the weights come from, e.g. `trained here` or `file resnet56.safetensors`"""
    notes: tuple[str, ...] = ()
    """what a reader of the results should know, e.g. that the weights are random"""
    licence: str | None = None
    """of the weights; `None` where it is not known"""


class Task(ABC):
    """What is to be solved, on which data, judged how. Derive from it (or from `InMemoryTask`) to bring your own.

    A subclass sets the attributes below and implements the abstract methods. `test` is read once, at the end of a run;
    whatever steers a search uses `search`, and the choice between finalists uses `validation`.
    """

    name: str
    metric: MetricSpec
    preprocessing: dict[str, Any]
    """what an app has to do to raw data before it calls the model; ends up in the bundle"""
    chance_loss: float
    """loss of a model that knows nothing, e.g. ln(number of classes)"""
    labels: list[str] | None = None
    """names of the classes in the order of the outputs"""
    notes: tuple[str, ...] = ()
    """what a reader of the report should know about the data, e.g. where the splits come from"""
    recipe: Recipe = Recipe()
    long_epochs: int = 20
    """of `--recipe long`"""
    long_learning_rate: float = 1e-4
    model_names: tuple[str, ...] = ()
    """what `model` accepts, the default first"""
    takes_modules: bool = True
    """whether `--model package.module:factory` may bring any network, or inputs depend on which network it is"""
    other_metrics: tuple[MetricSpec, ...] = ()
    """what is reported beside the metric; nothing is decided by them"""
    score_batch: int = 64
    """examples that are scored at a time"""
    measured: str | None = None
    """what one timed inference works on where a user could have chosen otherwise, e.g. `128 tokens`"""
    measured_seconds: float | None = None
    """of audio in one timed inference; latency over it is the real-time factor"""
    limits: str | None = None
    """what every figure of the metric is subject to, e.g. `texts cut to 256 tokens`"""
    bundle_files: Mapping[str, bytes] = {}
    """what an app needs beside the model, such as a tokenizer: name in the bundle -> content"""
    bundle_extra: Mapping[str, Any] = {}
    """what the bundle's manifest says about them"""
    model_files: Mapping[str, bytes] = {}
    """what a network's own folder needs to be loaded again, such as the tokenizer's files"""

    @abstractmethod
    def size(self, split: str) -> int:
        """Number of examples in a split."""

    @abstractmethod
    def read(
        self, split: str, batch_size: int, *, augment: bool, generator: torch.Generator | None, limit: int | None
    ) -> Batches:
        """Yield the split's batches; called by `batches`, which has checked the arguments.

        `generator`: shuffle with it, and draw augmentation from it; `None`: keep the order (and augment at random).
        `limit`: at most that many examples, after shuffling.
        """

    @abstractmethod
    def example_input(self) -> Input:
        """One real preprocessed example, with a batch dimension of 1: what the device is timed with."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Mean loss of a batch, differentiable."""

    @abstractmethod
    def model(
        self, name: str | None, *, weights: Path | None, cache_dir: Path, progress: Progress | None = None
    ) -> LoadedModel:
        """The trained network called `name` (`None`: the default), with `weights` from a file if one is given.

        May train a network and keep it under `cache_dir`. Raises UserError for an unknown name and for weights that do
        not fit.
        """

    def figure(self, outputs: Tensor, targets: Tensor) -> float:
        """The metric over a whole split, in percent. This one is accuracy; a task with another metric overrides it."""
        if self.metric.name != "accuracy":
            raise UserError(
                f"Task {self.name} is judged by {self.metric.name}, but does not say how to compute it: "
                f"{type(self).__name__} has to override figure(outputs, targets)."
            )
        return 100.0 * int((outputs.argmax(dim=1) == targets).sum()) / len(targets)

    def figures(self, outputs: Sequence[Tensor], targets: Sequence[Any]) -> dict[str, float]:
        """The metric and `other_metrics` by name, over a whole split that is given batch by batch."""
        return {self.metric.name: self.figure(torch.cat(list(outputs)), torch.cat(list(targets)))}

    def add_benchmark(self, where: str) -> str:
        """Open a second labelled set (a folder or hub id) as the split `benchmark`; returns what to call it.

        Raises UserError where the set does not fit, or the task takes none.
        """
        raise UserError(f"Task {self.name} takes no --benchmark {where}.")

    @cached_property
    def reads(self) -> Counter[str]:
        """How often each split was asked for; proves that `test` steered nothing."""
        return Counter()

    def batches(
        self, split: str, batch_size: int, *, augment: bool = False, seed: int | None = None, limit: int | None = None
    ) -> Batches:
        """Batches of a split: in their order, or with `seed` shuffled (the same seed gives the same batches).

        Raises ValueError for an unknown split or a batch size or limit below 1.
        """
        if split not in (*SPLITS, BENCHMARK):
            raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        if batch_size < 1 or (limit is not None and limit < 1):
            raise ValueError(f"batch_size {batch_size} and limit {limit} must be at least 1")
        self.reads[split] += 1
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return self.read(split, batch_size, augment=augment, generator=generator, limit=limit)

    def score(self, model: nn.Module, split: str, *, limit: int | None = None) -> Quality:
        """Metric and mean loss of `model` on a split, in evaluation mode; the model's modes are put back afterwards.

        Runs where the model is (a GPU, say); the batches come from the CPU.
        Keeps all outputs of the split in memory, so that metrics which are no means (F1) can be computed.
        """
        modes = [(module, module.training) for module in model.modules()]
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        model.eval()
        outputs, targets, losses = [], [], 0.0
        try:
            with torch.no_grad():
                for x, y in self.batches(split, self.score_batch, limit=limit):
                    out = model(x.to(device)).cpu()
                    losses += float(self.loss(out, y)) * len(y)
                    outputs.append(out)
                    targets.append(y)
        finally:
            for module, training in modes:
                module.training = training
        examples = sum(len(y) for y in targets)
        figures = self.figures(outputs, targets)
        return Quality(figures.pop(self.metric.name), losses / examples, examples, figures)
