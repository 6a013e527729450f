"""The agent as a host meets it: a real process, a real onnxruntime."""

from __future__ import annotations

import array
import hashlib
import io
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from talk import LONG, SETTINGS, alive, children, npy, wait_for

from rlprune_agent import vitals
from rlprune_agent.protocol import Failure
from rlprune_agent.store import Store
from rlprune_agent.supervise import judge, run_child


def test_hello_says_what_runs_models_here(agent: Any) -> None:
    hello = agent.ask(verb="hello", protocol_min=1, protocol_max=9, from_the_future=True).header
    assert hello["protocol"] == 1
    assert "CPUExecutionProvider" in hello["runtime"]["providers"]
    assert hello["facts"]["online_cpus"] == len(os.sched_getaffinity(0))


def test_a_host_too_new_is_told_so(agent: Any) -> None:
    answer = agent.ask(verb="hello", protocol_min=99, protocol_max=99).header
    assert (answer["ok"], answer["kind"]) == (False, "version_mismatch")


def test_an_unknown_verb_and_a_missing_field_are_refused_and_the_agent_lives(agent: Any) -> None:
    assert agent.ask(verb="exec", command="id").header["kind"] == "unknown_verb"
    agent.held()
    assert agent.ask(verb="put").header["kind"] == "bad_request"
    assert agent.ask(verb="submit", job="exec", job_id="0" * 16).header["kind"] == "bad_request"
    assert agent.ask(verb="submit", job="sweep", job_id="0" * 16, models="all").header["kind"] == "bad_request"
    assert agent.ask(verb="have", files=["0" * 64]).header["missing"] == {"0" * 64: 0}


def test_end_of_input_ends_the_agent(agent: Any) -> None:
    assert agent.held().ask(verb="have", files=[]).header["ok"] is True
    assert agent.end() == 0


def test_an_upload_resumes_with_the_next_agent(start_agent: Callable[..., Any]) -> None:
    data = os.urandom(3000)
    sha256 = hashlib.sha256(data).hexdigest()
    first = start_agent().held()
    part = {"verb": "put", "sha256": sha256, "size": 3000, "offset": 0, "crc32": zlib.crc32(data[:1000])}
    assert first.ask(data[:1000], **part).header["offset"] == 1000
    first.process.kill()
    second = start_agent().held()
    assert second.ask(verb="have", files=[sha256]).header["missing"] == {sha256: 1000}
    rest = {**part, "offset": 1000, "crc32": zlib.crc32(data[1000:])}
    assert second.ask(data[1000:], **rest).header["whole"] is True
    assert second.ask(verb="have", files=[sha256]).header["missing"] == {}


def test_measure_sends_every_sample_of_both_models(agent: Any, dense_model: Callable[[int], bytes]) -> None:
    model = dense_model(16)
    answer = agent.do(**agent.job(model, reference=agent.put(model)))
    result = answer.header["result"]
    samples = array.array("q", answer.body)
    # The target of 0 is never met, so the cap of six pairs is reached.
    assert [len(result["candidate_blocks"]), len(result["reference_blocks"])] == [6, 6]
    set_aside = result["candidate_set_aside"] + result["reference_set_aside"]
    assert len(samples) == sum(result["candidate_blocks"]) + sum(result["reference_blocks"]) + set_aside
    assert min(result["candidate_blocks"]) >= 3
    assert min(samples) > 0
    assert result["candidate_loop"] > 1
    assert result["memory_peak_bytes"] > result["memory_before_bytes"] > 0
    assert result["max_output_difference"] < 1e-4
    assert result["options"]["intra_op_threads"] == 1
    assert answer.header["vitals_before"]["boot_id"] == answer.header["vitals_after"]["boot_id"]


@pytest.mark.parametrize("planted", [0.01, float("nan"), float("inf")])
def test_a_wrong_output_is_a_mismatch(agent: Any, dense_model: Callable[[int], bytes], planted: float) -> None:
    y = np.ones((4, 16), np.float32) @ np.random.default_rng(16).standard_normal((16, 16)).astype(np.float32)
    y[2, 3] += planted
    job = agent.job(dense_model(16))
    answer = agent.do(**{**job, "expected": {"y": agent.put(npy(y))}}).header
    assert answer["kind"] == "output_mismatch"


def test_a_missing_or_misshaped_output_is_a_mismatch(agent: Any, dense_model: Callable[[int], bytes]) -> None:
    job = agent.job(dense_model(16))
    array_sha = agent.put(npy(np.ones((4, 1), np.float32)))
    for expected in ({"y": array_sha}, {"z": job["expected"]["y"]}):
        assert agent.do(**{**job, "expected": expected}).header["kind"] == "output_mismatch"


def test_a_damaged_model_fails_to_load_and_the_agent_lives(agent: Any, dense_model: Callable[[int], bytes]) -> None:
    good = dense_model(16)
    answer = agent.do(**agent.job(good[: len(good) // 2])).header
    assert (answer["kind"], answer["phase"]) == ("load_failed", "candidate")
    assert "protobuf" in answer["message"].lower()
    assert agent.do(**agent.job(good)).header["ok"] is True


def test_a_reference_that_fails_is_told_apart_from_the_candidate(
    agent: Any, dense_model: Callable[[int], bytes]
) -> None:
    answer = agent.do(**agent.job(dense_model(16), reference=agent.put(b"not a model"))).header
    assert (answer["kind"], answer["phase"]) == ("load_failed", "reference")


def test_missing_files_are_asked_for(agent: Any, dense_model: Callable[[int], bytes]) -> None:
    answer = agent.do(**agent.job(dense_model(16), candidate="0" * 64)).header
    assert (answer["kind"], answer["missing"]) == ("missing_files", ["0" * 64])


def test_pickles_in_arrays_are_not_opened(agent: Any, dense_model: Callable[[int], bytes]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    job = agent.job(dense_model(16))
    answer = agent.do(**{**job, "inputs": {"x": agent.put(buffer.getvalue())}}).header
    assert answer["kind"] == "bad_request"


def test_sweep_orders_models_by_their_size(agent: Any, dense_model: Callable[[int], bytes]) -> None:
    models = [agent.put(dense_model(width)) for width in (512, 8, 256)]
    job = {"threads": 1, "rounds": 3, "visit_ms": 1, "visit_runs": 3, "seed": 0, "cap_seconds": 20}
    answer = agent.do(job="sweep", models=models, **job)
    large, small, middle = array.array("d", answer.body)
    assert 0 < small < middle < large


def test_sweep_names_the_model_that_does_not_load(agent: Any, dense_model: Callable[[int], bytes]) -> None:
    models = [agent.put(dense_model(8)), agent.put(b"garbage")]
    job = {"threads": 1, "rounds": 1, "visit_ms": 1, "visit_runs": 1, "seed": 0, "cap_seconds": 20}
    answer = agent.do(job="sweep", models=models, **job).header
    assert answer["kind"] == "load_failed"
    assert answer["message"].startswith("model 2 of 2")


def test_a_model_that_never_ends_is_killed(tmp_path: Path, endless_model: bytes) -> None:
    """F21"""
    store = Store(tmp_path, quota_bytes=10**9)
    names = []
    for data in (endless_model, npy(np.zeros(1, np.float32))):
        names.append(hashlib.sha256(data).hexdigest())
        store.put(names[-1], size=len(data), offset=0, crc32=zlib.crc32(data), data=data)
    job = {
        "kind": "measure",
        "store": str(tmp_path),
        "candidate": names[0],
        "reference": None,
        "inputs": {"x": names[1]},
        "expected": {"y": names[1]},
        "tolerance": 1e-3,
        "threads": 1,
        "settings": SETTINGS,
    }
    with pytest.raises(Failure) as caught:
        run_child(job, seconds=4)
    assert (caught.value.kind, caught.value.details["phase"]) == ("timeout_model", "candidate")


@pytest.mark.parametrize(
    ("status", "phase", "oom_kills", "kind"),
    [
        (-signal.SIGKILL, "candidate", 1, "oom"),
        (-signal.SIGKILL, "timing", None, "oom"),
        (-signal.SIGKILL, "timing", 0, "agent_crashed"),
        (-signal.SIGKILL, "runtime", 1, "agent_crashed"),
        (-signal.SIGSEGV, "candidate", 0, "load_failed"),
        (-signal.SIGABRT, "timing", 0, "load_failed"),
        (-signal.SIGSEGV, "reference", 0, "agent_crashed"),
        (-signal.SIGILL, "runtime", 0, "runtime_missing"),
        (-signal.SIGTERM, "candidate", 0, "agent_crashed"),
        (1, "candidate", 0, "agent_crashed"),
    ],
)
def test_whose_fault_an_end_was(status: int, phase: str, oom_kills: int | None, kind: str) -> None:
    assert judge(status, phase, oom_kills=oom_kills, stderr="last words").kind == kind


def test_stdout_belongs_to_the_protocol(tmp_path: Path) -> None:
    """A library that prints to descriptor 1 at import must not break the framing."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os\nos.write(1, b'hello from a library')\nraise ImportError('no')\n"
    )
    code = "import sys; sys.path[:0] = sys.argv[1:3]; from rlprune_agent.__main__ import main; main(['check'])"
    home = str(Path(vitals.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), home], capture_output=True, text=True, check=False
    )
    assert '"agent"' in done.stdout
    assert "hello from a library" not in done.stdout


def test_vitals_leave_out_what_cannot_be_read_and_say_why(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "loadavg").write_text("0.50 0.40 0.30 1/100 4242\n")
    (tmp_path / "proc" / "meminfo").write_text("garbage\n")
    zone = tmp_path / "sys" / "class" / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("48312\n")
    cpufreq = tmp_path / "sys" / "devices" / "system" / "cpu" / "cpu0" / "cpufreq"
    cpufreq.mkdir(parents=True)
    (cpufreq / "scaling_governor").write_text("ondemand\n")
    (cpufreq / "scaling_cur_freq").write_text("N/A\n")
    read = vitals.read(tmp_path)
    assert read["loadavg"] == [0.5, 0.4, 0.3]
    assert read["temperature_c"] == {"thermal_zone0 cpu-thermal": 48.312}
    assert read["governor"] == {"cpu0": "ondemand"}
    assert not {"available_bytes", "requested_mhz", "boot_id", "swapped_in_pages"} & set(read)
    assert any(reason.startswith("available_bytes:") for reason in read["missing"])


def test_no_child_survives_its_agent(agent: Any, dense_model: Callable[[int], bytes]) -> None:
    agent.submit("0" * 16, agent.job(dense_model(16), settings=LONG))
    assert wait_for(lambda: agent.ask(verb="wait", job_id="0" * 16, seconds=0.1).header["phase"] == "timing")
    (child,) = children(agent.process.pid)
    agent.process.send_signal(signal.SIGKILL)
    agent.process.wait(10)
    assert wait_for(lambda: not alive(child), 10)


def test_the_end_of_input_takes_the_child_along_and_frees_the_device(
    start_agent: Callable[..., Any], dense_model: Callable[[int], bytes]
) -> None:
    first = start_agent()
    assert first.hello()["ok"] is True  # after it the runtime has been tried, and every child is a job's
    first.submit("0" * 16, first.job(dense_model(16), settings=LONG))
    (child,) = wait_for(lambda: children(first.process.pid))
    assert first.end() == 0
    assert not alive(child)
    assert start_agent().acquire("somebody else")["granted"] is True


def test_the_lease_of_an_agent_that_was_killed_is_free_at_once(start_agent: Callable[..., Any]) -> None:
    first, second = start_agent(), start_agent()
    assert first.acquire("one")["granted"] is True
    refused = second.acquire("two")
    assert (refused["granted"], refused["position"], refused["holder"]["owner"]) == (False, 1, "a test")
    first.process.kill()
    first.process.wait(10)
    again = second.acquire("two")
    assert (again["granted"], again["token"]) == (True, first.token + 1)
