"""Wrong names are said at once: nothing that takes seconds to import is imported for it, nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["compress", "compare", "profile"])
@pytest.mark.parametrize(
    ("flag", "name", "said"), [("--task", "didgits", "digits?"), ("--device", "shed", "device add")]
)
def test_a_wrong_name_is_refused_before_torch_is_imported(
    command: str, flag: str, name: str, said: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "rlprune_edge", command, flag, name]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "rlprune_edge.cli" in imported
    assert not imported & {"torch", "transformers", "sklearn", "stable_baselines3"}
    assert list(tmp_path.iterdir()) == []
