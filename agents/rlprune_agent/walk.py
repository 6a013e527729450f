"""One walk over an ONNX file: what is in it, refused at once where no rule needs the rest of the file to say so."""

from __future__ import annotations

from typing import Iterable, NoReturn, Tuple

from rlprune_agent.protocol import Failure, printable
from rlprune_agent.tensors import (
    BITS,
    DOUBLE,
    FLOAT,
    INT64,
    SYNTHETIC_TYPES,
    Known,
    Node,
    Scopes,
    Span,
    Synthetic,
    Use,
    made_by,
    product,
    size_of,
)
from rlprune_agent.wire import BYTES, VARINT, Budget, Field, Malformed, fields, integers, signed, text

LOCATION = "rlprune-synthetic"
"""where a tensor says its values are when the host has left them out"""

_SUBGRAPH_DEPTH = 8
_LIST_MAX = 1_000
_NAMES_MAX = 2_000_000

# Contrib operators that run code or read files of their own.
_NEVER = ("EPContext", "PythonOp", "PythonOpGrad", "TritonOp", "ExternalGraph")

Operator = Tuple[str, str]
"""domain and name, of an operator or of the function that stands for it"""


def refuse(why: str) -> NoReturn:
    raise Failure("load_failed", f"the model was refused before ONNX Runtime saw it: {why}")


def shown(name: str) -> str:
    return repr(printable(name)[:80])


class Walk:
    """One walk over one file; what it finds is in its fields afterwards."""

    def __init__(self, data: bytes, allow_synthetic: bool) -> None:
        self.synthetic: list[Synthetic] = []
        self.uses: dict[str, Use] = {}
        self.tensor_bytes = self.made_bytes = self.activation_bytes = self.nodes = self.opset = 0
        self._data = data
        self._allow_synthetic = allow_synthetic
        self._budget = Budget()
        self._names = 0
        # operator -> how often it is called, for the main graph (None) and each function
        self.calls: dict[Operator | None, dict[Operator, int]] = {}
        self._owner: Operator | None = None

    # ------------------------------------------------------------ messages

    def _fields(self, span: Span) -> Iterable[Field]:
        return fields(self._data, span[1], span[2], self._budget)

    def _message(self, field: Field) -> Span:
        if field.wire != BYTES:
            raise Malformed(f"a message of the wrong type at byte {field.at}")
        return field.size_at, field.start, field.end

    def _number(self, field: Field) -> int:
        if field.wire != VARINT:
            raise Malformed(f"a number of the wrong type at byte {field.at}")
        return signed(field.value)

    def _text(self, field: Field) -> str:
        self._names += 1
        if self._names > _NAMES_MAX:
            raise Malformed(f"more than {_NAMES_MAX} names")
        return text(self._data, field)

    def model(self) -> None:
        """ModelProto."""
        graph: Span | None = None
        functions: list[Span] = []
        for field in self._fields((0, 0, len(self._data))):
            if field.number == 7:
                if graph is not None:  # protobuf would merge the two, and we would have checked each alone
                    raise Malformed("it has two graphs")
                graph = self._message(field)
            elif field.number == 8:
                self._opset(self._message(field))
            elif field.number == 20:
                refuse("it carries training information; export it for inference")
            elif field.number == 25:
                functions.append(self._message(field))
        if graph is None:
            raise Malformed("there is no graph in it")
        self._graph(graph, (), (), 0)
        for function in functions:
            self._function(function)

    def _opset(self, span: Span) -> None:
        domain, version = "", 0
        for field in self._fields(span):
            if field.number == 1:
                domain = self._text(field)
            elif field.number == 2:
                version = self._number(field)
        if domain in ("", "ai.onnx"):
            self.opset = version

    def _function(self, span: Span) -> None:
        name = domain = ""
        nodes: list[Span] = []
        defaults: list[Span] = []
        for field in self._fields(span):
            if field.number == 1:
                name = self._text(field)
            elif field.number == 10:
                domain = self._text(field)
            elif field.number == 7:
                nodes.append(self._message(field))
            elif field.number == 9:
                self._opset(self._message(field))
            elif field.number == 11:
                defaults.append(self._message(field))
            elif field.number == 12:
                self._value_info(self._message(field))
        self._owner = (domain, name)
        self.calls.setdefault(self._owner, {})
        for default in defaults:
            self._attribute(default, Node(), (span,), ({},), 0)
        scope: Scopes = ({},)
        for node in nodes:
            self._node(node, (span,), scope, 0)

    def _graph(self, span: Span, parents: tuple[Span, ...], scope: Scopes, depth: int) -> None:
        if depth > _SUBGRAPH_DEPTH:
            refuse(f"graphs lie more than {_SUBGRAPH_DEPTH} deep in one another")
        here = (*parents, span)
        scope = (*scope, {})
        nodes: list[Span] = []
        for field in self._fields(span):
            if field.number == 1:
                nodes.append(self._message(field))
            elif field.number == 5:
                name, known = self._tensor(self._message(field), here)
                scope[-1][name] = known
            elif field.number in (11, 12, 13):
                self._value_info(self._message(field))
            elif field.number == 15:
                self._sparse(self._message(field), here)
        for node in nodes:
            self._node(node, here, scope, depth)

    # ------------------------------------------------------------ nodes

    def _node(self, span: Span, parents: tuple[Span, ...], scope: Scopes, depth: int) -> None:
        self.nodes += 1
        node = Node()
        attributes: list[Span] = []
        for field in self._fields(span):
            if field.number == 1:
                node.inputs.append(self._text(field))
            elif field.number == 2:
                node.outputs.append(self._text(field))
            elif field.number == 4:
                node.op = self._text(field)
            elif field.number == 7:
                node.domain = self._text(field)
            elif field.number == 5:
                attributes.append(self._message(field))
        if node.op in _NEVER:
            raise Failure("unsupported_op", f"the operator {shown(node.op)} reads files or runs code of its own")
        calls = self.calls.setdefault(self._owner, {})
        calls[node.domain, node.op] = calls.get((node.domain, node.op), 0) + 1
        before = len(self.synthetic)
        for attribute in attributes:
            self._attribute(attribute, node, (*parents, span), scope, depth)
        if node.op == "Constant" and node.outputs:
            # the tensor in a Constant goes by the name of the node's output
            found = self.synthetic[before:]
            self.synthetic[before:] = [tensor._replace(name=node.outputs[0]) for tensor in found]
            for name in ("value", "sparse_value"):
                if name in node.tensors:
                    scope[-1][node.outputs[0]] = node.tensors[name]
            for name in ("value_int", "value_ints"):
                if name in node.attributes:
                    values = node.attributes[name]
                    scope[-1][node.outputs[0]] = Known(len(values), INT64, values)
        size, stays = made_by(node, scope)
        if stays:
            self.made_bytes += size
        else:
            self.activation_bytes = max(self.activation_bytes, size)
        for place, name in enumerate(node.inputs):
            output = node.outputs[0] if node.outputs else ""
            self.uses.setdefault(name, Use(node.op, place, node.attributes, output))

    def _attribute(self, span: Span, node: Node, parents: tuple[Span, ...], scope: Scopes, depth: int) -> None:
        here = (*parents, span)
        name = ""
        tensor: Known | None = None
        whole: list[int] = []
        single: set[int] = set()
        for field in self._fields(span):
            if field.number in (5, 6, 22):
                if field.number in single:
                    raise Malformed(f"a field that is there twice at byte {field.at}")
                single.add(field.number)
            if field.number == 1:
                name = self._text(field)
            elif field.number in (3, 8):
                if len(whole) <= _LIST_MAX:
                    short = field.wire == VARINT or field.value <= 10 * _LIST_MAX
                    whole += integers(self._data, field, 10 * _LIST_MAX) if short else [0] * (_LIST_MAX + 1)
            elif field.number in (5, 10):
                tensor = self._tensor(self._message(field), here)[1]
            elif field.number in (6, 11):
                self._graph(self._message(field), here, scope, depth + 1)
            elif field.number in (22, 23):
                tensor = self._sparse(self._message(field), here)
        if tensor is not None:
            node.tensors[name] = tensor
        if whole and len(whole) <= _LIST_MAX:
            node.attributes[name] = whole

    # ------------------------------------------------------------ tensors

    def _sparse(self, span: Span, parents: tuple[Span, ...]) -> Known:
        dims: list[int] = []
        single: set[int] = set()
        values = Known(0, FLOAT, None)
        for field in self._fields(span):
            if field.number in (1, 2):
                if field.number in single:
                    raise Malformed(f"a field that is there twice at byte {field.at}")
                single.add(field.number)
                _, known = self._tensor(self._message(field), (*parents, span))
                values = known if field.number == 1 else values
            elif field.number == 3:
                dims += integers(self._data, field, _LIST_MAX)
        elements = product(max(0, dim) for dim in dims)
        self.made_bytes += size_of(elements, values.data_type)
        return Known(elements, values.data_type, None)

    def _tensor(self, span: Span, parents: tuple[Span, ...]) -> tuple[str, Known]:
        """TensorProto: its name and what is known of it; counted, and refused where it lies outside of the file."""
        dims: list[int] = []
        values: list[int] = []
        name = ""
        data_type = stored = 0
        outside = False
        location: list[str] = []
        raw: Field | None = None
        for field in self._fields(span):
            if field.number == 1:
                dims += integers(self._data, field, _LIST_MAX)
            elif field.number == 2:
                data_type = self._number(field)
            elif field.number == 8:
                name = self._text(field)
            elif field.number == 9:
                raw = field
            elif field.number in (4, 5, 6, 7, 10, 11):
                stored += field.end - field.start
                if field.number == 7 and len(values) <= _LIST_MAX and stored <= 10 * _LIST_MAX:
                    values += integers(self._data, field, 10 * _LIST_MAX)
            elif field.number == 13:
                outside = True
                location += self._location(self._message(field))
            elif field.number == 14 and field.wire == VARINT:
                outside = outside or field.value != 0
        if data_type not in BITS or any(dim < 0 for dim in dims) or len(dims) > 64:
            raise Malformed(f"the tensor {shown(name)} has the type {data_type} and the shape {dims[:9]}")
        elements = product(dims)
        size = size_of(elements, data_type)
        self.tensor_bytes += size
        if outside:
            self._outside(name, location, data_type, stored if raw is None else 1)
            self.synthetic.append(Synthetic(name, data_type, tuple(dims), None, tuple(dims), (*parents, span)))
            return name, Known(elements, data_type, None)
        if raw is not None:
            stored, least = raw.end - raw.start, size
            if data_type == INT64 and size == stored <= 8 * _LIST_MAX:
                content = self._data[raw.start : raw.end]
                values = [int.from_bytes(content[i : i + 8], "little", signed=True) for i in range(0, stored, 8)]
        else:
            # numbers of variable length take a byte at least; floats and doubles are stored as they are
            least = size if data_type in (FLOAT, DOUBLE) else elements if BITS[data_type] >= 8 else size
        if stored < least:
            raise Malformed(f"the tensor {shown(name)} of shape {dims} has {stored} bytes of values, not {least}")
        return name, Known(elements, data_type, values if len(values) == elements and data_type == INT64 else None)

    def _location(self, span: Span) -> list[str]:
        key = value = ""
        for field in self._fields(span):
            if field.number == 1:
                key = self._text(field)
            elif field.number == 2:
                value = self._text(field)
        return [value] if key == "location" else []

    def _outside(self, name: str, location: list[str], data_type: int, stored: int) -> None:
        if set(location) != {LOCATION}:
            where = ", ".join(shown(place) for place in location) or "nowhere"
            refuse(
                f"the values of the tensor {shown(name)} are not in it but in {where}; a model is one file here: "
                "save it with its weights inside"
            )
        if not self._allow_synthetic:
            refuse(f"it came without the values of {shown(name)}, and the job does not say to make them up")
        if stored or data_type not in SYNTHETIC_TYPES:
            raise Malformed(f"the tensor {shown(name)} of type {data_type} cannot be without values")

    def _value_info(self, span: Span) -> None:
        """ValueInfoProto: the largest tensor whose size is announced counts as memory, since one is there at a time."""
        for field in self._fields(span):
            if field.number != 2:
                continue
            for kind in self._fields(self._message(field)):
                if kind.number == 1:
                    self.activation_bytes = max(self.activation_bytes, self._announced(self._message(kind)))

    def _announced(self, span: Span) -> int:
        data_type = 0
        dims: list[int] = []
        for field in self._fields(span):
            if field.number == 1:
                data_type = self._number(field)
            elif field.number == 2:
                for dim in self._fields(self._message(field)):
                    # a free dimension is one at least
                    sizes = [f.value for f in self._fields(self._message(dim)) if f.number == 1 and dim.number == 1]
                    dims.append(max(1, signed(sizes[-1])) if sizes else 1)
        return size_of(product(dims), data_type) if data_type in BITS else 0
