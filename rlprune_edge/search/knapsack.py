"""Plans that lose the least quality for a latency, as a knapsack: the idea of SPDY (ICML 2022) and HALP (NeurIPS 2022).

Every group picks one of its widths, every block may go. What a choice frees is taken from the latency model, what it
costs from the sensitivity probes, both as if it were the only cut; dynamic programming over the whole network then
finds the cheapest choices for every amount freed. Cuts do interact, so the plans it finds are priced once more by the
latency model before one is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlprune_edge.records import Plan
from rlprune_edge.search.arrays import Bools, Floats, Ints
from rlprune_edge.search.latency import LatencyModel
from rlprune_edge.search.limits import Limits, filled
from rlprune_edge.search.sensitivity import Prior

SPREAD = 0.4
"""of the logarithm of a factor that is drawn"""
BINS = 400
"""parts that what the uncut model uses is counted in"""


@dataclass(frozen=True)
class Coefficients:
    """Factors on what the probes say that cuts cost; all 1 is the probes' own word."""

    groups: Floats
    """[groups]"""
    blocks: Floats
    """[blocks]"""

    @classmethod
    def ones(cls, groups: int, blocks: int) -> Coefficients:
        return cls(np.ones(groups), np.ones(blocks))

    def redrawn(self, rng: np.random.Generator, *, share: float = 1.0) -> Coefficients:
        """About this share of the factors drawn anew, log-normal around 1."""
        groups, blocks = len(self.groups), len(self.blocks)
        return Coefficients(
            np.where(rng.random(groups) < share, np.exp(rng.normal(0.0, SPREAD, groups)), self.groups),
            np.where(rng.random(blocks) < share, np.exp(rng.normal(0.0, SPREAD, blocks)), self.blocks),
        )


@dataclass(frozen=True)
class _Choice:
    """One way to treat a slot (a group, or a block with all that is in it)."""

    bins: int
    """what it frees"""
    cost: float
    levels: dict[int, int]
    """group -> level"""
    dropped: frozenset[int]


class Knapsack:
    """Solves the same space again and again, under other coefficients and other limits."""

    def __init__(self, model: LatencyModel, prior: Prior) -> None:
        self._model, self._prior, self._arrays = model, prior, model.arrays
        space = self._arrays.space
        self._levels = [g.levels for g in space.groups]
        parts = self._arrays.parts
        self._parents = {int(part): int(block) for block, part in zip(*np.nonzero(parts), strict=True)}
        self.ones = Coefficients.ones(len(space.groups), len(space.blocks))
        self._top = [b for b in range(len(space.blocks)) if b not in self._parents]

    def solve(self, limits: Limits, coefficients: Coefficients) -> Plan | None:
        """The cheapest plan predicted to meet the limits, slack given back; `None` where none is found.

        Deterministic. The latency model as it is now counts.
        """
        slots = self._slots(limits, coefficients)
        widths, dropped, cost = self._front(slots)
        fits = limits.met(self._model, widths, dropped)
        if not fits.any():
            return None
        best = min(np.flatnonzero(fits), key=lambda i: cost[i])
        plan = self._arrays.decode(widths[best], dropped[best])
        return filled(plan, self._model, limits, prior=self._prior)

    # ------------------------------------------------------------ the choices of every slot

    def _slots(self, limits: Limits, c: Coefficients) -> list[list[_Choice]]:
        freed_groups, freed_blocks = self._freed(limits)
        costs = self._prior.single_costs()
        inside: dict[int, list[int]] = {}
        for i, owner in enumerate(self._arrays.block_of_group):
            inside.setdefault(int(owner), []).append(i)

        def group(i: int) -> list[_Choice]:
            return [
                _Choice(int(freed_groups[i][k]), float(c.groups[i] * costs[0][i, n]), {i: k} if k else {}, frozenset())
                for k, n in enumerate(self._levels[i])
            ]

        def block(b: int) -> list[_Choice]:
            kept = [_Choice(0, 0.0, {}, frozenset())]
            for slot in [group(i) for i in inside.get(b, [])]:
                kept = _together(kept, slot)
            for part in np.flatnonzero(self._arrays.parts[b]):
                kept = _together(kept, block(int(part)))
            # a layer without any of its parts is the layer removed, and priced as such
            kept = [choice for choice in kept if not self._is_all_of(b, choice.dropped)]
            gone = frozenset([b, *(int(p) for p in np.flatnonzero(self._arrays.parts[b]))])
            return _pareto([*kept, _Choice(int(freed_blocks[b]), float(c.blocks[b] * costs[1][b]), {}, gone)])

        return [_pareto(group(i)) for i in inside.get(-1, [])] + [block(b) for b in self._top]

    def _is_all_of(self, block: int, dropped: frozenset[int]) -> bool:
        parts = np.flatnonzero(self._arrays.parts[block])
        return bool(len(parts)) and dropped.issuperset(int(p) for p in parts)

    def _freed(self, limits: Limits) -> tuple[list[Ints], Ints]:
        """Bins that every level of every group, and every block, frees when it is the only cut."""
        a, space = self._arrays, self._arrays.space
        whole, none = a.encode(space.start())
        rows_w, rows_d = [whole[0]], [none[0]]
        for i, levels in enumerate(self._levels):
            for n in levels:
                row = whole[0].copy()
                row[i] = n
                rows_w.append(row)
                rows_d.append(none[0])
        for b in range(len(space.blocks)):
            rows_w.append(whole[0])
            rows_d.append(a.removed(none, np.array([b]))[0])
        used = limits.used(self._model, np.stack(rows_w), np.stack(rows_d))
        # rounded down: what is promised is there
        bins = np.clip((used[0] - used[1:]) / used[0] * BINS, 0, BINS).astype(np.int64)
        ends = np.cumsum([len(levels) for levels in self._levels])
        return np.split(bins, ends)[:-1], bins[ends[-1] if len(ends) else 0 :]

    # ------------------------------------------------------------ all slots together

    def _front(self, slots: list[list[_Choice]]) -> tuple[Ints, Bools, Floats]:
        """The cheapest plan for every number of bins freed: widths [plans, groups], dropped [plans, blocks], costs."""
        best = np.full(BINS + 1, np.inf)
        best[0] = 0.0
        taken = np.zeros((len(slots), BINS + 1), dtype=np.int64)
        for s, slot in enumerate(slots):
            options = np.full((len(slot), BINS + 1), np.inf)
            for k, choice in enumerate(slot):
                options[k, choice.bins :] = best[: BINS + 1 - choice.bins] + choice.cost
            taken[s] = np.argmin(options, axis=0)
            best = options[taken[s], np.arange(BINS + 1)]
        reached = np.flatnonzero(np.isfinite(best))
        whole, none = self._arrays.encode(self._arrays.space.start())
        widths, dropped = np.repeat(whole, len(reached), axis=0), np.repeat(none, len(reached), axis=0)
        left = reached.copy()
        for slot, by_bins in reversed(list(zip(slots, taken, strict=True))):
            chosen = by_bins[left]
            left -= np.array([choice.bins for choice in slot])[chosen]
            for k, choice in enumerate(slot):
                rows = np.flatnonzero(chosen == k)
                for i, level in choice.levels.items():
                    widths[rows, i] = self._levels[i][level]
                dropped[rows[:, None], np.array(sorted(choice.dropped), dtype=np.int64)] = True
        return widths, dropped, best[reached]


def _together(first: list[_Choice], second: list[_Choice]) -> list[_Choice]:
    """All pairs of two slots that no third pair beats."""
    pairs = [(a, b) for a in first for b in second]
    return _pareto(
        [
            _Choice(min(BINS, a.bins + b.bins), a.cost + b.cost, a.levels | b.levels, a.dropped | b.dropped)
            for a, b in pairs
        ]
    )


def _pareto(choices: list[_Choice]) -> list[_Choice]:
    """Those that free more than every cheaper one."""
    found: list[_Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.cost, -choice.bins)):
        if not found or choice.bins > found[-1].bins:
            found.append(choice)
    return found
