"""Blocks made of blocks: a transformer's layer and its two sub-layers are one choice, whichever way it is made."""

from __future__ import annotations

import numpy as np
import pytest
from encoder_samples import encoder, inputs, parts

from rlprune_edge.records import Baseline, Plan, PruningSpace, Quality, Target, Trial
from rlprune_edge.search.arrays import SpaceArrays
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.latency import LatencyModel
from rlprune_edge.search.limits import Limits, filled
from rlprune_edge.search.sensitivity import Prior, Sensitivity

LAYER_1 = ("layer.1.attention", "layer.1.ffn", "layer.1")


@pytest.fixture(scope="module")
def space() -> PruningSpace:
    found = parts(encoder("bert"), inputs("bert"))[1]
    return found.with_levels({g.name: (g.width, g.width // 2, 1) for g in found.groups})


def at(space: PruningSpace, name: str) -> int:
    return [b.name for b in space.blocks].index(name)


def test_a_layer_is_gone_with_its_parts_and_the_parts_with_it(space: PruningSpace) -> None:
    by_layer, by_parts = space.plan({}, ("layer.1",)), space.plan({}, LAYER_1[:2])
    assert by_layer == by_parts
    assert by_layer.key == by_parts.key
    assert set(by_layer.dropped) == set(LAYER_1)
    assert space.plan({}, LAYER_1[:1]).dropped == LAYER_1[:1]
    assert space.plan({"layer.1.heads": 2, "layer.1.neurons": 3}, ("layer.1",)) == by_layer
    assert space.macs(by_layer) < space.macs(space.plan({}, LAYER_1[:1])) < space.macs(space.uncut())


def test_rows_of_dropped_blocks_stay_whole(space: PruningSpace) -> None:
    arrays = SpaceArrays(space)
    none = np.zeros(len(space.blocks), dtype=bool)

    def names(row: np.ndarray) -> set[str]:
        return {b.name for b, gone in zip(space.blocks, row, strict=True) if gone}

    def removed(row: np.ndarray, name: str) -> np.ndarray:
        return arrays.removed(row[None], np.array([at(space, name)]))[0]

    whole = removed(none, "layer.1")
    assert names(whole) == set(LAYER_1)
    half = removed(none, "layer.1.ffn")
    assert names(half) == {"layer.1.ffn"}
    assert names(removed(half, "layer.1.attention")) == set(LAYER_1)
    assert names(arrays.restored(whole, at(space, "layer.1.attention"))) == {"layer.1.ffn"}
    assert names(arrays.restored(whole, at(space, "layer.1"))) == set()


def nothing_is_measured(_: Plan) -> Trial:
    raise AssertionError("no episode may end here")


def test_the_environment_offers_a_layer_only_while_it_is_whole(space: PruningSpace) -> None:
    quality = Quality(90.0, 0.3, 100)
    baseline = Baseline(quality, 10.0, None, space.parameters, space.macs(space.uncut()))
    env = PruningEnv(space, nothing_is_measured, baseline=baseline, target=Target(speedup=50.0))
    groups = len(space.groups)
    env.reset()
    assert env.action_masks()[groups + at(space, "layer.1")]
    env.walk.take(np.array([groups + at(space, "layer.1.attention")]))
    masks = env.action_masks()
    assert not masks[groups + at(space, "layer.1")], "what is left of it is the other part"
    assert masks[groups + at(space, "layer.1.ffn")]
    heads = [g.name for g in space.groups].index("layer.1.heads")
    assert not masks[heads], "its heads are gone"
    env.walk.take(np.array([groups + at(space, "layer.2")]))
    assert set(env.proposal().dropped) == {"layer.1.attention", "layer.2.attention", "layer.2.ffn", "layer.2"}
    assert not env.action_masks()[groups + at(space, "layer.2.ffn")]


def test_slack_brings_back_a_part_of_a_layer(space: PruningSpace) -> None:
    model = LatencyModel(space, (), baseline_ms=10.0)
    plan = space.plan({}, ("layer.1",))
    room = float(model.predict_ms(space.plan({}, ("layer.1.attention",)))) * 1.06  # 5 % is margin
    back = filled(plan, model, Limits(room, None))
    assert set(back.dropped) < set(LAYER_1)
    assert "layer.1" not in back.dropped


def test_a_layers_cost_is_not_counted_with_that_of_its_parts(space: PruningSpace) -> None:
    costs = {b.name: 0.1 for b in space.blocks} | {"layer.1": 0.15}
    prior = Prior(space, Sensitivity({}, costs))
    arrays = SpaceArrays(space)

    def total(*dropped: str) -> float:
        return float(prior.total(*arrays.encode(space.plan({}, dropped)), arrays.block_of_group)[0])

    assert total("layer.1") == pytest.approx(0.15)
    assert total("layer.1.ffn") == pytest.approx(0.1)
    assert total("layer.1", "layer.0.ffn") == pytest.approx(0.25)
