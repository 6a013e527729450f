"""`rlprune-edge measure`: any ONNX file, on this machine, as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from rlprune_agent.policy import KINDS
from rlprune_edge import measure_words
from rlprune_edge.cli import app
from rlprune_edge.device.profiles import load_profile
from rlprune_edge.errors import RlpruneError, UserError
from rlprune_edge.measurements import Interval, Verdict

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RLPRUNE_CONFIG", str(tmp_path / "config"))


def _dense(path: Path, width: int, rows: Any = "n", **external: Any) -> Path:
    rng = np.random.default_rng(width)
    shapes = {"a": (64, width), "b": (width, 10)}
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 8, n) for n, s in shapes.items()]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 10])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path), **external)
    return path


def _embedding(path: Path) -> Path:
    """`y = table[ids]`: ids beyond its 30 rows are an error."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("Relu", ["e"], ["y"])],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "length", 8])],
        [numpy_helper.from_array(np.ones((30, 8), np.float32), "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def _run(*words: object) -> Result:
    return CliRunner().invoke(app, ["measure", *map(str, words), "--mode", "reward"])


def _refusal(*words: object) -> str:
    error = _run(*words).exception
    assert isinstance(error, RlpruneError), error
    return str(error)


def test_one_model_with_all_that_can_be_said_of_it(tmp_path: Path) -> None:
    model = _dense(tmp_path / "m.onnx", 512)
    done = _run(model)
    assert done.exit_code == 0, done
    assert done.stdout.startswith("local (this machine), 1 thread, mode reward\n")
    for words in ("latency ", " (95 % interval ", "first run ", "loading the model", "MB at the peak", "mean_of_k: "):
        assert words in done.stdout
    assert "verdict" not in done.stdout
    assert "process 1 of 1" in done.stderr


def test_the_larger_of_two_is_slower_and_json_has_every_sample(tmp_path: Path) -> None:
    large, small = _dense(tmp_path / "large.onnx", 8192), _dense(tmp_path / "small.onnx", 512)
    done = _run(large, small, "--json")
    assert done.exit_code == 0, done
    (found,) = json.loads(done.stdout)["devices"]
    assert (found["device"], found["verdict"]["word"], found["calibrated"]) == ("local", "slower", False)
    assert [m["source"] for m in found["models"]] == ["local", "local"]
    assert sum(len(block) for block in found["models"][0]["processes"][0]["candidate_ns"]) >= 24
    assert found["models"][0]["latency_ms"]["value"] > found["models"][1]["latency_ms"]["value"]
    assert found["models"][0]["reference_sha256"] == found["models"][1]["model_sha256"]


def test_a_text_model_is_asked_for_its_length_and_gets_ids_it_knows(tmp_path: Path) -> None:
    model = _embedding(tmp_path / "e.onnx")
    assert "--shape ids=1x128" in _refusal(model)
    assert _run(model, "--shape", "ids=1x16").exit_code == 0
    np.savez(tmp_path / "x.npz", ids=np.array([[1, 2, 29]]))
    assert _run(model, "--inputs", tmp_path / "x.npz").exit_code == 0
    np.savez(tmp_path / "wrong.npz", ids=np.array([[1, 2, 30]]))
    assert "cannot be measured: onnxruntime on this machine" in _refusal(model, "--inputs", tmp_path / "wrong.npz")


def test_models_with_different_inputs_cannot_be_compared(tmp_path: Path) -> None:
    model, other = _dense(tmp_path / "m.onnx", 16), _embedding(tmp_path / "e.onnx")
    assert "no input 'x'; its inputs are ids" in _refusal(model, other)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.onnx"], "cannot read absent.onnx: No such file"),
        (["{folder}"], "Is a directory"),
        (["{text}"], "not a valid ONNX file"),
        (["{split}"], r"are in another file. Make one file of it: python -c"),
        (["{model}", "--shape", "x=3"], "does not fit the input x"),
        (["{model}", "--shape", "x"], "write NAME=1x128"),
        (["{model}", "--shape", "x=ax3"], "write NAME=1x128"),
        (["{model}", "--inputs", "{text}"], "make them with numpy.savez"),
        (["{model}", "--device", "pi4"], "rlprune-edge device add pi4"),
        (["{model}", "--device", "local,local"], "give each device once"),
        (["{model}", "--threads", "4096"], "Ask for at most"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "text").write_text("no model")
    places = {
        "folder": tmp_path,
        "text": tmp_path / "text",
        "model": _dense(tmp_path / "m.onnx", 16),
        "split": _dense(tmp_path / "s.onnx", 512, save_as_external_data=True, location="w", size_threshold=0),
    }
    assert re.search(said, _refusal(*(word.format(**places) for word in words)))


def test_an_unknown_mode_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["measure", str(_dense(tmp_path / "m.onnx", 16)), "--mode", "quick"])
    assert isinstance(done.exception, UserError)
    assert "reward, verify, report" in str(done.exception)


def test_outputs_that_are_no_numbers_want_real_inputs(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Log", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])],
    )
    path = tmp_path / "log.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    assert "--inputs FILE.npz" in _refusal(path)


@pytest.mark.parametrize("word", ["faster", "slower", "same", "noisy"])
def test_every_verdict_has_its_sentence(word: str) -> None:
    found = Verdict(word, Interval(1.5, 1.4, 1.6), 0.012)
    said = list(measure_words.verdict_lines(found, Path("a"), Path("b"), calibrated=True, device="pi4"))
    assert said[0].startswith(f"verdict: {word}. ")
    assert "1.500x (1.400 to 1.600)" in said[0]
    assert said[1] == "Differences up to 1.20% are the noise floor this device was calibrated at."
    uncalibrated = list(measure_words.verdict_lines(found, Path("a"), Path("b"), calibrated=False, device="pi4"))
    assert "rlprune-edge device calibrate pi4" in uncalibrated[1]


def test_all_flags_have_words() -> None:
    assert set(KINDS) <= set(measure_words.FLAGS)
    assert load_profile("local").source in measure_words._KINDS
