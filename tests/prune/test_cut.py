"""Cutting against masking, on one small network per pattern of coupling."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune_edge.errors import CandidateError
from rlprune_edge.prune import cut, graph, importance, space
from rlprune_edge.tasks.resnet import cifar_resnet


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 10, 3, padding=1)
        self.c, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.c(torch.cat([self.a(x), self.b(x)], dim=1)))
        out: Tensor = self.head(y.mean((2, 3)))
        return out


class Flatten(nn.Module):
    """Each channel owns 16 inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6 * 16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.conv(x))).flatten(1)
        out: Tensor = self.head(torch.sigmoid(self.hidden(y)))  # sigmoid(0) is not 0: masking outputs would not do
        return out


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.deep = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.relu6(self.deep(F.relu6(self.expand(x)))))
        out: Tensor = self.head(y.mean((2, 3)))
        return out


class Grouped(nn.Module):
    """A grouped convolution is left whole; the layer after it can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.c, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))).mean((2, 3)))
        return out


def noisy(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and scales that matter, as training would."""
    generator = torch.Generator().manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor, low, high in ((m.weight, 0.5, 1.5), (m.bias, -0.5, 0.5), (m.running_mean, -0.3, 0.3)):
                assert isinstance(tensor, Tensor)
                with torch.no_grad():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def traced(model: nn.Module, x: Tensor) -> tuple[tuple[graph.CoupledGroup, ...], importance.Ranking]:
    groups, _ = graph.find_groups(model, x[:1])
    return groups, importance.rank(model, groups, criterion="magnitude", batches=(), loss=F.cross_entropy)


@pytest.mark.parametrize("net", [Concat, Flatten, Depthwise, Grouped, lambda: cifar_resnet(20)])
def test_cut_network_equals_masked_network(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    size = 32 if net not in (Concat, Flatten, Depthwise, Grouped) else 8
    model, x = noisy(net()), torch.randn(4, 3, size, size)
    groups, ranking = traced(model, x)
    described = space.build(model, x[:1], groups)
    assert described.groups, "a network that can be cut"
    rng = random.Random(3)
    for _ in range(6):
        widths = {g.name: rng.randint(1, g.width) for g in described.groups}
        plan = described.plan(widths, tuple(b.name for b in described.blocks if rng.random() < 0.4))
        candidate = cut.apply(model, groups, ranking, plan)
        assert cut.check_against_masked(candidate, model, groups, ranking, x) < 1e-5
        assert space.count_macs(candidate.module, x[:1]) == described.macs(plan) or net is Concat
        assert candidate.parameters < described.parameters or plan.key == described.uncut().key


def test_option_a_padding_is_reindexed() -> None:
    """A stage cut to other channels must still add the shortcut to the right ones: kept channel i goes to i + before.

    The expected network is built without the dependency graph: slice, pad, and zero the lost channels by hand.
    """
    model = noisy(cifar_resnet(20))
    x = torch.randn(2, 3, 32, 32)
    groups, _ = traced(model, x)
    stage2 = next(g for g in groups if g.name == "layer2.0.conv2")
    stage1 = next(g for g in groups if g.name == "conv1")
    lost1, lost2 = [0, 3, 7, 8, 15], [0, 8, 11, 15, 23, 24, 31]
    order = {
        g.name: [c for c in range(g.width) if c not in lost] + lost for g, lost in ((stage1, lost1), (stage2, lost2))
    }
    ranking = {g.name: torch.tensor(order.get(g.name, list(range(g.width)))).numpy() for g in groups}
    described = space.build(model, x[:1], groups)
    plan = described.plan({"conv1": 11, "layer2.0.conv2": 25})
    small = cut.apply(model, groups, ranking, plan).module

    def silence(y: Tensor, lost: list[int]) -> Tensor:
        y = y.clone()
        y[:, lost] = 0
        return y

    y = silence(torch.relu(model.bn1(model.conv1(x))), lost1)
    for stage, lost in ((model.layer1, lost1), (model.layer2, lost2), (model.layer3, [])):
        for block in stage:
            branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(y)))))
            if branch.shape != y.shape:
                extra = (branch.shape[1] - y.shape[1]) // 2
                y = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
            y = silence(torch.relu(branch + y), lost)
    expected = model.linear(y.mean((2, 3)))
    assert torch.allclose(small(x), expected, atol=1e-4)
    assert small.layer2[0].shortcut.weight.shape == (25, 11, 1, 1)


def test_blocks_that_are_an_identity_are_found_and_only_those() -> None:
    model, x = noisy(cifar_resnet(20)), torch.randn(1, 3, 32, 32)
    assert space.find_blocks(model, x) == [f"layer{s}.{i}" for s in (1, 2, 3) for i in range(3)]
    assert space.find_blocks(noisy(Flatten()), torch.randn(1, 3, 8, 8)) == []


def test_removing_every_block_and_all_but_one_channel_still_runs() -> None:
    model, x = noisy(cifar_resnet(20)), torch.randn(2, 3, 32, 32)
    groups, ranking = traced(model, x)
    described = space.build(model, x[:1], groups)
    plan = described.plan({g.name: 1 for g in described.groups}, tuple(b.name for b in described.blocks))
    candidate = cut.apply(model, groups, ranking, plan)
    assert candidate.module(x).shape == (2, 10)
    assert cut.check_against_masked(candidate, model, groups, ranking, x) < 1e-5


def test_classifier_outputs_are_never_cut() -> None:
    model = noisy(cifar_resnet(20))
    groups, skipped = graph.find_groups(model, torch.randn(1, 3, 32, 32))
    assert not any(s.layer == "linear" and s.side == "out" for g in groups for s in g.slices)
    assert any("linear" in reason and "outputs" in reason for reason in skipped)


def test_uncut_plan_changes_nothing_and_leaves_the_model_alone() -> None:
    model, x = noisy(cifar_resnet(20)), torch.randn(2, 3, 32, 32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    groups, ranking = traced(model, x)
    described = space.build(model, x[:1], groups)
    half = cut.apply(model, groups, ranking, described.plan({g.name: g.width // 2 for g in described.groups}))
    whole = cut.apply(model, groups, ranking, described.uncut())
    assert all(torch.equal(v, before[k]) for k, v in whole.module.state_dict().items())
    torch.testing.assert_close(whole.module(x), model(x))  # sums in another order, see layout.py
    assert half.parameters < 0.3 * whole.parameters
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_wrong_cut_is_caught() -> None:
    """The check must be able to fail: a candidate whose channels were taken from the wrong end is refused."""
    model, x = noisy(cifar_resnet(20)), torch.randn(2, 3, 32, 32)
    groups, ranking = traced(model, x)
    described = space.build(model, x[:1], groups)
    plan = described.plan({"layer2.1.conv1": 12})
    backwards = {name: order[::-1] for name, order in ranking.items()}
    wrong = cut.apply(model, groups, backwards, plan)
    with pytest.raises(CandidateError) as caught:
        cut.check_against_masked(wrong, model, groups, ranking, x)
    assert caught.value.kind == "masked_mismatch"


def test_parameters_and_macs_are_the_published_ones() -> None:
    """He et al. 2015, table 6: 0.27 M and 0.85 M; 269,722 and 853,018 trained parameters in the published files."""
    x = torch.randn(1, 3, 32, 32)
    assert [space.count_parameters(cifar_resnet(d)) for d in (20, 56)] == [269_722, 853_018]
    shortcuts = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8  # the fixed 0/1 kernels, which run like any other
    assert space.count_macs(cifar_resnet(20).eval(), x) - shortcuts == 40_551_040
