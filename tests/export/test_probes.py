"""Probes of a board's staircase for heads, neurons and one-dimensional convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from encoder_samples import encoder, inputs, parts

from rlprune_edge.export import host, probes
from rlprune_edge.export.work import work_of
from rlprune_edge.records import Op, PruningSpace


def space_of(family: str) -> PruningSpace:
    model = encoder(family)
    return parts(model, inputs(family))[1]


def run(model: bytes, path: Path) -> np.ndarray:
    path.write_bytes(model)
    shape = [d.dim_value for d in onnx.load_from_string(model).graph.input[0].type.tensor_type.shape.dim]
    (out,) = host.outputs(path, {"input": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}).values()
    return out


@pytest.mark.parametrize("family", ["bert", "distilbert", "wav2vec2"])
def test_every_kind_of_group_has_a_probe_that_runs(family: str, tmp_path: Path) -> None:
    space = space_of(family)
    found = probes.probes(space, {g.name: (g.width, 3) for g in space.groups})
    assert sorted(n for p in found for n in p.groups) == sorted(g.name for g in space.groups)
    by_group = {n: p for p in found for n in p.groups}
    assert by_group["layer.0.heads"] is by_group["layer.2.heads"], "layers of the same sizes share one"
    assert by_group["layer.0.heads"] is not by_group["layer.0.neurons"]
    for probe in found:
        for width, model in probe.models.items():
            out = run(model, tmp_path / "probe.onnx")
            assert np.isfinite(out).all()
            assert out.std() > 1e-4, (probe.groups, width)


def test_the_probe_of_heads_does_the_work_of_an_attention_sub_layer() -> None:
    space = space_of("bert")
    group = space.group("layer.0.heads")
    (probe,) = [p for p in probes.probes(space, {g.name: (4, 1) for g in space.groups}) if group.name in p.groups]
    ops = {op.name: op for op in space.ops}
    named = [*group.producers, *group.consumers, "layer.0.attention"]
    for heads in (4, 1):
        macs = sum(
            ops[n].macs_at(
                heads * ops[n].in_repeat if ops[n].in_group else ops[n].in_channels,
                heads * ops[n].out_repeat if ops[n].out_group else ops[n].out_channels,
            )
            for n in named
        )
        assert work_of(onnx.load_from_string(probe.models[heads])).flops == 2 * macs


def convolution(length: int, *, channels: int = 512) -> Op:
    return Op(
        name="conv",
        kind="conv1d",
        in_channels=channels,
        out_channels=channels,
        kernel=(1, 3),
        stride=(1, 2),
        padding=(0, 0),
        dilation=(1, 1),
        conv_groups=1,
        in_hw=(1, length),
        out_hw=(1, (length - 3) // 2 + 1),
        in_group=None,
        out_group=None,
        block=None,
    )


def test_long_signals_are_shortened_and_their_times_scaled() -> None:
    first = convolution(15999)
    second = convolution(first.out_hw[1])
    (short, shorter), scale = probes._shortened(first, second)
    assert shorter is not None
    assert short.out_hw == shorter.in_hw, "the second still takes what the first gives"
    assert short.macs + shorter.macs == pytest.approx(probes.LONGEST_MACS, rel=0.05)
    assert scale == pytest.approx((first.macs + second.macs) / (short.macs + shorter.macs))
    assert probes._shortened(convolution(129), None) == ((convolution(129), None), 1.0)
