"""Sessions: where they really run, what they are told, and what becomes of models that do not load."""

from __future__ import annotations

import array
import hashlib
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import planted_models
import pytest
from onnx import helper
from planted_models import external, model, node, value

from rlprune_agent import runtime
from rlprune_agent.protocol import Failure, Message
from rlprune_agent.store import Store
from rlprune_agent.supervise import run_child
from rlprune_edge.export import skeleton

SETTINGS: dict[str, Any] = {
    "warmup_runs": 5, "warmup_seconds": 0.02, "window_runs": 5, "window_ms": 5, "warmup_cap_runs": 10,
    "warmup_cap_seconds": 0.1, "checks": [[4, 1]], "block_ms": 5, "min_runs": 12, "slow_run_ms": 1000,
    "min_runs_slow": 4, "reference_runs": 3, "sample_ms": 2, "target_half_width": 0.0, "cap_seconds": 20,
}  # fmt: skip


# ---------------------------------------------------------------- providers


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_a_provider_that_is_not_there_is_said_and_the_cpu_does_not_step_in(provider: str, tmp_path: Path) -> None:
    where = runtime.asked({"runtime": {"provider": provider}, "store": str(tmp_path / "store")})
    with pytest.raises(Failure) as caught:
        runtime.Model(planted_models.dense().SerializeToString(), 1, where)
    assert caught.value.kind == "runtime_missing"
    assert f"was built without {provider}" in caught.value.message
    assert "or ask for CPUExecutionProvider" in caught.value.message


def test_the_provider_in_use_is_the_one_asked_for() -> None:
    made = runtime.Model(planted_models.dense().SerializeToString(), 1, runtime.asked({}))
    assert list(made.provider_options()) == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    "asked",
    [
        {"provider": "AzureExecutionProvider"},
        {"provider": 7},
        "CUDAExecutionProvider",
        {"provider": "TensorrtExecutionProvider", "options": {"trt_extra_plugin_lib_paths": "/tmp/evil.so"}},
        {"provider": "TensorrtExecutionProvider", "options": {"trt_engine_cache_path": "/etc"}},
        {"provider": "CUDAExecutionProvider", "options": {"device_id": [0]}},
        {"provider": "CUDAExecutionProvider", "options": ["device_id"]},
        {"options": {"arena": "1"}},
    ],
)
def test_a_job_sets_known_options_and_no_others(asked: object) -> None:
    with pytest.raises(Failure) as caught:
        runtime.asked({"runtime": asked, "store": "/nowhere/store"})
    assert caught.value.kind == "bad_request"


def test_every_option_is_in_the_record() -> None:
    options = {"trt_fp16_enable": True, "trt_builder_optimization_level": 3}
    where = runtime.asked({"runtime": {"provider": runtime.TENSORRT, "options": options}, "store": "/board/store"})
    assert where.engines == Path("/board/engines")
    echo = runtime.options_echo(4, where)
    assert (echo["provider"], echo["intra_op_threads"]) == ("TensorrtExecutionProvider", 4)
    assert echo["providers_behind"] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert echo["provider_options"] == {
        "device_id": "0",
        "trt_fp16_enable": "1",
        "trt_int8_enable": "0",
        "trt_max_workspace_size": "1073741824",
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
        "trt_builder_optimization_level": "3",
    }
    assert runtime.options_echo(1)["config"]["session.set_denormal_as_zero"] == "1"


def test_an_engine_belongs_to_one_model_and_its_options_and_old_ones_go(tmp_path: Path) -> None:
    first = runtime.engine_folder(tmp_path, b"a", {"trt_fp16_enable": "0"})
    assert first == runtime.engine_folder(tmp_path, b"a", {"trt_fp16_enable": "0"})
    half = runtime.engine_folder(tmp_path, b"a", {"trt_fp16_enable": "1"})
    assert len({first, half, runtime.engine_folder(tmp_path, b"b", {"trt_fp16_enable": "0"})}) == 3
    (first / "engine").write_bytes(b"x")
    os.utime(first, (1, 1))
    for number in range(8):
        runtime.engine_folder(tmp_path, bytes([number]), {})
    assert len(list(tmp_path.iterdir())) == 8
    assert not first.exists()


def test_preparing_says_where_every_node_ran() -> None:
    data = planted_models.dense().SerializeToString()
    feeds = {"x": np.ones((4, 32), np.float32)}
    assert runtime.prepare(data, 1, runtime.ON_CPU, feeds) == {"CPUExecutionProvider": 3}


# ---------------------------------------------------------------- sessions


def test_the_probe_finds_the_newest_opset_and_ir_that_load() -> None:
    found = runtime.probe()

    def loads(opset: int, ir: int) -> bool:
        made = helper.make_model(
            helper.make_graph([node("Identity", ["x"])], "g", [value("x", [1])], [value("y", [1])]),
            opset_imports=[helper.make_opsetid("", opset)],
        )
        made.ir_version = ir
        try:
            runtime.Model(made.SerializeToString(), 1)
        except Failure:
            return False
        return True

    opset, ir = found["opset_max"], found["ir_max"]
    assert (loads(opset, ir), loads(opset + 1, ir), loads(opset, ir + 1)) == (True, False, False)
    assert opset >= 17
    assert ir >= 8


def test_a_session_keeps_no_copy_of_the_file() -> None:
    data = planted_models.dense().SerializeToString()
    before = sys.getrefcount(data)
    made = runtime.Model(data, 1)
    assert sys.getrefcount(data) == before
    assert made.checked_run({"x": np.ones((4, 32), np.float32)})["y"].shape == (4, 32)


def test_outputs_of_made_up_weights_are_finite_and_of_the_announced_shape() -> None:
    shapes = {"inputs": [value("x", ["n", 4])], "outputs": [value("y", ["n", 4])]}
    made = runtime.Model(model([node("Log", ["x"])], **shapes).SerializeToString(), 1)
    made.check_made_up(made.checked_run({"x": np.ones((7, 4), np.float32)}))
    with pytest.raises(Failure, match="not finite") as caught:
        made.check_made_up(made.checked_run({"x": np.zeros((7, 4), np.float32)}))
    assert (caught.value.kind, caught.value.details) == ("output_mismatch", {"synthetic": True})
    with pytest.raises(Failure, match=r"shape \(7, 5\)"):
        made.check_made_up({"y": np.zeros((7, 5), np.float32)})


# ---------------------------------------------------------------- jobs, in their own processes


def keep(folder: Path, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    Store(folder, quota_bytes=GB).put(sha256, size=len(data), offset=0, crc32=zlib.crc32(data), data=data)
    return sha256


GB = 10**9


def measured(folder: Path, candidate: bytes, **changes: Any) -> Message:
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32))
    job: dict[str, Any] = {
        "kind": "measure",
        "store": str(folder / "store"),
        "candidate": keep(folder / "store", candidate),
        "reference": None,
        "inputs": {"x": keep(folder / "store", (folder / "x.npy").read_bytes())},
        "expected": {},
        "tolerance": 1e-3,
        "threads": 1,
        "settings": SETTINGS,
    }
    return run_child({**job, **changes}, seconds=50)


def test_a_graph_is_measured_beside_a_whole_reference(tmp_path: Path) -> None:
    whole = planted_models.dense().SerializeToString()
    graph = skeleton.strip(whole).data
    assert len(graph) < len(whole) / 20
    reference = keep(tmp_path / "store", whole)
    answer = measured(tmp_path, graph, weights={"candidate": {"seed": 5}, "reference": None}, reference=reference)
    result = answer.header["result"]
    assert [len(result["candidate_blocks"]), len(result["reference_blocks"])] == [4, 4]
    assert min(array.array("q", answer.body)) > 0
    assert result["max_output_difference"] == 0.0
    assert result["options"]["provider"] == "CPUExecutionProvider"


def hidden_size() -> onnx.ModelProto:
    return model([node("ConstantOfShape", ["s"])], {"s": np.array([10**6, 10**6])})


@pytest.mark.parametrize(
    ("name", "make", "kind", "words"),
    [
        ("huge", lambda: hidden_size().SerializeToString(), "too_big", "announces 4000.0 GB"),
        ("outside", lambda: outside(), "load_failed", "not in it but in '../secret'"),
        ("torn", lambda: planted_models.dense().SerializeToString()[:3000], "load_failed", "not a whole ONNX file"),
        ("garbage", lambda: b"\x89PNG" * 100, "load_failed", "not a whole ONNX file"),
        ("opset", lambda: of_the_future(), "load_failed", "opset"),
        (
            "graph",
            lambda: skeleton.strip(planted_models.dense().SerializeToString()).data,
            "load_failed",
            "not a whole",
        ),
    ],
)
def test_a_bad_model_is_told_in_time_with_its_reason(
    tmp_path: Path, name: str, make: Any, kind: str, words: str
) -> None:
    with pytest.raises(Failure) as caught:
        measured(tmp_path, make())
    assert (caught.value.kind, caught.value.details["phase"]) == (kind, "candidate"), name
    assert words in caught.value.message


def outside() -> bytes:
    made = model([node("Add", ["x", "w"])])
    made.graph.initializer.append(external("w", "../secret"))
    return made.SerializeToString()


def of_the_future() -> bytes:
    made = planted_models.dense()
    made.opset_import[0].version = 99
    return made.SerializeToString()


def test_a_job_for_a_provider_that_is_not_there_is_for_the_operator(tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        measured(tmp_path, planted_models.dense().SerializeToString(), runtime={"provider": "CUDAExecutionProvider"})
    assert (caught.value.kind, caught.value.details["phase"]) == ("runtime_missing", "prepare")
