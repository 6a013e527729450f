"""What a file says of its tensors before it is run: types, sizes, who uses them, how large a node will make them."""

from __future__ import annotations

from typing import Dict, Iterable, NamedTuple, Tuple

# TensorProto.DataType -> bits of one element
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 8: 0, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, DOUBLE, UINT4, INT4 = 1, 2, 3, 6, 7, 10, 11, 21, 22
SYNTHETIC_TYPES = (FLOAT, UINT8, INT8, INT32, FLOAT16, DOUBLE, UINT4, INT4)

MANY = 1 << 60

Span = Tuple[int, int, int]
"""where a message lies: position of its length, first byte, end"""


class Use(NamedTuple):
    """Who takes a tensor: the operator, at which of its inputs, with what whole-number attributes."""

    op: str
    place: int
    attributes: dict[str, list[int]]
    output: str


class Synthetic(NamedTuple):
    """A tensor that came without values."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    use: Use | None
    used_dims: tuple[int, ...]
    """the shape its user sees, which differs from `dims` where it is transposed on the way"""
    spans: tuple[Span, ...]
    """the messages it lies in, outermost first, itself last"""

    @property
    def bytes(self) -> int:
        """Size of its values in the file."""
        return size_of(product(self.dims), self.data_type)


class Known(NamedTuple):
    """A tensor that is in the file; its values only where they are few whole numbers, as shapes are."""

    elements: int
    data_type: int
    values: list[int] | None


Scopes = Tuple[Dict[str, Known], ...]
"""the tensors a graph can see by name: those of the graphs around it, outermost first, and its own"""


def product(dims: Iterable[int]) -> int:
    """Of all of them (none negative); 1 of none. No more than `MANY`: a product of a stranger's numbers has no end."""
    count = 1
    for dim in dims:
        if dim == 0:
            return 0
        count = min(count * dim, MANY)
    return count


def size_of(elements: int, data_type: int) -> int:
    """Bytes of so many elements."""
    return -(-elements * BITS[data_type] // 8)


class Node:
    """One node as far as it matters here."""

    def __init__(self) -> None:
        self.op = self.domain = ""
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.attributes: dict[str, list[int]] = {}
        self.tensors: dict[str, Known] = {}


def known(name: str, scopes: Scopes) -> Known | None:
    """The tensor of that name, from the innermost graph that has one."""
    for level in reversed(scopes):
        if name in level:
            return level[name]
    return None


def made_by(node: Node, scopes: Scopes) -> tuple[int, bool]:
    """Bytes of the node's output where the file itself says how large it will be (else 0), and whether it will stay.

    What is made of constants alone is made when the model is loaded, and kept.
    """
    inputs = [known(name, scopes) for name in node.inputs] + [None] * 5
    source = inputs[0]
    element = source.data_type if source is not None else FLOAT
    if node.op == "ConstantOfShape" and source is not None and source.values is not None:
        value = node.tensors.get("value")
        return size_of(product(max(0, v) for v in source.values), value.data_type if value else FLOAT), True
    if node.op == "Range":
        ends = [end.values[0] for end in inputs[:3] if end is not None and end.values]
        count = max(0, -(-(ends[1] - ends[0]) // ends[2])) if len(ends) == 3 and ends[2] else 0
        return size_of(count, INT64), True
    if node.op in ("RandomNormal", "RandomUniform"):
        return size_of(product(max(0, v) for v in node.attributes.get("shape", [0])), FLOAT), False
    said = inputs[3 if node.op == "Resize" else 1]
    elements = _elements(node.op, source.elements if source else 1, said.values if said is not None else None)
    return size_of(elements, element), source is not None


def _elements(op: str, elements: int, said: list[int] | None) -> int:
    """At least how many elements come out of `op` if `elements` go in and its second input says `said`."""
    if not said:
        return 0
    if op == "Expand":
        return max(product(max(1, v) for v in said), elements)
    if op == "Tile":
        return product(max(0, v) for v in said) * elements
    if op == "Resize":
        return product(max(1, v) for v in said)
    if op == "OneHot":
        return max(0, said[0])
    if op == "Pad":
        half = len(said) // 2
        return product(max(1, before + after) for before, after in zip(said[:half], said[half:]))
    return 0
