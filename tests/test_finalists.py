"""What counts as meeting a target, and who comes next where the first finalists did not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from samples import a_measurement, a_trial

from rlprune_edge.finalists import _weights_matter, _with_margin, meets, reached
from rlprune_edge.measurements import Interval
from rlprune_edge.records import Plan, Target

PLAN = Plan({"a": 8, "block.b": 16}, ())


@pytest.mark.parametrize(
    ("target", "met", "firmly"),
    [
        (Target(speedup=2.0), True, False),  # 2.0 (1.9 to 2.1)
        (Target(speedup=1.8), True, True),
        (Target(speedup=2.05), False, False),
        (Target(latency_ms=1.0), True, False),
        (Target(latency_ms=1.02), True, True),
        (Target(latency_ms=0.9), False, False),
        (Target(memory_mb=80.0), True, True),
        (Target(memory_mb=79.0), False, False),
        (Target(), True, True),
    ],
)
def test_a_target_is_met_by_the_figure_and_firmly_by_its_interval(target: Target, met: bool, firmly: bool) -> None:
    measurement = a_measurement(1.0)
    assert (meets(measurement, target), meets(measurement, target, firmly=True)) == (met, firmly)


def test_a_range_of_a_few_blocks_is_never_firm() -> None:
    measurement = a_measurement(1.0, flags=("few_blocks",))
    assert meets(measurement, Target(speedup=1.8))
    assert not meets(measurement, Target(speedup=1.8), firmly=True)


def test_every_board_has_to_meet_it() -> None:
    slower = a_measurement(1.2)
    assert not meets(replace(a_measurement(1.0), others=(slower,)), Target(speedup=2.0))


def test_the_next_finalists_are_faster_by_what_the_first_ones_lost() -> None:
    trial = a_trial(1, PLAN)  # 2.0x in 1 ms
    assert _with_margin(trial, Target(speedup=2.0), 1.0)
    assert not _with_margin(trial, Target(speedup=2.0), 0.95)
    assert _with_margin(trial, Target(speedup=1.9), 0.95)
    assert not _with_margin(trial, Target(latency_ms=1.0), 0.95)
    assert _with_margin(trial, Target(latency_ms=1.1), 0.95)


def test_made_up_weights_are_spoken_of_where_they_mattered() -> None:
    made_up = a_measurement(1.0, options={"weights": "made up"})
    trial = a_trial(1, PLAN, measurement=made_up)
    assert _weights_matter(trial, replace(made_up, speedup=Interval(2.05, 2.0, 2.1))) is None
    doubt = _weights_matter(trial, replace(made_up, speedup=Interval(1.8, 1.7, 1.9)))
    assert doubt is not None
    assert "1.80x faster with its own weights and was 2.00x with made-up ones" in doubt
    assert _weights_matter(a_trial(1, PLAN), replace(made_up, speedup=Interval(1.8, 1.7, 1.9))) is None


@pytest.mark.parametrize(("value", "said"), [(1.5, "1.50x faster (1.40 to"), (0.8, "0.80x as fast (0.70 to")])
def test_what_is_slower_is_not_called_faster(value: float, said: str) -> None:
    assert reached(a_measurement(1.0, speedup=Interval(value, value - 0.1, value + 0.1))).startswith(said)
