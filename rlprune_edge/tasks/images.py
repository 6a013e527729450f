"""The task cifar10: 32x32 colour photographs from the hub or a local folder, CIFAR ResNets, ResNet-50."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlprune_edge.errors import UserError
from rlprune_edge.records import MetricSpec
from rlprune_edge.tasks import hub
from rlprune_edge.tasks import weights as weight_files
from rlprune_edge.tasks.arrays import InMemoryTask, guessing_loss, mirrored, shifted
from rlprune_edge.tasks.model_name import UNTRAINED, epochs_asked, split_name
from rlprune_edge.tasks.resnet import CIFAR_DEPTHS, cifar_resnet, depth_of, fixed_names
from rlprune_edge.tasks.splits import four_splits
from rlprune_edge.tasks.task import LoadedModel, Progress, Recipe
from rlprune_edge.tasks.torchvision_models import resnet50
from rlprune_edge.tasks.training import Training, train_once

HUB_ID = "uoft-cs/cifar10"
SIZE = (32, 32)
# The constants that the published CIFAR ResNets were trained with (they are ImageNet's).
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# He et al. 2015, section 4.2, with their step schedule replaced by a cosine; they train for about 164 epochs.
TRAINING = Training(epochs=30, batch_size=128, learning_rate=0.1, weight_decay=1e-4)

RESNET50_STEMS = {
    "resnet50": "ResNet-50 (torchvision) with a CIFAR stem: first convolution 3x3, stride 1, not pooled",
    "resnet50-imagenet-stem": "ResNet-50 (torchvision) with its ImageNet stem: first convolution 7x7, stride 2, pooled",
}


class Cifar10Task(InMemoryTask):
    """Labelled 32x32 RGB images in the layout of the hub's CIFAR-10 (other classes than CIFAR's are fine)."""

    name = "cifar10"
    metric = MetricSpec("accuracy", higher_is_better=True)
    model_names = (*(f"resnet{depth}" for depth in CIFAR_DEPTHS), *RESNET50_STEMS)
    # At a weight of 1000 the features of deep cuts come back several times as fast (prune/features.py has figures). On
    # the digits, whose cuts do little harm, they were of no use: one image in 180 fewer.
    recipe = Recipe(
        learning_rate=1e-4, epochs=5, batch_size=32, weight_decay=1e-4, warmup_steps=100, feature_weight=1000.0
    )

    # 100 epochs is what Torch-Pruning's table of ResNet-56 is trained for; AdamW at ten times the prescribed rate.
    long_epochs = 100
    long_learning_rate = 1e-3

    def __init__(self, data: str | None = None, training: Training = TRAINING) -> None:
        """`data`: a folder or hub id, the hub's CIFAR-10 if `None`. `training`: for `--model NAME:train`.

        Opens the data set but decodes no image. Raises UserError if it cannot be opened or has another layout.
        """
        self.training = training
        self.preprocessing = {
            "kind": "image",
            "layout": "NCHW",
            "dtype": "float32",
            "size": list(SIZE),
            "channels": "RGB",
            "scale": 1 / 255,
            "mean": list(MEAN),
            "std": list(STD),
            "resize": None,
            "raw": "bytes from 0 to 255",
            "formula": "(raw * scale - mean) / std",
        }
        self.where = data or HUB_ID
        self._rows, note = four_splits(hub.open_splits(self.where), self._classes, self.where, noun="images")
        self.column = hub.image_column(self._rows["train"], self.where)
        _, self.labels = hub.class_labels(self._rows["train"], self.where)
        self.chance_loss = guessing_loss(len(self.labels))
        self.notes = (note,)
        self._decoded: dict[str, tuple[Tensor, Tensor]] = {}

    def _classes(self, rows: Any) -> Tensor:
        hub.image_column(rows, self.where)  # says what is wrong where there are no labels
        return hub.class_labels(rows, self.where)[0]

    def size(self, split: str) -> int:
        return len(self._rows[split])

    def tensors(self, split: str) -> tuple[Tensor, Tensor]:
        """RGB bytes [N, 3, 32, 32] and class numbers [N], decoded when the split is first asked for."""
        if split not in self._decoded:
            where = f"{self.where} ({split})"
            targets, _ = hub.class_labels(self._rows[split], where)
            if int(targets.max()) >= len(self.labels or ()):
                raise UserError(f"{where} has the class number {int(targets.max())}, which train does not have.")
            self._decoded[split] = (hub.decode_images(self._rows[split], self.column, size=SIZE, where=where), targets)
        return self._decoded[split]

    def example_input(self) -> Tensor:
        """The first training image; decodes no other."""
        return self.prepare(
            hub.decode_images(self._rows["train"].select([0]), self.column, size=SIZE, where=self.where)
        )

    @cached_property
    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        # (raw / 255 - mean) / std as one multiplication and one addition
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        return 1 / (255 * std), -mean / std

    def prepare(self, inputs: Tensor) -> Tensor:
        scale, shift = self._scale_and_shift
        return inputs.float().mul_(scale).add_(shift)

    def augmented(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """He et al. 2015, section 4.2: a random 32x32 crop out of 4 pixels of black around, and a random flip."""
        return mirrored(shifted(inputs, 4, generator), generator)

    def model(
        self, name: str | None, *, weights: Path | None, cache_dir: Path, progress: Progress | None = None
    ) -> LoadedModel:
        """`name` may end in `:untrained` (random weights), `:train` or `:train=EPOCHS` (trained here, cached)."""
        base, how = split_name(name or self.model_names[0])
        if base not in self.model_names:
            raise UserError(
                f"Task cifar10 has no model {name!r}; it has {', '.join(self.model_names)}, each also with :train, "
                ":train=EPOCHS or :untrained after it; or bring your own: --model package.module:factory."
            )
        if weights is not None and how:
            raise UserError(f"--model {name} and --weights contradict each other: write --model {base}.")
        if weights is not None:
            with torch.random.fork_rng(devices=[]):
                module = self._network(base)
            weight_files.load(module, weights, name=base, optional=fixed_names(module), fits=_fits)
            licence = weight_files.metadata(weights).get("license")
            return self._loaded(module, base, f"file {weights.name}", licence=licence)
        if how == "untrained":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = self._network(base)
            return self._loaded(module, base, "untrained (random weights)", UNTRAINED)
        if not how:
            raise UserError(
                f"{base} needs trained weights: --weights FILE.safetensors. Without a file, --model {base}:train "
                f"trains it here ({self.training.epochs} epochs; hours on a CPU), and --model {base}:untrained takes "
                "random weights, to try out speed alone."
            )
        training = dataclasses.replace(self.training, epochs=epochs_asked(how).get("epochs", self.training.epochs))
        module = train_once(
            lambda: self._network(base),
            self,
            training,
            name=base,
            data=self.fingerprint(),
            cache_dir=cache_dir,
            progress=progress,
        )
        return self._loaded(module, base, f"trained here, {training.epochs} epochs")

    def _network(self, base: str) -> nn.Module:
        classes = len(self.labels or ())
        if base in RESNET50_STEMS:
            return resnet50(stem="cifar" if base == "resnet50" else "imagenet", num_classes=classes)
        return cifar_resnet(int(base.removeprefix("resnet")), num_classes=classes)

    def _loaded(
        self, module: nn.Module, base: str, source: str, *notes: str, licence: str | None = None
    ) -> LoadedModel:
        description = RESNET50_STEMS.get(base) or f"CIFAR ResNet-{base.removeprefix('resnet')} with option-A shortcuts"
        if source.startswith("untrained"):
            description += ", untrained"
        if base == "resnet50-imagenet-stem":
            notes = (*notes, "ImageNet stem: the first two layers shrink a 32x32 image to 8x8")
        return LoadedModel(module.eval(), base, description, source, notes, licence)


def _fits(tensors: Mapping[str, Tensor]) -> str | None:
    """Which of our networks a weight file is of, as far as names can tell."""
    depth = depth_of(tensors)
    if depth in CIFAR_DEPTHS:
        return f"resnet{depth}"
    if "layer4.2.conv3.weight" in tensors and "layer3.5.conv3.weight" in tensors and "conv1.weight" in tensors:
        return "resnet50" if tensors["conv1.weight"].shape[-1] == 3 else "resnet50-imagenet-stem"
    return None
