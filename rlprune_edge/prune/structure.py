"""What can be cut from any model: by what is known of transformers' networks, by tracing for all others."""

from __future__ import annotations

from torch import nn

from rlprune_edge.encoders import view
from rlprune_edge.inputs import Input
from rlprune_edge.prune import graph, transformers
from rlprune_edge.prune.graph import CoupledGroup


def find_groups(model: nn.Module, example: Input) -> tuple[tuple[CoupledGroup, ...], tuple[str, ...]]:
    """Groups of channels, heads or neurons that are cut together, and why other layers are left alone.

    `example` is one input, [1, ...]. Raises UserError where a model is neither known nor can be traced.
    """
    seen = view(model)
    return transformers.find_groups(seen) if seen is not None else graph.find_groups(model, example)
