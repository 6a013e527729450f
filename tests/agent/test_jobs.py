"""The journal: nothing done twice, nothing lost, whatever moment the power goes."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlprune_agent.jobs import QUEUED_MAX, Jobs
from rlprune_agent.protocol import Failure, Message

_SPEC: dict[str, Any] = {"kind": "sweep", "models": ["a" * 64], "cap_seconds": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def jobs(folder: Path) -> Iterator[Jobs]:
    jobs = _opened(folder)
    yield jobs
    jobs.close()


def _opened(folder: Path, boot_id: str = "boot-1") -> Jobs:
    jobs = Jobs(folder, boot_id)
    assert jobs.open()
    return jobs


def _id(number: int) -> str:
    return f"{number:016x}"


def _done(jobs: Jobs, number: int, **result: Any) -> None:
    jobs.submit(_id(number), 1, _SPEC)
    job = jobs.take(1)
    assert job is not None
    jobs.finish(job, Message({"ok": True, **result}, b"body"))


def _failure(jobs: Jobs, number: int) -> str:
    job = jobs.find(_id(number))
    assert job.state == "done"
    return str(jobs.result(job).header["kind"])


def test_the_same_id_is_the_same_job(jobs: Jobs) -> None:
    first = jobs.submit(_id(1), 1, _SPEC)
    assert jobs.submit(_id(1), 1, {"kind": "another"}) is first
    assert jobs.take(1) is first
    assert jobs.take(0.01) is None


def test_a_result_stays_until_it_is_acknowledged_and_is_never_made_again(folder: Path, jobs: Jobs) -> None:
    _done(jobs, 1, value=42)
    jobs.close()
    again = _opened(folder)
    result = again.result(again.find(_id(1)))
    assert (result.header["value"], result.body) == (42, b"body")
    again.acknowledge(_id(1))
    again.acknowledge(_id(1))
    assert list(folder.glob("*.result")) == []
    again.close()
    for jobs_of_a_start in (again, _opened(folder)):
        jobs_of_a_start.open()
        with pytest.raises(Failure, match="acknowledged already"):
            jobs_of_a_start.submit(_id(1), 1, _SPEC)
        jobs_of_a_start.close()


@pytest.mark.parametrize(("boot_id", "kind"), [("boot-1", "agent_crashed"), ("boot-2", "device_rebooted")])
def test_a_job_that_ran_when_the_agent_went_down_says_what_happened(folder: Path, boot_id: str, kind: str) -> None:
    jobs = _opened(folder)
    jobs.submit(_id(1), 1, _SPEC)
    jobs.submit(_id(2), 1, _SPEC)
    assert jobs.take(1) is not None
    jobs.close()
    again = _opened(folder, boot_id)
    assert _failure(again, 1) == kind
    if boot_id == "boot-1":  # a job that waited goes on waiting, but not over a boot, which ended its lease
        waiting = again.take(1)
        assert waiting is not None
        assert (waiting.id, waiting.spec) == (_id(2), _SPEC)
    else:
        assert _failure(again, 2) == kind
    again.close()


def test_half_a_line_at_the_end_of_the_journal_is_passed_over(folder: Path) -> None:
    jobs = _opened(folder)
    _done(jobs, 1, value=1)
    jobs.close()
    with open(folder / "journal.jsonl", "ab") as file:
        file.write(b'{"job": "00000000000000')
    again = _opened(folder)
    assert again.result(again.find(_id(1))).header["value"] == 1
    again.close()


def test_the_journal_of_another_format_is_not_guessed_at(folder: Path) -> None:
    jobs = _opened(folder)
    _done(jobs, 1)
    jobs.close()
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace('{"format": 1}', '{"format": 2}', 1))
    again = _opened(folder)
    assert again.knows(_id(1)) is False
    assert list(folder.glob("*.result")) == []
    again.close()


def test_a_result_that_rotted_on_disk_is_a_failure_to_be_tried_again(folder: Path, jobs: Jobs) -> None:
    _done(jobs, 1)
    (folder / f"{_id(1)}.result").write_bytes(b"rotten")
    with pytest.raises(Failure) as caught:
        jobs.result(jobs.find(_id(1)))
    assert (caught.value.kind, caught.value.details["state"]) == ("agent_crashed", "done")


def test_one_runs_four_wait_and_the_next_is_told_to_come_back(jobs: Jobs) -> None:
    for number in range(1 + QUEUED_MAX):
        jobs.submit(_id(number), 1, _SPEC)
    assert jobs.take(1) is not None
    assert [jobs.position(jobs.find(_id(n))) for n in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(Failure) as caught:
        jobs.submit(_id(9), 1, _SPEC)
    assert (caught.value.kind, caught.value.details["retry_after_s"]) == ("busy", 5.0)


def test_jobs_of_a_lease_that_ended_are_ended(jobs: Jobs) -> None:
    for number, token in enumerate((1, 1, 2)):
        jobs.submit(_id(number), token, _SPEC)
    running = jobs.take(1)
    assert running is not None
    assert running.cancel is not None
    jobs.stop_others(2, Failure("lease_lost", "over"))
    assert running.cancel.failure is not None
    assert _failure(jobs, 1) == "lease_lost"
    assert [job.id for job in jobs.unfinished()] == [_id(0), _id(2)]


def test_two_processes_do_not_do_jobs_in_one_folder(folder: Path, jobs: Jobs) -> None:
    other = Jobs(folder, "boot-1")
    assert other.open() is False
    assert other.somebody_has_it() is True
    jobs.close()
    assert other.somebody_has_it() is False
    assert other.open() is True
    other.close()


def test_whoever_watches_hears_of_every_change(jobs: Jobs) -> None:
    with jobs.watched() as changed:
        assert select.select([changed], [], [], 0)[0] == []
        _done(jobs, 1)
        assert select.select([changed], [], [], 0)[0] == [changed]


def test_results_nobody_fetches_do_not_fill_the_disk(folder: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlprune_agent.jobs._RESULTS_MAX", 3)
    for number in range(6):
        _done(jobs, number)
    assert sorted(path.stem for path in folder.glob("*.result")) == [_id(n) for n in (3, 4, 5)]
    with pytest.raises(Failure, match="nothing of this job"):
        jobs.find(_id(0))


def test_the_journal_is_rewritten_before_it_grows_large(
    folder: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlprune_agent.jobs._JOURNAL_BYTES", 100_000)
    large = {**_SPEC, "models": ["a" * 64] * 800}  # 50 kB a job
    for number in range(8):
        jobs.submit(_id(number), 1, large)
        job = jobs.take(1)
        assert job is not None
        jobs.finish(job, Message({"ok": True}, b""))
        jobs.acknowledge(job.id)
    assert (folder / "journal.jsonl").stat().st_size < 110_000
    jobs.close()
    again = _opened(folder)
    with pytest.raises(Failure, match="acknowledged already"):
        again.submit(_id(7), 1, _SPEC)
    again.close()


def test_a_result_the_disk_does_not_take_is_still_handed_over(folder: Path, jobs: Jobs) -> None:
    jobs.submit(_id(1), 1, _SPEC)
    job = jobs.take(1)
    assert job is not None
    (folder / f"{_id(1)}.result").mkdir()  # nothing can be put in its place
    jobs.finish(job, Message({"ok": True, "value": 7}, b""))
    assert jobs.result(jobs.find(_id(1))).header["value"] == 7


def test_a_lease_given_back_takes_along_its_own_jobs_only(jobs: Jobs) -> None:
    for number, token in enumerate((1, 2)):
        jobs.submit(_id(number), token, _SPEC)
    jobs.stop_those_of(1, Failure("lease_lost", "over"))
    assert [job.id for job in jobs.unfinished()] == [_id(1)]
