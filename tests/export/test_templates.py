"""Files that are written into a template: the true export to the byte, or not written that way at all."""

from __future__ import annotations

import importlib
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoder_samples import encoder, inputs
from torch import Tensor, nn

from rlprune_edge.errors import UserError
from rlprune_edge.export import exporter, onnx_graph, parity
from rlprune_edge.export.recipes import Recipe
from rlprune_edge.export.templates import Templates
from rlprune_edge.inputs import Input
from rlprune_edge.prune import cut, structure
from rlprune_edge.prune import space as spaces
from rlprune_edge.prune.graph import CoupledGroup
from rlprune_edge.records import PruningSpace
from rlprune_edge.tasks.resnet import cifar_resnet
from rlprune_edge.tasks.torchvision_models import import_torchvision


class Separable(nn.Module):
    """Depthwise between two pointwise convolutions (the last with a bias of its own), with a residual around them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.widen = nn.Sequential(nn.Conv2d(12, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24))
        self.narrow = nn.Sequential(nn.Conv2d(24, 12, 1), nn.BatchNorm2d(12))
        self.before = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.narrow(F.relu6(self.depth(self.widen(x))))
        out: Tensor = self.head(torch.relu(self.before(x)).mean((2, 3)))
        return out


def bottlenecks() -> nn.Module:
    import_torchvision()
    resnet = importlib.import_module("torchvision.models.resnet")
    network: nn.Module = resnet.ResNet(resnet.Bottleneck, [2, 1, 1, 1], num_classes=5, width_per_group=8)
    return network


@dataclass(frozen=True)
class Sample:
    model: nn.Module
    x: Input
    groups: tuple[CoupledGroup, ...]
    space: PruningSpace

    def candidate(
        self, seed: int, *, drop: int = 3, dropped: tuple[str, ...] | None = None
    ) -> tuple[nn.Module, tuple[str, ...]]:
        """One of random widths with every `drop`-th block `dropped`, healed: all its values are its own."""
        rng = random.Random(seed)
        ranking = {g.name: np.array(rng.sample(range(g.width), g.width)) for g in self.groups}
        widths = {g.name: rng.randint(1, g.width) for g in self.space.groups}
        every = tuple(b.name for b in self.space.blocks[::drop])
        plan = self.space.plan(widths, every if dropped is None else dropped)
        return heal(cut.apply(self.model, self.groups, ranking, plan).module, seed), plan.dropped


def heal(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.copy_(0.1 * torch.randn(layer.num_features, generator=generator))
                layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
                layer.bias.copy_(0.1 * torch.randn(layer.num_features, generator=generator))
            elif isinstance(layer, nn.Linear):
                layer.weight.mul_(1 + 0.01 * torch.rand(layer.weight.shape, generator=generator))
    return module


def sample(name: str) -> Sample:
    images = {"resnet20": lambda: cifar_resnet(20), "bottlenecks": bottlenecks, "separable": Separable}
    x: Any = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    if name in images:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = images[name]().eval()
    else:
        model, x = encoder(name), inputs(name)[:1]
    groups, _ = structure.find_groups(model, x)
    return Sample(model, x, groups, spaces.build(model, x, groups))


@pytest.fixture(scope="module")
def resnet20() -> Sample:
    return sample("resnet20")


def export_both(templates: Templates, module: nn.Module, x: Input, topology: tuple[str, ...], folder: Path) -> bool:
    """Whether the file was sliced. It has to be the true one, and described as that, in either case."""
    mine, true = folder / "mine.onnx", folder / "true.onnx"
    sliced = templates.export(module, x, mine, topology)
    exporter.export(module, x, true)
    assert mine.read_bytes() == true.read_bytes()
    expected = onnx_graph.describe(true, max_difference=0.5)
    if sliced is not None:
        assert sliced.describe(max_difference=0.5) == replace(expected, path=str(mine))
    assert parity.check(mine, module, x)[1] < 1e-3
    return sliced is not None


@pytest.mark.parametrize(
    "name", ["resnet20", "bottlenecks", "separable", "bert", "distilbert", "wav2vec2", "wav2vec2-norm-first"]
)
def test_a_sliced_file_is_the_true_export_to_the_byte(name: str, tmp_path: Path) -> None:
    """Hash of the graph, least work, names and shapes of the initializers, outputs: all follow from that."""
    given, templates = sample(name), Templates()
    sliced = [export_both(templates, *_with(given, seed), tmp_path) for seed in range(4)]
    assert sliced == [False, False, True, True], "the template's own, the one it is proven with, and the rest"


def _with(given: Sample, seed: int, *, drop: int = 3) -> tuple[nn.Module, Input, tuple[str, ...]]:
    module, topology = given.candidate(seed, drop=drop)
    return module, given.x, topology


def test_every_topology_has_a_template_of_its_own_and_the_oldest_is_forgotten(resnet20: Sample, tmp_path: Path) -> None:
    templates = Templates(keep=2)
    for drop in (3, 4):
        assert [export_both(templates, *_with(resnet20, s, drop=drop), tmp_path) for s in range(3)][-1]
    assert export_both(templates, *_with(resnet20, 3, drop=3), tmp_path), "both are kept"
    assert not export_both(templates, *_with(resnet20, 0, drop=5), tmp_path), "and a third takes one's place"
    assert export_both(templates, *_with(resnet20, 4, drop=3), tmp_path)
    assert not export_both(templates, *_with(resnet20, 4, drop=4), tmp_path)


@pytest.mark.parametrize("name", ["resnet20", "bottlenecks", "separable", "bert", "distilbert", "wav2vec2"])
def test_any_combination_of_dropped_blocks_gets_its_true_file(name: str, tmp_path: Path) -> None:
    """Most topologies of a search are new: they follow from an earlier one once each block was seen to go."""
    given, templates = sample(name), Templates()
    sliced = []
    for seed in range(10):
        rng = random.Random(seed)
        dropped = () if seed == 0 else tuple(b.name for b in given.space.blocks if rng.random() < 0.3)
        module, topology = given.candidate(seed, dropped=dropped)
        sliced.append(export_both(templates, module, given.x, topology, tmp_path))
    if name in ("resnet20", "bottlenecks", "bert"):  # the others have no blocks, or leave an addition of zero behind
        assert sliced.index(True) <= 5
        assert sum(sliced) >= 4, "one of each kind was exported, and the others follow"
        assert len(templates._kept) < 3, "from the uncut network, or from one without any reader of the mask"


def test_equal_values_which_the_exporter_writes_once_are_written_once(tmp_path: Path) -> None:
    """A new network's biases are all zeros; which of them are equal changes with the widths."""
    given, templates = sample("resnet20"), Templates()
    for widths in ((16, 16, 16), (12, 12, 12), (10, 10, 10), (8, 10, 8), (6, 6, 6)):
        small = dict(zip([g.name for g in given.space.groups[1:4]], widths, strict=True))
        ranking = {g.name: np.arange(g.width) for g in given.groups}
        module = cut.apply(given.model, given.groups, ranking, given.space.plan(small)).module
        export_both(templates, module, given.x, (), tmp_path)


class Joined(nn.Module):
    """Its two kernels are joined before they are used: the exporter computes that, and no recipe does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3), nn.Conv2d(3, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, torch.cat([self.first.weight, self.second.weight])).mean((2, 3))


def test_what_is_not_recognised_is_exported_truly(tmp_path: Path) -> None:
    templates = Templates()
    for width in (2, 3, 4, 5):
        assert not export_both(templates, Joined(width).eval(), torch.randn(1, 3, 8, 8), (), tmp_path)


def plant(templates: Templates, topology: tuple[str, ...]) -> None:
    """Have the first bias made of another tensor of the same length."""
    kept = templates._kept[topology]
    place = next(i for i, slot in enumerate(kept._slots) if slot.recipe.kind == "folded bias")
    wrong = Recipe("as it is", (kept._slots[place].recipe.names[1],))
    kept._slots = (*kept._slots[:place], replace(kept._slots[place], recipe=wrong), *kept._slots[place + 1 :])


def test_a_wrong_recipe_is_noticed_when_the_template_is_proven(resnet20: Sample, tmp_path: Path) -> None:
    templates = Templates()
    module, x, topology = _with(resnet20, 0)
    export_both(templates, module, x, topology, tmp_path)
    plant(templates, topology)
    assert not any(export_both(templates, *_with(resnet20, seed), tmp_path) for seed in range(1, 4))


def test_a_template_that_was_refused_is_not_used_again(resnet20: Sample, tmp_path: Path) -> None:
    templates = Templates()
    assert [export_both(templates, *_with(resnet20, seed), tmp_path) for seed in range(3)][-1]
    templates.refuse(_with(resnet20, 0)[2])
    assert not any(export_both(templates, *_with(resnet20, seed), tmp_path) for seed in range(3, 6))


def test_a_module_of_another_topology_is_not_forced_into_a_template(resnet20: Sample, tmp_path: Path) -> None:
    """Whoever names the topology wrongly gets a true file all the same."""
    templates = Templates()
    assert [export_both(templates, *_with(resnet20, seed), tmp_path) for seed in range(3)][-1]
    module, x, _ = _with(resnet20, 3, drop=2)
    assert not export_both(templates, module, x, _with(resnet20, 0)[2], tmp_path)


def test_a_folder_that_is_not_there_is_for_the_user_to_mend(resnet20: Sample, tmp_path: Path) -> None:
    templates = Templates()
    for seed in range(2):
        export_both(templates, *_with(resnet20, seed), tmp_path)
    module, x, topology = _with(resnet20, 2)
    with pytest.raises(UserError, match="Cannot write"):
        templates.export(module, x, tmp_path / "nowhere" / "mine.onnx", topology)
