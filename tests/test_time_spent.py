"""A run's time over several processes, some of which were killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rlprune_edge import request as requests
from rlprune_edge.run_folder import RunFolder
from rlprune_edge.time_spent import Stopwatch, TimeSpent


class Hands:
    """Of a clock, and of one that runs while a device measures."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.device = 0.0

    def passes(self, seconds: float, *, device: float = 0.0) -> None:
        self.now += seconds
        self.device += device


@contextmanager
def process(path: Path) -> Iterator[tuple[Stopwatch, Hands]]:
    """One that works on the run in that folder, with clocks of its own."""
    folder = RunFolder.reopen(path)[0] if path.exists() else RunFolder.create(path, requests.make({"task": "digits"}))
    hands = Hands()
    with closing(folder):
        yield Stopwatch(folder, lambda: hands.device, now=lambda: hands.now), hands


def test_of_a_search_all_that_passes_counts_and_of_a_run_what_is_around_it(tmp_path: Path) -> None:
    with process(tmp_path / "run") as (watch, hands):
        assert watch.spent.figures["seconds_per_candidate"] is None
        assert watch.spent.figures["device_idle_share"] is None
        hands.passes(5, device=2)  # the uncut model
        watch.evaluated()
        assert watch.spent == TimeSpent(wall_seconds=5)
        with watch.searching():
            for _ in range(4):
                hands.passes(3, device=2)
                watch.evaluated()
            hands.passes(1)
            watch.known()  # the agent proposes what it had
            hands.passes(1)
        hands.passes(10)
        watch.keep()
    assert watch.spent == TimeSpent(wall_seconds=29, search_seconds=14, device_seconds=8, candidates=4)
    assert watch.spent.figures["seconds_per_candidate"] == pytest.approx(14 / 4)
    assert watch.spent.figures["device_idle_share"] == pytest.approx(6 / 14)


def test_a_resumed_search_counts_from_where_it_comes_to_something_new(tmp_path: Path) -> None:
    with process(tmp_path / "run") as (watch, hands):
        search = watch.searching()
        search.__enter__()
        hands.passes(3, device=2)
        watch.evaluated()
        hands.passes(7)  # and then it is killed
    killed = TimeSpent(wall_seconds=3, search_seconds=3, device_seconds=2, candidates=1)
    with process(tmp_path / "run") as (watch, hands):
        assert watch.spent == killed
        with watch.searching():
            hands.passes(60)
            watch.known()
            hands.passes(4, device=3)
            watch.evaluated()
    resumed = TimeSpent(wall_seconds=67, search_seconds=7, device_seconds=5, candidates=2)
    with process(tmp_path / "run") as (watch, hands):
        assert watch.spent == resumed
        with watch.searching():
            hands.passes(60)
            watch.known()
            hands.passes(1)
    with process(tmp_path / "run") as (watch, _):
        assert watch.spent == replace(resumed, wall_seconds=128)
        assert watch.spent.figures == resumed.figures | {"wall_seconds": 128}
