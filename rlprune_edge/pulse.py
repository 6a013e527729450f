"""A word while nothing else is said: long work in silence cannot be told from work that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from rlprune_edge.progress import duration

FIRST_SECONDS = 60.0


def still(seconds: float) -> str:
    """The word, after so long a silence."""
    return f"... still at it, {duration(seconds)} since the last line"


class Pulse:
    """While it is entered, calls `say` once nothing was `told` for a minute, then after two, four, eight.

    `say` is called from a thread of its own, with the seconds since the last word.
    """

    def __init__(self, say: Callable[[float], None], *, first_seconds: float = FIRST_SECONDS) -> None:
        self._say = say
        self._first = first_seconds
        self._last = time.monotonic()
        self._told = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def told(self) -> None:
        """Something was said just now."""
        self._last = time.monotonic()
        self._told.set()

    def __enter__(self) -> Pulse:
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._told.set()
        self._thread.join()

    def _beat(self) -> None:
        silent = self._first
        while not self._ending:
            if self._told.wait(self._last + silent - time.monotonic()):
                self._told.clear()
                silent = self._first
            else:
                self._say(time.monotonic() - self._last)
                silent *= 2
