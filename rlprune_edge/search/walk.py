"""Episodes of cutting, many side by side: states, possible actions, ends, and what a policy sees of them.

Predictions for a whole batch cost little more than for one state, and a policy that imagines a thousand episodes
spends most of its time in them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlprune_edge.records import Plan
from rlprune_edge.search import observation
from rlprune_edge.search.arrays import Bools, Floats, Ints
from rlprune_edge.search.latency import LatencyModel
from rlprune_edge.search.limits import Limits
from rlprune_edge.search.observation import Observer
from rlprune_edge.search.sensitivity import FLOOR, Prior


class Walk:
    """`count` networks on their way from the start of a search to one that is predicted to meet the budget.

    Actions as in `env.PruningEnv`. Nothing here is evaluated or random.
    """

    def __init__(self, model: LatencyModel, limits: Limits, prior: Prior | None, *, count: int = 1) -> None:
        self.model, self.limits, self.prior, self.count = model, limits, prior, count
        self.arrays = model.arrays
        space = self.arrays.space
        self.groups, self.blocks = len(space.groups), len(space.blocks)
        self.actions = self.groups + self.blocks + 1
        self.horizon: int | None = None
        """steps of an episode, for the share of it that is left"""
        self._levels = _padded([g.levels for g in space.groups])
        self._last_level = np.array([len(g.levels) - 1 for g in space.groups], dtype=np.int64)
        self._observer = Observer(self.arrays)
        self.level: Ints = np.zeros((count, self.groups), dtype=np.int64)
        """[walks, groups]: place of the width in the group's levels"""
        self.dropped: Bools = np.repeat(self.arrays.gone[None], count, axis=0)
        self.steps: Ints = np.zeros(count, dtype=np.int64)

    @property
    def observation_size(self) -> int:
        return observation.size(self.groups, self.blocks) + (self.actions if self.prior else 0)

    def start(self, row: int | None = None) -> None:
        """Back to where a search begins: one walk, or all."""
        rows = slice(None) if row is None else row
        self.level[rows], self.dropped[rows], self.steps[rows] = 0, self.arrays.gone, 0

    @property
    def widths(self) -> Ints:
        """[walks, groups]"""
        found: Ints = self._levels[np.arange(self.groups), self.level]
        return found

    def plan(self, row: int = 0) -> Plan:
        return self.arrays.decode(self.widths[row], self.dropped[row])

    def masks(self) -> Bools:
        """Which actions are possible: [walks, groups + blocks + 1]."""
        a = self.arrays
        gone = (a.block_of_group >= 0) & _with_none(self.dropped)[:, a.block_of_group]
        # what is left of a layer without one of its parts is the other part: that has an action of its own
        begun = (self.dropped[:, None, :] & a.parts).any(axis=2)
        nothing = np.ones((self.count, 1), dtype=np.bool_)
        return np.concatenate([(self.level < self._last_level) & ~gone, ~self.dropped & ~begun, nothing], axis=1)

    def take(self, actions: Ints) -> Bools:
        """One step of every walk: `actions` [walks]; which have reached their end, the horizon aside: [walks]."""
        self.steps += 1
        rows = np.flatnonzero(self.masks()[np.arange(self.count), actions] & (actions < self.actions - 1))
        narrower = rows[actions[rows] < self.groups]
        self.level[narrower, actions[narrower]] += 1
        removing = rows[actions[rows] >= self.groups]
        self.dropped[removing] = self.arrays.removed(self.dropped[removing], actions[removing] - self.groups)
        ended: Bools = np.logical_not(np.any(self.masks()[:, :-1], axis=1))
        if self.limits.hard:
            ended |= self.limits.met(self.model, self.widths, self.dropped)
        else:
            ended |= actions == self.actions - 1
        return ended

    def observe(self) -> NDArray[np.float32]:
        """[walks, observation_size], see `observation` and, for the prior behind it, `env.PruningEnv`."""
        can = self.masks()[:, :-1]
        widths = self.widths
        next_level = np.minimum(self.level + 1, self._last_level)
        next_widths: Ints = self._levels[np.arange(self.groups), next_level]
        ms, weights = self._after_each_cut(widths, next_widths)
        freed = ms[:, :1] - ms[:, 1:]
        seen = self._observer.vectors(
            widths=widths,
            next_widths=np.where(self.level < self._last_level, next_widths, 0),
            dropped=self.dropped,
            can=can,
            freed=freed,
            freed_weights=weights[:, :1] - weights[:, 1:],
            globals_=self._globals(ms[:, 0], weights[:, 0]),
        )
        if self.prior is None:
            return seen
        logits = self.prior.logits(widths, next_widths, freed=freed, can=can)
        return np.concatenate([seen, (1.0 + logits / FLOOR).astype(np.float32)], axis=1)

    def _after_each_cut(self, widths: Ints, next_widths: Ints) -> tuple[Floats, Floats]:
        """Predicted ms and weights: [walks, 1 + groups + blocks], the first column of the states themselves."""
        n, g, b = self.count, self.groups, self.blocks
        w = np.repeat(widths[:, None, :], 1 + g + b, axis=1)
        w[:, 1 + np.arange(g), np.arange(g)] = next_widths
        d = np.repeat(self.dropped[:, None, :], 1 + g + b, axis=1)
        if b:
            each = np.repeat(self.dropped[:, None, :], b, axis=1).reshape(n * b, b)
            d[:, 1 + g :] = self.arrays.removed(each, np.tile(np.arange(b), n)).reshape(n, b, b)
        w, d = w.reshape(n * (1 + g + b), g), d.reshape(n * (1 + g + b), b)
        ms = self.model.predict_many(w, d)
        weights = self.arrays.op_weights(w, d).sum(axis=1)
        return ms.reshape(n, -1), np.asarray(weights.reshape(n, -1), dtype=np.float64)

    def _globals(self, ms: Floats, weights: Floats) -> Floats:
        arrays, limits, widths = self.arrays, self.limits, self.widths
        one = np.ones(self.count)
        memory = limits.memory_mb
        return np.stack(
            [
                ms / self.model.baseline_ms,
                limits.latency_ms / ms if limits.latency_ms is not None else one,
                memory / self.model.predict_memory_many(widths, self.dropped) if memory is not None else one,
                arrays.op_macs(widths, self.dropped).sum(axis=1) / arrays.full_macs,
                weights / arrays.full_weights,
                self.dropped.mean(axis=1) if self.blocks else 0.0 * one,
                1.0 - self.steps / self.horizon if self.horizon else one,
                limits.met(self.model, widths, self.dropped),
            ],
            axis=1,
        )


def _with_none(dropped: Bools) -> Bools:
    """A last column more, of a block that nothing removes: index -1 stands for no block."""
    return np.concatenate([dropped, np.zeros((len(dropped), 1), dtype=np.bool_)], axis=1)


def _padded(levels: list[tuple[int, ...]]) -> Ints:
    longest = max((len(row) for row in levels), default=1)
    return np.array([[*row, *[row[-1]] * (longest - len(row))] for row in levels], dtype=np.int64).reshape(-1, longest)


def mean_random_episode(walk: Walk, *, seed: int = 0) -> float:
    """Steps that a uniformly random policy takes to the predicted end, over all walks; always the same."""
    rng = np.random.default_rng(seed)
    walk.start()
    lengths = np.zeros(walk.count)
    running = np.ones(walk.count, dtype=np.bool_)
    while running.any():
        draws = rng.random((walk.count, walk.actions)) * walk.masks()
        lengths[running] += 1
        running &= ~walk.take(np.argmax(draws, axis=1))
    walk.start()
    return float(lengths.mean())
