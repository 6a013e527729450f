"""A real, tiny bundle: grey 4 x 4 images, three classes, one matrix product in ONNX Runtime."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tokenizers
from bundle.speech_bundles import speech_bundle
from bundle.text_bundles import network_of_texts, text_bundle, word_pieces

from rlprune_edge.bundle.write import write_bundle
from rlprune_edge.records import TensorSpec

PREPROCESSING = {
    "kind": "image",
    "layout": "NCHW",
    "dtype": "float32",
    "size": [4, 4],
    "channels": "L",
    "scale": 1 / 16,
    "mean": [0.5],
    "std": [0.25],
    "resize": None,
    "raw_max": 16,
}
LABELS = ["zero", "one", "two"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["image.1"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        ],
        "tiny",
        [onnx.helper.make_tensor_value_info("image.1", onnx.TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("model") / "candidate-7.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture(scope="session")
def parts(model: Path) -> dict[str, Any]:
    """Everything that `write_bundle` asks for, figures included."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    golden = []
    for seed in range(2):
        image = np.random.default_rng(seed).normal(size=(1, 1, 4, 4)).astype(np.float32)
        golden.append(({"image.1": image}, {"scores": session.run(None, {"image.1": image})[0]}))
    return {
        "model": model,
        "task": "tiny",
        "inputs": (TensorSpec("image.1", "float32", (None, 1, 4, 4)),),
        "outputs": (TensorSpec("scores", "float32", (None, 3)),),
        "preprocessing": PREPROCESSING,
        "labels": LABELS,
        "metrics": {
            "baseline": {"metric": 97.5, "name": "accuracy", "unit": "%", "split": "test", "latency_ms": 2.5},
            "compressed": {"metric": 97.25, "latency_ms": 1.21875, "latency_ci_ms": [1.1875, 1.25]},
        },
        "measurement": {"source": "local", "device": "local", "threads": 1, "mode": "report"},
        "versions": {"onnxruntime": onnxruntime.__version__},
        "golden": golden,
        "extra": {"parameters": 48, "licence": "MIT", "licence_text": "MIT, in full\n", "trial": {"number": 7}},
    }


@pytest.fixture
def write(parts: dict[str, Any]) -> Callable[..., Path]:
    def write(folder: Path, **changed: Any) -> Path:
        return write_bundle(folder, **{**parts, **changed})

    return write


@pytest.fixture
def bundle(write: Callable[..., Path], tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


@pytest.fixture
def alone() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a bundle's predict.py where it lies, as a user does (bytecode may be written), without some packages."""

    def alone(bundle: Path, *words: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        refused = ("torch", "onnx", "rlprune_edge", "transformers", "scipy", *without)
        code = (
            f"import runpy, sys; sys.modules.update(dict.fromkeys({refused!r})); sys.argv[:] = sys.argv[1:]; "
            "runpy.run_path('predict.py', run_name='__main__')"
        )
        command = [sys.executable, "-I", "-c", code, "predict.py", *words]
        return subprocess.run(command, cwd=bundle, capture_output=True, text=True)

    return alone


@pytest.fixture(scope="session")
def core() -> tokenizers.Tokenizer:
    return word_pieces(lowercase=True)


@pytest.fixture(scope="session")
def network(core: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network_of_texts(core, tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def write_texts(network: Path, core: tokenizers.Tokenizer) -> Callable[..., Path]:
    return functools.partial(text_bundle, network, core)


@pytest.fixture
def write_speech(tmp_path: Path) -> Callable[..., Path]:
    def write_speech(name: str = "speech", *words: Any, **rules: Any) -> Path:
        return speech_bundle(tmp_path / name, *words, **rules)

    return write_speech
