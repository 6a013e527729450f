"""The spine, part 3b: a fine-tuned network in fewer bits, kept where the device is faster with it and loses little."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlprune_edge import deployment
from rlprune_edge.deployment import Deployed
from rlprune_edge.errors import CandidateError
from rlprune_edge.export import host, onnx_graph, quantize
from rlprune_edge.inputs import Input, named
from rlprune_edge.measurements import Measurement
from rlprune_edge.records import OnnxArtifact, Quality
from rlprune_edge.run import Run

FP32, STATIC, DYNAMIC, FP16 = "fp32", "int8-static", "int8-dynamic", "fp16"
ASKED = {"auto": (STATIC, DYNAMIC, FP16), "int8": (STATIC, DYNAMIC), "fp16": (FP16,), "fp32": ()}
"""what is tried beside fp32, by what was asked for"""
GAIN = "precision.json"
QUICK = "reward"
"""how a precision is looked at first; those that are no faster are not measured for minutes"""
LEAST_GAIN = 1.05
"""less is not worth a promise before anything was cut"""
USUAL_DROP = 0.5
"""points on validation that fewer bits may cost where nobody has said how much may be lost"""
INT8_TOLERANCE = 0.05
"""share of the largest output by which another processor's int8 kernels may differ from this one's"""
CALIBRATION = {"image": 128}
CALIBRATION_OTHERS = 16
"""inputs that the ranges of activations are taken from; a transformer's activations take 100 MB for each"""
_LEFT_OUT = (1, 2, 4, 8)
"""of the most harmed nodes, how many stay in fp32: the first number that loses little enough"""
_HARM_INPUTS = 4


@dataclass(frozen=True)
class Variant:
    """One precision of a network, with what it was found to be."""

    name: str
    ready: Deployed | None
    scored: torch.nn.Module | None
    """gives its answers, for the task to judge"""
    quality: Quality | None
    """on the validation split"""
    measurement: Measurement | None
    details: str = ""
    """how it was calibrated, and what stayed in fp32"""
    rejected: str = ""
    """why it is not used; empty for the one that is"""

    def row(self) -> dict[str, Any]:
        """For report.json."""
        m = self.measurement
        return {
            "precision": self.name,
            "kept": not self.rejected,
            "why": self.rejected,
            "details": self.details,
            "validation_metric": self.quality.metric if self.quality else None,
            "latency_ms": m.latency_ms.value if m else None,
            "latency_ci_ms": [m.latency_ms.low, m.latency_ms.high] if m else None,
            "speedup": m.speedup.value if m and m.speedup else None,
            "speedup_ci": [m.speedup.low, m.speedup.high] if m and m.speedup else None,
            "memory_mb": m.memory_mb if m else None,
            "onnx_bytes": self.ready.artifact.bytes if self.ready else None,
            "mode": m.mode if m else None,
        }


class OnnxNetwork(torch.nn.Module):
    """An ONNX file as a network that a task can judge: inputs of the task's, the first output."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._run = host.load(path)

    def forward(self, x: Input) -> torch.Tensor:
        outputs = self._run({name: tensor.numpy() for name, tensor in named(x).items()})
        return torch.from_numpy(np.ascontiguousarray(next(iter(outputs.values()))))


def choose(
    run: Run, module: torch.nn.Module, fp32: Variant, reference: Quality, *, mode: str
) -> tuple[Variant, list[Variant]]:
    """The precision to hand over, and all that were tried, each with why it was not taken.

    `fp32` is the network as it is, measured; `reference` the uncut model's quality. `auto` takes the fastest that is
    faster than fp32 beyond both intervals and loses no more than allowed; `int8` and `fp16` take what was asked for
    where it loses no more than that, faster or not.
    """
    asked = run.request.precision
    if not ASKED[asked]:
        return fp32, [fp32]
    run.watcher.stage(f"precision: {', '.join(ASKED[asked])} beside fp32")
    bare, expected = run.export(module, run.folder.scratch("fp32.onnx"), {})
    tried = [_tried(run, name, bare, expected, fp32, reference, mode) for name in ASKED[asked]]
    usable = [v for v in tried if not v.rejected and _speed(v) is not None]
    if asked == "auto":
        usable = [v for v in usable if _faster(v, fp32)]
    best = max(usable, key=lambda v: _speed(v) or 0.0, default=fp32)
    if best is fp32 and asked != "auto":
        run.notes.append(
            f"--precision {asked} was asked for, and fp32 is handed over: see why in the table of precisions"
        )
    return best, [_judged(v, best, fp32) for v in (fp32, *tried)]


def gain(run: Run) -> float:
    """Times faster that the uncut model is in fewer bits, where that is asked for and loses little; else 1.

    The search is eased by it: it has to find what fewer bits leave to cutting. Kept in the run's folder.
    """
    asked, target = run.request.precision, run.request.target
    if not ASKED[asked] or (target.speedup is None and target.latency_ms is None):
        return 1.0
    known: dict[str, Any] | None = run.folder.read_json(GAIN)
    if known is None:
        run.watcher.stage(f"precision of the uncut model: {', '.join(ASKED[asked])}")
        quality = run.task.score(run.loaded.module, "validation")
        bare, expected = run.export(run.loaded.module, run.folder.scratch("fp32.onnx"), {})
        fp32 = Variant(FP32, None, run.loaded.module, quality, None)
        tried = [_tried(run, name, bare, expected, fp32, quality, QUICK) for name in ASKED[asked]]
        found = [v.measurement.speedup for v in tried if not v.rejected and v.measurement and v.measurement.speedup]
        best = max((s for s in found if s.low > LEAST_GAIN), key=lambda s: s.value, default=None)
        known = {"gain": best.value if best else 1.0, "tried": table(tried)}
        run.folder.write_json(GAIN, known)
        said = f"fewer bits make the uncut model {known['gain']:.2f}x faster" if best else "fewer bits gain nothing"
        run.watcher.note(f"{said}: the search is for {'what is left' if best else 'all of the target'}")
    return float(known["gain"])


def _tried(
    run: Run,
    name: str,
    bare: OnnxArtifact,
    expected: dict[str, np.ndarray],
    fp32: Variant,
    reference: Quality,
    mode: str,
) -> Variant:
    """Make a precision, judge it on validation, and time it: quickly, and thoroughly if it may be used after that."""
    if name == FP16 and run.device.provider == "cpu" and run.request.precision == "auto":
        return Variant(name, None, None, None, None, rejected="not tried: processors compute it in fp32")
    try:
        variant = _made(run, name, bare, expected, fp32, reference)
        assert variant.ready is not None
        measured = deployment.measured(run, variant.ready, QUICK)
        useless = variant.rejected or (run.request.precision == "auto" and _no_faster(measured, fp32))
        if mode != QUICK and not useless:
            measured = deployment.measured(run, variant.ready, mode)
    except CandidateError as error:
        run.watcher.note(f"{name}: {error}")
        return Variant(name, None, None, None, None, rejected=str(error))
    variant = replace(variant, measurement=measured)
    assert measured.speedup is not None
    assert variant.quality is not None
    said = f"{measured.speedup.value:.2f}x, {run.task.metric.name} on validation {variant.quality.metric:.2f}"
    run.watcher.note(f"{name}: {said}" + (f"; {variant.rejected}" if variant.rejected else ""))
    return variant


def _made(
    run: Run, name: str, bare: OnnxArtifact, expected: dict[str, np.ndarray], fp32: Variant, reference: Quality
) -> Variant:
    source, target = run.folder.scratch("prepared.onnx"), run.folder.scratch(f"bare-{name}.onnx")
    quantize.prepared(Path(bare.path), source)

    def variant(details: str) -> Variant:
        network = OnnxNetwork(target)
        quality = run.task.score(network, "validation")
        return Variant(name, None, network, quality, None, details, _loses(run, quality, fp32, reference))

    if name == FP16:
        quantize.half(source, target)
        made = variant("16-bit floats inside")
    elif name == DYNAMIC:
        quantize.dynamic_int8(source, target)
        made = variant("weights of matrix products per channel, activations as they pass")
    else:
        made = _calibrated(run, source, target, variant)
    share = INT8_TOLERANCE * max(float(np.abs(value).max(initial=0.0)) for value in expected.values())
    artifact = onnx_graph.describe(target, max_difference=share)
    own = host.outputs(target, {k: v.numpy() for k, v in named(run.example).items()})
    ready = deployment.contained(run, artifact, own, run.folder.scratch(f"{name}.onnx"), tolerance=share)
    return replace(made, ready=ready)


def _calibrated(run: Run, source: Path, target: Path, variant: Callable[[str], Variant]) -> Variant:
    """The first static quantization that loses little enough, else the last one that was tried, with its reason.

    Other ways to take the ranges are tried first, then the most harmed nodes are left in fp32, more and more of them.
    """
    inputs = list(_calibration(run))
    nodes = quantize.weighted_nodes(source)
    found: list[tuple[Variant, str]] = []
    for method in ("percentile", "entropy"):
        quantize.static_int8(source, target, inputs, method=method)
        made = variant(f"ranges by {method} over {len(inputs)} training inputs")
        if not made.rejected:
            return made
        found.append((made, method))
    best, method = min(found, key=lambda pair: pair[0].quality.loss if pair[0].quality else float("inf"))
    quantize.static_int8(source, target, inputs, method=method)
    harmed = quantize.most_harmed(source, target, inputs[:_HARM_INPUTS], nodes)
    for count in _LEFT_OUT:
        left_out = harmed[:count]
        if len(left_out) < count or count >= len(nodes):
            break
        quantize.static_int8(source, target, inputs, method=method, left_out=left_out)
        made = variant(f"ranges by {method}; in fp32: {', '.join(left_out)}")
        if not made.rejected:
            return made
        best = made
    return best


def _calibration(run: Run) -> Iterator[dict[str, np.ndarray]]:
    """Training inputs, one at a time: a batch's padding would be measured, too."""
    count = CALIBRATION.get(str(run.task.preprocessing.get("kind")), CALIBRATION_OTHERS)
    batches = run.task.batches("train", 1, seed=run.request.seed, limit=count)
    for x, _ in itertools.islice(batches, count):
        yield {name: tensor.numpy() for name, tensor in named(x).items()}


def _loses(run: Run, quality: Quality, fp32: Variant, reference: Quality) -> str:
    """Why a precision's quality is not enough; empty where it is."""
    metric, most = run.task.metric, run.request.target.max_drop
    if most is not None:
        drop = metric.drop(reference.metric, quality.metric)
        return (
            f"loses {drop:.2f} points of the uncut model's {metric.name}, {most:g} are allowed" if drop > most else ""
        )
    assert fp32.quality is not None
    drop = metric.drop(fp32.quality.metric, quality.metric)
    return f"loses {drop:.2f} points more than fp32, {USUAL_DROP:g} are allowed" if drop > USUAL_DROP else ""


def _faster(variant: Variant, fp32: Variant) -> bool:
    mine, others = (v.measurement.speedup if v.measurement else None for v in (variant, fp32))
    return mine is not None and others is not None and mine.low > others.high


def _no_faster(measured: Measurement, fp32: Variant) -> bool:
    """Whether a quick look is enough: what does not even seem faster will not be so beyond the intervals."""
    others = fp32.measurement.speedup if fp32.measurement else None
    return others is not None and measured.speedup is not None and measured.speedup.value <= others.value


def _speed(variant: Variant) -> float | None:
    return variant.measurement.speedup.value if variant.measurement and variant.measurement.speedup else None


def _judged(variant: Variant, best: Variant, fp32: Variant) -> Variant:
    if variant is best or variant.rejected:
        return variant
    if variant is fp32:
        return replace(
            variant, rejected=f"{best.name} is faster" if _faster(best, fp32) else f"{best.name} was asked for"
        )
    if not _faster(variant, fp32):
        return replace(variant, rejected="not faster than fp32 beyond the intervals")
    return replace(variant, rejected=f"{best.name} is faster")


def table(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """All rows for report.json."""
    return [variant.row() for variant in variants]
