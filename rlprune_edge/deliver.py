"""The spine, part 3: finalists are verified, fine-tuned and chosen; the winner is proven, bundled and reported."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rlprune_edge import __version__
from rlprune_edge.bundle.verify import verify
from rlprune_edge.bundle.write import write_bundle
from rlprune_edge.device.boards import noise_floor_of, split
from rlprune_edge.encoders import view
from rlprune_edge.errors import CandidateError
from rlprune_edge.export import host
from rlprune_edge.prune import recover, space
from rlprune_edge.records import Measurement, OnnxArtifact, Quality, Target, Trial
from rlprune_edge.report import build_report, write_report
from rlprune_edge.run import Run, arrays
from rlprune_edge.tasks.task import BENCHMARK

GOLDEN = 3
COMPRESSED = "compressed"
"""the folder of a run that a compressed transformer is saved in, as transformers does it"""
ROUNDS = 3
"""of finalists"""
WEIGHTS_MATTER = 0.03
"""a candidate timed with made-up weights whose speed-up differs by more with its own is spoken of"""
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

    The finalists are chosen by the search split, verified on the device before any training is spent on them, judged
    after fine-tuning by the validation split, and the test split is read once, for the winner and the uncut model.
    Where none of them passes, those come next that are faster by what the first ones were slower than the search had
    seen them: of many noisy figures it picks the lucky ones.
    """
    histories: list[dict[str, Any]] = []
    passed_over: set[str] = set()
    shrunk = 1.0
    for _ in range(ROUNDS):
        run.watcher.stage("finalists: measured again, with their real weights")
        finalists = _verified(run, passed_over, shrunk)
        if not finalists:
            break
        found, ratios = _judged(run, finalists, histories)
        if found is not None:
            return found
        passed_over |= {trial.plan.key for trial in finalists}
        shrunk = min([shrunk, *ratios])
    return _infeasible(run, histories)


def _judged(
    run: Run, finalists: list[Trial], histories: list[dict[str, Any]]
) -> tuple[tuple[str, dict[str, Any]] | None, list[float]]:
    """Fine-tune the finalists and finish with the best that passes; `None` if none does.

    Beside it, for each that was measured: its final speed-up as a share of the one that the search had seen.
    """
    tuned: list[tuple[Trial, torch.nn.Module, Quality]] = []
    ratios: list[float] = []
    for place, trial in enumerate(finalists, start=1):
        run.watcher.stage(f"fine-tuning finalist {place} of {len(finalists)}")
        module, quality, history = _fine_tuned(run, trial)
        tuned.append((trial, module, quality))
        histories.append(history)
    higher = 1 if run.task.metric.higher_is_better else -1
    tuned.sort(key=lambda item: (-higher * item[2].metric, item[2].loss))
    reference = run.task.score(run.loaded.module, "validation") if tuned else None
    for trial, module, quality in tuned:
        assert reference is not None
        drop = run.task.metric.drop(reference.metric, quality.metric)
        if run.request.target.max_drop is not None and drop > run.request.target.max_drop:
            run.notes.append(
                f"finalist {trial.plan.key} lost {drop:.2f} points on validation after fine-tuning, more than allowed"
            )
            continue
        run.watcher.stage("final measurement, in turns with the uncut model")
        try:
            artifact, outputs = run.export(module, run.folder.scratch("model.onnx"), {})
            measurement = run.measure(artifact, outputs, run.request.final_mode)
        except CandidateError as error:
            run.notes.append(f"finalist {trial.plan.key} failed after fine-tuning: {error}")
            continue
        seen = trial.measurement.speedup if trial.measurement else None
        if seen and measurement.speedup:
            ratios.append(measurement.speedup.value / seen.value)
        if not meets(measurement, run.request.target):
            run.notes.append(
                f"finalist {trial.plan.key} was {_reached(measurement)} in its final measurement and missed the target"
            )
            continue
        return _finish(run, trial, module, quality, reference, artifact, measurement, histories), ratios
    return None, ratios


def meets(measurement: Measurement, target: Target, *, firmly: bool = False) -> bool:
    """Whether a measurement meets the target on every board; `firmly`: also at the unfavourable end of its interval."""
    if not all(meets(other, target, firmly=firmly) for other in measurement.others):
        return False
    if firmly and "few_blocks" in measurement.flags:  # its ends are those of a range
        return False
    speedup, latency = measurement.speedup, measurement.latency_ms
    if target.speedup is not None and (speedup is None or (speedup.low if firmly else speedup.value) < target.speedup):
        return False
    if target.latency_ms is not None and (latency.high if firmly else latency.value) > target.latency_ms:
        return False
    return target.memory_mb is None or (measurement.memory_mb is not None and measurement.memory_mb <= target.memory_mb)


def outcome(test_drop: float, target: Target) -> str:
    """`met`, or `infeasible` where the winner lost more on the test split than was allowed.

    Finalists are chosen on validation and the test split is read once, so such a winner is not replaced: it is said.
    """
    return "met" if target.max_drop is None or test_drop <= target.max_drop else "infeasible"


def _verified(run: Run, passed_over: set[str], shrunk: float) -> list[Trial]:
    """The best trials that meet the target when they are measured once more: the search has selected for lucky noise.

    Without those `passed_over`, and such only as would meet it if they lost their speed-up down to the share `shrunk`.
    Only a quick second look, so that no training is spent on a candidate that was not fast; the proof comes at the end.
    """
    ranked = sorted(
        (
            t
            for t in run.journal.trials[1:]
            if t.failure is None
            and t.score.feasible
            and t.plan.key not in passed_over
            and _with_margin(t, run.request.target, shrunk)
        ),
        key=lambda t: -t.score.reward,
    )
    known: dict[str, dict[str, Any]] = run.folder.read_json("verified.json") or {}
    firm: list[Trial] = []
    borderline: list[Trial] = []
    for trial in ranked[: 2 * run.request.finalists + 2]:
        if len(firm) == run.request.finalists:
            break
        if trial.plan.key not in known:
            try:
                candidate = run.make_candidate(trial.plan, {})
                artifact, outputs = run.export(candidate.module, run.folder.scratch("finalist.onnx"), {})
                measurement = run.measure(artifact, outputs, "reward")
            except CandidateError as error:
                run.watcher.note(f"finalist {trial.plan.key}: {error}")
                continue
            run.watcher.note(f"finalist {trial.plan.key}: {_reached(measurement)}")
            known[trial.plan.key] = {
                "met": meets(measurement, run.request.target),
                "firm": meets(measurement, run.request.target, firmly=True),
                "doubt": _weights_matter(trial, measurement),
            }
            run.folder.write_json("verified.json", known)
        if doubt := known[trial.plan.key].get("doubt"):
            run.watcher.note(doubt)
            run.notes.append(doubt)
        if known[trial.plan.key]["firm"]:
            firm.append(trial)
        elif known[trial.plan.key]["met"]:
            borderline.append(trial)
    return (firm + borderline)[: run.request.finalists]


def _with_margin(trial: Trial, target: Target, shrunk: float) -> bool:
    measured = trial.measurement
    if measured is None or measured.speedup is None:
        return True
    if target.speedup is not None and measured.speedup.value * shrunk < target.speedup:
        return False
    return target.latency_ms is None or measured.latency_ms.value <= target.latency_ms * shrunk


def _weights_matter(trial: Trial, own: Measurement) -> str | None:
    """A note where a candidate is not as fast with its own weights as it was with made-up ones."""
    made_up = trial.measurement
    if made_up is None or made_up.options.get("weights") != "made up" or not made_up.speedup or not own.speedup:
        return None
    ratio = own.speedup.value / made_up.speedup.value
    if abs(ratio - 1) <= WEIGHTS_MATTER:
        return None
    return (
        f"finalist {trial.plan.key} is {own.speedup.value:.2f}x faster with its own weights and was "
        f"{made_up.speedup.value:.2f}x with made-up ones; its own count"
    )


def _fine_tuned(run: Run, trial: Trial) -> tuple[torch.nn.Module, Quality, dict[str, Any]]:
    settings = fine_tuning(run)
    module = run.make_candidate(trial.plan, {}).module
    seed = run.request.seed

    def told(epoch: recover.Epoch) -> None:
        said = f"epoch {epoch.number}: loss {epoch.train_loss:.3f}, {run.task.metric.name} {epoch.metric:.2f}"
        run.watcher.step(said, epoch.number, settings.epochs)

    epochs = recover.fine_tune(
        module,
        run.loaded.module if run.request.distillation else None,
        epoch_batches=lambda e: run.task.batches("train", settings.batch_size, augment=True, seed=seed * 1000 + e),
        steps_per_epoch=-(-run.task.size("train") // settings.batch_size),
        loss=run.task.loss,
        settings=settings,
        judge=lambda network: run.task.score(network, "validation").metric,
        checkpoint=run.folder.scratch(f"{trial.plan.key}.pt"),
        on_epoch=told,
    )
    quality = run.task.score(module, "validation")
    run.watcher.note(f"{run.task.metric.name} on validation: {quality.metric:.2f} {run.task.metric.unit}")
    history = {
        "plan_key": trial.plan.key,
        "validation_metric": quality.metric,
        "epochs": [asdict(e) for e in epochs],
    }
    return module, quality, history


def fine_tuning(run: Run) -> recover.FineTuning:
    """The task's recipe with what the user set instead."""
    recipe, asked = run.task.recipe, run.request
    return recover.FineTuning(
        epochs=recipe.epochs if asked.epochs is None else asked.epochs,
        learning_rate=asked.learning_rate or recipe.learning_rate,
        batch_size=asked.batch_size or recipe.batch_size,
        optimizer=recipe.optimizer,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        warmup_steps=recipe.warmup_steps,
        temperature=recipe.distillation_temperature,
        distillation_weight=recipe.distillation_weight,
        feature_weight=recipe.feature_weight,
        mixed_precision=recipe.mixed_precision,
    )


def _finish(
    run: Run,
    trial: Trial,
    module: torch.nn.Module,
    quality: Quality,
    reference: Quality,
    artifact: OnnxArtifact,
    measurement: Measurement,
    histories: list[dict[str, Any]],
) -> tuple[str, dict[str, Any]]:
    run.watcher.stage("test split, read once")
    before, after = run.task.score(run.loaded.module, "test"), run.task.score(module, "test")
    benchmarks: list[Quality] = []
    if run.benchmark is not None:
        run.watcher.stage(f"benchmark: {run.benchmark}")
        benchmarks = [run.task.score(network, BENCHMARK) for network in (run.loaded.module, module)]
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
        "onnx_bytes": artifact.bytes,
        "latency_ms": measurement.latency_ms.value,
        "latency_ci_ms": [measurement.latency_ms.low, measurement.latency_ms.high],
        "memory_mb": measurement.memory_mb,
        "speedup": measurement.speedup.value,
        "speedup_ci": [measurement.speedup.low, measurement.speedup.high],
        "drop": drop,
        "plan_key": trial.plan.key,
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
    run.watcher.stage("bundle")
    if view(module) is not None:
        from rlprune_edge.tasks import pretrained  # transformers takes seconds to import

        assert isinstance(module, pretrained.Encoder)
        pretrained.save(module, run.folder.path / COMPRESSED, run.task.model_files)
        run.notes.append(f"the compressed network for torch is in {COMPRESSED}/ (compress it again with --model)")
    _bundle(run, trial, baseline, compressed, artifact, measurement)
    for line in verify(run.folder.bundle):
        run.watcher.note(line)
    return _report(run, status, baseline, compressed, histories, measurement)


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
    artifact: OnnxArtifact,
    measurement: Measurement,
) -> None:
    # one by one, so that they keep their own lengths
    golden = []
    for x, _ in run.task.batches("validation", 1, limit=GOLDEN):
        inputs = arrays(x, artifact)
        golden.append((inputs, host.outputs(Path(artifact.path), inputs)))
    figures = {"name": run.task.metric.name, "unit": run.task.metric.unit}
    write_bundle(
        run.folder.bundle,
        model=Path(artifact.path),
        task=run.task.name,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        preprocessing=run.task.preprocessing,
        labels=run.task.labels,
        metrics={"baseline": baseline | figures, "compressed": compressed | figures},
        measurement=asdict(measurement),
        versions=versions() | {f"device {k}": v for k, v in measurement.versions.items()},
        golden=golden,
        files=run.task.bundle_files,
        extra={
            **run.task.bundle_extra,
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
) -> tuple[str, dict[str, Any]]:
    request = run.request
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
            "wall_seconds": time.perf_counter() - run.started,
        },
        search={
            "agent": request.agent,
            "seed": request.seed,
            "command": request.command(),
            "step": request.step,
            "prior": request.prior,
            "importance": run.criterion,
            "threads": measurement.threads if measurement else None,
            "mode": measurement.mode if measurement else None,
            "flags": list(measurement.flags) if measurement else [],
            "fine_tuning": asdict(fine_tuning(run)) | {"distillation": request.distillation},
            "versions": versions(),
        },
        trials=run.journal.trials,
        nearest=_nearest(run) if compressed is None else (),
        notes=tuple(run.notes),
        fine_tuning=histories,
        bundle=str(run.folder.bundle) if compressed else None,
        other_metrics=run.task.other_metrics,
        measured_input=run.task.measured,
        limits=run.task.limits,
        benchmark=run.benchmark,
    )
    write_report(run.folder.path, report, run.journal.trials, run.space)
    return status, report


def _nearest(run: Run, count: int = 3) -> tuple[Trial, ...]:
    """For a target that was not met: the candidates that came closest to it, the closest first."""
    tried = [t for t in run.journal.trials[1:] if t.measurement is not None]
    return tuple(sorted(tried, key=lambda t: -t.score.reward)[:count])


def _reached(measurement: Measurement) -> str:
    latency = f"{measurement.latency_ms.value:.3f} ms"
    if measurement.speedup is None:
        return latency
    s = measurement.speedup
    return f"{s.value:.2f}x faster ({s.low:.2f} to {s.high:.2f}), {latency}"


def versions() -> dict[str, str]:
    """Versions of what took part in a run on the host."""
    found = {"rlprune-edge": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # run from a source tree without its metadata
    return found
