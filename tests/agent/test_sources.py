"""The agent's sources: Python 3.8, standard library, numpy, onnxruntime in one file; and a real 3.8 if there is one."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlprune_agent
from rlprune_edge.device.meter import MODES

_SOURCES = sorted(Path(rlprune_agent.__file__).parent.glob("*.py"))


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", _SOURCES, ids=lambda path: path.name)
def test_source_is_python_3_8_and_asks_for_nothing_else(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    foreign = _imports(tree) - set(sys.stdlib_module_names) - {"rlprune_agent"}
    assert foreign <= ({"numpy", "onnxruntime"} if path.name == "runtime.py" else {"numpy"})


def test_protocol_is_standard_library_only() -> None:
    tree = ast.parse((_SOURCES[0].parent / "protocol.py").read_text())
    assert _imports(tree) <= set(sys.stdlib_module_names)


def _python_3_8() -> str:
    python = shutil.which("python3.8")
    if python is None or subprocess.run([python, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no working python3.8 on this machine")
    return python


_SIMULATION = """
from rlprune_agent.sensors import Sensors
from rlprune_agent.simulate import Conditions, SimBoard, simulate
from rlprune_agent.world import ThisDevice
import json, sys
from pathlib import Path
settings = json.loads(sys.argv[1])
board = SimBoard(Conditions(), 1)
message = simulate(settings, candidate_ms=20, reference_ms=20, model_bytes=1, threads=1, board=board)
assert ThisDevice(Path("/")).loop_ns() > 0
assert "missing" in Sensors(Path("/nowhere")).read_all()
print(json.dumps([message.header["result"]["candidate_blocks"], message.header["result"]["energy"]["gross_mj"]]))
"""


def test_measuring_gates_and_energy_are_the_same_under_a_real_python_3_8() -> None:
    settings = json.dumps(MODES["reward"].job(gates={"start_celsius": 60.0}, energy=True))
    told = [
        subprocess.run(
            [python, "-c", _SIMULATION, settings],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(_SOURCES[0].parent.parent)},
        ).stdout
        for python in (_python_3_8(), sys.executable)
    ]
    assert told[0] == told[1]
    assert json.loads(told[0])[1] == pytest.approx(100.0, rel=0.05)


def test_hello_under_a_real_python_3_8(start_agent: Callable[..., Any]) -> None:
    python = _python_3_8()
    hello = start_agent(python).hello()
    assert hello["ok"] is True
    assert hello["facts"]["page_bytes"] >= 4096
    assert hello.get("runtime", {}).get("python", "3.8").startswith("3.8")
