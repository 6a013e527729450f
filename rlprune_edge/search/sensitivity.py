"""How much quality each single cut costs, and what that says about where to cut first.

Each group at a few widths, and each block, is cut alone from the model and scored on the host, without the
device. A step's cost per millisecond it frees, relative to the best step on offer, becomes a prior on the policy's
choices: what HALP (NeurIPS 2022) and SPDY (ICML 2022) do with saliency and a latency table, as a starting point that
PPO is free to leave. In a prototype 75 evaluations with such a prior were worth more than 300 without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlprune_edge.records import Group, Plan, PruningSpace
from rlprune_edge.search.arrays import Bools, Floats, Ints, SpaceArrays

STRENGTH = 4.0
"""how sharply the prior prefers the better step at first: probabilities go with (cost per millisecond) ** -STRENGTH"""
HEATING, COOLING, HOTTEST = 1.2, 0.9, 8.0
"""what the prior's temperature is multiplied by after an episode that proposed a known plan, or a new one"""
FLOOR = 8.0
"""the prior of a step is never less than exp(-FLOOR) of the best one's: nothing is ruled out"""
SHARES = (0.5, 0.25)
"""of a group's width, at which it is probed (at the nearest width on offer)"""
_EPSILON = 0.002  # quality that a probe cannot tell from nothing


@dataclass(frozen=True)
class Sensitivity:
    """Quality lost by single cuts of what a search begins with (see `reward.loss_quality`)."""

    groups: Mapping[str, Mapping[int, float]]
    """group -> width -> loss of quality"""
    blocks: Mapping[str, float]


def probes(space: PruningSpace, *, most: int | None = None) -> list[tuple[str, int | None, Plan]]:
    """The single cuts to score: (group, width, plan) and (block, None, plan).

    With `most`, first the second width of every group is left out, then cuts evenly over the network: what was not
    probed is taken to cost what its neighbour of the same kind does (see `Prior`).
    """
    cuts = _cuts(space, SHARES)
    if most is None or len(cuts) <= most:
        return cuts
    cuts = _cuts(space, SHARES[:1])
    if len(cuts) <= most:
        return cuts
    return [cuts[int(i)] for i in np.unique(np.linspace(0, len(cuts) - 1, max(1, most)).round())]


def _cuts(space: PruningSpace, shares: tuple[float, ...]) -> list[tuple[str, int | None, Plan]]:
    cuts: list[tuple[str, int | None, Plan]] = []
    for group in space.groups:
        narrower = group.levels[1:]
        chosen = {min(narrower, key=lambda n: abs(n - share * group.levels[0])) for share in shares if narrower}
        cuts += [(group.name, n, space.plan({group.name: n})) for n in sorted(chosen, reverse=True)]
    left = [block for block in space.blocks if block.name not in space.removed]
    return cuts + [(block.name, None, space.plan({}, (block.name,))) for block in left]


class Prior:
    """Log-probabilities, up to a constant, of the steps in a state: 0 for the best, never below -FLOOR.

    A sharp prior proposes the same few plans again and again (5 distinct ones in 200 episodes on ResNet-20), a blunt
    one is hardly better than chance. So it starts sharp, and its temperature rises while nothing new comes; the policy
    sees the tempered values, which keeps PPO's probabilities true.
    """

    def __init__(self, space: PruningSpace, sensitivity: Sensitivity) -> None:
        widest = max((g.width for g in space.groups), default=0)
        self._group_cost = np.zeros((len(space.groups), widest + 1))
        for i, group in enumerate(space.groups):
            self._group_cost[i, : group.width + 1] = _curve(group, _of_group(space, sensitivity, i))
        self.temperature = 1.0
        self._block_cost = np.array([max(0.0, _of_block(space, sensitivity, i)) for i in range(len(space.blocks))])
        self._parts = SpaceArrays(space).parts

    def heat(self) -> None:
        """A known plan was proposed: look further away."""
        self.temperature = min(HOTTEST, self.temperature * HEATING)

    def cool(self) -> None:
        """A new plan was proposed: trust the single cuts a little more again."""
        self.temperature = max(1.0, self.temperature * COOLING)

    def costs(self, widths: Ints, next_widths: Ints) -> Floats:
        """Quality that each step costs: [states, groups + blocks]; from `widths` to `next_widths` [states, groups]."""
        rows = np.arange(widths.shape[1])
        steps = self._group_cost[rows, next_widths] - self._group_cost[rows, widths]
        return np.concatenate([steps, np.broadcast_to(self._block_cost, (len(widths), len(self._block_cost)))], axis=1)

    def single_costs(self) -> tuple[Floats, Floats]:
        """Quality that each group costs at every width, [groups, widths from 0], and each block removed, [blocks]."""
        return self._group_cost, self._block_cost

    def logits(self, widths: Ints, next_widths: Ints, *, freed: Floats, can: Bools) -> Floats:
        """Prior of every step and of doing nothing (the last): [states, groups + blocks + 1]; `freed` in ms."""
        useful = can & (freed > 0)
        price = (self.costs(widths, next_widths) + _EPSILON) / np.where(useful, freed, 1.0)
        best = np.where(useful, price, np.inf).min(axis=1, initial=np.inf, keepdims=True)
        any_use: Bools = np.any(useful, axis=1)
        relative = np.where(useful, price / np.where(any_use[:, None], best, 1.0), 1.0)
        steps = np.where(useful, np.maximum(-FLOOR, -STRENGTH / self.temperature * np.log(relative)), -FLOOR)
        nothing = np.where(any_use, -FLOOR, 0.0)
        return np.concatenate([steps, nothing[:, None]], axis=1)

    def total(self, widths: Ints, dropped: Bools, block_of_group: Ints) -> Floats:
        """Quality that plans are expected to cost, as the sum of their single cuts: [plans]."""
        rows = np.arange(widths.shape[1])
        gone = (block_of_group >= 0) & np.append(dropped, np.zeros((len(dropped), 1), bool), axis=1)[:, block_of_group]
        by_group = np.where(gone, 0.0, self._group_cost[rows, widths]).sum(axis=1)
        # a whole layer was probed as such: its parts do not count again
        outermost = dropped & ~(dropped @ self._parts)
        return np.asarray(by_group + outermost @ self._block_cost, dtype=np.float64)


def _of_group(space: PruningSpace, sensitivity: Sensitivity, index: int) -> dict[int, float]:
    """The group's own probes, else those of the nearest group in depth that was probed, at the same shares."""
    group = space.groups[index]
    if group.name in sensitivity.groups or len(group.levels) == 1:
        return dict(sensitivity.groups.get(group.name, {}))
    probed = [g for g in space.groups if sensitivity.groups.get(g.name)]
    like = [g for g in probed if (g.block is None) == (group.block is None)] or probed
    if not like:
        return {}
    other = min(like, key=lambda g: abs(g.depth - group.depth))
    scaled = {n * group.width // other.width: cost for n, cost in sensitivity.groups[other.name].items()}
    return {min(max(1, n), group.width - 1): cost for n, cost in scaled.items()} if group.width > 1 else {}


def _of_block(space: PruningSpace, sensitivity: Sensitivity, index: int) -> float:
    """The block's own probe, else that of the nearest block in depth that was probed and has as many parts."""
    block = space.blocks[index]
    if block.name in space.removed:
        return 0.0
    if block.name in sensitivity.blocks:
        return sensitivity.blocks[block.name]
    probed = [b for b in space.blocks if b.name in sensitivity.blocks]
    like = [b for b in probed if len(b.parts) == len(block.parts)] or probed
    nearest = min(like, key=lambda b: abs(b.depth - block.depth), default=None)
    return 0.0 if nearest is None else sensitivity.blocks[nearest.name]


def _curve(group: Group, probed: Mapping[int, float]) -> Floats:
    """Cost at every width from 0: through the probes, rising as channels go, steeper beyond the last one."""
    start = group.levels[0]
    points = sorted([(start, 0.0), *((n, max(0.0, cost)) for n, cost in probed.items() if n < start)], reverse=True)
    if len(points) == 1:
        return np.zeros(group.width + 1)
    n, cost = np.array([p[0] for p in points], float), np.maximum.accumulate([p[1] for p in points])
    slope = (cost[-1] - cost[-2]) / (n[-2] - n[-1])
    n, cost = np.append(n, 0.0), np.append(cost, cost[-1] + 2 * slope * n[-1])
    return np.asarray(np.interp(np.arange(group.width + 1), n[::-1], cost[::-1]), dtype=np.float64)
