"""Several boards of one kind as one device: a candidate is timed on all of them at once, and the slower one counts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rlprune_edge.device.meter import SEARCH_MODES
from rlprune_edge.device.profiles import Profile
from rlprune_edge.device.station import Station
from rlprune_edge.errors import DeviceError, UserError
from rlprune_edge.measurements import Measurement

T = TypeVar("T")

_ALIKE = ("machine", "board", "cpu_model", "online_cpus", "max_mhz", "governor", "power_mode", "l4t", "kernel")


class Fleet:
    """A `Meter` over several stations."""

    def __init__(self, stations: Sequence[Station]) -> None:
        """At least two. Raises `UserError` where their profiles, threads or ways of measuring differ."""
        self._stations = tuple(stations)
        self._pool = ThreadPoolExecutor(len(stations), thread_name_prefix="board")
        self._ready = False
        self._alone_ms: dict[str, float] = {}
        first = stations[0]
        if any(station.profile.source == "local" for station in stations):
            raise UserError("this machine is measured on alone: give one device, or boards only")
        self.profile: Profile = first.profile.model_copy(update={"name": ",".join(s.profile.name for s in stations)})
        self.threads, self.provider = first.threads, first.provider
        for other in stations[1:]:
            if other.profile.model_copy(update={"name": first.profile.name}) != first.profile:
                raise UserError(
                    f"'{first.profile.name}' ({first.profile.title}) and '{other.profile.name}' "
                    f"({other.profile.title}) are not the same kind of board; measure on one kind at a time"
                )
            if other.threads != first.threads:
                raise UserError(
                    f"'{first.profile.name}' is used with {first.threads} threads and '{other.profile.name}' with "
                    f"{other.threads}; say how many all of them shall use: --threads {first.threads}"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give all boards back."""
        for station in self._stations:
            station.close()
        self._pool.shutdown()

    @property
    def facts(self) -> dict[str, Any]:
        """Those of the first, all others being alike. Raises `UserError` if they are not, `DeviceError`."""
        self._make_ready()
        return self._stations[0].facts

    def _make_ready(self) -> None:
        """See that all are alike, and take them, one after the other in an order that is the same for everybody.

        Two users of the same boards would else hold one each and wait for the other.
        """
        if self._ready:
            return
        self._check_alike(self._on_all(lambda station: station.facts))
        for station in sorted(self._stations, key=lambda station: str(station.boot_id)):
            station.hold()
        self._ready = True

    def _check_alike(self, hellos: Sequence[Mapping[str, Any]]) -> None:
        def settings(hello: Mapping[str, Any]) -> dict[str, Any]:
            runtime = {"onnxruntime": hello["runtime"].get("onnxruntime")}
            return {name: hello["facts"].get(name) for name in _ALIKE} | runtime

        if len({str(station.boot_id) for station in self._stations}) < len(self._stations):
            raise UserError(f"{self.profile.name}: two of these are the same board; give each board once")
        first = settings(hellos[0])
        for station, hello in zip(self._stations[1:], hellos[1:], strict=True):
            other = settings(hello)
            unlike = [f"{name} ({first[name]} and {other[name]})" for name in first if first[name] != other[name]]
            if unlike:
                raise UserError(
                    f"'{self._stations[0].profile.name}' and '{station.profile.name}' are not set up alike: "
                    f"{', '.join(unlike)}. Make them alike, or measure on one of them"
                )

    @property
    def key(self) -> str:
        """Hash over all boards' keys, whatever their order."""
        keys = sorted(self._on_all(lambda station: station.key))
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]

    @property
    def device_seconds(self) -> float:
        """Of the board that was used most: they work at the same time."""
        return max(station.device_seconds for station in self._stations)

    def measure(
        self,
        model: Path,
        *,
        reference: tuple[Path, str] | None,
        mode: str,
        reference_ms: float | None = None,
        **words: Any,
    ) -> Measurement:
        """As a station's, which gets the other `words` as they are.

        The measurement of the board with the smaller speed-up (or without a reference: the larger latency), with the
        largest memory and the flags of all; those of the others are in its `others`.
        """
        self._make_ready()
        known = {} if reference_ms is None else self._alone_ms
        found = self._on_all(
            lambda station: station.measure(
                model,
                reference=reference,
                mode=mode,
                reference_ms=known.get(station.profile.name),
                **words,
            )
        )
        if reference is None and mode not in SEARCH_MODES:
            self._alone_ms = {m.device: m.latency_ms.value for m in found}
        slower = max(found, key=lambda m: 1 / m.speedup.value if m.speedup else m.latency_ms.value)
        memory = [m.memory_mb for m in found if m.memory_mb is not None]
        others = tuple(m for m in found if m is not slower)
        flags = sorted({flag for m in found for flag in m.flags})
        return replace(slower, memory_mb=max(memory, default=None), flags=tuple(flags), others=others)

    def sweep(self, models: Sequence[bytes]) -> list[float]:
        """As a station's; of each model the slower time."""
        self._make_ready()
        return [max(times) for times in zip(*self._on_all(lambda station: station.sweep(models)), strict=True)]

    def _on_all(self, ask: Callable[[Station], T]) -> list[T]:
        """The answers of all boards, asked at the same time. The failure of a board goes before that of a model."""
        futures = [self._pool.submit(ask, station) for station in self._stations]
        try:
            errors = [error for future in futures if (error := future.exception()) is not None]
        except BaseException:  # Ctrl-C while they measure
            for station in self._stations:
                station.break_off()
            raise
        for error in sorted(errors, key=lambda e: not isinstance(e, DeviceError)):
            raise error
        return [future.result() for future in futures]
