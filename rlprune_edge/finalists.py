"""The spine, part 3: the finalists are verified, fine-tuned, and the best that passes is the winner."""

from __future__ import annotations

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
from rlprune_edge.records import Quality, Trial
from rlprune_edge.run import Run
from rlprune_edge.second_look import LOOKS, Left, meets, reached, settled, share_of_seen, tell, verified

SHORT = "short.json"
ROUNDS = 3
"""of finalists that are fine-tuned"""
SEEDS = 2
"""of the short fine-tunings"""


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

    The finalists are chosen by the search split and verified on the device. Short fine-tunings put them in order, by
    the validation split; so they are measured as they would be handed over, and those that are fast enough fine-tuned
    in full, until one passes. Where none does, those come next that are faster by what the first ones were slower than
    the search had seen them: of many noisy figures it picks the lucky ones.
    """
    histories: list[dict[str, Any]] = []
    left, rounds = Left(run.rung.target), 0
    for _ in range(LOOKS):
        if rounds == ROUNDS:
            break
        run.watcher.stage("finalists: measured again, with their real weights")
        looked = verified(run, left.of(run.trials), most=run.rung.finalists)
        if not looked.finalists and not looked.missed:
            break
        shares, trained = looked.missed, len(histories)
        if looked.finalists:
            winner, shares = _judged(run, looked.finalists, histories)
            if winner is not None:
                return winner, histories
        rounds += len(histories) > trained
        left.pass_over(looked, shares)
    return None, histories


def _judged(
    run: Run, finalists: list[Trial], histories: list[dict[str, Any]]
) -> tuple[Winner | None, dict[str, float | None]]:
    """Fine-tune the finalists one by one; the first that passes, `None` if none does.

    Beside it, by plan key, their last measured speed-up as a share of the one that the search had seen.
    """
    shares: dict[str, float | None] = {}
    target = run.rung.final
    recipes.choose(run, recipes.start(run, finalists[0].plan))
    reference = run.task.score(run.loaded.module, "validation")
    for found in settled(run, _in_order(run, finalists)):
        trial, key = found.trial, found.trial.plan.key
        shares[key] = found.share
        if not found.met:
            continue
        run.watcher.stage(f"fine-tuning finalist {len(shares)} of {len(finalists)}")
        module, quality, history = fine_tuned(run, trial)
        histories.append(history)
        drop = run.task.metric.drop(reference.metric, quality.metric)
        if target.max_drop is not None and drop > target.max_drop:
            tell(run, f"finalist {key} lost {drop:.2f} points on validation after fine-tuning, more than allowed")
            continue
        run.watcher.stage("final measurement, in turns with the uncut model")
        try:
            ready = deployment.deployed(run, module)
            fp32 = Variant(FP32, ready, module, quality, deployment.measured(run, ready, run.rung.final_mode))
        except CandidateError as error:
            tell(run, f"finalist {key} failed after fine-tuning: {error}")
            continue
        best, tried = fp32, [fp32]
        if run.rung.last:
            best, tried = precisions.choose(run, module, fp32, reference, mode=run.rung.final_mode)
        assert best.ready is not None
        assert best.scored is not None
        assert best.quality is not None
        measurement = best.measurement
        assert measurement is not None
        shares[key] = share_of_seen(trial, measurement, lambda seen: run.promised(seen) * run.precision_gain)
        if not meets(measurement, target):
            tell(run, f"finalist {key} was {reached(measurement, target)}, in its final measurement")
            continue
        winner = Winner(
            trial, module, best.quality, reference, best.ready, measurement, best.scored, tuple(tried), best.name
        )
        return winner, shares
    return None, shares


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


def fine_tuned(run: Run, trial: Trial) -> tuple[torch.nn.Module, Quality, dict[str, Any]]:
    """A trial's network trained by the run's recipe, its validation split's quality, and the history for the report."""
    settings = recipes.fine_tuning(run)
    module = recipes.start(run, trial.plan)
    seed = run.request.seed

    def told(epoch: recover.Epoch) -> None:
        said = f"epoch {epoch.number}: loss {epoch.train_loss:.3f}, {run.task.metric.name} {epoch.metric:.2f}"
        run.watcher.step(said, epoch.number, settings.epochs)
        run.stopwatch.keep()

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
