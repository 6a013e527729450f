"""How thoroughly to measure, in three modes, and what anything that measures can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlprune_agent import policy
from rlprune_edge.device.trust import order_statistic_ranks
from rlprune_edge.errors import UserError
from rlprune_edge.measurements import Measurement, Work
from rlprune_edge.records import Skeleton


@dataclass(frozen=True)
class ModeSettings:
    """How one candidate is timed. A "run" is one sample (the mean of several inferences where one takes below 1 ms)."""

    processes: int
    """fresh child processes"""
    warmup_runs: int
    warmup_seconds: float
    """at least, for the process as a whole"""
    window_runs: int
    window_ms: float
    """size of the windows whose likeness means steady: at least this many runs and this long"""
    warmup_cap_runs: int
    warmup_cap_seconds: float
    pairs: tuple[int, ...]
    """numbers of block pairs at which the stop rule looks: the first is the minimum, the last the maximum"""
    block_ms: float
    """a block lasts at least this long"""
    min_runs: int
    """runs of the candidate in all blocks together, at least"""
    slow_run_ms: float
    min_runs_slow: int
    """the same for models slower than `slow_run_ms` a run"""
    reference_runs: int
    """runs in a block of the reference, at least"""
    sample_ms: float
    """where one inference takes below 1 ms: how long a sample is made"""
    target_half_width: float
    """stop when half the interval is at most this share of the median"""
    cap_seconds: float
    """per process; uploads, the gates' pauses and the energy window not counted"""
    gate_retries: int
    """how often a pair of blocks that a gate dropped is taken again"""
    gate_wait_seconds: float
    """to cool down, in all"""
    gate_load_wait_seconds: float
    """for other processes to finish, in all"""
    local_wait_seconds: float
    """the same on a developer's machine, which is hardly ever idle and is measured all the same"""
    heat_refuses: bool
    """a board that does not cool down to where a measurement may begin is refused, else flagged"""
    energy: bool
    """energy is measured where the board has a sensor"""

    def job(self, *, gates: Mapping[str, Any] | None = None, energy: bool = False) -> dict[str, Any]:
        """As the agent wants it: `pairs` becomes `checks`, each with the rank that bounds the interval there.

        `gates` as `gates_for` makes them; without them the agent watches nothing.
        """
        fields = {name: value for name, value in asdict(self).items() if name not in _HOST_ONLY}
        ranks = {n: order_statistic_ranks(n) for n in self.pairs}
        fields["checks"] = [[n, low_high[0] if low_high else 1] for n, low_high in ranks.items()]
        if gates is not None:
            fields["gates"] = dict(gates)
        if energy:
            fields["energy"] = True
        return fields


_HOST_ONLY = frozenset(
    {
        "pairs",
        "processes",
        "gate_retries",
        "gate_wait_seconds",
        "gate_load_wait_seconds",
        "local_wait_seconds",
        "heat_refuses",
        "energy",
    }
)


MODES: dict[str, ModeSettings] = {
    # For comparisons of searchers, who all see the same figure of a network: thousands of networks, a noise of a few
    # per cent. 4 pairs: their smallest and largest ratio are an 88 % interval.
    "brief": ModeSettings(
        processes=1,
        warmup_runs=5,
        warmup_seconds=0.1,
        window_runs=5,
        window_ms=25,
        warmup_cap_runs=50,
        warmup_cap_seconds=5,
        pairs=(4, 8),
        block_ms=20,
        min_runs=12,
        slow_run_ms=1000,
        min_runs_slow=4,
        reference_runs=3,
        sample_ms=2,
        target_half_width=0.05,
        cap_seconds=30,
        gate_retries=2,
        gate_wait_seconds=180,
        gate_load_wait_seconds=90,
        local_wait_seconds=0.2,
        heat_refuses=False,
        energy=False,
    ),
    # 8 pairs (not 4 longer ones): a sign-test interval needs 6, and with 8 the smallest and largest ratio are a 99 %
    # interval. Blocks of 60 ms instead of 100 ms and windows of 125 ms pay for it: import 0.2 s, warm-up 0.5 s and
    # 16 x 60 ms keep a candidate of a millisecond below 2.5 s, and a search takes hundreds of them.
    "reward": ModeSettings(
        processes=1,
        warmup_runs=5,
        warmup_seconds=0.5,
        window_runs=5,
        window_ms=125,
        warmup_cap_runs=50,
        warmup_cap_seconds=10,
        pairs=(8, 12),
        block_ms=60,
        min_runs=24,
        slow_run_ms=1000,
        min_runs_slow=8,
        reference_runs=3,
        sample_ms=2,
        target_half_width=0.025,
        cap_seconds=30,
        gate_retries=2,
        gate_wait_seconds=180,
        gate_load_wait_seconds=90,
        local_wait_seconds=1,
        heat_refuses=False,
        energy=False,
    ),
    # 16 pairs: ranks 4 and 13 give 97.9 % and survive three spoilt blocks. 64 runs allow a p90.
    "verify": ModeSettings(
        processes=3,
        warmup_runs=10,
        warmup_seconds=1,
        window_runs=10,
        window_ms=250,
        warmup_cap_runs=300,
        warmup_cap_seconds=30,
        pairs=(16, 24, 32, 48),
        block_ms=200,
        min_runs=64,
        slow_run_ms=1000,
        min_runs_slow=16,
        reference_runs=4,
        sample_ms=5,
        target_half_width=0.01,
        cap_seconds=120,
        gate_retries=3,
        gate_wait_seconds=900,
        gate_load_wait_seconds=90,
        local_wait_seconds=15,
        heat_refuses=False,
        energy=False,
    ),
    # 662 runs allow a p99, 130 a p95; 16 blocks of 625 ms make the 10 s.
    "report": ModeSettings(
        processes=5,
        warmup_runs=10,
        warmup_seconds=1,
        window_runs=10,
        window_ms=250,
        warmup_cap_runs=300,
        warmup_cap_seconds=60,
        pairs=(16, 24, 32, 48),
        block_ms=625,
        min_runs=662,
        slow_run_ms=100,
        min_runs_slow=130,
        reference_runs=8,
        sample_ms=5,
        target_half_width=0.01,
        cap_seconds=900,
        gate_retries=3,
        gate_wait_seconds=900,
        gate_load_wait_seconds=90,
        local_wait_seconds=30,
        heat_refuses=True,
        energy=True,
    ),
}


SEARCH_MODES = ("brief", "reward")
"""for the many candidates of a search: kept in the cache, not insisted on"""


def mode_settings(mode: str) -> ModeSettings:
    """The settings of a mode. Raises `UserError` for a name that is none."""
    if mode not in MODES:
        raise UserError(f"unknown measuring mode '{mode}'; the modes are {', '.join(MODES)}")
    return MODES[mode]


class Limits(Protocol):
    """The part of a device profile that says when its figures cannot be trusted; `None`: not watched."""

    @property
    def start_celsius(self) -> float | None: ...

    @property
    def stop_celsius(self) -> float | None: ...

    @property
    def throttle(self) -> bool:
        """the firmware's throttle bits can be read"""

    @property
    def undervoltage(self) -> bool:
        """the board has a low-voltage detector"""

    @property
    def max_clock_loss(self) -> float | None: ...

    @property
    def load_percent(self) -> float | None: ...


def gates_for(
    limits: Limits,
    mode: str,
    strict: bool = False,
    *,
    source: str = "board",
    sources: Sequence[str] | None = None,
    clock_ns: float | None = None,
) -> dict[str, Any]:
    """What the agent shall watch (`settings.gates`), from a profile's limits and its telemetry `sources`.

    `clock_ns` is the calibrated time of the agent's arithmetic loop; without it the fastest of a session counts.
    A board is refused for what disturbs it; a developer's machine (`source` "local") waits shortly and is measured with
    a flag, since nobody has an idle laptop, unless `strict`. Raises `UserError` for an unknown mode.
    """
    settings = mode_settings(mode)
    lenient = source == "local" and not strict
    flag_only = list(policy.KINDS) if lenient else [] if settings.heat_refuses or strict else ["gate_timed_out"]
    gates: dict[str, Any] = {
        "start_celsius": limits.start_celsius,
        "stop_celsius": limits.stop_celsius,
        "throttle": limits.throttle,
        "undervoltage": limits.undervoltage,
        "max_clock_loss": limits.max_clock_loss,
        "clock_ns": clock_ns,
        "load_percent": limits.load_percent,
        "wait_seconds": settings.local_wait_seconds if lenient else settings.gate_wait_seconds,
        "load_wait_seconds": settings.local_wait_seconds if lenient else settings.gate_load_wait_seconds,
        "poll_seconds": min(2.0, settings.local_wait_seconds) if lenient else 2.0,
        "retries": settings.gate_retries,
        "flag_only": flag_only,
    }
    if sources is not None:
        gates["sources"] = list(sources)
    return gates


class Meter(Protocol):
    """Anything that measures models: this machine, or a board at the other end of a cable."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the device said about itself in hello."""

    @property
    def key(self) -> str:
        """Hash of all that decides latency on this device; figures under different keys are never compared."""

    @property
    def device_seconds(self) -> float:
        """Seconds of device time used so far."""

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
        """Time one model. Raises `CandidateError` where the model is at fault, else `DeviceError`."""

    def sweep(self, models: Sequence[bytes]) -> list[float]:
        """Nanoseconds of one inference of each of many tiny models."""

    def close(self) -> None:
        """Give the device back."""
