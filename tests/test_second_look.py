"""What counts as meeting a target, what finalists are before their training, and who comes next where these fail."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import a_measurement, a_trial

from rlprune_edge import deployment, finalists, rungs
from rlprune_edge import request as requests
from rlprune_edge.compress import prepared
from rlprune_edge.measurements import Interval
from rlprune_edge.progress import Silent
from rlprune_edge.records import Plan, Target, Trial
from rlprune_edge.run import Run
from rlprune_edge.run_folder import RunFolder
from rlprune_edge.second_look import (
    SETTLED,
    THOROUGH,
    VERIFIED,
    Left,
    Verified,
    _weights_matter,
    first_that_meets,
    meets,
    reached,
    settled,
    verified,
    with_margin,
)

PLAN = Plan({"a": 8, "block.b": 16}, ())
EXAMPLES = Path(__file__).parent / "examples"
BARS = {"task": "own_task:Bars", "target_speedup": 1.05, "search_mode": "brief"}


@pytest.mark.parametrize(
    ("target", "met", "firmly"),
    [
        (Target(speedup=2.0), True, False),  # 2.0 (1.9 to 2.1)
        (Target(speedup=1.8), True, True),
        (Target(speedup=2.05), False, False),
        (Target(latency_ms=1.0), True, False),
        (Target(latency_ms=1.02), True, True),
        (Target(latency_ms=0.9), False, False),
        (Target(memory_mb=80.0), True, True),
        (Target(memory_mb=79.0), False, False),
        (Target(), True, True),
    ],
)
def test_a_target_is_met_by_the_figure_and_firmly_by_its_interval(target: Target, met: bool, firmly: bool) -> None:
    measurement = a_measurement(1.0)
    assert (meets(measurement, target), meets(measurement, target, firmly=True)) == (met, firmly)


def test_a_range_of_a_few_blocks_is_never_firm() -> None:
    measurement = a_measurement(1.0, flags=("few_blocks",))
    assert meets(measurement, Target(speedup=1.8))
    assert not meets(measurement, Target(speedup=1.8), firmly=True)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Target(speedup=2.002), ", 0.10 % short of the target"),  # 2.0x
        (Target(speedup=1.5), ""),
        (Target(latency_ms=0.8), ", 25.00 % short of the target"),  # 1 ms
        (Target(memory_mb=79.0), ", 1.27 % short of the target"),  # 80 MB
        (Target(speedup=2.002, latency_ms=0.8), ", 25.00 % short of the target"),
    ],
)
def test_what_misses_a_target_says_by_how_much(target: Target, said: str) -> None:
    assert reached(a_measurement(1.0), target) == reached(a_measurement(1.0)) + said
    on_two = replace(a_measurement(1.0), others=(a_measurement(2.0),))
    assert reached(on_two, Target(speedup=2.0)).endswith(", 50.00 % short of the target")


def test_every_board_has_to_meet_it() -> None:
    slower = a_measurement(1.2)
    assert not meets(replace(a_measurement(1.0), others=(slower,)), Target(speedup=2.0))


def test_the_next_finalists_are_faster_by_what_the_first_ones_lost() -> None:
    trial = a_trial(1, PLAN)  # 2.0x in 1 ms
    assert with_margin(trial, Target(speedup=2.0), 1.0)
    assert not with_margin(trial, Target(speedup=2.0), 0.95)
    assert with_margin(trial, Target(speedup=1.9), 0.95)
    assert not with_margin(trial, Target(latency_ms=1.0), 0.95)
    assert with_margin(trial, Target(latency_ms=1.1), 0.95)


def test_what_was_looked_at_is_left_out_and_the_margin_only_grows() -> None:
    slow, fast = a_trial(1, PLAN), a_trial(2, Plan({"a": 4}, ()), measurement=a_measurement(0.8))  # 2.0x and 2.5x
    left = Left(Target(speedup=2.0))
    assert left.of([slow, fast]) == [slow, fast]
    left.pass_over(Verified([], {"another": None}), {"another": None})  # it failed, which says nothing of time
    assert left.of([slow, fast]) == [slow, fast]
    left.pass_over(Verified([], {"another": 0.9}), {"another": 0.9})
    assert left.of([slow, fast]) == [fast]
    left.pass_over(Verified([], {"third": 1.1}), {"third": 1.1})
    assert left.of([slow, fast]) == [fast]
    left.pass_over(Verified([fast], {}), {})
    assert left.of([slow, fast]) == []


def test_made_up_weights_are_spoken_of_where_they_mattered() -> None:
    made_up = a_measurement(1.0, options={"weights": "made up"})
    trial = a_trial(1, PLAN, measurement=made_up)
    assert _weights_matter(trial, replace(made_up, speedup=Interval(2.05, 2.0, 2.1))) is None
    doubt = _weights_matter(trial, replace(made_up, speedup=Interval(1.8, 1.7, 1.9)))
    assert doubt is not None
    assert "1.80x faster with its own weights and was 2.00x with made-up ones" in doubt
    assert _weights_matter(a_trial(1, PLAN), replace(made_up, speedup=Interval(1.8, 1.7, 1.9))) is None


@pytest.mark.parametrize(("value", "said"), [(1.5, "1.50x faster (1.40 to"), (0.8, "0.80x as fast (0.70 to")])
def test_what_is_slower_is_not_called_faster(value: float, said: str) -> None:
    assert reached(a_measurement(1.0, speedup=Interval(value, value - 0.1, value + 0.1))).startswith(said)


class Noting(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)

    note = stage


@contextmanager
def a_run(
    folder: Path, cache: Path, words: dict[str, Any], *, widths: Sequence[int] = (16, 8, 4)
) -> Iterator[tuple[Run, list[Trial], Noting]]:
    """A run with some trials of a real network, in a folder that may be there already."""
    request, noting = requests.make(BARS | words), Noting()
    opened = RunFolder.reopen(folder)[0] if folder.exists() else RunFolder.create(folder, request)
    with closing(opened), prepared(request, opened, noting, cache_dir=cache) as (run, _):
        groups = [g.name for g in run.space.groups]
        yield run, [run.evaluate(run.space.plan(dict.fromkeys(groups, width))) for width in widths], noting


def of_finalists(run: Run) -> list[str]:
    """What the run will say of them at its end."""
    return [note for note in run.notes if note.startswith("finalist")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.mark.usefixtures("own_task")
def test_a_finalist_that_is_too_slow_is_not_trained_and_stays_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(THOROUGH, "verify", "brief")  # a tenth of the time
    with a_run(tmp_path / "run", cache, {"final_mode": "verify"}) as (run, (trial, *_), noting):
        run.rung = replace(run.rung, contained=Target(speedup=1000.0))
        (found,) = settled(run, [trial])
        assert (found.met, found.firm) == (False, False)
        assert found.share is not None
        assert 0.2 < found.share < 5, "a share of what the search has measured of the same network"
        (note,) = of_finalists(run)
        assert re.search(r"x (faster|as fast) .*, 99\.\d\d % short of the target, and was not trained", note)
        assert note in noting.said, "it is said at once, too"
        measured = run.device.device_seconds
    with a_run(tmp_path / "run", cache, {"final_mode": "verify"}) as (run, (trial, *_), _):
        measured = run.device.device_seconds
        run.rung = replace(run.rung, contained=Target(speedup=0.001))
        assert list(settled(run, [trial])) == [found], "as it was found, whatever is asked for now"
        assert run.device.device_seconds == measured
        assert of_finalists(run) == [note]


@pytest.mark.usefixtures("own_task")
def test_what_preprocessing_takes_is_asked_of_the_device_once_and_of_the_search(cache: Path, tmp_path: Path) -> None:
    with a_run(tmp_path / "run", cache, {"target_speedup": 1.5}) as (run, _, noting):
        ms = run.preprocessing_ms = deployment.preprocessing_ms(run)
        assert 0 < ms < run.baseline.latency_ms, "a cast, a product and a transposition of 144 pixels"
        assert f"preprocessing takes {ms:.3f} ms" in noting.said[-1]
        (rung,) = rungs.rungs(run.request, run.baseline, 1.0, ms)
        assert rung.target.speedup is not None
        assert rung.target.speedup > 1.5
        assert f"a speed-up of {rung.target.speedup:g}x" in noting.said[-1]
        assert run.promised(rung.target.speedup) == pytest.approx(1.5, abs=1e-3)
        run.folder.write_json(deployment.PREPROCESSING, {"ms": 0.5})
    with a_run(tmp_path / "run", cache, {"target_speedup": 1.5}) as (run, _, _):
        assert deployment.preprocessing_ms(run) == 0.5, "as it was told the first time"
    with a_run(tmp_path / "free", cache, {"target_speedup": None, "max_drop": 1.0}) as (run, _, _):
        assert deployment.preprocessing_ms(run) == 0, "no target that it could matter to"
        assert run.folder.read_json(deployment.PREPROCESSING) is None


@pytest.mark.usefixtures("own_task")
def test_a_finalist_is_held_to_what_was_asked_for_and_expected_to_be_as_fast_as_its_preprocessing_lets_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(THOROUGH, "verify", "brief")
    with a_run(tmp_path / "run", cache, {"final_mode": "verify"}) as (run, (trial, *_), _):
        run.rung = replace(run.rung, target=Target(speedup=1000.0), contained=Target(speedup=0.001))
        (found,) = settled(run, [trial])
        assert found.met, "the search's own target is for networks without their preprocessing"
        assert found.share is not None
    with a_run(tmp_path / "slow", cache, {"final_mode": "verify"}) as (run, (same, *_), _):
        run.rung = replace(run.rung, contained=Target(speedup=0.001))
        run.preprocessing_ms = 1000 * run.baseline.latency_ms
        assert same.measurement is not None
        assert same.measurement.speedup is not None
        assert run.promised(same.measurement.speedup.value) == pytest.approx(1.0, rel=0.01)
        (expected_slow,) = settled(run, [same])
        assert expected_slow.share is not None
        was = found.share * same.measurement.speedup.value
        assert expected_slow.share == pytest.approx(was, rel=0.5), "of the 1x that such preprocessing leaves"


@pytest.mark.usefixtures("own_task")
def test_a_finalist_that_fails_is_passed_over_and_nothing_is_kept_of_it(cache: Path, tmp_path: Path) -> None:
    with a_run(tmp_path / "run", cache, {"final_mode": "verify"}) as (run, (trial, *_), noting):
        with torch.no_grad():
            next(run.loaded.module.parameters()).fill_(float("nan"))
        (found,) = settled(run, [trial])
        assert (found.met, found.share) == (False, None)
        (note,) = of_finalists(run)
        assert note.startswith(f"finalist {trial.plan.key} failed before its fine-tuning: ")
        assert "differs from the masked one by nan" in note
        assert note in noting.said
        assert run.folder.read_json(SETTLED) is None, "a resumed run tries it again"


@pytest.mark.usefixtures("own_task")
def test_finalists_that_may_miss_the_target_wait_for_those_that_will_not(cache: Path, tmp_path: Path) -> None:
    with a_run(tmp_path / "run", cache, {"final_mode": "report"}) as (run, trials, _):
        between, missed, firm = (t.plan.key for t in trials)
        kept = {
            between: {"met": True, "firm": False, "share": 1.0, "said": "2.01x"},
            missed: {"met": False, "firm": False, "share": 0.9, "said": "1.80x"},
            firm: {"met": True, "firm": True, "share": 1.1, "said": "2.20x"},
        }
        run.folder.write_json(SETTLED, kept)
        found = list(settled(run, trials))
        assert [f.trial.plan.key for f in found] == [missed, firm, between]
        assert [f.met for f in found] == [False, True, True]
        assert [f.share for f in found] == [0.9, 1.1, 1.0]


@pytest.mark.usefixtures("own_task")
def test_where_the_winner_is_measured_quickly_finalists_are_not_measured_before(cache: Path, tmp_path: Path) -> None:
    with a_run(tmp_path / "run", cache, {"final_mode": "reward"}) as (run, trials, _):
        before = run.device.device_seconds
        assert [(f.met, f.share) for f in settled(run, trials)] == [(True, None)] * 3
        assert run.device.device_seconds == before


@pytest.mark.usefixtures("own_task")
def test_where_the_best_trials_are_all_slower_than_seen_others_are_looked_at(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finalists, "ROUNDS", 1)  # of training; the first one here trains nothing
    words = {"final_mode": "reward", "finalists": 1, "epochs": 0, "target_speedup": None}  # all meet no target
    with a_run(tmp_path / "run", cache, words, widths=(20, 16, 12, 8, 4)) as (run, trials, _):
        best = sorted(trials, key=lambda t: -t.score.reward)
        unlucky = [t.plan.key for t in best[:4]]
        missed = {"met": False, "firm": False, "share": 0.99, "doubt": None}
        run.folder.write_json(VERIFIED, dict.fromkeys(unlucky, missed))
        looked = verified(run, run.trials, most=1)
        assert (looked.finalists, looked.missed) == ([], dict.fromkeys(unlucky, 0.99))
        winner, histories = finalists.choose(run)
        assert winner is not None
        assert winner.trial == best[4]
        assert [h["plan_key"] for h in histories] == [best[4].plan.key]


@pytest.mark.usefixtures("own_task")
def test_of_a_search_the_best_plan_is_taken_that_is_fast_enough_as_it_would_be_handed_over(
    cache: Path, tmp_path: Path
) -> None:
    words = {"final_mode": "verify", "finalists": 2, "target_speedup": None}
    with a_run(tmp_path / "run", cache, words, widths=(20, 16, 12, 8, 4)) as (run, trials, _):
        best = sorted(trials, key=lambda t: -t.score.reward)
        quick = {"met": True, "firm": True, "share": 1.0, "doubt": None}
        slow = {"met": False, "firm": False, "share": 0.99, "said": "1.98x"}
        run.folder.write_json(VERIFIED, {t.plan.key: quick for t in best})
        run.folder.write_json(SETTLED, {t.plan.key: slow for t in best})
        assert first_that_meets(run, trials) is None
        assert len(of_finalists(run)) == 5, "all were looked at, two at a time"
        known = {t.plan.key: slow for t in best} | {best[3].plan.key: slow | {"met": True, "said": "2.01x"}}
        run.folder.write_json(SETTLED, known)
        assert first_that_meets(run, trials) == best[3]
