"""Exported files: complete, the same as torch, the same bytes again, and refused where they are wrong."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rlprune_edge.errors import CandidateError, UserError
from rlprune_edge.export import host, onnx_graph, parity, torch_export
from rlprune_edge.export import probes as width_probes
from rlprune_edge.prune import graph
from rlprune_edge.prune import space as spaces
from rlprune_edge.records import OnnxArtifact, PruningSpace
from rlprune_edge.tasks.resnet import ResNet, cifar_resnet

PARAMETERS = 269_722  # of ResNet-20 with option-A shortcuts, 0.27 M in the paper


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(20).eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(network: nn.Module, x: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    torch_export.export(network, x[:1], path)
    return path


def exported_as(module: nn.Module, x: torch.Tensor, path: Path) -> OnnxArtifact:
    torch_export.export(module, x[:1], path)
    return onnx_graph.describe(path, max_difference=0.0)


# ---------------------------------------------------------------- export and description


def test_the_file_says_what_it_takes_and_gives(exported: Path) -> None:
    artifact = onnx_graph.describe(exported, max_difference=1e-6)
    assert [(t.name, t.dtype, t.shape) for t in artifact.inputs] == [("input", "float32", (None, 3, 32, 32))]
    assert [(t.name, t.dtype, t.shape) for t in artifact.outputs] == [("output", "float32", (None, 10))]
    assert artifact.bytes == exported.stat().st_size > 4 * PARAMETERS, "the weights are inside"
    assert (artifact.opset, artifact.max_difference) == (17, 1e-6)
    assert [p.name for p in exported.parent.iterdir()] == [exported.name], "one file, and no half of one"


def test_the_same_network_gives_the_same_bytes(
    network: nn.Module, x: torch.Tensor, exported: Path, tmp_path: Path
) -> None:
    torch_export.export(copy.deepcopy(network), x[:1], tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_export_leaves_the_network_as_it_was(network: nn.Module, x: torch.Tensor, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch_export.export(network, x[:1], tmp_path / "network.onnx")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training


def test_the_graphs_hash_follows_the_architecture_and_not_the_weights(
    network: nn.Module, x: torch.Tensor, exported: Path, tmp_path: Path
) -> None:
    first = onnx_graph.describe(exported, max_difference=0.0)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for layer in other.modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad:
                layer.weight.mul_(1.5)
    retrained = exported_as(other, x, tmp_path / "retrained.onnx")
    assert retrained.graph_sha256 == first.graph_sha256
    assert retrained.sha256 != first.sha256
    narrow = exported_as(ResNet(widths=(16, 32, 56)).eval(), x, tmp_path / "narrow.onnx")
    assert narrow.graph_sha256 != first.graph_sha256


def test_an_operator_that_onnx_has_not_is_the_candidates_fault(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.matrix_exp(x)

    with pytest.raises(CandidateError, match="matrix_exp") as raised:
        torch_export.export(Odd(), torch.zeros(1, 4, 4), tmp_path / "odd.onnx")
    assert raised.value.kind == "export_failed"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_for_the_user_to_mend(
    network: nn.Module, x: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="Cannot write"):
        torch_export.export(network, x[:1], tmp_path / "nowhere" / "network.onnx")


@pytest.mark.parametrize("data", [b"", b"garbage"])
def test_a_file_that_is_no_onnx_is_not_described(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "no.onnx").write_bytes(data)
    with pytest.raises(CandidateError) as raised:
        onnx_graph.describe(tmp_path / "no.onnx", max_difference=0.0)
    assert raised.value.kind == "export_failed"


# ---------------------------------------------------------------- parity


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_and_torch_agree_whatever_the_batch(
    network: nn.Module, x: torch.Tensor, exported: Path, batch: int
) -> None:
    outputs, difference = parity.check(exported, network, x[:batch])
    assert outputs["output"].shape == (batch, 10)
    with torch.no_grad():
        expected = network(x[:batch]).numpy()
    assert difference == float(np.abs(outputs["output"] - expected).max()) < 1e-4


def test_a_network_that_changed_after_its_export_is_caught(network: nn.Module, x: torch.Tensor, exported: Path) -> None:
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.get_parameter("linear.bias")[3] += 0.05
    with pytest.raises(CandidateError, match=r"differs from torch by 0\.05") as raised:
        parity.check(exported, changed, x)
    assert raised.value.kind == "output_mismatch"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_are_caught(
    network: nn.Module, x: torch.Tensor, tmp_path: Path, value: float
) -> None:
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.get_parameter("linear.bias")[0] = value
    torch_export.export(broken, x[:1], tmp_path / "broken.onnx")
    with pytest.raises(CandidateError) as raised:
        parity.check(tmp_path / "broken.onnx", broken, x)
    assert raised.value.kind == "not_finite"


def test_a_torn_file_cannot_be_loaded(x: torch.Tensor, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.onnx").write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(CandidateError) as raised:
        host.outputs(tmp_path / "torn.onnx", {"input": x.numpy()})
    assert raised.value.kind == "load_failed"


# ---------------------------------------------------------------- probes


@pytest.fixture(scope="module")
def space(network: nn.Module, x: torch.Tensor) -> PruningSpace:
    groups, _ = graph.find_groups(network, x[:1])
    return spaces.build(network, x[:1], groups)


def widths(space: PruningSpace) -> dict[str, tuple[int, ...]]:
    return {g.name: (g.width, g.width // 2, 3) for g in space.groups}


def test_there_is_one_kind_of_probe_for_each_geometry_and_every_width_is_there(space: PruningSpace) -> None:
    probes = width_probes.probes(space, widths(space))
    assert sorted(name for probe in probes for name in probe.groups) == sorted(g.name for g in space.groups)
    kinds = [set(probe.groups) for probe in probes]
    assert {"layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1"} <= kinds[0]
    assert {"layer2.0.conv1"} in kinds, "with stride 2 and half the inputs it is a kind of its own"
    assert len(probes) == 5
    for probe in probes:
        assert list(probe.models) == list(widths(space)[probe.groups[0]])
        assert probe.scale == 1.0


def test_every_probe_runs_and_a_wider_one_has_more_weights(space: PruningSpace, tmp_path: Path) -> None:
    path = tmp_path / "probe.onnx"
    for probe in width_probes.probes(space, widths(space)):
        sizes = [len(probe.models[n]) for n in sorted(probe.models)]
        assert sizes == sorted(set(sizes))
        for data in probe.models.values():
            path.write_bytes(data)
            artifact = onnx_graph.describe(path, max_difference=0.0)
            feed = np.ones([n or 1 for n in artifact.inputs[0].shape], dtype=np.float32)
            (out,) = host.outputs(path, {"input": feed}).values()
            assert out.shape == artifact.outputs[0].shape
            assert np.isfinite(out).all()
            assert out.std() > 1e-3, "what comes out has neither vanished nor become one number"


def test_probes_are_the_same_bytes_again(space: PruningSpace) -> None:
    assert width_probes.probes(space, widths(space)) == width_probes.probes(space, widths(space))
