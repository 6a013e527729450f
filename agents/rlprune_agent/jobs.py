"""The device's jobs: queued, done one after the other, never one twice; kept on disk until the host has the result.

Every change is on the disk before anybody is told of it. What was queued or running when the agent or the board went
down is found again at the next start: a job that ran becomes a failure that the host may try again, one that waited
goes on waiting.
"""

# journal.jsonl: {"format": 1}, then one line a change: {"job", "state": "queued" | "running" | "done" | "acked"},
#                a queued one with "token", "boot", "spec"; <job id>.result: the reply as the frames of one message

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any, Iterator

from rlprune_agent import durable
from rlprune_agent.protocol import HEADER_MAX, MESSAGE_BODY_MAX, Failure, FrameReader, Message, encode
from rlprune_agent.supervise import Cancel

QUEUED_MAX = 4

FORMAT = 1

_ID = re.compile(r"[0-9a-f]{8,64}\Z")
_RESULTS_MAX = 64
_ACKED_MAX = 1000
_JOURNAL_BYTES = 1 << 20
_RETRY_AFTER_SECONDS = 5.0
_DISK_FORMAT_SPARE = 1 << 20


class Job:
    """One job and where it stands. `state`: queued, running or done."""

    def __init__(self, job_id: str, token: int, boot_id: str, spec: dict[str, Any]) -> None:
        self.id = job_id
        self.token = token
        self.boot_id = boot_id
        self.spec = spec
        self.state = "queued"
        self.phase = "queued"
        self.cancel: Cancel | None = None
        self.unsaved: Message | None = None
        """the result, where the disk would not take it"""


def files_of(spec: dict[str, Any]) -> set[str]:
    """The files a job reads, by sha256."""
    named = [spec.get("candidate"), spec.get("reference"), *spec.get("models", ())]
    named += [*spec.get("inputs", {}).values(), *spec.get("expected", {}).values()]
    return {sha256 for sha256 in named if sha256}


class Jobs:
    """The jobs in one folder. `open` makes this process the one that does them; nobody else can until `close`."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        self._folder = durable.private_folder(folder)
        self._journal = folder / "journal.jsonl"
        self._boot_id = boot_id
        self._changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, Job] = {}
        self._acked: collections.deque[str] = collections.deque(maxlen=_ACKED_MAX)
        self._watchers: list[int] = []
        self._woken = False
        self.lock_fd: int | None = None
        """held while open; children get it as well, so that it is free only when the last of them is gone"""

    def open(self, seconds: float = 0.0) -> bool:
        """Take over the folder and what is left of earlier jobs; `False` while another process has it."""
        with self._changed:
            if self.lock_fd is not None:
                return True
            self.lock_fd = durable.lock(self._folder / "lock", seconds)
            if self.lock_fd is None:
                return False
            self._replay()
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """Leave the folder to others."""
        with self._changed:
            if self.lock_fd is not None:
                os.close(self.lock_fd)
            self.lock_fd = None
            self._jobs.clear()

    def somebody_has_it(self) -> bool:
        """Is there a process, this one or another, that does jobs here?"""
        if self.lock_fd is not None:
            return True
        fd = durable.try_lock(self._folder / "lock")
        if fd is not None:
            os.close(fd)
        return fd is None

    # ------------------------------------------------------------ asked by hosts

    def submit(self, job_id: str, token: int, spec: dict[str, Any]) -> Job:
        """The job of that id, added to the queue if it is not known. Raises `Failure`: `busy`, `disk_full`."""
        if not isinstance(job_id, str) or not _ID.match(job_id):
            raise Failure("bad_request", "submit: job_id has to be 8 to 64 hex digits")
        with self._changed:
            job = self._jobs.get(job_id)
            if job is not None:
                return job
            if job_id in self._acked:
                raise Failure("bad_request", f"submit: the result of job {job_id} was fetched and acknowledged already")
            if len(self._unfinished()) > QUEUED_MAX:
                raise Failure(
                    "busy",
                    f"one job is running and {QUEUED_MAX} are waiting; try again in {_RETRY_AFTER_SECONDS:.0f} s",
                    retry_after_s=_RETRY_AFTER_SECONDS,
                )
            job = Job(job_id, token, self._boot_id, spec)
            self._note(job, token=token, boot=job.boot_id, spec=spec)
            self._jobs[job_id] = job
            self._changed.notify_all()
            return job

    def knows(self, job_id: str) -> bool:
        """Is there a job of that id, or was there?"""
        with self._changed:
            return job_id in self._jobs or job_id in self._acked

    def find(self, job_id: Any) -> Job:
        """Raises `Failure("agent_crashed")` for a job that is not known (any more): it has to be sent again."""
        with self._changed:
            job = self._jobs.get(job_id) if isinstance(job_id, str) else None
            if job is None:
                raise Failure("agent_crashed", "the agent knows nothing of this job; its folder was emptied")
            return job

    def position(self, job: Job) -> int:
        """How many jobs come before this one."""
        with self._changed:
            waiting = self._unfinished()
            return waiting.index(job) if job in waiting else 0

    def result(self, job: Job) -> Message:
        """The reply to a job that is done. Raises `Failure("agent_crashed")` if it can no longer be read."""
        if job.unsaved is not None:
            return job.unsaved
        try:
            reader = FrameReader()
            with open(str(self._result(job.id)), "rb") as file:
                reader.feed(file.read(MESSAGE_BODY_MAX + HEADER_MAX + _DISK_FORMAT_SPARE))
            message = reader.next()
        except (OSError, Failure):
            message = None
        if message is None:
            raise Failure("agent_crashed", "the result was damaged on the device's disk", state="done")
        return message

    def acknowledge(self, job_id: Any) -> None:
        """Forget a result that the host has; its id stays known as one that was done."""
        with self._changed:
            job = self._jobs.get(job_id) if isinstance(job_id, str) else None
            if job is None:
                return
            if job.state != "done":
                raise Failure("bad_request", f"ack: job {job_id} is {job.state}, there is nothing to acknowledge")
            self._forget(job)

    def stop(self, job: Job, failure: Failure) -> None:
        """End a job that is not done, as that failure."""
        with self._changed:
            if job.state == "running" and job.cancel:
                job.cancel.set(failure)
            elif job.state == "queued":
                self.finish(job, _as_message(failure))

    def stop_others(self, token: int | None, failure: Failure) -> None:
        """End all jobs but those of the lease that holds now."""
        with self._changed:
            for job in self._unfinished():
                if job.token != token:
                    self.stop(job, failure)

    def stop_those_of(self, token: int, failure: Failure) -> None:
        """End all jobs of a lease that was given back."""
        with self._changed:
            for job in self._unfinished():
                if job.token == token:
                    self.stop(job, failure)

    @contextlib.contextmanager
    def watched(self) -> Iterator[int]:
        """A descriptor that becomes readable when anything changes; whoever reads it reads it empty."""
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        with self._changed:
            self._watchers.append(write_fd)
        try:
            yield read_fd
        finally:
            with self._changed:
                self._watchers.remove(write_fd)
            os.close(read_fd)
            os.close(write_fd)

    # ------------------------------------------------------------ asked by the one who does them

    def take(self, seconds: float) -> Job | None:
        """The next job, marked as running; `None` if none turns up within `seconds`."""
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                job = next((j for j in self._jobs.values() if j.state == "queued"), None)
                if job is not None and not self._woken:
                    return self._start(job)
                left = end - time.monotonic()
                if left <= 0 or self._woken:
                    self._woken = False
                    return None
                self._changed.wait(left)

    def wake(self) -> None:
        """End a `take` that waits, or the next one."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def finish(self, job: Job, message: Message) -> None:
        """Keep the result. If the disk does not take it, it is kept in memory, for as long as that lasts."""
        try:
            frames = b"".join(encode(message.header, message.body))
        except ValueError as error:
            message = _as_message(Failure("agent_crashed", f"the result cannot be sent: {error}"))
            frames = b"".join(encode(message.header))
        with self._changed:
            try:
                durable.replace(self._result(job.id), frames)
                job.state = "done"
                self._note(job)
            except (OSError, Failure):
                job.unsaved = message
            job.state, job.spec = "done", {}
            if job.cancel:
                job.cancel.close()
            job.cancel = None
            done = [j for j in self._jobs.values() if j.state == "done"]
            for old in done[:-_RESULTS_MAX]:
                self._forget(old)
            self._tell()

    def set_phase(self, job: Job, phase: str) -> None:
        """What the running job is at."""
        job.phase = phase

    # ------------------------------------------------------------ asked by the agent

    def unfinished(self) -> list[Job]:
        """Queued and running jobs, the running one first."""
        with self._changed:
            return self._unfinished()

    def files_in_use(self) -> set[str]:
        """What jobs that are not done will read or are reading."""
        with self._changed:
            return set().union(*(files_of(job.spec) for job in self._unfinished()))

    def _unfinished(self) -> list[Job]:
        jobs = [job for job in self._jobs.values() if job.state != "done"]
        return sorted(jobs, key=lambda job: job.state != "running")

    def _start(self, job: Job) -> Job | None:
        job.state = "running"
        try:
            self._note(job)
            job.cancel = Cancel()
        except Failure as failure:
            self.finish(job, _as_message(failure))
            return None
        except OSError as error:  # no descriptors left
            self.finish(job, _as_message(Failure("agent_crashed", f"the job cannot be started: {error.strerror}")))
            return None
        self._tell()
        return job

    def _tell(self) -> None:
        self._changed.notify_all()
        for fd in self._watchers:
            with contextlib.suppress(BlockingIOError):
                os.write(fd, b"x")

    def _result(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.result"

    def _forget(self, job: Job) -> None:
        with contextlib.suppress(Failure):
            self._note(job, state="acked")
        with contextlib.suppress(OSError):
            self._result(job.id).unlink()
        del self._jobs[job.id]
        self._acked.append(job.id)

    def _note(self, job: Job, **fields: Any) -> None:
        line = json.dumps({"job": job.id, "state": job.state, **fields}) + "\n"
        try:
            if durable.append(self._journal, line.encode()) > _JOURNAL_BYTES:
                self._rewrite()
        except OSError as error:
            raise durable.disk_failure(error, self._folder) from None

    def _rewrite(self) -> None:
        """The journal with only what still matters in it."""
        lines: list[dict[str, Any]] = [{"format": FORMAT}]
        lines += [{"job": job_id, "state": "acked"} for job_id in self._acked]
        for job in self._jobs.values():
            lines.append({"job": job.id, "state": "queued", "token": job.token, "boot": job.boot_id, "spec": job.spec})
            if job.state != "queued":
                lines.append({"job": job.id, "state": job.state})
        durable.replace(self._journal, b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def _replay(self) -> None:
        self._jobs, acked = {}, []
        for entry in self._entries():
            job_id, state = entry["job"], entry["state"]
            if state == "queued":
                self._jobs[job_id] = Job(job_id, entry["token"], entry["boot"], entry["spec"])
            elif state == "acked":
                self._jobs.pop(job_id, None)
                acked.append(job_id)
            elif job_id in self._jobs:
                self._jobs[job_id].state = state
        self._acked = collections.deque(acked, maxlen=_ACKED_MAX)
        for path in self._folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()
        for job in list(self._jobs.values()):
            if self._result(job.id).exists():
                job.state, job.spec = "done", {}
            elif job.boot_id != self._boot_id:
                self.finish(job, _as_message(Failure("device_rebooted", "the device was restarted during the job")))
            elif job.state != "queued":
                self.finish(job, _as_message(Failure("agent_crashed", "the agent was restarted during the job")))
        for path in self._folder.glob("*.result"):
            if path.stem not in self._jobs:
                with contextlib.suppress(OSError):
                    path.unlink()
        with contextlib.suppress(OSError):  # a card that turned read-only: what is there can still be fetched
            self._rewrite()

    def _entries(self) -> Iterator[dict[str, Any]]:
        """The journal's lines that make sense: a power cut may leave half of the last one.

        One of another format is another agent's: its jobs are not known here, as a host that asks for one is told.
        """
        try:
            first, *lines = self._journal.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        except FileNotFoundError:
            return
        if first != json.dumps({"format": FORMAT}):
            return
        for line in lines:
            try:
                entry = json.loads(line)
                if not _ID.match(entry["job"]) or entry["state"] not in ("queued", "running", "done", "acked"):
                    continue
                if entry["state"] == "queued":
                    entry = dict(entry, token=int(entry["token"]), boot=str(entry["boot"]), spec=dict(entry["spec"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            yield entry


def _as_message(failure: Failure) -> Message:
    return Message(failure.header(), b"")
