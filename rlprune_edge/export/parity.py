"""Hold an exported file against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rlprune_edge.errors import CandidateError
from rlprune_edge.export import host
from rlprune_edge.inputs import Input, named

TOLERANCE = 1e-3
"""relative to the largest output; fused float32 kernels differ from torch by about 1e-6 of it"""


def check(path: Path, module: nn.Module, x: Input, *others: Input) -> tuple[dict[str, np.ndarray], float]:
    """ONNX Runtime's outputs for `x`, and the largest absolute difference from torch's for `x` and all `others`.

    Raises CandidateError: `output_mismatch` above TOLERANCE, `not_finite` if an output is not a number.
    """
    run = host.load(path)
    checked = [_check(run, module, given) for given in (x, *others)]
    return checked[0][0], max(difference for _, difference in checked)


def _check(
    run: Callable[[host.Arrays], host.Arrays], module: nn.Module, x: Input
) -> tuple[dict[str, np.ndarray], float]:
    got = run({name: tensor.numpy() for name, tensor in named(x).items()})
    first = next(iter(got.values()))
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    if not np.isfinite(first).all():
        raise CandidateError("not_finite", "the exported model's outputs are not finite numbers")
    difference = float(np.abs(first - expected).max())
    if difference > TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise CandidateError("output_mismatch", f"the exported model differs from torch by {difference:.2g}")
    return got, difference
