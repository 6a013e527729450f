"""What goes into a network: one tensor, or several named ones that belong together (token ids and their mask).

The rooms treat both alike: `x.to(device)`, `len(x)`, `x[:1]`, `model(x)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

SINGLE = "input"
"""name of the only input of a network that takes one tensor"""


class Inputs:
    """Named tensors with the same number of examples in their first dimension; what transformers' networks take."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError if there are none or their first dimensions differ."""
        self.tensors = dict(tensors)
        if len({len(t) for t in self.tensors.values()}) != 1:
            shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in self.tensors.items())
            raise ValueError(f"inputs must hold the same number of examples: {shapes or 'none given'}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Tensor) -> Inputs:
        return Inputs({name: tensor[rows] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device) -> Inputs:
        return Inputs({name: tensor.to(device) for name, tensor in self.tensors.items()})


Input: TypeAlias = Tensor | Inputs


def few(example: Input, others: Input, count: int) -> Input:
    """`count` inputs: of single tensors the example and some others, of named ones, whose lengths differ, others."""
    if isinstance(example, Tensor) and isinstance(others, Tensor):
        return torch.cat([example, others[: count - len(example)]])
    return others[:count]


def named(x: Input) -> dict[str, Tensor]:
    """The tensors by name; a single one is called `input`."""
    return dict(x.tensors) if isinstance(x, Inputs) else {SINGLE: x}
