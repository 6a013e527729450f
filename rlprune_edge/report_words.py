"""The report in words: the verdict, the table of the terminal and the page, and how every figure is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlprune_edge.progress import threads_in_words

Figures = dict[str, Any]


def place(report: Figures) -> str:
    """The device with what kind of figure it gave, so that no number passes for another board's."""
    device, source = report["device"], report["source"]
    words = {"board": device, "local": f"{device} (this machine)", None: f"{device} (not measured)"}
    kinds = {"emulated": "emulated", "simulated": "simulated", "estimate": "an estimate, not measured"}
    return words.get(source) or f"{device} ({kinds.get(source, source)})"


def settings(report: Figures, points: Sequence[Figures] = ()) -> str:
    """Device, source, threads and mode of the final figures in words, or those of these rows of `trials`."""
    threads, mode = report["measured"]["threads"], report["measured"]["mode"]
    if points:
        mode = " and ".join(dict.fromkeys(p["mode"] for p in points if p["mode"])) or None
    parts = [place(report)]
    if threads is not None:
        parts.append(threads_in_words(threads))
    if mode is not None:
        parts.append(f"mode {mode}")
    if given := report["measured"].get("input"):
        parts.append(f"{given} an inference")
    return ", ".join(parts)


def verdict(report: Figures) -> str:
    """The outcome in one sentence."""
    compressed, wanted = report["compressed"], target_words(report["target"])
    if report["status"] == "met" and compressed:
        return f"{_gain(report)}{f': meets {wanted}' if wanted else ''}."
    tried = sum(1 for t in report["trials"] if t["number"] > 0)
    if report["status"] == "stopped":
        so_far = f"; so far {_gain(report)}" if compressed else ""
        return f"Stopped before the end, after {tried} candidates{so_far}."
    if compressed:
        return f"Infeasible: {wanted} was not met; the best of {tried} candidates, fine-tuned, is {_gain(report)}."
    sentence = f"Infeasible: none of {tried} candidates meets {wanted} on {place(report)}"
    near, when = report["nearest"][:1], "before fine-tuning"
    tuned = [f for f in report["fine_tuning"] if f["metric"] is not None]
    if tuned:
        sign = 1 if report["metric"]["higher_is_better"] else -1
        near, when = [max(tuned, key=lambda f: sign * f["metric"])], "on the validation split after fine-tuning"
    for figures in near:
        ratio = speedup(figures["speedup"]) if figures["speedup"] else milliseconds(figures["latency_ms"])
        memory = f", {figures['memory_mb']:.1f} MB" if report["target"]["memory_mb"] and figures["memory_mb"] else ""
        quality = f"{number(figures['metric'], 2)} {report['metric']['unit']} {report['metric']['name']}"
        sentence += f"; the nearest: {ratio}{memory}, {quality} {when}"
    return sentence + "."


def target_words(target: Figures) -> str:
    """What was asked for, e.g. `a speed-up of 2x with at most 1 point lost`; empty in weighted mode."""
    asked = []
    if target["speedup"] is not None:
        asked.append(f"a speed-up of {target['speedup']:g}x")
    if target["latency_ms"] is not None:
        asked.append(f"a latency of {target['latency_ms']:g} ms")
    if target["memory_mb"] is not None:
        asked.append(f"{target['memory_mb']:g} MB of memory")
    words = " and ".join(asked)
    if target["max_drop"] is not None:
        lost = f"at most {target['max_drop']:g} point{'s' if target['max_drop'] != 1 else ''} lost"
        words = f"{words} with {lost}" if words else lost
    return words


def summary_rows(report: Figures) -> list[tuple[str, ...]]:
    """The table of the terminal and the page: a heading, then (what, baseline, compressed, change).

    Where nothing was compressed, the last two columns are not there.
    """
    before, after = report["baseline"], report["compressed"]
    spec = report["metric"]
    split = before.get("split")
    rows: list[tuple[str, ...]] = [("", "baseline", "compressed", "change")]

    def row(title: str, key: str, text: Any, change: Any) -> None:
        old, new = before.get(key), (after or {}).get(key)
        known = old is not None and new is not None
        rows.append((title, text(before, old), text(after or {}, new), change(old, new) if known else "-"))

    def metric_row(spec: Figures, where: str | None, old: float | None, new: float | None) -> None:
        drop = None if old is None or new is None else old - new if spec["higher_is_better"] else new - old
        change = "-" if drop is None else _points(drop, "better" if drop < 0 else "worse")
        texts = ["-" if v is None else f"{number(v, 2)} {spec['unit']}" for v in (old, new)]
        rows.append((f"{spec['name']}, {where}" if where else spec["name"], *texts, change))

    def ratio(old: float, new: float) -> str:
        factor = (after or {}).get("speedup") or old / new
        interval = (after or {}).get("speedup_ci")
        return speedup(factor) + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")

    def percent(old: float, new: float) -> str:
        return f"{100 * (new / old - 1):+.1f} %" if old else "-"

    def interval(side: Figures, value: float | None) -> str:
        ends = side.get("latency_ci_ms")
        return milliseconds(value) + (f" ({milliseconds(ends[0], '')} to {milliseconds(ends[1], '')})" if ends else "")

    where = f"{split} split" if split else None
    metric_row(spec, where, before.get("metric"), (after or {}).get("metric"))
    for other in report.get("other_metrics", ()):
        metric_row(other, where, before.get(other["name"]), (after or {}).get(other["name"]))
    if bench := report.get("benchmark"):
        old, new = ((side or {}).get("benchmark") or {} for side in (before, after))
        metric_row(spec, bench, old.get("metric"), new.get("metric"))
        for other in report["other_metrics"]:
            metric_row(other, bench, old.get(other["name"]), new.get(other["name"]))
    row("parameters", "parameters", lambda _, v: count(v), percent)
    row("multiply-accumulates", "macs", lambda _, v: count(v), percent)
    row("ONNX file", "onnx_bytes", lambda _, v: size(v), percent)
    row("latency (95 % interval)", "latency_ms", interval, ratio)
    if "real_time_factor" in before:
        row("real-time factor", "real_time_factor", lambda _, v: "-" if v is None else f"{v:.4f}", ratio)
    row("memory, peak", "memory_mb", lambda _, v: "-" if v is None else f"{v:.1f} MB", percent)
    return rows if after else [cells[:2] for cells in rows]


def ladder_rows(report: Figures) -> list[tuple[str, ...]]:
    """The rungs of a ladder: a heading, then one row each, none where there was no ladder."""
    spec = report["metric"]
    rows: list[tuple[str, ...]] = [("rung", "asked for", "candidates", "reached", spec["name"])]
    for rung in report.get("ladder") or ():
        ends = rung.get("speedup_ci")
        factor = rung.get("speedup")
        gone = speedup(factor) if factor else milliseconds(rung.get("latency_ms"))
        interval = f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
        metric = rung.get("validation_metric")
        quality = "-" if metric is None else f"{number(metric, 2)} {spec['unit']}"
        rows.append((str(rung["rung"]), rung["target"], str(rung["candidates"]), gone + interval, quality))
    return rows


def precision_rows(report: Figures) -> list[tuple[str, ...]]:
    """What was tried beside fp32: a heading, then one row each, none where nothing was."""
    spec = report["metric"]
    rows: list[tuple[str, ...]] = [("precision", "", "latency", "speed-up", f"{spec['name']}, validation", "ONNX file")]
    for tried in report.get("precision") or ():
        metric, ends, factor = tried["validation_metric"], tried["speedup_ci"], tried["speedup"]
        interval = f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
        rows.append(
            (
                tried["precision"],
                "used" if tried["kept"] else tried["why"],
                milliseconds(tried["latency_ms"]),
                (speedup(factor) if factor else "-") + interval,
                "-" if metric is None else f"{number(metric, 2)} {spec['unit']}",
                size(tried["onnx_bytes"]),
            )
        )
    return rows


def summary_lines(report: Figures) -> list[str]:
    """The same as plain text, aligned, with the verdict before it; where it was measured and what to open after it."""
    rows = summary_rows(report)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines = [report["verdict"], "", *table, "", f"Latency and memory: {settings(report)}."]
    if report.get("limits"):
        lines.append(f"{report['metric']['name']}: {report['limits']}.")
    for near in report["nearest"]:
        ratio = f" ({speedup(near['speedup'])})" if near["speedup"] else ""
        quality = f"{report['metric']['name']} {number(near['metric'], 2)} {report['metric']['unit']} (search split)"
        lines.append(f"Nearest: candidate {near['number']}: {milliseconds(near['latency_ms'])}{ratio}, {quality}.")
    for rung, asked, _, gone, quality in ladder_rows(report)[1:]:
        lines.append(f"Rung {rung}, {asked}: {gone}, {quality} (validation split).")
    for name, why, latency, factor, quality, _ in precision_rows(report)[1:]:
        lines.append(f"Precision {name}: {latency}, {factor}, {quality} (validation split); {why}.")
    if report["nearest"]:
        lines.append(f"Nearest candidates: {settings(report, report['nearest'])}; before fine-tuning.")
    lines += [f"Note: {note}" for note in report["notes"]]
    if report["bundle"]:
        lines.append(f"Bundle: {report['bundle']}")
    return lines


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """272474 -> `272,474`; from ten million on `40.81 M`."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value < 1e7 else f"{value / 1e6:,.2f} M" if value < 1e10 else f"{value / 1e9:,.2f} G"


def size(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"


def milliseconds(value: float | None, unit: str = " ms") -> str:
    """Four figures that mean something: 1.234, 12.34, 123.4."""
    if value is None:
        return "-"
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}{unit}"


def speedup(factor: float) -> str:
    return f"{factor:.2f}x faster" if factor >= 1 else f"{1 / factor:.2f}x slower"


def _points(drop: float, word: str) -> str:
    size = f"{abs(drop):.2f}"
    return "no change" if float(size) == 0 else f"{size} point{'' if size == '1.00' else 's'} {word}"


def _gain(report: Figures) -> str:
    """`2.04x faster on pi4, 0.31 points of accuracy lost`."""
    compressed = report["compressed"]
    name = report["metric"]["name"]
    drop, factor = compressed.get("drop"), compressed.get("speedup")
    parts = [f"{speedup(factor)} on {place(report)}" if factor else f"speed not known on {place(report)}"]
    if drop is not None:
        points = _points(drop, f"of {name} {'gained' if drop < 0 else 'lost'}")
        parts.append(f"{name} unchanged" if points == "no change" else points)
    return ", ".join(parts)
