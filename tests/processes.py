"""Commands as processes of their own, in the folder of the examples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent / "examples"


def start(words: list[str], cache: Path) -> subprocess.Popen[str]:
    """`rlprune-edge` with these words, its output kept apart from its errors."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlprune_edge", *words],
        cwd=EXAMPLES,
        env={**os.environ, "RLPRUNE_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(words: list[str], cache: Path) -> tuple[int, str, str]:
    """The same to its end: exit code, output, errors."""
    process = start(words, cache)
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err
