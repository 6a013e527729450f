"""Heal a cut network that has no BatchNorm: layers that lost inputs are fitted anew to what they gave in the uncut one.

Each such layer gets the ridge solution of one linear least-squares problem on calibration data, in the order of the
network and within a single pass, so that every layer is fitted to the inputs that the healed layers before it give.
Mask tuning (Kwon et al., NeurIPS 2022, section 4.3) solves the same problem for one factor per head or neuron; here all
weights are free, held near what they were by the penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune_edge.inputs import Input, Inputs
from rlprune_edge.prune.cut import Candidate
from rlprune_edge.prune.graph import CoupledGroup
from rlprune_edge.prune.space import device_of

ROWS = 4096
"""positions (tokens, frames) that a layer is fitted to"""
PENALTY = 0.3
"""times the mean square of an input: on a MiniLM with half of its neurons gone, the error of its last hidden state on
other texts fell from 1.37 of its square to 0.33 with 0.3, 0.40 with 0.01 and 0.38 with 3"""
_UNCHANGED = 1e-6  # of the target's square: a layer whose inputs are as they were


@dataclass(frozen=True)
class Targets:
    """What the layers that read cut channels give in the uncut network, on one batch of calibration inputs."""

    x: Input
    outputs: dict[str, Tensor]
    """layer -> [positions, outputs]"""
    places: dict[str, Tensor]
    """layer -> which positions, as indices into all of the batch's"""


def collect(model: nn.Module, groups: Sequence[CoupledGroup], x: Input, *, rows: int = ROWS, seed: int = 0) -> Targets:
    """Run the uncut model on one batch and keep the outputs of every layer that reads a group's channels."""
    device = device_of(model)
    x = x.to(device)
    modules = dict(model.named_modules())
    readers = {s.layer for g in groups for s in g.slices if s.side == "in" and _fitted(modules[s.layer])}
    outputs: dict[str, Tensor] = {}
    places: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def keep(name: str):  # type: ignore[no-untyped-def]  # torch's hook type
        def hook(_layer: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> None:
            positions = out if isinstance(_layer, nn.Linear) else out.movedim(1, -1)
            valid = _valid(x, positions.shape[:-1]).flatten().nonzero()[:, 0]
            order = torch.randperm(len(valid), generator=generator)[:rows]
            places[name] = valid[order.to(valid.device)].sort().values
            outputs[name] = positions.reshape(-1, positions.shape[-1])[places[name]].clone()

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in sorted(readers)]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return Targets(x, outputs, places)


def refit(candidate: Candidate, targets: Targets, *, penalty: float = PENALTY) -> int:
    """Fit the layers of the cut network to `targets`, in place; how many were changed."""
    model = candidate.module
    modules = dict(model.named_modules())
    changed = 0

    def before(name: str):  # type: ignore[no-untyped-def]  # torch's hook type
        def hook(layer: Fitted, args: tuple[Tensor, ...]) -> None:
            nonlocal changed
            seen = _read(layer, args[0], targets.places[name])
            wanted = targets.outputs[name]
            if name in candidate.outputs:  # it lost outputs as well as inputs
                wanted = wanted[:, torch.from_numpy(candidate.outputs[name]).to(wanted.device)]
            changed += _solve(layer, seen, wanted, penalty)

        return hook

    hooks = [
        modules[name].register_forward_pre_hook(before(name))
        for name in targets.outputs
        if name in modules and _fitted(modules[name])
    ]
    try:
        with torch.no_grad():
            model(targets.x)
    finally:
        for hook in hooks:
            hook.remove()
    return changed


Fitted = nn.Linear | nn.Conv1d | nn.Conv2d


def _fitted(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str) and set(layer.dilation) == {1}
        return plain and layer.groups == 1
    return isinstance(layer, nn.Linear)


def _valid(x: Input, shape: torch.Size) -> Tensor:
    """Which positions [N, length] are no padding, as far as the inputs' own mask says."""
    mask = x.tensors.get("attention_mask") if isinstance(x, Inputs) else None
    if mask is not None and mask.shape == shape:
        return mask.bool()
    some = next(iter(x.tensors.values())) if isinstance(x, Inputs) else x
    return torch.ones(shape, dtype=torch.bool, device=some.device)


def _read(layer: Fitted, x: Tensor, places: Tensor) -> Tensor:
    """What a layer multiplies its weights with at some positions: [positions, weights of one output]."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])[places]
    assert not isinstance(layer.padding, str)  # see `_fitted`
    windows = F.pad(x, [size for size in reversed(layer.padding) for _ in range(2)])
    for axis, (kernel, stride) in enumerate(zip(layer.kernel_size, layer.stride, strict=True), start=2):
        windows = windows.unfold(axis, kernel, stride)  # a view: [N, channels, positions..., kernel...]
    channels_last = windows.movedim(1, 1 + len(layer.kernel_size))
    at = torch.unravel_index(places, channels_last.shape[: 1 + len(layer.kernel_size)])
    return channels_last[at].flatten(1)


def _solve(layer: Fitted, seen: Tensor, wanted: Tensor, penalty: float) -> bool:
    weight = layer.weight.detach().flatten(1).T.double()
    if layer.bias is not None:
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        weight = torch.cat([weight, layer.bias.detach()[None].double()])
    missing = wanted - seen @ weight.to(seen.dtype)
    if float(missing.square().sum()) <= _UNCHANGED * float(wanted.square().sum()):
        return False
    square = (seen.T @ seen).double()
    square.diagonal().add_(penalty * float(square.diagonal().mean()) + 1e-12)
    change = torch.cholesky_solve((seen.T @ missing).double(), torch.linalg.cholesky(square))
    if not torch.isfinite(change).all():
        return False  # inputs so large that their square is none: leave the layer as it is
    fitted = (weight + change).to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias.data.copy_(fitted[-1])
        fitted = fitted[:-1]
    layer.weight.data.copy_(fitted.T.reshape(layer.weight.shape))
    return True
