"""The comparison says who leads, who ties and what is missing, alike in terminal, Markdown and page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from planted_report import EVIL, Page, plot
from test_comparison import a_search

from rlprune_edge.comparison import Search, append_search
from rlprune_edge.comparison_report import (
    build_comparison,
    checkpoints,
    render_comparison,
    table_lines,
    write_comparison,
)
from rlprune_edge.errors import UserError

AGENTS = ["ppo", "knapsack", "random"]
REQUEST: dict[str, Any] = {
    "task": "digits",
    "model": f"resnet {EVIL}",
    "device": "pi4",
    "target": "a speed-up of 2x",
    "budget": 50,
    "seeds": [0, 1, 2, 3, 4],
    "agents": AGENTS,
    "command": "rlprune-edge compare --agents ppo,knapsack,random --seeds 5",
    "versions": {"rlprune-edge": "0.0.1"},
    "value": "share of the uncut model's knowledge kept",
}


def searches() -> list[Search]:
    """ppo ends at 0.74 or so; knapsack is there at once; random is worse in every seed, and starts infeasible."""
    found = []
    for seed in range(5):
        end = 0.74 + 0.002 * (seed - 2)
        found += [
            a_search("ppo", seed, [0.5] * 30 + [end] * 20),
            a_search("knapsack", seed, [0.74 + 0.002 * ((seed * 2) % 5 - 2)] * 40),
            a_search("random", seed, [None, *[0.3 + 0.01 * seed] * 49]),
        ]
    return found


def written(folder: Path, some: list[Search], **changes: Any) -> dict[str, Any]:
    for search in some:
        append_search(folder / "searches.jsonl", search)
    return write_comparison(folder, {**REQUEST, **changes})


def agent(comparison: dict[str, Any], name: str) -> dict[str, Any]:
    return next(a for a in comparison["agents"] if a["agent"] == name)


def test_the_checkpoints_double_up_to_the_budget() -> None:
    assert [checkpoints(n) for n in (10, 25, 60, 400)] == [(10,), (25,), (25, 50, 60), (25, 50, 100, 200, 400)]


def test_the_answer_comes_first() -> None:
    comparison = build_comparison(searches(), REQUEST)
    assert comparison["verdict"] == ("knapsack leads: 0.740 [0.737, 0.743]; ppo ties with it; random is worse.")
    assert comparison["missing"] is None
    assert [a["agent"] for a in comparison["agents"]] == ["knapsack", "ppo", "random"]


def test_compare_json_holds_the_planted_figures(tmp_path: Path) -> None:
    written(tmp_path, searches())
    stored = json.loads((tmp_path / "compare.json").read_text())
    assert (stored["format"], stored["request"], stored["leader"]) == (1, REQUEST, "knapsack")
    ppo, rand = agent(stored, "ppo"), agent(stored, "random")
    assert [(p["spent"], round(p["value"], 9)) for p in ppo["checkpoints"]] == [(25, 0.5), (50, 0.74)]
    assert stored["goal"] == pytest.approx(0.99 * 0.744)
    assert (ppo["evaluations_to_goal"], ppo["reached_goal"]) == (31, 4), "0.736 is not enough"
    assert (rand["evaluations_to_goal"], rand["reached_goal"]) == (None, 0)
    assert ppo["area"] == pytest.approx((30 * 0.5 + 20 * 0.74) / 50)
    assert (ppo["probes"], ppo["device_seconds"], ppo["thinking_seconds"], ppo["candidates"]) == (2, 75.0, 0.25, 50)
    assert (rand["best"], rand["feasible_share"]) == (pytest.approx(0.34), 1.0)
    assert rand["ended"] == {"budget spent": 5}
    assert (rand["curve"][0]["spent"], rand["curve"][0]["none_yet"]) == (1, 5)
    pairs = {(p["a"], p["b"]): p for p in stored["pairs"]}
    assert len(pairs) == 6
    one, other = pairs["random", "knapsack"], pairs["knapsack", "random"]
    assert (one["verdict"], one["probability"], other["verdict"], other["probability"]) == ("worse", 0, "better", 1)
    assert one["difference"] == -other["difference"] == pytest.approx(-0.42, abs=0.01)
    assert one["difference_ci"] == [-other["difference_ci"][1], -other["difference_ci"][0]]


def test_the_terminal_shows_aligned_tables() -> None:
    lines = table_lines(build_comparison(searches(), REQUEST))
    at = lines.index("Best so far")
    assert lines[at + 1].split() == ["agent", "after", "25", "after", "50"]
    assert lines[at + 3] == "ppo       0.500 [0.500, 0.500]  0.740 [0.737, 0.743]"
    assert len({len(line) for line in lines[at + 1 : at + 5]}) == 1
    costs = lines[lines.index("Over the whole search") + 4]
    assert re.split(r"\s{2,}", costs)[2:] == ["never (0 of 5)", "0.340", "5 of 5", "50", "2", "75.0", "0.2"]
    against = lines[lines.index("Against knapsack, seed by seed") + 3]
    assert re.split(r"\s{2,}", against)[:2] == ["random", "worse"]


def test_nothing_feasible_is_said_and_not_a_figure(tmp_path: Path) -> None:
    never = [a_search(name, seed, [0.9, None], infeasible=(1,)) for name in AGENTS for seed in range(5)]
    comparison = written(tmp_path, never)
    assert comparison["verdict"] == "No agent found a candidate that meets a speed-up of 2x within 50 candidates."
    assert agent(comparison, "ppo")["best"] is None
    assert "none yet (5 of 5)" in table_lines(comparison)[4]
    page = Page((tmp_path / "compare.html").read_text())
    assert page.ids == []
    assert "Nothing to draw: no candidate met the target." in page.texts["p"]


def test_some_seeds_without_a_feasible_candidate_are_counted() -> None:
    some = [a_search("ppo", seed, [0.5], infeasible=(1,) if seed < 2 else ()) for seed in range(5)]
    lines = table_lines(build_comparison(some, REQUEST))
    assert lines[5].endswith(", none yet (2 of 5)")
    assert "3 of 5" in lines[9]


@pytest.mark.parametrize(
    ("kept", "missing", "verdict"),
    [
        (lambda s: s.seed < 0, "15 of 15 searches are missing: ppo altogether", "No search has ended yet."),
        (lambda s: s.agent == "ppo", "10 of 15 searches are missing: knapsack altogether; random", "ppo: 0.740"),
        (
            lambda s: s.agent != "random" or s.seed == 1,
            "4 of 15 searches are missing: random with seeds 0, 2, 3 and 4.",
            "ppo ties with it; too few common seeds (fewer than 3) for a verdict on random.",
        ),
        (
            lambda s: (s.agent, s.seed) != ("ppo", 3),
            "1 of 15 searches are missing: ppo with seed 3.",
            "random is worse",
        ),
    ],
    ids=["none", "one agent", "a single seed", "one less"],
)
def test_a_part_of_the_searches_renders_and_says_what_is_missing(
    tmp_path: Path, kept: Any, missing: str, verdict: str
) -> None:
    comparison = written(tmp_path, [s for s in searches() if kept(s)])
    assert verdict in comparison["verdict"]
    assert comparison["missing"].startswith(missing)
    assert comparison["missing"] in table_lines(comparison)
    assert comparison["missing"] in (tmp_path / "compare.md").read_text()
    page = Page((tmp_path / "compare.html").read_text())
    assert comparison["missing"] in page.texts["p"]
    assert page.texts["h1"] == [comparison["verdict"]]


def test_the_markdown_tables_have_as_many_cells_in_every_row(tmp_path: Path) -> None:
    piped = [a_search("a|b", seed, [0.1, 0.2 + seed / 10]) for seed in range(5)]
    written(tmp_path, [*searches(), *piped], agents=[*AGENTS, "a|b"])
    text = (tmp_path / "compare.md").read_text()
    assert text.startswith("# knapsack leads: ")
    tables = [[line for line in block.splitlines()] for block in text.split("\n\n") if block.startswith("| ")]
    assert [len(table) for table in tables] == [6, 6, 5]
    for table in tables:
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
        assert {len(row) for row in cells} == {len(cells[0])}
        assert re.fullmatch(r"-+:?", cells[1][1])
    assert "```\nrlprune-edge compare --agents ppo,knapsack,random --seeds 5\n```" in text


def test_the_page_loads_nothing_and_says_what_the_terminal_says(tmp_path: Path) -> None:
    comparison = written(tmp_path, searches())
    html = (tmp_path / "compare.html").read_text()
    page = Page(html)
    assert page.loads == ["data:,"]
    style = html[html.index("<style>") : html.index("</style>")]
    assert re.findall(r"@import|url\(|https?:", style) == []
    assert "prefers-color-scheme: dark" in style
    assert "default-src 'none'" in html[: html.index("<style>")]
    body = html[html.index("<body>") :]
    assert re.findall(r"""(?:src|href)=["']?https?:""", body) == []
    assert page.texts["h1"] == [comparison["verdict"]]
    assert page.texts["h2"] == [
        "Best so far", "Over the whole search", "Against knapsack, seed by seed", "Everyone against everyone",
        "How to read this", "Settings and versions", "How to repeat it",
    ]  # fmt: skip
    assert "0.740 [0.737, 0.743]" in page.texts["td"]
    assert EVIL not in html
    assert page.tags.count("script") == 3, "plotly, what unpacks it, and the one plot"
    assert f"digits / resnet {EVIL} on pi4: a speed-up of 2x, 50 candidates, 5 seeds" in page.texts["p"]


def test_the_plot_holds_a_line_and_a_band_for_every_agent(tmp_path: Path) -> None:
    written(tmp_path, searches())
    traces = {t["name"]: t for t in plot((tmp_path / "compare.html").read_text(), "curves")}
    assert list(traces) == [f"{name}{what}" for name in ("knapsack", "ppo", "random") for what in (", interval", "")]
    assert traces["ppo"]["x"] == [1, 25, 31, 50]
    assert traces["ppo"]["y"] == pytest.approx([0.5, 0.5, 0.74, 0.74])
    assert traces["random"]["x"][0] == 2, "nothing feasible before"
    band = traces["ppo, interval"]
    there = [1, 25, 25, 31, 31, 50, 50]
    assert band["x"] == [*there, *reversed(there)]
    assert band["y"][4:10] == pytest.approx([0.743, 0.743, 0.743, 0.737, 0.737, 0.737], abs=0.001)


def test_rendering_again_needs_the_folder_alone_and_sees_new_searches(tmp_path: Path) -> None:
    some = searches()
    first = written(tmp_path, some[:-1])
    assert first["missing"] is not None
    names = ("compare.json", "compare.md", "compare.html")
    before = [(tmp_path / name).read_text() for name in names]
    for name in names[1:]:
        (tmp_path / name).unlink()
    assert render_comparison(tmp_path) == first
    assert [(tmp_path / name).read_text() for name in names] == before
    append_search(tmp_path / "searches.jsonl", some[-1])
    assert render_comparison(tmp_path)["missing"] is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "holds no comparison"),
        ("{", "is damaged"),
        ('{"format": 2}', "has format 2; this version reads 1"),
        ("[]", "has format None"),
        ('{"format": 1, "request": {}}', "is damaged: 'budget' is missing"),
    ],
)
def test_what_cannot_be_rendered_is_said(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "compare.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(sentence)):
        render_comparison(tmp_path)


def test_building_a_comparison_loads_neither_plotly_nor_torch() -> None:
    code = "import sys, rlprune_edge.comparison_report; print({'plotly', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
