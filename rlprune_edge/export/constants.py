"""The numbers inside an exported graph that follow a module's widths, and what each of them is in the module."""

# A network of transformers is full of them: reshapes into heads, the ones and zeros of an instance norm. They stand in
# Constant nodes that are named after the module that was being traced, so that what one layer's third constant is says
# what it is in every other layer of that kind: twelve layers of different widths settle it in a single export. Where
# layers of a kind are not traced alike (DistilBERT's first one makes the mask of all) each speaks for itself.

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from torch import nn

from rlprune_edge.export.naming import path_of

_MOST = 16  # elements of a constant that may hold widths: shapes have fewer, tables of positions more

Meanings = dict[str, int]
"""what a number could be: a module's attribute by name, or itself (`""`)"""


@dataclass(frozen=True)
class _Place:
    """Where a graph holds numbers that may follow widths."""

    node: onnx.NodeProto
    kind: str
    """`ints`: an int64 constant; `fill`: a float constant, its length; `group`: a convolution's attribute"""
    name: str
    """the node's, in the module that was traced"""
    scope: str
    """what the exporter calls that module, this time"""
    module: nn.Module


class Constants:
    """What was learned from true exports so far; a number with more than one meaning left is not certain."""

    def __init__(self, *, of_class: bool) -> None:
        """`of_class`: what holds in one module holds in all of its class; otherwise of each module alone."""
        self._of_class = of_class
        self._known: dict[tuple[str, str], list[Meanings]] = {}

    def learn(self, graph: onnx.GraphProto, module: nn.Module) -> None:
        """Keep of every number the meanings that this export of `module` agrees with."""
        for place in _places(graph, module):
            found = [_meanings(number, place.module) for number in _numbers(place)]
            known = self._known.setdefault(self._key(place), found)
            if len(known) != len(found):
                known.clear()  # no number is known of this node
            for number, (old, new) in enumerate(zip(known, found, strict=False)):
                known[number] = {m: v for m, v in new.items() if m in old and (m or v == old[m])}

    def numbers(self, place: _Place) -> list[int] | None:
        """What must stand there; `None` where that is not certain."""
        known = self._known.get(self._key(place), [])
        attributes = _integers(place.module)
        predicted = [{v if not m else attributes.get(m) for m, v in meanings.items()} for meanings in known]
        made = [values.pop() for values in predicted if len(values) == 1]
        certain = [value for value in made if value is not None]
        return certain if len(certain) == len(_numbers(place)) else None

    def _key(self, place: _Place) -> tuple[str, str]:
        return (type(place.module).__qualname__ if self._of_class else place.scope, place.name)


def apply(graph: onnx.GraphProto, module: nn.Module, *sources: Constants) -> bool:
    """Write the numbers of `module`'s widths into a graph of its topology; False if no source is certain of one."""
    for place in _places(graph, module):
        numbers = next((found for source in sources if (found := source.numbers(place)) is not None), None)
        if numbers is None:
            return False
        _write(place, numbers)
    return True


def _places(graph: onnx.GraphProto, module: nn.Module) -> Iterator[_Place]:
    modules = dict(module.named_modules())
    for node in graph.node:
        scope, _, name = node.name.rpartition("/")
        kind = _kind(node)
        if kind and scope:
            path = path_of(scope, modules)
            if path is not None:
                yield _Place(node, kind, name, scope, modules[path])


def _kind(node: onnx.NodeProto) -> str | None:
    if node.op_type == "Conv":
        return "group"
    if node.op_type != "Constant" or not node.attribute[0].HasField("t"):
        return None
    tensor = node.attribute[0].t
    if tensor.data_type == TensorProto.INT64 and math.prod(tensor.dims) <= _MOST:
        return "ints"
    if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 1:
        values = numpy_helper.to_array(tensor)
        return "fill" if len(values) and (values == values[0]).all() else None
    return None


def _integers(module: nn.Module) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if type(value) is int}


def _meanings(number: int, module: nn.Module) -> Meanings:
    return {"": number} | {name: value for name, value in _integers(module).items() if value == number}


def _numbers(place: _Place) -> list[int]:
    if place.kind == "group":
        return [next(a.i for a in place.node.attribute if a.name == "group")]
    tensor = place.node.attribute[0].t
    if place.kind == "fill":
        return list(tensor.dims)
    return [int(n) for n in numpy_helper.to_array(tensor).reshape(-1)]


def _write(place: _Place, numbers: Sequence[int]) -> None:
    if place.kind == "group":
        next(a for a in place.node.attribute if a.name == "group").i = numbers[0]
        return
    tensor = place.node.attribute[0].t
    if place.kind == "ints":
        tensor.raw_data = np.array(numbers, "<i8").tobytes()
        return
    tensor.raw_data = np.full(numbers, numpy_helper.to_array(tensor)[0], "<f4").tobytes()
    tensor.dims[:] = numbers
