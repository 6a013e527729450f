"""One plan of a finished search, fine-tuned in several ways: what each part of the recipe is worth, on validation.

    .venv/bin/python tools/bench/recovery.py RUN_DIR [--plan KEY] [--steps 400] [--seeds 2] [--ways NAMES]

RUN_DIR is the folder of a `compress` or a `compare`; without --plan its best one is taken. All ways share the plan, the
seeds, and the order of the training inputs. The test split is not looked at.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from rlprune_edge import recipes
from rlprune_edge.compress import prepared
from rlprune_edge.places import cache_dir
from rlprune_edge.progress import Silent
from rlprune_edge.records import Trial
from rlprune_edge.run import Run
from rlprune_edge.run_folder import RunFolder

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no reconstruction": {"reconstruction": False},
    "no features": {"feature_weight": 0.0},
    "neither": {"reconstruction": False, "feature_weight": 0.0},
    "no distillation": {"distillation": False},
    "10 x rate": {"rate": 10.0},
    "30 x rate": {"rate": 30.0},
}


def started(run: Run, trial: Trial, *, reconstruction: bool) -> torch.nn.Module:
    """The network of a plan before any training, its layers fitted anew or not."""
    run.request = run.request.model_copy(update={"reconstruction": reconstruction})
    run.starts.clear()
    return recipes.start(run, trial.plan)


def trained(run: Run, trial: Trial, way: dict[str, Any], *, seed: int, steps: int) -> recipes.ShortTest:
    """What so many steps of a way's fine-tuning make of the network."""
    run.request = run.request.model_copy(update={"distillation": way.get("distillation", True)})
    settings = recipes.fine_tuning(run)
    settings = replace(
        settings,
        learning_rate=settings.learning_rate * way.get("rate", 1.0),
        feature_weight=way.get("feature_weight", settings.feature_weight),
    )
    return recipes.short_test(run, recipes.start(run, trial.plan), settings, steps, seed=seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--plan", help="its key, or how it begins")
    parser.add_argument("--steps", type=int, default=400, help="of each fine-tuning, within one epoch")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ways", default=",".join(WAYS), help=f"some of: {', '.join(WAYS)}")
    words = parser.parse_args()
    names = words.ways.split(",")
    if strangers := [name for name in names if name not in WAYS]:
        parser.error(f"--ways {', '.join(strangers)}: choose of {', '.join(WAYS)}")
    folder, request = RunFolder.reopen(words.run)
    with prepared(request, folder, Silent(), cache_dir=cache_dir()) as (run, _):
        met = [t for t in run.trials if t.score.feasible and t.plan.key.startswith(words.plan or "")]
        if not met:
            parser.error("no plan of this run that met its target is called so")
        trial = max(met, key=lambda t: t.score.reward)
        measured = trial.measurement
        speedup = f", {measured.speedup.value:.2f}x" if measured and measured.speedup else ""
        print(f"plan {trial.plan.key}{speedup}; {words.seeds} seeds; {run.task.metric.name} and loss on validation\n")  # noqa: T201
        print("| way | untrained | trained | each | seconds |\n|---|---|---|---|---|")  # noqa: T201
        for name in names:
            way = WAYS[name]
            began = time.perf_counter()
            before = run.task.score(started(run, trial, reconstruction=way.get("reconstruction", True)), "validation")
            after = [trained(run, trial, way, seed=seed, steps=words.steps) for seed in range(words.seeds)]
            metric, loss = mean(q.metric for q in after), mean(q.loss for q in after)
            each = ", ".join(f"{q.metric:.2f}" for q in after)
            print(  # noqa: T201
                f"| {name} | {before.metric:.2f} ({before.loss:.3f}) | {metric:.2f} ({loss:.3f}) | {each} | "
                f"{time.perf_counter() - began:.0f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
