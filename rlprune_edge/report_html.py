"""Draws the plots of a run's report as HTML.

Every drawing function takes the content of report.json and returns a `<div>`, or "" where there is nothing to draw.
"""

from __future__ import annotations

from html import escape
from itertools import accumulate, groupby
from typing import Any

import plotly.graph_objects as go

from rlprune_edge.plots import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, PURPLE, SKY, VERMILION, div, layout
from rlprune_edge.report_words import Figures, milliseconds, number, speedup

EARLIER = ("circle-open", "diamond-open", "square-open", "triangle-up-open")
"""markers of candidates on a ladder's rungs before the last"""
STAGES = (SKY, ORANGE, GREEN, "#F0E442", BLUE, VERMILION, PURPLE, "#555B63", "#B8BEC5")


def is_measured(point: Figures) -> bool:
    """Whether a row of `trials` has both figures that a point in the plane needs."""
    return point["failure"] is None and point["latency_ms"] is not None and point["metric"] is not None


def tradeoff(report: Figures) -> str:
    """Metric on the search split against measured latency: all candidates, the front, finalists, the target."""
    points = [t for t in report["trials"] if is_measured(t)]
    if not points:
        return ""
    figure = go.Figure()
    front = report["pareto"]
    keys = {t["plan_key"] for t in front}
    baseline = [t for t in points if t["number"] == 0]
    others = [t for t in points if t["number"] > 0]
    finalists = {f["plan_key"] for f in report["fine_tuning"]}
    figure.add_scatter(
        x=[_judged_ms(t, baseline) for t in front],
        y=[t["metric"] for t in front],
        mode="lines",
        line={"color": BLUE, "width": 2, "shape": "hv" if report["metric"]["higher_is_better"] else "vh"},
        name="Pareto front",
        hoverinfo="skip",
    )
    for name, group, marker in (
        *_by_rung([t for t in others if t["plan_key"] not in keys]),
        ("on the front", [t for t in others if t["plan_key"] in keys], {"color": BLUE, "size": 9}),
        ("baseline", baseline, {"color": INK, "size": 12, "symbol": "square", "line": {"color": "#fff", "width": 1}}),
        (
            "finalist, before fine-tuning",
            [t for t in others if t["plan_key"] in finalists],
            {"color": VERMILION, "size": 15, "symbol": "circle-open", "line": {"width": 2}},
        ),
    ):
        if group:
            figure.add_scatter(
                x=[_judged_ms(t, baseline) for t in group],
                y=[t["metric"] for t in group],
                mode="markers",
                marker=marker,
                error_x=_intervals(group, baseline) if name == "on the front" else None,
                name=name,
                text=[_hover(t, report) for t in group],
                hovertemplate="%{text}<extra></extra>",
            )
    tuned = [f for f in report["fine_tuning"] if f["metric"] is not None and f["latency_ms"] is not None]
    if tuned:
        figure.add_scatter(
            x=[_judged_ms(f, baseline) for f in tuned],
            y=[f["metric"] for f in tuned],
            mode="markers",
            marker={"color": VERMILION, "size": 12, "symbol": "diamond"},
            name="finalist, fine-tuned (validation)",
            text=[f"<b>candidate {f['number']}</b>, fine-tuned<br>{milliseconds(f['latency_ms'])}" for f in tuned],
            hovertemplate="%{text}<br>%{y:.2f} on the validation split<extra></extra>",
        )
    limit = _latency_limit(report, baseline)
    if limit:
        # named in the legend and not beside the line, where it would cover points
        name = f"target, {milliseconds(limit)}"
        figure.add_vline(x=limit, line={"color": GREEN, "width": 2, "dash": "dash"}, name=name, showlegend=True)
    figure.update_layout(**layout(height=460))
    figure.update_xaxes(title_text="latency, ms", rangemode="tozero")
    figure.update_yaxes(title_text=f"{report['metric']['name']}, {report['metric']['unit']}")
    return div(figure, "plot-tradeoff")


def _by_rung(points: list[Figures]) -> list[tuple[str, list[Figures], dict[str, Any]]]:
    """The candidates of each rung with a name and a marker of their own; those of the last as where there is one."""
    numbers = sorted({_rung(t) for t in points})
    drawn: list[tuple[str, list[Figures], dict[str, Any]]] = []
    for place, rung in enumerate(numbers):
        marker: dict[str, Any] = {"color": GREY, "size": 8, "opacity": 0.75}
        if place < len(numbers) - 1:
            marker["symbol"] = EARLIER[place % len(EARLIER)]
        name = "candidate" if len(numbers) == 1 else f"candidate, rung {rung}"
        drawn.append((name, [t for t in points if _rung(t) == rung], marker))
    return drawn


def _rung(trial: Figures) -> int:
    return int(trial.get("rung", 1))


def rewards(report: Figures) -> str:
    """Reward of every candidate in the order of the search, with the best so far; of each rung for itself."""
    points = [t for t in report["trials"] if t["number"] > 0 and t["reward"] is not None]
    if not points:
        return ""
    figure = go.Figure()
    met = "meets the target" if any(v is not None for v in report["target"].values()) else "measured"
    for name, group, marker in (
        (met, [t for t in points if t["feasible"] and not t["failure"]], {"color": BLUE, "size": 8}),
        (
            "misses the target",
            [t for t in points if not t["feasible"] and not t["failure"]],
            {"color": GREY, "size": 8, "symbol": "circle-open", "line": {"width": 1.5}},
        ),
        ("failed", [t for t in points if t["failure"]], {"color": VERMILION, "size": 9, "symbol": "x"}),
    ):
        if group:
            figure.add_scatter(
                x=[t["number"] for t in group],
                y=[t["reward"] for t in group],
                mode="markers",
                marker=marker,
                name=name,
                text=[_hover(t, report) for t in group],
                hovertemplate="%{text}<extra></extra>",
            )
    x: list[int | None] = []
    y: list[float | None] = []
    for rung, climbed in groupby(points, key=_rung):
        group = list(climbed)
        if x:  # another target, so other rewards: the line begins anew
            x.append(None)
            y.append(None)
            name = f"rung {rung}"
            figure.add_vline(x=group[0]["number"] - 0.5, line={"color": GREY, "width": 1, "dash": "dot"})
            figure.add_annotation(x=group[0]["number"], y=1, yref="paper", text=name, showarrow=False, xanchor="left")
        x += [t["number"] for t in group]
        y += accumulate((t["reward"] for t in group), max)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": ORANGE, "width": 2.5, "shape": "hv"},
        name="best so far",
        hovertemplate="best so far %{y:.3f}<extra></extra>",
    )
    figure.update_layout(**layout(height=360))
    figure.update_xaxes(title_text="candidate", rangemode="tozero", dtick=_whole(points))
    figure.update_yaxes(title_text="reward")
    return div(figure, "plot-reward")


def predictions(report: Figures) -> str:
    """What the search expected of each candidate before it was measured, against what was measured."""
    expected, measured = expectations(report)
    if not measured:
        return ""
    figure = go.Figure()
    ends = [min(measured), max(measured)]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "width": 1.5}, name="as expected")
    figure.add_scatter(
        x=measured,
        y=expected,
        mode="markers",
        marker={"color": BLUE, "size": 8, "opacity": 0.75},
        name="candidate",
        hovertemplate="expected %{y:.4g} ms, measured %{x:.4g} ms<extra></extra>",
    )
    figure.update_layout(**layout(height=360))
    figure.update_xaxes(title_text="measured, ms")
    figure.update_yaxes(title_text="expected, ms")
    return div(figure, "plot-predictions")


def expectations(report: Figures) -> tuple[list[float], list[float]]:
    """What was expected of the candidates and what was measured, in ms on the uncut model's scale, in their order."""
    baseline = [t for t in report["trials"] if t["number"] == 0 and t["latency_ms"]]
    points = [t for t in report["trials"] if t["number"] > 0 and t.get("predicted_ms") and t["latency_ms"]]
    return [t["predicted_ms"] for t in points], [_judged_ms(t, baseline) for t in points]


def training(report: Figures) -> str:
    """The policy's entropy and the mean reward of its episodes, over the candidates evaluated by then."""
    told = report.get("training") or []
    if not told:
        return ""
    figure = go.Figure()
    x = [line["evaluated"] for line in told]
    for key, name, colour, axis in (
        ("entropy", "entropy of the policy, nats", BLUE, "y"),
        ("mean_reward", "mean reward of its episodes", ORANGE, "y2"),
    ):
        figure.add_scatter(
            x=x,
            y=[line[key] for line in told],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 4},
            name=name,
            yaxis=axis,
            hovertemplate=f"after %{{x}} candidates: {name} %{{y:.3f}}<extra></extra>",
        )
    both = layout(height=340)
    figure.update_layout(**both, yaxis2={**both["yaxis"], "overlaying": "y", "side": "right", "showgrid": False})
    figure.update_layout(yaxis2_title_text="mean reward")
    figure.update_xaxes(title_text="candidates evaluated", rangemode="tozero")
    figure.update_yaxes(title_text="entropy, nats", selector={"side": None})
    return div(figure, "plot-training")


VITALS = (
    ("celsius", "temperature, °C", VERMILION),
    ("mhz", "clock asked for, MHz", PURPLE),
    ("load", "load (1 minute)", ORANGE),
    ("available_mb", "free memory, MB", GREEN),
)


def vitals(report: Figures) -> str:
    """What the device said of itself after each measurement, one small plot for each sensor that it has."""
    drawn = ""
    for key, name, colour in VITALS:
        points = [t for t in report["trials"] if t.get("vitals", {}).get(key) is not None]
        if len(points) < 2:
            continue
        figure = go.Figure()
        figure.add_scatter(
            x=[t["number"] for t in points],
            y=[t["vitals"][key] for t in points],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 4},
            hovertemplate="candidate %{x}: %{y:,.5g}<extra></extra>",
        )
        figure.update_layout(**layout(height=190), showlegend=False)
        figure.update_xaxes(title_text="candidate", dtick=_whole(points))
        figure.update_yaxes(title_text=name)
        drawn += div(figure, f"plot-{key.replace('_', '-')}")
    return drawn


def widths(report: Figures) -> str:
    """Share of each group's channels that is kept, with the numbers beside it; removed blocks are hatched."""
    groups = (report.get("architecture") or {}).get("groups") or []
    if not groups:
        return ""
    names = [escape(g["name"]) for g in groups]
    figure = go.Figure()
    figure.add_bar(
        y=names,
        x=[0 if g["removed"] else 100 for g in groups],
        orientation="h",
        marker={"color": LIGHT},
        name="before",
        hoverinfo="skip",
    )
    figure.add_bar(
        y=names,
        x=[0 if g["removed"] else 100 * g["kept"] / g["width"] for g in groups],
        orientation="h",
        marker={"color": BLUE},
        name="kept",
        text=[f"{g['kept']} of {g['width']}" for g in groups],
        hovertemplate="%{y}: %{text}<extra></extra>",
        textposition="none",
    )
    if any(g["removed"] for g in groups):
        figure.add_bar(
            y=names,
            x=[100 if g["removed"] else 0 for g in groups],
            orientation="h",
            marker={
                "color": "#fff",
                "line": {"color": VERMILION, "width": [1 if g["removed"] else 0 for g in groups]},
                "pattern": {"shape": "/", "fgcolor": VERMILION, "size": 6},
            },
            name="removed with its block",
            hoverinfo="skip",
        )
    texts = ["removed" if g["removed"] else f"{g['kept']} / {g['width']}" for g in groups]
    for name, text in zip(names, texts, strict=True):
        figure.add_annotation(
            x=1, xref="paper", xanchor="left", xshift=6, y=name, text=text, showarrow=False, font={"size": 11}
        )
    figure.update_layout(**layout(height=120 + 19 * len(groups)), barmode="overlay", bargap=0.25)
    # annotations do not widen the margin by themselves, so it is reckoned from the longest, at 7 pixels a character
    figure.update_layout(margin_r=12 + 7 * max(map(len, texts)))
    figure.update_xaxes(
        title_text=f"{units(report['architecture'])} kept, %",
        range=[0, 100],
        tickvals=[0, 25, 50, 75, 100],
        fixedrange=True,
    )
    figure.update_yaxes(
        type="category", autorange="reversed", tickmode="linear", dtick=1, tickfont={"size": 11}, showgrid=False
    )
    return div(figure, "plot-widths")


def units(architecture: Figures) -> str:
    """What is counted in the groups: `channels`, `heads and neurons`, ..."""
    # reports of before transformers were cut do not say it
    named = dict.fromkeys(f"{g.get('unit', 'channel')}s" for g in architecture.get("groups", []))
    *others, last = named or ["channels"]
    return f"{', '.join(others)} and {last}" if others else last


def seconds(report: Figures) -> str:
    """Wall seconds per stage, stacked, one bar a candidate."""
    trials = [t for t in report["trials"] if t["seconds"]]
    stages = list(dict.fromkeys(stage for t in trials for stage in t["seconds"]))
    if not stages:
        return ""
    figure = go.Figure()
    for i, stage in enumerate(stages):
        figure.add_bar(
            x=[t["number"] for t in trials],
            y=[t["seconds"].get(stage, 0) for t in trials],
            name=escape(stage),
            marker={"color": STAGES[i % len(STAGES)], "line": {"width": 0}},
            hovertemplate="candidate %{x}, " + escape(stage) + ": %{y:.2f} s<extra></extra>",
        )
    figure.update_layout(**layout(height=360), barmode="stack", bargap=0.15)
    figure.update_layout(legend={"traceorder": "normal"})
    figure.update_xaxes(title_text="candidate (0 is the uncut model)", dtick=_whole(trials))
    figure.update_yaxes(title_text="seconds", rangemode="tozero")
    return div(figure, "plot-seconds")


def recovery(report: Figures) -> str:
    """The finalists over the epochs of fine-tuning: the metric where each epoch has one, else the training loss."""
    curves = [(f["number"], f.get("epochs") or []) for f in report["fine_tuning"]]
    points = [point for _, curve in curves for point in curve]
    key = "metric" if points and all(p.get("metric") is not None for p in points) else "train_loss"
    figure = go.Figure()
    for i, (number_of_trial, curve) in enumerate(curves):
        known = [p for p in curve if p.get(key) is not None]
        if known:
            figure.add_scatter(
                x=[p["number"] for p in known],
                y=[p[key] for p in known],
                mode="lines+markers",
                line={"color": (BLUE, VERMILION, GREEN, PURPLE)[i % 4], "dash": ("solid", "dash", "dot")[i % 3]},
                name=f"candidate {number_of_trial}",
                hovertemplate="epoch %{x}: %{y:.3f}<extra></extra>",
            )
    if not figure.data:
        return ""
    figure.update_layout(**layout(height=340), showlegend=True)
    figure.update_xaxes(title_text="epoch", dtick=_whole(max((curve for _, curve in curves), key=len)))
    name = f"{report['metric']['name']}, {report['metric']['unit']}" if key == "metric" else "training loss"
    figure.update_yaxes(title_text=name)
    return div(figure, "plot-recovery")


def _whole(points: list[Figures]) -> int | None:
    """The step of an axis that counts candidates: plotly would put ticks between two of them where there are few."""
    return 1 if len(points) <= 12 else None


def _hover(point: Figures, report: Figures) -> str:
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


def _intervals(points: list[Figures], baseline: list[Figures]) -> dict[str, Any]:
    """Bars for the 95 % intervals of latencies, on the scale that `_judged_ms` puts the points on."""
    above, below = [], []
    for point in points:
        at, own = _judged_ms(point, baseline), point["latency_ms"]
        low, high = point["latency_ci_ms"] or (own, own)
        above.append(at * (high / own - 1))
        below.append(at * (1 - low / own))
    return {"array": above, "arrayminus": below, "color": BLUE, "thickness": 1, "width": 3}


def _judged_ms(point: Figures, baseline: list[Figures]) -> float:
    """Where a point stands on the axis: on the uncut model's scale, as the search judged it, whatever drifted since."""
    if point["speedup"] and baseline:
        return float(baseline[0]["latency_ms"] / point["speedup"])
    return float(point["latency_ms"])


def _latency_limit(report: Figures, baseline: list[Figures]) -> float | None:
    """Where the target stands on the axis of latencies, in ms."""
    target = report["target"]
    if target["latency_ms"] is not None:
        return float(target["latency_ms"])
    before = baseline[0]["latency_ms"] if baseline else report["baseline"].get("latency_ms")
    return before / target["speedup"] if target["speedup"] is not None and before else None
