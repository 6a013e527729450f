"""The journal survives being killed, and says where it is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from samples import a_trial

from rlprune_edge.errors import UserError
from rlprune_edge.journal import Journal
from rlprune_edge.records import Failure, PruningSpace


def test_what_was_appended_comes_back_equal(tmp_path: Path, space: PruningSpace) -> None:
    journal = Journal(tmp_path / "trials.jsonl")
    good = journal.append(a_trial(0, space.uncut()))
    bad = a_trial(1, space.plan({"a": 8}), quality=None, measurement=None, failure=Failure("oom", "no memory"))
    journal.append(bad)
    again = Journal(tmp_path / "trials.jsonl")
    assert again.trials == (good, bad)
    assert again.find(bad.plan.key) == bad
    assert again.find("unknown") is None


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path, space: PruningSpace) -> None:
    """Power cut in the middle of a write: the whole trials stay, the half one is as if it had not been."""
    path = tmp_path / "trials.jsonl"
    journal = Journal(path)
    journal.append(a_trial(0, space.uncut()))
    whole = path.read_bytes()
    journal.append(a_trial(1, space.plan({"a": 8})))
    path.write_bytes(path.read_bytes()[:-40])
    again = Journal(path)
    assert len(again.trials) == 1
    assert path.read_bytes() == whole
    again.append(a_trial(1, space.plan({"a": 12})))
    assert [t.plan.widths["a"] for t in Journal(path).trials] == [16, 12]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"format": 1, "trial": {}}', "line 2 is damaged"),
        ("nonsense", "line 2 is damaged"),
        ('{"format": 9}', "format 9"),
    ],
)
def test_damage_is_named(tmp_path: Path, space: PruningSpace, line: str, says: str) -> None:
    path = tmp_path / "trials.jsonl"
    Journal(path).append(a_trial(0, space.uncut()))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=says):
        Journal(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_is_a_clear_error_and_leaves_whole_lines(tmp_path: Path, space: PruningSpace) -> None:
    path = tmp_path / "trials.jsonl"
    journal = Journal(path)
    path.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"No space left.*\n.*--resume"):
        journal.append(a_trial(0, space.uncut()))
    assert journal.trials == ()


def test_it_keeps_the_rungs_of_a_plan_apart(tmp_path: Path, space: PruningSpace) -> None:
    path = tmp_path / "trials.jsonl"
    uncut, plan = a_trial(0, space.uncut()), space.plan({"a": 8})
    first, second = a_trial(1, plan), replace(a_trial(2, plan), rung=1)
    journal = Journal(path)
    for trial in (uncut, first, second):
        journal.append(trial)
    read = Journal(path)
    assert read.find(plan.key) == first
    assert read.find(plan.key, rung=1) == second
    assert read.find(plan.key, rung=2) is None
    assert read.find(uncut.plan.key, rung=1) == uncut
