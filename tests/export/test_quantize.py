"""Fewer bits for a model whose inputs have different lengths, as those of texts and recordings do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rlprune_edge.export import host, quantize

WIDTH = 8


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """Two matrix products over a free length; the second one's input has a channel far outside the others' range."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) for _ in range(2))
    first[:, 0] *= 300
    second[0] /= 300
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["hidden"], name="one"),
            helper.make_node("Relu", ["hidden"], ["positive"], name="relu"),
            helper.make_node("MatMul", ["positive", "second"], ["y"], name="two"),
        ],
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", WIDTH])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path, prepared = tmp_path / "fp32.onnx", tmp_path / "prepared.onnx"
    onnx.save(model, path)
    quantize.prepared(path, prepared)
    return prepared


def inputs(*lengths: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(1, length, WIDTH)).astype(np.float32)} for length in lengths]


@pytest.mark.parametrize("method", sorted(quantize.METHODS))
@pytest.mark.parametrize("lengths", [(5, 5, 5), (3, 5, 9, 2, 30)])
def test_ranges_are_taken_over_inputs_of_any_length(
    layers: Path, tmp_path: Path, method: str, lengths: tuple[int, ...]
) -> None:
    target, given = tmp_path / "int8.onnx", inputs(*lengths)
    quantize.static_int8(layers, target, given, method=method)
    kinds = [node.op_type for node in onnx.load(target).graph.node]
    assert kinds.count("MatMul") == 2
    assert "QuantizeLinear" in kinds
    exact, rough = (np.concatenate([host.outputs(p, x)["y"][0] for x in given]) for p in (layers, target))
    # one channel takes nearly all of the 8 bits of the second product's input, so it is rough, and still alike
    assert np.corrcoef(exact.ravel(), rough.ravel())[0, 1] > 0.5
    assert not np.array_equal(exact, rough)


def test_the_ranges_hold_all_inputs_and_not_the_first_alone(layers: Path, tmp_path: Path) -> None:
    small, large = inputs(4, 6)
    large["x"] *= 50
    target = tmp_path / "int8.onnx"
    quantize.static_int8(layers, target, [small, large], method="minmax")
    model = onnx.load(target)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    scale = next(values[n.input[1]] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x")
    assert float(scale) * 255 >= float(np.ptp(large["x"])) * 0.99


def test_what_quantization_harms_most_is_found_over_inputs_of_any_length(layers: Path, tmp_path: Path) -> None:
    target, given = tmp_path / "int8.onnx", inputs(3, 5, 9)
    quantize.static_int8(layers, target, given, method="minmax")
    nodes = quantize.weighted_nodes(layers)
    assert sorted(quantize.most_harmed(layers, target, given, nodes)) == sorted(nodes)
