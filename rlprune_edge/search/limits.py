"""Judge by prediction whether a plan meets the hard budget, and give back what it cut too much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlprune_edge.records import Plan
from rlprune_edge.search.arrays import Bools, Floats, Ints, SpaceArrays
from rlprune_edge.search.latency import LatencyModel
from rlprune_edge.search.sensitivity import Prior


@dataclass(frozen=True)
class Limits:
    """The hard budget of a search; `None` where nothing is asked."""

    latency_ms: float | None
    memory_mb: float | None

    @property
    def hard(self) -> bool:
        return self.latency_ms is not None or self.memory_mb is not None

    def met(self, model: LatencyModel, widths: Ints, dropped: Bools) -> Bools:
        """Which plans of a batch are predicted to meet the budget, the model's margins kept: [plans].

        Without a hard budget every plan does.
        """
        fits = np.ones(len(widths), dtype=np.bool_)
        if self.latency_ms is not None:
            fits &= model.predict_many(widths, dropped) <= self.latency_ms * (1.0 - model.margin())
        if self.memory_mb is not None:
            fits &= model.predict_memory_many(widths, dropped) <= self.memory_mb - model.memory_margin_mb()
        return fits

    def used(self, model: LatencyModel, widths: Ints, dropped: Bools) -> Floats:
        """What plans use of what is limited (of latency, without a limit), 1: all that is allowed: [plans].

        With two limits their mean.
        """
        shares = []
        if self.latency_ms is not None or self.memory_mb is None:
            shares.append(model.predict_many(widths, dropped) / (self.latency_ms or model.baseline_ms))
        if self.memory_mb is not None:
            shares.append(model.predict_memory_many(widths, dropped) / self.memory_mb)
        return np.asarray(np.mean(shares, axis=0), dtype=np.float64)


def fitted(plan: Plan, model: LatencyModel, limits: Limits) -> Plan:
    """The plan, cut further where it is predicted to miss the budget, until it meets it or nothing is left to cut.

    Greedy: each time the cut that frees most for the network it takes (share of MACs plus share of weights).
    Deterministic. Without a hard budget the plan comes back as it is.
    """
    arrays, space = model.arrays, model.arrays.space
    widths, dropped = (rows[0].copy() for rows in arrays.encode(plan))
    while limits.hard and not limits.met(model, widths[None], dropped[None])[0]:
        w, d = [widths], [dropped]
        for i, group in enumerate(space.groups):
            gone = arrays.block_of_group[i] >= 0 and dropped[arrays.block_of_group[i]]
            level = max((n for n in group.levels if n < widths[i]), default=None)
            if level is not None and not gone:
                row = widths.copy()
                row[i] = level
                w.append(row)
                d.append(dropped)
        for b in np.flatnonzero(~dropped):
            w.append(widths)
            d.append(arrays.removed(dropped[None], np.array([b]))[0])
        if len(w) == 1:
            break
        w_all, d_all = np.stack(w), np.stack(d)
        size = _size(arrays, w_all, d_all)
        used = limits.used(model, w_all, d_all)
        worth = (used[0] - used[1:]) / np.maximum(1e-9, size[0] - size[1:])
        best = 1 + int(np.argmax(worth))
        widths, dropped = w_all[best].copy(), d_all[best].copy()
    return arrays.decode(widths, dropped)


def _size(arrays: SpaceArrays, widths: Ints, dropped: Bools) -> Floats:
    """Share of the MACs plus share of the weights that plans keep: [plans]."""
    macs = arrays.op_macs(widths, dropped).sum(axis=1) / arrays.full_macs
    return np.asarray(macs + arrays.op_weights(widths, dropped).sum(axis=1) / arrays.full_weights, dtype=np.float64)


def filled(plan: Plan, model: LatencyModel, limits: Limits, *, prior: Prior | None = None) -> Plan:
    """The plan with every level and block given back that still fits the predicted budget.

    The last cut of an episode overshoots the budget, by up to a whole block; accuracy was paid for that and nothing
    needs it. Greedy: each time the one that restores most quality per millisecond by the prior, or without one most of
    the network (share of MACs plus share of weights). Deterministic. A plan that does not meet the budget, and any plan
    without one, comes back as it is.
    """
    arrays, space = model.arrays, model.arrays.space
    widths, dropped = (rows[0].copy() for rows in arrays.encode(plan))
    if not limits.hard or not limits.met(model, widths[None], dropped[None])[0]:
        return plan
    while True:
        wider = []
        for i, group in enumerate(space.groups):
            gone = arrays.block_of_group[i] >= 0 and dropped[arrays.block_of_group[i]]
            level = min((n for n in group.levels if n > widths[i]), default=None)
            if level is not None and not gone:
                row = widths.copy()
                row[i] = level
                wider.append((row, dropped))
        for b in np.flatnonzero(dropped & ~arrays.gone):
            wider.append((widths, arrays.restored(dropped, int(b))))
        if not wider:
            break
        w, d = np.stack([row for row, _ in wider]), np.stack([row for _, row in wider])
        fits = limits.met(model, w, d)
        if not fits.any():
            break
        w_all, d_all = np.concatenate([widths[None], w]), np.concatenate([dropped[None], d])
        restored = _size(arrays, w_all, d_all)
        if prior is not None:
            # a little of the size stays in it: where the prior sees no difference the larger part comes back
            restored = 0.001 * restored - prior.total(w_all, d_all, arrays.block_of_group)
        ms = model.predict_many(w_all, d_all)
        cost = np.maximum(1e-9 * model.baseline_ms, ms[1:] - ms[0])
        worth = np.where(fits, (restored[1:] - restored[0]) / cost, -np.inf)
        best = int(np.argmax(worth))
        widths, dropped = w[best].copy(), d[best].copy()
    return arrays.decode(widths, dropped)
