"""The spine of `profile`: a board's latency table for one model, with how well plans can be predicted from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlprune_edge.compress import prepared
from rlprune_edge.deliver import versions
from rlprune_edge.errors import UserError
from rlprune_edge.latency_profile import FORMAT, NAME
from rlprune_edge.progress import Watcher
from rlprune_edge.records import PruningSpace, Target, Trial, WidthTimes
from rlprune_edge.request import Request
from rlprune_edge.run import Run
from rlprune_edge.run_folder import RunFolder
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.latency import LatencyModel
from rlprune_edge.search.limits import Limits
from rlprune_edge.search.moves import random_plan
from rlprune_edge.search.reward import judged_latency_ms

LEFT = (0.3, 0.9)
"""shares of the uncut latency that the random plans are cut to"""
CHECKPOINTS = (0, 5, 15, 30, 60, 120)
"""plans learned from, where the error is told"""


def profile(
    request: Request, folder: RunFolder, watcher: Watcher, *, plans: int, held_out: int, cache_dir: Path, command: str
) -> dict[str, Any]:
    """Time the model's layers at every width that may pay, then random plans; write and return `profile.json`.

    The latency model learns from the first `plans` of them and is tried on the other `held_out`. All are recorded in
    the folder, so that an interrupted profile goes on where it was.
    """
    with prepared(request, folder, watcher, cache_dir=cache_dir) as (run, tables):
        watcher.stage(f"{plans} random plans to learn from, {held_out} to be tried on")
        run.scores = run.tells = False
        trials = _measured(run, tables, plans + held_out)
        learned, tried = trials[:plans], trials[plans:]
        baseline = run.baseline_trial.measurement
        assert baseline is not None
        found = {
            "format": FORMAT,
            "task": run.task.name,
            "model": run.loaded.description,
            "device": request.device,
            "source": baseline.source,
            "threads": baseline.threads,
            "versions": versions() | {f"device {k}": v for k, v in baseline.versions.items()},
            "measured_at": baseline.measured_at,
            "measured_input": run.task.measured,
            "command": command,
            "latency_ms": baseline.latency_ms.value,
            "memory_mb": baseline.memory_mb,
            "groups": {g.name: g.width for g in run.space.groups},
            "blocks": [b.name for b in run.space.blocks],
            "tables": [
                {
                    "groups": list(table.groups),
                    "layers": _layers(run.space, table.groups[0]),
                    "offered": list(run.space.group(table.groups[0]).levels),
                    "times_ns": {str(n): round(t, 1) for n, t in sorted(table.times_ns.items(), reverse=True)},
                }
                for table in tables
            ],
            "plans": [_plan(run, trial) for trial in trials],
            "prediction": errors(run.space, tables, run, learned, tried),
        }
        folder.write_json(NAME, found)
        return found


def _measured(run: Run, tables: tuple[WidthTimes, ...], count: int) -> list[Trial]:
    """So many distinct random plans of all sizes, timed."""
    env = PruningEnv(run.space, run.evaluated, baseline=run.baseline, target=Target(), tables=tables)
    rng = np.random.default_rng(run.request.seed)
    found: dict[str, Trial] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        env.limits = Limits(run.baseline.latency_ms * rng.uniform(*LEFT), None)
        plan = random_plan(env, rng)
        if plan.key in found:
            continue
        trial, _ = env.try_plan(plan)
        if trial.measurement is not None:
            found[plan.key] = trial
            run.watcher.step("random plans", len(found), count)
    if len(found) < count:
        raise UserError(
            f"Only {len(found)} different plans of this model could be measured, not {count}.\n"
            "Ask for fewer with --plans and --held-out."
        )
    return list(found.values())


def errors(
    space: PruningSpace, tables: Sequence[WidthTimes], run: Run, learned: Sequence[Trial], tried: Sequence[Trial]
) -> list[dict[str, Any]]:
    """How far predictions of the plans `tried` are off, after so many plans `learned`: in percent, and in rank."""
    model = LatencyModel(space, tables, baseline_ms=run.baseline.latency_ms)
    measured = np.array([_ms(run, trial) for trial in tried])
    found = []
    for number in range(len(learned) + 1):
        if number:
            model.observe(learned[number - 1].plan, _ms(run, learned[number - 1]))
        if number in CHECKPOINTS or number == len(learned):
            predicted = np.array([model.predict_ms(trial.plan) for trial in tried])
            off = np.abs(predicted - measured) / measured
            found.append(
                {
                    "learned": number,
                    "held_out": len(tried),
                    "mean_error_percent": round(100 * float(off.mean()), 2),
                    "largest_error_percent": round(100 * float(off.max()), 2),
                    "kendall_tau": round(kendall_tau(predicted, measured), 3),
                }
            )
    return found


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Pairs in the same order less those in the other one, as a share of all."""
    upper = np.triu_indices(len(a), k=1)
    agree = np.sign((a[:, None] - a[None])[upper]) * np.sign((b[:, None] - b[None])[upper])
    return float(agree.mean()) if len(agree) else 1.0


def _ms(run: Run, trial: Trial) -> float:
    assert trial.measurement is not None
    return judged_latency_ms(trial.measurement, run.baseline)


def _plan(run: Run, trial: Trial) -> dict[str, Any]:
    measured = trial.measurement
    assert measured is not None
    full = run.space.uncut().widths
    return {
        "widths": {name: n for name, n in trial.plan.widths.items() if n != full[name]},
        "dropped": list(trial.plan.dropped),
        "latency_ms": measured.latency_ms.value,
        "latency_ci_ms": [measured.latency_ms.low, measured.latency_ms.high],
        "speedup": measured.speedup.value if measured.speedup else None,
        "memory_mb": measured.memory_mb,
    }


def _layers(space: PruningSpace, group: str) -> list[dict[str, Any]]:
    """The layers that a table's times are of, at full width."""
    shown = ("kind", "in_channels", "out_channels", "kernel", "stride", "conv_groups", "in_hw", "out_hw")
    ops = [asdict(op) for op in space.ops if group in (op.in_group, op.out_group)]
    return [{key: op[key] for key in shown} for op in ops]
