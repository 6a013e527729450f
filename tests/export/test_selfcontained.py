"""A graph with its preprocessing inside answers raw inputs as the bare one answers prepared ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rlprune_edge.bundle.speech import normalised
from rlprune_edge.errors import CandidateError
from rlprune_edge.export import selfcontained

RGB = {
    "kind": "image",
    "layout": "NCHW",
    "dtype": "float32",
    "size": [5, 4],
    "channels": "RGB",
    "scale": 1 / 255,
    "mean": [0.49, 0.48, 0.45],
    "std": [0.25, 0.24, 0.26],
    "resize": None,
    "formula": "(raw * scale - mean) / std",
}


def model(folder: Path, inputs: dict[str, list[Any]], opset: int = 17) -> Path:
    """A graph that returns all its inputs, the first as it is."""
    outputs = [f"out_{name}" for name in inputs]
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [out]) for name, out in zip(inputs, outputs, strict=True)],
        "as it is",
        [helper.make_tensor_value_info(n, _kind(n), shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info(o, _kind(n), inputs[n]) for n, o in zip(inputs, outputs, strict=True)],
        [numpy_helper.from_array(np.zeros(1, np.float32), "image")],  # a name that is taken
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path = folder / "bare.onnx"
    onnx.save(made, path)
    return path


def _kind(name: str) -> int:
    return TensorProto.INT64 if name == "attention_mask" else TensorProto.FLOAT


def run(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.checker.check_model(path.read_bytes(), full_check=True)
    return list(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs))


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pixels(tmp_path: Path, channels: str, layout: str) -> None:
    rules = RGB | {"channels": channels, "layout": layout}
    shape = ["batch", 3, 5, 4] if layout == "NCHW" else ["batch", 5, 4, 3]
    raw = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    ordered = raw[..., ::-1] if channels == "BGR" else raw
    prepared = ((ordered / 255 - RGB["mean"]) / RGB["std"]).astype(np.float32)
    prepared = prepared.transpose(0, 3, 1, 2) if layout == "NCHW" else prepared
    assert selfcontained.contain(model(tmp_path, {"input": shape}), tmp_path / "whole.onnx", rules)
    whole = onnxruntime.InferenceSession(tmp_path / "whole.onnx", providers=["CPUExecutionProvider"])
    (given,) = whole.get_inputs()
    assert (given.type, given.shape) == ("tensor(uint8)", ["batch", 5, 4, 3])
    assert given.name not in ("image", "input")
    np.testing.assert_allclose(run(tmp_path / "whole.onnx", {given.name: raw})[0], prepared, atol=1e-5)
    back = selfcontained.raw_images(prepared, rules)
    assert back.dtype == np.uint8
    assert (back == raw).all()
    left = selfcontained.rules_left(rules, "uint8")
    assert left["channels"] == "RGB"
    assert {k: left[k] for k in ("layout", "dtype", "scale", "mean", "std", "raw_max")} == {
        "layout": "NHWC", "dtype": "uint8", "scale": 1.0, "mean": None, "std": None, "raw_max": 255,
    }  # fmt: skip
    assert left["in_graph"]["mean"] == RGB["mean"]
    assert left["in_graph"]["layout"] == layout


def test_raw_values_that_are_no_bytes_stay_floats(tmp_path: Path) -> None:
    grey = RGB | {"channels": "L", "mean": [0.5], "std": [0.5], "scale": 1.0, "size": [2, 2]}
    prepared = np.array([0.25, -3.0, 0.1, 9.0], np.float32).reshape(1, 1, 2, 2)
    raw = selfcontained.raw_images(prepared, grey)
    assert raw.dtype == np.float32
    assert selfcontained.contain(
        model(tmp_path, {"input": [1, 1, 2, 2]}), tmp_path / "whole.onnx", grey, raw_dtype="float32"
    )
    session = onnxruntime.InferenceSession(tmp_path / "whole.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.type == "tensor(float)"
    np.testing.assert_allclose(session.run(None, {given.name: raw})[0], prepared, atol=1e-6)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("masked", [False, True])
def test_samples(tmp_path: Path, opset: int, masked: bool) -> None:
    rules = {"kind": "audio", "normalize": True, "sampling_rate": 16000}
    names: dict[str, list[Any]] = {"input_values": ["batch", "samples"]}
    if masked:
        names["attention_mask"] = ["batch", "samples"]
    assert selfcontained.contain(model(tmp_path, names, opset), tmp_path / "whole.onnx", rules)
    samples = np.random.default_rng(0).normal(0.1, 0.02, 400).astype(np.float32)
    given = {"samples": samples[None]}
    if masked:
        given = {
            "samples": np.pad(samples, (0, 100))[None],
            "attention_mask": np.pad(np.ones(400, np.int64), (0, 100))[None],
        }
    got = run(tmp_path / "whole.onnx", given)[0][0]
    np.testing.assert_allclose(got[:400], normalised(samples), atol=2e-5)
    assert (got[400:] == 0).all(), "what the mask hides stays silence"
    back = selfcontained.raw_samples(got[None, :400])
    np.testing.assert_allclose(back[0], samples - samples.mean(), rtol=0.01, atol=1e-4)
    again = run(tmp_path / "whole.onnx", given | {"samples": np.pad(back, ((0, 0), (0, len(got) - 400)))})[0][0]
    np.testing.assert_allclose(again, got, atol=1e-5)
    assert selfcontained.rules_left(rules, "float32") == rules | {"normalize": False, "in_graph": {"normalize": True}}


def test_the_preprocessing_alone_is_what_a_network_would_have_inside(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (1, 5, 4, 3), dtype=np.uint8)
    prepared = ((raw / 255 - RGB["mean"]) / RGB["std"]).astype(np.float32).transpose(0, 3, 1, 2)
    made = selfcontained.alone({"input": prepared}, RGB)
    assert made is not None
    for name, data in zip(("alone", "nothing"), made, strict=True):
        (tmp_path / name).write_bytes(data)
    np.testing.assert_allclose(run(tmp_path / "alone", {"image": raw})[0], prepared, atol=1e-5)
    np.testing.assert_array_equal(run(tmp_path / "nothing", {"input": prepared})[0], prepared)
    heard = {"input_values": np.ones((1, 400), np.float32), "attention_mask": np.ones((1, 400), np.int64)}
    made = selfcontained.alone(heard, {"kind": "audio", "normalize": True})
    assert made is not None
    (tmp_path / "alone").write_bytes(made[0])
    samples = np.random.default_rng(0).normal(0.1, 0.02, (1, 400)).astype(np.float32)
    got, _ = run(tmp_path / "alone", {"samples": samples, "attention_mask": heard["attention_mask"]})
    np.testing.assert_allclose(got[0], normalised(samples[0]), atol=2e-5)
    assert selfcontained.alone({"input_ids": np.ones((1, 8), np.int64)}, {"kind": "text"}) is None


@pytest.mark.parametrize("rules", [{"kind": "text"}, {"kind": "none"}, {"kind": "audio", "normalize": False}])
def test_what_an_app_has_to_do_itself_stays_so(tmp_path: Path, rules: dict[str, Any]) -> None:
    bare = model(tmp_path, {"input": [1, 2]})
    assert not selfcontained.contain(bare, tmp_path / "whole.onnx", rules)
    assert not (tmp_path / "whole.onnx").exists()
    assert selfcontained.rules_left(rules, "uint8") == rules


def test_a_graph_that_takes_something_else_is_refused(tmp_path: Path) -> None:
    for inputs in ({"a": [1, 3, 5, 4], "b": [1, 3, 5, 4]}, {"a": [1, 60]}):
        with pytest.raises(CandidateError, match="a network of images takes"):
            selfcontained.contain(model(tmp_path, inputs), tmp_path / "whole.onnx", RGB)
