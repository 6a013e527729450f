"""Tiny models with planted sizes, and this machine as a device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from accounts import Account
from onnx import TensorProto, helper, numpy_helper

from rlprune_edge.device.local import LocalDevice
from rlprune_edge.device.profiles import load_profile


@dataclass(frozen=True)
class Sample:
    """A model file with inputs and the outputs that onnxruntime gives here."""

    path: Path
    sha256: str
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


def _dense(width: int, rows: int = 8) -> bytes:
    """`y = relu(x @ a) @ b` with an inner width; input [rows, 64], output [rows, 10]."""
    rng = np.random.default_rng(width)
    weights = {"a": (64, width), "b": (width, 10)}
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 8, n) for n, s in weights.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 64])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 10])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def dense() -> Callable[[int], bytes]:
    """Makes the bytes of the model of that inner width."""
    return _dense


@pytest.fixture
def sample(tmp_path: Path) -> Callable[[int], Sample]:
    """Makes the model of that inner width."""

    def make(width: int) -> Sample:
        data = _dense(width)
        sha256 = hashlib.sha256(data).hexdigest()
        path = tmp_path / f"{sha256}.onnx"
        path.write_bytes(data)
        inputs = {"x": np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)}
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return Sample(path, sha256, inputs, {"y": session.run(None, inputs)[0]})

    return make


@pytest.fixture
def device(tmp_path: Path) -> Iterator[LocalDevice]:
    """This machine, with a cache of its own."""
    with LocalDevice(load_profile("local"), cache_dir=tmp_path / "device-cache") as local:
        yield local


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path)
