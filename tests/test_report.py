"""The report says what the records say, once, in words, tables and plots, and never more than they say."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rlprune_edge.cli import app
from rlprune_edge.errors import UserError
from rlprune_edge.measurements import Interval, Measurement
from rlprune_edge.records import Block, Failure, Group, MetricSpec, PruningSpace, Quality, Score, Target, Trial
from rlprune_edge.report import (
    build_report,
    pareto,
    render,
    settings,
    summary_lines,
    summary_rows,
    verdict,
    write_report,
)

EVIL = "</script><script>alert(1)</script>"
SPACE = PruningSpace(
    groups=(
        Group("stem", 16, (16, 8), (), (), None, 0.0, 100),
        Group(f"block.{EVIL}", 32, (32, 16), (), (), "block", 0.5, 100),
        Group("tail", 64, (64, 32), (), (), None, 1.0, 100),
    ),
    blocks=(Block("block", 0.5, 100, ()),),
    ops=(),
    parameters=1000,
)


def trial(
    number: int,
    latency: float | None,
    metric: float,
    *,
    stem: int = 16,
    tail: int = 64,
    dropped: tuple[str, ...] = (),
    **changes: Any,
) -> Trial:
    measurement = latency and Measurement(
        source="local", device="local", mode="reward", threads=2, model_sha256="m", graph_sha256="g",
        reference_sha256="r", latency_ms=Interval(latency, latency * 0.98, latency * 1.02), reference_ms=None,
        speedup=Interval(4 / latency, 3.9 / latency, 4.1 / latency), percentiles_ms={}, memory_mb=50.0,
        memory_delta_mb=None, max_output_difference=0.0, flags=(), processes=(), vitals_before={}, vitals_after={},
        versions={"onnxruntime": "1.2.3"}, device_seconds=1.0, measured_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    values: dict[str, Any] = {
        "number": number,
        "plan": SPACE.plan({"stem": stem, "tail": tail}, dropped),
        "quality": Quality(metric, (100 - metric) / 50, 200),
        "parameters": 1000,
        "macs": 5000,
        "artifact": None,
        "measurement": measurement or None,
        "failure": None,
        "score": Score(metric / 100, metric / 100, number == 2),
        "seconds": {"cut": 0.25, "measure": 1.5},
    }
    return Trial(**{**values, **changes})


TRIALS = (
    trial(0, 4.0, 97.0),
    trial(1, 3.0, 90.0, stem=12),
    trial(2, 2.0, 92.0, stem=8, dropped=("block",)),
    trial(3, 2.5, 91.0, stem=7),
    trial(4, None, 0.0, stem=6, quality=None, failure=Failure("output_mismatch", f"differs at {EVIL}")),
    trial(5, 1.0, 60.0, stem=5, tail=10),
)
BASELINE = {
    "metric": 96.5, "parameters": 272_474, "macs": 40_813_184, "onnx_bytes": 1_093_122, "latency_ms": 4.0,
    "latency_ci_ms": [3.95, 4.05], "memory_mb": 50.5, "split": "test",
}  # fmt: skip
COMPRESSED = {
    "metric": 96.19, "parameters": 130_000, "macs": 18_000_000, "onnx_bytes": 520_000, "latency_ms": 1.96,
    "latency_ci_ms": [1.94, 1.99], "memory_mb": 44.25, "speedup": 2.04, "speedup_ci": [2.01, 2.07],
    "drop": 0.31, "plan_key": TRIALS[2].plan.key,
}  # fmt: skip


SLOWER = {**COMPRESSED, "speedup": 0.8, "drop": 0.001}
NOT_MET: dict[str, Any] = {"status": "infeasible", "compressed": None, "nearest": (TRIALS[5],)}


def report(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "status": "met",
        "task": "digits",
        "model": f"resnet {EVIL}",
        "device": "local",
        "metric": MetricSpec("accuracy", True),
        "baseline": BASELINE,
        "compressed": COMPRESSED,
        "target": Target(speedup=2.0, max_drop=1.0),
        "budget": {"candidates": 6, "device_seconds": None},
        "spent": {"candidates": 5, "device_seconds": 12.5, "wall_seconds": 33.25},
        "search": {"agent": "ppo", "seed": 3, "command": f"rlprune-edge compress --out '{EVIL}'", "mode": "report"},
        "trials": TRIALS,
        "notes": (f"weights saw the validation images <{EVIL}>",),
        "fine_tuning": [
            {
                "plan_key": TRIALS[2].plan.key,
                "validation_metric": 95.5,
                "epochs": [{"number": n, "train_loss": 1 / n} for n in (1, 2, 3)],
            }
        ],
        "bundle": "runs/a/bundle",
    }
    return build_report(**{**values, **changes})


class Page(HTMLParser):
    """What a browser would see: loads, ids, text by tag; scripts apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts.setdefault(tag, []).append("")
        self.inside = tag
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset", "data", "poster"):
                self.loads.append(value or "")
            if name == "id" and tag != "script":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[self.inside][-1] += data


def plot(html: str, name: str) -> list[dict[str, Any]]:
    """The traces that plotly is given for one plot."""
    start = html.index("[", html.index('"data":', html.index(f'<div id="plot-{name}"')))
    traces: list[dict[str, Any]] = json.JSONDecoder().raw_decode(html[start:])[0]
    return traces


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_report(tmp_path, report(), TRIALS, SPACE)
    return tmp_path


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


# ---------------------------------------------------------------- report.html


def test_the_page_loads_nothing_and_holds_plotly_once(written: Path) -> None:
    html = (written / "report.html").read_text()
    page = Page(html)
    assert page.loads == ["data:,"]
    assert re.findall(r"@import|url\(", html[html.index("<style>") : html.index("</style>")]) == []
    packed = re.findall(r'id="plotly">([^<]+)<', html)
    assert len(packed) == 1
    assert b"* plotly.js v" in gzip.decompress(base64.b64decode(packed[0]))
    assert len(html) < 2_500_000
    assert "default-src 'none'" in html[: html.index("<style>")]


def test_the_page_shows_every_plot_and_section_in_order(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    assert page.ids == ["plot-tradeoff", "plot-reward", "plot-widths", "plot-seconds", "plot-recovery"]
    assert page.texts["h2"] == [
        "Quality against latency", "Reward over the search", "What was kept", "Where the time went",
        "Fine-tuning of the finalists", "Candidates that failed", "Read with care", "Settings and versions",
        "How to reproduce",
    ]  # fmt: skip


def test_the_page_says_what_report_json_says(written: Path) -> None:
    stored = json.loads((written / "report.json").read_text())
    page = Page((written / "report.html").read_text())
    assert page.texts["h1"][0] == stored["verdict"]
    cells = page.texts["td"]
    for row in summary_rows(stored)[1:]:
        at = cells.index(row[0])
        assert tuple(cells[at : at + 4]) == row
    assert any(settings(stored) in text for text in page.texts["p"])
    assert "output_mismatch" in cells
    assert page.texts["li"] == list(stored["notes"])
    assert page.texts["pre"][0] == stored["search"]["command"]


def test_the_plots_hold_the_figures_of_the_trials(written: Path) -> None:
    html = (written / "report.html").read_text()
    traces = {t["name"]: t for t in plot(html, "tradeoff")}
    assert traces["Pareto front"]["x"] == [1.0, 2.0, 4.0]
    assert (traces["candidate"]["x"], traces["candidate"]["y"]) == ([3.0, 2.5], [90.0, 91.0])
    assert (traces["baseline"]["x"], traces["baseline"]["y"]) == ([4.0], [97.0])
    assert traces["finalist, before fine-tuning"]["y"] == [92.0]
    assert traces["finalist, fine-tuned (validation)"]["y"] == [95.5]
    assert '"name":"target, 2.000 ms"' in html
    best = next(t for t in plot(html, "reward") if t["name"] == "best so far")
    assert (best["x"], best["y"]) == ([1, 2, 3, 4, 5], [0.9, 0.92, 0.92, 0.92, 0.92])
    kept = {t["name"]: t["x"] for t in plot(html, "widths")}
    assert kept == {"before": [100, 0, 100], "kept": [50.0, 0, 100.0], "removed with its block": [0, 100, 0]}
    assert {t["name"]: sum(t["y"]) for t in plot(html, "seconds")} == {"cut": 1.5, "measure": 9.0}
    assert plot(html, "recovery")[0]["y"] == [1.0, 0.5, 1 / 3]


def test_what_the_search_expected_learned_and_met_is_drawn_where_it_is_known(tmp_path: Path) -> None:
    hot = {"temperature_c": {"zone0 cpu": 51.5, "zone1 gpu": 48.0}, "loadavg": [0.25, 0.2, 0.1], "available_bytes": 2e9}
    trials = [replace(t, measurement=t.measurement and replace(t.measurement, vitals_after=hot)) for t in TRIALS]
    made = report(
        trials=trials,
        predicted={TRIALS[1].plan.key: 1.9, TRIALS[2].plan.key: 2.2},
        training=[
            {"evaluated": 1, "entropy": 2.0, "mean_reward": 0.5},
            {"evaluated": 3, "entropy": 1.5, "mean_reward": 0.75},
        ],
    )
    write_report(tmp_path, made, trials, SPACE)
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert [i for i in page.ids if i not in ("plot-tradeoff", "plot-reward", "plot-widths", "plot-seconds")] == [
        "plot-training", "plot-predictions", "plot-celsius", "plot-load", "plot-available-mb", "plot-recovery",
    ]  # fmt: skip
    assert {t["name"]: t["y"] for t in plot(html, "training")} == {
        "entropy of the policy, nats": [2.0, 1.5], "mean reward of its episodes": [0.5, 0.75],
    }  # fmt: skip
    assert plot(html, "predictions")[1]["y"] == [1.9, 2.2]
    assert set(plot(html, "celsius")[0]["y"]) == {51.5}
    assert made["trials"][1]["vitals"] == {"celsius": 51.5, "load": 0.25, "available_mb": 2000.0}
    again = render(tmp_path)
    assert again["training"] == made["training"]


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
    for row, trial in zip(rows, stored["trials"], strict=True):
        assert row["plan_key"] == trial["plan_key"]
        assert row["latency_ms"] == ("" if trial["latency_ms"] is None else str(trial["latency_ms"]))
        assert row["failure"] == (trial["failure"]["kind"] if trial["failure"] else "")
    whole = CliRunner().invoke(app, ["report", str(written), "--format", "json"]).stdout
    assert json.loads(whole) == stored == json.loads(CliRunner().invoke(app, ["report", str(written), "--json"]).stdout)
    refused = CliRunner().invoke(app, ["report", str(written), "--format", "pdf"]).exception
    assert "choose text, md, json, csv" in str(refused)


def test_what_users_named_cannot_become_markup(written: Path) -> None:
    html = (written / "report.html").read_text()
    page = Page(html)
    assert EVIL not in html
    assert page.tags.count("script") == 2 + len(page.ids), "plotly and what unpacks it, and one for each plot"
    assert page.texts["p"][0] == f"digits / resnet {EVIL} on local"


def test_rendering_again_needs_report_json_alone(written: Path, tmp_path: Path) -> None:
    html = (written / "report.html").read_text()
    (written / "report.html").unlink()
    again = render(written)
    assert again["verdict"] == report()["verdict"]
    assert (written / "report.html").read_text() == html
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    "trials",
    [(), TRIALS[:1], TRIALS[:2], TRIALS[4:5], (TRIALS[0], TRIALS[4])],
    ids=["none", "baseline only", "one", "only a failure", "all failed"],
)
@pytest.mark.parametrize("status", ["infeasible", "stopped"])
def test_runs_with_little_to_show_still_render(tmp_path: Path, trials: tuple[Trial, ...], status: str) -> None:
    thin = report(status=status, compressed=None, trials=trials, fine_tuning=[], notes=(), bundle=None)
    write_report(tmp_path, thin, trials, SPACE)
    page = Page((tmp_path / "report.html").read_text())
    assert page.texts["h1"][0] == thin["verdict"]
    assert ("plot-tradeoff" in page.ids) == any(t.measurement is not None for t in trials)
    assert len(page.ids) + page.texts["p"].count("Nothing to draw.") == 4


def test_a_model_with_nothing_to_cut_still_renders(tmp_path: Path) -> None:
    bare = PruningSpace((), (), (), 10)
    write_report(tmp_path, report(compressed=None, status="infeasible"), TRIALS, bare)
    assert "plot-widths" not in Page((tmp_path / "report.html").read_text()).ids


def test_a_transformers_units_are_named_and_a_removed_layer_is_said_once(tmp_path: Path) -> None:
    space = PruningSpace(
        groups=tuple(
            Group(f"layer.{n}.{kind}s", width, (width,), (), (), f"layer.{n}.{block}", 0.5, 100, unit=kind)
            for n in (0, 1)
            for kind, width, block in (("head", 4, "attention"), ("neuron", 64, "ffn"))
        ),
        blocks=tuple(
            block
            for n in (0, 1)
            for block in (
                Block(f"layer.{n}.attention", 0.5, 100, ()),
                Block(f"layer.{n}.ffn", 0.5, 100, ()),
                Block(f"layer.{n}", 0.5, 200, (), (f"layer.{n}.attention", f"layer.{n}.ffn")),
            )
        ),
        ops=(),
        parameters=1000,
    )
    cut = trial(1, 2.0, 92.0, plan=space.plan({}, ("layer.0", "layer.1.ffn")))
    write_report(tmp_path, report(compressed={**COMPRESSED, "plan_key": cut.plan.key}), (TRIALS[0], cut), space)
    said = " ".join(Page((tmp_path / "report.html").read_text()).texts["p"])
    assert "heads and neurons kept of those before. Blocks removed: layer.0, layer.1.ffn." in said
    groups = json.loads((tmp_path / "report.json").read_text())["architecture"]["groups"]
    assert [g["removed"] for g in groups] == [True, True, False, True]


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
