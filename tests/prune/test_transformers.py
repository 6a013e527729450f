"""Cutting networks of transformers: heads, neurons, front-end channels, sub-layers and layers, in every family."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from encoder_samples import FAMILIES, SPEECH, encoder, inputs, parts, random_plan
from torch import nn

from rlprune_edge import encoders
from rlprune_edge.errors import CandidateError
from rlprune_edge.prune import cut, importance, structure
from rlprune_edge.prune import space as spaces
from rlprune_edge.search.arrays import SpaceArrays


def in_order(groups: object) -> importance.Ranking:
    return {g.name: np.arange(g.width) for g in groups}  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_can_be_cut_is_found(family: str) -> None:
    model, x = encoder(family), inputs(family)
    groups, space = parts(model, x)
    units = [g.unit for g in groups]
    assert (units.count("head"), units.count("neuron"), units.count("channel")) == (3, 3, 3 if family in SPEECH else 0)
    layers = [b for b in space.blocks if b.parts]
    assert [b.name for b in layers] == ["layer.0", "layer.1", "layer.2"]
    assert [b.parts for b in layers] == [(f"layer.{i}.attention", f"layer.{i}.ffn") for i in range(3)]
    assert len(space.blocks) == 9
    assert {g.block for g in space.groups if g.unit == "head"} == {f"layer.{i}.attention" for i in range(3)}
    assert {g.name: g.width for g in space.groups}["layer.1.heads"] == 4
    assert space.parameters == sum(p.numel() for p in model.parameters())
    depths = [g.depth for g in space.groups]
    assert depths == sorted(depths)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_network_equals_its_masked_twin_and_its_counted_work(family: str) -> None:
    model, x = encoder(family), inputs(family)
    groups, space = parts(model, x)
    ranking = {g.name: np.random.default_rng(0).permutation(g.width) for g in groups}
    with torch.no_grad():
        uncut = model(x)
    arrays = SpaceArrays(space)
    for seed in range(8):
        plan = random_plan(space, seed)
        candidate = cut.apply(model, groups, ranking, plan)
        assert cut.check_against_masked(candidate, model, groups, ranking, x) < 1e-4
        with torch.no_grad():
            assert (candidate.module(x) - uncut).abs().max() > 1e-3, "a cut that changes nothing proves nothing"
        macs = spaces.count_macs(candidate.module, x[:1])
        assert macs == space.macs(plan) == arrays.op_macs(*arrays.encode(plan)).sum()
        assert candidate.parameters < space.parameters
    with torch.no_grad():
        assert torch.equal(model(x), uncut), "the model itself is left as it was"


@pytest.mark.parametrize("family", ["bert", "wav2vec2", "wav2vec2-norm-first"])
def test_a_cut_that_is_wrong_is_noticed(family: str) -> None:
    model, x = encoder(family), inputs(family)
    groups, space = parts(model, x)
    plan = space.plan({"layer.1.heads": 2}, ("layer.0.ffn",))
    candidate = cut.apply(model, groups, in_order(groups), plan)
    other = {**in_order(groups), "layer.1.heads": np.arange(4)[::-1]}
    with pytest.raises(CandidateError, match="differs from the masked one"):
        cut.check_against_masked(candidate, model, groups, other, x)


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_written_down_rebuild_the_network(family: str) -> None:
    model, x = encoder(family), inputs(family)
    groups, space = parts(model, x)
    plan = random_plan(space, 5, drop=0.3)
    small = cut.apply(model, groups, in_order(groups), plan).module
    seen = encoders.view(small)
    assert seen is not None
    shape = seen.shape()
    fresh = encoder(family, seed=9)
    encoders.reshape(fresh.network, shape)
    fresh.network.load_state_dict(small.network.state_dict())
    with torch.no_grad():
        assert torch.allclose(fresh(x), small(x), atol=1e-5)
    for name, module in fresh.network.named_modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape), name
        elif isinstance(module, nn.GroupNorm):
            assert module.num_groups == module.num_channels == len(module.weight)


def test_widths_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="widths for 2 layers and 0 convolutions of another network"):
        encoders.reshape(encoder("bert").network, {"layers": [{"heads": 1, "neurons": 1}] * 2, "channels": []})
    with pytest.raises(ValueError, match="not an encoder"):
        encoders.reshape(nn.Linear(2, 2), {})


@pytest.mark.parametrize("family", ["distilbert", "hubert"])
def test_a_pruned_network_can_be_pruned_again(family: str) -> None:
    model, x = encoder(family), inputs(family)
    groups, space = parts(model, x)
    plan = space.plan({"layer.2.neurons": 40, "layer.2.heads": 1}, ("layer.0", "layer.1.attention"))
    once = cut.apply(model, groups, in_order(groups), plan).module
    groups, space = parts(once, x)
    names = {g.name for g in groups}
    assert "layer.2.heads" not in names, "a single head cannot be narrowed"
    assert {b.name for b in space.blocks} == {"layer.1.ffn", "layer.2.attention", "layer.2.ffn", "layer.2"}
    twice = space.plan({"layer.2.neurons": 7}, ("layer.1.ffn",))
    candidate = cut.apply(once, groups, in_order(groups), twice)
    assert cut.check_against_masked(candidate, once, groups, in_order(groups), x) < 1e-4


def test_a_left_out_layer_leaves_no_operation_behind() -> None:
    model, x = encoder("bert"), inputs("bert")
    groups, space = parts(model, x)
    everything = tuple(b.name for b in space.blocks)
    empty = cut.apply(model, groups, in_order(groups), space.plan({}, everything)).module
    with torch.no_grad():
        hidden = empty.network.bert(**x.tensors).last_hidden_state
        embedded = empty.network.bert.embeddings(x.tensors["input_ids"])
    assert torch.equal(hidden, embedded)


@pytest.mark.parametrize(("criterion", "family"), [("fisher", "bert"), ("taylor", "bert"), ("fisher", "wav2vec2")])
def test_an_important_head_is_kept_first(criterion: str, family: str) -> None:
    model, x = encoder(family), inputs(family, 8)
    groups, _ = structure.find_groups(model, x[:1])
    target = torch.arange(8) % 2
    layer = model.network.bert.encoder.layer[1].attention.output.dense if family == "bert" else None
    if layer is None:
        layer = model.network.wav2vec2.encoder.layers[1].attention.out_proj
    with torch.no_grad():  # heads 0, 1 and 3 hardly say anything
        loud = copy.deepcopy(layer.weight[:, 16:24])
        layer.weight.mul_(1e-3)
        layer.weight[:, 16:24] = loud

    def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(out if out.dim() == 2 else out.mean(dim=1), y)

    ranking = importance.rank(model, groups, criterion=criterion, batches=[(x, target)], loss=loss)
    assert ranking["layer.1.heads"][0] == 2
    assert all(sorted(order) == list(range(len(order))) for order in ranking.values())


def test_fisher_does_not_depend_on_how_examples_are_batched() -> None:
    model, x = encoder("bert"), inputs("bert", 6)
    groups, _ = structure.find_groups(model, x[:1])
    target = torch.arange(6) % 2
    whole = importance._fisher(model, groups, [(x, target)], torch.nn.functional.cross_entropy)
    halves = [(x[:2], target[:2]), (x[2:], target[2:])]
    split = importance._fisher(model, groups, halves, torch.nn.functional.cross_entropy)
    for name, scores in whole.items():
        assert np.allclose(scores, split[name], rtol=1e-3), name
        assert scores.max() > 0
