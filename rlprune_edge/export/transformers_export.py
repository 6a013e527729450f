"""Write a network of transformers as one ONNX file (home of optimum)."""

# optimum knows which inputs each architecture takes and which of their dimensions are free; it traces the live network,
# so widths that no configuration could say are no obstacle.

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from rlprune_edge.encoders import SPEECH
from rlprune_edge.errors import CandidateError, UserError
from rlprune_edge.export import onnx_graph
from rlprune_edge.export.torch_export import OPSET, disk_error, quiet

_CHATTER = ("optimum", "transformers", "torch.onnx", "optimum.exporters.onnx", "optimum.exporters.onnx.convert")


def export(network: nn.Module, path: Path) -> None:
    """Write `network` (with a head for classification or CTC, in inference mode) to `path`, lengths and batch free.

    The file is complete (weights inside) and appears under its name only when whole. Raises CandidateError
    (`export_failed`) where an operator cannot be expressed, UserError where the disk is full.
    """
    from optimum.exporters.onnx import onnx_export_from_model

    config: Any = network.config
    task = "automatic-speech-recognition" if config.model_type in SPEECH else "text-classification"
    network.eval()
    noise = io.StringIO()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        try:
            with contextlib.ExitStack() as silence:
                silence.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                silence.enter_context(contextlib.redirect_stdout(noise))
                silence.enter_context(contextlib.redirect_stderr(noise))
                for name in _CHATTER:
                    silence.enter_context(quiet(name))
                onnx_export_from_model(network, folder, opset=OPSET, task=task, do_validation=False, device="cpu")
            made = Path(folder) / "model.onnx"
            onnx_graph.settle_names(made)
            os.replace(made, path)
        except OSError as error:
            raise disk_error(path, error) from error
        except UserError:
            raise
        except Exception as error:  # optimum raises plain Exceptions, ValueErrors and whatever torch raised
            logging.getLogger(__name__).debug("optimum said: %s", noise.getvalue())
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CandidateError("export_failed", f"optimum: {reason}") from error
