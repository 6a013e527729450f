"""How thoroughly to measure, in three modes, and what anything that measures can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlprune_edge.device.trust import order_statistic_ranks
from rlprune_edge.errors import UserError
from rlprune_edge.records import Measurement


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
    """per process, uploads not counted"""

    def job(self) -> dict[str, Any]:
        """As the agent wants it: `pairs` becomes `checks`, each with the rank that bounds the interval there."""
        fields = asdict(self)
        del fields["pairs"], fields["processes"]
        ranks = {n: order_statistic_ranks(n) for n in self.pairs}
        fields["checks"] = [[n, low_high[0] if low_high else 1] for n, low_high in ranks.items()]
        return fields


MODES: dict[str, ModeSettings] = {
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
    ),
}


def mode_settings(mode: str) -> ModeSettings:
    """The settings of a mode. Raises `UserError` for a name that is none."""
    if mode not in MODES:
        raise UserError(f"unknown measuring mode '{mode}'; the modes are {', '.join(MODES)}")
    return MODES[mode]


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
        tolerance: float = 1e-3,
        use_cache: bool | None = None,
    ) -> Measurement:
        """Time one model. Raises `CandidateError` where the model is at fault, else `DeviceError`."""

    def sweep(self, models: Sequence[bytes]) -> list[float]:
        """Nanoseconds of one inference of each of many tiny models."""

    def close(self) -> None:
        """Give the device back."""
