"""Several boards as one: real daemons side by side, asked at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent.boards import FakeBoard
from device.bridge import SHED, Bridged
from talk import Daemon, wait_for

from rlprune_edge.device.fleet import Fleet
from rlprune_edge.device.meter import MODES
from rlprune_edge.errors import CandidateError, DeviceError, RlpruneError, UserError
from rlprune_edge.measurements import Measurement

Make = Callable[[int], Any]

_QUICK = replace(MODES["reward"], warmup_seconds=0.02, warmup_cap_seconds=0.1, window_ms=5, block_ms=2, sample_ms=0.5)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODES, "quick", _QUICK)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Bridged, Bridged]]:
    with ExitStack() as stack:
        stations = []
        for name in ("left", "right"):
            planted = FakeBoard(tmp_path / f"{name}-board")
            planted.write("proc/sys/kernel/random/boot_id", name)  # they are on one machine, and shall be two
            daemon = Daemon(tmp_path / name, "--root", str(planted.root))
            stack.callback(daemon.stop)
            profile = SHED.model_copy(update={"name": name})
            station = Bridged(daemon.home, cache_dir=tmp_path / "cache", profile=profile)
            stations.append(stack.enter_context(station))
        yield stations[0], stations[1]


def _measure(device: Fleet, model: Any, **changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "model_sha256": model.sha256,
        "graph_sha256": "graph of " + model.sha256,
        "reference": None,
        "inputs": model.inputs,
        "expected": model.expected,
        "mode": "quick",
        "use_cache": False,
    }
    return device.measure(model.path, **{**fields, **changes})


def test_both_are_measured_and_the_slower_counts(two: tuple[Bridged, Bridged], sample: Make) -> None:
    with Fleet(two) as fleet:
        model, other = sample(64), sample(256)
        alone = _measure(fleet, model)
        assert {alone.device, alone.others[0].device} == {"left", "right"}
        assert alone.latency_ms.value >= alone.others[0].latency_ms.value
        paired = _measure(fleet, model, reference=(other.path, other.sha256))
        (faster,) = paired.others
        assert paired.speedup is not None
        assert faster.speedup is not None
        assert paired.speedup.value <= faster.speedup.value
        assert paired.memory_mb is not None
        assert faster.memory_mb is not None
        assert paired.memory_mb >= faster.memory_mb
        assert fleet.profile.name == "left,right"
        assert fleet.device_seconds == max(station.device_seconds for station in two)
        assert len(fleet.sweep([model.path.read_bytes()])) == 1


def test_a_model_at_fault_is_at_fault_on_both(two: tuple[Bridged, Bridged], sample: Make) -> None:
    model = sample(64)
    with Fleet(two) as fleet, pytest.raises(CandidateError) as caught:
        _measure(fleet, model, expected={"y": model.expected["y"] + 1})
    assert caught.value.kind == "output_mismatch"


def test_boards_that_differ_are_refused(two: tuple[Bridged, Bridged], monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = two
    with pytest.raises(UserError, match="not the same kind of board"):
        Fleet([left, _with_profile(right, title="another kind")])
    two_threads = _with_profile(right)
    two_threads.threads = 2
    with pytest.raises(UserError, match="--threads 1"):
        Fleet([left, two_threads])
    with pytest.raises(UserError, match="measured on alone"):
        Fleet([left, _with_profile(right, source="local")])
    with pytest.raises(UserError, match="the same board"):
        _ = Fleet([left, left]).facts
    hello = right.facts | {"facts": right.facts["facts"] | {"governor": "powersave"}}
    monkeypatch.setattr(right, "_hello", hello)
    with pytest.raises(UserError, match=r"not set up alike: governor \(.* and powersave\)"):
        _ = Fleet([left, right]).facts


def test_a_board_that_somebody_else_has_can_be_given_up(two: tuple[Bridged, Bridged], tmp_path: Path) -> None:
    left, _ = two
    left.hold()
    waiting = Bridged(tmp_path / "left", cache_dir=tmp_path / "cache", on_wait=lambda *_: None)
    outcome: list[Exception] = []

    def run() -> None:
        try:
            waiting.hold()
        except RlpruneError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_for(lambda: waiting.connections == 1)
    time.sleep(0.5)
    waiting.break_off()
    thread.join(15)
    assert not thread.is_alive()
    assert isinstance(outcome[0], DeviceError)
    with pytest.raises(DeviceError, match="broken off"):
        waiting.status()
    waiting.close()


def _with_profile(station: Bridged, **changes: Any) -> Bridged:
    return Bridged(Path("/nowhere"), cache_dir=station._cache_dir, profile=station.profile.model_copy(update=changes))


def test_breaking_off_frees_a_board_within_seconds(two: tuple[Bridged, Bridged], sample: Make) -> None:
    left, _ = two
    assert left.facts["protocol"] == 1
    model, outcome = sample(512), []

    def run() -> None:
        try:
            left.measure(
                model.path,
                model_sha256=model.sha256,
                graph_sha256="g",
                reference=None,
                inputs=model.inputs,
                expected=model.expected,
                mode="verify",
                use_cache=False,
            )
        except RlpruneError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_for(lambda: left._link is not None and left._link.token is not None)
    time.sleep(0.5)
    began = time.monotonic()
    left.break_off()
    thread.join(30)
    assert not thread.is_alive()
    assert time.monotonic() - began < 10
    assert isinstance(outcome[0], DeviceError)
