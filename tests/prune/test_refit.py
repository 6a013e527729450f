"""Healing without BatchNorm: layers fitted anew to what they gave before the cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoder_samples import encoder, inputs, parts
from torch import nn

from rlprune_edge.inputs import Input
from rlprune_edge.prune import cut, graph, recover, refit
from rlprune_edge.prune import space as spaces


def error(network: nn.Module, other: nn.Module, x: Input) -> float:
    with torch.no_grad():
        wanted, got = other(x), network(x)
    return float((got - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("family", ["bert", "distilbert", "wav2vec2", "wav2vec2-norm-first"])
def test_a_cut_encoder_comes_closer_to_the_uncut_one_on_inputs_it_was_not_fitted_to(family: str) -> None:
    model = encoder(family)
    x = inputs(family, 64)
    groups, space = parts(model, x)
    ranking = {g.name: np.arange(g.width) for g in groups}
    plan = space.plan({g.name: max(1, round(0.6 * g.width)) for g in groups})
    targets = refit.collect(model, groups, x[:48])
    small = cut.apply(model, groups, ranking, plan)
    before = error(small.module, model, x[48:])
    changed = refit.refit(small, targets)
    assert changed == len(targets.outputs)
    assert error(small.module, model, x[48:]) < 0.7 * before


class Redundant(nn.Module):
    """Two convolutions and a linear layer; the last four channels repeat the first four."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1, stride=2), nn.Conv2d(8, 6, 3, padding=1)
        self.last = nn.Linear(6, 3)
        with torch.no_grad():
            self.first.weight[4:] = self.first.weight[:4]
            self.first.bias[4:] = self.first.bias[:4]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))).mean(dim=(2, 3)))


def test_channels_that_others_repeat_are_made_up_for_exactly() -> None:
    torch.manual_seed(0)
    model, x = Redundant().eval(), torch.randn(40, 2, 12, 12)
    groups, _ = graph.find_groups(model, x[:1])
    space = spaces.build(model, x[:1], groups)
    small = cut.apply(model, groups, {g.name: np.arange(g.width) for g in groups}, space.plan({"first": 4}))
    before = error(small.module, model, x)
    assert not recover.has_batchnorm(small.module)
    assert refit.refit(small, refit.collect(model, groups, x), penalty=1e-9) == 1, (
        "the last layer's inputs are as before"
    )
    assert before > 1e-3
    assert error(small.module, model, x) < 1e-6


def test_an_uncut_network_is_left_alone() -> None:
    model, x = encoder("bert"), inputs("bert", 8)
    groups, space = parts(model, x)
    same = cut.apply(model, groups, {g.name: np.arange(g.width) for g in groups}, space.uncut())
    assert refit.refit(same, refit.collect(model, groups, x)) == 0
    assert error(same.module, model, x) == 0


def test_padding_is_not_fitted_to() -> None:
    model, x = encoder("bert"), inputs("bert", 8)
    groups, _ = parts(model, x)
    targets = refit.collect(model, groups, x)
    mask = x.tensors["attention_mask"].flatten()
    for name, places in targets.places.items():
        assert mask[places].all(), name
        assert len(places) == len(targets.outputs[name]) == int(mask.sum())
