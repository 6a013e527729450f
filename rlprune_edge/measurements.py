"""The frozen, torch-free records of what was measured on a device: every sample, and the figures made of them.

Units are part of the names, as in `records`; `None` means "not known".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A figure with its interval; `low <= value <= high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Work:
    """What one inference has to do at the very least."""

    flops: float
    weight_bytes: float


@dataclass(frozen=True)
class Ceiling:
    """What a device can do at the very most: figures of its profile, at full clock on all cores."""

    flops_per_second: float
    bytes_per_second: float
    cache_bytes: float = 0.0
    """what the last cache level holds"""


@dataclass(frozen=True)
class DroppedPair:
    """A pair of blocks that the device's gates found disturbed and took again; no figure rests on it."""

    pair: int
    """which pair it would have been, from 0"""
    kind: str
    """`throttled`, `undervoltage`, `busy`, `clock_unstable` or `swapping`"""
    why: str
    candidate_ns: tuple[int, ...]
    reference_ns: tuple[int, ...]
    """one of the two is empty where the block before it was spoilt already"""


@dataclass(frozen=True)
class Energy:
    """Energy of one inference of the candidate, from a window of its own after the timing."""

    sensor: str
    rail: str
    """what the sensor's figure covers"""
    inferences: int
    seconds: float
    idle_mw: float
    """power of the idle window just before"""
    gross_mj: float
    """millijoules of one inference"""
    net_mj: float
    """the same without what the board draws when idle"""
    latency_ms: float
    """of the inferences in this very window"""
    samples_hz: float
    sampler_share: float
    """share of the window that reading the sensor took: its own cost is in the figure"""


@dataclass(frozen=True)
class Process:
    """Raw figures of one fresh measuring process on the device.

    `candidate_ns[i]` and `reference_ns[i]` are the samples of the i-th pair of timed blocks, taken next to each other.
    A sample is the mean of `loop` inferences, in nanoseconds.
    """

    candidate_ns: tuple[tuple[int, ...], ...]
    reference_ns: tuple[tuple[int, ...], ...]
    candidate_loop: int
    reference_loop: int
    warmup_runs: int
    steady: bool
    import_ns: int
    session_ns: int
    first_run_ns: int
    memory_before_bytes: int | None
    """VmHWM with the runtime imported and no model loaded"""
    memory_peak_bytes: int | None
    """VmHWM after the candidate was loaded and ran, before the reference was loaded"""
    candidate_set_aside_ns: tuple[int, ...] = ()
    reference_set_aside_ns: tuple[int, ...] = ()
    """samples that waited for a CPU and were taken again; no figure rests on them"""
    flags: tuple[str, ...] = ()
    """what the device noticed and let pass: `busy`, `gate_timed_out`, `capped`, ..."""
    dropped: tuple[DroppedPair, ...] = ()
    gates: dict[str, Any] | None = None
    """what the device's gates read at the start, after blocks (`readings`) and at the end; `None`: none watched"""
    energy: Energy | None = None
    energy_missing: str | None = None
    """why there is no energy although it was asked for"""
    memory_pss_bytes: int | None = None
    """proportional set size with the candidate loaded, a cross-check of the peak"""
    memory_taken_bytes: int | None = None
    """drop of the board's available memory by loading and running the candidate, where a GPU shares it, too"""


@dataclass(frozen=True)
class Measurement:
    """One candidate, timed on one device. Every sample is kept, to compute the figures again or differently."""

    source: str
    """`board`, `local`, `emulated`, `simulated` or `estimate`"""
    device: str
    mode: str
    """`brief`, `reward`, `verify` or `report`; `estimate` where nothing was measured"""
    threads: int
    model_sha256: str
    graph_sha256: str
    reference_sha256: str | None
    latency_ms: Interval
    reference_ms: Interval | None
    speedup: Interval | None
    """reference over candidate, from pairs of neighbouring blocks"""
    percentiles_ms: dict[str, float | None]
    """`p50`, `p90`, ...; `None` where there are too few runs to say"""
    memory_mb: float | None
    """peak resident memory of the measuring process with this model, runtime included"""
    memory_delta_mb: float | None
    """the part of it above the runtime's own"""
    max_output_difference: float
    """against the host's outputs for the same inputs, first and last run"""
    flags: tuple[str, ...]
    """what a reader should know: `noisy`, `not_steady`, `multimodal`, `mean_of_k`, ..."""
    processes: tuple[Process, ...]
    vitals_before: dict[str, Any]
    vitals_after: dict[str, Any]
    versions: dict[str, str]
    device_seconds: float
    measured_at: str
    """UTC, ISO 8601"""
    cached: bool = False
    """taken from the cache of earlier measurements instead of measured now"""
    options: dict[str, Any] = field(default_factory=dict)
    """what it was measured with: the session's options, the mode's settings, tolerance, isolation, device key"""
    energy: Energy | None = None
    """of the process in the middle, by net energy; `None` without a sensor, or where it was not asked for"""
    others: tuple[Measurement, ...] = ()
    """of the same model on further boards of the same kind, which were faster"""

    @property
    def impossible(self) -> bool:
        """Faster than the device's arithmetic or memory allows; nothing may be concluded from it."""
        return "impossible" in self.flags


@dataclass(frozen=True)
class Verdict:
    """Which of two models is faster, as far as the measurement can tell."""

    word: str
    """of the candidate against the reference: `faster`, `slower`, `same`, or `noisy` (too wide an interval to say)"""
    speedup: Interval
    noise_floor: float
    """differences up to this share are the board's own, see `device calibrate`"""
