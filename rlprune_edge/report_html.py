"""Draws what a run came to: quality against latency, what was expected, and what was kept.

Every drawing function takes the content of report.json and returns a `<div>`, or "" where there is nothing to draw.
"""

from __future__ import annotations

from html import escape
from typing import Any

import plotly.graph_objects as go

from rlprune_edge.plots import BLUE, GREEN, GREY, INK, LIGHT, VERMILION, div, layout
from rlprune_edge.report_points import hover, intervals, is_measured, judged_ms, latency_limit, rung_of
from rlprune_edge.report_words import Figures, milliseconds

EARLIER = ("circle-open", "diamond-open", "square-open", "triangle-up-open")
"""markers of candidates on a ladder's rungs before the last"""


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
        x=[judged_ms(t, baseline) for t in front],
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
                x=[judged_ms(t, baseline) for t in group],
                y=[t["metric"] for t in group],
                mode="markers",
                marker=marker,
                error_x=intervals(group, baseline) if name == "on the front" else None,
                name=name,
                text=[hover(t, report) for t in group],
                hovertemplate="%{text}<extra></extra>",
            )
    tuned = [f for f in report["fine_tuning"] if f["metric"] is not None and f["latency_ms"] is not None]
    if tuned:
        figure.add_scatter(
            x=[judged_ms(f, baseline) for f in tuned],
            y=[f["metric"] for f in tuned],
            mode="markers",
            marker={"color": VERMILION, "size": 12, "symbol": "diamond"},
            name="finalist, fine-tuned (validation)",
            text=[f"<b>candidate {f['number']}</b>, fine-tuned<br>{milliseconds(f['latency_ms'])}" for f in tuned],
            hovertemplate="%{text}<br>%{y:.2f} on the validation split<extra></extra>",
        )
    limit = latency_limit(report, baseline)
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
    numbers = sorted({rung_of(t) for t in points})
    drawn: list[tuple[str, list[Figures], dict[str, Any]]] = []
    for place, rung in enumerate(numbers):
        marker: dict[str, Any] = {"color": GREY, "size": 8, "opacity": 0.75}
        if place < len(numbers) - 1:
            marker["symbol"] = EARLIER[place % len(EARLIER)]
        name = "candidate" if len(numbers) == 1 else f"candidate, rung {rung}"
        drawn.append((name, [t for t in points if rung_of(t) == rung], marker))
    return drawn


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
    return [t["predicted_ms"] for t in points], [judged_ms(t, baseline) for t in points]


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
