"""Cut a plan out of a model, and prove that what is left computes what the masked model computes."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rlprune_edge import layout
from rlprune_edge.encoders import Bypassed, view
from rlprune_edge.errors import CandidateError
from rlprune_edge.inputs import Input
from rlprune_edge.prune import graph
from rlprune_edge.prune.graph import PRODUCERS, CoupledGroup
from rlprune_edge.prune.importance import Ranking
from rlprune_edge.prune.space import count_parameters, device_of, replacement
from rlprune_edge.prune.transformers import parts_of
from rlprune_edge.records import Plan


@dataclass(frozen=True)
class Candidate:
    """A cut network, alive only while it is evaluated."""

    module: nn.Module
    plan: Plan
    parameters: int
    outputs: dict[str, np.ndarray]
    """of every layer that lost some: which of the uncut layer's outputs are left"""


def apply(model: nn.Module, groups: Sequence[CoupledGroup], ranking: Ranking, plan: Plan) -> Candidate:
    """A copy of `model` with the least important channels and the dropped blocks of `plan` removed.

    Every group keeps the first `plan.widths[group]` channels of its ranking, in the model's own order. `model` itself
    is not touched. The copy is in inference mode; its BatchNorm statistics are still the uncut model's.
    """
    small = copy.deepcopy(model).eval()
    modules = dict(small.named_modules())
    doomed: dict[tuple[str, str], set[int]] = defaultdict(set)
    outputs: dict[str, np.ndarray] = {}
    for group in groups:
        lost = _lost_channels(group, ranking, plan)
        for s in group.slices:
            doomed[(s.layer, s.side)].update(int(p) for p in s.positions[lost[s.channels]])
    for (layer, side), positions in doomed.items():
        if positions:
            if side == "out" and isinstance(modules[layer], PRODUCERS):
                outputs[layer] = np.setdiff1d(np.arange(_outputs(modules[layer])), list(positions))
            graph.remove(modules[layer], side, sorted(positions))
    seen = view(small)
    if seen is not None:
        for part in parts_of(seen, plan.dropped):
            seen.leave_out(part)
        seen.settle()
    else:
        for name in plan.dropped:
            small.set_submodule(name, replacement(modules[name]))
    return Candidate(layout.fast(small), plan, count_parameters(small), outputs)


def masked_twin(
    model: nn.Module, groups: Sequence[CoupledGroup], ranking: Ranking, plan: Plan
) -> Callable[[Input], torch.Tensor]:
    """The uncut model with the plan's channels silenced where they are used, without any surgery.

    Every layer that reads a lost channel reads zero instead, a LayerNorm over lost channels normalises the others
    alone, and dropped blocks are bypassed by hooks. It shares the weights of `model` and no code with the cutting, so
    it can testify against it.
    """
    modules = dict(model.named_modules())
    silent: dict[str, np.ndarray] = {}
    normalised: dict[str, np.ndarray] = {}
    for group in groups:
        lost = _lost_channels(group, ranking, plan)
        for s in group.slices:
            layer = modules[s.layer]
            if s.side == "in" and isinstance(layer, PRODUCERS) and lost.any():
                size = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
                mask = silent.setdefault(s.layer, np.ones(int(size), dtype=np.float32))
                mask[s.positions[lost[s.channels]]] = 0.0
            elif isinstance(layer, nn.LayerNorm) and lost.any():
                normalised[s.layer] = s.positions[~lost[s.channels]]
    seen = view(model)
    parts = parts_of(seen, plan.dropped) if seen is not None else []
    blocks = plan.dropped if seen is None else ()

    def run(x: Input) -> torch.Tensor:
        hooks = []
        training = model.training
        model.eval()
        try:
            for name, mask in silent.items():
                hooks.append(modules[name].register_forward_pre_hook(_silence(modules[name], mask)))
            for name, kept in normalised.items():
                hooks.append(modules[name].register_forward_hook(_normalise(kept)))
            for name in blocks:
                hooks.append(modules[name].register_forward_hook(_bypass(modules[name])))
            with torch.no_grad(), Bypassed(model, parts):
                out = model(x)
        finally:
            for hook in hooks:
                hook.remove()
            model.train(training)
        assert isinstance(out, torch.Tensor)
        return out

    return run


def check_against_masked(
    candidate: Candidate,
    model: nn.Module,
    groups: Sequence[CoupledGroup],
    ranking: Ranking,
    x: Input,
    *,
    tolerance: float = 1e-3,
) -> float:
    """Largest difference between the cut and the masked network on `x`, relative to the largest output.

    Must be called before the candidate's BatchNorm statistics or weights change. Raises CandidateError
    (`masked_mismatch`) above `tolerance`: float32 sums in another order differ by about 1e-6.
    """
    x = x.to(device_of(model))
    expected = masked_twin(model, groups, ranking, candidate.plan)(x)
    with torch.no_grad():
        got = candidate.module(x)
    if got.shape != expected.shape:
        raise CandidateError("masked_mismatch", f"cut output has shape {tuple(got.shape)}, not {tuple(expected.shape)}")
    difference = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not difference <= tolerance:
        raise CandidateError(
            "masked_mismatch",
            f"the cut network differs from the masked one by {difference:.2g} (at most {tolerance:g} is rounding)",
        )
    return difference


def _outputs(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return len(weight)


def _lost_channels(group: CoupledGroup, ranking: Ranking, plan: Plan) -> np.ndarray:
    """Boolean per channel of the group: True where the plan gives it up."""
    lost = np.zeros(group.width, dtype=bool)
    lost[ranking[group.name][plan.widths[group.name] :]] = True
    return lost


def _silence(layer: nn.Module, mask: np.ndarray):  # type: ignore[no-untyped-def]  # torch's hook type
    def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = args[0]
        shape = [1] * x.dim()
        shape[-1 if isinstance(layer, nn.Linear) else 1] = -1
        return (x * torch.from_numpy(mask).to(x).reshape(shape), *args[1:])

    return hook


def _normalise(kept: np.ndarray):  # type: ignore[no-untyped-def]  # torch's hook type
    def hook(norm: nn.LayerNorm, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        places = torch.from_numpy(kept).to(out.device)
        whole = torch.zeros_like(out)
        whole[..., places] = F.layer_norm(
            args[0][..., places], (len(kept),), norm.weight[places], norm.bias[places], norm.eps
        )
        return whole

    return hook


def _bypass(block: nn.Module):  # type: ignore[no-untyped-def]  # torch's hook type
    def hook(_module: nn.Module, args: tuple[torch.Tensor, ...], _out: torch.Tensor) -> torch.Tensor:
        kept: torch.Tensor = replacement(block)(args[0])
        return kept

    return hook
