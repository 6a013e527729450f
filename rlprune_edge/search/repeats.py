"""Notice that a searcher proposes hardly anything new any more."""

from __future__ import annotations

from collections import deque

WINDOW = 200
NEW_SHARE = 0.10


class Repeats:
    """Looks back on the last 200 proposals; a converged policy otherwise goes round for ever at no cost."""

    def __init__(self) -> None:
        self._new: deque[bool] = deque(maxlen=WINDOW)

    def count(self, new: bool) -> None:
        self._new.append(new)

    @property
    def many(self) -> bool:
        """Fewer than 10 % of the last 200 proposals were new."""
        return len(self._new) == WINDOW and sum(self._new) < NEW_SHARE * WINDOW
