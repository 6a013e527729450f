"""`compare` on a tiny network, with the real agent: shared evaluations, own accounts, killed, resumed, refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from processes import finish, start
from typer.testing import CliRunner

from rlprune_edge.cli import app
from rlprune_edge.comparison import FINISHED, NAME, Search, load_finished, load_searches
from rlprune_edge.errors import UserError
from rlprune_edge.journal import Journal
from rlprune_edge.request import AGENTS

WORDS = ["--task", "own_task:Bars", "--target-speedup", "1.2", "--budget", "9", "--seeds", "2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network is trained once, and the same graph keeps its measured latency."""
    return tmp_path_factory.mktemp("cache")


def run(words: list[str], cache: Path, code: int = 0) -> str:
    returned, out, err = finish(["compare", *words], cache)
    assert returned == code, out + err
    return out + err


def steps(searches: tuple[Search, ...]) -> dict[tuple[str, int], list[str]]:
    return {(s.agent, s.seed): [step.key for step in s.steps] for s in searches}


def test_every_search_has_its_own_account_and_every_network_is_evaluated_once(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "field"
    said = run([*WORDS, "--seeds", "1", "--agents", ",".join(AGENTS), "--out", str(folder)], cache)
    searches = load_searches(folder / NAME)
    assert [(s.agent, s.seed) for s in searches] == [(a, 0) for a in AGENTS]
    keys = [trial.plan.key for trial in Journal(folder / "trials.jsonl").trials]
    assert len(set(keys)) == len(keys)
    assert {key for found in steps(searches).values() for key in found} == set(keys[1:])
    for search in searches:
        assert search.steps[-1].spent <= 9
        assert search.steps[0].spent == search.probes + 1
        assert (search.probes > 0) == (search.agent in ("ppo", "knapsack"))
        assert search.probes <= 3, "at most 0.4 of the budget"
        ms = {
            t.plan.key: t.measurement.latency_ms.value for t in Journal(folder / "trials.jsonl").trials if t.measurement
        }
        assert all(step.latency_ms == ms[step.key] for step in search.steps if step.latency_ms)
    assert "compare.html" in said
    found = json.loads((folder / "compare.json").read_text())
    assert {a["agent"] for a in found["agents"]} == set(AGENTS)
    before = (folder / "compare.md").read_text()
    (folder / "compare.md").unlink()
    run(["--render", str(folder)], cache)
    assert (folder / "compare.md").read_text() == before
    assert "start a new" not in run(["--resume", str(folder)], cache), "nothing is left to do"
    assert "holds a comparison" in finish(["compress", "--resume", str(folder)], cache)[2]


def test_the_best_plans_are_fine_tuned_where_that_is_asked_for(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "finished"
    run([*WORDS, "--agents", "uniform,random", "--final-mode", "reward", "--out", str(folder)], cache)
    assert json.loads((folder / "compare.json").read_text())["finished"] == []
    run(["--resume", str(folder), "--finish", "uniform"], cache)
    lines = load_finished(folder / FINISHED)
    assert [(f.agent, f.seed) for f in lines] == [("uniform", 0), ("uniform", 1)]
    first, second = lines
    assert replace(second, seed=0) == first, "the same plan is not trained twice"
    found_by = steps(load_searches(folder / NAME))
    assert first.plan_key in found_by["uniform", 0]
    assert found_by["uniform", 0] == found_by["uniform", 1], "nothing about it is random"
    assert first.speedup_ci[0] <= first.speedup <= first.speedup_ci[1]
    assert first.drop == pytest.approx(first.before - first.after)
    assert first.mode == "reward"
    found = json.loads((folder / "compare.json").read_text())
    assert [f["drop"] for f in found["finished"]] == [first.drop, first.drop]
    assert "--finish uniform" in found["request"]["command"]
    for page in ("compare.md", "compare.html"):
        assert "Fine-tuned with recipe prescribed" in (folder / page).read_text()
    before = (folder / FINISHED).read_bytes(), load_searches(folder / NAME)
    run(["--resume", str(folder), "--agents", "random,gp", "--seeds", "3"], cache)
    assert (folder / FINISHED).read_bytes().startswith(before[0]), "what is done stays"
    searches = load_searches(folder / NAME)
    assert searches[: len(before[1])] == before[1]
    assert {(s.agent, s.seed) for s in searches} == {(a, n) for a in ("uniform", "random", "gp") for n in (0, 1, 2)}
    assert len(load_finished(folder / FINISHED)) == 3, "--finish uniform holds for its third seed, too"
    returned, _, err = finish(["compare", "--resume", str(folder), "--seeds", "2"], cache)
    assert (returned, "has 3 seeds already" in err) == (2, True)


def test_kill_9_then_resume_comes_to_the_same_searches(cache: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = [*WORDS, "--agents", "random,ppo-cold"]
    run([*words, "--out", str(whole)], cache)
    process = start(["compare", *words, "--out", str(killed)], cache)
    deadline = time.monotonic() + 300
    while len(load_searches(killed / NAME)) < 1:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    reached = len(load_searches(killed / NAME))
    assert reached < 4, "it has to be killed in the middle"
    run(["--resume", str(killed)], cache)
    assert steps(load_searches(killed / NAME)) == steps(load_searches(whole / NAME))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--agents", "ppo,sac"], "no agent called 'sac'"),
        (["--agents", "ppo,ppo"], "each once"),
        (["--agents", "gp:no-masks"], "only ppo has parts"),
        (["--agents", "gp,tpe", "--finish", "gp,sac"], "--finish sac: not among the agents gp, tpe"),
        (["--resume", "nowhere"], "holds no run"),
        (["--render", "nowhere"], "nowhere"),
        (["--resume", "nowhere", "--budget", "3"], "cannot change it"),
    ],
)
def test_bad_input_is_answered_and_leaves_nothing(words: list[str], complaint: str, tmp_path: Path) -> None:
    out = [] if words[0] in ("--resume", "--render") else ["--out", str(tmp_path / "new")]
    done = CliRunner().invoke(app, ["compare", *words, *out])
    assert isinstance(done.exception, UserError)
    assert complaint in str(done.exception)
    assert list(tmp_path.iterdir()) == []
