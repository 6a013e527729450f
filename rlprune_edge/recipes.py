"""The spine, part 3a: how finalists are fine-tuned: as prescribed, as the literature does, or as short tests say."""

from __future__ import annotations

import copy
import itertools
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlprune_edge.prune import recover
from rlprune_edge.records import Plan
from rlprune_edge.request import FILE, Request
from rlprune_edge.run import Run

CHOSEN = "recipe.json"
RATES = (1.0, 3.0, 10.0, 30.0)
"""times the prescribed learning rate, as `auto` tries them"""
SCHEDULES = ("cosine", "linear", "constant")
"""tried with the best of those, but for the recipe's own, which they were tried with"""
STEPS = 400
"""of one of its tests, or as many as the time allows"""
LEAST_STEPS = 30
STARTS_KEPT = 3
"""networks, as many as there are finalists; each is begun with several times"""
WORTH_MORE = 1.0
"""points lost after the prescribed recipe from which on another one is spoken of"""
RECONSTRUCTION_INPUTS, RECONSTRUCTION_LEAST = 1024, 32
"""training inputs that layers are fitted anew to"""
RECONSTRUCTION_MACS = 200_000_000_000
"""of them together: large inputs are fewer"""


@dataclass(frozen=True)
class ShortTest:
    """A fine-tuning in small, to compare settings or networks by."""

    learning_rate: float
    schedule: str
    steps: int
    loss: float
    """on the validation split, afterwards; the lower one wins"""
    metric: float
    seconds: float


def fine_tuning(run: Run) -> recover.FineTuning:
    """The settings of this run's recipe, with what the user set instead."""
    recipe, asked = run.task.recipe, run.request
    base = recover.FineTuning(
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch_size,
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
    if asked.recipe == "long":
        base = replace(base, epochs=run.task.long_epochs, learning_rate=run.task.long_learning_rate)
    elif asked.recipe == "auto" and (chosen := run.folder.read_json(CHOSEN)) is not None:
        base = replace(base, learning_rate=chosen["learning_rate"], schedule=chosen["schedule"])
    return replace(
        base,
        epochs=base.epochs if asked.epochs is None else asked.epochs,
        learning_rate=asked.learning_rate or base.learning_rate,
        batch_size=asked.batch_size or base.batch_size,
    )


def choose(run: Run, module: torch.nn.Module) -> None:
    """For `auto`: try learning rates on copies of a finalist, within the time asked for, and keep the best.

    Each is tried as a whole training in small, warm-up and decay included: rates that look good while they are high
    need not end well. What is kept is in the run's folder, so that a resumed run trains as it began.
    """
    if run.request.recipe != "auto" or run.request.learning_rate:
        return
    chosen: dict[str, Any] | None = run.folder.read_json(CHOSEN)
    if chosen is None:
        chosen = _chosen(run, module)
        run.folder.write_json(CHOSEN, chosen)
    said = (
        f"learning rate {chosen['learning_rate']:g} with a {chosen['schedule']} schedule was the best of "
        f"{len(chosen['tried'])} settings that were tried for up to {STEPS} steps each, by the loss on validation"
    )
    if said not in run.notes:  # a ladder asks on every rung
        run.notes.append(said)


def advice(request: Request, folder: Path, drop: float) -> str | None:
    """What to type where the prescribed recipe has left a network so many points behind; `None` where it has not.

    The same seed finds the same plans again as long as their measurements are kept; candidates are scored anew.
    """
    if request.recipe != "prescribed" or request.learning_rate or drop < WORTH_MORE:
        return None
    again = f"rlprune-edge compress --config {shlex.quote(str(folder / FILE))} --recipe auto"
    return (
        f"{drop:.2f} points are lost after the prescribed fine-tuning; another learning rate, chosen by short tests, "
        f"may lose fewer: {again}"
    )


def _chosen(run: Run, module: torch.nn.Module) -> dict[str, Any]:
    minutes = run.request.recipe_minutes
    run.watcher.stage(f"recipe: learning rates and schedules, tried for {minutes:g} minutes")
    usual = fine_tuning(run)
    others = [name for name in SCHEDULES if name != usual.schedule]
    tests = len(RATES) + len(others)
    whole = -(-run.task.size("train") // usual.batch_size) * max(1, usual.epochs)
    steps = min(STEPS, whole)
    tried: list[ShortTest] = []

    def best() -> ShortTest:
        alike = [t for t in tried if t.steps == steps] or tried  # more steps would be an advantage
        return min(alike, key=lambda t: t.loss)

    for number in range(1, tests + 1):
        if number <= len(RATES):
            settings = replace(usual, learning_rate=usual.learning_rate * RATES[number - 1])
        else:
            schedule = others[number - len(RATES) - 1]
            settings = replace(usual, learning_rate=best().learning_rate, schedule=schedule)
        found = short_test(run, module, settings, steps, seed=run.request.seed)
        tried.append(found)
        said = f"learning rate {found.learning_rate:g}, {found.schedule}: validation loss {found.loss:.3f}"
        run.watcher.step(said, number, tests)
        each = 60 * minutes / tests
        if number == 1 and found.seconds > each:  # the first one says what a step takes
            steps = max(LEAST_STEPS, int(steps * each / found.seconds))
    chosen = best()
    return {"learning_rate": chosen.learning_rate, "schedule": chosen.schedule, "tried": [asdict(t) for t in tried]}


def start(run: Run, plan: Plan) -> torch.nn.Module:
    """The network that the fine-tuning of a plan begins with, a copy of its own for each caller.

    Cut, healed, and its layers fitted anew where that helps: where BatchNorm statistics alone heal a cut, as in the
    search, whose candidates are many. The one of both with the lower loss on the search split is taken.
    """
    place = run.rung.number, plan.key
    if place not in run.starts:
        while len(run.starts) >= STARTS_KEPT:
            del run.starts[next(iter(run.starts))]
        run.starts[place] = _start(run, plan)
    return copy.deepcopy(run.starts[place])


def _start(run: Run, plan: Plan) -> torch.nn.Module:
    healed = run.make_candidate(plan, {}).module
    if not run.request.reconstruction or run.parent.targets is not None or not recover.has_batchnorm(healed):
        return healed
    macs = run.space.macs(run.space.uncut())
    most = max(RECONSTRUCTION_LEAST, min(RECONSTRUCTION_INPUTS, RECONSTRUCTION_MACS // macs))
    x = next(iter(run.task.batches("train", most, seed=run.request.seed, limit=most)))[0]
    calibration = [y for y, _ in run.task.batches("train", 256, seed=run.request.seed + 1, limit=most)]
    fitted = run.parent.reconstruct(plan, x, calibration, seed=run.request.seed).module
    losses = [run.task.score(m, "search", limit=run.request.search_examples).loss for m in (healed, fitted)]
    better = losses[1] < losses[0]
    run.watcher.note(
        f"layers fitted anew to the uncut network's: loss {losses[0]:.3f} -> {losses[1]:.3f}"
        + ("" if better else "; left as they were")
    )
    return fitted if better else healed


def short_steps(run: Run, settings: recover.FineTuning) -> int | None:
    """Steps of a short fine-tuning that compares networks; `None` where the whole one is hardly longer."""
    whole = -(-run.task.size("train") // settings.batch_size) * settings.epochs
    steps = min(STEPS, whole // 4)
    return steps if steps >= LEAST_STEPS else None


def short_test(run: Run, module: torch.nn.Module, settings: recover.FineTuning, steps: int, *, seed: int) -> ShortTest:
    """Fine-tune a copy of a network for so many steps, as a whole training in small, and judge it on validation."""
    began = time.perf_counter()
    student = copy.deepcopy(module)

    def batches(_epoch: int) -> Iterator[Any]:
        return itertools.islice(run.task.batches("train", settings.batch_size, augment=True, seed=seed * 1000), steps)

    recover.fine_tune(
        student,
        run.loaded.module if run.request.distillation else None,
        epoch_batches=batches,
        steps_per_epoch=steps,
        loss=run.task.loss,
        settings=replace(settings, epochs=1),
    )
    quality = run.task.score(student, "validation")
    return ShortTest(
        settings.learning_rate, settings.schedule, steps, quality.loss, quality.metric, time.perf_counter() - began
    )
