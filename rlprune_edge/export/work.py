"""The least that one inference of an ONNX graph has to compute and to read: no device can be faster than that."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper

from rlprune_edge.measurements import Work

_HEAVY = ("Conv", "Gemm", "MatMul")
Shape = tuple[int, ...]


def work_of(model: onnx.ModelProto) -> Work:
    """Floating-point operations (a multiply-add is two) and bytes of weights of its Conv, Gemm and MatMul nodes.

    A lower bound: a free dimension counts as 1; nodes whose shape cannot be told, those in inner graphs and those with
    other weights than float32 are left out, and so is what depends on constants alone or leads to no output, for a
    runtime computes that ahead, or never. `model` is not changed.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    weights = {t.name: t for t in whole.graph.initializer}
    constants = set(weights)
    for value in whole.graph.input:
        constants.discard(value.name)  # a default value that the caller may replace
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value <= 0:
                dim.dim_value = 1
    try:
        whole = onnx.shape_inference.infer_shapes(whole, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return Work(0.0, 0.0)
    shapes = _shapes(whole)
    flops, read, few_bits = 0.0, set[str](), set[str]()
    useful = _useful(whole)
    for place, node in enumerate(whole.graph.node):
        if all(name in constants for name in node.input if name):
            constants.update(node.output)
            if node.op_type == "DequantizeLinear":  # its weights are few bits, and computed with as such
                few_bits.update(node.output)
            continue
        if node.op_type not in _HEAVY or node.domain not in ("", "ai.onnx") or place not in useful:
            continue
        if few_bits & set(node.input):
            continue
        if any(name in weights and weights[name].data_type != TensorProto.FLOAT for name in node.input):
            continue
        flops += 2.0 * _products(node, shapes)
        read.update(name for name in node.input[1:2] if name in weights)
    return Work(flops, float(sum(_bytes(weights[name]) for name in sorted(read))))


def _useful(model: onnx.ModelProto) -> set[int]:
    """Places of the nodes that lead to an output."""
    wanted, useful = {value.name for value in model.graph.output}, set()
    for place in reversed(range(len(model.graph.node))):
        node = model.graph.node[place]
        if wanted & set(node.output):
            useful.add(place)
            wanted.update(node.input)
            for attribute in node.attribute:
                for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                    wanted.update(name for inner in graph.node for name in inner.input)
    return useful


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
