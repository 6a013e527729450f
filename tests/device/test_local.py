"""This machine as a device: a real agent process, a real onnxruntime, and what happens when they fail."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rlprune_agent.protocol import Channel
from rlprune_edge.device import station
from rlprune_edge.device.key import device_key
from rlprune_edge.device.link import Link, LinkBroken
from rlprune_edge.device.local import LocalDevice
from rlprune_edge.device.profiles import load_profile
from rlprune_edge.errors import CandidateError, DeviceError, UserError
from rlprune_edge.measurements import Measurement

pytestmark = pytest.mark.alone

Make = Callable[[int], Any]


def _measure(device: LocalDevice, model: Any, reference: Any = None, **changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "model_sha256": model.sha256,
        "graph_sha256": "graph of " + model.sha256,
        "reference": (reference.path, reference.sha256) if reference else None,
        "inputs": model.inputs,
        "expected": model.expected,
        "mode": "reward",
    }
    return device.measure(model.path, **{**fields, **changes})


def _agents_children(device: LocalDevice) -> list[int]:
    return _children(device.agent_pid)


def _children(pid: int) -> list[int]:
    return [int(p) for path in Path(f"/proc/{pid}/task").glob("*/children") for p in path.read_text().split()]


def _wait_for(claim: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := claim()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_a_measurement_has_all_its_raw_figures(device: LocalDevice, sample: Make) -> None:
    small, large = sample(512), sample(4096)
    found = _measure(device, small, large)
    (process,) = found.processes
    assert (found.source, found.device, found.threads) == ("local", "local", 1)
    assert len(process.candidate_ns) == len(process.reference_ns) >= 8
    assert sum(len(block) for block in process.candidate_ns) >= 24
    assert found.latency_ms.low <= found.latency_ms.value <= found.latency_ms.high
    assert found.speedup is not None
    assert found.speedup.value > 1.3  # eight times the work, in the same process, block by block
    assert found.reference_sha256 == large.sha256
    assert found.max_output_difference < 1e-4
    assert found.memory_mb is not None
    assert found.memory_delta_mb is not None
    assert 0 < found.memory_delta_mb < found.memory_mb
    assert "mean_of_k" in found.flags
    assert found.percentiles_ms["p90"] is None
    assert found.options["session"]["config"]["session.set_denormal_as_zero"] == "1"
    assert found.versions["onnxruntime"] == device.facts["runtime"]["onnxruntime"]
    assert 0 < found.device_seconds <= device.device_seconds


def test_a_cached_measurement_is_equal_and_marked_and_costs_nothing(
    device: LocalDevice, sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "_NOT_KEPT", {"local": frozenset()})  # whatever else runs on this machine
    model = sample(256)
    first = _measure(device, model)
    spent = device.device_seconds
    assert _measure(device, model) == replace(first, cached=True)
    assert device.device_seconds == spent
    assert _measure(device, model, graph_sha256="another graph").cached is False


def test_a_disturbed_measurement_is_not_kept(
    device: LocalDevice, sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "_NOT_KEPT", {"local": frozenset({"mean_of_k"})})
    model = sample(256)
    assert "mean_of_k" in _measure(device, model).flags
    assert _measure(device, model).cached is False


def test_a_wrong_output_is_the_candidates_fault(device: LocalDevice, sample: Make) -> None:
    model = sample(256)
    with pytest.raises(CandidateError) as caught:
        _measure(device, model, expected={"y": model.expected["y"] + np.float32(0.01)})
    assert caught.value.kind == "output_mismatch"


def test_a_damaged_model_is_the_candidates_fault(device: LocalDevice, sample: Make, tmp_path: Path) -> None:
    good = sample(256)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(good.path.read_bytes()[:1000])
    damaged = replace(good, path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CandidateError) as caught:
        _measure(device, damaged)
    assert caught.value.kind == "load_failed"


def test_an_operator_that_nobody_knows_is_the_candidates_fault(
    device: LocalDevice, sample: Make, tmp_path: Path
) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, 64]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Frobnicate", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path / "unknown.onnx"
    onnx.save(model, path)
    with pytest.raises(CandidateError) as caught:
        _measure(device, replace(sample(8), path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    assert caught.value.kind == "unsupported_op"


def test_a_model_that_wants_all_memory_is_the_candidates_fault(
    device: LocalDevice, sample: Make, tmp_path: Path
) -> None:
    inputs = [helper.make_tensor_value_info("n", TensorProto.INT64, [1])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])]
    graph = helper.make_graph([helper.make_node("ConstantOfShape", ["n"], ["y"])], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path / "bomb.onnx"
    onnx.save(model, path)
    bomb = replace(sample(8), path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CandidateError) as caught:
        _measure(device, bomb, inputs={"n": np.array([10**14])})
    assert caught.value.kind == "oom"


def test_a_reference_that_cannot_run_is_not_the_candidates_fault(
    device: LocalDevice, sample: Make, tmp_path: Path
) -> None:
    path = tmp_path / "reference.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(DeviceError, match="compared with") as caught:
        _measure(device, sample(8), replace(sample(8), path=path, sha256=hashlib.sha256(b"not a model").hexdigest()))
    assert caught.value.kind == "load_failed"


def test_an_agent_killed_in_the_middle_is_replaced_and_leaves_no_child(device: LocalDevice, sample: Make) -> None:
    results: list[Any] = []
    small, large = sample(512), sample(2048)
    assert device.facts["protocol"] == 1
    first = device.agent_pid
    thread = threading.Thread(target=lambda: results.append(_measure(device, small, large)))
    thread.start()
    children = _wait_for(lambda: _agents_children(device))
    time.sleep(0.3)
    os.kill(first, signal.SIGKILL)
    thread.join(60)
    assert device.agent_pid != first
    assert len(results[0].processes) == 1
    assert _wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


def test_a_measuring_process_killed_by_somebody_else_is_measured_again(device: LocalDevice, sample: Make) -> None:
    results: list[Any] = []
    model = sample(512)
    agent = device.facts and device.agent_pid
    thread = threading.Thread(target=lambda: results.append(_measure(device, model)))
    thread.start()
    (child,) = _wait_for(lambda: _agents_children(device))
    os.kill(child, signal.SIGKILL)
    thread.join(60)
    assert len(results[0].processes) == 1
    assert device.agent_pid == agent


def test_ctrl_c_in_the_middle_frees_the_device_and_the_next_measurement_starts_afresh(
    device: LocalDevice, sample: Make
) -> None:
    model = sample(512)
    assert device.facts["protocol"] == 1
    interrupted = device.agent_pid

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.7)
        with pytest.raises(KeyboardInterrupt):
            _measure(device, model, mode="verify")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not Path(f"/proc/{interrupted}").exists()
    assert device.sweep([model.path.read_bytes()])[0] > 0
    assert device.agent_pid != interrupted


def test_an_agent_that_never_starts_is_a_device_error(tmp_path: Path, sample: Make) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such interpreter today' >&2\nexit 3\n")
    python.chmod(0o755)
    with (
        LocalDevice(load_profile("local"), cache_dir=tmp_path / "c", python=str(python)) as device,
        pytest.raises(DeviceError, match="no such interpreter today") as caught,
    ):
        _measure(device, sample(8))
    assert caught.value.kind in ("agent_crashed", "connection_lost")


def test_an_agent_that_is_gone_before_it_is_asked_is_told_by_its_last_words() -> None:
    """Its end may be noticed in sending as well as in waiting; the reason must not depend on which."""
    replies, agents_end = os.pipe()
    nobody, requests = os.pipe()
    os.close(nobody)
    link = Link(Channel(replies, requests), close=lambda: None, last_words=lambda: "no such interpreter today\n")
    try:
        with pytest.raises(LinkBroken, match=r"gone \(Broken pipe\): no such interpreter today$"):
            link.hello("a test")
    finally:
        for end in (replies, agents_end, requests):
            os.close(end)


def test_a_python_without_onnxruntime_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('there is none on this board')\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with (
        LocalDevice(load_profile("local"), cache_dir=tmp_path / "c", python=str(python)) as device,
        pytest.raises(DeviceError, match=r"none on this board.*pip install onnxruntime") as caught,
    ):
        assert device.facts
    assert caught.value.kind == "runtime_missing"


def test_more_threads_than_cpus_is_a_user_error(tmp_path: Path) -> None:
    with (
        LocalDevice(load_profile("local"), cache_dir=tmp_path, threads=999) as device,
        pytest.raises(UserError, match="999 threads"),
    ):
        device.hold()


def test_an_agent_that_is_silent_is_given_up() -> None:
    ours, theirs = os.pipe()
    silent_in, silent_out = os.pipe()
    link = Link(Channel(ours, silent_out), close=lambda: None, last_words=lambda: "")
    with pytest.raises(LinkBroken) as caught:
        link.request({"verb": "hello"}, seconds=0.1)
    for fd in (ours, theirs, silent_in, silent_out):
        os.close(fd)
    assert caught.value.kind == "connection_lost"


def test_the_key_is_the_same_for_the_same_machine_and_another_for_other_settings(
    device: LocalDevice, tmp_path: Path
) -> None:
    hello = device.facts
    assert device.key == device_key(hello, threads=1, provider="CPUExecutionProvider")
    assert device.key != device_key(hello, threads=2, provider="CPUExecutionProvider")
    changed = {**hello, "facts": {**hello["facts"], "kernel": "another"}}
    assert device.key != device_key(changed, threads=1, provider="CPUExecutionProvider")
    with LocalDevice(load_profile("local"), cache_dir=tmp_path / "elsewhere") as again:
        assert again.key == device.key


def test_sweep_orders_tiny_models_and_remembers_them(device: LocalDevice, dense: Callable[[int], bytes]) -> None:
    models = [dense(width) for width in (4096, 8, 512, 8)]
    times = device.sweep(models)
    spent = device.device_seconds
    assert times[1] == times[3]
    assert times[1] < times[2] < times[0]
    assert device.sweep(models) == times
    assert device.device_seconds == spent


def test_sweep_says_which_model_cannot_be_run(device: LocalDevice, dense: Callable[[int], bytes]) -> None:
    with pytest.raises(CandidateError, match="model 2 of 2"):
        device.sweep([dense(8), b"garbage"])


def test_nothing_outlives_a_host_that_is_killed(tmp_path: Path, sample: Make) -> None:
    """kill -9 on the host in mid-measurement: its agent sees the end of input and takes its child along."""
    model = sample(2048)
    np.savez(tmp_path / "arrays.npz", x=model.inputs["x"], y=model.expected["y"])
    code = f"""
import numpy as np
from pathlib import Path
from rlprune_edge.device.local import LocalDevice
from rlprune_edge.device.profiles import load_profile
arrays = np.load({str(tmp_path / "arrays.npz")!r})
with LocalDevice(load_profile("local"), cache_dir=Path({str(tmp_path / "c")!r})) as device:
    device.facts
    print(device.agent_pid, flush=True)
    device.measure(Path({str(model.path)!r}), model_sha256={model.sha256!r}, graph_sha256="g", reference=None,
                   inputs={{"x": arrays["x"]}}, expected={{"y": arrays["y"]}}, mode="verify")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    host = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert host.stdout is not None
    agent = int(host.stdout.readline())
    children = _wait_for(lambda: _children(agent))
    host.kill()
    host.communicate()
    pids = [agent, *children]
    assert len(pids) == 2
    assert _wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
