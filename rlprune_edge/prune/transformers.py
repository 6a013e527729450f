"""What can be cut from a network of transformers: heads, feed-forward neurons, front-end channels, sub-layers, layers.

The dependency graph that serves convolutional networks couples whole hidden dimensions here and knows no heads; the
structure of these networks is known instead (`encoders.py`), so the groups are read off it. The hidden size is left
alone: embeddings, every LayerNorm and every residual share it. So is Wav2Vec2's positional convolution, which is
grouped over the hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from rlprune_edge.encoders import EncoderView, Layer, Part, view
from rlprune_edge.prune.graph import CoupledGroup, Slice


@dataclass(frozen=True)
class NestedBlock:
    """A removable sub-layer, or a layer made of such."""

    name: str
    prefixes: tuple[str, ...]
    """names of the modules that belong to it"""
    parts: tuple[str, ...] = ()


def find_groups(seen: EncoderView) -> tuple[tuple[CoupledGroup, ...], tuple[str, ...]]:
    """Groups in the order of the network, and why other layers are left alone."""
    groups = []
    for convolution in seen.convolutions:
        width = _rows(seen, convolution.conv)
        slices = [Slice(convolution.conv, "out", *_each(width))]
        slices += [Slice(norm, "out", *_each(width)) for norm in convolution.norms]
        slices.append(Slice(convolution.consumer, "in", *_each(width)))
        groups.append(CoupledGroup(convolution.name, width, tuple(slices)))
    for layer in seen.layers:
        if layer.attention is not None:
            heads = _rows(seen, layer.query) // layer.head_size
            places = _each(heads, layer.head_size)
            inner = [Slice(name, "out", *places) for name in (layer.query, layer.key, layer.value)]
            merged = Slice(layer.merge, "in", *places)
            groups.append(CoupledGroup(f"{layer.name}.heads", heads, (*inner, merged), unit="head"))
        if layer.ffn is not None:
            width = _rows(seen, layer.widen)
            slices = [Slice(layer.widen, "out", *_each(width)), Slice(layer.narrow, "in", *_each(width))]
            groups.append(CoupledGroup(f"{layer.name}.neurons", width, tuple(slices), unit="neuron"))
    # one head or neuron cannot be narrowed; its sub-layer can still be removed
    left = ["the hidden size: every residual connection and normalisation shares it"]
    if seen.convolutions:
        left.append("the positional convolution: its groups lie across the hidden size")
    return tuple(g for g in groups if g.width > 1), tuple(left)


def find_blocks(seen: EncoderView) -> list[NestedBlock]:
    """Sub-layers and whole layers, each layer right after its parts; a layer with one part left is that part."""
    blocks = []
    for layer in seen.layers:
        parts = [part for part in (layer.attention, layer.ffn) if part is not None]
        named = [NestedBlock(part.name, tuple(part.swaps)) for part in parts]
        blocks += named
        if len(named) > 1:
            prefixes = tuple(prefix for block in named for prefix in block.prefixes)
            blocks.append(NestedBlock(layer.name, prefixes, tuple(block.name for block in named)))
    return blocks


def attention_layers(model: nn.Module) -> list[Layer]:
    """The layers of `model` that still attend; none where it is no network of transformers."""
    seen = view(model)
    return [layer for layer in seen.layers if layer.attention is not None] if seen else []


def parts_of(seen: EncoderView, dropped: tuple[str, ...]) -> list[Part]:
    """The sub-layers of a plan's dropped blocks; a layer is named by its parts as well, and adds nothing to them."""
    parts = [part for layer in seen.layers for part in (layer.attention, layer.ffn) if part is not None]
    return [part for part in parts if part.name in dropped]


def _each(units: int, size: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Positions 0 .. units * size - 1, and the unit that each belongs to."""
    return np.arange(units * size), np.repeat(np.arange(units), size)


def _rows(seen: EncoderView, name: str) -> int:
    weight = seen.model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return int(weight.shape[0])
