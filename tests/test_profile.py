"""`profile` on a tiny network with the real agent, and what others do with its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from processes import finish

from rlprune_edge.errors import UserError
from rlprune_edge.latency_profile import load_profile
from rlprune_edge.profile import kendall_tau
from rlprune_edge.records import PruningSpace

TASK = ["--task", "own_task:Bars"]


def run(words: list[str], cache: Path, code: int = 0) -> str:
    returned, out, err = finish(words, cache)
    assert returned == code, out + err
    return out + err


def test_a_profile_says_how_well_it_predicts_and_another_run_searches_with_it(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "profile"
    said = run(["profile", *TASK, "--plans", "3", "--held-out", "2", "--out", str(folder)], cache)
    found = json.loads((folder / "profile.json").read_text())
    assert [e["learned"] for e in found["prediction"]] == [0, 3]
    assert all(e["held_out"] == 2 and e["mean_error_percent"] > 0 for e in found["prediction"])
    assert len(found["plans"]) == 5
    assert all(len(table["times_ns"]) > 3 and table["layers"] for table in found["tables"])
    assert {n for table in found["tables"] for n in table["groups"]} == set(found["groups"])
    assert "plans learned from" in said
    trials = [json.loads(line)["trial"] for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert [t["quality"] is not None for t in trials] == [True, *5 * [False]], "speed alone is wanted of the plans"
    assert all("score" not in t["seconds"] for t in trials[1:])
    resumed = run(["profile", "--resume", str(folder)], cache)
    assert json.loads((folder / "profile.json").read_text())["plans"] == found["plans"], "nothing is measured again"
    assert "plans learned from" in resumed
    cheap = ["--budget", "2", "--finalists", "1", "--final-mode", "reward", "--epochs", "0"]
    said = run(["compress", *TASK, *cheap, "--profile", str(folder), "--out", str(tmp_path / "run")], cache)
    assert "the widths that pay are those of" in said
    assert "probing the device" not in said
    times = json.loads((tmp_path / "run" / "staircase.json").read_text())
    assert [t["times_ns"] for t in times] == [t["times_ns"] for t in found["tables"]]
    assert "cannot read" in run(["compress", "--profile", "nowhere", "--out", str(tmp_path / "no")], cache, code=2)
    assert "cannot read" in run(["compare", "--estimate-from", "nowhere", "--out", str(tmp_path / "no")], cache, code=2)
    assert "holds no run" in run(["compress", "--warm-start", "nowhere", "--out", str(tmp_path / "no")], cache, code=2)


def test_searchers_are_compared_on_a_profile_and_nothing_is_measured(tmp_path: Path) -> None:
    cache, folder, out = tmp_path / "cache", tmp_path / "profile", tmp_path / "field"
    run(["profile", *TASK, "--plans", "4", "--held-out", "2", "--out", str(folder)], cache)
    found = json.loads((folder / "profile.json").read_text())
    words = ["--target-speedup", "1.2", "--budget", "8", "--seeds", "2", "--agents", "random,knapsack"]
    # a home without any device's files: were one asked, it would leave some
    fresh = tmp_path / "fresh"
    said = run(["compare", *TASK, *words, "--estimate-from", str(folder), "--out", str(out)], fresh)
    assert "nothing is measured" in said
    assert "probing the device" not in said
    assert not (fresh / "agent").exists()
    trials = [json.loads(line)["trial"] for line in (out / "trials.jsonl").read_text().splitlines()]
    assert {t["measurement"]["source"] for t in trials} == {"estimate"}
    assert trials[0]["measurement"]["latency_ms"]["value"] == found["latency_ms"]
    assert all(t["artifact"] is None and not {"export", "measure"} & set(t["seconds"]) for t in trials)
    largest = found["prediction"][-1]["largest_error_percent"] / 100
    for t in trials[1:]:
        latency = t["measurement"]["latency_ms"]
        assert latency["high"] == pytest.approx(latency["value"] * (1 + largest))
    compared = json.loads((out / "compare.json").read_text())
    assert compared["request"]["source"] == "estimate"
    assert compared["request"]["mode"] is None
    assert {a["device_seconds"] for a in compared["agents"]} == {0.0}
    for page in ("compare.md", "compare.html"):
        text = (out / page).read_text()
        assert "local (an estimate, not measured)" in text
        assert "nothing is measured" in text
    before = (out / "searches.jsonl").read_bytes()
    assert "--finish measures" in run(["compare", "--resume", str(out), "--finish", "random"], fresh, code=2)
    run(["compare", "--resume", str(out), "--agents", "greedy"], fresh)
    assert (out / "searches.jsonl").read_bytes().startswith(before)
    new = ["compare", *TASK, "--estimate-from", str(folder), "--out", str(tmp_path / "no")]
    assert "--device-seconds is about a device" in run([*new, "--device-seconds", "5"], fresh, code=2)
    assert "--finish measures" in run([*new, "--finish", "random"], fresh, code=2)
    assert "--device is about a device" in run([*new, "--device", "linux"], fresh, code=2)
    assert f"--estimate-from {folder}" in compared["request"]["command"]
    again = ["compare", "--resume", str(out), "--estimate-from", str(folder)]
    assert "--estimate-from cannot change it" in run(again, fresh, code=2)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "groups": {}}'])
def test_what_is_no_profile_is_refused_in_words(text: str, tmp_path: Path, space: PruningSpace) -> None:
    file = tmp_path / "profile.json"
    with pytest.raises(UserError, match="cannot read"):
        load_profile(file, space)
    file.write_text(text)
    with pytest.raises(UserError, match=r"is not a profile|format 2|another model"):
        load_profile(tmp_path, space)


def test_kendalls_tau_of_known_orders() -> None:
    order = np.array([1.0, 2.0, 3.0, 4.0])
    assert kendall_tau(order, order) == 1.0
    assert kendall_tau(order, -order) == -1.0
    assert kendall_tau(order, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(4 / 6)
