"""A task and a network of one's own: which way does the bar lie?

rlprune-edge compress --task own_task:Bars
rlprune-edge compress --task own_task:Bars --model own_task:network --weights bars.safetensors
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from rlprune_edge.errors import UserError
from rlprune_edge.records import MetricSpec
from rlprune_edge.tasks import weights as weight_files
from rlprune_edge.tasks.arrays import InMemoryTask
from rlprune_edge.tasks.task import LoadedModel, Progress, Recipe
from rlprune_edge.tasks.training import Training, train_once

IMAGES = {"train": 600, "search": 100, "validation": 100, "test": 200}


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 12, 12] of one bar in noise, and 0 (lying) or 1 (standing). Here you would read your files."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.randn(count, 1, 12, 12, generator=generator)
    standing = torch.randint(0, 2, (count,), generator=generator)
    places = torch.randint(0, 12, (count,), generator=generator)
    for image, upright, at in zip(images[:, 0], standing, places.tolist(), strict=True):
        line = image[:, at] if upright else image[at, :]
        line += 1.0
    return images, standing


def network() -> nn.Module:
    """An ordinary module. Layers that may be cut are found by following its graph; nothing has to be declared."""
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 2)),
    )


class Bars(InMemoryTask):
    name = "bars"
    metric = MetricSpec("accuracy", higher_is_better=True)
    chance_loss = math.log(2)
    notes = ("the images are drawn by a program",)
    model_names = ("small",)
    recipe = Recipe(epochs=2)

    def __init__(self) -> None:
        self.labels = ["lying", "standing"]
        self.preprocessing = {"kind": "image", "layout": "NCHW", "dtype": "float32", "size": [12, 12], "channels": "L"}
        # A seed of its own for every split: no image is in two of them, and every run sees the same ones.
        self._splits = {split: draw(count, seed) for seed, (split, count) in enumerate(IMAGES.items())}

    def tensors(self, split: str) -> tuple[Tensor, Tensor]:
        return self._splits[split]

    def augmented(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)

    def model(
        self, name: str | None, *, weights: Path | None, cache_dir: Path, progress: Progress | None = None
    ) -> LoadedModel:
        if name not in (None, "small"):
            raise UserError(f"Task bars has no model {name!r}; it has small.")
        if weights is not None:
            module = network()
            weight_files.load(module, weights, name="small")
            return LoadedModel(module.eval(), "small", "two convolutions", f"file {weights.name}")
        how = Training(epochs=4, batch_size=50, learning_rate=0.05, weight_decay=1e-4)
        trained = train_once(
            network, self, how, name="small", data=self.fingerprint(), cache_dir=cache_dir, progress=progress
        )
        return LoadedModel(trained, "small", "two convolutions", "trained here")
