"""What the plots of a run's report have in common: where a row of report.json stands, and what it says of itself."""

from __future__ import annotations

from html import escape
from typing import Any

from rlprune_edge.plots import BLUE
from rlprune_edge.report_words import Figures, milliseconds, number, speedup


def is_measured(point: Figures) -> bool:
    """Whether a row of `trials` has both figures that a point in the plane needs."""
    return point["failure"] is None and point["latency_ms"] is not None and point["metric"] is not None


def rung_of(trial: Figures) -> int:
    """Counted from 1; reports of before there were ladders do not say it."""
    return int(trial.get("rung", 1))


def hover(point: Figures, report: Figures) -> str:
    """What is said of a candidate under the pointer: HTML, with all that users named escaped."""
    what = "baseline" if point["number"] == 0 else f"candidate {point['number']}"
    lines = [f"<b>{what}</b> {escape(point['plan_key'])}"]
    if point["failure"]:
        return "<br>".join([*lines, escape(point["failure"]["kind"])])
    faster = f", {speedup(point['speedup'])}" if point["speedup"] else ""
    lines.append(milliseconds(point["latency_ms"]) + faster)
    lines.append(f"{report['metric']['name']} {number(point['metric'], 2)} {report['metric']['unit']}")
    if point["reward"] is not None:
        lines.append(f"reward {point['reward']:.3f}")
    return "<br>".join(lines)


def intervals(points: list[Figures], baseline: list[Figures]) -> dict[str, Any]:
    """Bars for the 95 % intervals of latencies, on the scale that `judged_ms` puts the points on."""
    above, below = [], []
    for point in points:
        at, own = judged_ms(point, baseline), point["latency_ms"]
        low, high = point["latency_ci_ms"] or (own, own)
        above.append(at * (high / own - 1))
        below.append(at * (1 - low / own))
    return {"array": above, "arrayminus": below, "color": BLUE, "thickness": 1, "width": 3}


def judged_ms(point: Figures, baseline: list[Figures]) -> float:
    """Where a point stands on the axis: on the uncut model's scale, as the search judged it, whatever drifted since."""
    if point["speedup"] and baseline:
        return float(baseline[0]["latency_ms"] / point["speedup"])
    return float(point["latency_ms"])


def latency_limit(report: Figures, baseline: list[Figures]) -> float | None:
    """Where the target stands on the axis of latencies, in ms."""
    target = report["target"]
    if target["latency_ms"] is not None:
        return float(target["latency_ms"])
    before = baseline[0]["latency_ms"] if baseline else report["baseline"].get("latency_ms")
    return before / target["speedup"] if target["speedup"] is not None and before else None
