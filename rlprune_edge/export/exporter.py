"""Write any candidate as one ONNX file: networks of transformers through optimum, all others through torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rlprune_edge.encoders import view
from rlprune_edge.export import torch_export, transformers_export
from rlprune_edge.inputs import Input


def export(module: nn.Module, example: Input, path: Path) -> None:
    """Write `module` to `path`; `example` is one input, [1, ...]. Raises CandidateError, UserError."""
    if view(module) is not None:
        transformers_export.export(network_of(module), path)
    else:
        assert isinstance(example, torch.Tensor)
        torch_export.export(module, example, path)


def network_of(module: nn.Module) -> nn.Module:
    """What of a module is exported, and gives the names in the file."""
    seen = view(module)
    return module if seen is None else seen.network
