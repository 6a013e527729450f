"""The default task: scikit-learn's 1,797 handwritten digits of 8x8 pixels, and a network that is trained here."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from rlprune_edge.errors import UserError
from rlprune_edge.records import MetricSpec
from rlprune_edge.tasks import weights as weight_files
from rlprune_edge.tasks.arrays import InMemoryTask, guessing_loss, shifted, split_by_class
from rlprune_edge.tasks.model_name import UNTRAINED, epochs_asked, split_name
from rlprune_edge.tasks.resnet import ResNet, fixed_names
from rlprune_edge.tasks.task import LoadedModel, Progress, Recipe
from rlprune_edge.tasks.training import Training, train_once

MEAN, STD = 0.305, 0.376
"""of all pixels divided by 16"""

# The split belongs to the task, not to the run: runs with other seeds compress the same network and are judged by the
# same test images.
SPLIT_SEED = 0

# About 55 seconds on one core with AVX-512.
TRAINING = Training(epochs=12, batch_size=64, learning_rate=0.05, weight_decay=5e-4, schedule="onecycle")


def network() -> ResNet:
    """4.8 million parameters: far more than digits need, so that there is something to remove and something to time.

    Two stages of six blocks with 96 and 192 channels; 1.3 ms an inference on one core of a current server.
    """
    return ResNet(widths=(96, 192), blocks=6, in_channels=1)


class DigitsTask(InMemoryTask):
    """Which digit is it? 60 % of the images train, 10 % steer the search, 10 % choose, 20 % are the test."""

    name = "digits"
    metric = MetricSpec("accuracy", higher_is_better=True)
    chance_loss = guessing_loss(10)
    model_names = ("resnet26",)
    recipe = Recipe(learning_rate=1e-4, epochs=5, batch_size=32, weight_decay=1e-4, warmup_steps=20)
    notes = (
        "the 1,797 digits of scikit-learn, split by class: 20 % test, 10 % search, 10 % validation, 60 % train; "
        "the baseline was trained on the train split alone",
    )

    def __init__(self, training: Training = TRAINING) -> None:
        """`training`: how the baseline is trained, if not by the task's own recipe."""
        self.training = training
        self.labels = [str(digit) for digit in range(10)]
        self.preprocessing = {
            "kind": "image",
            "layout": "NCHW",
            "dtype": "float32",
            "size": [8, 8],
            "channels": "L",
            "scale": 1 / 16,
            "mean": [MEAN],
            "std": [STD],
            "resize": None,
            "raw_max": 16,
            "raw": "ink from 0 (paper) to 16, as in sklearn.datasets.load_digits().images",
            "formula": "(raw * scale - mean) / std",
        }

    @cached_property
    def _splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        data = load_digits()
        images = torch.from_numpy(data.images.astype(np.uint8))[:, None]
        targets = torch.from_numpy(data.target.astype(np.int64))
        test, search, validation, train = split_by_class(targets, (0.2, 0.1, 0.1), seed=SPLIT_SEED)
        rows = {"train": train, "search": search, "validation": validation, "test": test}
        return {split: (images[row], targets[row]) for split, row in rows.items()}

    def tensors(self, split: str) -> tuple[Tensor, Tensor]:
        """Ink values [N, 1, 8, 8] as bytes, and the digits [N]."""
        return self._splits[split]

    def prepare(self, inputs: Tensor) -> Tensor:
        return (inputs.float() / 16 - MEAN) / STD

    def augmented(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Moved by up to one pixel."""
        return shifted(inputs, 1, generator)

    def model(
        self, name: str | None, *, weights: Path | None, cache_dir: Path, progress: Progress | None = None
    ) -> LoadedModel:
        """`name` may end in `:train=EPOCHS` (trained here, cached, as without it) or `:untrained` (random weights)."""
        base, how = split_name(name or self.model_names[0])
        if base not in self.model_names:
            raise UserError(
                f"Task digits has no model {name!r}; it has {', '.join(self.model_names)}, also with :train=EPOCHS or "
                ":untrained after it; or bring your own: --model package.module:factory."
            )
        if weights is not None and how:
            raise UserError(f"--model {name} and --weights contradict each other: write --model {base}.")
        description = "ResNet-26 for 8x8 digits (2 stages of 6 blocks, 96 and 192 channels)"
        if weights is not None:
            module = network()
            weight_files.load(module, weights, name=base, optional=fixed_names(module))
            return LoadedModel(module.eval(), base, description, f"file {weights.name}")
        if how == "untrained":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = network()
            source = "untrained (random weights)"
            return LoadedModel(module.eval(), base, f"{description}, untrained", source, (UNTRAINED,))
        training = dataclasses.replace(self.training, epochs=epochs_asked(how).get("epochs", self.training.epochs))
        trained = train_once(
            network, self, training, name=base, data=self.fingerprint(), cache_dir=cache_dir, progress=progress
        )
        source = f"trained here, {training.epochs} epoch" + "s" * (training.epochs > 1)
        return LoadedModel(trained, base, description, source)
