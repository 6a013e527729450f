"""Measure models with whatever agent is at the other end: uploads, fresh processes, the cache, the record."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlprune_agent.protocol import WAITING_PHASES, Failure, Message
from rlprune_edge.device import golden, trust
from rlprune_edge.device.cache import MeasurementCache, cache_key
from rlprune_edge.device.contact import ATTEMPTS, ATTEMPTS_REWARD, Contact
from rlprune_edge.device.health import FAILURES_MAX, Health
from rlprune_edge.device.key import device_key
from rlprune_edge.device.link import Link, LinkBroken
from rlprune_edge.device.meter import MODES, SEARCH_MODES, gates_for, mode_settings
from rlprune_edge.device.payload import Files, add_arrays, read
from rlprune_edge.device.profiles import PROVIDERS, Profile, ceiling_of
from rlprune_edge.device.result import measurement_of, process_of, refuse_impossible, refuse_unfit, times_of
from rlprune_edge.errors import CandidateError, DeviceError, UserError
from rlprune_edge.measurements import Measurement, Process, Work
from rlprune_edge.records import Skeleton

log = logging.getLogger(__name__)

T = TypeVar("T")
_MARGIN_SECONDS = 60.0  # the agent ends an overdue child 30 s after its cap; past this the agent itself hangs
_WAIT_SECONDS = 10.0
_CAP_RUNS = 80
"""inferences of candidate and reference together that a measurement of the slowest models takes at least"""

_SEED = 0
"""of made-up weights"""
_SWEEP_MODELS = 200
_SWEEP_THREADS = 40
"""of all models that a sweep has open at once; the agent's service may have 64 tasks"""
_SWEEP = {"rounds": 5, "visit_ms": 2, "visit_runs": 3, "seed": 0}

# A figure taken in such circumstances is used, with its flag, but not offered again for a week. A developer's machine
# is never idle, though: there a busy figure is kept, or no run could be repeated plan by plan (finalists are timed
# afresh).
_NOT_KEPT_ON_A_BOARD = frozenset(
    {
        "busy",
        "swapping",
        "very_noisy",
        "config_changed",
        "capped",
        "clock_unstable",
        "gate_timed_out",
        "throttled",
        "undervoltage",
        "reference_lost",
    }
)
_NOT_KEPT = {"board": _NOT_KEPT_ON_A_BOARD, "local": frozenset({"swapping", "config_changed"})}


class Station(Contact):
    """A `Meter` that works through one agent."""

    def __init__(
        self,
        profile: Profile,
        *,
        cache_dir: Path,
        threads: int | None = None,
        golden_ms: float | None = None,
        clock_ns: float | None = None,
        provider: str | None = None,
        strict: bool = False,
        on_process: Callable[[int, int], None] = lambda *_: None,
        **settings: Any,
    ) -> None:
        """`settings` are those of `Contact`.

        `golden_ms` and `clock_ns`: what the golden model and the agent's arithmetic loop took when the device was
        calibrated. `provider` instead of the profile's: `cpu`, `cuda` or `tensorrt`. `strict`: a developer's machine,
        too, is refused for what disturbs it. `on_process` hears the number of each measuring process that begins, and
        how many there will be.
        """
        super().__init__(profile.threads if threads is None else threads, **settings)
        self.profile = profile
        self.provider = provider or profile.provider
        if self.provider not in PROVIDERS:
            raise UserError(f"--provider {self.provider} is not known: choose {', '.join(PROVIDERS)}")
        self.strict = strict
        self._clock_ns = clock_ns
        self._on_process = on_process
        self.health = Health(cache_dir / "health" / f"{profile.name}.json", golden_ms=golden_ms)
        self._cache_dir = cache_dir
        self._cache = MeasurementCache(cache_dir / "measurements")
        self._seconds = 0.0
        self._run_id = secrets.token_hex(8)
        self._jobs = 0
        self._proving = False

    @property
    def key(self) -> str:
        """See `device_key`."""
        return device_key(self.facts, threads=self.threads, provider=PROVIDERS[self.provider])

    @property
    def device_seconds(self) -> float:
        """Seconds during which measuring requests of ours occupied the device."""
        return self._seconds

    def measure(
        self,
        model: Path,
        *,
        model_sha256: str,
        graph_sha256: str,
        reference: tuple[Path, str] | None,
        inputs: Mapping[str, np.ndarray],
        expected: Mapping[str, np.ndarray],
        mode: str,
        tolerance: float | Mapping[str, float] = 1e-3,
        use_cache: bool | None = None,
        skeleton: Skeleton | None = None,
        work: Work | None = None,
        reference_ms: float | None = None,
    ) -> Measurement:
        """Time one model, in turns with the reference (its path and its file's sha256).

        `expected` are the host's outputs for `inputs`; one that differs anywhere by more than `tolerance` (of all, or
        by name) is a failure, for a fast wrong model must not win. `use_cache` (default: in modes of a search) takes an
        earlier figure of the same graph, whose weights may have been others. With a `skeleton` that graph travels in
        place of the model, and outputs need only be sane; the model follows where made-up weights will not do. `work`
        allows the check that a figure can be true at all; `reference_ms` (what the reference took when it was measured
        first) the one whether the device still is what it was. Raises `CandidateError` for what is the model's own
        fault in any of the processes, `DeviceError` for all that is not (after retries), `UserError` for an unknown
        mode.
        """
        if not inputs or not expected:
            raise ValueError("inputs and expected outputs are needed: what is not checked is not measured")
        job = {
            "reference": reference[1] if reference else None,
            **_tolerance(tolerance),
            "threads": self.threads,
            "settings": self._settings(mode),
            **self._runtime(),
        }

        def key_of(name: str) -> str:
            thorough = mode_settings(name)
            return cache_key(
                graph=graph_sha256,
                inputs={name: [str(value.dtype), list(value.shape)] for name, value in inputs.items()},
                device=self.key,
                source=self.profile.source,
                mode=name,
                processes=thorough.processes,
                job=job | {"settings": self._settings(name)},
            )

        key = key_of(mode)
        use_cache = mode in SEARCH_MODES if use_cache is None else use_cache
        if use_cache:
            self._cache.not_before = self.health.drifted_at
            for name in list(MODES)[list(MODES).index(mode) :]:  # a more thorough figure answers the question as well
                if cached := self._cache.measurement(key_of(name)):
                    return cached

        files: Files = {}
        if reference:
            files[reference[1]] = lambda: read(*reference)
        job |= {"job": "measure", "inputs": add_arrays(files, inputs)}
        before = self._seconds
        if reference_ms is not None:  # both have to be warmed up and timed within it
            least = _CAP_RUNS * reference_ms / 1e3
            job["settings"] = {**job["settings"], "cap_seconds": max(job["settings"]["cap_seconds"], least)}
        own = {"candidate": model_sha256, "expected": add_arrays(own_files := dict(files), expected)}
        own_files[model_sha256] = lambda: read(model, model_sha256)
        timed = None
        if skeleton is not None:
            graph = hashlib.sha256(skeleton.data).hexdigest()
            made_up = {
                "candidate": graph,
                "expected": {},
                "weights": {"candidate": {"seed": _SEED}},
                "model_bytes": skeleton.full_bytes,
            }
            try:
                timed = self._processes(job | made_up, files | {graph: lambda: skeleton.data}, mode)
            except CandidateError as error:
                if error.kind not in ("output_mismatch", "load_failed"):
                    raise
                log.info("%s with made-up weights: %s; it is measured with its own", model.name, error)
        weights = "own" if timed is None else "made up"
        if timed is None:
            timed = self._processes(job | own, own_files, mode)
        processes, replies = tuple(process for process, _ in timed), [reply for _, reply in timed]
        measurement = measurement_of(
            processes,
            replies,
            source=self.profile.source,
            device=self.profile.name,
            mode=mode,
            threads=self.threads,
            model_sha256=model_sha256,
            graph_sha256=graph_sha256,
            reference_sha256=reference[1] if reference else None,
            versions=self._versions(),
            device_seconds=self._seconds - before,
            options={
                "settings": job["settings"],
                **_tolerance(tolerance),
                "weights": weights,
                "isolation": self.facts["isolation"],
                "device_key": self.key,
            },
            work=work,
            ceiling=ceiling_of(self.profile) if self.provider == "cpu" else None,
            calibrated_reference_ms=reference_ms,
        )
        refuse_impossible(measurement)
        # One taken past the cache stays out of it: a run that is repeated must find what the first one found.
        if use_cache and not _NOT_KEPT.get(self.profile.source, _NOT_KEPT_ON_A_BOARD) & set(measurement.flags):
            self._cache.keep_measurement(key, measurement)
        return measurement

    def _runtime(self) -> dict[str, Any]:
        """The part of a job that says what runs the model, where that is not the processor."""
        return {} if self.provider == "cpu" else {"runtime": {"provider": PROVIDERS[self.provider]}}

    def _settings(self, mode: str) -> dict[str, Any]:
        """A mode's settings as the agent gets them, with what this device has to be watched for."""
        profile, settings = self.profile, mode_settings(mode)
        gates = gates_for(
            profile.limits,
            mode,
            self.strict,
            source=profile.source,
            sources=profile.telemetry.sources,
            clock_ns=self._clock_ns,
        )
        return settings.job(gates=gates, energy=settings.energy)

    def _processes(self, job: Mapping[str, Any], files: Files, mode: str) -> list[tuple[Process, Mapping[str, Any]]]:
        """As many fresh processes as the mode wants, one after the other, each with its reply's header."""
        settings = mode_settings(mode)

        def fit(reply: Message) -> Process:
            return refuse_unfit(process_of(reply), mode=mode, source=self.profile.source, strict=self.strict)

        timed = []
        for number in range(1, settings.processes + 1):
            self._on_process(number, settings.processes)
            attempts = ATTEMPTS_REWARD if mode in SEARCH_MODES else ATTEMPTS
            timed.append(self._timed(job, files, job["settings"]["cap_seconds"], fit, attempts=attempts))
        return timed

    def sweep(self, models: Sequence[bytes]) -> list[float]:
        """Nanoseconds of one inference of each of many tiny models, fit to be compared with each other.

        Kept in the cache whatever the load was: the figure is a minimum, and a search that is resumed has to find the
        same widths worth offering. Raises `CandidateError` (which of the models cannot be run), `DeviceError`.
        """
        if self.provider == "tensorrt":
            raise CandidateError(
                "unsupported_op", "TensorRT would have to build an engine for each of them, for minutes"
            )
        names = [hashlib.sha256(data).hexdigest() for data in models]
        contents = dict(zip(names, models, strict=True))
        keys = {sha256: cache_key(model=sha256, device=self.key, sweep=_SWEEP) for sha256 in contents}
        self._cache.not_before = self.health.drifted_at
        cached = {sha256: self._cache.time_ns(key) for sha256, key in keys.items()}
        times = {sha256: value for sha256, value in cached.items() if value is not None}
        unknown = [sha256 for sha256 in contents if sha256 not in times]
        at_once = min(_SWEEP_MODELS, _SWEEP_THREADS // (self.threads - 1)) if self.threads > 1 else _SWEEP_MODELS
        for start in range(0, len(unknown), max(1, at_once)):
            some = unknown[start : start + max(1, at_once)]
            for sha256, value in zip(some, self._sweep_some(some, contents), strict=True):
                times[sha256] = value
                self._cache.keep_time_ns(keys[sha256], value)
        return [times[name] for name in names]

    def _sweep_some(self, models: Sequence[str], contents: Mapping[str, bytes]) -> list[float]:
        cap_seconds = 30.0 + len(models)
        job = {"job": "sweep", "models": models, "threads": self.threads, "cap_seconds": cap_seconds}
        files: Files = {sha256: lambda data=contents[sha256]: data for sha256 in models}  # type: ignore[misc]
        return self._timed(
            job | _SWEEP | self._runtime(), files, cap_seconds, lambda reply: times_of(reply, len(models))
        )[0]

    def golden_ms(self) -> float:
        """Milliseconds of the golden model, measured now; what `golden_ms` is calibrated with.

        Raises `CandidateError` for a device that computes it wrongly, `DeviceError`.
        """
        settings = mode_settings("reward")
        files: Files = {golden.sha256(): golden.model}
        job = {
            "job": "measure",
            "candidate": golden.sha256(),
            "reference": None,
            "inputs": add_arrays(files, golden.inputs()),
            "expected": add_arrays(files, golden.expected()),
            "tolerance": 0.0,
            "threads": self.threads,
            "settings": self._settings("reward"),
        }
        process, _ = self._timed(job, files, settings.cap_seconds, process_of)
        return trust.latency([process]).value

    def _ensure_fit(self) -> None:
        if self._proving or not self.health.golden_run_due():
            return
        failures = self.health.failures
        self._proving = True
        try:
            reason = self.health.judge(self.golden_ms())
        except CandidateError as error:
            reason = f"it fails the golden model: {error}"
        except DeviceError as error:
            if failures < FAILURES_MAX and not self.health.quarantined:
                raise
            reason = f"the golden model cannot be measured: {error}"
        finally:
            self._proving = False
        if reason is None:
            return
        self.health.quarantine(reason)
        after = f" after {failures} failures in a row (the last: {self.health.last})" if failures else ""
        raise DeviceError(
            "device_quarantined",
            f"{self._where()} is not used{after}: {reason}. It is tried again whenever it is asked for; "
            f"`rlprune-edge device check {self.profile.name}` says what is wrong with it.",
        )

    def _failed(self, kind: str) -> None:
        if not self._proving:
            self.health.failed(kind)

    def _rebooted(self) -> None:
        self.health.rebooted()

    def _timed(
        self,
        job: Mapping[str, Any],
        files: Files,
        cap_seconds: float,
        parse: Callable[[Message], T],
        *,
        attempts: int = ATTEMPTS_REWARD,
    ) -> tuple[T, Mapping[str, Any]]:
        """Run one job that occupies the device; what `parse` makes of the reply, and the reply's header.

        The job has an id of its own for each attempt, so that a connection that breaks, at whatever point, leads back
        to the same job and never to a second one.
        """
        self._jobs += 1
        name = f"{self._run_id}{self._jobs:08x}"

        def work(link: Link, attempt: int) -> tuple[T, Mapping[str, Any]]:
            job_id = f"{name}{attempt:02x}"
            link.upload(files)
            began = time.monotonic()
            try:
                link.submit(job_id, job)
                reply = _result(link, job_id, (cap_seconds + _MARGIN_SECONDS) * self.profile.patience)
            except Failure as failure:
                if failure.details.get("state") == "done":
                    self._acknowledge(link, job_id)
                raise
            finally:
                self._seconds += time.monotonic() - began
            found = parse(reply)
            self._acknowledge(link, job_id)
            self.health.worked()
            return found, reply.header

        return self._with_agent(work, attempts=attempts)

    def _acknowledge(self, link: Link, job_id: str) -> None:
        """Let the agent forget a result that we have.

        Whether it hears of it must not matter: asking for the job again might find it forgotten.
        """
        try:
            link.acknowledge(job_id)
        except LinkBroken:
            self._drop()
        except Failure as failure:  # such as a lease that ran out between the result and this
            log.info("%s did not take the acknowledgement: %s", self._where(), failure.message)

    def _versions(self) -> dict[str, str]:
        hello = self.facts
        runtime = {name: str(hello["runtime"][name]) for name in ("onnxruntime", "numpy", "python")}
        return {**runtime, "agent": str(hello["agent"]), "protocol": str(hello["protocol"])}


def _tolerance(tolerance: float | Mapping[str, float]) -> dict[str, Any]:
    """The fields of a job that say how far outputs may be off."""
    if isinstance(tolerance, Mapping):
        return {"tolerance": max(tolerance.values(), default=0.0), "tolerances": dict(tolerance)}
    return {"tolerance": tolerance}


def _result(link: Link, job_id: str, seconds: float) -> Message:
    """Wait for the result of a job, so long and while the device is in a phase of waiting.

    Raises `Failure` as the job ended, `LinkBroken` if it does not end.
    """
    began = time.monotonic()
    end = began + seconds
    last = end + sum(WAITING_PHASES.values())
    while True:
        asked = time.monotonic()
        if asked >= min(end, last):
            link.cancel(job_id)
            raise LinkBroken(
                "agent_crashed", f"a job of at most {seconds:.0f} s has not ended after {asked - began:.0f} s"
            )
        outcome = link.wait(job_id, min(_WAIT_SECONDS, link.lease_seconds / 4))
        if isinstance(outcome, Message):
            return outcome
        if outcome[1] in WAITING_PHASES:
            end += time.monotonic() - asked
