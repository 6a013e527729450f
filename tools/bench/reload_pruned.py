"""A pruned network of each family: saved, loaded in a new process, exported there; how far its outputs are from before.

.venv/bin/python tools/bench/reload_pruned.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from encoder_samples import FAMILIES, TEXT, encoder, inputs, parts, random_plan

from rlprune_edge.prune import cut
from rlprune_edge.tasks import pretrained

CHILD = """
import sys
from pathlib import Path
import numpy as np, torch
from rlprune_edge.export import exporter, host
from rlprune_edge.inputs import Inputs
from rlprune_edge.tasks import pretrained
folder, head = Path(sys.argv[1]), sys.argv[2]
encoder = pretrained.load(folder, head)
arrays = dict(np.load(folder / "inputs.npz"))
before = arrays.pop("outputs")
x = Inputs({name: torch.from_numpy(array) for name, array in arrays.items()})
with torch.no_grad():
    loaded = encoder(x).numpy()
exporter.export(encoder, x[:1], folder / "model.onnx")
exported = host.outputs(folder / "model.onnx", {name: array[:1] for name, array in arrays.items()})["logits"]
print(f"{np.abs(loaded - before).max():.1e} {np.abs(exported - before[:1]).max():.1e} {np.abs(before).max():.2f}")
"""


def differences(family: str, folder: Path) -> tuple[str, str, str]:
    """Largest absolute difference of the loaded network's outputs and of its ONNX file's, and the largest output."""
    model, x = encoder(family), inputs(family)
    groups, space = parts(model, x)
    ranking = {g.name: np.arange(g.width) for g in groups}
    small = cut.apply(model, groups, ranking, random_plan(space, 4)).module
    assert isinstance(small, pretrained.Encoder)
    with torch.no_grad():
        outputs = small(x).numpy()
    pretrained.save(small, folder, {})
    np.savez(folder / "inputs.npz", outputs=outputs, **{name: tensor.numpy() for name, tensor in x.tensors.items()})
    head = "classifier" if family in TEXT else "ctc"
    words = [sys.executable, "-c", CHILD, str(folder), head]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return said[0], said[1], said[2]


def main() -> int:
    sys.stdout.write("| family | loaded in torch | exported | largest output |\n|---|---|---|---|\n")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.write(f"| {family} | " + " | ".join(differences(family, Path(folder))) + " |\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
