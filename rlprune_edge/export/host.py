"""Run an ONNX file with ONNX Runtime on this machine (home of onnxruntime here): what a device has to reproduce."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

from rlprune_edge.errors import CandidateError

Arrays = dict[str, np.ndarray]


def outputs(path: Path, inputs: Arrays) -> Arrays:
    """All outputs of the model for `inputs`, on the CPU; inputs that it does not take are left out.

    A speech network's attention mask is such: of one recording without padding it would be all ones.
    Raises CandidateError where the model cannot be loaded or run.
    """
    return load(path)(inputs)


def load(path: Path) -> Callable[[Arrays], Arrays]:
    """`outputs` of one model for any number of inputs. Raises CandidateError where the model cannot be loaded."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    with _translated():
        session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    taken = {i.name for i in session.get_inputs()}

    def run(inputs: Arrays) -> Arrays:
        fed = {name: array for name, array in inputs.items() if name in taken}
        with _translated():
            return dict(zip(names, session.run(names, fed), strict=True))

    return run


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime raises classes of its binding that share no base but Exception
        raise CandidateError("load_failed", f"onnxruntime on this machine: {str(error).splitlines()[0]}") from error
