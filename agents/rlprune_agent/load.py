"""How busy others keep the CPUs, between one look and the next."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Callable, NamedTuple

# One interruption of this length is not yet a load, however short the time between two looks.
_PRESSURE_GRACE_NS = 5e6
_TICKS_OF_GRACE = 2
_SHORTEST_NS = 2e7


class _Look(NamedTuple):
    at_ns: int
    stalled_ns: int | None
    """for how long, since boot, some task wanted a CPU and had none (pressure stall information)"""
    others_ns: int | None
    """CPU time of all processes but our own, since boot"""


def _tick_ns() -> float:
    return 1e9 / os.sysconf("SC_CLK_TCK")


def _own_ticks(root: Path) -> int:
    """CPU ticks of this process, its ended children, and the agent that started it."""
    own = (root / "proc/self/stat").read_text().rpartition(")")[2].split()
    ticks = sum(int(own[i]) for i in (11, 12, 13, 14))
    with contextlib.suppress(OSError, ValueError, IndexError):  # hidden from us (hidepid): then it is one of the others
        parent = (root / "proc" / own[1] / "stat").read_text().rpartition(")")[2].split()
        ticks += int(parent[11]) + int(parent[12])
    return ticks


def _others_ns(root: Path) -> int:
    # cpu user nice system idle iowait irq softirq steal (guest time is part of user)
    words = (root / "proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = (int(word) for word in words)
    return int((user + nice + system + irq + softirq + steal - _own_ticks(root)) * _tick_ns())


class Load:
    """Pressure stall information where the kernel has it, else CPU time outside our own processes.

    A Raspberry Pi's default kernel has the pressure files built in and switched off (`psi=1` switches them on).
    """

    def __init__(self, root: Path, now_ns: Callable[[], int]) -> None:
        self._root = root
        self._now_ns = now_ns
        self._last = self._look()

    def _pressure(self) -> tuple[float, int | None]:
        """Percent over the last 10 s, and the total in nanoseconds. Raises `OSError` or `ValueError` without one."""
        text = (self._root / "proc/pressure/cpu").read_text()
        average, total = re.search(r"some avg10=([\d.]+)", text), re.search(r"some .*total=(\d+)", text)
        if not average:
            raise ValueError("no avg10 in proc/pressure/cpu")
        return float(average.group(1)), int(total.group(1)) * 1000 if total else None

    def _look(self) -> _Look:
        stalled = others = None
        try:
            stalled = self._pressure()[1]
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError, IndexError):
                others = _others_ns(self._root)
        return _Look(self._now_ns(), stalled, others)

    def percent(self) -> float:
        """Of one CPU, since the last call. Raises `OSError` or `ValueError` where neither file can be read."""
        now, last = self._look(), self._last
        window = now.at_ns - last.at_ns
        if window >= _SHORTEST_NS:
            self._last = now
            if now.stalled_ns is not None and last.stalled_ns is not None:
                return max(0.0, now.stalled_ns - last.stalled_ns - _PRESSURE_GRACE_NS) * 100 / window
            if now.others_ns is not None and last.others_ns is not None:
                grace = _TICKS_OF_GRACE * _tick_ns()
                return max(0.0, now.others_ns - last.others_ns - grace) * 100 / window
        return self._pressure()[0]

    def runnable(self) -> int:
        """Processes that run or want to, this one included. Raises `OSError` or `ValueError` without /proc/stat."""
        match = re.search(r"^procs_running (\d+)", (self._root / "proc/stat").read_text(), re.MULTILINE)
        if not match:
            raise ValueError("no procs_running in proc/stat")
        return int(match.group(1))
