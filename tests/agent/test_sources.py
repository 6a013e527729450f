"""The agent's sources: Python 3.8, standard library, numpy, onnxruntime in one file; and a real 3.8 if there is one."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlprune_agent

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


def test_hello_under_a_real_python_3_8(start_agent: Callable[..., Any]) -> None:
    python = shutil.which("python3.8")
    if python is None or subprocess.run([python, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no working python3.8 on this machine")
    hello = start_agent(python).ask(verb="hello", protocol_min=1, protocol_max=1).header
    assert hello["ok"] is True
    assert hello["facts"]["page_bytes"] >= 4096
    assert hello.get("runtime", {}).get("python", "3.8").startswith("3.8")
