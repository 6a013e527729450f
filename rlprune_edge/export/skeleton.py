"""Leave the weights out of an ONNX file: what a board needs to time a candidate is its graph."""

# BERT-base is 438 MB, its graph packed some 10 kB. The board makes up values of the same shapes (agents/, synth.py):
# latency follows from shapes, not from values. What does decide how a graph is run stays in it: shapes, masks, small
# tensors, and all scales and zero points, which choose the kernels of quantised layers.

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence

import onnx
from onnx import TensorProto

from rlprune_edge.errors import CandidateError
from rlprune_edge.records import Skeleton

LOCATION = "rlprune-synthetic"
"""where a tensor without values says they are; the agent takes no other place (agents/, intake.py)"""

LARGE = 256
"""tensors with more elements are weights; smaller ones (shapes, scales) may decide how a graph is run"""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
"""operators whose inputs but the first are weights and biases, however small: BatchNorm is folded into biases"""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_QUANTISED = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_VALUES = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")

# (operator, input): scales and zero points, and quantised payloads with their int32 biases.
_SCALES = {(op, place) for op in ("QuantizeLinear", "DequantizeLinear") for place in (1, 2)} | {
    *(("QLinearConv", place) for place in (1, 2, 4, 5, 6, 7)),
    *(("QLinearMatMul", place) for place in (1, 2, 4, 5, 6, 7)),
    *(("QGemm", place) for place in (1, 2, 4, 5, 7, 8)),
    *(("QAttention", place) for place in (3, 4, 6, 7)),
    *(("MatMulNBits", place) for place in (2, 3, 4)),
    *(("DynamicQuantizeMatMul", place) for place in (2, 3)),
    *(("MatMulIntegerToFloat", place) for place in (2, 3, 4, 5)),
    *(("MatMulInteger", place) for place in (2, 3)),
    *(("ConvInteger", place) for place in (2, 3)),
    ("Resize", 1),
    ("Resize", 2),
}
_PAYLOADS = {
    ("DequantizeLinear", 0), ("QLinearConv", 3), ("QLinearMatMul", 3), ("QGemm", 3), ("QAttention", 1),
    ("MatMulInteger", 1), ("ConvInteger", 1), ("MatMulIntegerToFloat", 1), ("DynamicQuantizeMatMul", 1),
    ("MatMulNBits", 1),
}  # fmt: skip
_INT32_BIASES = {("DequantizeLinear", 0), ("QLinearConv", 8), ("QGemm", 6)}

Uses = dict[str, set[tuple[str, int]]]


def strip(model_bytes: bytes, min_elements: int = LARGE) -> Skeleton:
    """The graph of an ONNX file, ready to be sent. The same file always gives the same graph.

    Raises CandidateError (`export_failed`): not ONNX, or its weights lie in other files.
    """
    graph, stripped = bare(model_bytes, min_elements)
    return Skeleton(zlib.compress(graph, 9), stripped, len(graph), len(model_bytes))


def bare(model_bytes: bytes, min_elements: int = LARGE) -> tuple[bytes, int]:
    """The ONNX file without the values of its weights, and how many tensors that were."""
    return bare_model(read(model_bytes), min_elements)


def read(model_bytes: bytes) -> onnx.ModelProto:
    """The model in an ONNX file. Raises CandidateError (`export_failed`): not one."""
    try:
        return onnx.load_model_from_string(model_bytes)
    except Exception as error:  # protobuf's own class, which shares no base with any other
        raise CandidateError("export_failed", f"not a valid ONNX file: {str(error).splitlines()[0]}") from error


def bare_model(model: onnx.ModelProto, min_elements: int = LARGE) -> tuple[bytes, int]:
    """As `bare`, of a model that was read already, whose weights are gone afterwards."""
    stripped = 0
    for nodes, tensors in _bodies(model):
        uses = _uses(nodes)
        for name, tensor in tensors:
            if tensor.data_location == TensorProto.EXTERNAL:
                raise CandidateError("export_failed", f"the values of {name} are in another file; export one file")
            if _is_weight(tensor, uses.get(name, set()), min_elements):
                _empty(tensor)
                stripped += 1
    data: bytes = model.SerializeToString(deterministic=True)
    return data, stripped


Body = tuple[list[onnx.NodeProto], list[tuple[str, TensorProto]]]


def _bodies(model: onnx.ModelProto) -> Iterator[Body]:
    """The main graph and every function: all their nodes and named tensors, those of inner graphs among them.

    An inner graph may use the names of the outer one, so that they are looked at together.
    """
    for nodes, tensors in [(model.graph.node, model.graph.initializer), *((f.node, ()) for f in model.functions)]:
        body: Body = ([], [])
        _collect(nodes, tensors, body)
        yield body


def _collect(nodes: Sequence[onnx.NodeProto], tensors: Sequence[TensorProto], body: Body) -> None:
    body[1].extend((tensor.name, tensor) for tensor in tensors)
    for node in nodes:
        body[0].append(node)
        for attribute in node.attribute:
            # a Constant's tensor goes by the name of the node's output, and stays where it is
            if attribute.HasField("t") and node.op_type == "Constant":
                body[1].append((node.output[0], attribute.t))
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                _collect(graph.node, graph.initializer, body)


def _uses(nodes: Sequence[onnx.NodeProto]) -> Uses:
    uses: Uses = {}
    for node in nodes:
        op = node.op_type if node.domain in _DOMAINS else f"{node.domain}.{node.op_type}"
        for place, name in enumerate(node.input):
            if node.op_type != "Identity":
                uses.setdefault(name, set()).add((op, place))
    # the exporter puts an Identity before the second user of equal values; users come after what they use
    for node in reversed(nodes):
        if node.op_type == "Identity":
            uses.setdefault(node.input[0], set()).update(uses.get(node.output[0], ()))
    return uses


def _is_weight(tensor: TensorProto, uses: set[tuple[str, int]], min_elements: int) -> bool:
    elements = math.prod(tensor.dims)
    if uses & _SCALES:
        return False
    if tensor.data_type in _FLOATS:
        always = bool(uses) and all(op in WEIGHTED and place > 0 for op, place in uses)
        return elements > 0 and (always or elements > min_elements)
    if elements <= min_elements or not uses:
        return False
    if tensor.data_type in _QUANTISED:
        return uses <= _PAYLOADS
    return tensor.data_type == TensorProto.INT32 and uses <= _INT32_BIASES


def _empty(tensor: TensorProto) -> None:
    for field in _VALUES:
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", LOCATION
