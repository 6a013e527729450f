"""The spine of `measure`: any ONNX file, or two in turns, timed on devices, with a verdict that the figures carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlprune_edge.device.boards import check_device, load_device, noise_floor_of, split
from rlprune_edge.device.meter import mode_settings
from rlprune_edge.device.station import Station
from rlprune_edge.device.verdict import verdict
from rlprune_edge.errors import CandidateError, UserError
from rlprune_edge.export import host, inputs, onnx_graph
from rlprune_edge.measurements import Measurement, Verdict
from rlprune_edge.records import OnnxArtifact

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Question:
    """What is to be measured, and how."""

    models: tuple[Path, ...]
    """one file, or two: the first is then judged against the second"""
    mode: str = "verify"
    threads: int | None = None
    provider: str | None = None
    """`cpu`, `cuda` or `tensorrt`; else the device's"""
    strict: bool = False
    shapes: Mapping[str, tuple[int, ...]] | None = None
    given: Mapping[str, np.ndarray] | None = None
    """arrays for inputs, by name; the others are made up"""
    tolerance: float = TOLERANCE
    """how far outputs may be from this machine's, as a share of the largest"""


@dataclass(frozen=True)
class Answer:
    """What one device said."""

    device: str
    measurements: tuple[Measurement, ...]
    """one per model, each for itself in latency, memory and first run; the first in turns with the second"""
    verdict: Verdict | None
    """of the first model against the second"""
    calibrated: bool
    """the verdict's noise floor is the device's own, not the usual one"""


@dataclass(frozen=True)
class _Prepared:
    """A model with its inputs and what this machine makes of them."""

    artifact: OnnxArtifact
    feeds: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    """those that are compared: floats, or else whatever there is"""
    tolerances: dict[str, float]


def measure(
    question: Question, device: str, *, cache_dir: Path, tell: Callable[[str], None] = lambda _: None
) -> list[Answer]:
    """Ask a device, or each of several (`pi4-a,pi4-b`), all at once; the answers in that order.

    Raises UserError for files, inputs and devices that cannot be, DeviceError, and CandidateError for a model that a
    device cannot run.
    """
    mode_settings(question.mode)
    check_device(device)
    prepared = _prepare(question)
    names = split(device)
    with ExitStack() as stack:
        stations = [
            stack.enter_context(
                load_device(
                    name,
                    cache_dir=cache_dir,
                    threads=question.threads,
                    provider=question.provider,
                    strict=question.strict,
                    on_process=lambda number, count, name=name: tell(f"{name}: process {number} of {count}"),
                )
            )
            for name in names
        ]
        if len(stations) == 1:
            return [_ask(question, prepared, device, stations[0], tell)]
        if len({str(station.boot_id) for station in stations}) < len(stations):
            raise UserError(f"--device {device}: two of these are the same device; give each once")
        pool = stack.enter_context(ThreadPoolExecutor(len(stations)))
        asked = [
            pool.submit(_ask, question, prepared, name, station, tell)
            for name, station in zip(names, stations, strict=True)
        ]
        try:
            wait(asked, return_when=FIRST_EXCEPTION)
            for future in asked:
                if future.done() and (error := future.exception()) is not None:
                    raise error
            return [future.result() for future in asked]
        except BaseException:  # Ctrl-C, or one of them failed: the others need not go on
            for station in stations:
                station.break_off()
            raise


def _prepare(question: Question) -> list[_Prepared]:
    """Read the files and run them here. The second model gets the first one's inputs."""
    prepared: list[_Prepared] = []
    given = dict(question.given or {})
    for path in question.models:
        try:
            model = onnx_graph.read_file(path)
            artifact = onnx_graph.describe(path, max_difference=0.0)
            feeds = inputs.make(
                artifact.inputs, shapes=question.shapes or {}, given=given, rows=onnx_graph.table_rows(model)
            )
            outputs = host.outputs(path, feeds)
        except CandidateError as error:
            raise UserError(f"{path} cannot be measured: {error}") from error
        outputs, tolerances = _to_compare(path, outputs, question.tolerance)
        prepared.append(_Prepared(artifact, feeds, outputs, tolerances))
        given = feeds
    first, *others = prepared
    for other in others:
        if set(first.feeds) != set(other.feeds):
            raise UserError(
                f"{first.artifact.path} wants the inputs {', '.join(first.feeds)} and {other.artifact.path} wants "
                f"{', '.join(other.feeds)}; two models are compared on the same inputs"
            )
    return prepared


def _to_compare(
    path: Path, outputs: dict[str, np.ndarray], share: float
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The outputs that show whether a device computes rightly, each with what it may be off by.

    Whole numbers are mostly positions of a largest value, which a near tie moves; they count only where there is
    nothing else.
    """
    floats = {name: value for name, value in outputs.items() if value.dtype.kind == "f" and value.size}
    for name, value in floats.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"{path}: its output {name} is not finite for made-up inputs, so nothing could show that a "
                "device computes it rightly. Give real ones: --inputs FILE.npz"
            )
    if not floats:
        return outputs, dict.fromkeys(outputs, 0.0)
    return floats, {name: share * float(np.abs(value).max()) for name, value in floats.items()}


def _ask(
    question: Question, prepared: Sequence[_Prepared], device: str, station: Station, tell: Callable[[str], None]
) -> Answer:
    found: list[Measurement] = []
    # The second first and alone: what is wrong with it is then its own.
    for place in reversed(range(len(prepared))):
        model = prepared[place]
        other = prepared[1].artifact if len(prepared) > 1 and place == 0 else None
        tell(f"{device}: {model.artifact.path}" + (f", in turns with {other.path}" if other else ""))
        found.insert(0, _measured(station, model, other, question.mode))
    floor = noise_floor_of(device, threads=station.threads, provider=station.provider)
    speedup = found[0].speedup
    judged = verdict(speedup, floor, only_range="few_blocks" in found[0].flags) if speedup else None
    return Answer(device, tuple(found), judged, floor is not None)


def _measured(station: Station, model: _Prepared, other: OnnxArtifact | None, mode: str) -> Measurement:
    artifact = model.artifact
    try:
        return station.measure(
            Path(artifact.path),
            model_sha256=artifact.sha256,
            graph_sha256=artifact.graph_sha256,
            reference=(Path(other.path), other.sha256) if other else None,
            inputs=model.feeds,
            expected=model.outputs,
            mode=mode,
            tolerance=model.tolerances,
            use_cache=False,
            work=artifact.work,
        )
    except CandidateError as error:
        raise CandidateError(error.kind, f"{artifact.path}: {error}") from error


def as_json(answers: Sequence[Answer]) -> dict[str, Any]:
    """All that was found out, raw samples included."""
    return {
        "format": 1,
        "input_spec": inputs.SPEC_VERSION,
        "devices": [
            {
                "device": answer.device,
                "models": [asdict(measurement) for measurement in answer.measurements],
                "verdict": asdict(answer.verdict) if answer.verdict else None,
                "calibrated": answer.calibrated,
            }
            for answer in answers
        ],
    }
