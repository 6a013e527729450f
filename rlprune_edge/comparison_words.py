"""The comparison in words: the verdict, the tables of the terminal and the page, and how every figure is written."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from rlprune_edge.comparison_stats import BETTER, FEWEST_SEEDS, TIE, TOO_FEW, WORSE
from rlprune_edge.report_words import Figures, count, number, place

Rows = list[tuple[str, ...]]


def headline(comparison: Figures) -> str:
    """The outcome in one sentence, e.g. `ppo leads: 0.738 [0.720, 0.738]; knapsack ties with it; random is worse.`"""
    agents, leader, request = comparison["agents"], comparison["leader"], comparison["request"]
    if not agents:
        return "No search has ended yet."
    if leader is None:
        return f"No agent found a candidate that meets {request['target']} within {request['budget']} candidates."
    figure = standing_words(agents[0]["checkpoints"][-1])
    if len(agents) == 1:
        return f"{leader}: {figure}, with nothing to compare it with."
    said = {p["a"]: p["verdict"] for p in comparison["pairs"] if p["b"] == leader}
    parts = [f"{leader} leads: {figure}"]
    for verdict, one, more in (
        (TIE, "ties with it", "tie with it"),
        (BETTER, "is better than it seed by seed", "are better than it seed by seed"),
        (WORSE, "is worse", "are worse"),
    ):
        names = [a["agent"] for a in agents if said.get(a["agent"]) == verdict]
        if names:
            parts.append(f"{listed(names)} {one if len(names) == 1 else more}")
    names = [a["agent"] for a in agents if said.get(a["agent"]) == TOO_FEW]
    if names:
        parts.append(f"too few common seeds (fewer than {FEWEST_SEEDS}) for a verdict on {listed(names)}")
    return "; ".join(parts) + "."


def missing_words(request: Figures, found: Sequence[tuple[str, int]]) -> str | None:
    """Which (agent, seed) of those asked for are not there, in one sentence; None where all are."""
    there, parts, lacking = set(found), [], 0
    for agent in request["agents"]:
        seeds = [seed for seed in request["seeds"] if (agent, seed) not in there]
        lacking += len(seeds)
        if len(seeds) == len(request["seeds"]):
            parts.append(f"{agent} altogether")
        elif seeds:
            parts.append(f"{agent} with seed{'s' if len(seeds) > 1 else ''} {listed([str(s) for s in seeds])}")
    asked = len(request["agents"]) * len(request["seeds"])
    if not parts:
        return None
    return f"{lacking} of {asked} searches are missing: {'; '.join(parts)}. The figures are of those that ended."


def curve_rows(comparison: Figures) -> Rows:
    """A heading, then one row an agent: the interquartile mean of the best so far at every checkpoint."""
    agents = comparison["agents"]
    points = agents[0]["checkpoints"] if agents else []
    heading = ("agent", *(f"after {p['spent']}" for p in points))
    return [heading, *((a["agent"], *map(standing_words, a["checkpoints"])) for a in agents)]


def figure_rows(comparison: Figures) -> Rows:
    """A heading, then one row an agent: what the whole search came to and what it cost."""
    rows: Rows = [
        ("agent", "area", "to 99 %", "best", "feasible", "candidates", "probes", "device s", "thinking s"),
    ]
    for a in comparison["agents"]:
        seeds = len(a["seeds"])
        reached = f" ({a['reached_goal']} of {seeds})"
        needed = "never" if a["evaluations_to_goal"] is None else f"{a['evaluations_to_goal']:g}"
        rows.append(
            (
                a["agent"],
                f"{number(a['area'], 3)} {_interval(a['area_ci'])}",
                needed + (reached if a["reached_goal"] < seeds else ""),
                number(a["best"], 3),
                f"{round(a['feasible_share'] * seeds)} of {seeds}",
                f"{a['candidates']:g}",
                f"{a['probes']:g}",
                _seconds(a["device_seconds"]),
                _seconds(a["thinking_seconds"]),
            )
        )
    return rows


def pair_rows(comparison: Figures) -> Rows:
    """A heading, then how every other agent does against the leader, seed by seed."""
    leader = comparison["leader"]
    rows: Rows = [("agent", "verdict", "difference", "common seeds", f"P(better than {leader})")]
    by_agent = {p["a"]: p for p in comparison["pairs"] if p["b"] == leader}
    for a in comparison["agents"]:
        if p := by_agent.get(a["agent"]):
            difference = "-" if p["difference"] is None else f"{p['difference']:+.3f} {_interval(p['difference_ci'])}"
            probability = f"{p['probability']:.2f} {_interval(p['probability_ci'], 2)}"
            rows.append((a["agent"], p["verdict"], difference, str(len(p["seeds"])), probability))
    return rows if len(rows) > 1 else []


def finished_rows(comparison: Figures) -> Rows:
    """A heading, then what became of the best plans that were fine-tuned; nothing where none was."""
    metric = comparison["request"].get("metric", "metric")
    rows: Rows = [("agent", "seed", "speed-up", f"{metric}, test split", "before", "points lost", "plan")]
    by_agent: dict[str, list[Figures]] = {}
    for f in comparison.get("finished", ()):
        by_agent.setdefault(f["agent"], []).append(f)
    for agent, found in by_agent.items():
        rows += [
            (
                agent,
                str(f["seed"]),
                f"{f['speedup']:.2f}x {_interval(f['speedup_ci'], 2)}",
                number(f["after"], 2),
                number(f["before"], 2),
                number(f["drop"], 2),
                f["plan_key"],
            )
            for f in found
        ]
        if len(found) > 1:
            after, drop = (mean(f[key] for f in found) for key in ("after", "drop"))
            rows.append((agent, "mean", "", number(after, 2), "", number(drop, 2), ""))
    return rows if len(rows) > 1 else []


def how_to_read(comparison: Figures) -> list[str]:
    """What the figures are, a sentence or two each, and what they do not say."""
    request = comparison["request"]
    value = request.get("value", "the reward")
    best = "" if comparison["goal"] is None else f" ({comparison['goal']:.3f})"
    where = place({"source": "board", **request})
    mode = f" (mode {request['mode']})" if request.get("mode") else ""
    lines = [
        f"After N: interquartile mean over seeds of the best {value} among the first N candidates that meets "
        f"{request['target']}, with its 95 % bootstrap interval. Probes count as candidates. A seed that has found "
        f"none yet counts as {comparison['floor']:g}; a search that ended early keeps its best.",
        f"Area: mean of that best over all {request['budget']} candidates. To 99 %: candidates until 99 % of the best "
        f"value any search found{best}, median over seeds. Candidates, probes and seconds: medians over seeds; "
        "thinking is the searcher's own time, without the evaluations.",
        "Difference: interquartile mean of agent minus leader, same seed against same seed. Its interval makes the "
        "verdict: a tie wherever it contains 0. P: over all pairs of seeds, ties counting half.",
        "Few seeds make such intervals too narrow: of normal numbers, 95 % intervals hold the true mean in 90 % of the "
        "draws with 5 seeds and in 74 % with 3. The leader is chosen from the same figures, which favours it, and each "
        "verdict stands alone: with 5 seeds about one of ten true ties is called a difference.",
        f"The seeds vary the search alone: one trained model, latencies on {where}{mode}, before fine-tuning.",
    ]
    if comparison.get("finished"):
        lines.append(
            "Fine-tuned: of each search the best plan that met the target when it was measured once more. The test "
            "split was read for these figures alone; nothing was chosen by it."
        )
    return [*lines, *request.get("notes", ())]


def table_lines(comparison: Figures) -> list[str]:
    """The verdict and the tables as plain text, aligned, for the terminal."""
    lines = [comparison["verdict"]]
    if comparison["missing"]:
        lines.append(comparison["missing"])
    for title, rows in _titled(comparison):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", title]
        lines += ["  ".join(_aligned(i, cell, widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows]
    return lines


def markdown(comparison: Figures) -> str:
    """The whole comparison as compare.md."""
    request = comparison["request"]
    parts = [f"# {comparison['verdict']}", title(comparison)]
    if comparison["missing"]:
        parts.append(comparison["missing"])
    for name, (head, *body) in _titled(comparison):
        rule = ["---"] + ["---:"] * (len(head) - 1)
        rows = [head, rule, *body]
        table = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows)
        parts += [f"## {name}", table]
    parts += ["## How to read this", "\n".join(f"- {line}" for line in how_to_read(comparison))]
    parts += ["## How to repeat it", f"```\n{request['command']}\n```"]
    parts.append(", ".join(f"{name} {version}" for name, version in request["versions"].items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def title(comparison: Figures) -> str:
    """What was compared on: task, model, device, target, budget, seeds."""
    r = comparison["request"]
    where = place({"source": "board", **r})
    seeds = f"{len(r['seeds'])} seed{'s' if len(r['seeds']) != 1 else ''}"
    return f"{r['task']} / {r['model']} on {where}: {r['target']}, {count(r['budget'])} candidates, {seeds}"


def standing_words(point: Figures) -> str:
    """`0.738 [0.720, 0.738]`, with the seeds that have found nothing feasible, if any."""
    none, seeds = point["none_yet"], point["seeds"]
    waiting = f"none yet ({none} of {seeds})"
    if none == seeds:
        return waiting
    figure = f"{number(point['value'], 3)} {_interval(point['ci'])}"
    return f"{figure}, {waiting}" if none else figure


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def finished_title(comparison: Figures) -> str:
    """How the best plans were fine-tuned and measured."""
    request = comparison["request"]
    modes = dict.fromkeys(f["mode"] for f in comparison.get("finished", ()))
    return f"Fine-tuned with recipe {request.get('recipe', 'prescribed')}, measured in mode {' and '.join(modes)}"


def _titled(comparison: Figures) -> list[tuple[str, Rows]]:
    if not comparison["agents"]:
        return []
    found = [
        ("Best so far", curve_rows(comparison)),
        ("Over the whole search", figure_rows(comparison)),
        (f"Against {comparison['leader']}, seed by seed", pair_rows(comparison)),
        (finished_title(comparison), finished_rows(comparison)),
    ]
    return [(name, rows) for name, rows in found if rows]


def _aligned(column: int, cell: str, width: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _interval(ends: Sequence[float], digits: int = 3) -> str:
    return f"[{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def _seconds(value: float) -> str:
    return f"{value:,.{1 if value < 100 else 0}f}"
