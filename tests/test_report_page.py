"""report.html says what report.json says, loads nothing, and renders whatever a run has or lacks."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from planted_report import COMPRESSED, EVIL, SPACE, TRIALS, Page, plot, report, trial

from rlprune_edge.records import Block, Group, PruningSpace, Trial
from rlprune_edge.report import (
    render,
    settings,
    summary_rows,
    write_report,
)


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


def test_the_rungs_of_a_ladder_are_told_apart(tmp_path: Path) -> None:
    baseline, first, second, third, *_ = TRIALS
    climbed = (replace(baseline, rung=0), replace(first, rung=0), replace(second, rung=1), replace(third, rung=2))
    write_report(tmp_path, report(trials=climbed), climbed, SPACE)
    html = (tmp_path / "report.html").read_text()
    best = next(t for t in plot(html, "reward") if t["name"] == "best so far")
    assert best["x"] == [1, None, 2, None, 3]  # a rung has a target, and so rewards, of its own
    assert best["y"] == [first.score.reward, None, second.score.reward, None, third.score.reward]
    for said in ('"text":"rung 2"', '"text":"rung 3"'):
        assert html.count(said) == 1
    assert '"text":"rung 1"' not in html
    grey = {t["name"]: t["marker"].get("symbol") for t in plot(html, "tradeoff") if "candidate, rung" in t["name"]}
    assert len(grey) == len({*grey.values()})
