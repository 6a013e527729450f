"""Lays out report.html from report.json: one file with everything inside it, no network."""

from __future__ import annotations

import json
import statistics
from html import escape
from typing import Any

from rlprune_edge import plots, report_course, report_html, report_points
from rlprune_edge.report_words import (
    Figures,
    count,
    ladder_rows,
    milliseconds,
    number,
    precision_rows,
    settings,
    speedup,
    summary_rows,
)

# What a page may load: nothing. Plotly's own scripts and styles are inside it; `blob:` is its "save as picture" button.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_SHOWN_ELSEWHERE = ("command", "versions", "threads", "mode")

# Plotly writes its colours into the drawing; those that must change with the page's are overruled here.
CSS = """
:root { color-scheme: light dark; }
.js-plotly-plot .plotly text { fill: currentColor !important; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1b1f24; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 32px 64px; }
.kicker { margin: 0 0 8px; color: #57606a; font-size: 15px; overflow-wrap: anywhere; }
h1 { margin: 0 0 28px; font-size: 30px; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em;
  overflow-wrap: anywhere; max-width: 34em; }
h2 { margin: 0 0 6px; font-size: 20px; line-height: 1.3; font-weight: 650; }
section { margin: 0 0 44px; }
section h2:not(:first-child) { margin-top: 32px; }
section > div + .scroll { margin-top: 18px; }
p { margin: 0 0 12px; max-width: 46em; color: #3d444d; }
.small { margin-top: 10px; font-size: 14px; color: #57606a; }
.empty { padding: 18px; border: 1px dashed #c9d1d9; border-radius: 6px; color: #57606a; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px 7px 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e3e7eb; }
th { color: #57606a; font-weight: 600; border-bottom-color: #aeb6bf; white-space: nowrap; }
th.n, td.n { text-align: right; padding: 7px 0 7px 18px; white-space: nowrap; }
.facts td:last-child { overflow-wrap: anywhere; width: 100%; }
.facts td:not(:last-child) { white-space: nowrap; color: #57606a; padding-right: 32px; }
.narrow { max-width: 30em; }
pre { margin: 0 0 12px; padding: 12px 14px; background: #f4f6f8; border-radius: 6px; font-size: 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 1.2em; max-width: 46em; }
li { margin: 0 0 6px; }
@media (max-width: 640px) {
  body { font-size: 15px; }
  main { padding: 22px 16px 40px; }
  h1 { font-size: 22px; margin-bottom: 20px; }
  h2 { font-size: 18px; }
  section { margin-bottom: 34px; }
  table { font-size: 13.5px; }
  th.n, td.n { padding-left: 10px; white-space: normal; }
  .facts td:not(:last-child) { padding-right: 14px; }
  .wide { min-width: 640px; }
}
@media screen and (prefers-color-scheme: dark) {
  body { background: #0f1419; color: #e6e9ed; }
  p, li { color: #c4cbd3; }
  .kicker, .small, .empty, th, .facts td:not(:last-child) { color: #98a2ad; }
  .empty { border-color: #56606b; }
  th { border-bottom-color: #56606b; }
  td { border-bottom-color: #2a323a; }
  pre { background: #1a2129; }
  .js-plotly-plot .plotly .gridlayer path { stroke: #2a323a !important; }
  .js-plotly-plot .plotly .hoverlayer text { fill: #fff !important; }
}
@media print {
  :root { color-scheme: light; }
  @page { margin: 14mm; }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  th.n, td.n { white-space: normal; }
  h2, p { break-after: avoid; }
  tr, p, .js-plotly-plot { break-inside: avoid; }
}
"""


def page(report: Figures) -> str:
    """The whole page as text. Everything that a user named is escaped."""
    title = f"{report['task']} / {report['model']} on {report['device']}"
    sections = [
        _summary(report),
        _plot("Quality against latency", _tradeoff_caption(report), report_html.tradeoff(report)),
        _plot("Reward over the search", _reward_caption(report), report_course.rewards(report)),
        _drawn("What PPO learned", _TRAINING, report_course.training(report)),
        _drawn("Expected and measured", _predictions_caption(report), report_html.predictions(report)),
        _plot("What was kept", _widths_caption(report), report_html.widths(report)),
        _plot("Where the time went", _seconds_caption(report), report_course.seconds(report)),
        _drawn("The device meanwhile", _VITALS, report_course.vitals(report)),
        _ladder(report),
        _precision(report),
        _finalists(report),
        _failures(report),
        _notes(report),
        _settings(report),
        _reproduce(report),
    ]
    return document(title, report["verdict"], sections)


def document(title: str, verdict: str, sections: list[str], *, css: str = "") -> str:
    """A page that loads nothing: `verdict` large on top, then the sections that are not empty (HTML already)."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{CSS}{css}</style>\n'
        f"{plots.javascript()}\n</head>\n<body>\n<main>\n"
        f'<p class="kicker">{escape(title)}</p>\n<h1>{escape(verdict)}</h1>\n'
        + "\n".join(s for s in sections if s)
        + "\n</main>\n</body>\n</html>\n"
    )


def _summary(report: Figures) -> str:
    figures = table(summary_rows(report), numbers_from=1)
    nearest = ""
    if report["nearest"]:
        rows = [
            ("candidate", f"{report['metric']['name']}, search split", "latency", "speed-up", "memory", "parameters")
        ]
        rows += [
            (
                str(t["number"]),
                f"{number(t['metric'], 2)} {report['metric']['unit']}",
                _latency(t),
                speedup(t["speedup"]) if t["speedup"] else "-",
                "-" if t["memory_mb"] is None else f"{t['memory_mb']:.1f} MB",
                count(t["parameters"]),
            )
            for t in report["nearest"]
        ]
        where = escape(settings(report, report["nearest"]))
        table_of_nearest = table(rows, numbers_from=1)
        nearest = f"<h2>Nearest candidates</h2><p>Before fine-tuning. Measured on {where}.</p>{table_of_nearest}"
    said = f"Latency and memory: {settings(report)}."
    if report.get("limits"):
        said += f" {report['metric']['name']}: {report['limits']}."
    return f'<section>{figures}<p class="small">{escape(said)}</p>{nearest}</section>'


def _precision(report: Figures) -> str:
    rows = precision_rows(report)
    if len(rows) == 1:
        return ""
    details = "".join(
        f"<li>{escape(t['precision'])}: {escape(t['details'])}</li>" for t in report["precision"] if t["details"]
    )
    caption = (
        "The fine-tuned network in fewer bits, each measured in turns with the uncut model in fp32; what loses too "
        "much or is not faster beyond the intervals is not used."
    )
    return _plot(
        "Precision", caption, "", table(rows, numbers_from=2) + (f'<ul class="small">{details}</ul>' if details else "")
    )


def _ladder(report: Figures) -> str:
    rows = ladder_rows(report)
    if len(rows) == 1:
        return ""
    caption = (
        "Cut, fine-tuned and cut again: each rung's candidates are cut from what the rung before has left. Speed-ups "
        f"are those over the uncut model, the {report['metric']['name']} is that on the validation split after "
        "fine-tuning."
    )
    return _plot("The ladder", caption, "", table(rows, numbers_from=2))


def _finalists(report: Figures) -> str:
    finalists = report["fine_tuning"]
    if not finalists:
        return ""
    name, unit = report["metric"]["name"], report["metric"]["unit"]
    chosen = (report["compressed"] or {}).get("plan_key")
    rows = [("finalist", f"{name} before", f"{name} after", "latency", "speed-up")]
    rows += [
        (
            f"candidate {f['number']}" + (" (chosen)" if f["plan_key"] == chosen else ""),
            "-" if f["search_metric"] is None else f"{f['search_metric']:.2f} {unit}",
            "-" if f["metric"] is None else f"{f['metric']:.2f} {unit}",
            _latency(f),
            speedup(f["speedup"]) if f["speedup"] else "-",
        )
        for f in finalists
    ]
    caption = (
        "Before: on the search split, healed without training. After: on the validation split, by which the "
        f"choice is made. Latency: {settings(report, finalists)}."
    )
    return _plot("Fine-tuning of the finalists", caption, report_course.recovery(report), table(rows, numbers_from=1))


def _failures(report: Figures) -> str:
    failed = [t for t in report["trials"] if t["failure"]]
    if not failed:
        return ""
    rows = [("candidate", "kind", "what happened")]
    rows += [(str(t["number"]), t["failure"]["kind"], t["failure"]["message"]) for t in failed]
    return f"<section><h2>Candidates that failed</h2>{table(rows, numbers_from=9, facts=True)}</section>"


def _notes(report: Figures) -> str:
    items = "".join(f"<li>{escape(str(n))}</li>" for n in report["notes"])
    return f"<section><h2>Read with care</h2><ul>{items}</ul></section>" if items else ""


def _settings(report: Figures) -> str:
    rows = [("setting", "value")]
    for title in ("target", "budget", "spent", "search"):
        for key, value in report[title].items():
            if value is None or key in _SHOWN_ELSEWHERE:
                continue
            inner = value.items() if isinstance(value, dict) else [("", value)]
            rows += [(f"{title}: {key} {k}".replace("_", " ").rstrip(), _value(v)) for k, v in inner]
    rows.append(("measured on", settings(report)))
    rows += [(f"version: {name}", str(version)) for name, version in report["versions"].items()]
    return f"<section><h2>Settings and versions</h2>{table(rows, numbers_from=9, facts=True)}</section>"


def _reproduce(report: Figures) -> str:
    command, seed = report["search"].get("command"), report["search"].get("seed")
    parts = [f"<pre>{escape(str(command))}</pre>"] if command else []
    if seed is not None:
        parts.append(
            f"<p>Seed {escape(str(seed))}: the same plans in the same order; times differ by the machine's noise.</p>"
        )
    if report["bundle"]:
        parts.append(f"<pre>rlprune-edge bundle verify {escape(str(report['bundle']))}</pre>")
    return f"<section><h2>How to reproduce</h2>{''.join(parts)}</section>" if parts else ""


def _plot(title: str, caption: str, drawn: str, after: str = "") -> str:
    drawn = drawn or ("" if after else '<p class="empty">Nothing to draw.</p>')
    return f"<section><h2>{escape(title)}</h2><p>{escape(caption)}</p>{drawn}{after}</section>"


def _drawn(title: str, caption: str, drawn: str) -> str:
    """A section that is not there where there is nothing to draw."""
    return _plot(title, caption, drawn) if drawn else ""


def table(rows: list[Any], *, numbers_from: int, facts: bool = False) -> str:
    """An HTML table; cells from column `numbers_from` on are right-aligned. The first row is the heading."""

    def cells(row: tuple[str, ...], tag: str) -> str:
        kinds = [' class="n"' if i >= numbers_from else "" for i in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    head = f"<thead><tr>{cells(rows[0], 'th')}</tr></thead>"
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[1:])
    kind = ' class="facts"' if facts else {2: ' class="narrow"', 6: ' class="wide"'}.get(len(rows[0]), "")
    return f'<div class="scroll"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(_value(v) for v in value) or "-"
    return f"{value:,.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _latency(figures: Figures) -> str:
    ends = figures.get("latency_ci_ms")
    interval = f" ({milliseconds(ends[0], '')} to {milliseconds(ends[1], '')})" if ends else ""
    return milliseconds(figures.get("latency_ms")) + interval


# ---------------------------------------------------------------- captions


def _tradeoff_caption(report: Figures) -> str:
    points = [t for t in report["trials"] if t["number"] > 0 and report_points.is_measured(t)]
    measured = len(points)
    if not measured:
        return "No candidate was measured."
    better = "Higher" if report["metric"]["higher_is_better"] else "Lower"
    return (
        f"{measured} measured candidate{'s' if measured != 1 else ''}, on the search split before fine-tuning. "
        f"{better} and further left is better. A candidate's latency is the uncut model's over its paired speed-up, so "
        f"that no drift of the machine reorders them. Measured on {settings(report, points)}."
    )


def _reward_caption(report: Figures) -> str:
    name = report["search"].get("agent")
    return f"Every candidate in the order in which {name or 'the agent'} proposed it."


_TRAINING = (
    "Every update of the policy: its entropy (in nats; it falls as the policy makes up its mind) and the mean reward "
    "of the episodes it practised on, imagined ones where it imagines. TensorBoard reads the same in the folder ppo."
)
_VITALS = "What the device said of itself after each measurement; what it has no sensor for is not here."


def _predictions_caption(report: Figures) -> str:
    expected, measured = report_html.expectations(report)
    late = len(measured) // 2
    off = [abs(e / m - 1) for e, m in zip(expected[late:], measured[late:], strict=True)]
    if not off:
        return ""
    return (
        "Latency, as the model of it said before each candidate was measured, and after. Over the later half it was "
        f"off by {statistics.median(off):.1%} (median)."
    )


def _widths_caption(report: Figures) -> str:
    shape = report.get("architecture") or {}
    whose = {"compressed": "The compressed model", "nearest": "The nearest candidate"}.get(
        shape.get("of", ""), "The uncut model"
    )
    gone = [b["name"] for b in shape.get("blocks", []) if b["removed"]]
    removed = (
        f" Blocks removed: {', '.join(gone)}." if gone else " No block was removed." if shape.get("blocks") else ""
    )
    return f"{whose}, group by group from input to output: {report_html.units(shape)} kept of those before.{removed}"


def _seconds_caption(report: Figures) -> str:
    trials = [t["seconds"] for t in report["trials"] if t["number"] > 0 and t["seconds"]]
    if not trials:
        return "Wall seconds per stage of every candidate."
    stages = list(dict.fromkeys(stage for seconds in trials for stage in seconds))
    medians = [f"{s} {statistics.median(t.get(s, 0.0) for t in trials):.2f}" for s in stages]
    total = statistics.median(sum(t.values()) for t in trials)
    said = f"Wall seconds per stage. Median candidate: {total:.2f} s ({', '.join(medians)})."
    idle = report["spent"].get("device_idle_share")  # reports of before it was noted do not say it
    return said if idle is None else f"{said} The device was idle for {idle:.0%} of the search."
