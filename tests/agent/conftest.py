"""A real agent in a process of its own, and the smallest models worth sending to it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from talk import PYTHON, Daemon, Host, agent_command, over_pipes


class Agent(Host):
    """An agent that serves this one conversation, and the conversation."""

    def __init__(self, home: Path, python: str = PYTHON) -> None:
        host, self.process = over_pipes(agent_command("stdio", "--alone", "--home", str(home), python=python))
        super().__init__(host.channel, host.close)

    def end(self) -> int:
        """Close our side; the agent's exit status."""
        self.close()
        return self.process.wait(30)


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Starts agents that share one home; those still alive at the end are killed."""
    agents: list[Agent] = []

    def start(python: str = PYTHON) -> Agent:
        agents.append(Agent(tmp_path / "home", python))
        return agents[-1]

    yield start
    for agent in agents:
        if agent.process.poll() is None:
            agent.process.kill()
        agent.end()


@pytest.fixture
def agent(start_agent: Callable[..., Agent]) -> Agent:
    return start_agent()


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons in one home, with the command line words given; those still alive at the end are ended."""
    daemons: list[Daemon] = []

    def start(*words: str, **settings: Any) -> Daemon:
        daemons.append(Daemon(tmp_path / "home", *words, **settings))
        return daemons[-1]

    yield start
    for daemon in daemons:
        try:
            daemon.stop()
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the tests of a module that leave it as it was."""
    daemon = Daemon(tmp_path_factory.mktemp("shared") / "home", "--lease-seconds", "60")
    yield daemon
    daemon.stop()


@pytest.fixture
def host(shared_daemon: Daemon) -> Iterator[Host]:
    """A conversation with the shared daemon, whose lease is given back at the end."""
    host = shared_daemon.connect()
    yield host
    if host.token is not None:
        host.ask(verb="lease", action="release", token=host.token)
    host.close()


def _model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], inputs: list[Any], outputs: list[Any]) -> bytes:
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()


@pytest.fixture(scope="session")
def dense_model() -> Callable[[int], bytes]:
    """`y = x @ w` with a square `w` of the given width; the input is [4, width]."""

    def make(width: int) -> bytes:
        weight = np.random.default_rng(width).standard_normal((width, width)).astype(np.float32)
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, width]) for n in "xy"]
        return _model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, values[:1], values[1:])

    return make


@pytest.fixture(scope="session")
def hungry_model() -> bytes:
    """Makes a tensor of as many floats as its input says: 80 bytes that can ask for any amount of memory."""
    inputs = [helper.make_tensor_value_info("n", TensorProto.INT64, [1])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])]
    return _model([helper.make_node("ConstantOfShape", ["n"], ["y"])], {}, inputs, outputs)


@pytest.fixture(scope="session")
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
