"""Write a torch module as one ONNX file (home of torch.onnx)."""

# torch 2.13 has two exporters. The one used here (dynamo=False) is 2-3x faster per candidate, folds BatchNorm into the
# convolution before it, and gives the same latency; upstream calls it superseded, so the choice is made in this one
# place.

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from rlprune_edge import whole_file
from rlprune_edge.errors import CandidateError, UserError
from rlprune_edge.export import onnx_graph
from rlprune_edge.inputs import SINGLE

OPSET = 17
OUTPUT = "output"


def export(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write `module` (inference mode) to `path` with a free batch dimension; `example` is one input, [1, ...].

    The file is complete (weights inside) and appears under its name only when whole. Raises CandidateError
    (`export_failed`) where an operator cannot be expressed, UserError where the disk is full.
    """
    module.eval()
    try:
        with whole_file.replacing(path) as part:
            _write(module, example, part)
            onnx_graph.settle_names(part)
    except OSError as error:
        raise disk_error(path, error) from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise CandidateError("export_failed", f"torch.onnx: {str(error).splitlines()[0]}") from error


def _write(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    noise = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(noise), quiet("torch.onnx"):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[SINGLE],
            output_names=[OUTPUT],
            dynamic_axes={SINGLE: {0: "batch"}, OUTPUT: {0: "batch"}},
        )


def disk_error(path: Path, error: OSError) -> UserError:
    """What to say where a file cannot be written."""
    return UserError(
        f"Cannot write {path}: {error.strerror or error}.\nFree some space or choose another folder with --out."
    )


@contextlib.contextmanager
def quiet(name: str):  # type: ignore[no-untyped-def]  # contextmanager's own type
    """While open, that logger's warnings are not shown."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
