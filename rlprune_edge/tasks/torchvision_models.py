"""Architectures from torchvision, and how to import it beside a torch that its extension was not built for."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Literal

import torch
from torch import nn

from rlprune_edge.errors import UserError

# The library object has to live as long as the process: torch forgets the operators when it is collected.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The package torchvision. Raises UserError if it is absent or does not work with this torch."""
    try:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            return _import_without_extension()
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f"torchvision cannot be used with torch {torch.__version__} ({str(error).splitlines()[0]}). "
            "Install the pair that belongs together, e.g. torch 2.13.0 with torchvision 0.28.0."
        ) from error


def _import_without_extension() -> ModuleType:
    # torchvision 0.28.0 from PyPI is compiled for CUDA, and beside a CPU torch its library cannot be loaded. While it
    # is imported it then attaches shape rules to two operators nobody has registered. Their signatures are enough for
    # it; the operators themselves (detection) stay unusable, and the networks do not call them.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module("torchvision")


def resnet50(*, stem: Literal["cifar", "imagenet"], num_classes: int) -> nn.Module:
    """torchvision's ResNet-50, untrained.

    With the `cifar` stem the first convolution is 3x3 with stride 1 and nothing is pooled after it, so that 32x32
    images keep their pixels; the `imagenet` stem is torchvision's own (7x7, stride 2, then pooling) and leaves 8x8.
    """
    import_torchvision()
    models = importlib.import_module("torchvision.models")
    network: nn.Module = models.resnet50(weights=None, num_classes=num_classes)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network
