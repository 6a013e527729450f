"""Networks of transformers as ONNX files, through optimum, uncut and cut, at other lengths than they were traced at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_samples import FAMILIES, encoder, inputs, parts, random_plan

from rlprune_edge.errors import CandidateError
from rlprune_edge.export import exporter, onnx_graph, parity
from rlprune_edge.inputs import Inputs
from rlprune_edge.prune import cut


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_network_exports_with_free_lengths_and_equals_torch(family: str, tmp_path: Path) -> None:
    model, x = encoder(family), inputs(family)
    groups, space = parts(model, x)
    small = cut.apply(model, groups, {g.name: np.arange(g.width) for g in groups}, random_plan(space, 3))
    path = tmp_path / "small.onnx"
    exporter.export(small.module, x[:1], path)
    outputs, difference = parity.check(path, small.module, x[:1])
    assert difference < 1e-4
    artifact = onnx_graph.describe(path, max_difference=difference)
    assert set(outputs) == {spec.name for spec in artifact.outputs} == {"logits"}
    assert {spec.name for spec in artifact.inputs} <= set(x.tensors)
    assert all(spec.shape == (None, None) for spec in artifact.inputs), "batch and length are free"
    shorter = Inputs({name: tensor[:1, : tensor.shape[1] * 5 // 8] for name, tensor in x.tensors.items()})
    assert parity.check(path, small.module, shorter)[1] < 1e-4
    if family != "wav2vec2-norm-first":  # its mask is no input of the file: one recording at a time
        assert parity.check(path, small.module, x)[1] < 1e-4
    assert artifact.opset == 17
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"], "nothing is left beside it"


def test_what_optimum_cannot_express_is_the_candidates_fault(tmp_path: Path) -> None:
    model = encoder("bert")

    class Odd(torch.nn.Module):
        def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, None]:
            return torch.linalg.eigvals(hidden @ hidden.transpose(1, 2)).real[..., None] * hidden, None

    model.network.bert.encoder.layer[0].attention = Odd()
    with pytest.raises(CandidateError, match="optimum: "):
        exporter.export(model, inputs("bert")[:1], tmp_path / "odd.onnx")
    assert list(tmp_path.iterdir()) == []
