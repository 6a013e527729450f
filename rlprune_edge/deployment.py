"""The spine: from an exported candidate to the file that an app gets, with its preprocessing inside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlprune_edge import rungs
from rlprune_edge.errors import CandidateError
from rlprune_edge.export import host, onnx_graph, selfcontained
from rlprune_edge.export.parity import TOLERANCE
from rlprune_edge.inputs import SINGLE, Input, named
from rlprune_edge.measurements import Measurement
from rlprune_edge.records import OnnxArtifact
from rlprune_edge.report_words import target_words
from rlprune_edge.run import BASELINE, Run, arrays
from rlprune_edge.run import TOLERANCE as DEVICE_TOLERANCE

DEPLOYED = "model.onnx"
PREPROCESSING = "preprocessing.json"
"""in a run's folder: what preprocessing takes on the device, in ms"""
LOOKED_AT = 16
"""images whose raw values show of what kind these are"""


@dataclass(frozen=True)
class Deployed:
    """A model as an app gets it."""

    artifact: OnnxArtifact
    preprocessing: dict[str, Any]
    """what is left for the app to do"""
    inputs: dict[str, np.ndarray]
    """the timed input, raw"""
    outputs: dict[str, np.ndarray]
    """of the host, which a device has to reproduce"""
    tolerance: float
    """by how much another processor's may differ"""

    def raw(self, run: Run, x: Input) -> dict[str, np.ndarray]:
        """What an app would feed in the place of an input of the task's."""
        return _raw(run, x, self.artifact)


def deployed(run: Run, module: torch.nn.Module, name: str = DEPLOYED) -> Deployed:
    """Export a network truly, put its preprocessing in, and hold the file against the bare one.

    Raises CandidateError as `Run.export` does, and `output_mismatch` where the preprocessing changes an answer.
    """
    bare, expected = run.export(module, run.folder.scratch(f"bare-{name}"), {})
    return contained(run, bare, expected, run.folder.scratch(name))


def contained(
    run: Run, bare: OnnxArtifact, expected: dict[str, np.ndarray], path: Path, *, tolerance: float | None = None
) -> Deployed:
    """A bare file, whose outputs for the timed input are `expected`, with its preprocessing inside, at `path`.

    `tolerance`: by how much outputs may differ where the file computes in few bits.
    """
    rules = run.task.preprocessing
    kind = _raw_dtype(run)
    if not selfcontained.contain(Path(bare.path), path, rules, raw_dtype=kind):
        Path(bare.path).replace(path)
    artifact = onnx_graph.describe(path, max_difference=bare.max_difference)
    inputs = _raw(run, run.example, artifact)
    outputs = host.outputs(path, inputs)
    for label, value in expected.items():
        difference = float(np.abs(outputs[label] - value).max(initial=0.0))
        allowed = TOLERANCE * max(1.0, float(np.abs(value).max(initial=0.0))) if tolerance is None else tolerance
        if difference > allowed:
            text = f"with its preprocessing inside, its output {label} differs by {difference:.2g}"
            raise CandidateError("output_mismatch", text)
    return Deployed(
        artifact,
        selfcontained.rules_left(rules, kind),
        inputs,
        outputs,
        DEVICE_TOLERANCE if tolerance is None else tolerance,
    )


def measured(run: Run, ready: Deployed, mode: str) -> Measurement:
    """Time it on the device, in turns with the uncut model as an app would get that."""
    reference = reference_of(run)
    return run.measure(
        ready.artifact,
        ready.outputs,
        mode,
        inputs=ready.inputs,
        reference=(Path(reference.path), reference.sha256),
        tolerance=ready.tolerance,
    )


def reference_of(run: Run) -> OnnxArtifact:
    """The uncut model as an app would get it; written again if somebody tidied it away."""
    path = run.folder.scratch(f"deployed-{BASELINE}")
    if not path.exists():
        return deployed(run, run.loaded.module, path.name).artifact
    return onnx_graph.describe(path, max_difference=0.0)


def preprocessing_ms(run: Run) -> float:
    """Milliseconds that an inference takes longer on the device with its preprocessing inside, 0 where it has none.

    The search times networks without, and is asked for so much more. Kept in the run's folder.
    """
    target = run.request.target
    if target.speedup is None and target.latency_ms is None:
        return 0.0
    known: dict[str, float] | None = run.folder.read_json(PREPROCESSING)
    if known is None:
        known = {"ms": _preprocessing_ms(run)}
        run.folder.write_json(PREPROCESSING, known)
    if ms := known["ms"]:
        stricter = target_words(asdict(rungs.bare(target, run.baseline, ms)))
        run.watcher.note(f"preprocessing takes {ms:.3f} ms; the search times networks without it, for {stricter}")
    return known["ms"]


def _preprocessing_ms(run: Run) -> float:
    uncut = run.baseline_trial.artifact
    assert uncut is not None
    made = selfcontained.alone(arrays(run.example, uncut), run.task.preprocessing, raw_dtype=_raw_dtype(run))
    if made is None:
        return 0.0
    try:
        inside, nothing = run.device.sweep(made)
    except CandidateError as error:
        run.watcher.note(f"what preprocessing takes cannot be told on this device: {error}")
        return 0.0
    return round(max(0.0, inside - nothing) / 1e6, 4)


def _raw(run: Run, x: Input, artifact: OnnxArtifact) -> dict[str, np.ndarray]:
    """What an app would feed in the place of `x`, by the names that the file has for it."""
    rules = run.task.preprocessing
    given = {name: tensor.numpy() for name, tensor in named(x).items()}
    if rules.get("kind") == "image":
        spec = artifact.inputs[0]
        return {spec.name: selfcontained.raw_images(given[SINGLE], rules).astype(spec.dtype)}
    if rules.get("kind") == "audio":
        given[selfcontained.SAMPLES] = selfcontained.raw_samples(given[selfcontained.PREPARED_SAMPLES])
    return {spec.name: given[spec.name] for spec in artifact.inputs}


def _raw_dtype(run: Run) -> str:
    """Bytes, where all raw values of some images are whole numbers below 256."""
    if run.task.preprocessing.get("kind") != "image":
        return "float32"
    looked_at = (x for x, _ in run.task.batches("train", LOOKED_AT, limit=LOOKED_AT))
    kinds = {selfcontained.raw_images(named(x)[SINGLE].numpy(), run.task.preprocessing).dtype for x in looked_at}
    return "uint8" if kinds == {np.dtype("uint8")} else "float32"
