"""Read ONNX graphs (home of the onnx package): what a file needs, and its identity."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from rlprune_edge.errors import CandidateError, UserError
from rlprune_edge.export import naming, skeleton
from rlprune_edge.export.work import work_of
from rlprune_edge.records import OnnxArtifact, TensorSpec


def describe(path: Path, *, max_difference: float) -> OnnxArtifact:
    """Identity, inputs and outputs of an exported file. Raises CandidateError (`export_failed`): not valid ONNX."""
    data = path.read_bytes()
    model = skeleton.read(data)
    try:
        onnx.checker.check_model(data)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise CandidateError("export_failed", f"not a valid ONNX file: {str(error).splitlines()[0]}") from error
    sha256 = hashlib.sha256(data).hexdigest()
    return described(path, model, sha256=sha256, size=len(data), max_difference=max_difference)


def described(path: Path, model: onnx.ModelProto, *, sha256: str, size: int, max_difference: float) -> OnnxArtifact:
    """As `describe`, of a valid model that was read already, whose weights are gone afterwards (or were before).

    `graph_sha256` is of what a board is sent to time. Latency does not depend on weight values (eight kinds of them,
    1.31 to 1.38 ms: within noise), so that is what a measurement belongs to.
    """
    weights = {t.name for t in model.graph.initializer}
    graph = hashlib.sha256(skeleton.bare_model(model)[0]).hexdigest()
    return OnnxArtifact(
        path=str(path),
        sha256=sha256,
        graph_sha256=graph,
        bytes=size,
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


def settle_names(path: Path) -> None:
    """Rewrite an exported file so that its names follow from the graph's structure alone, see `naming`."""
    model = skeleton.read(path.read_bytes())
    naming.settle(model)
    path.write_bytes(model.SerializeToString())


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
    """Hash of a file as it lies; one that has not changed since is not read again."""
    stat = path.stat()
    return _hashed(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=4)
def _hashed(path: Path, _version: tuple[int, ...]) -> str:
    # the uncut model's file is asked for with every candidate: 440 MB of BERT took a third of a second each time
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise CandidateError(
            "export_failed", f"{value.name} is no tensor of numbers; export the model without such inputs and outputs"
        )
    # some exporters write -1 or 0 where a dimension is free
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)
    return TensorSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name, shape)
