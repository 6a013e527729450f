"""The report says what the records say, once, in words, tables and plots, and never more than they say."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_report import BASELINE, COMPRESSED, EVIL, NOT_MET, SLOWER, SPACE, TRIALS, report, trial
from typer.testing import CliRunner

from rlprune_edge.cli import app
from rlprune_edge.errors import UserError
from rlprune_edge.records import Failure, MetricSpec, Quality, Score, Target, Trial
from rlprune_edge.report import (
    pareto,
    render,
    summary_lines,
    summary_rows,
    verdict,
    write_report,
)

# ---------------------------------------------------------------- the front


def numbers(front: tuple[Trial, ...]) -> list[int]:
    return [t.number for t in front]


def test_the_front_is_the_planted_one() -> None:
    assert numbers(pareto(TRIALS)) == [5, 2, 0]


def test_lower_is_better_for_error_rates() -> None:
    rates = [trial(1, 1.0, 30.0), trial(2, 2.0, 20.0), trial(3, 1.5, 40.0), trial(4, 3.0, 25.0)]
    assert numbers(pareto(rates, higher_is_better=False)) == [1, 2]
    assert numbers(pareto(rates)) == [1, 3]


def test_ties_go_to_the_lower_loss_and_then_to_the_first() -> None:
    same = [trial(n, 2.0, 90.0, quality=Quality(90.0, loss, 10)) for n, loss in ((1, 0.5), (2, 0.25), (3, 0.25))]
    assert numbers(pareto(same)) == [2]
    slower = trial(4, 3.0, 90.0, quality=Quality(90.0, 0.125, 10))
    assert numbers(pareto([*same, slower])) == [2, 4]
    assert numbers(pareto([*same, replace(slower, quality=Quality(90.0, 0.25, 10))])) == [2]


def test_failed_and_unmeasured_trials_are_not_on_it() -> None:
    failed = trial(1, 0.5, 99.0, failure=Failure("oom", "no memory"))
    assert pareto([failed, trial(2, None, 99.0), trial(3, 1.0, 99.0, quality=None)]) == ()


# ---------------------------------------------------------------- report.json


def test_report_json_has_the_promised_keys_and_figures(written: Path) -> None:
    stored = json.loads((written / "report.json").read_text())
    promised = {"format", "status", "task", "model", "device", "source", "metric", "baseline", "compressed", "target"}
    assert promised | {"budget", "spent", "search", "pareto"} <= set(stored)
    assert (stored["format"], stored["status"], stored["source"]) == (1, "met", "local")
    assert stored["metric"] == {"name": "accuracy", "higher_is_better": True, "unit": "%"}
    assert (stored["baseline"], stored["compressed"]) == (BASELINE, COMPRESSED)
    assert stored["target"] == {"speedup": 2.0, "latency_ms": None, "memory_mb": None, "max_drop": 1.0}
    front = [(p["metric"], p["latency_ms"], p["memory_mb"], p["plan_key"]) for p in stored["pareto"]]
    assert front == [(t.quality.metric, t.measurement.latency_ms.value, 50.0, t.plan.key) for t in pareto(TRIALS)]  # type: ignore[union-attr]
    kept = {g["name"]: (g["kept"], g["removed"]) for g in stored["architecture"]["groups"]}
    assert kept == {"stem": (8, False), f"block.{EVIL}": (32, True), "tail": (64, False)}


def test_what_is_not_finite_becomes_null_and_numpy_becomes_plain() -> None:
    odd = report(
        baseline={**BASELINE, "memory_mb": np.float32(50.5), "macs": np.int64(7), "latency_ms": float("nan")},
        trials=(*TRIALS, trial(6, 2.0, 50.0, score=Score(float("-inf"), 0.0, False))),
    )
    again = json.loads(json.dumps(odd, allow_nan=False))
    assert (again["baseline"]["memory_mb"], again["baseline"]["macs"], again["baseline"]["latency_ms"]) == (
        50.5,
        7,
        None,
    )
    assert again["trials"][6]["reward"] is None


def test_a_finalist_is_completed_from_its_trial() -> None:
    finalist = report()["fine_tuning"][0]
    assert (finalist["number"], finalist["search_metric"], finalist["metric"]) == (2, 92.0, 95.5)
    assert (finalist["latency_ms"], finalist["mode"]) == (2.0, "reward")
    measured = {"plan_key": TRIALS[2].plan.key, "metric": 95.0, "latency_ms": 2.125, "mode": "verify", "epochs": []}
    finalist = report(fine_tuning=[measured])["fine_tuning"][0]
    assert (finalist["latency_ms"], finalist["mode"], finalist["speedup"]) == (2.125, "verify", None)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "2.04x faster on local (this machine), 0.31 points of accuracy lost: "
            "meets a speed-up of 2x with at most 1 point lost.",
        ),
        ({"target": Target()}, "2.04x faster on local (this machine), 0.31 points of accuracy lost."),
        (
            {"target": Target(latency_ms=2.5, memory_mb=60), "compressed": {**COMPRESSED, "drop": -1.0}},
            "2.04x faster on local (this machine), 1.00 point of accuracy gained: "
            "meets a latency of 2.5 ms and 60 MB of memory.",
        ),
        (
            {"source": "board", "device": "pi4", "target": Target(), "compressed": SLOWER},
            "1.25x slower on pi4, accuracy unchanged.",
        ),
        (
            {"source": "estimate", "device": "pi4", "target": Target()},
            "2.04x faster on pi4 (an estimate, not measured), 0.31 points of accuracy lost.",
        ),
        (
            {**NOT_MET, "fine_tuning": [], "target": Target(speedup=9)},
            "Infeasible: none of 5 candidates meets a speed-up of 9x on local (this machine); "
            "the nearest: 4.00x faster, 60.00 % accuracy before fine-tuning.",
        ),
        (
            NOT_MET,
            "Infeasible: none of 5 candidates meets a speed-up of 2x with at most 1 point lost on local "
            "(this machine); "
            "the nearest: 2.00x faster, 95.50 % accuracy on the validation split after fine-tuning.",
        ),
        (
            {"status": "stopped", "compressed": None},
            "Stopped before the end, after 5 candidates.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_is_one_true_sentence(changes: dict[str, Any], sentence: str) -> None:
    assert verdict(report(**changes)) == sentence == report(**changes)["verdict"]


def test_the_table_compares_baseline_and_compressed() -> None:
    assert summary_rows(report()) == [
        ("", "baseline", "compressed", "change"),
        ("accuracy, test split", "96.50 %", "96.19 %", "0.31 points worse"),
        ("parameters", "272,474", "130,000", "-52.3 %"),
        ("multiply-accumulates", "40.81 M", "18.00 M", "-55.9 %"),
        ("ONNX file", "1.09 MB", "520.0 kB", "-52.4 %"),
        (
            "latency (95 % interval)",
            "4.000 ms (3.950 to 4.050)",
            "1.960 ms (1.940 to 1.990)",
            "2.04x faster (2.01 to 2.07)",
        ),
        ("memory, peak", "50.5 MB", "44.2 MB", "-12.4 %"),
    ]  # fmt: skip


def test_an_error_rate_that_rises_is_worse_and_unknown_figures_are_dashes() -> None:
    rows = summary_rows(
        report(
            metric=MetricSpec("wer", False),
            baseline={**BASELINE, "metric": 8.0, "memory_mb": None},
            compressed={**COMPRESSED, "metric": 9.5},
        )
    )
    assert rows[1] == ("wer, test split", "8.00 %", "9.50 %", "1.50 points worse")
    assert rows[6] == ("memory, peak", "-", "44.2 MB", "-")


def test_the_terminal_names_device_source_threads_and_mode() -> None:
    lines = summary_lines(report())
    assert "Latency and memory: local (this machine), 2 threads, mode report." in lines
    assert lines[-1] == "Bundle: runs/a/bundle"
    nearest = summary_lines(report(status="infeasible", compressed=None, nearest=TRIALS[2:4], bundle=None))
    assert "Nearest: candidate 2: 2.000 ms (2.00x faster), accuracy 92.00 % (search split)." in nearest
    assert "Nearest candidates: local (this machine), 2 threads, mode reward; before fine-tuning." in nearest
    assert [len(row) for row in summary_rows(report(status="infeasible", compressed=None))] == [2] * 7


# ---------------------------------------------------------------- for other programs


def test_markdown_and_csv_say_the_same(written: Path) -> None:
    stored = json.loads((written / "report.json").read_text())
    text = CliRunner().invoke(app, ["report", str(written), "--format", "md"]).stdout
    assert text.startswith(f"# {stored['verdict']}\n")
    for row in summary_rows(stored)[1:]:
        assert f"| {' | '.join(row)} |" in text
    assert f"```\n{stored['search']['command']}\n```" in text
    lines = CliRunner().invoke(app, ["report", str(written), "--format", "csv"]).stdout.splitlines()
    rows = list(csv.DictReader(lines))
    assert [int(row["number"]) for row in rows] == [t["number"] for t in stored["trials"]]
    for row, candidate in zip(rows, stored["trials"], strict=True):
        assert row["plan_key"] == candidate["plan_key"]
        assert row["latency_ms"] == ("" if candidate["latency_ms"] is None else str(candidate["latency_ms"]))
        assert row["failure"] == (candidate["failure"]["kind"] if candidate["failure"] else "")
    whole = CliRunner().invoke(app, ["report", str(written), "--format", "json"]).stdout
    assert json.loads(whole) == stored == json.loads(CliRunner().invoke(app, ["report", str(written), "--json"]).stdout)
    refused = CliRunner().invoke(app, ["report", str(written), "--format", "pdf"]).exception
    assert "choose text, md, json, csv" in str(refused)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "holds no report"),
        ("{", "is damaged"),
        ('{"format": 2}', "has format 2; this version reads 1"),
        ("[]", "has format None"),
        ('{"format": 1, "task": "t"}', "is damaged: 'model' is missing"),
    ],
)
def test_what_cannot_be_rendered_is_said(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(sentence)):
        render(tmp_path)


def test_a_place_that_takes_no_file_is_an_error_and_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(UserError, match=r"Cannot write .*report\.json"):
        write_report(tmp_path, report(), TRIALS, SPACE)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_building_a_report_does_not_load_plotly() -> None:
    code = "import sys, rlprune_edge.report; print('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
