"""The least work of a graph, counted by hand beside it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rlprune_edge.export.work import work_of
from rlprune_edge.measurements import Work


def _model(nodes: list[onnx.NodeProto], tensors: dict[str, tuple[int, ...]], x: list[object]) -> onnx.ModelProto:
    made = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in tensors.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        made,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_grouped_convolution() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2], group=2)
    found = work_of(_model([node], {"w": (6, 2, 3, 3)}, ["n", 4, 8, 8]))
    assert found == Work(2.0 * (1 * 6 * 4 * 4) * (2 * 3 * 3), 6 * 2 * 9 * 4)


def test_dense_layers_either_way_round() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "b"], ["y"]),
    ]
    found = work_of(_model(nodes, {"a": (7, 5), "b": (7, 3)}, [2, 5]))
    assert found == Work(2.0 * (2 * 7 * 5 + 2 * 3 * 7), 4 * (7 * 5 + 7 * 3))


def test_what_depends_on_constants_alone_is_computed_ahead_and_does_not_count() -> None:
    nodes = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("MatMul", ["x", "c"], ["y"])]
    found = work_of(_model(nodes, {"a": (5, 4), "b": (4, 3)}, [1, 5]))
    assert found.flops == 2.0 * 1 * 3 * 5


def test_a_shape_that_cannot_be_told_counts_nothing() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["w", "f"], ["y"]),
    ]
    assert work_of(_model(nodes, {"w": (4, 2)}, [3, 3])).flops == 0.0
