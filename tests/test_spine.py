"""The whole run on a tiny network, with the real agent: met, infeasible, killed, interrupted, refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest

from rlprune_edge import request as requests
from rlprune_edge.bundle.verify import verify
from rlprune_edge.compress import compress, prepared
from rlprune_edge.deliver import outcome
from rlprune_edge.journal import Journal
from rlprune_edge.progress import Silent
from rlprune_edge.records import Plan, Target
from rlprune_edge.run_folder import RunFolder

pytestmark = pytest.mark.alone

BARS = [
    "--task",
    "own_task:Bars",
    "--target-speedup",
    "1.3",
    "--budget",
    "10",
    "--finalists",
    "1",
    "--search-mode",
    "brief",
    "--final-mode",
    "reward",
]
# Without a target the agent tries more of the few plans that pay: something to be killed in the middle of.
WEIGHTED = [*BARS[:2], *BARS[4:]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all runs here: the network is trained once, and the same graph keeps its measured latency."""
    return tmp_path_factory.mktemp("cache")


def start(words: list[str], cache: Path) -> processes.Command:
    return processes.start(["compress", *words], cache)


def finish(words: list[str], cache: Path) -> tuple[int, str, str]:
    return processes.finish(["compress", *words], cache)


def meet(words: list[str], cache: Path) -> tuple[int, str, str]:
    return processes.finish_within_target(["compress", *words], cache)


def plans(folder: Path) -> list[str]:
    return [t.plan.key for t in Journal(folder / "trials.jsonl").trials]


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing disturbed: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = meet([*BARS, "--out", str(folder)], cache)
    assert code == 0, out + err
    return folder, out


def test_a_run_leaves_a_report_and_a_bundle_that_verifies(whole: tuple[Path, str]) -> None:
    folder, out = whole
    report = json.loads((folder / "report.json").read_text())
    assert report["status"] == "met"
    assert report["source"] == "local"
    assert report["compressed"]["speedup"] >= 1.3
    assert report["compressed"]["parameters"] < report["baseline"]["parameters"]
    assert report["compressed"]["drop"] == pytest.approx(report["baseline"]["metric"] - report["compressed"]["metric"])
    assert report["spent"]["candidates"] <= 10
    assert 0 <= report["spent"]["device_idle_share"] < 1
    assert report["spent"]["seconds_per_candidate"] > 0
    assert "The device was idle for" in (folder / "report.html").read_text()
    ms = report["search"]["preprocessing_ms"]
    assert ms == json.loads((folder / "preprocessing.json").read_text())["ms"] > 0
    searched_for = re.fullmatch(r"a speed-up of ([\d.]+)x", report["search"]["target"])
    assert searched_for is not None
    assert float(searched_for[1]) > report["target"]["speedup"], "networks are timed without it"
    assert report["baseline"]["split"] == "test"
    assert any("golden" in line for line in verify(folder / "bundle"))
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    assert manifest["measurement"]["source"] == "local"
    assert manifest["trial"]["plan"]["widths"]
    assert manifest["postprocessing"] == {"kind": "softmax", "axis": -1}
    assert manifest["inputs"][0]["shape"][1:] == [12, 12, 1], "raw pixels, as an app has them"
    assert str(folder) not in json.dumps(manifest)
    assert "faster on local" in out
    assert (folder / "report.html").read_text().startswith("<!")


def test_every_trial_went_through_every_stage(whole: tuple[Path, str]) -> None:
    trials = Journal(whole[0] / "trials.jsonl").trials
    assert [t.number for t in trials] == list(range(len(trials)))
    for trial in trials:
        assert set(trial.seconds) == {"cut", "check", "recover", "score", "export", "parity", "measure"}
        assert trial.measurement is not None
        assert trial.measurement.processes[0].candidate_ns
    assert trials[0].measurement is not None
    assert trials[0].measurement.reference_sha256 is None
    assert all(t.measurement and t.measurement.speedup for t in trials[1:])


def test_the_runs_own_request_repeats_it(whole: tuple[Path, str], cache: Path, tmp_path: Path) -> None:
    folder, again = whole[0], tmp_path / "again"
    code, out, err = meet(["--config", str(folder / "request.toml"), "--out", str(again)], cache)
    assert code == 0, out + err
    assert (again / "request.toml").read_text() == (folder / "request.toml").read_text()
    assert plans(again) == plans(folder)
    keys = [json.loads((run / "report.json").read_text())["compressed"]["plan_key"] for run in (folder, again)]
    assert keys[0] == keys[1]


def test_kill_9_then_resume_gives_the_same_journal(cache: Path, tmp_path: Path) -> None:
    """F6: what was measured before is not measured again."""
    whole = tmp_path / "whole"
    assert finish([*WEIGHTED, "--out", str(whole)], cache)[0] == 0
    folder = tmp_path / "killed"
    process = start([*WEIGHTED, "--out", str(folder)], cache)
    deadline = time.monotonic() + 120
    journal = folder / "trials.jsonl"
    while time.monotonic() < deadline and (not journal.exists() or journal.read_bytes().count(b"\n") < 4):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    reached = len(plans(folder))
    before = journal.read_bytes()
    assert 4 <= reached < len(plans(whole)), "it has to be killed in the middle of the search"
    code, out, err = finish(["--resume", str(folder)], cache)
    assert code == 0, out + err
    assert plans(folder) == plans(whole)
    assert journal.read_bytes().startswith(before)
    spent = json.loads((folder / "report.json").read_text())["spent"]
    assert spent["seconds_per_candidate"] > 0
    assert 0 <= spent["device_idle_share"] <= 1, "1 where all was measured for the first run"
    searched = json.loads((folder / "time.json").read_text())["candidates"]
    assert spent["candidates"] - 1 <= searched <= spent["candidates"], "the one when it was killed may be missing"
    code, out, err = finish(["--resume", str(folder)], cache)
    assert code == 0, out + err
    again = json.loads((folder / "report.json").read_text())["spent"]
    assert again["seconds_per_candidate"] == spent["seconds_per_candidate"], "nothing was searched"
    assert again["wall_seconds"] > spent["wall_seconds"]
    assert out.rstrip().endswith("since it was resumed")


def test_ctrl_c_leaves_a_whole_journal_and_says_how_to_go_on(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "interrupted"
    process = start([*WEIGHTED, "--seed", "5", "--out", str(folder)], cache)
    deadline = time.monotonic() + 120
    journal = folder / "trials.jsonl"
    while time.monotonic() < deadline and (not journal.exists() or journal.read_bytes().count(b"\n") < 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume {folder}" in out
    assert len(Journal(journal).trials) >= 2


def test_an_infeasible_target_is_said_with_the_nearest_candidates(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "infeasible"
    words = ["--task", "own_task:Bars", "--target-speedup", "200", "--budget", "4", "--agent", "random"]
    code, out, _ = finish([*words, "--out", str(folder)], cache)
    report = json.loads((folder / "report.json").read_text())
    assert code == 4
    assert report["status"] == "infeasible"
    assert report["compressed"] is None
    assert 1 <= len(report["nearest"]) <= 3
    assert "nfeasible" in out
    assert not (folder / "bundle").exists()


def test_json_prints_one_document_and_nothing_else(cache: Path, tmp_path: Path) -> None:
    # in an interpreter of its own, where nothing was imported before; without a target that it could miss
    words = [*WEIGHTED, "--agent", "uniform", "--budget", "6", "--json", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "rlprune_edge", "compress", *words],
        cwd=processes.EXAMPLES,
        env={**os.environ, "RLPRUNE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    out, err = done.stdout, done.stderr
    assert done.returncode == 0, err
    report = json.loads(out)
    assert report["search"]["agent"] == "uniform"
    assert "run folder" in err


def test_an_agent_that_keeps_dying_stops_the_run_with_3_and_costs_no_trial(cache: Path, tmp_path: Path) -> None:
    """An infrastructure fault is nobody's reward: the journal holds no trial of it, and the run says how to go on."""
    folder = tmp_path / "dying"
    process = start([*WEIGHTED, "--seed", "7", "--out", str(folder)], cache)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        for child in children_of(process.pid):
            if any(b"agent-" in word for word in child.read_bytes().split(b"\0")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child.parent.name), signal.SIGKILL)
        time.sleep(0.02)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "--resume" in err
    assert Journal(folder / "trials.jsonl").trials == ()


def children_of(pid: int) -> list[Path]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                (stat.parent / "cmdline").read_bytes()
                found.append(stat.parent / "cmdline")
        except (OSError, ValueError):
            continue
    return found


def run_in_process(words: dict[str, Any], folder: Path) -> tuple[RunFolder, requests.Request]:
    request = requests.make(words)
    return RunFolder.create(folder, request), request


def test_the_test_split_is_read_once_for_each_network(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(processes.EXAMPLES)
    seen: list[Any] = []

    class Watcher(Silent):
        def stage(self, text: str) -> None:
            seen.append((text, tasks[0].reads["test"] if tasks else 0))

    import own_task

    tasks: list[Any] = []

    class Watched(own_task.Bars):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            tasks.append(self)

    own_task.Watched = Watched  # type: ignore[attr-defined]
    # no target, which it could miss
    words = {"task": "own_task:Watched", "budget": 8, "finalists": 1, "search_mode": "brief", "final_mode": "reward"}
    folder, request = run_in_process(words, tmp_path / "run")
    outcome = compress(request, folder, Watcher(), cache_dir=cache)
    folder.close()
    assert outcome.status == "met"
    assert tasks[0].reads["test"] == 2  # the uncut and the compressed network, once each
    before = [count for text, count in seen if not text.startswith(("test split", "bundle"))]
    assert set(before) == {0}, "nothing before the end may look at the test split"


def test_a_known_plan_costs_nothing_and_the_budget_is_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlprune_edge.errors import BudgetSpent

    monkeypatch.syspath_prepend(processes.EXAMPLES)
    folder, request = run_in_process({"task": "own_task:Bars", "budget": 1}, tmp_path / "run")
    with prepared(request, folder, Silent(), cache_dir=cache) as (run, tables):
        assert tables
        assert tables[0].times_ns[run.space.groups[0].width] > 0
        plan = run.space.plan({run.space.groups[0].name: 8})
        first = run.evaluate(plan)
        assert run.evaluate(plan) is first
        assert len(run.journal.trials) == 2
        with pytest.raises(BudgetSpent):
            run.evaluate(run.space.plan({run.space.groups[0].name: 4}))
    folder.close()


def test_while_a_board_times_one_candidate_the_next_is_made(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlprune_edge.errors import BudgetSpent

    monkeypatch.syspath_prepend(processes.EXAMPLES)
    folder, request = run_in_process({"task": "own_task:Bars", "budget": 4}, tmp_path / "run")
    with prepared(request, folder, Silent(), cache_dir=cache) as (run, _):
        # this machine under the name of a board: what happens meanwhile is the same, the figures are not looked at, so
        # that others may take its clock for a moment, for which a board would be refused
        limits = run.device.profile.limits.model_copy(update={"max_clock_loss": 1000.0})
        run.device.profile = run.device.profile.model_copy(update={"source": "emulated", "limits": limits})
        happened: list[tuple[str, str]] = []
        make, measure = run.make_candidate, run.measure

        def making(plan: Plan, seconds: dict[str, float]) -> Any:
            happened.append(("made", plan.key))
            return make(plan, seconds)

        def measuring(*words: Any, **options: Any) -> Any:
            happened.append(("begun", threading.current_thread().name))
            time.sleep(0.5)  # longer than the next one takes to be made
            try:
                return measure(*words, **options)
            finally:
                happened.append(("measured", ""))

        monkeypatch.setattr(run, "make_candidate", making)
        monkeypatch.setattr(run, "measure", measuring)
        group = run.space.groups[0].name
        some = [run.space.plan({group: n}) for n in (20, 16, 16, 12, 8, 4)]
        coming = run.evaluate_all([*some, run.space.uncut()])
        trials = [next(coming) for _ in range(5)]
        assert [t.plan for t in trials] == some[:5]
        assert trials[1] is trials[2], "one that is being timed is not made again"
        with pytest.raises(BudgetSpent):
            next(coming)
        assert [t.plan for t in run.journal.trials[1:]] == [some[i] for i in (0, 1, 3, 4)]
        order = [what for what, _ in happened]
        assert order.count("made") == order.count("measured") == 4
        first = order.index("measured")
        assert order[:first].count("made") == 2, "the second was made while the first was timed"
        assert {thread for what, thread in happened if what == "begun"} == {"measure_0"}
    folder.close()


def test_a_file_from_a_wrong_template_is_found_and_exported_truly(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the template of a topology says is believed until ONNX Runtime and torch differ, and then no more."""
    from rlprune_edge.export.recipes import Recipe

    monkeypatch.syspath_prepend(processes.EXAMPLES)
    folder, request = run_in_process({"task": "own_task:Bars", "budget": 4}, tmp_path / "run")
    with prepared(request, folder, Silent(), cache_dir=cache) as (run, _):
        group = run.space.groups[0].name
        for width in (20, 16):
            run.evaluate(run.space.plan({group: width}))
        kept = run.templates._kept[()]
        assert kept.recipes <= run.templates._recipes, "the uncut model made the template, a candidate proved it"
        wrong = Recipe("as it is", ("1.weight",))  # BatchNorm's factors instead of the bias they are folded into
        place = next(i for i, slot in enumerate(kept._slots) if slot.recipe.names[-1] == "1.running_mean")
        kept._slots = (*kept._slots[:place], replace(kept._slots[place], recipe=wrong), *kept._slots[place + 1 :])
        run.templates._recipes.add(wrong)
        trial = run.evaluate(run.space.plan({group: 12}))
        assert () in run.templates._refused
        assert trial.failure is None
        assert trial.artifact is not None
        assert trial.artifact.max_difference < 1e-4
        assert trial.measurement is not None
    folder.close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--task", "didgits"], "digits"),
        (["--task", "nowhere:factory"], "nowhere"),
        (["--model", "resnet9000"], "resnet9000"),
        (["--task", "cifar10", "--data", "/nowhere/at/all", "--model", "resnet20:untrained"], "/nowhere/at/all"),
        (["--device", "toaster"], "toaster"),
        (["--target-speedup", "0.5"], "make it slower"),
        (["--target-speedup", "2", "--target-latency", "3ms"], "contradict"),
        (["--target-latency", "soon"], "30ms"),
        (["--budget", "0"], "at least 1 candidate"),
        (["--resume", "/nowhere/at/all"], "holds no run to resume"),
        (["--config", "/nowhere/at.toml"], "Cannot read"),
        (["--no-such-flag"], "No such option"),
        (["--out", "/proc/nothing"], "Cannot write"),
    ],
)
def test_bad_input_exits_with_2_and_a_sentence(words: list[str], says: str, cache: Path, tmp_path: Path) -> None:
    if not {"--out", "--resume"} & set(words):
        words = [*words, "--out", str(tmp_path / "run")]
    code, out, err = finish(words, cache)
    assert (code, out.count("Traceback") + err.count("Traceback")) == (2, 0)
    assert says in err


def test_a_folder_that_holds_a_run_is_not_written_over(whole: tuple[Path, str], cache: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole[0].rglob("*") if p.name != ".lock"}
    code, _, err = finish([*BARS, "--out", str(whole[0])], cache)
    assert code == 2
    assert f"--resume {whole[0]}" in err
    code, _, err = finish(["--resume", str(whole[0]), "--seed", "3"], cache)
    assert code == 2
    assert "--seed cannot change it" in err
    assert {p: p.stat().st_mtime_ns for p in whole[0].rglob("*") if p.name != ".lock"} == before


def test_report_is_rendered_again_from_the_folder(whole: tuple[Path, str], cache: Path) -> None:
    html = whole[0] / "report.html"
    first = html.read_text()
    html.unlink()
    code, _, err = processes.finish(["report", str(whole[0])], cache)
    assert code == 0, err
    assert html.read_text() == first


@pytest.mark.parametrize(
    ("drop", "allowed", "status"), [(1.4, 1.0, "infeasible"), (1.0, 1.0, "met"), (-0.3, 0.0, "met"), (9.0, None, "met")]
)
def test_a_winner_that_loses_too_much_on_test_is_not_called_met(
    drop: float, allowed: float | None, status: str
) -> None:
    assert outcome(drop, Target(speedup=2.0, max_drop=allowed)) == status


def test_a_refused_run_leaves_its_folder_free_for_the_corrected_command(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert finish(["--task", "own_task:Bar", "--out", str(folder)], cache)[0] == 2
    assert not folder.exists()


def test_without_a_target_the_terms_are_weighed_and_a_bundle_is_left(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out, err = finish([*WEIGHTED, "--budget", "4", "--out", str(folder)], cache)
    assert code == 0, out + err
    assert json.loads((folder / "report.json").read_text())["target"] == {
        "speedup": None,
        "latency_ms": None,
        "memory_mb": None,
        "max_drop": None,
    }
    assert (folder / "bundle" / "model.onnx").exists()
