"""How often and how long to try again what may come back: a board that restarts, a cable, a Wi-Fi."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 30.0
TOTAL_SECONDS = 180.0
JITTER = 0.2


def attempts(
    total_seconds: float = TOTAL_SECONDS,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    uniform: Callable[[float, float], float] = random.uniform,
) -> Iterator[int]:
    """Number the attempts from 1 and wait 1, 2, 4 .. 30 s between them, give or take 20 %, until the time is used up.

    The jitter keeps several hosts from knocking at a board all at once. Time spent in the attempts counts; the last
    pause is cut short, so that the last attempt comes when the time ends: a board that is back by then is found.
    """
    end = clock() + total_seconds
    number, pause = 1, FIRST_SECONDS
    while True:
        yield number
        left = end - clock()
        if left <= 0:
            return
        sleep(min(left, pause * uniform(1 - JITTER, 1 + JITTER)))
        number, pause = number + 1, min(2 * pause, LONGEST_SECONDS)
