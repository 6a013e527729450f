"""The spine, part 4: the winner is proven, bundled and reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlprune_edge import __version__, finalists, precisions
from rlprune_edge.bundle.verify import verify
from rlprune_edge.bundle.write import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, write_bundle
from rlprune_edge.deployment import Deployed
from rlprune_edge.device.boards import noise_floor_of, split
from rlprune_edge.encoders import view
from rlprune_edge.export import host
from rlprune_edge.finalists import Winner
from rlprune_edge.measurements import Measurement
from rlprune_edge.prune import space
from rlprune_edge.recipes import advice, fine_tuning
from rlprune_edge.records import Quality, Target, Trial
from rlprune_edge.report import build_report, write_report
from rlprune_edge.report_words import target_words
from rlprune_edge.run import TOLERANCE as DEVICE_TOLERANCE
from rlprune_edge.run import Run
from rlprune_edge.tasks.task import BENCHMARK

GOLDEN = 3
PPO_LOG = "ppo"
"""folder of what PPO tells of its training, for TensorBoard and for the report"""
DRAWN = 300
"""updates of it"""
COMPRESSED = "compressed"
"""the folder of a run that a compressed transformer is saved in, as transformers does it"""
PACKAGES = (
    "torch",
    "transformers",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "torch-pruning",
    "stable-baselines3",
    "sb3-contrib",
    "numpy",
)


def deliver(run: Run) -> tuple[str, dict[str, Any]]:
    """Turn a searched journal into a bundle and a report; returns the status and the report.

    The test split is read once, for the winner and the uncut model.
    """
    winner, histories = finalists.choose(run)
    return _infeasible(run, histories) if winner is None else _finish(run, winner, histories)


def outcome(test_drop: float, target: Target) -> str:
    """`met`, or `infeasible` where the winner lost more on the test split than was allowed.

    Finalists are chosen on validation and the test split is read once, so such a winner is not replaced: it is said.
    """
    return "met" if target.max_drop is None or test_drop <= target.max_drop else "infeasible"


def _finish(run: Run, winner: Winner, histories: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    trial, module, quality, reference = winner.trial, winner.module, winner.quality, winner.reference
    ready, measurement = winner.ready, winner.measurement
    run.watcher.stage("test split, read once")
    before, after = run.task.score(run.loaded.module, "test"), run.task.score(winner.scored, "test")
    benchmarks: list[Quality] = []
    if run.benchmark is not None:
        run.watcher.stage(f"benchmark: {run.benchmark}")
        benchmarks = [run.task.score(network, BENCHMARK) for network in (run.loaded.module, winner.scored)]
    drop = run.task.metric.drop(before.metric, after.metric)
    assert measurement.reference_ms is not None
    assert measurement.speedup is not None
    baseline = _baseline_figures(run) | {
        "metric": before.metric,
        "split": "test",
        "examples": before.examples,
        "latency_ms": measurement.reference_ms.value,
        "latency_ci_ms": [measurement.reference_ms.low, measurement.reference_ms.high],
        "validation_metric": reference.metric,
        **_further(run, before, measurement.reference_ms.value, benchmarks[:1]),
    }
    compressed = {
        "metric": after.metric,
        "split": "test",
        "examples": after.examples,
        "parameters": space.count_parameters(module),
        "macs": space.count_macs(module, run.example),
        "onnx_bytes": ready.artifact.bytes,
        "latency_ms": measurement.latency_ms.value,
        "latency_ci_ms": [measurement.latency_ms.low, measurement.latency_ms.high],
        "memory_mb": measurement.memory_mb,
        "speedup": measurement.speedup.value,
        "speedup_ci": [measurement.speedup.low, measurement.speedup.high],
        "drop": drop,
        "plan_key": trial.plan.key,
        "precision": winner.precision,
        "validation_metric": quality.metric,
        "search_metric": trial.quality.metric if trial.quality else None,
        **_further(run, after, measurement.latency_ms.value, benchmarks[1:]),
    }
    floors = [
        noise_floor_of(name, threads=measurement.threads, provider=run.device.provider)
        for name in split(run.request.device)
    ]
    if (floor := max((f for f in floors if f), default=None)) and measurement.speedup.value < 1 + floor:
        run.notes.append(
            f"a speed-up of {measurement.speedup.value:.3f}x is within the noise floor this device was calibrated at "
            f"({floor:.2%}): it is not to be called a gain"
        )
    status = outcome(drop, run.request.target)
    if status != "met":
        run.notes.append(
            f"the validation split allowed this network, but on the test split it lost {drop:.2f} points, more than "
            f"the {run.request.target.max_drop:g} asked for; the test split was not used to look for another"
        )
    if better := advice(run.request, run.folder.path, drop):
        run.notes.append(better)
    run.watcher.stage("bundle")
    if view(module) is not None:
        from rlprune_edge.tasks import pretrained  # transformers takes seconds to import

        assert isinstance(module, pretrained.Encoder)
        pretrained.save(module, run.folder.path / COMPRESSED, run.task.model_files)
        bits = "" if winner.precision == precisions.FP32 else f", in fp32 (the bundle's is {winner.precision})"
        run.notes.append(f"the compressed network for torch is in {COMPRESSED}/{bits} (compress it again with --model)")
    _bundle(run, trial, baseline, compressed, ready, measurement)
    for line in verify(run.folder.bundle):
        run.watcher.note(line)
    return _report(run, status, baseline, compressed, histories, measurement, precisions.table(winner.precisions))


def _further(run: Run, quality: Quality, latency_ms: float, benchmarks: Sequence[Quality]) -> dict[str, Any]:
    """What is reported beside the metric and the latency: other figures, the benchmark's, the real-time factor."""
    found: dict[str, Any] = dict(quality.others)
    if run.task.measured_seconds is not None:
        found["real_time_factor"] = latency_ms / 1000 / run.task.measured_seconds
    for second in benchmarks:
        found["benchmark"] = {"metric": second.metric, "examples": second.examples, **second.others}
    return found


def _bundle(
    run: Run,
    trial: Trial,
    baseline: dict[str, Any],
    compressed: dict[str, Any],
    ready: Deployed,
    measurement: Measurement,
) -> None:
    # one by one, so that they keep their own lengths
    golden = []
    for x, _ in run.task.batches("validation", 1, limit=GOLDEN):
        golden.append(ready.raw(run, x))
    timed = 0
    if any(golden[0][name].shape != value.shape for name, value in ready.inputs.items()):
        timed = len(golden)  # the claimed latency is of this length
        golden.append(ready.inputs)
    artifact = ready.artifact
    tolerance = ready.tolerance if ready.tolerance > DEVICE_TOLERANCE else 0.0  # of few bits
    figures = {"name": run.task.metric.name, "unit": run.task.metric.unit}
    write_bundle(
        run.folder.bundle,
        model=Path(artifact.path),
        task=run.task.name,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        preprocessing=ready.preprocessing,
        labels=run.task.labels,
        metrics={"baseline": baseline | figures, "compressed": compressed | figures},
        measurement=asdict(measurement),
        versions=versions() | {f"device {k}": v for k, v in measurement.versions.items()},
        golden=[(inputs, host.outputs(Path(artifact.path), inputs)) for inputs in golden],
        sign=run.sign,
        files=run.task.bundle_files,
        extra={
            **run.task.bundle_extra,
            "postprocessing": _postprocessing(run),
            "timed_golden": timed,
            "precision": compressed["precision"],
            "tolerance": {"absolute": max(ABSOLUTE_TOLERANCE, tolerance), "relative": RELATIVE_TOLERANCE},
            "measured_input": run.task.measured,
            "limits": run.task.limits,
            "benchmark": run.benchmark,
            "parameters": compressed["parameters"],
            "macs": compressed["macs"],
            "model": run.loaded.description,
            "weights": run.loaded.source,
            "licence": run.loaded.licence,
            "plan": asdict(trial.plan),
            "trial": asdict(replace(trial, artifact=None)),  # its file was this machine's, and is gone
            "notes": run.notes,
        },
    )


def _postprocessing(run: Run) -> dict[str, Any]:
    """What an app does with the outputs; predict.py and the examples do it."""
    if run.task.preprocessing.get("kind") == "audio":
        return dict(run.task.preprocessing["decoding"])
    return {"kind": "softmax", "axis": -1} if run.task.labels else {"kind": "none"}


def _infeasible(run: Run, histories: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    reference = run.task.score(run.loaded.module, "validation")
    baseline = _baseline_figures(run) | {"metric": reference.metric, "split": "validation"}
    return _report(run, "infeasible", baseline, None, histories, run.baseline_trial.measurement)


def _baseline_figures(run: Run) -> dict[str, Any]:
    trial = run.baseline_trial
    assert trial.measurement is not None
    assert trial.artifact is not None
    return {
        "parameters": trial.parameters,
        "macs": trial.macs,
        "onnx_bytes": trial.artifact.bytes,
        "latency_ms": trial.measurement.latency_ms.value,
        "latency_ci_ms": [trial.measurement.latency_ms.low, trial.measurement.latency_ms.high],
        "memory_mb": trial.measurement.memory_mb,
    }


def _report(
    run: Run,
    status: str,
    baseline: dict[str, Any],
    compressed: dict[str, Any] | None,
    histories: list[dict[str, Any]],
    measurement: Measurement | None,
    precision: Sequence[dict[str, Any]] = (),
) -> tuple[str, dict[str, Any]]:
    request = run.request
    run.stopwatch.keep()
    report = build_report(
        status=status,
        task=run.task.name,
        model=run.loaded.description,
        device=request.device,
        source=measurement.source if measurement else "local",
        metric=run.task.metric,
        baseline=baseline,
        compressed=compressed,
        target=request.target,
        budget={"candidates": request.budget, "device_seconds": request.device_seconds},
        spent={
            "candidates": run.candidates_spent,
            "host_probes": run.probes,
            "device_seconds": run.device_seconds_spent,
            **run.stopwatch.spent.figures,
        },
        search={
            "agent": request.agent,
            "seed": request.seed,
            "command": request.command(),
            "step": request.step,
            "prior": request.prior,
            "importance": run.parent.criterion,
            "target": target_words(asdict(run.rung.target)),
            "preprocessing_ms": run.preprocessing_ms,
            "threads": measurement.threads if measurement else None,
            "mode": measurement.mode if measurement else None,
            "flags": list(measurement.flags) if measurement else [],
            "fine_tuning": asdict(fine_tuning(run)) | {"recipe": request.recipe, "distillation": request.distillation},
            "versions": versions(),
        },
        trials=run.journal.trials,
        nearest=_nearest(run) if compressed is None else (),
        notes=tuple(run.notes),
        fine_tuning=histories,
        ladder=_ladder(run, compressed),
        predicted=run.predicted,
        training=_training(run),
        precision=precision if run.request.precision != "fp32" else (),
        bundle=str(run.folder.bundle) if compressed else None,
        other_metrics=run.task.other_metrics,
        measured_input=run.task.measured,
        limits=run.task.limits,
        benchmark=run.benchmark,
    )
    write_report(run.folder.path, report, run.journal.trials, run.space)
    return status, report


def _ladder(run: Run, compressed: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What each rung came to, the last one as it is handed over; nothing where there was but one."""
    if run.rung.of == 1:
        return []
    words = target_words(asdict(run.rung.contained))
    last = {"rung": run.rung.number + 1, "target": words, "candidates": len(run.trials)}
    if compressed is not None:
        taken = ("plan_key", "speedup", "speedup_ci", "latency_ms", "memory_mb", "validation_metric")
        last |= {key: compressed[key] for key in taken}
    return [*run.climbed, last]


def _training(run: Run) -> list[dict[str, Any]]:
    """What the agent told of its updates, rung by rung, thinned to what can be drawn."""
    found: list[dict[str, Any]] = []
    before = 0
    for number in range(run.rung.number + 1):
        log = run.folder.path / replace(run.rung, number=number).named(PPO_LOG) / "progress.json"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        for line in lines[:: max(1, len(lines) // DRAWN)]:
            told = {"entropy": -line["train/entropy_loss"], "mean_reward": line["search/mean_reward"]}
            found.append({"evaluated": before + line["search/evaluated"], **told})
        before += sum(t.rung == number for t in run.journal.trials[1:])
    return found


def _nearest(run: Run, count: int = 3) -> tuple[Trial, ...]:
    """For a target that was not met: the candidates that came closest to it, the closest first."""
    tried = [t for t in run.trials if t.measurement is not None]
    return tuple(sorted(tried, key=lambda t: -t.score.reward)[:count])


def versions() -> dict[str, str]:
    """Versions of what took part in a run on the host."""
    found = {"rlprune-edge": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # run from a source tree without its metadata
    return found
