"""What a measuring process takes until it can load a model: from the agent's zip as it is sent, and from bytecode.

    .venv/bin/python tools/bench/agent_start.py

Both are fresh processes that import what a child of the agent imports, in turns; so is a third that imports numpy and
onnxruntime alone, below which no agent in Python can come. Medians; the ratio is that of neighbours.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rlprune_agent.compiled import compiled
from rlprune_edge.device.agent_zip import agent_zip

ROUNDS = 40
IMPORTS = (
    "import sys; sys.path[0] = sys.argv[1]; import rlprune_agent.child, rlprune_agent.measure, rlprune_agent.runtime"
)
LEAST = "import numpy, onnxruntime"


def seconds(code: str, path: Path) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-B", "-c", code, str(path)], check=True)
    return time.perf_counter() - began


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        sent = agent_zip(Path(folder))
        ways = {"sources": (IMPORTS, sent), "bytecode": (IMPORTS, compiled(sent, Path(folder))), "least": (LEAST, sent)}
        rounds = [{name: seconds(*way) for name, way in ways.items()} for _ in range(ROUNDS)]
    lines = ["| imported from | ms | of the sources' |", "|---|---|---|"]
    for name in ways:
        share = median(r[name] / r["sources"] for r in rounds)
        lines.append(f"| {name} | {1000 * median(r[name] for r in rounds):.0f} | {share:.2f} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
