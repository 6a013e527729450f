"""Write an exported model in fewer bits, as ONNX Runtime runs it (home of its quantization tools).

- `static_int8`: QDQ, weights and activations in 8 signed bits (S8S8), weights per channel, symmetric; ranges of the
  activations from calibration inputs. What ONNX Runtime recommends for CNNs.
- `dynamic_int8`: weights per channel in 8 bits, activations measured as they pass. What it recommends for transformers.
- `half`: 16-bit floats inside, 32-bit ones at the inputs and outputs.

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    qdq_loss_debug,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from rlprune_edge.errors import CandidateError
from rlprune_edge.export.host import Arrays

METHODS = {
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
    "minmax": CalibrationMethod.MinMax,
}
PERCENTILE = 99.99
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""operators that int8 kernels are worth having for; the others run in int8 where they stand between two of these"""
DYNAMIC = ("Gemm", "MatMul")
"""of those, what has a kernel that measures its activations as they pass"""


def prepared(source: Path, target: Path) -> None:
    """Fold constants and infer shapes, as quantization needs it; every node gets a name. Raises CandidateError."""
    with _in_words("prepare it for quantization"), _quiet():
        quant_pre_process(source, target, skip_symbolic_shape=True)
        model = onnx.load(target)
        for number, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{number}"
        _forget_unused_domains(model)
        onnx.save(model, target)


def weighted_nodes(path: Path) -> list[str]:
    """The nodes of a prepared model that have weights, in the order they run in."""
    model = onnx.load(path)
    weights = {t.name for t in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in WEIGHTED and weights & set(n.input)]


def static_int8(
    source: Path, target: Path, inputs: Sequence[Arrays], *, method: str, left_out: Sequence[str] = ()
) -> None:
    """Quantize a prepared model with the ranges that `inputs` show; nodes `left_out` stay in float32.

    The inputs may have different shapes (texts, recordings). Raises CandidateError (`export_failed`).
    """
    with _in_words("quantize it statically"), _quiet(), tempfile.TemporaryDirectory() as folder:
        quantize_static(
            source,
            target,
            _Reader(inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[method],
            nodes_to_exclude=list(left_out),
            extra_options={
                "ActivationSymmetric": False,
                "WeightSymmetric": True,
                "CalibPercentile": PERCENTILE,
                "CalibTensorRangeSymmetric": False,
                # Whatever its name says, it holds for every method. All at once, the tool stacks what the inputs gave.
                "CalibStridedMinMax": 1 if _ragged(inputs) else None,
            },
            calibration_cache_path=Path(folder) / "ranges.json",
        )
        _tidied(target)


def dynamic_int8(source: Path, target: Path, *, left_out: Sequence[str] = ()) -> None:
    """Quantize the weights of a prepared model's matrix products. Raises CandidateError (`export_failed`)."""
    with _in_words("quantize it dynamically"), _quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(DYNAMIC),
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(left_out),
            extra_options={"MatMulConstBOnly": True},
        )
        _tidied(target)


def half(source: Path, target: Path) -> None:
    """Convert to 16-bit floats inside. Raises CandidateError (`export_failed`)."""
    with _in_words("convert it to float16"), _quiet():
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def most_harmed(source: Path, quantized: Path, inputs: Sequence[Arrays], candidates: Sequence[str]) -> list[str]:
    """The candidate nodes of a prepared model, those first whose input suffers most from being quantized.

    By the signal-to-noise ratio of each activation before and after, as ONNX Runtime's own debugging tool takes it.
    """
    with _in_words("look for what quantization harms"), _quiet(), tempfile.TemporaryDirectory() as folder:
        seen = []
        for number, path in enumerate((source, quantized)):
            opened = Path(folder) / f"{number}.onnx"
            qdq_loss_debug.modify_model_output_intermediate_tensors(path, opened)
            found = qdq_loss_debug.collect_activations(str(opened), _Reader(inputs))
            # flat, since the tool joins those of all inputs, and these may have different shapes
            seen.append({tensor: [value.ravel() for value in values] for tensor, values in found.items()})
        matched = qdq_loss_debug.create_activation_matching(seen[1], seen[0])
        errors = qdq_loss_debug.compute_activation_error(matched)
    noise = {
        tensor: error["qdq_err"] for tensor, error in errors.items() if math.isfinite(error.get("qdq_err", math.inf))
    }
    given = {n.name: n.input[0] for n in onnx.load(source).graph.node}
    return sorted((name for name in candidates if given.get(name) in noise), key=lambda name: noise[given[name]])


def _tidied(path: Path) -> None:
    model = onnx.load(path)
    _forget_unused_domains(model)
    onnx.save(model, path)


def _forget_unused_domains(model: onnx.ModelProto) -> None:
    """The tools declare every domain that this onnxruntime has, in versions that a board's may not know."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _ragged(inputs: Sequence[Arrays]) -> bool:
    return len({tuple((name, value.shape) for name, value in sorted(arrays.items())) for arrays in inputs}) > 1


class _Reader(CalibrationDataReader):  # type: ignore[misc] # has no types
    def __init__(self, inputs: Sequence[Arrays]) -> None:
        self._inputs = inputs
        self.set_range(0, len(inputs))

    def __len__(self) -> int:
        return len(self._inputs)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rest = iter(self._inputs[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rest, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tools print what they do, and warn of what was done on purpose, through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _in_words(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the tools raise whatever they meet
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CandidateError("export_failed", f"onnxruntime cannot {what}: {first}") from error
