"""All that measuring needs of a device besides the models: a clock, a way to wait, and readings.

One small object, so that the simulated board can run the very same measuring code on a clock of its own.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path
from typing import Any, Callable, List, Protocol, Sequence, Tuple

from rlprune_agent.clock import ClockLoop
from rlprune_agent.load import Load
from rlprune_agent.sensors import PowerMeter, Sensors

Samples = List[Tuple[int, float]]
"""(when in nanoseconds, what)"""

_RUNNABLE_LOOKS = 3
_RUNNABLE_PAUSE = 0.02


class Sampling(Protocol):
    """A sensor that is being read in the background."""

    def stop(self) -> tuple[Samples, int]:
        """What was read, and the nanoseconds that reading took. Raises what reading raised."""


class World(Protocol):
    """A device, as measuring sees it."""

    def now_ns(self) -> int:
        """Monotonic."""

    def sleep(self, seconds: float) -> None: ...

    def waited_ns(self) -> int:
        """How long the measuring thread has wanted a CPU without getting one; 0 for ever where nobody counts."""

    def major_faults(self) -> int:
        """Pages this process had to wait for a disk for."""

    def loop_ns(self) -> float:
        """The true clock: time of a fixed piece of arithmetic, see `ClockLoop`."""

    def runnable(self) -> int | None:
        """Processes that want a CPU, this one included; `None` where it cannot be known."""

    def read(self) -> dict[str, Any]:
        """State of the board between two blocks, see `Sensors.read`, with `load_percent` caused by others."""

    def read_all(self) -> dict[str, Any]:
        """The same at the start and the end, with what takes longer to read."""

    def power_meter(self) -> PowerMeter:
        """Raises `OSError`, with the reason, where there is none."""

    def sample(self, read: Callable[[], float], period_seconds: float) -> Sampling:
        """Begin to read a sensor in the background."""


class RunQueue:
    """How long this thread has wanted a CPU without getting one, in nanoseconds, as the kernel counts it."""

    def __init__(self) -> None:
        self._fd: int | None = None
        try:
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:  # a kernel without the counter: no sample is ever set aside
            return

    def waited_ns(self) -> int:
        """Monotonic; 0 for ever where the kernel does not count."""
        return 0 if self._fd is None else int(os.pread(self._fd, 64, 0).split()[1])


class _Thread(threading.Thread):
    """Reads a sensor every so often, from a thread of its own."""

    def __init__(self, read: Callable[[], float], period_seconds: float, now_ns: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self._read = read
        self._period = period_seconds
        self._now_ns = now_ns
        self._end = threading.Event()
        self._samples: Samples = []
        self._cost_ns = 0
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._end.is_set():
                began = self._now_ns()
                value = self._read()
                ended = self._now_ns()
                self._samples.append(((began + ended) // 2, value))
                self._cost_ns += ended - began
                self._end.wait(max(0.0, self._period - (ended - began) / 1e9))
        except (OSError, ValueError) as error:
            self._error = error

    def stop(self) -> tuple[Samples, int]:
        self._end.set()
        self.join()
        if self._error is not None:
            raise self._error
        return self._samples, self._cost_ns


class ThisDevice:
    """The board this process runs on; files are read below `root`."""

    def __init__(self, root: Path = Path("/"), sources: Sequence[str] | None = None) -> None:
        self.now_ns = time.perf_counter_ns  # no wrapper: the timed loop calls it
        self.sleep = time.sleep
        self.waited_ns = RunQueue().waited_ns
        self._sensors = Sensors(root, sources)
        self._load = Load(root, self.now_ns)
        self._loop: ClockLoop | None = None

    def major_faults(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_majflt

    def loop_ns(self) -> float:
        if self._loop is None:
            self._loop = ClockLoop(self.now_ns)
        return self._loop.ns()

    def runnable(self) -> int | None:
        """The smallest of three looks: what is there only now and then is no load."""
        fewest = None
        for look in range(_RUNNABLE_LOOKS):
            if look:
                self.sleep(_RUNNABLE_PAUSE)
            try:
                count = self._load.runnable()
            except (OSError, ValueError):
                return None
            fewest = count if fewest is None else min(fewest, count)
        return fewest

    def read(self) -> dict[str, Any]:
        return self._with_load(self._sensors.read())

    def read_all(self) -> dict[str, Any]:
        return self._with_load(self._sensors.read_all())

    def _with_load(self, reading: dict[str, Any]) -> dict[str, Any]:
        try:
            reading["load_percent"] = self._load.percent()
        except (OSError, ValueError) as error:
            reading["missing"].append(f"load_percent: {error}")
        return reading

    def power_meter(self) -> PowerMeter:
        return self._sensors.power_meter()

    def sample(self, read: Callable[[], float], period_seconds: float) -> Sampling:
        thread = _Thread(read, period_seconds, self.now_ns)
        thread.start()
        return thread
