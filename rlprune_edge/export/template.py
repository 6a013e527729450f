"""One topology's exported file without its weights, to be filled with those of other modules of that topology."""

# What is written is the true export to the byte: the exporter's node names, order and fields stay, initializers are put
# where protobuf's order of fields has them. So one comparison of bytes proves graph, hash and outputs at once.

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from rlprune_edge.export import skeleton
from rlprune_edge.export.constants import Constants
from rlprune_edge.export.recipes import Cookbook, Recipe, tensors_of

_BEFORE_GRAPH = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # numbers of the fields in onnx.proto; each comes last but for the rest


Shapes = tuple[tuple[int, ...], ...]
"""of a graph's initializers, in its order"""


@dataclass(frozen=True)
class _Slot:
    """One tensor of the graph that is made from the module's."""

    name: str
    recipe: Recipe
    same_as: str | None
    """the initializer that stands for it too, through an Identity: the exporter writes equal values once"""


@dataclass(frozen=True)
class Filled:
    """A file of a template's topology, ready to be written."""

    chunks: tuple[bytes | memoryview, ...]
    """its bytes, in order"""
    model: onnx.ModelProto
    """the same without the values of its weights"""

    shapes: Shapes

    @property
    def bytes(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)

    def equals(self, data: bytes) -> bool:
        """Whether these are the same bytes."""
        view, at = memoryview(data), 0
        for chunk in self.chunks:
            if view[at : at + len(chunk)] != memoryview(chunk).cast("B"):
                return False
            at += len(chunk)
        return at == len(data)

    def write(self, path: Path) -> str:
        """Write the file; its sha256."""
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in self.chunks:
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()


class Template:
    """Made by `learn`; `fill` writes other modules into it."""

    def __init__(self, model: onnx.ModelProto, slots: tuple[_Slot, ...], constants: Constants) -> None:
        """`model`: without initializers."""
        self._model, self._slots, self._constants = model, slots, constants

    def fill(self, module: nn.Module) -> Filled | None:
        """The file of a module of this topology; `None` where it is not certain how that would be exported."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        if not self._constants.apply(model.graph, module):
            return None
        tensors = tensors_of(module)
        try:
            arrays = {slot.name: slot.recipe.make(tensors) for slot in self._slots}
        except (KeyError, RuntimeError):  # another module than the topology promised
            return None
        if _equals(arrays) != {slot.name: slot.same_as for slot in self._slots if slot.same_as}:
            return None
        written = [(slot.name, arrays[slot.name]) for slot in self._slots if not slot.same_as]
        chunks = tuple(_assembled(model, written))
        return Filled(chunks, _bare(model, written), tuple(array.shape for _, array in written))


def learn(model: onnx.ModelProto, module: nn.Module, constants: Constants) -> Template | None:
    """The template of a true export of `module`; `None` where something in it is made in a way that is not known.

    `model` has no initializers afterwards.
    """
    values = {t.name: _array(t) for t in model.graph.initializer}
    same_as = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Identity" and node.input[0] in values
    }
    values |= {name: values[original] for name, original in same_as.items()}
    book = Cookbook(module)
    recipes = {name: book.find(name, array) for name, array in values.items()}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] in recipes:
            bias = book.bias(recipes.get(node.input[1]), values[node.input[2]])
            recipes[node.input[2]] = bias or recipes[node.input[2]]
    slots = []
    for name, recipe in recipes.items():
        if recipe is None:
            return None
        slots.append(_Slot(name, recipe, same_as.get(name)))
    model.graph.ClearField("initializer")
    return Template(model, tuple(slots), constants)


def shapes_of(model: onnx.ModelProto) -> Shapes:
    return tuple(tuple(t.dims) for t in model.graph.initializer)


def _array(tensor: TensorProto) -> np.ndarray:
    """A view where the values are raw, as this exporter writes them."""
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))


def _equals(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Of every array that equals an earlier one, which."""
    firsts: dict[tuple[object, ...], list[str]] = {}
    found = {}
    for name, array in arrays.items():
        alike = firsts.setdefault((array.shape, array.dtype, array.flat[:8].tobytes()), [])
        same = next((first for first in alike if np.array_equal(arrays[first], array)), None)
        if same is None:
            alike.append(name)
        else:
            found[name] = same
    return found


# ---------------------------------------------------------------- the file


def _assembled(model: onnx.ModelProto, initializers: Iterable[tuple[str, np.ndarray]]) -> list[bytes | memoryview]:
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
        head = _tensor(name, array).SerializeToString() + _key(_RAW_DATA, array.nbytes)
        body += [_key(_INITIALIZER, len(head) + array.nbytes) + head, memoryview(array.reshape(-1)).cast("B")]
    body.append(rest.SerializeToString())
    size = sum(len(chunk) for chunk in body)
    return [before.SerializeToString() + _key(_GRAPH, size), *body, after.SerializeToString()]


def _tensor(name: str, array: np.ndarray) -> TensorProto:
    return TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))


def _key(field: int, size: int) -> bytes:
    """What stands before a field of so many bytes on protobuf's wire."""
    made = bytearray([field << 3 | 2])
    while size > 127:
        made.append(size & 127 | 128)
        size >>= 7
    made.append(size)
    return bytes(made)


def _bare(model: onnx.ModelProto, initializers: Iterable[tuple[str, np.ndarray]]) -> onnx.ModelProto:
    """`model` with initializers whose values are there as far as the graph's hash and its work depend on them."""
    for name, array in initializers:
        tensor = _tensor(name, array)
        if array.size <= skeleton.LARGE or array.dtype.kind != "f":
            tensor.raw_data = array.tobytes()
        model.graph.initializer.append(tensor)
    return model
