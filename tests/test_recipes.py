"""How finalists are fine-tuned: as prescribed, for long, or as short tests on the validation split say."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from rlprune_edge import finalists, recipes
from rlprune_edge import request as requests
from rlprune_edge.compress import prepared
from rlprune_edge.progress import Silent
from rlprune_edge.run_folder import RunFolder

EXAMPLES = Path(__file__).parent / "examples"
BARS = {"task": "own_task:Bars", "target_speedup": 1.3}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def settings_of(words: dict[str, Any], folder: Path, cache: Path) -> tuple[Any, list[str], dict[str, Any] | None]:
    """The settings a run fine-tunes with, its notes, and what was kept of the tests."""
    request = requests.make(BARS | words)
    opened = RunFolder.reopen(folder)[0] if folder.exists() else RunFolder.create(folder, request)
    with prepared(request, opened, Silent(), cache_dir=cache) as (run, _):
        group = run.space.groups[0].name
        module = run.make_candidate(run.space.plan({group: 6}), {}).module
        before = [p.clone() for p in module.parameters()]
        recipes.choose(run, module)
        assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)), "copies are tried"
        found = recipes.fine_tuning(run), list(run.notes), opened.read_json(recipes.CHOSEN)
    opened.close()
    return found


def test_the_prescribed_recipe_is_the_tasks_and_the_users_words_win(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    settings, _, kept = settings_of({}, tmp_path / "a", cache)
    assert (settings.learning_rate, settings.epochs, settings.batch_size, settings.schedule) == (1e-4, 2, 32, "cosine")
    assert kept is None
    settings, _, _ = settings_of({"learning_rate": 3e-3, "epochs": 1, "batch_size": 8}, tmp_path / "b", cache)
    assert (settings.learning_rate, settings.epochs, settings.batch_size) == (3e-3, 1, 8)
    settings, _, _ = settings_of({"recipe": "long"}, tmp_path / "c", cache)
    assert settings.epochs == 20


def test_fine_tuning_begins_with_layers_fitted_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    for wanted in (True, False):
        request = requests.make(BARS | {"reconstruction": wanted})
        folder = RunFolder.create(tmp_path / str(wanted), request)
        with prepared(request, folder, Silent(), cache_dir=cache) as (run, _):
            plan = run.space.plan({group.name: group.levels[-1] for group in run.space.groups})
            healed, begun = run.make_candidate(plan, {}).module, recipes.start(run, plan)
            losses = [run.task.score(network, "search").loss for network in (healed, begun)]
            alike = all(torch.equal(a, b) for a, b in zip(healed.parameters(), begun.parameters(), strict=True))
            assert alike == (not wanted)
            assert losses[1] < losses[0] if wanted else losses[1] == losses[0]
            before = [p.clone() for p in begun.parameters()]
            for parameter in begun.parameters():
                parameter.data.zero_()  # whoever trains it trains a copy
            for _ in range(2):  # as kept, and made anew
                again = recipes.start(run, plan)
                assert all(torch.equal(a, b) for a, b in zip(again.parameters(), before, strict=True))
                run.starts.clear()
        folder.close()


def test_auto_takes_what_did_best_on_validation_and_a_resumed_run_keeps_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(recipes, "LEAST_STEPS", 4)
    words = {"recipe": "auto", "recipe_minutes": 0.5}
    settings, notes, kept = settings_of(words, tmp_path / "auto", cache)
    assert kept is not None
    tried = kept["tried"]
    assert [t["learning_rate"] for t in tried[:4]] == pytest.approx([1e-4 * f for f in recipes.RATES])
    assert {t["schedule"] for t in tried} == set(recipes.SCHEDULES)
    alike = [t for t in tried if t["steps"] == tried[-1]["steps"]]
    best = min(alike, key=lambda t: t["loss"])
    assert (settings.learning_rate, settings.schedule) == (best["learning_rate"], best["schedule"])
    assert settings.learning_rate > 1e-4, "1e-4 moves little in so few steps"
    assert "was the best of 6 settings" in " ".join(notes)
    monkeypatch.setattr(recipes, "short_test", None)  # nothing is tried again
    again, notes, _ = settings_of(words, tmp_path / "auto", cache)
    assert again == settings
    assert "was the best of 6 settings" in " ".join(notes)


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(Exception, match="--recipe fast is not known: choose prescribed, long, auto"):
        requests.make({"recipe": "fast"})


def test_short_fine_tunings_with_two_seeds_put_finalists_in_order_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(recipes, "LEAST_STEPS", 4)
    folder = RunFolder.create(tmp_path / "run", requests.make(BARS | {"search_mode": "brief"}))
    with prepared(requests.make(BARS | {"search_mode": "brief"}), folder, Silent(), cache_dir=cache) as (run, _):
        groups = [g.name for g in run.space.groups]
        trials = [run.evaluate(run.space.plan(dict.fromkeys(groups, width))) for width in (2, 20)]
        ordered = finalists._in_order(run, trials)
        losses = folder.read_json(finalists.SHORT)
        assert {key: len(found) for key, found in losses.items()} == {t.plan.key: finalists.SEEDS for t in trials}
        means = [sum(losses[t.plan.key]) for t in ordered]
        assert means == sorted(means)
        assert len(set(losses[trials[1].plan.key])) == finalists.SEEDS, "each seed sees the data in another order"
        monkeypatch.setattr(recipes, "short_test", None)  # nothing is tried again
        assert finalists._in_order(run, trials) == ordered
    folder.close()


@pytest.mark.parametrize(
    ("words", "drop", "spoken"),
    [
        ({}, 2.5, True),
        ({}, 0.5, False),
        ({}, -1.0, False),
        ({"recipe": "auto"}, 2.5, False),
        ({"learning_rate": 1e-3}, 2.5, False),
    ],
)
def test_where_the_prescribed_recipe_leaves_points_another_is_named(
    words: dict[str, Any], drop: float, spoken: bool, tmp_path: Path
) -> None:
    request = requests.make(BARS | words)
    folder = tmp_path / "a run"
    said = recipes.advice(request, folder, drop)
    assert (said is not None) == spoken
    if said is not None:
        assert said.startswith("2.50 points")
        folder.mkdir()
        request.save(folder)
        typed = shlex.split(said[said.index("rlprune-edge compress") :])
        config, recipe = Path(typed[typed.index("--config") + 1]), typed[typed.index("--recipe") + 1]
        assert requests.make({"recipe": recipe}, config) == requests.make(BARS | {"recipe": "auto"})
