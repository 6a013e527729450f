"""The CIFAR ResNet: the paper's sizes, the published names, option-A shortcuts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rlprune_edge.tasks.resnet import BasicBlock, PadShortcut, ResNet, cifar_resnet, depth_of, fixed_names


def trained_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_parameters_are_the_published_ones(depth: int, parameters: int) -> None:
    assert trained_parameters(cifar_resnet(depth)) == parameters


@pytest.mark.parametrize(("narrow", "wide"), [(16, 32), (32, 64), (5, 8), (96, 192)])
def test_pad_shortcut_equals_slicing_and_padding(narrow: int, wide: int) -> None:
    x = torch.randn(3, narrow, 8, 8)
    before = (wide - narrow) // 2
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, wide - narrow - before))
    assert torch.equal(PadShortcut(narrow, wide, 2)(x), expected)


def test_a_whole_network_equals_one_with_slices_and_pads() -> None:
    torch.manual_seed(0)
    model = cifar_resnet(20).eval()
    x = torch.randn(4, 3, 32, 32)
    y = torch.relu(model.bn1(model.conv1(x)))
    for block in (m for m in model.modules() if isinstance(m, BasicBlock)):
        out = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(y)))))
        if out.shape != y.shape:
            rim = (out.shape[1] - y.shape[1]) // 2
            y = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, rim, rim))
        y = torch.relu(out + y)
    with torch.no_grad():
        assert torch.allclose(model(x), model.linear(y.mean((2, 3))), atol=1e-5)


def test_shortcut_kernels_are_never_trained_and_only_they_are_fixed() -> None:
    model = cifar_resnet(20)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == fixed_names(model) == {"layer2.0.shortcut.weight", "layer3.0.shortcut.weight"}


def test_other_sizes_are_arguments() -> None:
    model = ResNet(widths=(8, 12, 16, 20), blocks=1, in_channels=1, num_classes=3)
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 3)


def test_the_depth_is_told_from_the_names() -> None:
    assert [depth_of(cifar_resnet(depth).state_dict()) for depth in (20, 56)] == [20, 56]
    assert depth_of(["layer1.0.conv1.weight", "fc.weight"]) is None


def test_a_depth_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="6n\\+2, not 18"):
        cifar_resnet(18)
