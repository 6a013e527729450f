"""The spine, part 3: the finalists are verified, fine-tuned, and the best that passes is the winner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch

from rlprune_edge import deployment, precisions, recipes
from rlprune_edge.deployment import Deployed
from rlprune_edge.errors import CandidateError
from rlprune_edge.measurements import Measurement
from rlprune_edge.precisions import FP32, Variant
from rlprune_edge.prune import recover
from rlprune_edge.records import Quality, Target, Trial
from rlprune_edge.run import Run

VERIFIED, SHORT = "verified.json", "short.json"
ROUNDS = 3
"""of finalists"""
SEEDS = 2
"""of the short fine-tunings"""
WEIGHTS_MATTER = 0.03
"""a candidate timed with made-up weights whose speed-up differs by more with its own is spoken of"""


@dataclass(frozen=True)
class Winner:
    """The finalist that passed, fine-tuned, as it was measured last."""

    trial: Trial
    module: torch.nn.Module
    quality: Quality
    """on the validation split"""
    reference: Quality
    """the uncut model's, there"""
    ready: Deployed
    measurement: Measurement
    scored: torch.nn.Module
    """gives its answers as it is handed over: the module, or its file in fewer bits"""
    precisions: tuple[Variant, ...]
    """all that were measured, each with why it was not taken; the first is fp32"""
    precision: str


def choose(run: Run) -> tuple[Winner | None, list[dict[str, Any]]]:
    """The first finalist that passes, `None` where none does; beside it the histories of all that were fine-tuned.

    The finalists are chosen by the search split and verified on the device before any training is spent on them. Short
    fine-tunings put them in order, by the validation split; so they are fine-tuned in full, until one passes.
    Where none does, those come next that are faster by what the first ones were slower than the search had seen them:
    of many noisy figures it picks the lucky ones.
    """
    histories: list[dict[str, Any]] = []
    passed_over: set[str] = set()
    shrunk = 1.0
    for _ in range(ROUNDS):
        run.watcher.stage("finalists: measured again, with their real weights")
        left = [t for t in run.trials if t.plan.key not in passed_over and _with_margin(t, run.rung.target, shrunk)]
        finalists = verified(run, left, most=run.rung.finalists)
        if not finalists:
            break
        winner, ratios = _judged(run, finalists, histories)
        if winner is not None:
            return winner, histories
        passed_over |= {trial.plan.key for trial in finalists}
        shrunk = min([shrunk, *ratios])
    return None, histories


def _judged(run: Run, finalists: list[Trial], histories: list[dict[str, Any]]) -> tuple[Winner | None, list[float]]:
    """Fine-tune the finalists one by one; the first that passes, `None` if none does.

    Beside it, for each that was measured: its final speed-up as a share of the one that the search had seen.
    """
    ratios: list[float] = []
    target = run.rung.final
    recipes.choose(run, recipes.start(run, finalists[0].plan))
    reference = run.task.score(run.loaded.module, "validation")
    for place, trial in enumerate(_in_order(run, finalists), start=1):
        run.watcher.stage(f"fine-tuning finalist {place} of {len(finalists)}")
        module, quality, history = fine_tuned(run, trial)
        histories.append(history)
        drop = run.task.metric.drop(reference.metric, quality.metric)
        if target.max_drop is not None and drop > target.max_drop:
            run.notes.append(
                f"finalist {trial.plan.key} lost {drop:.2f} points on validation after fine-tuning, more than allowed"
            )
            continue
        run.watcher.stage("final measurement, in turns with the uncut model")
        try:
            ready = deployment.deployed(run, module)
            fp32 = Variant(FP32, ready, module, quality, deployment.measured(run, ready, run.rung.final_mode))
        except CandidateError as error:
            run.notes.append(f"finalist {trial.plan.key} failed after fine-tuning: {error}")
            continue
        best, tried = fp32, [fp32]
        if run.rung.last:
            best, tried = precisions.choose(run, module, fp32, reference, mode=run.rung.final_mode)
        assert best.ready is not None
        assert best.scored is not None
        assert best.quality is not None
        measurement = best.measurement
        assert measurement is not None
        seen = trial.measurement.speedup if trial.measurement else None
        if seen and measurement.speedup:
            ratios.append(measurement.speedup.value / (seen.value * run.precision_gain))
        if not meets(measurement, target):
            run.notes.append(
                f"finalist {trial.plan.key} was {reached(measurement)} in its final measurement and missed the target"
            )
            continue
        winner = Winner(
            trial, module, best.quality, reference, best.ready, measurement, best.scored, tuple(tried), best.name
        )
        return winner, ratios
    return None, ratios


def _in_order(run: Run, finalists: list[Trial]) -> list[Trial]:
    """The finalists, the one first that short fine-tunings with several seeds leave with the least validation loss.

    Their order before fine-tuning is a proxy's, and one fine-tuning's is luck as well: both are much cheaper to find
    out in short than by training each in full. Kept in the run's folder, like what was verified.
    """
    settings = recipes.fine_tuning(run)
    steps = recipes.short_steps(run, settings)
    if len(finalists) < 2 or steps is None:
        return finalists
    kept = run.rung.named(SHORT)
    known: dict[str, list[float]] = run.folder.read_json(kept) or {}
    run.watcher.stage(f"{len(finalists)} finalists, fine-tuned in short: {steps} steps with {SEEDS} seeds each")
    for place, trial in enumerate(finalists, start=1):
        key = trial.plan.key
        if key not in known:
            module = recipes.start(run, trial.plan)
            seeds = range(run.request.seed, run.request.seed + SEEDS)
            known[key] = [recipes.short_test(run, module, settings, steps, seed=seed).loss for seed in seeds]
            run.folder.write_json(kept, known)
        losses = " and ".join(f"{loss:.3f}" for loss in known[key])
        run.watcher.step(f"finalist {key}: validation loss {losses}", place, len(finalists))
    return sorted(finalists, key=lambda t: mean(known[t.plan.key]))


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


def verified(run: Run, trials: Sequence[Trial], *, most: int) -> list[Trial]:
    """The best trials that meet the target when they are measured once more: the search has selected for lucky noise.

    Only a quick second look, so that no training is spent on a candidate that was not fast; the proof comes at the end.
    """
    ranked = sorted(
        (t for t in trials if t.failure is None and t.score.feasible),
        key=lambda t: -t.score.reward,
    )
    kept = run.rung.named(VERIFIED)
    known: dict[str, dict[str, Any]] = run.folder.read_json(kept) or {}
    firm: list[Trial] = []
    borderline: list[Trial] = []
    for trial in ranked[: 2 * most + 2]:
        if len(firm) == most:
            break
        if trial.plan.key not in known:
            try:
                candidate = run.make_candidate(trial.plan, {})
                artifact, outputs = run.export(candidate.module, run.folder.scratch("finalist.onnx"), {})
                measurement = run.measure(artifact, outputs, "reward")
            except CandidateError as error:
                run.watcher.note(f"finalist {trial.plan.key}: {error}")
                continue
            run.watcher.note(f"finalist {trial.plan.key}: {reached(measurement)}")
            known[trial.plan.key] = {
                "met": meets(measurement, run.rung.target),
                "firm": meets(measurement, run.rung.target, firmly=True),
                "doubt": _weights_matter(trial, measurement),
            }
            run.folder.write_json(kept, known)
        if doubt := known[trial.plan.key].get("doubt"):
            run.watcher.note(doubt)
            run.notes.append(doubt)
        if known[trial.plan.key]["firm"]:
            firm.append(trial)
        elif known[trial.plan.key]["met"]:
            borderline.append(trial)
    return (firm + borderline)[:most]


def _with_margin(trial: Trial, target: Target, shrunk: float) -> bool:
    """Whether a trial would meet the target if it lost its speed-up down to this share of it."""
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


def fine_tuned(run: Run, trial: Trial) -> tuple[torch.nn.Module, Quality, dict[str, Any]]:
    """A trial's network trained by the run's recipe, its validation split's quality, and the history for the report."""
    settings = recipes.fine_tuning(run)
    module = recipes.start(run, trial.plan)
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
        checkpoint=run.folder.scratch(run.rung.named(f"{trial.plan.key}.pt")),
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


def reached(measurement: Measurement) -> str:
    latency = f"{measurement.latency_ms.value:.3f} ms"
    if measurement.speedup is None:
        return latency
    s = measurement.speedup
    word = "faster" if s.value >= 1 else "as fast"
    return f"{s.value:.2f}x {word} ({s.low:.2f} to {s.high:.2f}), {latency}"
