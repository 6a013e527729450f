"""What belongs to the whole process and not to a search: torch's threads, the global random generators."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@contextmanager
def own_process_state() -> Iterator[Callable[[], Any]]:
    """Take over torch's threads and the global random generators; yields a context manager that puts the caller's back.

    They belong to the whole process. Without this a candidate's fine-tuning would decide what the policy tries next,
    and a resumed search, which skips it, would take another way. One thread: PPO's matrices are tiny, and with two
    threads a search's own share took 143 s instead of 8.
    """
    theirs = _State.now()

    @contextmanager
    def put_back() -> Iterator[None]:
        nonlocal theirs
        ours = _State.now()
        theirs.restore()
        try:
            yield
        finally:
            theirs = _State.now()
            ours.restore()

    torch.set_num_threads(1)
    try:
        yield put_back
    finally:
        theirs.restore()


@dataclass(frozen=True)
class _State:
    """What torch, numpy and Python keep per process."""

    threads: int
    torch_rng: torch.Tensor
    numpy_rng: Any
    python_rng: Any

    @classmethod
    def now(cls) -> _State:
        return cls(torch.get_num_threads(), torch.get_rng_state(), np.random.get_state(), random.getstate())

    def restore(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_rng_state(self.torch_rng)
        np.random.set_state(self.numpy_rng)
        random.setstate(self.python_rng)
