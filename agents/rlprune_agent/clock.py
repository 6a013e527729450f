"""How fast the CPU really runs, told by a loop of integer arithmetic.

`scaling_cur_freq` is what the kernel asked for, not what the firmware granted; this loop works on every board and
cannot be fooled by either.
"""

from __future__ import annotations

from typing import Callable

REPEATS = 9
_LOOP_NS = 1e6


def _spin(turns: int) -> int:
    value = 1
    for _ in range(turns):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
    return value


class ClockLoop:
    """About a millisecond of arithmetic, in the time of `now_ns`.

    What disturbs a turn only ever adds time, so the smallest of nine is the clock and the rest is the neighbours.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._turns = 1000
        taken = self._once()
        while taken < _LOOP_NS / 2:
            self._turns *= 2
            taken = self._once()
        self._turns = max(1000, int(self._turns * _LOOP_NS / taken))

    def _once(self) -> int:
        began = self._now_ns()
        _spin(self._turns)
        return self._now_ns() - began

    def ns(self) -> float:
        """Nanoseconds per 1000 turns, the smallest of nine loops; takes about 9 ms."""
        return min(self._once() for _ in range(REPEATS)) * 1000 / self._turns
