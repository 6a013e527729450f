"""Find which channels belong together, by torch-pruning's dependency graph (its one home here)."""

# torch-pruning 1.6.1 calls itself 1.6.0 in `__version__`; ask importlib.metadata for the version.
# A layer that is cut in `forward` code without a module (slicing, padding by hand) is traced as if its channels
# were coupled one to one. Such a shortcut has to be a module; see `tasks/resnet.py`, PadShortcut.

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.utils.hooks import RemovableHandle

from rlprune_edge.errors import UserError
from rlprune_edge.inputs import Input

PRODUCERS = (nn.Conv2d, nn.Conv1d, nn.Linear)


@dataclass(frozen=True)
class Slice:
    """Which positions of one side of one layer belong to which channel of a group.

    For `Linear` after a flatten of [C, 4, 4], channel 0 owns positions 0..15 of the input side, and so on:
    `positions = [0, 1, ..., 16*C - 1]`, `channels = [0]*16 + [1]*16 + ...`.
    """

    layer: str
    side: str
    """`out` or `in`"""
    positions: np.ndarray
    channels: np.ndarray


@dataclass(frozen=True)
class CoupledGroup:
    """A set of channels that can only be cut together, with every place where they appear."""

    name: str
    width: int
    slices: tuple[Slice, ...]
    unit: str = "channel"

    def layers(self, side: str, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
        """Convolutions and linear layers that have these channels on the given side, trained ones only."""
        return tuple(
            s.layer
            for s in self.slices
            if s.side == side and isinstance(modules[s.layer], PRODUCERS) and is_trained(modules[s.layer])
        )


def is_trained(module: nn.Module) -> bool:
    """False for layers whose weights are all fixed by construction, such as a 0/1 shortcut."""
    return any(p.requires_grad for p in module.parameters(recurse=False))


def find_groups(model: nn.Module, example: Input) -> tuple[tuple[CoupledGroup, ...], tuple[str, ...]]:
    """Groups of coupled channels in the order of the network, and why other layers are left alone.

    `example` is one input, [1, ...]. Groups whose channels are the model's own outputs (heads, classifiers) are never
    returned. Raises UserError where the model cannot be traced.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
            found = list(graph.get_all_groups(root_module_types=list(PRODUCERS)))
    except Exception as error:  # torch-pruning has no errors of its own: tracing fails with whatever torch raised
        raise UserError(
            f"The model could not be traced for pruning ({type(error).__name__}: {error}).\n"
            "Expected: a module that takes one tensor and returns one tensor, built from standard layers."
        ) from error
    names = {module: name for name, module in model.named_modules()}
    order = {name: i for i, name in enumerate(layers_in_order(model, example))}
    groups, skipped = [], []
    for raw in found:
        group, reason = _read_group(raw, graph, names, order)
        if group is None:
            skipped.append(reason)
        else:
            groups.append(group)
    groups.sort(key=lambda g: order[g.name])
    return tuple(groups), tuple(skipped)


def _read_group(
    raw: Any, graph: Any, names: Mapping[nn.Module, str], order: Mapping[str, int]
) -> tuple[CoupledGroup | None, str]:
    slices: dict[tuple[str, str], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    producers: list[str] = []
    consumers = 0
    width = len(raw[0].idxs)
    root = names.get(raw[0].dep.target.module, "?")
    for item in raw.items:
        module, handler = item.dep.target.module, item.dep.handler
        if isinstance(module, nn.Parameter):
            return None, f"{root}: coupled with a free-standing parameter"
        if module not in names:
            continue  # an element-wise operation, a reshape: nothing to cut in it
        side = "out" if graph.is_out_channel_pruning_fn(handler) else "in"
        positions, channels = slices[(names[module], side)]
        positions.extend(int(i) for i in item.idxs)
        channels.extend(int(i) for i in item.root_idxs)
        if isinstance(module, PRODUCERS):
            if getattr(module, "groups", 1) not in (1, module.weight.shape[0]):
                return None, f"{root}: part of a grouped convolution"
            if side == "out" and is_trained(module):
                producers.append(names[module])
            elif side == "in":
                consumers += 1
    if not consumers:
        return None, f"{root}: its channels are the model's outputs"
    if not producers or width < 2:
        return None, f"{root}: nothing trained to cut"
    name = min(producers, key=lambda p: order.get(p, len(order)))
    ordered = []
    for (layer, side), (positions, channels) in slices.items():
        by_position = np.argsort(positions, kind="stable")
        ordered.append(Slice(layer, side, np.array(positions)[by_position], np.array(channels)[by_position]))
    ordered.sort(key=lambda s: (order.get(s.layer, len(order)), s.side))
    return CoupledGroup(name, width, tuple(ordered)), ""


def layers_in_order(model: nn.Module, example: Input) -> list[str]:
    """Names of all leaf modules in the order in which they run on `example`."""
    seen: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    hooks = [m.register_forward_hook(note(n)) for n, m in model.named_modules() if not any(m.children())]
    run_once(model, example, hooks)
    return list(dict.fromkeys(seen))


def run_once(model: nn.Module, example: Input, hooks: Sequence[RemovableHandle]) -> None:
    """Run the model on `example` for the sake of its hooks, and take them off again whatever happens."""
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()


def remove(module: nn.Module, side: str, positions: list[int]) -> None:
    """Cut positions out of one side of one layer, in place, with torch-pruning's own surgery for that type of layer."""
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        _narrow_norm(module, positions)
        return
    frozen = {name for name, p in module.named_parameters(recurse=False) if not p.requires_grad}
    surgery = tp.pruner.function.PrunerBox[tp.ops.module2type(module)]
    cut = surgery.prune_out_channels if side == "out" else surgery.prune_in_channels
    cut(module, positions)
    for name, parameter in module.named_parameters(recurse=False):
        parameter.requires_grad_(name not in frozen)


def _narrow_norm(norm: nn.LayerNorm | nn.GroupNorm, positions: list[int]) -> None:
    # torch-pruning 1.6.1 keeps a LayerNorm's channels in the order of a Python set, not theirs when few are left.
    width = norm.weight.shape[0]
    kept = [place for place in range(width) if place not in set(positions)]
    for name, parameter in list(norm.named_parameters(recurse=False)):
        setattr(norm, name, nn.Parameter(parameter.detach()[kept].clone(), requires_grad=parameter.requires_grad))
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (len(kept),)
    else:
        norm.num_channels = len(kept)
