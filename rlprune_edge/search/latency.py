"""Predict a plan's latency and memory before it is measured, and learn from every measurement.

The prediction only steers: it tells the policy what a step would gain and when an episode has met its budget. What a
reward, a report or a claim says was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlprune_edge.records import Plan, PruningSpace, WidthTimes
from rlprune_edge.search.arrays import Bools, Floats, Ints, SpaceArrays

MARGIN_CAP = 0.05
_OVERHEAD = 0.05  # share of the uncut latency that no cut removes: the call, the input, the classifier's softmax
_BUCKETS = 4  # equal parts of the network, in the order of its ops; CNN families have three or four stages
_RIDGE_FROM = 8  # observations; before that a single ratio, which cannot over-fit
_RECENT = 20  # predictions that the running error looks back on
_PENALTIES = np.geomspace(1e-3, 30.0, 10)
_BYTES_PER_PARAMETER = 4


class LatencyModel:
    """Latency and memory of plans of one space on one board.

    Every op has a share of the uncut latency, split by the measured table of its groups where there is one and by
    multiply-accumulates where not. In a plan it costs `share * phi_in(n_in) * phi_out(n_out)`, with
    `phi_g(n) = time of group g's layers at width n / at full width`. A grouped convolution, and an op whose input and
    output are the same group, scales once. Removed blocks cost nothing; a small share is fixed.

    Measured plans correct this: up to 7 of them by the median ratio, from 8 on by a ridge regression of what is left
    over on sums of op costs, ops kept and multiply-accumulates in four parts of the network (penalty chosen by the
    closed-form leave-one-out error). No randomness: the same observations give the same predictions.
    """

    def __init__(
        self,
        space: PruningSpace,
        tables: Sequence[WidthTimes],
        *,
        baseline_ms: float,
        baseline_memory_mb: float | None = None,
    ) -> None:
        if not baseline_ms > 0.0:
            raise ValueError(f"the uncut model's latency must be positive, not {baseline_ms} ms")
        self.arrays = SpaceArrays(space)
        self.baseline_ms = baseline_ms
        self.baseline_memory_mb = baseline_memory_mb
        self._phi = _phi_table(space, tables)
        self._tabled = np.array([g.name in {n for t in tables for n in t.groups} for g in space.groups], dtype=np.bool_)
        self._share = (1.0 - _OVERHEAD) * _op_shares(self.arrays, tables)
        bucket = np.arange(len(space.ops)) * _BUCKETS // max(1, len(space.ops))
        self._in_bucket: Floats = (bucket[:, None] == np.arange(_BUCKETS)).astype(np.float64)
        self._seen: set[str] = set()
        self._rows: list[Floats] = []
        self._costs: list[float] = []
        self._measured: list[float] = []
        self._errors: list[float] = []
        self._memory_pairs: list[tuple[float, float]] = []
        self._memory_errors_mb: list[float] = []
        self._ratio = 1.0
        self._weights: Floats | None = None

    # ------------------------------------------------------------ predict

    def predict_ms(self, plan: Plan) -> float:
        """Predicted latency in milliseconds."""
        return float(self.predict_many(*self.arrays.encode(plan))[0])

    def predict_many(self, widths: Ints, dropped: Bools) -> Floats:
        """Predicted latency in milliseconds of a batch: `widths` [plans, groups], `dropped` [plans, blocks]."""
        costs = self._op_costs(widths, dropped)
        base = (_OVERHEAD + costs.sum(axis=1)) * self._ratio
        if self._weights is not None:
            corrected = base + self._features(costs, widths, dropped) @ self._weights
            # A linear correction may not run away from the law on plans far from those that were measured.
            base = np.clip(corrected, 0.6 * base, 1.6 * base)
        return np.asarray(base * self.baseline_ms, dtype=np.float64)

    def predict_memory_mb(self, plan: Plan) -> float | None:
        """Predicted peak memory in MB (10**6 bytes); `None` if the uncut model's is not known."""
        if self.baseline_memory_mb is None:
            return None
        return float(self.predict_memory_many(*self.arrays.encode(plan))[0])

    def predict_memory_many(self, widths: Ints, dropped: Bools) -> Floats:
        """Predicted peak memory in MB of a batch.

        The uncut model's, less four bytes for every weight removed, times a factor learned from the measurements:
        runtimes that copy weights on loading free more than that, arenas with a fixed floor less.
        Raises ValueError if the uncut model's memory is not known.
        """
        if self.baseline_memory_mb is None:
            raise ValueError("the uncut model's memory was not measured")
        return self.baseline_memory_mb - self._memory_factor() * self._removed_mb(widths, dropped)

    # ------------------------------------------------------------ learn

    def observe(self, plan: Plan, measured_ms: float, memory_mb: float | None = None) -> None:
        """Learn from one measurement; a plan seen before is not learned twice."""
        if plan.key in self._seen:
            return
        self._seen.add(plan.key)
        widths, dropped = self.arrays.encode(plan)
        costs = self._op_costs(widths, dropped)
        self._errors.append(abs(self.predict_ms(plan) - measured_ms) / measured_ms)
        self._rows.append(self._features(costs, widths, dropped)[0])
        self._costs.append(float(_OVERHEAD + costs.sum()))
        self._measured.append(measured_ms / self.baseline_ms)
        if memory_mb is not None and self.baseline_memory_mb is not None:
            removed = float(self._removed_mb(widths, dropped)[0])
            predicted = self.baseline_memory_mb - self._memory_factor() * removed
            self._memory_errors_mb.append(abs(predicted - memory_mb))
            self._memory_pairs.append((removed, self.baseline_memory_mb - memory_mb))
        self._fit()

    def error(self) -> float | None:
        """Median relative error of the last 20 predictions, each made before its plan was measured."""
        return float(np.median(self._errors[-_RECENT:])) if self._errors else None

    def margin(self) -> float:
        """Share of the latency target to stay below it: about one standard deviation of the error, 5 % at most."""
        if len(self._errors) < 3:
            return MARGIN_CAP
        return min(MARGIN_CAP, 1.5 * float(np.median(self._errors[-_RECENT:])))

    def memory_margin_mb(self) -> float:
        """MB to stay below the memory target: the running error, at most 5 % of the uncut model's weights."""
        if not self._memory_errors_mb:
            return 0.0
        cap = MARGIN_CAP * self.arrays.full_weights * _BYTES_PER_PARAMETER / 1e6
        return min(cap, 1.5 * float(np.median(self._memory_errors_mb[-_RECENT:])))

    # ------------------------------------------------------------ inside

    def _op_costs(self, widths: Ints, dropped: Bools) -> Floats:
        """Share of the uncut latency that each op takes: [plans, ops]."""
        a = self.arrays
        phi = np.ones((len(widths), len(a.full) + 1))  # the last column stands for channels that cannot be cut
        if len(a.full):
            phi[:, :-1] = self._phi[np.arange(len(a.full)), widths]
        once = a.op_grouped | ((a.op_in == a.op_out) & (a.op_out >= 0) & self._is_tabled(a.op_out))
        by_in = np.where(once, 1.0, phi[:, a.op_in])
        return self._share * by_in * phi[:, a.op_out] * a.kept_ops(dropped)

    def _is_tabled(self, group: Ints) -> Bools:
        return np.append(self._tabled, False)[group]

    def _features(self, costs: Floats, widths: Ints, dropped: Bools) -> Floats:
        macs = self.arrays.op_macs(widths, dropped) / self.arrays.full_macs
        kept = self.arrays.kept_ops(dropped) / max(1, len(self._in_bucket))
        parts = [per_op @ self._in_bucket for per_op in (costs, macs, kept)]
        return np.concatenate([*parts, np.ones((len(widths), 1))], axis=1)

    def _removed_mb(self, widths: Ints, dropped: Bools) -> Floats:
        left = self.arrays.op_weights(widths, dropped).sum(axis=1)
        return np.asarray((self.arrays.full_weights - left) * _BYTES_PER_PARAMETER / 1e6, dtype=np.float64)

    def _memory_factor(self) -> float:
        # Least squares through the uncut model, with one imagined observation that says 1.
        prior = (0.25 * self.arrays.full_weights * _BYTES_PER_PARAMETER / 1e6) ** 2 + 1e-12
        both = sum(removed * saved for removed, saved in self._memory_pairs)
        return (both + prior) / (sum(removed**2 for removed, _ in self._memory_pairs) + prior)

    def _fit(self) -> None:
        measured, costs = np.array(self._measured), np.array(self._costs)
        # The uncut model, whose ratio is 1 by definition, counts too: one odd first candidate may not mislead alone.
        self._ratio = float(np.median(np.append(measured / costs, 1.0)))
        if len(measured) < _RIDGE_FROM:
            return
        # Rows are divided by what was measured: it is the relative error that counts.
        x = np.stack(self._rows) / measured[:, None]
        y = (measured - costs * self._ratio) / measured
        scale = np.sqrt((x**2).mean(axis=0)) + 1e-12
        u, s, vt = np.linalg.svd(x / scale, full_matrices=False)
        uy = u.T @ y
        best = min(_PENALTIES, key=lambda penalty: _leave_one_out(u, s, uy, y, float(penalty)))
        self._weights = (vt.T @ (s / (s**2 + best) * uy)) / scale


def _leave_one_out(u: Floats, s: Floats, uy: Floats, y: Floats, penalty: float) -> float:
    """Mean squared leave-one-out residual of a ridge regression, from its singular value decomposition."""
    shrink = s**2 / (s**2 + penalty)
    leverage = (u**2) @ shrink
    residual = (y - u @ (shrink * uy)) / np.maximum(1e-3, 1.0 - leverage)
    return float(np.mean(residual**2))


def _phi_table(space: PruningSpace, tables: Sequence[WidthTimes]) -> Floats:
    """`phi[group, n]`: relative time at every width from 0 to the full one; `n / width` where nothing was timed."""
    times = {name: table.times_ns for table in tables for name in table.groups}
    phi = np.ones((len(space.groups), max((g.width for g in space.groups), default=0) + 1))
    for i, group in enumerate(space.groups):
        n = np.arange(group.width + 1)
        known = times.get(group.name)
        if known is None:
            phi[i, : group.width + 1] = n / group.width
            continue
        if group.width not in known:
            raise ValueError(f"{group.name}: the full width {group.width} was not timed")
        widths = np.array(sorted(known))
        relative = np.array([known[int(w)] for w in widths]) / known[group.width]
        # Below the narrowest probe: straight down to half of its time, since a layer never becomes free.
        phi[i, : group.width + 1] = np.interp(n, [0, *widths], [0.5 * relative[0], *relative])
    return phi


def _op_shares(arrays: SpaceArrays, tables: Sequence[WidthTimes]) -> Floats:
    """What each op takes of the uncut model's compute time; adds up to 1."""
    widths, dropped = arrays.encode(arrays.space.uncut())
    macs = np.maximum(arrays.op_macs(widths, dropped)[0], 1.0)
    total, count = np.zeros(len(macs)), np.zeros(len(macs))
    for table in tables:
        for name in table.groups:
            group = arrays.group_index.get(name)
            if group is None:
                continue
            touching = (arrays.op_in == group) | (arrays.op_out == group)
            total[touching] += table.times_ns[int(arrays.full[group])] * macs[touching] / macs[touching].sum()
            count[touching] += 1
    known = count > 0
    per_mac = float(np.median(total[known] / count[known] / macs[known])) if known.any() else 1.0
    time = np.where(known, total / np.maximum(1, count), macs * per_mac)
    return np.asarray(time / time.sum(), dtype=np.float64)
