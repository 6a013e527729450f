"""Models with something planted in them, for the checks before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name: str, shape: Sequence[int | str | None], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray] | None = None,
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """`x -> y`, both float[4] unless said otherwise."""
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs or [value("x", [4])], outputs or [value("y", [4])], tensors)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions)
    made.ir_version = 8
    return made


def node(op: str, inputs: Sequence[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attributes)


def external(name: str, location: str | None, shape: Sequence[int] = (4,)) -> TensorProto:
    """A tensor whose values are said to be in the file `location`."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    if location is not None:
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location
    return tensor


def dense(width: int = 32, rows: int = 4) -> onnx.ModelProto:
    """`y = relu(x @ a) @ b`, with weights large enough to be left out."""
    rng = np.random.default_rng(width)
    weights = {n: rng.standard_normal((width, width)).astype(np.float32) / 6 for n in "ab"}
    nodes = [node("MatMul", ["x", "a"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "b"])]
    return model(nodes, weights, inputs=[value("x", [rows, width])], outputs=[value("y", [rows, width])])
