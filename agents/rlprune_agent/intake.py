"""Look at a model before ONNX Runtime does: one file, known operators, and no more memory than the board has.

Our own bounded walk over the bytes (standard library only): ONNX Runtime's parser, shape inference and constant folding
are not made for files from strangers, and a 69-byte model can ask it for any amount of memory. What cannot be seen
without running the model is left to the limits of the process it runs in.
"""

from __future__ import annotations

import os
import zlib
from typing import NamedTuple

from rlprune_agent.protocol import Failure
from rlprune_agent.tensors import Synthetic, Use
from rlprune_agent.walk import Operator, Walk, refuse, shown
from rlprune_agent.wire import Malformed

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
FILE_MAX = 2**31 - 1
GRAPH_MAX = 64 * 2**20
"""bytes of a graph that came packed and without its weights"""
MEMORY_SHARE = 0.6
_FUNCTION_DEPTH = 16
_NODES_MAX = 1_000_000


class Intake(NamedTuple):
    """What the walk found."""

    synthetic: list[Synthetic]
    """in the order of the file"""
    tensor_bytes: int
    """of all tensors, those without values included"""
    nodes: int
    opset: int


def memory_limit() -> int:
    """Bytes a model's tensors may take on this board: 60 % of its memory."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)


def unpacked(data: bytes) -> bytes:
    """The file itself; a zlib stream (which no ONNX file begins like) is a packed one. Raises `Failure`."""
    if data[:1] != b"\x78":
        return data
    inflate = zlib.decompressobj()
    try:
        graph = inflate.decompress(data, GRAPH_MAX)
    except zlib.error as error:
        raise Failure("load_failed", f"the packed model is damaged: {error}") from None
    if not inflate.eof:
        why = "is not whole" if not inflate.unconsumed_tail else f"unpacks to more than {GRAPH_MAX >> 20} MB"
        raise Failure("load_failed", f"the packed model {why}; send it unpacked")
    return graph


def check(data: bytes, *, synthetic: bool, memory_bytes: int) -> Intake:
    """Walk over a model. `synthetic` says whether tensors without values are allowed; `memory_bytes` is all there is.

    Raises `Failure`: `load_failed` (not one whole ONNX file), `unsupported_op` (a foreign domain), `too_big`.
    """
    if len(data) > FILE_MAX:
        raise Failure("too_big", f"a file of {len(data)} bytes; ONNX files end at {FILE_MAX}")
    if data[4:8] == b"ORTM":
        refuse("it is in ONNX Runtime's own format, which is not checked; send the ONNX file")
    walk = Walk(data, synthetic)
    try:
        walk.model()
    except Malformed as error:
        size = f"{len(data)} bytes"
        refuse(f"it is not a whole ONNX file (protobuf, {size}): {error}; export it again, and look at its size here")
    _settle_functions(walk)
    total = walk.tensor_bytes + walk.made_bytes + walk.activation_bytes
    if total > memory_bytes:
        raise Failure(
            "too_big",
            "the model announces {} ({} of tensors, {} made while it loads, {} for its largest activation); this board "
            "gives it {}".format(
                *(_size(n) for n in (total, walk.tensor_bytes, walk.made_bytes, walk.activation_bytes, memory_bytes))
            ),
        )
    in_order = sorted(walk.synthetic, key=lambda tensor: tensor.spans[-1])
    found = [_followed(tensor._replace(use=walk.uses.get(tensor.name)), walk.uses) for tensor in in_order]
    whole = len(data) + sum(tensor.bytes for tensor in found)
    if whole > FILE_MAX:
        raise Failure("too_big", f"a model of {_size(whole)} with its weights; ONNX files end at 2 GiB")
    return Intake(found, walk.tensor_bytes, walk.nodes, walk.opset)


def _followed(tensor: Synthetic, uses: dict[str, Use]) -> Synthetic:
    """The tensor with the use that its transposed or converted self is put to."""
    dims, use = tensor.dims, tensor.use
    for _ in range(4):
        if use is None or use.op not in ("Transpose", "Cast", "Identity"):
            break
        order = use.attributes.get("perm", list(range(len(dims)))[::-1]) if use.op == "Transpose" else range(len(dims))
        if sorted(order) == list(range(len(dims))):
            dims = tuple(dims[axis] for axis in order)
        use = uses.get(use.output)
    return tensor._replace(use=use, used_dims=dims)


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count < 10**9 else f"{count / 1e9:.1f} GB"


def _settle_functions(walk: Walk) -> None:
    """Domains, and functions that call each other: no cycles, not too deep, and not too many nodes once inlined.

    A foreign operator set that is only named does no harm: ONNX Runtime's own tools name all of theirs in every file.
    """
    defined = {key for key in walk.calls if key is not None}
    for calls in walk.calls.values():
        for domain, op in calls:
            if domain not in DOMAINS and (domain, op) not in defined:
                known = ", ".join(repr(name) for name in DOMAINS)
                what = f"the operator {shown(op)} is of the domain {shown(domain)}"
                raise Failure("unsupported_op", f"{what}; ONNX Runtime on a board has {known} and no others")
    settled: dict[Operator | None, tuple[int, int]] = {}

    def settle(key: Operator | None, above: tuple[Operator, ...]) -> tuple[int, int]:
        """(depth below, nodes once inlined) of a function; of the graph itself for None."""
        if key in settled:
            return settled[key]
        if key is not None:
            if key in above:
                refuse(f"the function {shown(key[1])} calls itself")
            above = (*above, key)
        depth = nodes = 0
        if len(above) <= _FUNCTION_DEPTH:
            for call, count in walk.calls.get(key, {}).items():
                below, size = settle(call, above) if call in defined else (-1, 1)
                depth, nodes = max(depth, below + 1), nodes + size * count
        if len(above) > _FUNCTION_DEPTH or depth > _FUNCTION_DEPTH:
            refuse(f"functions call each other more than {_FUNCTION_DEPTH} deep")
        if nodes > _NODES_MAX:
            raise Failure("too_big", f"the model has more than {_NODES_MAX} nodes once its functions are inlined")
        settled[key] = depth, nodes
        return settled[key]

    for key in list(walk.calls):
        settle(key, ())
