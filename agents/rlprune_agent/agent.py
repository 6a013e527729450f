"""What all conversations of one agent process share: the lease, the jobs, the files, the worker."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any, Callable

from rlprune_agent import durable, vitals
from rlprune_agent.jobs import Jobs
from rlprune_agent.lease import LEASE_SECONDS, Lease
from rlprune_agent.protocol import Failure
from rlprune_agent.store import Store
from rlprune_agent.worker import Worker

log = logging.getLogger(__name__)


class Agent:
    """The agent that lives in `home`. `alone`: it serves one conversation, and does jobs only while that has the lease.

    A daemon does jobs from start to end (`open`); of agents that serve one conversation there may be several in one
    home, and the one whose host has the lease does them.
    """

    def __init__(
        self,
        home: Path,
        *,
        root: Path = Path("/"),
        quota_bytes: int,
        lease_seconds: float = LEASE_SECONDS,
        alone: bool = False,
        isolation: str = "user",
    ) -> None:
        self.home = durable.private_folder(home)
        self.root = root
        self.alone = alone
        self.isolation = isolation
        self.retiring = threading.Event()
        """set when another agent is to take over; the daemon ends as soon as nothing runs"""
        boot_id = str(vitals.read(root).get("boot_id", "unknown"))
        self.jobs = Jobs(home / "jobs", boot_id)
        self.store = Store(home / "store", quota_bytes, pinned=self.jobs.files_in_use)
        self.lease = Lease(home, boot_id, seconds=lease_seconds, alone=alone, holder_lives=self.jobs.somebody_has_it)
        self.worker = Worker(self.jobs, self.store, root)
        self._leasing = threading.Lock()
        """held while a lease is given or looked after: neither must see the other half done"""
        self._began = time.monotonic()
        self._granted: int | None = None

    def acquire(self, owner: str, session: str) -> dict[str, Any]:
        """Ask for the lease for a conversation; see `Lease.acquire`."""
        with self._leasing:
            reply = self.lease.acquire(owner, session, on_grant=self.jobs.open)
            if reply["granted"]:
                self._granted = reply["token"]
                self._end_jobs_of_others(reply["token"])
        return reply

    def tick(self) -> None:
        """To be called about once a second: what a lease that has run out or was broken leaves behind is ended."""
        with self._leasing:
            try:
                token = self.lease.current()
            except (Failure, OSError) as error:
                log.warning("the lease cannot be looked at: %s", error)
                return
            self._end_jobs_of_others(token)
            if self.alone and token != self._granted and not self.jobs.unfinished():
                self.jobs.close()

    def _end_jobs_of_others(self, token: int | None) -> None:
        self.jobs.stop_others(token, Failure("lease_lost", "the lease of the device ran out or was broken"))

    def release(self, token: int) -> None:
        """Give the lease back, and end what it still runs."""
        if self.lease.release(token):
            self.jobs.stop_those_of(token, Failure("lease_lost", "the lease was given back"))

    def end(self) -> None:
        """End the job that runs, and the worker. The host that waits for it may have it done again."""
        if self.alone and self._granted is not None:
            self.lease.release(self._granted)
        self.worker.end(Failure("agent_crashed", "the agent was told to end"))
        self.jobs.close()

    def daemon_fields(self) -> dict[str, Any]:
        """How it is getting on."""
        unfinished = self.jobs.unfinished()
        running = sum(job.state == "running" for job in unfinished)
        return {
            "uptime_s": round(time.monotonic() - self._began, 1),
            "running": running,
            "queued": len(unfinished) - running,
        }

    def runtime(self, seconds: float, beat: Callable[[], None], beat_seconds: float) -> dict[str, Any]:
        """`runtime` or `runtime_error`; `beat` is called while it is being found out."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.worker.runtime(beat_seconds)
            if found is not None:
                return found
            beat()
        return {"runtime_error": f"onnxruntime did not answer within {seconds:.0f} s"}
