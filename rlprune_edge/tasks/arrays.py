"""Tasks whose examples fit into memory: one tensor of inputs and one of targets per split."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlprune_edge.tasks.task import Batches, Task


class InMemoryTask(Task):
    """A classification task made from tensors. A subclass implements `tensors` and `model`; the rest has defaults.

    `tensors` may hand out raw data (bytes, say) to save memory: `augmented` and `prepare` are applied batch by batch.
    """

    @abstractmethod
    def tensors(self, split: str) -> tuple[Tensor, Tensor]:
        """Inputs [N, ...] and integer class targets [N] of a split; called often, so it should return what it holds."""

    def prepare(self, inputs: Tensor) -> Tensor:
        """Raw inputs -> what the network takes."""
        return inputs

    def augmented(self, inputs: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - for those that override it
        """Randomly changed copies of raw training inputs, drawn from `generator`."""
        return inputs

    def size(self, split: str) -> int:
        return len(self.tensors(split)[1])

    def example_input(self) -> Tensor:
        """The first training example, prepared."""
        return self.prepare(self.tensors("train")[0][:1])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits [N, classes]."""
        return F.cross_entropy(outputs, targets)

    def read(
        self, split: str, batch_size: int, *, augment: bool, generator: torch.Generator | None, limit: int | None
    ) -> Batches:
        inputs, targets = self.tensors(split)
        count = len(targets)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        for rows in order[:limit].split(batch_size):
            raw = inputs[rows]
            if augment:
                raw = self.augmented(raw, generator)
            yield self.prepare(raw), targets[rows]

    def fingerprint(self) -> str:
        """Hash of the training data; part of the name of a cached network, so that other data means another network."""
        inputs, targets = self.tensors("train")
        digest = hashlib.sha256(str((tuple(inputs.shape), inputs.dtype)).encode())
        digest.update(inputs.contiguous().numpy().data)
        digest.update(targets.contiguous().numpy().data)
        return digest.hexdigest()


def guessing_loss(classes: int) -> float:
    """Cross-entropy of equal probabilities for all classes."""
    return math.log(classes)


def split_by_class(targets: Tensor, shares: Sequence[float], *, seed: int) -> list[Tensor]:
    """Row numbers of disjoint parts, each with about its share (0 to 1) of every class; what is left over comes last.

    `targets` [N] are class numbers. Returns `len(shares) + 1` sorted tensors that together hold every row once; the
    same seed gives the same parts on every machine.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
    # Where a class does not divide evenly, the rest is carried over to the next class, so that the sizes are right.
    owed = [0.0] * len(shares)
    for label in targets.unique().tolist():
        rows = (targets == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        start = 0
        for number, share in enumerate(shares):
            owed[number] += share * len(rows)
            take = min(round(owed[number]), len(rows) - start)
            owed[number] -= take
            parts[number].append(rows[start : start + take])
            start += take
        parts[-1].append(rows[start:])
    return [torch.cat(part).sort().values for part in parts]


def shifted(images: Tensor, by: int, generator: torch.Generator) -> Tensor:
    """Raw images [N, C, H, W], each moved by up to `by` pixels up or down and left or right; zeros come in."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (by, by, by, by))
    top = torch.randint(0, 2 * by + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * by + 1, (count, 1), generator=generator)
    y = (top + torch.arange(height))[:, None, :, None]
    x = (left + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None], y, x]


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [N, C, H, W], about half of them flipped left to right."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)
