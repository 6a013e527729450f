"""A real agent in a process of its own, and the smallest models worth sending to it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rlprune_agent
from rlprune_agent.protocol import Channel, Message

_HOME = Path(rlprune_agent.__file__).parent.parent


class Agent:
    """One agent process and the conversation with it."""

    def __init__(self, cache: Path, python: str = sys.executable) -> None:
        self.process = subprocess.Popen(
            [python, "-m", "rlprune_agent", "stdio", "--cache", str(cache)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(_HOME)},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.channel = Channel(self.process.stdout.fileno(), self.process.stdin.fileno())

    def ask(self, body: bytes = b"", seconds: float = 60, **header: Any) -> Message:
        self.channel.send({"id": 1, **header}, body)
        while True:
            answer = self.channel.receive(seconds)
            assert answer is not None, "the agent ended"
            if not answer.header.get("alive"):
                return answer

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        fields = {"sha256": sha256, "size": len(data), "offset": 0, "crc32": zlib.crc32(data)}
        assert self.ask(data, verb="put", **fields).header["whole"]
        return sha256

    def close(self) -> int:
        """Close our side; the agent's exit status."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return self.process.wait(10)


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Starts agents that share one cache folder; those still alive at the end are killed."""
    agents: list[Agent] = []

    def start(python: str = sys.executable) -> Agent:
        agents.append(Agent(tmp_path / "cache", python))
        return agents[-1]

    yield start
    for agent in agents:
        if agent.process.poll() is None:
            agent.process.kill()
        agent.close()


@pytest.fixture
def agent(start_agent: Callable[..., Agent]) -> Agent:
    return start_agent()


def _model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], inputs: list[Any], outputs: list[Any]) -> bytes:
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()


@pytest.fixture
def dense_model() -> Callable[[int], bytes]:
    """`y = x @ w` with a square `w` of the given width; the input is [4, width]."""

    def make(width: int) -> bytes:
        weight = np.random.default_rng(width).standard_normal((width, width)).astype(np.float32)
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, width]) for n in "xy"]
        return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, values[:1], values[1:])

    return make


@pytest.fixture
def endless_model() -> bytes:
    """Adds one to its input 2**62 times."""
    step = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Add", ["v_in", "one"], ["v_out"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_in", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.FLOAT, [1]),
        ],
    )
    weights = {"n": np.array(2**62), "go": np.array(True), "one": np.ones(1, np.float32)}
    loop = helper.make_node("Loop", ["n", "go", "x"], ["y"], body=step)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    return _model([loop], weights, values[:1], values[1:])
