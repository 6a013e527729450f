"""An agent's reply becomes a record only if its figures fit together."""

from __future__ import annotations

import array
from typing import Any

import pytest

from rlprune_agent.protocol import Failure, Message
from rlprune_edge.device.link import LinkBroken
from rlprune_edge.device.result import measurement_of, process_of, refuse_impossible, refuse_unfit
from rlprune_edge.errors import CandidateError
from rlprune_edge.measurements import Ceiling, Measurement, Work

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
    "flags": [],
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


_GATES: dict[str, Any] = {
    "waited_s": 2.5,
    "clock_ns": 60123.4,
    "start": {"throttled": 0, "governor": {"cpu0": "ondemand"}, "missing": []},
    "end": {"missing": ["throttled: vcgencmd is not on PATH"]},
    "readings": [{"at_s": 1.0, "clock_ns": 60123.4, "celsius": 51.0}],
    "dropped": [{"pair": 1, "kind": "throttled", "why": "hot \x1b[31m", "candidate": 2, "reference": 0}],
}


def test_dropped_pairs_come_after_those_set_aside() -> None:
    process = process_of(_reply(range(1, 12), gates=_GATES, flags=["busy"]))
    assert process.candidate_set_aside_ns + process.reference_set_aside_ns == (7, 8, 9)
    (dropped,) = process.dropped
    assert (dropped.pair, dropped.kind, dropped.candidate_ns, dropped.reference_ns) == (1, "throttled", (10, 11), ())
    assert "\x1b" not in dropped.why
    assert process.flags == ("busy",)
    assert process.gates is not None
    assert process.gates["readings"] == [{"at_s": 1.0, "clock_ns": 60123.4, "celsius": 51.0}]
    assert "dropped" not in process.gates


@pytest.mark.parametrize(
    "changes",
    [
        {"dropped": [{**_GATES["dropped"][0], "candidate": 3}]},
        {"dropped": [{**_GATES["dropped"][0], "candidate": 3, "reference": -1}]},
        {"dropped": [{**_GATES["dropped"][0], "kind": "rm -rf"}]},
        {"dropped": 7},
        {"waited_s": float("nan")},
        {"clock_ns": "fast"},
        {"readings": [{"a": {"b": {"c": {"d": {"e": 1}}}}}]},
        {"start": {"temperature_c": float("inf")}},
    ],
)
def test_gates_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LinkBroken) as caught:
        process_of(_reply(range(1, 12), gates={**_GATES, **changes}))
    assert caught.value.kind == "version_mismatch"


@pytest.mark.parametrize("flags", ["busy", ["\x1b[2J"], [1], ["x" * 41], None])
def test_a_flag_is_a_word(flags: Any) -> None:
    with pytest.raises(LinkBroken):
        process_of(_reply(range(1, 10), flags=flags))


_ENERGY: dict[str, Any] = {
    "sensor": "ina3221",
    "rail": "VDD_IN",
    "inferences": 500,
    "seconds": 10.0,
    "idle_mw": 2000.0,
    "gross_mj": 100.0,
    "net_mj": 60.0,
    "latency_ms": 20.0,
    "samples_hz": 19.8,
    "sampler_share": 0.01,
}


def test_energy_or_the_reason_why_there_is_none() -> None:
    measured = process_of(_reply(range(1, 10), energy=_ENERGY))
    assert measured.energy is not None
    assert (measured.energy.net_mj, measured.energy.rail) == (60.0, "VDD_IN")
    without = process_of(_reply(range(1, 10), energy={"missing": "no sensor\x07"}))
    assert without.energy is None
    assert without.energy_missing is not None
    assert without.energy_missing.startswith("no sensor")
    assert "\x07" not in without.energy_missing


@pytest.mark.parametrize("changes", [{"gross_mj": -1.0}, {"seconds": 0}, {"idle_mw": float("nan")}, {"rail": None}])
def test_an_energy_that_makes_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(LinkBroken):
        process_of(_reply(range(1, 10), energy={**_ENERGY, **changes}))


def _measurement(milliseconds: float, **more: Any) -> Measurement:
    """What a host makes of an agent that claims such a latency."""
    blocks = [3] * 6
    samples = array.array("q", [int(milliseconds * 1e6)] * 36)
    result = {**_RESULT, "candidate_blocks": blocks, "reference_blocks": blocks, "options": {}}
    result.update({"candidate_set_aside": 0, "reference_set_aside": 0})
    message = Message({"result": result, "vitals_before": {}, "vitals_after": {}}, samples.tobytes())
    return measurement_of(
        [process_of(message)],
        [message.header],
        source="board",
        device="pi4",
        mode="reward",
        threads=4,
        model_sha256="m",
        graph_sha256="g",
        reference_sha256="r",
        versions={},
        device_seconds=1.0,
        options={},
        **more,
    )


# A Raspberry Pi 4: 58 GFLOP/s at most; ResNet-50 is 8.2 GFLOP and 102 MB of weights.
_PI4 = Ceiling(flops_per_second=58e9, bytes_per_second=5e9, cache_bytes=1e6)
_RESNET50 = Work(flops=8.2e9, weight_bytes=102e6)


def test_f35_a_latency_no_board_can_have_is_flagged_and_never_used() -> None:
    claimed = _measurement(20.0, work=_RESNET50, ceiling=_PI4)
    assert claimed.impossible
    with pytest.raises(CandidateError, match="faster than pi4 can compute") as caught:
        refuse_impossible(claimed)
    assert caught.value.kind == "impossible"
    honest = _measurement(263.0, work=_RESNET50, ceiling=_PI4)
    assert refuse_impossible(honest) is honest
    assert not _measurement(20.0).impossible  # nobody knows what the model has to do


def test_a_reference_unlike_its_calibration_is_flagged() -> None:
    flags = [set(_measurement(20.0, calibrated_reference_ms=ms).flags) for ms in (20.5, 22.0, 30.0)]
    names = {"reference_drift", "reference_lost"}
    assert [found & names for found in flags] == [set(), {"reference_drift"}, {"reference_lost"}]


@pytest.mark.parametrize(
    ("mode", "source", "strict", "refused"),
    [
        ("report", "board", False, True),
        ("report", "local", False, False),
        ("report", "local", True, True),
        ("verify", "board", False, False),
    ],
)
def test_what_was_never_steady_is_not_published(mode: str, source: str, strict: bool, refused: bool) -> None:
    process = process_of(_reply(range(1, 10), steady=False))
    if not refused:
        assert refuse_unfit(process, mode=mode, source=source, strict=strict) is process
        return
    with pytest.raises(Failure) as caught:
        refuse_unfit(process, mode=mode, source=source, strict=strict)
    assert caught.value.kind == "not_steady"
    assert "`device check` looks for them" in caught.value.message
