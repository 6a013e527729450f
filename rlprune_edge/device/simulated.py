"""A device that does not exist, as a `Meter`: for tests, for replaying a search, and to see what statistics can do.

Its figures come from the agent's own measuring code on a clock of its own (`rlprune_agent.simulate`), go through the
same checks and statistics as a board's, and are stamped `simulated`: they can never be taken for measured ones.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import rlprune_agent
from rlprune_agent.protocol import CANDIDATE_KINDS, Failure
from rlprune_agent.simulate import Conditions, SimBoard, simulate
from rlprune_edge.device.meter import gates_for, mode_settings
from rlprune_edge.device.result import measurement_of, process_of, refuse_unfit
from rlprune_edge.errors import CandidateError, DeviceError
from rlprune_edge.measurements import Measurement, Work
from rlprune_edge.records import Skeleton

_ATTEMPTS = {"reward": 2}
_ATTEMPTS_ELSE = 3
_LIMITS = SimpleNamespace(
    start_celsius=60.0, stop_celsius=78.0, throttle=True, undervoltage=True, max_clock_loss=0.03, load_percent=5.0
)


class SimulatedDevice:
    """A `Meter` whose models take as long as `law` says: milliseconds of one inference from a model file's bytes.

    `seed` decides the noise of the first measuring process, and every further process draws on from there: the same
    calls in the same order give the same figures.
    """

    def __init__(
        self,
        law: Callable[[bytes], float],
        *,
        conditions: Conditions | None = None,
        seed: int = 0,
        gates: Mapping[str, Any] | None = None,
        watch: bool = True,
        threads: int = 1,
        name: str = "simulated",
    ) -> None:
        """`gates` instead of the usual ones of a Raspberry Pi 4; `watch=False` for none at all."""
        self._law = law
        self._conditions = conditions or Conditions()
        self._seeds = random.Random(seed)
        self._gates = gates
        self._watch = watch
        self._threads = threads
        self._name = name
        self._seconds = 0.0
        words = repr((self._conditions, threads, name))
        self._key = "simulated-" + hashlib.sha256(words.encode()).hexdigest()[:16]

    @property
    def facts(self) -> dict[str, Any]:
        """As an agent's hello has them."""
        return {
            "facts": {"machine": "simulated", "online_cpus": 4, "memory_bytes": 4 * 10**9},
            "vitals": {},
            "runtime": {"onnxruntime": "simulated"},
            "agent": rlprune_agent.__version__,
            "isolation": "simulated",
        }

    @property
    def key(self) -> str:
        """Never that of a real device."""
        return self._key

    @property
    def device_seconds(self) -> float:
        """Simulated seconds."""
        return self._seconds

    def measure(
        self,
        model: Path,
        *,
        model_sha256: str,
        graph_sha256: str,
        reference: tuple[Path, str] | None,
        inputs: Mapping[str, np.ndarray],  # noqa: ARG002 - nothing is computed
        expected: Mapping[str, np.ndarray],  # noqa: ARG002
        mode: str,
        tolerance: float | Mapping[str, float] = 1e-3,  # noqa: ARG002
        use_cache: bool | None = None,  # noqa: ARG002
        skeleton: Skeleton | None = None,  # noqa: ARG002
        work: Work | None = None,  # noqa: ARG002
        reference_ms: float | None = None,  # noqa: ARG002
    ) -> Measurement:
        """As a real device's `measure`, errors included; a candidate and its reference meet the same conditions."""
        settings = mode_settings(mode)
        gates = (self._gates or gates_for(_LIMITS, mode)) if self._watch else None
        job = settings.job(gates=gates, energy=settings.energy)
        data = model.read_bytes()
        against = reference[0].read_bytes() if reference else None
        before = self._seconds
        processes, replies = [], []
        for _ in range(settings.processes):
            message = self._process(job, data, against, mode)
            processes.append(process_of(message))
            replies.append(message.header)
        return measurement_of(
            processes,
            replies,
            source="simulated",
            device=self._name,
            mode=mode,
            threads=self._threads,
            model_sha256=model_sha256,
            graph_sha256=graph_sha256,
            reference_sha256=reference[1] if reference else None,
            versions={"agent": rlprune_agent.__version__},
            device_seconds=self._seconds - before,
            options={"settings": job, "conditions": self._conditions._asdict()},
        )

    def _process(self, job: dict[str, Any], data: bytes, against: bytes | None, mode: str) -> Any:
        """One measuring process, tried again as often as a real device would be."""
        attempts = _ATTEMPTS.get(mode, _ATTEMPTS_ELSE)
        for attempt in range(attempts):
            board = SimBoard(self._conditions, self._seeds.getrandbits(64))
            try:
                message = simulate(
                    job,
                    candidate_ms=self._law(data),
                    reference_ms=None if against is None else self._law(against),
                    model_bytes=len(data),
                    threads=self._threads,
                    board=board,
                )
                refuse_unfit(process_of(message), mode=mode, source="simulated")
                return message
            except Failure as failure:
                if failure.kind in CANDIDATE_KINDS:
                    raise CandidateError(failure.kind, failure.message) from None
                if attempt == attempts - 1:
                    raise DeviceError(failure.kind, f"the simulated board: {failure.message}") from None
            finally:
                self._seconds += board.now_ns() / 1e9
        raise AssertionError("unreachable: the last attempt returns or raises")

    def sweep(self, models: Sequence[bytes]) -> list[float]:
        """Nanoseconds of one inference of each model, without noise: a sweep takes minima."""
        return [self._law(data) * 1e6 for data in models]

    def close(self) -> None:
        """Nothing to give back."""
