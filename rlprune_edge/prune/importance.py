"""Rank the channels of every group once, so that a candidate of any width keeps the first of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rlprune_edge.inputs import Input
from rlprune_edge.prune.graph import PRODUCERS, CoupledGroup, is_trained
from rlprune_edge.prune.space import device_of

CRITERIA = ("taylor", "fisher", "magnitude")

Ranking = Mapping[str, np.ndarray]
"""group name -> its channels, most important first"""


def rank(
    model: nn.Module,
    groups: Sequence[CoupledGroup],
    *,
    criterion: str,
    batches: Iterable[tuple[Input, Any]],
    loss: Callable[[torch.Tensor, Any], torch.Tensor],
) -> Ranking:
    """Order every group's channels by importance.

    `taylor`: first-order estimate of the change of the loss when the channel goes, (sum of gradient times weight)^2,
    over the batches and all coupled layers (Molchanov et al., CVPR 2019, eq. 8).
    `fisher`: the diagonal of the empirical Fisher information of a mask over the channels, (sum of activation times its
    gradient)^2 per example, where their consumers read them (Kwon et al., NeurIPS 2022, section 4).
    `magnitude`: sum of |weight| over the coupled layers, each layer's share normalised by its mean (Li et al., ICLR
    2017; group form of Fang et al., CVPR 2023); needs no data. Raises ValueError for another criterion.
    """
    if criterion == "taylor":
        scores = _taylor(model, groups, batches, loss)
    elif criterion == "fisher":
        scores = _fisher(model, groups, batches, loss)
    elif criterion == "magnitude":
        scores = _magnitude(model, groups)
    else:
        raise ValueError(f"unknown criterion {criterion!r}, expected one of {', '.join(CRITERIA)}")
    # stable: equal channels keep the model's own order on every machine
    return {name: np.argsort(-score, kind="stable") for name, score in scores.items()}


def _taylor(
    model: nn.Module,
    groups: Sequence[CoupledGroup],
    batches: Iterable[tuple[Input, Any]],
    loss: Callable[[torch.Tensor, Any], torch.Tensor],
) -> dict[str, np.ndarray]:
    scores = {g.name: np.zeros(g.width) for g in groups}
    modules = dict(model.named_modules())
    training = model.training
    model.eval()  # BatchNorm in inference mode: the gradient is of the network that will be cut
    device = device_of(model)
    for x, y in batches:
        model.zero_grad(set_to_none=True)
        loss(model(x.to(device)), y.to(device)).backward()
        for group in groups:
            for s in group.slices:
                for tensor, dim in _trained(modules[s.layer], s.side):
                    if tensor.grad is not None:
                        change = _per_position(tensor.detach() * tensor.grad, dim)
                        per_channel = np.zeros(group.width)
                        np.add.at(per_channel, s.channels, change[s.positions])
                        scores[group.name] += per_channel**2
    model.zero_grad(set_to_none=True)
    model.train(training)
    return scores


def _fisher(
    model: nn.Module,
    groups: Sequence[CoupledGroup],
    batches: Iterable[tuple[Input, Any]],
    loss: Callable[[torch.Tensor, Any], torch.Tensor],
) -> dict[str, np.ndarray]:
    scores = {g.name: np.zeros(g.width) for g in groups}
    modules = dict(model.named_modules())
    readers = [
        (group, s, modules[s.layer])
        for group in groups
        for s in group.slices
        if s.side == "in" and isinstance(modules[s.layer], PRODUCERS)
    ]
    read: dict[str, torch.Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]  # torch's hook type
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args[0].requires_grad:
                args[0].retain_grad()
            read[name] = args[0]

        return hook

    hooks = [layer.register_forward_pre_hook(keep(s.layer)) for _, s, layer in readers]
    training = model.training
    model.eval()
    device = device_of(model)
    try:
        for x, y in batches:
            model.zero_grad(set_to_none=True)
            # the sum, so that an example's gradient does not depend on how many are in its batch
            (loss(model(x.to(device)), y.to(device)) * len(y)).backward()
            for group, s, layer in readers:
                activation = read[s.layer]
                if activation.grad is None:
                    continue
                at = activation.dim() - 1 if isinstance(layer, nn.Linear) else 1
                others = [d for d in range(1, activation.dim()) if d != at]
                product = activation.detach() * activation.grad
                change = (product.sum(dim=others) if others else product).double().cpu().numpy()
                per_channel = np.zeros((len(change), group.width))
                np.add.at(per_channel.T, s.channels, change[:, s.positions].T)
                scores[group.name] += (per_channel**2).sum(axis=0)
            read.clear()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
        model.train(training)
    return scores


def _magnitude(model: nn.Module, groups: Sequence[CoupledGroup]) -> dict[str, np.ndarray]:
    scores = {g.name: np.zeros(g.width) for g in groups}
    modules = dict(model.named_modules())
    for group in groups:
        for s in group.slices:
            for tensor, dim in _trained(modules[s.layer], s.side):
                size = _per_position(tensor.detach().abs(), dim)[s.positions]
                per_channel = np.zeros(group.width)
                np.add.at(per_channel, s.channels, size)
                scores[group.name] += per_channel / max(per_channel.mean(), 1e-12)
    return scores


def _trained(module: nn.Module, side: str) -> list[tuple[nn.Parameter, int]]:
    """The trained tensors of a layer that carry the channels of one side, with the dimension they lie in."""
    if not is_trained(module):
        return []
    if side == "out":
        return [(p, 0) for n, p in module.named_parameters(recurse=False) if n in ("weight", "bias")]
    weight = module.weight
    return [(weight, 1)] if isinstance(weight, nn.Parameter) and weight.dim() > 1 else []


def _per_position(values: torch.Tensor, dim: int) -> np.ndarray:
    """Sum over all dimensions but one."""
    others = [d for d in range(values.dim()) if d != dim]
    summed = values.sum(dim=others) if others else values
    return summed.double().cpu().numpy()
