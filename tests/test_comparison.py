"""A comparison's searches outlive a kill, and its statistics find the planted answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlprune_edge.comparison import Search, Step, append_search, best_so_far, load_searches
from rlprune_edge.comparison_stats import (
    FLOOR,
    area,
    evaluations_to,
    goal,
    interquartile_mean,
    median_evaluations_to,
    pair,
    probability_of_improvement,
    standings,
    turning_points,
    verdict,
)
from rlprune_edge.errors import UserError
from rlprune_edge.measurements import Interval


def a_search(agent: str, seed: int, values: list[float | None], *, infeasible: tuple[int, ...] = ()) -> Search:
    """A search whose candidate n (from 1) has the n-th value; None is a failure."""
    steps = tuple(
        Step(n, 1.5 * n, value, value is not None and n not in infeasible, 3.0, 90.0, f"{agent}-{n}")
        for n, value in enumerate(values, start=1)
    )
    return Search(agent, seed, steps, 2, "budget spent", 0.25)


def field(agent: str, finals: list[float]) -> list[Search]:
    """One search a seed, which ends at the seed's value."""
    return [a_search(agent, seed, [0.1, final]) for seed, final in enumerate(finals)]


# ---------------------------------------------------------------- searches.jsonl


def test_what_was_appended_comes_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "searches.jsonl"
    assert load_searches(path) == ()
    searches = (a_search("ppo", 0, [0.1, None, 0.3]), a_search("random", 0, []))
    for search in searches:
        append_search(path, search)
    assert load_searches(path) == searches
    assert json.loads(path.read_text().splitlines()[1])["format"] == 1


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "searches.jsonl"
    append_search(path, a_search("ppo", 0, [0.1]))
    whole = path.read_bytes()
    append_search(path, a_search("ppo", 1, [0.2]))
    path.write_bytes(path.read_bytes()[:-30])
    assert [s.seed for s in load_searches(path)] == [0]
    assert path.read_bytes() == whole
    append_search(path, a_search("ppo", 1, [0.4]))
    assert [best_so_far(s, 1) for s in load_searches(path)] == [0.1, 0.4]


BACKWARDS = [
    {"spent": n, "device_seconds": 1.0, "value": 0.1, "feasible": True, "latency_ms": None, "metric": None, "key": "k"}
    for n in (2, 1)
]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"format": 1, "search": {}}', "line 2 is damaged .*\n.*the same command runs what is missing"),
        ("nonsense", "line 2 is damaged"),
        ('{"format": 2, "search": {}}', "line 2: format 2, this version reads 1"),
        (
            json.dumps(
                {"format": 1, "search": {"agent": "a", "seed": 1, "steps": BACKWARDS, "probes": 0, "reason": ""}}
                | {"seconds": 1}
            ),
            "line 2 is damaged",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "searches.jsonl"
    append_search(path, a_search("ppo", 0, [0.1]))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=says):
        load_searches(path)


def test_a_search_that_is_there_twice_is_not_counted_twice(tmp_path: Path) -> None:
    path = tmp_path / "searches.jsonl"
    for _ in range(2):
        append_search(path, a_search("ppo", 3, [0.1]))
    with pytest.raises(UserError, match="holds ppo with seed 3 twice"):
        load_searches(path)


def test_seconds_of_each_candidate_instead_of_those_so_far_are_refused() -> None:
    steps = (Step(1, 2.0, 0.1, True, None, None, "a"), Step(2, 1.5, 0.1, True, None, None, "b"))
    with pytest.raises(ValueError, match="ppo, seed 0: step b has spent less"):
        Search("ppo", 0, steps, 0, "", 0.0)


# ---------------------------------------------------------------- one search


def test_the_best_so_far_counts_feasible_candidates_alone() -> None:
    search = a_search("ppo", 0, [0.9, None, 0.3, 0.2, 0.5], infeasible=(1,))
    assert [best_so_far(search, at) for at in (0, 2, 3, 4, 5, 99)] == [None, None, 0.3, 0.3, 0.5, 0.5]


def test_the_area_is_the_mean_over_all_candidates_of_the_budget() -> None:
    search = a_search("ppo", 0, [None, 0.3, 0.2, 0.5])
    assert area(search, 4) == pytest.approx((-1 + 0.3 + 0.3 + 0.5) / 4)
    assert area(search, 10) == pytest.approx((-1 + 0.3 + 0.3 + 7 * 0.5) / 10), "one that ended early keeps its best"
    assert area(search, 2) == pytest.approx((-1 + 0.3) / 2)
    assert area(a_search("ppo", 0, []), 5) == FLOOR
    assert turning_points([search, a_search("ppo", 1, [0.4])], 4) == (1, 2, 4)


def test_evaluations_to_99_percent_of_the_best_of_all() -> None:
    searches = [a_search("a", 0, [0.5, 0.991, 1.0]), a_search("b", 0, [0.98])]
    wanted = goal(searches, 3)
    assert wanted == pytest.approx(0.99)
    assert [evaluations_to(s, 0.99) for s in searches] == [2, None]
    assert goal(searches, 1) == pytest.approx(0.99 * 0.98)
    assert goal([a_search("a", 0, [-0.5])], 1) == pytest.approx(-0.505), "below zero, too, it is easier than the best"
    assert goal([a_search("a", 0, [None])], 1) is None


def test_a_seed_that_never_got_there_counts_as_later_than_all() -> None:
    there, never = a_search("a", 0, [0.1, 1.0]), a_search("a", 1, [0.1, 0.2])
    assert median_evaluations_to([there, there, never], 1.0, 2) == (2, 2)
    assert median_evaluations_to([there, never, never], 1.0, 2) == (None, 1)
    assert median_evaluations_to([there, there], 1.0, 1) == (None, 0)


# ---------------------------------------------------------------- over seeds


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end() -> None:
    scores = np.array([[9.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [-7.0, 1.0]])
    first, second = interquartile_mean(scores)
    assert first.value == 2.0
    assert (second.value, second.low, second.high) == (1.0, 1.0, 1.0)
    assert interquartile_mean(np.arange(8.0)[:, None])[0].value == 3.5, "mean of 2, 3, 4, 5"


def test_seeds_are_drawn_within_each_task() -> None:
    """Two tasks without spread have none together, however far apart they are."""
    found = interquartile_mean(np.zeros((5, 1)), np.ones((5, 1)))[0]
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    pooled = interquartile_mean(np.array([[0.0]] * 5 + [[1.0]] * 5))[0]
    assert pooled.low < 0.2 < 0.8 < pooled.high


def test_the_interval_of_the_interquartile_mean_holds_the_truth_about_as_often_as_it_says() -> None:
    """Of 400 draws of 20 normal numbers 94 % were held in a run of 600; outside of 0.90 to 0.985 is no bad luck."""
    rng = np.random.default_rng(7)
    found = interquartile_mean(rng.normal(0.7, 0.1, size=(20, 400)))
    held = sum(i.low <= 0.7 <= i.high for i in found)
    assert 0.90 <= held / 400 <= 0.985
    assert np.mean([i.high - i.low for i in found]) == pytest.approx(2 * 1.96 * 0.1 * 1.1 / 20**0.5, rel=0.15)


def test_the_same_searches_give_the_same_intervals() -> None:
    searches = field("ppo", [0.70, 0.72, 0.74, 0.71, 0.69])
    assert standings(searches, [1, 2]) == standings(searches, [1, 2])
    other = standings(list(reversed(searches)), [2])[0]
    assert other.value.value == standings(searches, [2])[0].value.value


def test_seeds_without_a_feasible_candidate_count_as_the_floor_and_are_told() -> None:
    searches = [a_search("g", seed, [None, 0.5 if seed else None, 0.6]) for seed in range(4)]
    first, second, third = standings(searches, [1, 2, 3])
    assert (first.value.value, first.none_yet, first.seeds) == (FLOOR, 4, 4)
    assert (second.value.value, second.none_yet) == (0.5, 1)
    assert second.value.low < 0 < second.value.high
    assert (third.value, third.none_yet) == (Interval(0.6, 0.6, 0.6), 0)


@pytest.mark.parametrize(
    ("a", "b", "probability"),
    [([1.0, 2.0], [0.0, 0.5], 1.0), ([1.0, 2.0], [1.0, 2.0], 0.5), ([1.0, 2.0], [1.5], 0.5), ([1.0], [1.0, 2.0], 0.25)],
)
def test_probability_of_improvement_by_hand(a: list[float], b: list[float], probability: float) -> None:
    found = probability_of_improvement(np.array(a), np.array(b))
    assert found.value == probability
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_better_in_every_seed_by_a_margin_is_better() -> None:
    strong, weak = field("a", [0.75, 0.73, 0.76, 0.74, 0.75]), field("b", [0.70, 0.69, 0.70, 0.71, 0.69])
    found = pair(strong, weak, 2)
    assert (found.verdict, found.seeds) == ("better", (0, 1, 2, 3, 4))
    assert (found.probability.value, found.probability.low) == (1.0, 1.0)
    assert found.difference is not None
    # 0.05, 0.04, 0.06, 0.03 and 0.06; a quarter of five is one at either end
    assert found.difference.value == pytest.approx(0.05)
    assert pair(weak, strong, 2).verdict == "worse"
    assert pair(strong, weak, 1).verdict == "tie", "after one candidate they were equal"


def test_identical_is_a_tie() -> None:
    same = field("a", [0.75, 0.73, 0.76])
    found = pair(same, field("b", [0.75, 0.73, 0.76]), 2)
    assert (found.verdict, found.difference) == ("tie", Interval(0.0, 0.0, 0.0))


def test_noise_around_zero_is_a_tie_nearly_always() -> None:
    """10 seeds, equal agents: 6 % of the verdicts would be wrong; 30 of 200 would be no bad luck."""
    rng = np.random.default_rng(11)
    verdicts = [
        pair(field("a", list(rng.normal(0.7, 0.02, 10))), field("b", list(rng.normal(0.7, 0.02, 10))), 2).verdict
        for _ in range(200)
    ]
    assert verdicts.count("tie") >= 170
    assert set(verdicts) <= {"tie", "better", "worse"}


def test_pairs_are_the_common_seeds_and_two_are_too_few() -> None:
    ours = field("a", [0.9, 0.9, 0.9, 0.9])
    theirs = [a_search("b", seed, [0.1, 0.2]) for seed in (2, 3, 7)]
    found = pair(ours, theirs, 2)
    assert (found.seeds, found.verdict) == ((2, 3), "too few seeds")
    assert found.difference is not None
    assert found.difference.value == pytest.approx(0.7)
    nothing = pair(ours, theirs[2:], 2)
    assert (nothing.seeds, nothing.difference, nothing.verdict) == ((), None, "too few seeds")
    assert nothing.probability.value == 1.0


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.1, 0.2, "tie"), (0.0, 0.2, "tie"), (-0.1, 0.0, "tie"), (0.1, 0.2, "better"), (-0.2, -0.1, "worse")],
)
def test_the_verdict_is_a_tie_wherever_the_interval_contains_zero(low: float, high: float, word: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high), 5) == word
    assert verdict(Interval((low + high) / 2, low, high), 2) == "too few seeds"
