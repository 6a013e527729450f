"""Weight files: read, fitted into a network, written."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlprune_edge import whole_file
from rlprune_edge.errors import UserError

PICKLED = (".pt", ".pth")
Damaged = SafetensorError
"""raised by whoever opens a safetensors file that is none"""
SHOWN = 4
"""names shown of each kind of mismatch"""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt or .pth file by name, without a leading `module.` (left by DataParallel).

    Pickled files are opened with `weights_only`, so that they cannot run code. Raises UserError if the file is absent,
    damaged or holds anything but named tensors.
    """
    if not path.is_file():
        raise UserError(f"There is no weight file {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True) if path.suffix in PICKLED else load_file(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        kind = "PyTorch" if path.suffix in PICKLED else "safetensors"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} could not be read as a {kind} file ({reason[:160]}). It may be damaged or cut short; "
            "fetch it again, or save it with safetensors.torch.save_file(model.state_dict(), ...)."
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{path} does not hold a state_dict (names and tensors); save model.state_dict() instead.")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def metadata(path: Path) -> dict[str, str]:
    """The text written beside the tensors of a safetensors file (empty for other files)."""
    if path.suffix in PICKLED:
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def load(
    module: nn.Module,
    path: Path,
    *,
    name: str,
    optional: frozenset[str] = frozenset(),
    fits: Callable[[Mapping[str, Tensor]], str | None] = lambda _: None,
) -> None:
    """Copy the tensors of a file into `module`; every name and shape must agree, or nothing is changed.

    `name`: what the user calls this network. `optional`: names that the file may lack (batch counters of BatchNorm
    always may). `fits`: tells from the tensors which other network they are of, for the message. Raises UserError.
    """
    tensors = read(path)
    own = module.state_dict()
    spare = {n for n in own if n in optional or n.endswith("num_batches_tracked")}
    missing = [n for n in own if n not in tensors and n not in spare]
    unexpected = [n for n in tensors if n not in own]
    shapes = [
        f"{n} is {_shape(tensors[n])} and should be {_shape(own[n])}"
        for n in own
        if n in tensors and tensors[n].shape != own[n].shape
    ]
    if missing or unexpected or shapes:
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        lines = [f"  {len(found)} {kind}: {_some(found)}" for kind, found in kinds if found]
        better = fits(tensors)
        hint = f"\nThe file looks like {better}: try --model {better}." if better and better != name else ""
        raise UserError("\n".join([f"The weights in {path} do not fit {name}:", *lines]) + hint)
    module.load_state_dict({**own, **tensors})


def save(module: nn.Module, path: Path, *, about: Mapping[str, Any]) -> None:
    """Write the network's tensors, whole or not at all. `about`: text kept beside them. Raises UserError."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file.replacing(path, shared=True) as part:
            save_file(tensors, part, metadata={key: str(value) for key, value in about.items()})
    except (OSError, SafetensorError) as error:
        raise UserError(f"The trained network could not be saved as {path}: {error}.") from error


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a single number"


def _some(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
