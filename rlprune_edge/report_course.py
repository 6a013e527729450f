"""Draws how a run went, candidate by candidate and epoch by epoch.

Every drawing function takes the content of report.json and returns a `<div>`, or "" where there is nothing to draw.
"""

from __future__ import annotations

from html import escape
from itertools import accumulate, groupby

import plotly.graph_objects as go

from rlprune_edge.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, div, layout
from rlprune_edge.report_points import hover, rung_of
from rlprune_edge.report_words import Figures

STAGES = (SKY, ORANGE, GREEN, "#F0E442", BLUE, VERMILION, PURPLE, "#555B63", "#B8BEC5")
VITALS = (
    ("celsius", "temperature, °C", VERMILION),
    ("mhz", "clock asked for, MHz", PURPLE),
    ("load", "load (1 minute)", ORANGE),
    ("available_mb", "free memory, MB", GREEN),
)


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
                text=[hover(t, report) for t in group],
                hovertemplate="%{text}<extra></extra>",
            )
    x: list[int | None] = []
    y: list[float | None] = []
    for rung, climbed in groupby(points, key=rung_of):
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
