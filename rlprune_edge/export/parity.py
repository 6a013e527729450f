"""Run an exported file with ONNX Runtime on this machine and hold it against torch (home of onnxruntime here)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from rlprune_edge.errors import CandidateError

TOLERANCE = 1e-3
"""relative to the largest output; fused float32 kernels differ from torch by about 1e-6 of it"""


def outputs(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of the model for `inputs`, on the CPU. Raises CandidateError where it cannot be loaded or run."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    try:
        session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:  # onnxruntime raises classes of its binding that share no base but Exception
        raise CandidateError("load_failed", f"onnxruntime on this machine: {str(error).splitlines()[0]}") from error


def check(path: Path, module: nn.Module, x: torch.Tensor, *, input_name: str) -> tuple[dict[str, np.ndarray], float]:
    """ONNX Runtime's outputs for `x` and their largest absolute difference from torch's.

    Raises CandidateError: `output_mismatch` above TOLERANCE, `not_finite` if an output is not a number.
    """
    got = outputs(path, {input_name: x.numpy()})
    first = next(iter(got.values()))
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    if not np.isfinite(first).all():
        raise CandidateError("not_finite", "the exported model's outputs are not finite numbers")
    difference = float(np.abs(first - expected).max())
    if difference > TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise CandidateError("output_mismatch", f"the exported model differs from torch by {difference:.2g}")
    return got, difference
