"""Read and build ONNX graphs (home of the onnx package): what a file needs, its identity, and probes for a board."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rlprune_edge.errors import CandidateError, UserError
from rlprune_edge.export import skeleton
from rlprune_edge.export.work import work_of
from rlprune_edge.records import Group, OnnxArtifact, Op, PruningSpace, TensorSpec


def describe(path: Path, *, max_difference: float) -> OnnxArtifact:
    """Identity, inputs and outputs of an exported file. Raises CandidateError (`export_failed`): not valid ONNX."""
    data = path.read_bytes()
    model = skeleton.read(data)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise CandidateError("export_failed", f"not a valid ONNX file: {str(error).splitlines()[0]}") from error
    weights = {t.name for t in model.graph.initializer}
    return OnnxArtifact(
        path=str(path),
        sha256=hashlib.sha256(data).hexdigest(),
        graph_sha256=graph_sha256(model),
        bytes=len(data),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        inputs=tuple(_spec(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(_spec(v) for v in model.graph.output),
        max_difference=max_difference,
        work=work_of(model),
    )


def read_file(path: Path) -> onnx.ModelProto:
    """The model in a file. Raises UserError where there is none to read, CandidateError: not ONNX, or in pieces."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    model = skeleton.read(data)
    apart = next((t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL), None)
    if apart is not None:
        raise CandidateError(
            "export_failed",
            f"the values of {apart} are in another file. Make one file of it: "
            f"python -c \"import onnx; onnx.save(onnx.load('{path}'), 'single.onnx')\"",
        )
    return model


def table_rows(model: onnx.ModelProto) -> dict[str, int]:
    """How many rows the table has that a graph input (through casts, too) looks things up in, by input."""
    tables = {t.name: t.dims for t in model.graph.initializer if t.dims}
    source = {value.name: value.name for value in model.graph.input}
    rows: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in tables and node.input[1] in source:
            name, dims = source[node.input[1]], tables[node.input[0]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            rows[name] = min(rows.get(name, dims[axis]), dims[axis])
    return rows


def sha256_of(path: Path) -> str:
    """Hash of a file as it lies."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def graph_sha256(model: onnx.ModelProto) -> str:
    """Hash of the graph without the values of its weights: of what is sent to a board to be timed.

    Latency does not depend on weight values (eight kinds of values, 1.31-1.38 ms: within noise), so this is what a
    measurement belongs to. `model` is not changed.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return hashlib.sha256(skeleton.bare_model(copy)[0]).hexdigest()


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise CandidateError(
            "export_failed", f"{value.name} is no tensor of numbers; export the model without such inputs and outputs"
        )
    # some exporters write -1 or 0 where a dimension is free
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)
    return TensorSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name, shape)


# ---------------------------------------------------------------- probes: the same layers at several widths


def probes(space: PruningSpace, widths: Mapping[str, Sequence[int]]) -> list[tuple[tuple[str, ...], dict[int, bytes]]]:
    """Small models that show a board's latency staircase: for every kind of group, one per width.

    Returns (names of the groups of that kind, {width: ONNX bytes}). A probe is the group's first producer at that width
    followed by one of its consumers, as often as the two fit after one another, so that a width that falls off the
    runtime's blocked kernels shows what it costs in context. Groups of the same sizes share one probe.
    """
    ops = {op.name: op for op in space.ops}
    kinds: dict[tuple[object, ...], list[Group]] = {}
    for group in space.groups:
        pair = _pair_of(group, ops)
        if pair is not None:
            kinds.setdefault(_kind(*pair), []).append(group)
    made = []
    for groups in kinds.values():
        pair = _pair_of(groups[0], ops)
        assert pair is not None
        by_width = {w: _probe(*pair, width=w) for w in widths[groups[0].name]}
        made.append((tuple(g.name for g in groups), by_width))
    return made


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


REPEATS = 3


def _probe(first: Op, second: Op | None, *, width: int) -> bytes:
    """`first` to `width` channels, ReLU, `second` from them, ReLU; repeated where the output fits the input again."""
    rng = np.random.default_rng(width)
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []
    name, last = "input", second or first
    fits = second is not None and (second.out_channels, second.out_hw) == (first.in_channels, first.in_hw)
    for r in range(REPEATS if fits else 1):
        steps = [(first, first.in_channels, width)]
        if second is not None:
            steps.append((second, width, second.out_channels))
        for op, channels_in, channels_out in steps:
            tag = f"{op.kind}{r}_{len(nodes)}"
            down = _pooling(first, op) if op is second else (1, 1)
            if down and max(down) > 1:
                pool = helper.make_node("MaxPool", [name], [f"{tag}_p"], kernel_shape=list(down), strides=list(down))
                nodes.append(pool)
                name = f"{tag}_p"
            made, tensors = _layer(op, channels_in, channels_out, source=name, tag=tag, rng=rng)
            nodes += made
            weights += tensors
            name = made[-1].output[0]
    channels = second.out_channels if second is not None else width
    out_shape = [1, channels, *last.out_hw]
    in_shape = [1, first.in_channels, *first.in_hw]
    if first.kind == "linear":
        in_shape, out_shape = [first.in_hw[0], first.in_channels], [last.out_hw[0], channels]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, in_shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, out_shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _layer(
    op: Op, channels_in: int, channels_out: int, *, source: str, tag: str, rng: np.random.Generator
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    fan_in = channels_in * op.kernel[0] * op.kernel[1]
    shape = (channels_out, channels_in, *op.kernel) if op.kind == "conv" else (channels_in, channels_out)
    # variance-preserving values: activations neither vanish (denormals are slow) nor overflow over the repeats
    weight = (rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32)
    bias = np.full(channels_out, 0.01, dtype=np.float32)
    tensors = [numpy_helper.from_array(weight, f"{tag}_w"), numpy_helper.from_array(bias, f"{tag}_b")]
    if op.kind == "conv":
        layer = helper.make_node(
            "Conv",
            [source, f"{tag}_w", f"{tag}_b"],
            [f"{tag}_y"],
            kernel_shape=list(op.kernel),
            strides=list(op.stride),
            pads=[*op.padding, *op.padding],
            dilations=list(op.dilation),
        )
    else:
        layer = helper.make_node("Gemm", [source, f"{tag}_w", f"{tag}_b"], [f"{tag}_y"])
    relu = helper.make_node("Relu", [f"{tag}_y"], [f"{tag}_r"])
    return [layer, relu], tensors
