"""The report for other programs and for pull requests: Markdown, and all candidates as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rlprune_edge.report_words import Figures, ladder_rows, precision_rows, settings, summary_rows

FORMATS = ("text", "md", "json", "csv")
_COLUMNS = (
    *("number", "rung", "plan_key", "metric", "loss", "latency_ms", "speedup", "predicted_ms", "memory_mb"),
    *("parameters", "macs", "reward", "feasible", "mode"),
)


def markdown(report: Figures) -> str:
    """The verdict and the tables."""
    parts = [f"# {_cell(report['verdict'])}", _table(summary_rows(report)), f"Latency and memory: {settings(report)}."]
    for title, rows in (("Precision", precision_rows(report)), ("The ladder", ladder_rows(report))):
        if len(rows) > 1:
            parts += [f"## {title}", _table(rows)]
    if report["notes"]:
        parts += ["## Read with care", "\n".join(f"- {note}" for note in report["notes"])]
    if command := report["search"].get("command"):
        parts += ["## How to reproduce", f"```\n{command}\n```"]
    return "\n\n".join(parts) + "\n"


def table_of_candidates(report: Figures) -> str:
    """One line for each candidate, the uncut model first: what was measured, expected and thought of it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, "latency_low_ms", "latency_high_ms", "flags", "failure"])
    for trial in report["trials"]:
        low, high = trial["latency_ci_ms"] or (None, None)
        failure = trial["failure"]["kind"] if trial["failure"] else None
        row = [trial.get(column) for column in _COLUMNS]
        writer.writerow([*row, low, high, " ".join(trial["flags"]), failure])
    return text.getvalue()


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ([_cell(cell) for cell in row] for row in rows)
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
