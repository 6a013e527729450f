"""Graphs without their weights: what is left out, what stays, and how little is left to send."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from rlprune_agent import intake, walk
from rlprune_edge.errors import CandidateError
from rlprune_edge.export import onnx_graph, skeleton, torch_export
from rlprune_edge.tasks.resnet import cifar_resnet


def model_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> bytes:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return data


def left_out(data: bytes, min_elements: int = skeleton.LARGE) -> set[str]:
    graph, count = skeleton.bare(data, min_elements)
    found = [t.name for t in intake.check(graph, synthetic=True, memory_bytes=10**9).synthetic]
    assert len(found) == count
    return set(found)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    torch.manual_seed(0)
    network = cifar_resnet(20)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # or all biases were zeros, and one
            torch.nn.init.normal_(layer.bias)
    torch_export.export(network.eval(), torch.zeros(1, 3, 32, 32), path)
    return path.read_bytes()


def test_a_megabyte_becomes_little_more_than_a_kilobyte(resnet: bytes) -> None:
    made = skeleton.strip(resnet)
    assert made.full_bytes == len(resnet) > 1_000_000
    assert len(made.data) < 2_000 < made.graph_bytes < 20_000
    assert made.stripped >= 2 * 20, "every layer has weights and a bias"
    assert len(zlib.decompress(made.data)) == made.graph_bytes


def test_the_same_file_gives_the_same_bytes_and_other_weights_the_same_graph(resnet: bytes, tmp_path: Path) -> None:
    assert skeleton.strip(resnet) == skeleton.strip(resnet)
    other = onnx.load_model_from_string(resnet)
    before = graph_of(resnet, tmp_path)
    for tensor in other.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.raw_data = bytes(np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.5))
    assert skeleton.strip(other.SerializeToString()).data == skeleton.strip(resnet).data
    assert graph_of(other.SerializeToString(), tmp_path) == before


def graph_of(model: bytes, folder: Path) -> str:
    path = folder / "model.onnx"
    path.write_bytes(model)
    return onnx_graph.describe(path, max_difference=0.0).graph_sha256


def test_everything_but_the_values_stays(resnet: bytes) -> None:
    full, bare = onnx.load_model_from_string(resnet), onnx.load_model_from_string(skeleton.bare(resnet)[0])
    pairs = zip(full.graph.initializer, bare.graph.initializer, strict=True)
    for was, now in pairs:
        assert (was.name, was.dims, was.data_type) == (now.name, now.dims, now.data_type)
        if now.data_location == TensorProto.DEFAULT:
            assert was == now
    for graph in (full.graph, bare.graph):
        del graph.initializer[:]
    assert full == bare


def test_shapes_small_tensors_and_masks_are_kept_weights_and_biases_are_not() -> None:
    data = model_of(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"]),
            helper.make_node("Mul", ["c", "scale"], ["m"]),
            helper.make_node("Add", ["m", "large"], ["a"]),
            helper.make_node("Where", ["mask", "a", "a"], ["s"]),
            helper.make_node("Reshape", ["s", "shape"], ["y"]),
        ],
        {
            "w": floats(8, 3, 3, 3),
            "b": floats(8),
            "scale": floats(8, 1, 1),
            "large": floats(8, 16, 16),
            "mask": np.ones((8, 16, 16), bool),
            "shape": np.arange(1000),
        },
    )
    assert left_out(data) == {"w", "b", "large"}
    assert left_out(data, min_elements=4096) == {"w", "b"}
    assert left_out(data, min_elements=4) == {"w", "b", "large", "scale"}


def test_a_bias_that_two_layers_share_is_seen_through_the_identity_between() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"]),
        helper.make_node("Identity", ["b"], ["b2"]),
        helper.make_node("Conv", ["h", "w", "b2"], ["y"]),
    ]
    assert left_out(model_of(nodes, {"w": floats(8, 8, 3, 3), "b": floats(8)})) == {"w", "b"}
    nodes[2] = helper.make_node("Mul", ["h", "b2"], ["y"])
    assert left_out(model_of(nodes, {"w": floats(8, 8, 3, 3), "b": floats(8)})) == {"w"}


def test_halves_and_doubles_are_weights_too() -> None:
    for dtype in (np.float16, np.float64):
        assert left_out(model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": floats(20, 20).astype(dtype)}))


def test_quantised_weights_are_left_out_their_scales_and_zero_points_are_not() -> None:
    data = model_of(
        [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
            helper.make_node("QLinearConv", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz", "bias"], ["c"]),
            helper.make_node("DequantizeLinear", ["c", "ys", "yz"], ["d"]),
            helper.make_node("DequantizeLinear", ["m", "ms", "mz"], ["md"], axis=1),
            helper.make_node("MatMul", ["d", "md"], ["e"]),
            helper.make_node("Gather", ["table", "q"], ["y"]),
        ],
        {
            "xs": np.float32(0.1), "xz": np.uint8(0), "ys": np.float32(0.1), "yz": np.uint8(0),
            "w": np.ones((512, 3, 3, 3), np.int8), "ws": floats(512), "wz": np.zeros(512, np.int8),
            "bias": np.ones(512, np.int32),
            "m": np.ones((16, 512), np.int8), "ms": floats(512), "mz": np.zeros(512, np.int8),
            "table": np.ones((40, 40), np.uint8),
        },
    )  # fmt: skip
    assert left_out(data) == {"w", "m", "bias"}


def test_weights_in_constants_and_inner_graphs_are_left_out_where_they_are() -> None:
    constant = helper.make_node("Constant", [], ["cw"], value=numpy_helper.from_array(floats(20, 20)))
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["h", "bw"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(floats(20, 20), "bw")],
    )
    nodes = [
        constant,
        helper.make_node("MatMul", ["x", "cw"], ["h"]),
        helper.make_node("If", ["go"], ["y"], then_branch=inner, else_branch=inner),
    ]
    data = model_of(nodes, {"go": np.array(True)})
    assert left_out(data) == {"cw", "bw"}
    bare = onnx.load_model_from_string(skeleton.bare(data)[0])
    assert [n.op_type for n in bare.graph.node] == ["Constant", "MatMul", "If"]


def test_what_cannot_be_reduced_to_its_graph_is_said(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="not a valid ONNX file") as raised:
        skeleton.strip(b"garbage")
    assert raised.value.kind == "export_failed"
    model = onnx.load_model_from_string(
        model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": floats(20, 20)})
    )
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(CandidateError, match="in another file"):
        skeleton.strip((tmp_path / "m.onnx").read_bytes())


def test_host_and_board_mean_the_same_place() -> None:
    assert skeleton.LOCATION == walk.LOCATION
