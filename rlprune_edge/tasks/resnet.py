"""The residual network for small images: He et al. 2015, section 4.2, with parameter-free (option A) shortcuts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

CIFAR_DEPTHS = (20, 32, 44, 56)


class PadShortcut(nn.Conv2d):
    """Option A as a layer: every second pixel, the new channels zero, half of them before and half after.

    It is a 1x1 convolution with a fixed 0/1 kernel rather than a slice and a pad: a dependency graph follows it through
    its kernel, so whichever channels are cut on either side, those that stay are still added to the right ones.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        self.weight.requires_grad_(False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write the fixed kernel [out, in, 1, 1]: input channel `i` goes to output channel `i + before`."""
        before = (self.out_channels - self.in_channels) // 2
        with torch.no_grad():
            self.weight.zero_()
            for i in range(self.in_channels):
                self.weight[i + before, i, 0, 0] = 1.0


class BasicBlock(nn.Module):
    """`relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`, all convolutions 3x3."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut: nn.Module = nn.Identity() if same else PadShortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Input [N, in_channels, H, W] (normalised), output [N, num_classes] (logits).

    `widths` are the channels of the stages, `blocks` the number of basic blocks in each; every stage but the first
    halves the image. The depth, as the paper counts it, is `6 * blocks + 2` for three stages. Layers and tensors are
    named as in the published CIFAR-10 checkpoints.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 3,
        in_channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for number, width in enumerate(widths, start=1):
            stage = [
                BasicBlock(before if i == 0 else width, width, 2 if i == 0 < number - 1 else 1) for i in range(blocks)
            ]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            before = width
        self.stages = len(widths)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[-1], num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and not isinstance(layer, PadShortcut):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def cifar_resnet(depth: int, *, num_classes: int = 10) -> ResNet:
    """The paper's CIFAR-10 network of `depth` 6n+2 layers, untrained."""
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"the depth of a CIFAR ResNet is 6n+2, not {depth}")
    return ResNet(blocks=(depth - 2) // 6, num_classes=num_classes)


def fixed_names(module: nn.Module) -> frozenset[str]:
    """State-dict names of the option-A kernels, which no published weight file holds."""
    return frozenset(f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, PadShortcut))


def depth_of(names: Iterable[str]) -> int | None:
    """The depth 6n+2 that the tensor names of a CIFAR ResNet belong to; `None` if they are of some other network."""
    blocks: dict[str, set[str]] = {}
    for name in names:
        if found := re.fullmatch(r"layer([123])\.(\d+)\.conv1\.weight", name):
            blocks.setdefault(found[1], set()).add(found[2])
    counts = {len(numbers) for numbers in blocks.values()}
    if len(blocks) != 3 or len(counts) != 1:
        return None
    return 6 * counts.pop() + 2
