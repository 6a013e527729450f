"""Take samples of one model: loops, blocks, and samples that had to wait for a CPU set aside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Protocol

from rlprune_agent import pace
from rlprune_agent.world import World

if TYPE_CHECKING:
    import numpy as np

_FLOOR_NS = 1e6  # a sample below 1 ms is at the mercy of timer and scheduler
_LONG_NS = 2e8
_WAIT_SHARE = 0.02
_PATIENCE = 2


class Model(Protocol):
    """What is timed: an ONNX Runtime session, or a simulated one."""

    @property
    def run(self) -> Callable[..., Any]:
        """`run(None, feeds)` is one inference."""


class Timed:
    """A model with its inputs and the number of inferences that make one sample.

    A sample during which the thread waited in the run queue for more than 2 % of the time measured the neighbours and
    not the model; it is set aside, kept for the record, and taken again, up to twice a block's length. On a quiet board
    this changes nothing.
    At a load of 3.5 on two cores it brought a ratio that wandered from 3.3 to 5.3 back to 3.2 to 3.6.
    Only the calling thread is seen, which with one thread is all of the work.
    """

    def __init__(self, model: Model, feeds: dict[str, np.ndarray], world: World) -> None:
        self.model = model
        self.feeds = feeds
        self.loop = 1
        self.run_ns = 0
        """of one inference, about; known once the loop is chosen"""
        self.samples = 0
        self.contended = 0
        """samples that waited for a CPU, whether they were taken again or had to do"""
        self.set_aside: list[int] = []
        """those of them that were taken again, in nanoseconds"""
        self._waited_ns = world.waited_ns
        self._now_ns = world.now_ns

    def sample(self) -> tuple[int, bool]:
        """Nanoseconds of one inference, the mean of `loop` of them; and whether it was left in peace."""
        run, feeds, now_ns = self.model.run, self.feeds, self._now_ns
        waited = self._waited_ns()
        began = now_ns()
        for _ in range(self.loop):
            run(None, feeds)
        taken = now_ns() - began
        waited = self._waited_ns() - waited
        self.samples += 1
        return taken // self.loop, waited <= _WAIT_SHARE * taken

    def block(self, runs: int, block_ns: float) -> list[int]:
        """Samples left in peace until there are `runs` of them and `block_ns` have passed.

        All samples where peace is not to be had in twice as long: a figure that is flagged is better than none.
        """
        good: list[int] = []
        spoilt: list[int] = []
        began = self._now_ns()
        while True:
            value, peaceful = self.sample()
            (good if peaceful else spoilt).append(value)
            spent = self._now_ns() - began
            if len(good) >= runs and spent >= block_ns:
                break
            if len(good) + len(spoilt) >= runs * _PATIENCE and spent >= block_ns * _PATIENCE:
                self.contended += len(spoilt)
                return good + spoilt
        self.contended += len(spoilt)
        self.set_aside += spoilt
        return good

    def begin(self) -> None:
        """Forget the samples of the warm-up: from here on they count."""
        self.samples = self.contended = 0
        self.set_aside = []

    def choose_loop(self, sample_ms: float) -> None:
        """Set `loop` from a few single runs, or one where that is a long one already."""
        self.loop = 1
        self.run_ns, _ = self.sample()
        if self.run_ns > _LONG_NS:
            return
        runs = sorted(self.block(3, 10e6))
        self.run_ns = runs[len(runs) // 2]
        self.loop = pace.loop_for(self.run_ns, floor_ns=_FLOOR_NS, sample_ns=sample_ms * 1e6)
