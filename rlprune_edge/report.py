"""Turns the records of a run into report.json and report.html."""

# report.json, format 1: the keys of `build_report`; `architecture` is added by `write_report`. report.html is made from
# report.json alone, so that `render` works wherever the file was carried.

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlprune_edge import whole_file
from rlprune_edge.errors import UserError
from rlprune_edge.records import MetricSpec, PruningSpace, Target, Trial
from rlprune_edge.report_words import Figures, settings, summary_lines, summary_rows, verdict

__all__ = [
    "build_report",
    "pareto",
    "render",
    "settings",
    "summary_lines",
    "summary_rows",
    "verdict",
    "write_report",
]

FORMAT = 1
JSON_NAME, HTML_NAME = "report.json", "report.html"


def pareto(trials: Sequence[Trial], *, higher_is_better: bool = True) -> tuple[Trial, ...]:
    """The measured trials that no other one beats in latency and metric, fastest first.

    Latency is that on the uncut model's scale, as in the search: its own over the candidate's paired speed-up, so that
    a machine that slowed down in between does not reorder the candidates. Among equal metrics the lower loss is better;
    of equal points the first is kept.
    """
    sign = 1.0 if higher_is_better else -1.0
    uncut = next((t.measurement.latency_ms.value for t in trials if t.number == 0 and t.measurement), None)

    def order(trial: Trial) -> tuple[float, float, float, int]:
        assert trial.measurement is not None
        assert trial.quality is not None
        paired = trial.measurement.speedup
        judged = uncut / paired.value if paired and uncut else trial.measurement.latency_ms.value
        return judged, -sign * trial.quality.metric, trial.quality.loss, trial.number

    front: list[Trial] = []
    for trial in sorted((t for t in trials if t.measurement and t.quality and not t.failure), key=order):
        if not front or order(trial)[1:3] < order(front[-1])[1:3]:
            front.append(trial)
    return tuple(front)


def build_report(
    *,
    status: str,
    task: str,
    model: str,
    device: str,
    metric: MetricSpec,
    baseline: Figures,
    compressed: Figures | None,
    target: Target,
    budget: Figures,
    spent: Figures,
    search: Figures,
    trials: Sequence[Trial],
    nearest: tuple[Trial, ...] = (),
    notes: tuple[str, ...] = (),
    fine_tuning: Sequence[Figures] = (),
    ladder: Sequence[Figures] = (),
    precision: Sequence[Figures] = (),
    predicted: Mapping[str, float] = MappingProxyType({}),
    training: Sequence[Figures] = (),
    source: str | None = None,
    bundle: str | None = None,
    other_metrics: Sequence[MetricSpec] = (),
    measured_input: str | None = None,
    limits: str | None = None,
    benchmark: str | None = None,
) -> Figures:
    """The content of report.json, plain JSON values only (what is not finite becomes null).

    `status` is `met`, `infeasible` or `stopped`. `baseline` and `compressed` hold `metric`, `parameters`, `macs`,
    `onnx_bytes`, `latency_ms`, `latency_ci_ms` [low, high], `memory_mb` and, where they differ from trial 0's,
    `source`, `threads`, `mode`, `split`; `compressed` also `speedup`, `speedup_ci`, `drop` (points), `plan_key`.
    `nearest` are the candidates an infeasible run came closest with, best first. An entry of `fine_tuning` is one
    finalist: `plan_key`, `metric` or `validation_metric` after it, `epochs` (a list of `{"number", "train_loss"}`, with
    `metric` where it was taken each epoch) and, if it was measured again, `latency_ms`, `latency_ci_ms`, `speedup`,
    `mode`; what it lacks is taken from its trial. `ladder` says what each rung came to, where there are several:
    `rung` (from 1), `target` in words, `candidates`, and of what it left, if anything, `plan_key`, `speedup`,
    `speedup_ci`, `latency_ms`, `memory_mb`, `validation_metric`. `precision` lists what was tried beside fp32 where
    that was asked for: `precision`, `kept`, `why` not, `details`, `validation_metric`, `latency_ms`, `latency_ci_ms`,
    `speedup`, `speedup_ci`, `memory_mb`, `onnx_bytes`, `mode`.
    `predicted` is what the search expected of a candidate before it was measured (plan key -> ms on the uncut model's
    scale), `training` what its agent told of every update: `evaluated` candidates by then, `entropy`, `mean_reward`.
    `search` may hold `command` (repeats the run), `versions`, `threads` and `mode` of the final measurement, and
    `target` in words: what the search was for, where preprocessing or fewer bits make that another than the run's.
    `source` and the like default to what the first measured trial says.
    Figures of `other_metrics` stand in `baseline` and `compressed` under their own names, those of a second set, called
    `benchmark`, under `benchmark` (`metric`, `examples` and the others); `real_time_factor` where audio is timed.
    `measured_input` is what one timed inference works on, `limits` what the figures of the metric are subject to.
    """
    front = pareto(trials, higher_is_better=metric.higher_is_better)
    first = next((t.measurement for t in trials if t.measurement), None)
    final = {**search, **baseline, **(compressed or {})}
    measured = {
        "device": device,
        "source": source or (first.source if first else None),
        "threads": final.get("threads") or (first.threads if first else None),
        "mode": final.get("mode") or (first.mode if first else None),
        "input": measured_input,
    }
    report: Figures = {
        "format": FORMAT,
        "status": status,
        "task": task,
        "model": model,
        "device": device,
        "source": measured["source"],
        "metric": asdict(metric),
        "other_metrics": [asdict(spec) for spec in other_metrics],
        "limits": limits,
        "benchmark": benchmark,
        "baseline": baseline,
        "compressed": compressed,
        "target": asdict(target),
        "budget": budget,
        "spent": spent,
        "search": search,
        "pareto": [_point(t) for t in front],
        "measured": measured,
        "nearest": [_point(t) for t in nearest],
        "notes": list(notes),
        "fine_tuning": [_finalist(f, trials) for f in fine_tuning],
        "ladder": list(ladder),
        "precision": list(precision),
        "bundle": bundle,
        "versions": {**(first.versions if first else {}), **search.get("versions", {})},
        "trials": [{**_point(t), "predicted_ms": predicted.get(t.plan.key)} for t in trials],
        "training": list(training),
    }
    report["verdict"] = verdict(report)
    content: Figures = plain(report)
    return content


def write_report(run_dir: Path, report: Figures, trials: Sequence[Trial], space: PruningSpace) -> None:
    """Write report.json and report.html into `run_dir`, each whole or not at all. Raises UserError (disk)."""
    whole = plain({**report, "architecture": _architecture(report, trials, space)})
    write_whole(run_dir / JSON_NAME, json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    _write_html(run_dir, whole)


def render(run_dir: Path) -> Figures:
    """Write report.html again from report.json and return the report; nothing is run. Raises UserError."""
    path = run_dir / JSON_NAME
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{run_dir} holds no report ({JSON_NAME}: {error.strerror}).\n"
            f"If the run was interrupted, end it first: rlprune-edge compress --resume {run_dir}"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        found = report.get("format") if isinstance(report, dict) else None
        raise UserError(f"{path} has format {found!r}; this version reads {FORMAT}.")
    try:
        _write_html(run_dir, report)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error} is missing.") from error
    return report


def _point(trial: Trial) -> Figures:
    """One trial as report.json lists it: what the plots and tables need, without raw samples."""
    measured, quality = trial.measurement, trial.quality
    return {
        "number": trial.number,
        "rung": trial.rung + 1,
        "plan_key": trial.plan.key,
        "metric": quality.metric if quality else None,
        "loss": quality.loss if quality else None,
        "latency_ms": measured.latency_ms.value if measured else None,
        "latency_ci_ms": [measured.latency_ms.low, measured.latency_ms.high] if measured else None,
        "speedup": measured.speedup.value if measured and measured.speedup else None,
        "memory_mb": measured.memory_mb if measured else None,
        "mode": measured.mode if measured else None,
        "parameters": trial.parameters,
        "macs": trial.macs,
        "reward": trial.score.reward,
        "feasible": trial.score.feasible,
        "seconds": dict(trial.seconds),
        "flags": list(measured.flags) if measured else [],
        "vitals": _vitals(measured.vitals_after) if measured else {},
        "failure": asdict(trial.failure) if trial.failure else None,
    }


def _vitals(said: Mapping[str, Any]) -> Figures:
    """What of a device's vitals is drawn; what it has no sensor for is left out."""
    found: Figures = {}
    if celsius := said.get("temperature_c"):
        found["celsius"] = max(celsius.values())
    if clocks := said.get("requested_mhz"):
        found["mhz"] = min(clocks.values())
    if load := said.get("loadavg"):
        found["load"] = load[0]
    if (free := said.get("available_bytes")) is not None:
        found["available_mb"] = free / 1e6
    return found


def _finalist(entry: Figures, trials: Sequence[Trial]) -> Figures:
    """One entry of `fine_tuning` with what it lacks filled in from its trial; weights do not change the latency."""
    trial = next((_point(t) for t in trials if t.plan.key == entry["plan_key"]), {})
    taken = ("number", "latency_ms", "latency_ci_ms", "speedup", "memory_mb", "mode")
    filled = {key: trial.get(key) for key in taken} if "latency_ms" not in entry else {"number": trial.get("number")}
    whole = {**dict.fromkeys(taken), **filled, **entry, "search_metric": trial.get("metric")}
    return {**whole, "metric": entry.get("metric", entry.get("validation_metric"))}


def _architecture(report: Figures, trials: Sequence[Trial], space: PruningSpace) -> Figures:
    """Kept width of every group and the removed blocks, of the compressed model or else of the nearest candidate.

    Where a layer was removed, the sub-layers it is made of are not listed beside it.
    """
    shown, key = "baseline", None
    if report["compressed"]:
        shown, key = "compressed", report["compressed"].get("plan_key")
    elif report["nearest"]:
        shown, key = "nearest", report["nearest"][0]["plan_key"]
    plan = next((t.plan for t in trials if t.plan.key == key), None) or space.uncut()
    gone = set(plan.dropped)
    inner = {part for block in space.blocks if block.name in gone for part in block.parts}
    groups = [
        {
            "name": g.name,
            "unit": g.unit,
            "width": g.width,
            "kept": plan.widths[g.name],
            "block": g.block,
            "removed": g.block in gone,
        }
        for g in space.groups
    ]
    return {
        "of": shown,
        "groups": groups,
        "blocks": [{"name": b.name, "removed": b.name in gone} for b in space.blocks if b.name not in inner],
    }


def plain(value: Any) -> Any:
    """JSON values only: tuples become lists, numpy's numbers Python's, and what is not finite None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_html(run_dir: Path, report: Figures) -> None:
    # plotly takes its time to load, and only a finished run needs it
    from rlprune_edge.report_page import page

    write_whole(run_dir / HTML_NAME, page(report))


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises UserError where it cannot be written."""
    try:
        whole_file.write_text(path, text)
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror}. Free some space or make the folder writable."
        ) from error
