"""The one thread that starts children: the probe of the runtime, then job after job.

One, because two would disturb each other's timing; a thread of its own, because a child dies with the thread that
started it, and those of conversations come and go.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from rlprune_agent import limits, vitals
from rlprune_agent.compiled import compiled
from rlprune_agent.jobs import Job, Jobs, files_of
from rlprune_agent.protocol import WAITING_PHASES, Failure, Message
from rlprune_agent.store import Store
from rlprune_agent.supervise import CODE, Cancel, run_child

log = logging.getLogger(__name__)

_PROBE_SECONDS = 60.0
_PROBE_AGAIN_SECONDS = 5.0
_GRACE_SECONDS = 30.0
_IDLE_SECONDS = 30.0
_END_SECONDS = 10.0
_PAUSE_SECONDS = 1.0


class Worker:
    """Does the jobs of `jobs` with the files of `store`; sensors are read below `root`."""

    def __init__(self, jobs: Jobs, store: Store, root: Path) -> None:
        self._jobs = jobs
        self._store = store
        self._root = root
        self._code: Path | None = None
        self._ending = False
        self._probe_wanted = True
        self._probe_cancel = Cancel()
        self._probed = threading.Event()
        self._probe_again = 0.0
        self._runtime: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self._thread.start()

    def runtime(self, seconds: float) -> dict[str, Any] | None:
        """`runtime` or `runtime_error`, for a hello; `None` if it is not known within `seconds`.

        Found out once. Only if it failed it is tried again, when somebody asks and nothing runs: it may have been
        installed meanwhile.
        """
        failed = self._probed.is_set() and "runtime" not in self._runtime
        if failed and time.monotonic() > self._probe_again and not self._jobs.unfinished():
            self._probed.clear()
            self._probe_wanted = True
            self._jobs.wake()
        return dict(self._runtime) if self._probed.wait(seconds) else None

    @property
    def lives(self) -> bool:
        """Is there still a thread to do jobs?"""
        return self._thread.is_alive()

    def end(self, failure: Failure) -> None:
        """End what runs, as that failure, and the thread."""
        self._ending = True
        self._probe_cancel.set(failure)
        for job in self._jobs.unfinished():
            if job.state == "running":
                self._jobs.stop(job, failure)
        self._jobs.wake()
        self._thread.join(_END_SECONDS)

    def _work(self) -> None:
        while not self._ending:
            try:
                self._step()
            except Exception:  # a board short of processes or descriptors has them again later
                log.exception("the worker goes on")
                time.sleep(_PAUSE_SECONDS)

    def _step(self) -> None:
        """Try the runtime if that is wanted, else do the next job."""
        if self._probe_wanted:
            self._probe_wanted = False
            self._runtime = self._probe()
            self._probe_again = time.monotonic() + _PROBE_AGAIN_SECONDS
            self._probed.set()
            return
        job = self._jobs.take(_IDLE_SECONDS)
        if job is not None:
            log.info("job %s begins", job.id)
            self._jobs.finish(job, self._outcome(job))
            log.info("job %s is done", job.id)

    def _probe(self) -> dict[str, Any]:
        try:
            found = run_child(
                {"kind": "probe"}, seconds=_PROBE_SECONDS, cancel=self._probe_cancel, code=self._childrens_code()
            )
        except Failure as failure:
            if not self._ending:
                log.warning("the runtime does not work: %s", failure.message)
            return {"runtime_error": failure.message}
        except OSError as error:
            log.warning("no process can be started: %s", error)
            return {"runtime_error": f"no process can be started to try onnxruntime: {error.strerror}"}
        return {"runtime": found.header["result"]}

    def _childrens_code(self) -> Path:
        if self._code is None or not self._code.exists():  # not made yet, or tidied away by somebody
            self._code = compiled(CODE, self._store.folder.parent / "compiled")
        return self._code

    def _outcome(self, job: Job) -> Message:
        try:
            return self._run(job)
        except Failure as failure:
            log.info("job %s failed: %s: %s", job.id, failure.kind, failure.message)
            return Message(failure.header(), b"")
        except Exception as error:
            log.exception("job %s", job.id)
            return Message(Failure("agent_crashed", f"the agent failed: {error!r}").header(), b"")

    def _run(self, job: Job) -> Message:
        spec, cancel = job.spec, job.cancel
        seconds = spec["cap_seconds"] + _GRACE_SECONDS
        before = vitals.read(self._root)
        provider = (spec.get("runtime") or {}).get("provider", "CPUExecutionProvider")
        sizes = sum(self._store.size(sha256) for sha256 in files_of(spec))
        available = before.get("available_bytes")
        accelerator = provider != "CPUExecutionProvider"
        # Phases that have time of their own and use the processor.
        busy = ["energy"] * bool(spec.get("settings", {}).get("energy")) + ["prepare"] * accelerator
        # A graph without its weights does not show how large the model is: it says so, or may be as large as fits.
        model_bytes = spec.get("model_bytes") or (available if spec.get("weights") else 0) or 0
        bounds = limits.for_job(
            model_bytes=max(sizes, model_bytes),
            threads=spec["threads"],
            models=len(spec["models"]) if "models" in spec else 2,
            seconds=seconds + sum(WAITING_PHASES[phase] for phase in busy),
            accelerator=accelerator,
            available_bytes=available,
        )
        lock_fd = self._jobs.lock_fd
        result = run_child(
            dict(spec, store=str(self._store.folder), root=str(self._root)),
            seconds=seconds,
            bounds=bounds,
            cancel=cancel,
            on_phase=lambda phase: self._jobs.set_phase(job, phase),
            count_oom=lambda: vitals.read(self._root).get("oom_kills"),
            keep_fds=() if lock_fd is None else (lock_fd,),
            code=self._childrens_code(),
        )
        header = {
            "ok": True,
            "result": result.header["result"],
            "vitals_before": before,
            "vitals_after": vitals.read(self._root),
        }
        return Message(header, result.body)
