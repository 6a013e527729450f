"""One topology's exported file without its weights, to be filled with those of other modules of that topology."""

# What is written is the true export to the byte: nodes, names and fields stay as the exporter wrote them. So one
# comparison of bytes proves graph, hash and outputs at once.

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from rlprune_edge.export import constants, naming, removal, skeleton, wire
from rlprune_edge.export.constants import Constants
from rlprune_edge.export.recipes import Cookbook, Recipe, tensors_of


@dataclass(frozen=True)
class _Slot:
    """One tensor of the graph that is made from the module's."""

    name: str
    recipe: Recipe
    shape: tuple[int, ...]
    """in the export that it was recognised in"""
    same_as: str | None
    """the initializer that stands for it too, through an Identity: the exporter writes equal values once"""


@dataclass(frozen=True)
class Filled:
    """A file of a template's topology, ready to be written."""

    chunks: tuple[bytes | memoryview, ...]
    """its bytes, in order"""
    model: onnx.ModelProto
    """the same without the values of its weights"""
    other_widths: bool
    """than in the export that the template was made from"""

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(len(chunk) for chunk in self.chunks)

    def equals(self, data: bytes) -> bool:
        """Whether these are the same bytes."""
        at = 0
        for chunk in self.chunks:
            mine = np.frombuffer(chunk, np.uint8)
            if not np.array_equal(mine, np.frombuffer(data, np.uint8)[at : at + len(mine)]):
                return False
            at += len(mine)
        return at == len(data)

    def write(self, path: Path) -> None:
        with path.open("wb", buffering=1 << 16) as file:  # names and biases put together, kernels as they are
            for chunk in self.chunks:
                file.write(chunk)

    def sha256(self) -> str:
        """Of the file."""
        digest = hashlib.sha256()
        for chunk in self.chunks:
            digest.update(chunk)
        return digest.hexdigest()


class Template:
    """Made by `learn`; `fill` writes other modules into it."""

    def __init__(
        self, model: onnx.ModelProto, slots: tuple[_Slot, ...], classes: removal.Classes, known: Constants
    ) -> None:
        """`model`: without initializers; `known`: what was learned from all topologies."""
        self._model, self._slots, self._classes, self._known = model, slots, classes, known
        self._own = Constants(of_class=False)

    @property
    def recipes(self) -> frozenset[Recipe]:
        return frozenset(slot.recipe for slot in self._slots)

    def without(self, module: nn.Module) -> tuple[Template, removal.Kinds] | None:
        """The template of a module that has fewer blocks, and of what kinds; `None` where it does not follow."""
        classes = removal.classes_of(module)
        kinds = removal.kinds(self._classes, classes)
        if kinds is None:
            return None
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        if not removal.remove(model.graph, self._classes, classes):
            return None
        risen = removal.risen(self._classes, classes)
        read = {name for node in model.graph.node for name in node.input}
        slots = [slot for slot in (_raised(slot, risen) for slot in self._slots) if slot.name in read]
        if any(slot.same_as and slot.same_as not in {other.name for other in slots} for slot in slots):
            return None
        names = naming.settle_nodes(model.graph, [slot.name for slot in slots if not slot.same_as])
        renamed = (_Slot(names[s.name], s.recipe, s.shape, names[s.same_as] if s.same_as else None) for s in slots)
        return Template(model, tuple(renamed), classes, self._known), kinds

    def learn(self, graph: onnx.GraphProto, module: nn.Module) -> None:
        """See what the numbers are in a true export of this topology."""
        self._own.learn(graph, module)

    def fill(self, module: nn.Module) -> Filled | None:
        """The file of a module of this topology; `None` where it is not certain how that would be exported."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        if not constants.apply(model.graph, module, self._known, self._own):
            return None
        tensors = tensors_of(module)
        try:
            arrays = {slot.name: slot.recipe.make(tensors) for slot in self._slots}
        except (KeyError, RuntimeError):  # another module than the topology promised
            return None
        if _equals(arrays) != {slot.name: slot.same_as for slot in self._slots if slot.same_as}:
            return None
        written = [(slot.name, arrays[slot.name]) for slot in self._slots if not slot.same_as]
        chunks = tuple(wire.assembled(model, written))
        other_widths = any(arrays[slot.name].shape != slot.shape for slot in self._slots)
        return Filled(chunks, _bare(model, written), other_widths)


def learn(model: onnx.ModelProto, module: nn.Module, known: Constants) -> Template | None:
    """The template of a true export of `module`; `None` where something in it is made in a way that is not known.

    `model` has no initializers afterwards.
    """
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
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
        slots.append(_Slot(name, recipe, values[name].shape, same_as.get(name)))
    model.graph.ClearField("initializer")
    made = Template(model, tuple(slots), removal.classes_of(module), known)
    made.learn(model.graph, module)
    return made


def _raised(slot: _Slot, risen: Mapping[str, str]) -> _Slot:
    """The same tensor where the module that holds it has taken its block's place."""

    def moved(name: str) -> str:
        path, _, leaf = name.rpartition(".")
        return f"{risen[path]}.{leaf}" if path in risen else name

    if not any(name.rpartition(".")[0] in risen for name in slot.recipe.names):
        return slot
    recipe = replace(slot.recipe, names=tuple(moved(name) for name in slot.recipe.names))
    return replace(slot, name=moved(slot.name), recipe=recipe)


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


def _bare(model: onnx.ModelProto, initializers: Iterable[tuple[str, np.ndarray]]) -> onnx.ModelProto:
    """`model` with initializers whose values are there as far as the graph's hash and its work depend on them."""
    for name, array in initializers:
        tensor = wire.tensor(name, array)
        if array.size <= skeleton.LARGE or array.dtype.kind != "f":
            tensor.raw_data = array.tobytes()
        model.graph.initializer.append(tensor)
    return model
