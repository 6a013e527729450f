"""Lays out compare.html from the content of compare.json: one file with everything inside it, no network."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from rlprune_edge.comparison_stats import BETTER, TIE, WORSE
from rlprune_edge.comparison_words import (
    curve_rows,
    figure_rows,
    finished_rows,
    finished_title,
    how_to_read,
    pair_rows,
    standing_words,
    title,
)
from rlprune_edge.plots import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, div, layout
from rlprune_edge.report_page import document, table
from rlprune_edge.report_words import Figures

# Colours that are seen on white and on black; the first is the leader's. Beyond seven agents the dashes differ.
_COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY, "#8A929B")
_DASHES = ("solid", "dash", "dot")
_SIGNS = {BETTER: "&gt;", WORSE: "&lt;", TIE: "="}
_SHOWN_ELSEWHERE = ("command", "versions", "notes")

CSS = """
td.better, td.worse, td.tie { white-space: nowrap; }
td.better { color: #00704f; }
td.worse { color: #b34700; }
.note { padding: 12px 14px; border-left: 4px solid #e69f00; background: rgba(230, 159, 0, 0.12); }
.matrix td, .matrix th { padding-left: 12px; }
.matrix th:first-child { padding-left: 0; }
.matrix tbody th { border-bottom-color: #e3e7eb; }
.figures th.n, .figures td.n { white-space: nowrap; }
@media screen and (prefers-color-scheme: dark) {
  .matrix tbody th { border-bottom-color: #2a323a; }
  td.better { color: #3fcf9f; }
  td.worse { color: #ff9a5c; }
}
"""


def page(comparison: Figures) -> str:
    """The whole page as text. Everything that a user named is escaped."""
    sections = [
        _missing(comparison),
        _curves(comparison),
        _figures(comparison),
        _against(comparison),
        _finished(comparison),
    ]
    sections += [_matrix(comparison), _reading(comparison), _settings(comparison), _repeat(comparison)]
    return document(title(comparison), comparison["verdict"], sections, css=CSS)


def curves(comparison: Figures) -> str:
    """Best so far against candidates: a line for each agent's interquartile mean in a band for its interval."""
    shown = [(a["agent"], [p for p in a["curve"] if p["none_yet"] < p["seeds"]]) for a in comparison["agents"]]
    shown = [(agent, points) for agent, points in shown if points]
    if not shown:
        return ""
    figure = go.Figure()
    for i, (agent, points) in enumerate(shown):
        name, colour = escape(agent), _COLOURS[i % len(_COLOURS)]
        x, low = _stairs(points, [p["ci"][0] for p in points])
        high = _stairs(points, [p["ci"][1] for p in points])[1]
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*high, *reversed(low)],
            mode="none",
            fill="toself",
            fillcolor=_faint(colour),
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
            name=f"{name}, interval",
        )
        figure.add_scatter(
            x=[p["spent"] for p in points],
            y=[p["value"] for p in points],
            mode="lines" if len(points) > 1 else "markers",
            line={
                "color": colour,
                "width": 2 if i else 3.5,
                "shape": "hv",
                "dash": _DASHES[i // len(_COLOURS) % len(_DASHES)],
            },
            legendgroup=name,
            name=name,
            text=[standing_words(p) for p in points],
            hovertemplate=f"<b>{name}</b> after %{{x}}: %{{text}}<extra></extra>",
        )
    # the page shines through, white or black
    figure.update_layout(**layout(height=480))
    figure.update_layout(legend={"y": -0.16, "yanchor": "top"})
    grid = "rgba(128,136,145,0.25)"
    figure.update_xaxes(title_text="candidates, probes among them", rangemode="tozero", gridcolor=grid)
    figure.update_yaxes(title_text="best so far", range=_range([p for _, points in shown for p in points]))
    figure.update_yaxes(gridcolor=grid)
    return div(figure, "plot-curves")


def _stairs(points: list[Figures], values: list[float]) -> tuple[list[int], list[float]]:
    """The corners of a curve that is flat from one point to the next."""
    spent = [p["spent"] for p in points]
    x = [n for pair in zip(spent, spent, strict=True) for n in pair][1:]
    y = [v for pair in zip(values, values, strict=True) for v in pair][:-1]
    return x, y


def _range(points: list[Figures]) -> list[float]:
    """Ends of the value axis: where every seed has found something, so that the floor does not flatten the rest."""
    settled = [p for p in points if not p["none_yet"]] or points
    low, high = min(p["value"] for p in settled), max(p["ci"][1] for p in settled)
    margin = 0.06 * (high - low) or 0.05
    return [low - margin, high + margin]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"


def _missing(comparison: Figures) -> str:
    return f'<p class="note">{escape(comparison["missing"])}</p>' if comparison["missing"] else ""


def _curves(comparison: Figures) -> str:
    if not comparison["agents"]:
        return ""
    caption = (
        "Interquartile mean over seeds, with its 95 % interval. A line begins where a seed has found a candidate that "
        "meets the target. Tap a name to hide its agent."
    )
    drawn = curves(comparison) or '<p class="empty">Nothing to draw: no candidate met the target.</p>'
    rows = f'<div class="figures">{table(curve_rows(comparison), numbers_from=1)}</div>'
    return f'<section><h2>Best so far</h2>{rows}<p class="small">{caption}</p>{drawn}</section>'


def _figures(comparison: Figures) -> str:
    if not comparison["agents"]:
        return ""
    rows = f'<div class="figures">{table(figure_rows(comparison), numbers_from=1)}</div>'
    return f"<section><h2>Over the whole search</h2>{rows}</section>"


def _against(comparison: Figures) -> str:
    rows = pair_rows(comparison)
    if not rows:
        return ""
    heading = f"Against {comparison['leader']}, seed by seed"
    return f"<section><h2>{escape(heading)}</h2>{table(rows, numbers_from=2)}</section>"


def _finished(comparison: Figures) -> str:
    rows = finished_rows(comparison)
    if not rows:
        return ""
    heading = escape(finished_title(comparison))
    return f'<section><h2>{heading}</h2><div class="figures">{table(rows, numbers_from=2)}</div></section>'


def _matrix(comparison: Figures) -> str:
    """Every agent against every other: probability of improvement, coloured by the paired verdict."""
    names = [a["agent"] for a in comparison["agents"]]
    if len(names) < 3:
        return ""
    pairs = {(p["a"], p["b"]): p for p in comparison["pairs"]}
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in names)
    body = ""
    for a in names:
        cells = ""
        for b in names:
            found = pairs.get((a, b))
            kind = found["verdict"].split()[0] if found else ""
            words = f"{found['probability']:.2f} {_SIGNS.get(found['verdict'], '?')}" if found else ""
            cells += f'<td class="n {kind}">{words}</td>'
        body += f"<tr><th>{escape(a)}</th>{cells}</tr>"
    caption = (
        "Probability that the agent of the row ends above the one of the column. Paired verdicts: "
        "&gt; better, &lt; worse, = tie, ? too few common seeds."
    )
    return (
        f"<section><h2>Everyone against everyone</h2><p>{caption}</p>"
        f'<div class="scroll"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _reading(comparison: Figures) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in how_to_read(comparison))
    return f"<section><h2>How to read this</h2><ul>{items}</ul></section>"


def _settings(comparison: Figures) -> str:
    request = comparison["request"]
    rows = [("setting", "value")]
    for key, value in request.items():
        if value is not None and key not in _SHOWN_ELSEWHERE:
            words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((key.replace("_", " "), words))
    for agent in comparison["agents"]:
        ended = ", ".join(f"{reason} ({n})" for reason, n in agent["ended"].items())
        rows.append((f"{agent['agent']} ended by", ended))
    rows += [(f"version: {name}", str(version)) for name, version in request["versions"].items()]
    return f"<section><h2>Settings and versions</h2>{table(rows, numbers_from=9, facts=True)}</section>"


def _repeat(comparison: Figures) -> str:
    return f"<section><h2>How to repeat it</h2><pre>{escape(comparison['request']['command'])}</pre></section>"
