"""The bytes of an ONNX file whose weights lie in arrays, without a copy of them."""

# Protobuf wants all weights inside one message first, and copies them again to write it: 100 MB become 300. Here the
# small fields are serialised by protobuf, and the weights go from their arrays to the file. The order is protobuf's
# own, by number of field, so that the bytes are those that it would have written.

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

_BEFORE_GRAPH = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # fields in onnx.proto


def assembled(model: onnx.ModelProto, initializers: Iterable[tuple[str, np.ndarray]]) -> list[bytes | memoryview]:
    """The file of `model`, which has no initializers, with these; in pieces, those of arrays being views of them."""
    before, after = onnx.ModelProto(), onnx.ModelProto()
    after.CopyFrom(model)
    for name in _BEFORE_GRAPH:
        if model.HasField(name):
            setattr(before, name, getattr(model, name))
            after.ClearField(name)
    first, rest = onnx.GraphProto(), onnx.GraphProto()
    rest.CopyFrom(model.graph)
    first.node.extend(model.graph.node)
    first.name = model.graph.name
    rest.ClearField("node")
    rest.ClearField("name")
    after.ClearField("graph")
    body: list[bytes | memoryview] = [first.SerializeToString()]
    for name, array in initializers:
        head = tensor(name, array).SerializeToString() + _key(_RAW_DATA, array.nbytes)
        body += [_key(_INITIALIZER, len(head) + array.nbytes) + head, array.reshape(-1).view(np.uint8).data]
    body.append(rest.SerializeToString())
    size = sum(len(chunk) for chunk in body)
    return [before.SerializeToString() + _key(_GRAPH, size), *body, after.SerializeToString()]


def tensor(name: str, array: np.ndarray) -> TensorProto:
    """An initializer without its values."""
    return TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))


def _key(field: int, size: int) -> bytes:
    """What stands before a field of so many bytes on protobuf's wire."""
    made = bytearray([field << 3 | 2])
    while size > 127:
        made.append(size & 127 | 128)
        size >>= 7
    made.append(size)
    return bytes(made)
