"""Measure models with whatever agent is at the other end: uploads, fresh processes, the cache, the record."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlprune_agent.protocol import MEASUREMENT_VERSION, Message
from rlprune_edge.device import trust
from rlprune_edge.device.cache import MeasurementCache, cache_key
from rlprune_edge.device.contact import Contact
from rlprune_edge.device.link import Link
from rlprune_edge.device.meter import mode_settings
from rlprune_edge.device.profiles import Profile
from rlprune_edge.device.result import circumstances, process_of, times_of
from rlprune_edge.records import Measurement

T = TypeVar("T")
Files = dict[str, Callable[[], bytes]]
"""what may have to be sent: how to read each file, by sha256"""

_MARGIN_SECONDS = 60.0  # the agent ends an overdue child 30 s after its cap; past this the agent itself hangs

# Everything that decides latency and is the same from one boot to the next.
_KEY_FACTS = (
    "machine",
    "system",
    "kernel",
    "page_bytes",
    "online_cpus",
    "board",
    "serial_sha256",
    "cpu_model",
    "isa_sha256",
    "memory_bytes",
    "min_mhz",
    "max_mhz",
    "governor",
)
_SWEEP = {"rounds": 5, "visit_ms": 2, "visit_runs": 3, "seed": 0}

# A figure taken in such circumstances is used, with its flag, but not offered again for a week. A developer's machine
# is never idle, though: there a busy figure is kept, or no run could be repeated plan by plan (finalists are timed
# afresh).
_NOT_KEPT = {
    "board": frozenset({"busy", "swapping", "very_noisy", "config_changed", "capped"}),
    "local": frozenset({"swapping", "config_changed"}),
}


def device_key(hello: Mapping[str, Any], *, threads: int, provider: str) -> str:
    """Hash of what decides latency: board, kernel, clock limits, governor, runtime, threads, way of measuring."""
    return cache_key(
        facts={name: hello["facts"].get(name) for name in _KEY_FACTS},
        runtime={name: hello["runtime"].get(name) for name in ("onnxruntime", "build")},
        threads=threads,
        provider=provider,
        measurement_version=MEASUREMENT_VERSION,
    )[:16]


class Station(Contact):
    """A `Meter` that works through one agent."""

    def __init__(self, profile: Profile, *, cache_dir: Path, threads: int | None = None) -> None:
        super().__init__(profile.threads if threads is None else threads)
        self.profile = profile
        self._cache_dir = cache_dir
        self._cache = MeasurementCache(cache_dir / "measurements")
        self._seconds = 0.0

    @property
    def key(self) -> str:
        """See `device_key`."""
        return device_key(self.facts, threads=self.threads, provider=self.profile.provider)

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
        tolerance: float = 1e-3,
        use_cache: bool | None = None,
    ) -> Measurement:
        """Time one model, in turns with the reference (its path and its file's sha256).

        `expected` are the host's outputs for `inputs`; one that differs anywhere by more than `tolerance` is a failure,
        for a fast wrong model must not win. `use_cache` (default: in mode `reward` only) takes an earlier figure of the
        same graph, whose weights may have been others. Raises `CandidateError` for what is the model's own fault in
        any of the processes, `DeviceError` for all that is not (after a retry), `UserError` for an unknown mode.
        """
        settings = mode_settings(mode)
        if not inputs or not expected:
            raise ValueError("inputs and expected outputs are needed: what is not checked is not measured")
        job = {
            "reference": reference[1] if reference else None,
            "tolerance": tolerance,
            "threads": self.threads,
            "settings": settings.job(),
        }
        key = cache_key(
            graph=graph_sha256,
            inputs={name: [str(value.dtype), list(value.shape)] for name, value in inputs.items()},
            device=self.key,
            source=self.profile.source,
            mode=mode,
            processes=settings.processes,
            job=job,
        )
        use_cache = mode == "reward" if use_cache is None else use_cache
        if use_cache and (cached := self._cache.measurement(key)):
            return cached

        files: Files = {model_sha256: lambda: _file(model, model_sha256)}
        if reference:
            files[reference[1]] = lambda: _file(*reference)
        job |= {
            "verb": "measure",
            "candidate": model_sha256,
            "inputs": _add_arrays(files, inputs),
            "expected": _add_arrays(files, expected),
        }
        before = self._seconds
        timed = [self._timed(job, files, settings.cap_seconds, process_of) for _ in range(settings.processes)]
        processes, replies = tuple(process for process, _ in timed), [reply for _, reply in timed]
        memory_mb, memory_delta_mb = trust.memory_mb(processes)
        measurement = Measurement(
            source=self.profile.source,
            device=self.profile.name,
            mode=mode,
            threads=self.threads,
            model_sha256=model_sha256,
            graph_sha256=graph_sha256,
            reference_sha256=reference[1] if reference else None,
            latency_ms=trust.latency(processes),
            reference_ms=trust.reference_latency(processes),
            speedup=trust.speedup(processes),
            percentiles_ms=trust.percentiles(processes),
            memory_mb=memory_mb,
            memory_delta_mb=memory_delta_mb,
            max_output_difference=max(float(reply["result"]["max_output_difference"]) for reply in replies),
            flags=tuple(sorted(set(trust.flags(processes)) | circumstances(replies))),
            processes=processes,
            vitals_before=dict(replies[0]["vitals_before"]),
            vitals_after=dict(replies[-1]["vitals_after"]),
            versions=self._versions(),
            device_seconds=self._seconds - before,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            options={
                "session": replies[0]["result"]["options"],
                "settings": settings.job(),
                "tolerance": tolerance,
                "isolation": self.facts["isolation"],
                "device_key": self.key,
            },
        )
        # One taken past the cache stays out of it: a run that is repeated must find what the first one found.
        if use_cache and not _NOT_KEPT[self.profile.source] & set(measurement.flags):
            self._cache.keep_measurement(key, measurement)
        return measurement

    def sweep(self, models: Sequence[bytes]) -> list[float]:
        """Nanoseconds of one inference of each of many tiny models, fit to be compared with each other.

        Kept in the cache whatever the load was: the figure is a minimum, and a search that is resumed has to find the
        same widths worth offering. Raises `CandidateError` (which of the models cannot be run), `DeviceError`.
        """
        names = [hashlib.sha256(data).hexdigest() for data in models]
        contents = dict(zip(names, models, strict=True))
        keys = {sha256: cache_key(model=sha256, device=self.key, sweep=_SWEEP) for sha256 in contents}
        cached = {sha256: self._cache.time_ns(key) for sha256, key in keys.items()}
        times = {sha256: value for sha256, value in cached.items() if value is not None}
        unknown = [sha256 for sha256 in contents if sha256 not in times]
        if unknown:
            cap_seconds = 30.0 + len(unknown)
            job = {"verb": "sweep", "models": unknown, "threads": self.threads, "cap_seconds": cap_seconds, **_SWEEP}
            files: Files = {sha256: lambda data=contents[sha256]: data for sha256 in unknown}  # type: ignore[misc]
            found, _ = self._timed(job, files, cap_seconds, lambda reply: times_of(reply, len(unknown)))
            for sha256, value in zip(unknown, found, strict=True):
                times[sha256] = value
                self._cache.keep_time_ns(keys[sha256], value)
        return [times[name] for name in names]

    def _timed(
        self,
        job: Mapping[str, Any],
        files: Files,
        cap_seconds: float,
        read: Callable[[Message], T],
    ) -> tuple[T, Mapping[str, Any]]:
        """Run one job that occupies the device; what `read` makes of the reply, and the reply's header."""

        def work(link: Link) -> tuple[T, Mapping[str, Any]]:
            link.upload(files)
            began = time.monotonic()
            try:
                reply = link.request(job, seconds=cap_seconds + _MARGIN_SECONDS)
            finally:
                self._seconds += time.monotonic() - began
            return read(reply), reply.header

        return self._with_agent(work)

    def _versions(self) -> dict[str, str]:
        hello = self.facts
        runtime = {name: str(hello["runtime"][name]) for name in ("onnxruntime", "numpy", "python")}
        return {**runtime, "agent": str(hello["agent"]), "protocol": str(hello["protocol"])}


def _file(path: Path, sha256: str) -> bytes:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path} is not the file with the sha256 {sha256}")
    return data


def _add_arrays(files: Files, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Add the arrays to the files to be sent; their hashes by name."""
    names = {}
    for name, value in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(value), allow_pickle=False)
        data = buffer.getvalue()
        names[name] = hashlib.sha256(data).hexdigest()
        files[names[name]] = lambda data=data: data  # type: ignore[misc]
    return names
