"""The spine of `bundle verify --device`: a bundle's recorded answers and its claimed latency, on a device, again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlprune_edge.bundle import verify as bundles
from rlprune_edge.bundle.manifest import BundleError
from rlprune_edge.device.boards import check_device, load_device, noise_floor_of
from rlprune_edge.device.meter import mode_settings
from rlprune_edge.device.station import Station
from rlprune_edge.device.verdict import UNCALIBRATED_FLOOR
from rlprune_edge.errors import CandidateError
from rlprune_edge.export import onnx_graph
from rlprune_edge.measurements import Interval, Measurement

QUICK = "brief"
"""how examples are measured whose answer counts and whose latency does not"""

Word = Literal["as claimed", "faster", "slower", "not comparable"]


@dataclass(frozen=True)
class Proof:
    """What a device made of a bundle."""

    examples: int
    """golden examples that were reproduced there"""
    largest_difference: float
    measurement: Measurement
    """of the input that the claim is about"""
    claimed_ms: Interval | None
    word: Word
    why: str
    """where the two cannot be compared"""


def prove(
    folder: Path, device: str, *, mode: str, cache_dir: Path, tell: Callable[[str], None] = lambda _: None
) -> Proof:
    """Run a bundle, which has to be whole, on a device.

    Raises BundleError where it gives other answers there than it recorded, UserError, DeviceError.
    """
    mode_settings(mode)
    check_device(device)
    manifest = bundles.inspect(folder)
    golden = manifest["golden"]
    if not golden:
        raise BundleError(f"{folder} has no golden examples: there is nothing to compare a device's answers with")
    claim = manifest["measurement"]
    timed = _timed(manifest, len(golden))
    with load_device(device, cache_dir=cache_dir, threads=claim.get("threads")) as station:
        found = {}
        for number in [*(n for n in range(len(golden)) if n != timed), timed]:
            tell(f"{device}: golden example {number}" + (f", timed in mode {mode}" if number == timed else ""))
            found[number] = _run(station, folder, manifest, number, mode if number == timed else QUICK)
        floor = noise_floor_of(device, threads=station.threads, provider=station.provider)
        why = _incomparable(claim, station, mode)
    measured = found[timed]
    claimed = _interval(claim.get("latency_ms"))
    word = judge(measured.latency_ms, claimed, UNCALIBRATED_FLOOR if floor is None else floor) if claimed else None
    return Proof(
        examples=len(found),
        largest_difference=max(m.max_output_difference or 0.0 for m in found.values()),
        measurement=measured,
        claimed_ms=claimed,
        word=word if word and not why else "not comparable",
        why=why or ("" if claimed else "the bundle claims no latency"),
    )


def judge(measured: Interval, claimed: Interval, floor: float) -> Word:
    """Whether a latency is another than claimed: their intervals lie apart by more than the device's noise floor."""
    if measured.low > claimed.high * (1 + floor):
        return "slower"
    if measured.high * (1 + floor) < claimed.low:
        return "faster"
    return "as claimed"


def _timed(manifest: Mapping[str, Any], examples: int) -> int:
    number = manifest.get("timed_golden", 0)
    if type(number) is not int or not 0 <= number < examples:
        raise BundleError(f"manifest.json: 'timed_golden' is {number!r}, which is none of the {examples} examples")
    return number


def _run(station: Station, folder: Path, manifest: Mapping[str, Any], number: int, mode: str) -> Measurement:
    example, allowed = manifest["golden"][number], manifest["tolerance"]
    inputs, expected = (
        {name: bundles.read_input(folder / path) for name, path in example[side].items()}
        for side in ("inputs", "outputs")
    )
    model = folder / "model.onnx"
    artifact = onnx_graph.describe(model, max_difference=0.0)
    try:
        return station.measure(
            model,
            model_sha256=artifact.sha256,
            graph_sha256=artifact.graph_sha256,
            reference=None,
            inputs=inputs,
            expected=expected,
            mode=mode,
            tolerance={name: _tolerance(value, allowed) for name, value in expected.items()},
            use_cache=False,
            work=artifact.work,
        )
    except CandidateError as error:
        raise BundleError(f"golden example {number} fails on '{station.profile.name}': {error}") from error


def _tolerance(expected: np.ndarray, allowed: Mapping[str, float]) -> float:
    """The manifest's tolerance is per value, a device's is one for a tensor: that of its largest value."""
    return float(allowed["absolute"] + allowed["relative"] * np.abs(expected).max(initial=0.0))


def _incomparable(claim: Mapping[str, Any], station: Station, mode: str) -> str:
    """Why the claim says nothing about this device; empty where it does."""
    if claim.get("source") == "estimate":
        return "the bundle's latency is an estimate"
    key = (claim.get("options") or {}).get("device_key")
    if key is None:
        return "the bundle does not say which device its latency is of"
    if key != station.key:
        return (
            f"its latency is claimed for '{claim.get('device')}', and '{station.profile.name}' is another device, or "
            "has other versions or settings"
        )
    if mode not in ("verify", "report"):
        return f"mode {mode} is too short for a verdict"
    return ""


def _interval(value: Any) -> Interval | None:
    try:
        return Interval(float(value["value"]), float(value["low"]), float(value["high"]))
    except (KeyError, TypeError, ValueError):
        return None


def lines(proof: Proof, device: str) -> list[str]:
    """The proof for a person."""
    now, claimed = proof.measurement.latency_ms, proof.claimed_ms
    said = [
        f"{proof.examples} golden examples reproduced on {device}, largest difference {proof.largest_difference:.2g}",
        f"latency there: {_words(now)} (mode {proof.measurement.mode})"
        + (f"; claimed: {_words(claimed)}" if claimed else ""),
    ]
    return [*said, f"verdict: {proof.word}" + (f" ({proof.why})" if proof.why else "")]


def _words(latency: Interval) -> str:
    return f"{latency.value:.4g} ms ({latency.low:.4g} to {latency.high:.4g})"
