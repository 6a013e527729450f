"""Small models that show a board's latency staircase: the same layers at several widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rlprune_edge.records import Group, Op, PruningSpace

REPEATS = 3
REPEATED_MACS = 100_000_000
"""of a pair of layers: larger ones take long enough to be timed once"""
LONGEST_MACS = 200_000_000
"""of a pair of one-dimensional convolutions: longer signals are cut to that, since their time goes with their length"""
_SHORTEST = 64  # positions, so that the kernels still work in whole blocks


@dataclass(frozen=True)
class Probe:
    """Models of one kind of group, one for each width."""

    groups: tuple[str, ...]
    models: dict[int, bytes]
    """width -> ONNX file"""
    scale: float
    """what the times of these models have to be multiplied by: above 1 where the signal was shortened"""


def probes(space: PruningSpace, widths: Mapping[str, Sequence[int]]) -> list[Probe]:
    """For every kind of group of the space a probe with the given widths; groups of the same sizes share one.

    A model is the group's first producer at that width followed by one of its consumers, as often as the two fit after
    one another, so that a width that falls off the runtime's blocked kernels shows what it costs in context. For heads
    it is a whole attention sub-layer with so many of them.
    """
    ops = {op.name: op for op in space.ops}
    kinds: dict[tuple[object, ...], list[Group]] = {}
    for group in space.groups:
        pair = _pair_of(group, ops)
        if pair is not None:
            kinds.setdefault((group.unit, *_kind(*pair)), []).append(group)
    made = []
    for groups in kinds.values():
        pair = _pair_of(groups[0], ops)
        assert pair is not None
        short, scale = _shortened(*pair)
        models = {w: _model(groups[0], short, width=w) for w in widths[groups[0].name]}
        made.append(Probe(tuple(g.name for g in groups), models, scale))
    return made


def _model(group: Group, pair: tuple[Op, Op | None], *, width: int) -> bytes:
    if group.unit == "head":
        return _attention(pair[0], heads=width)
    return _layers(*pair, width=width)


def _pair_of(group: Group, ops: Mapping[str, Op]) -> tuple[Op, Op | None] | None:
    """The producer and consumer that stand for a group: those that cost most, of full-convolution or linear kind.

    A consumer at a smaller image (after pooling) will do; where none fits, as before a classifier, the producer alone.
    """
    producers = [ops[n] for n in group.producers if ops[n].conv_groups == 1]
    consumers = [ops[n] for n in group.consumers if ops[n].conv_groups == 1]
    pairs = [(p, c) for p in producers for c in consumers if p.kind == c.kind and _pooling(p, c)]
    if pairs:
        return max(pairs, key=lambda pair: pair[0].macs + pair[1].macs)
    return (max(producers, key=lambda p: p.macs), None) if producers else None


def _pooling(first: Op, second: Op) -> tuple[int, int] | None:
    """How much smaller the second's image is, in whole numbers; `None` if it is not that."""
    down = first.out_hw[0] // second.in_hw[0], first.out_hw[1] // second.in_hw[1]
    fits = (down[0] * second.in_hw[0], down[1] * second.in_hw[1]) == first.out_hw
    return down if fits and min(down) > 0 else None


def _kind(*pair: Op | None) -> tuple[object, ...]:
    return tuple(
        (o.kind, o.in_channels, o.out_channels, o.kernel, o.stride, o.padding, o.dilation, o.in_hw)
        for o in pair
        if o is not None
    )


def _shortened(first: Op, second: Op | None) -> tuple[tuple[Op, Op | None], float]:
    """A pair of layers over a shorter signal where theirs is long, and how many times longer theirs takes."""
    whole = first.macs + (second.macs if second is not None else 0)
    if first.kind != "conv1d" or whole <= LONGEST_MACS:
        return (first, second), 1.0
    last = second or first
    positions = max(_SHORTEST, last.out_hw[1] * LONGEST_MACS // whole)
    short_second = None
    if second is not None:
        short_second = _with_positions(second, positions)
        positions = short_second.in_hw[1]
    short_first = _with_positions(first, positions)
    left = short_first.macs + (short_second.macs if short_second is not None else 0)
    return (short_first, short_second), max(1.0, whole / left)


def _with_positions(op: Op, positions: int) -> Op:
    """The same convolution over a signal that gives so many positions, without padding."""
    needed = (positions - 1) * op.stride[1] + op.dilation[1] * (op.kernel[1] - 1) + 1
    return replace(op, in_hw=(1, needed), out_hw=(1, positions), padding=(0, 0))


def _layers(first: Op, second: Op | None, *, width: int) -> bytes:
    """`first` to `width` channels, ReLU, `second` from them, ReLU; repeated where the output fits the input again."""
    made = _Graph(width)
    name, last = "input", second or first
    fits = second is not None and (second.out_channels, second.out_hw) == (first.in_channels, first.in_hw)
    once = first.macs + (second.macs if second is not None else 0) > REPEATED_MACS
    for _ in range(REPEATS if fits and not once else 1):
        name = made.layer(first, first.in_channels, width, source=name)
        if second is not None:
            down = _pooling(first, second)
            if down and max(down) > 1:
                name = made.node("MaxPool", [name], kernel_shape=list(down), strides=list(down))
            name = made.layer(second, width, second.out_channels, source=name)
    channels = second.out_channels if second is not None else width
    return made.model(_shape(first, first.in_channels, first.in_hw), name, _shape(last, channels, last.out_hw))


def _shape(op: Op, channels: int, hw: tuple[int, int]) -> list[int]:
    if op.kind == "linear":
        return [hw[0], channels]
    return [1, channels, hw[1]] if op.kind == "conv1d" else [1, channels, *hw]


def _attention(query: Op, *, heads: int) -> bytes:
    """Self-attention of so many heads over the query's rows: three projections, both products, the one that merges."""
    rows, hidden, size = query.in_hw[0], query.in_channels, query.out_repeat
    made = _Graph(heads)
    split, merged = made.sizes([rows, heads, size]), made.sizes([rows, heads * size])
    parts = []
    for order in ([1, 0, 2], [1, 2, 0], [1, 0, 2]):  # query, key (transposed), value: [heads, ., .]
        flat = made.linear(hidden, heads * size, source="input")
        parts.append(made.node("Transpose", [made.node("Reshape", [flat, split])], perm=order))
    scale = made.weight(np.array(size**-0.5, dtype=np.float32))
    scores = made.node("Mul", [made.node("MatMul", parts[:2]), scale])
    mixed = made.node("MatMul", [made.node("Softmax", [scores], axis=-1), parts[2]])
    flat = made.node("Reshape", [made.node("Transpose", [mixed], perm=[1, 0, 2]), merged])
    return made.model([rows, hidden], made.linear(heads * size, hidden, source=flat), [rows, hidden])


class _Graph:
    """An ONNX graph under construction; every node has one output, named by its number."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[TensorProto] = []

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def weight(self, values: np.ndarray) -> str:
        name = f"w{len(self._tensors)}"
        self._tensors.append(numpy_helper.from_array(values, name))
        return name

    def sizes(self, sizes: Sequence[int]) -> str:
        return self.weight(np.array(sizes, dtype=np.int64))

    def linear(self, channels_in: int, channels_out: int, *, source: str) -> str:
        weights = self._drawn((channels_in, channels_out), fan_in=channels_in)
        return self.node("Gemm", [source, weights, self._bias(channels_out)])

    def layer(self, op: Op, channels_in: int, channels_out: int, *, source: str) -> str:
        """A convolution or linear layer, and a ReLU."""
        if op.kind == "linear":
            return self.node("Relu", [self.linear(channels_in, channels_out, source=source)])
        first = 1 if op.kind == "conv1d" else 0  # of the two axes that an op has
        kernel, padding = op.kernel[first:], op.padding[first:]
        fan_in = channels_in * op.kernel[0] * op.kernel[1]
        made = self.node(
            "Conv",
            [source, self._drawn((channels_out, channels_in, *kernel), fan_in=fan_in), self._bias(channels_out)],
            kernel_shape=list(kernel),
            strides=list(op.stride[first:]),
            pads=[*padding, *padding],
            dilations=list(op.dilation[first:]),
        )
        return self.node("Relu", [made])

    def _drawn(self, shape: tuple[int, ...], *, fan_in: int) -> str:
        # variance-preserving values: activations neither vanish (denormals are slow) nor overflow over the repeats
        return self.weight((self._rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32))

    def _bias(self, channels: int) -> str:
        return self.weight(np.full(channels, 0.01, dtype=np.float32))

    def model(self, in_shape: Sequence[int], output: str, out_shape: Sequence[int]) -> bytes:
        graph = helper.make_graph(
            self._nodes,
            "probe",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(in_shape))],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(out_shape))],
            self._tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        data: bytes = model.SerializeToString(deterministic=True)
        return data
