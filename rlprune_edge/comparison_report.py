"""Turns the searches of a comparison into compare.json, compare.md and compare.html."""

# compare.json, format 1: the keys of `build_comparison`. What `write_comparison` is given as the request is kept in it,
# so that `render_comparison` needs the folder alone: searches.jsonl and the request in compare.json.

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

from rlprune_edge.comparison import FINISHED, NAME, Finished, Search, best_so_far, load_finished, load_searches
from rlprune_edge.comparison_stats import (
    BETTER,
    FLOOR,
    WORSE,
    Pair,
    Standing,
    evaluations_to,
    goal,
    mean_area,
    median_evaluations_to,
    pair,
    standings,
    turning_points,
)
from rlprune_edge.comparison_words import headline, markdown, missing_words, table_lines
from rlprune_edge.errors import UserError
from rlprune_edge.report import plain, write_whole
from rlprune_edge.report_words import Figures

__all__ = ["build_comparison", "checkpoints", "render_comparison", "table_lines", "write_comparison"]

FORMAT = 1
JSON_NAME, MARKDOWN_NAME, HTML_NAME = "compare.json", "compare.md", "compare.html"
_FIRST_CHECKPOINT = 25


def checkpoints(budget: int) -> tuple[int, ...]:
    """25, 50, 100, ... below the budget, and the budget itself: where the curves are read off."""
    found = []
    at = _FIRST_CHECKPOINT
    while at < budget:
        found.append(at)
        at *= 2
    return (*found, budget)


def build_comparison(searches: Sequence[Search], request: Figures, finished: Sequence[Finished] = ()) -> Figures:
    """The content of compare.json, plain JSON values only.

    `request` holds `task`, `model`, `device`, `target` (in words), `budget` (candidates of a search), `seeds` (their
    list), `agents` (their names), `command` (repeats the comparison), `versions`; perhaps `source` (of the latencies),
    `value` (what is compared, in words), `device_seconds` (cap of a search), `notes` (a list), and whatever else is to
    be shown among the settings. Searches may be missing: `missing` says which.

    `agents` is sorted, best first: interquartile mean at the budget, then area under the curve. `finished` are the
    searches' best plans that were fine-tuned, if any were.
    """
    budget = int(request["budget"])
    by_agent: dict[str, list[Search]] = {}
    for search in sorted(searches, key=lambda s: s.seed):
        by_agent.setdefault(search.agent, []).append(search)
    wanted = goal(searches, budget)
    agents = [_agent(name, group, budget, wanted) for name, group in by_agent.items()]
    agents.sort(key=lambda a: (-a["checkpoints"][-1]["value"], -a["area"], a["agent"]))
    pairs: list[Figures] = []
    for one, two in combinations([a["agent"] for a in agents], 2):
        found = pair(by_agent[one], by_agent[two], budget)
        pairs += [_pair(one, two, found), _mirrored(one, two, found)]
    comparison: Figures = {
        "format": FORMAT,
        "request": request,
        "leader": agents[0]["agent"] if agents and wanted is not None else None,
        "goal": wanted,
        "floor": FLOOR,
        "missing": missing_words(request, [(s.agent, s.seed) for s in searches]),
        "agents": agents,
        "pairs": pairs,
        "finished": [asdict(one) for one in sorted(finished, key=lambda f: (f.agent, f.seed))],
    }
    comparison["verdict"] = headline(comparison)
    content: Figures = plain(comparison)
    return content


def write_comparison(folder: Path, request: Figures) -> Figures:
    """Write the three files from the searches in `folder`, each whole or not at all, and return compare.json's content.

    Fit to be called before the first search too: from then on the folder can be rendered. Raises UserError.
    """
    comparison = build_comparison(load_searches(folder / NAME), request, load_finished(folder / FINISHED))
    write_whole(folder / JSON_NAME, json.dumps(comparison, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(folder / MARKDOWN_NAME, markdown(comparison))
    # plotly takes its time to load
    from rlprune_edge.comparison_html import page

    write_whole(folder / HTML_NAME, page(comparison))
    return comparison


def render_comparison(folder: Path) -> Figures:
    """Write the three files again from searches.jsonl and the request; nothing is run. Raises UserError."""
    path = folder / JSON_NAME
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} holds no comparison ({JSON_NAME}: {error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        found = stored.get("format") if isinstance(stored, dict) else None
        raise UserError(f"{path} has format {found!r}; this version reads {FORMAT}.")
    try:
        return write_comparison(folder, stored["request"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error} is missing.") from error


def _agent(name: str, searches: Sequence[Search], budget: int, wanted: float | None) -> Figures:
    """One agent over its seeds. Seconds and probes are medians over seeds."""
    points = checkpoints(budget)
    curve = sorted({1, *turning_points(searches, budget), *points})
    found = [best_so_far(search, budget) for search in searches]
    area = mean_area(searches, budget)
    median, reached = (None, 0) if wanted is None else median_evaluations_to(searches, wanted, budget)
    return {
        "agent": name,
        "seeds": [search.seed for search in searches],
        "checkpoints": [_standing(s) for s in standings(searches, points)],
        "area": area.value,
        "area_ci": [area.low, area.high],
        "evaluations_to_goal": median,
        "reached_goal": reached,
        "best": max((value for value in found if value is not None), default=None),
        "feasible_share": sum(value is not None for value in found) / len(searches),
        "candidates": statistics.median(s.steps[-1].spent if s.steps else 0 for s in searches),
        "probes": statistics.median(s.probes for s in searches),
        "device_seconds": statistics.median(s.steps[-1].device_seconds if s.steps else 0.0 for s in searches),
        "thinking_seconds": statistics.median(s.seconds for s in searches),
        "ended": dict(Counter(search.reason for search in searches)),
        "searches": [
            {
                "seed": search.seed,
                "best": best,
                "evaluations_to_goal": None if wanted is None else evaluations_to(search, wanted),
                "reason": search.reason,
            }
            for search, best in zip(searches, found, strict=True)
        ],
        "curve": [_standing(s) for s in standings(searches, curve)],
    }


def _standing(standing: Standing) -> Figures:
    value = standing.value
    return {
        "spent": standing.spent,
        "value": value.value,
        "ci": [value.low, value.high],
        "none_yet": standing.none_yet,
        "seeds": standing.seeds,
    }


def _pair(a: str, b: str, found: Pair) -> Figures:
    difference, probability = found.difference, found.probability
    return {
        "a": a,
        "b": b,
        "seeds": list(found.seeds),
        "difference": difference and difference.value,
        "difference_ci": difference and [difference.low, difference.high],
        "verdict": found.verdict,
        "probability": probability.value,
        "probability_ci": [probability.low, probability.high],
    }


def _mirrored(a: str, b: str, found: Pair) -> Figures:
    """The same pair as `b` sees it."""
    seen = _pair(b, a, found)
    if seen["difference"] is not None:
        low, high = seen["difference_ci"]
        seen |= {"difference": -seen["difference"], "difference_ci": [-high, -low]}
    low, high = seen["probability_ci"]
    seen |= {"probability": 1 - seen["probability"], "probability_ci": [1 - high, 1 - low]}
    return {**seen, "verdict": {BETTER: WORSE, WORSE: BETTER}.get(found.verdict, found.verdict)}
