"""What a station asks its agent to watch, send and check: a real daemon on a board of planted files and tools."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from agent.boards import FakeBoard
from device.bridge import CALM, SHED, Bridged
from onnx import TensorProto, helper, numpy_helper
from talk import ENVIRONMENT, Daemon, wait_for

from rlprune_edge.device.local import LocalDevice
from rlprune_edge.device.meter import MODES
from rlprune_edge.device.profiles import Cpu, Memory, Profile, Telemetry, ceiling_of, load_profile
from rlprune_edge.device.station import Station
from rlprune_edge.errors import CandidateError, DeviceError
from rlprune_edge.measurements import Measurement, Work
from rlprune_edge.records import Skeleton

Make = Callable[[int], Any]

_QUICK = replace(
    MODES["reward"],
    warmup_seconds=0.02,
    warmup_cap_seconds=0.1,
    window_ms=5,
    block_ms=2,
    sample_ms=0.5,
    gate_wait_seconds=0.3,
    gate_load_wait_seconds=0.3,
    local_wait_seconds=0.1,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODES, "quick", _QUICK)


@pytest.fixture
def planted(tmp_path: Path) -> FakeBoard:
    return FakeBoard(tmp_path / "planted")


@pytest.fixture
def start(planted: FakeBoard, tmp_path: Path) -> Iterator[Callable[..., Bridged]]:
    """A station of a board with the planted sensors; its profile changed as said."""
    environment = {**ENVIRONMENT, "PATH": f"{planted.bin}{os.pathsep}{os.environ['PATH']}"}
    daemon = Daemon(tmp_path / "home", "--root", str(planted.root), env=environment)
    stations = []

    def make(profile: Profile = SHED, **changes: Any) -> Bridged:
        stations.append(Bridged(daemon.home, cache_dir=tmp_path / "cache", profile=profile, **changes))
        return stations[-1]

    yield make
    for station in stations:
        station.close()
    daemon.stop()


def _pi(**limits: Any) -> Profile:
    watched = CALM.model_copy(update={"throttle": True, "undervoltage": True, **limits})
    return SHED.model_copy(update={"limits": watched, "telemetry": Telemetry(sources=("vcgencmd", "thermal"))})


def _measure(device: Station, model: Any, **changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "model_sha256": model.sha256,
        "graph_sha256": "graph of " + model.sha256,
        "reference": (model.path, model.sha256),
        "inputs": model.inputs,
        "expected": model.expected,
        "mode": "quick",
        "use_cache": False,
    }
    return device.measure(model.path, **{**fields, **changes})


def test_f14_a_figure_of_a_board_has_what_its_gates_read_and_dropped(
    start: Callable[..., Bridged], planted: FakeBoard, sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODES, "quick", replace(_QUICK, pairs=(80,)))
    hot = planted.root / "hot"
    planted.tool("vcgencmd", f"[ -e {hot} ] && echo throttled=0x40000 || echo throttled=0x0")
    planted.zone(0, "cpu-thermal", "48000")
    station, watcher = start(_pi()), start()
    assert watcher.facts["protocol"] == 1

    def phase() -> str:
        return "".join(job["phase"] for job in watcher.status()["running"])

    def heat() -> None:
        assert wait_for(lambda: phase() == "timing")
        time.sleep(0.3)
        hot.touch()

    heating = threading.Thread(target=heat)
    heating.start()
    found = _measure(station, sample(64))
    heating.join()
    (process,) = found.processes
    assert process.gates is not None
    assert process.gates["readings"][0]["celsius"] == 48.0
    assert [drop.kind for drop in process.dropped] == ["throttled"]
    assert "held the clock down meanwhile" in process.dropped[0].why
    assert "blocks_dropped" in found.flags
    assert found.options["settings"]["gates"]["throttle"] is True


def test_f15_a_weak_supply_is_the_boards_fault_and_nobodys_reward(
    start: Callable[..., Bridged], planted: FakeBoard, sample: Make
) -> None:
    planted.tool("vcgencmd", "echo throttled=0x50005")
    station = start(_pi())
    with pytest.raises(DeviceError, match="official power supply") as caught:
        _measure(station, sample(64))
    assert caught.value.kind == "undervoltage"
    assert station.health.failures == 3


def test_f17_too_warm_to_begin_is_said_or_refused_as_the_mode_wants(
    start: Callable[..., Bridged], planted: FakeBoard, sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.zone(0, "cpu-thermal", "64000")
    station = start(_pi(start_celsius=60.0, stop_celsius=78.0))
    assert "gate_timed_out" in _measure(station, sample(64)).flags
    monkeypatch.setitem(MODES, "quick", replace(_QUICK, heat_refuses=True))
    with pytest.raises(DeviceError, match="64 C, and 60 C is where") as caught:
        _measure(station, sample(64))
    assert caught.value.kind == "gate_timed_out"


def test_energy_is_asked_for_and_its_absence_explained(
    start: Callable[..., Bridged], sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODES, "quick", replace(_QUICK, energy=True))
    found = _measure(start(), sample(64))
    assert found.energy is None
    assert "no power sensor" in found.options["energy_missing"][0]


def test_a_board_is_sent_the_graph_and_makes_up_the_weights(
    start: Callable[..., Bridged], tmp_path: Path, sample: Make, skeleton_of: Callable[[bytes], Skeleton]
) -> None:
    model, other = sample(512), sample(64)
    bare = skeleton_of(model.path.read_bytes())
    found = _measure(start(), model, reference=(other.path, other.sha256), skeleton=bare)
    assert found.options["weights"] == "made up"
    assert found.speedup is not None
    assert found.speedup.value < 0.9  # eight times the inner width: as slow as it is with its own weights
    kept = {path.name for path in (tmp_path / "home").rglob("*") if len(path.name) == 64}
    assert other.sha256 in kept
    assert model.sha256 not in kept


def test_a_model_that_made_up_weights_will_not_do_for_follows_whole(
    start: Callable[..., Bridged], tmp_path: Path, sample: Make, skeleton_of: Callable[[bytes], Skeleton]
) -> None:
    model = replace(sample(64), path=tmp_path / "root.onnx")
    weights = np.full((64, 300), 0.01, np.float32)
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Sqrt", ["h"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 300])],
        [numpy_helper.from_array(weights, "a")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(model.path))
    data = model.path.read_bytes()
    x = np.ones((8, 64), np.float32)
    model = replace(
        model, sha256=hashlib.sha256(data).hexdigest(), inputs={"x": x}, expected={"y": np.sqrt(x @ weights)}
    )
    found = _measure(start(), model, skeleton=skeleton_of(data))
    assert found.options["weights"] == "own"
    assert found.max_output_difference < 1e-4


@pytest.fixture
def skeleton_of() -> Callable[[bytes], Skeleton]:
    """Takes all weights out of a model, as the export room does."""

    def make(data: bytes) -> Skeleton:
        model = onnx.load_model_from_string(data)
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", "rlprune-synthetic"
        bare = model.SerializeToString()
        return Skeleton(zlib.compress(bare, 9), len(model.graph.initializer), len(bare), len(data))

    return make


def test_f35_a_figure_that_cannot_be_true_is_no_figure(start: Callable[..., Bridged], sample: Make) -> None:
    slow = SHED.model_copy(
        update={"cpu": Cpu(name="abacus", cores=1, peak_gflops=0.001), "memory": Memory(mb=(1,), bandwidth_gb_s=1.0)}
    )
    with pytest.raises(CandidateError, match="faster than shed can compute") as caught:
        _measure(start(slow), sample(512), work=Work(flops=8 * 64 * 512 * 2, weight_bytes=4 * 74 * 512))
    assert caught.value.kind == "impossible"


def test_an_unsure_fact_counts_twice() -> None:
    sure = Profile.model_validate(
        SHED.model_dump(exclude={"limits"}) | {"cpu": {"name": "c", "cores": 1, "peak_gflops": 10.0}}
    )
    assert ceiling_of(sure) is None  # nothing is known of its memory
    facts = {"cpu": {"name": "c", "cores": 1, "peak_gflops": 10.0}, "memory": {"mb": [1], "bandwidth_gb_s": 3.0}}
    known = Profile.model_validate(SHED.model_dump(exclude={"limits"}) | facts)
    unsure = Profile.model_validate(SHED.model_dump(exclude={"limits"}) | facts | {"unsure": ["cpu.peak_gflops"]})
    for profile, flops in ((known, 10e9), (unsure, 20e9)):
        ceiling = ceiling_of(profile)
        assert ceiling is not None
        assert (ceiling.flops_per_second, ceiling.bytes_per_second) == (flops, 3e9)


def test_a_reference_that_is_not_what_it_was_is_flagged(start: Callable[..., Bridged], sample: Make) -> None:
    found = _measure(start(), sample(64), reference_ms=1000.0)
    assert "reference_lost" in found.flags


def test_this_machine_is_only_flagged_unless_one_is_strict(tmp_path: Path, sample: Make) -> None:
    with LocalDevice(load_profile("local"), cache_dir=tmp_path / "cache") as device:
        found = _measure(device, sample(64))
        assert "busy" in found.options["settings"]["gates"]["flag_only"]
        assert found.processes[0].gates is not None
    strict = LocalDevice(load_profile("local"), cache_dir=tmp_path / "cache", strict=True)
    assert strict._settings("quick")["gates"]["flag_only"] == []
