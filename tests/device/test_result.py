"""An agent's reply becomes a record only if its figures fit together."""

from __future__ import annotations

import array
from typing import Any

import pytest

from rlprune_agent.protocol import Message
from rlprune_edge.device.link import LinkBroken
from rlprune_edge.device.result import process_of

_RESULT: dict[str, Any] = {
    "candidate_blocks": [2, 1],
    "reference_blocks": [1, 2],
    "candidate_set_aside": 1,
    "reference_set_aside": 2,
    "candidate_loop": 1,
    "reference_loop": 1,
    "warmup_runs": 5,
    "steady": True,
    "import_ns": 1,
    "session_ns": 1,
    "first_run_ns": 1,
    "memory_before_bytes": None,
    "memory_peak_bytes": None,
    "max_output_difference": 0.0,
}


def _reply(samples: range, **changes: Any) -> Message:
    return Message({"result": {**_RESULT, **changes}}, array.array("q", samples).tobytes())


def test_samples_come_apart_into_blocks_and_those_set_aside() -> None:
    process = process_of(_reply(range(1, 10)))
    assert process.candidate_ns == ((1, 2), (3,))
    assert process.reference_ns == ((4,), (5, 6))
    assert process.candidate_set_aside_ns == (7,)
    assert process.reference_set_aside_ns == (8, 9)


@pytest.mark.parametrize(
    ("samples", "changes"),
    [
        (range(1, 9), {}),
        (range(1, 11), {}),
        (range(1, 9), {"candidate_set_aside": -1, "reference_set_aside": 3}),
        (range(0, 9), {}),
        (range(1, 9), {"reference_blocks": [3]}),
        (range(1, 10), {"max_output_difference": float("nan")}),
    ],
    ids=["too few", "too many", "fewer than none set aside", "no time at all", "unequal blocks", "no number"],
)
def test_figures_that_do_not_fit_are_refused(samples: range, changes: dict[str, Any]) -> None:
    with pytest.raises(LinkBroken, match="does not make sense"):
        process_of(_reply(samples, **changes))
