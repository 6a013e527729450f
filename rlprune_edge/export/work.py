"""The least that one inference of an ONNX graph has to compute and to read: no device can be faster than that."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper

from rlprune_edge.records import Work

_HEAVY = ("Conv", "Gemm", "MatMul")
Shape = tuple[int, ...]


def work_of(model: onnx.ModelProto) -> Work:
    """Floating-point operations (a multiply-add is two) and bytes of weights of its Conv, Gemm and MatMul nodes.

    A lower bound: a free dimension counts as 1, nodes whose shape cannot be told and those in inner graphs are left
    out, and so is what depends on constants alone, for a runtime computes that once, ahead. `model` is not changed.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    weights = {t.name: t for t in whole.graph.initializer}
    constants = set(weights)
    for value in whole.graph.input:
        constants.discard(value.name)  # a default value that the caller may replace
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    try:
        whole = onnx.shape_inference.infer_shapes(whole, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return Work(0.0, 0.0)
    shapes = _shapes(whole)
    flops, read = 0.0, set[str]()
    for node in whole.graph.node:
        if all(name in constants for name in node.input if name):
            constants.update(node.output)
            continue
        if node.op_type not in _HEAVY or node.domain not in ("", "ai.onnx"):
            continue
        flops += 2.0 * _products(node, shapes)
        read.update(name for name in node.input[1:2] if name in weights)
    return Work(flops, float(sum(_bytes(weights[name]) for name in sorted(read))))


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shapes that are known to the last dimension, by tensor name."""
    found: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") and d.dim_value > 0 for d in dims):
            found.setdefault(value.name, tuple(d.dim_value for d in dims))
    return found


def _products(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """Multiply-adds of one node, 0 where its shapes are not known."""
    first, second, out = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if second is None or out is None:
        return 0
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(second[1:])  # channels of one group times the kernel
    if node.op_type == "Gemm":
        transposed = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "transB"), 0)
        return math.prod(out) * int(second[1 if transposed else 0])
    return math.prod(out) * first[-1] if first else 0  # a row's length is what is summed over


def _bytes(tensor: onnx.TensorProto) -> int:
    item = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(math.prod(tensor.dims)) * item
