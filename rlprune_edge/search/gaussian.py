"""A Gaussian process over plans: what an unevaluated plan is expected to be worth, and how unsure that is.

The sum of a linear kernel, a Matern-5/2 kernel and noise over a linear mean; length, noise and the weight of the linear
part are chosen from a grid by the marginal likelihood (Rasmussen and Williams 2006, chapters 2, 4 and 5). A grid takes
0.1 s at 200 plans and always ends at the same place, so that a resumed search proposes what the interrupted one would
have; an optimiser promises neither.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from rlprune_edge.search.arrays import Bools, Floats, Ints, SpaceArrays
from rlprune_edge.search.sensitivity import Prior

LENGTHS = np.geomspace(0.3, 10.0, 9)
"""in the distance of two plans: 1 is one group or block kept whole against gone"""
LINEAR = (3.0, 10.0, 30.0)
"""weight of the linear part over that of the Matern kernel. Each group and block costs what it costs nearly everywhere,
and 60 of them leave little to be learned of neighbours: of 143 plans of ResNet-56 at 2x the first 40 said nothing of
the order of the others with the Matern kernel alone (Spearman -0.2), and something (0.4) with three times as much of
the linear one"""
NOISES = (1e-4, 1e-3, 1e-2, 0.1)
"""variance of the noise over the variance of the signal"""
CLIP = 0.10
"""quantile below which values count as this bad and no worse: how bad a ruined network is helps nobody"""


class PlanModel:
    """Predicts a value of plans (quality, points lost) from those that were evaluated."""

    def __init__(self, arrays: SpaceArrays, prior: Prior | None) -> None:
        self._arrays, self._prior = arrays, prior
        self._x: Floats | None = None
        self.noise = 0.0
        """variance of what is found of one plan twice"""

    def fit(self, widths: Ints, dropped: Bools, values: Floats) -> None:
        """Learn from `widths` [plans, groups], `dropped` [plans, blocks] and what was found of them, [plans]."""
        y = np.maximum(values, np.quantile(values, CLIP))
        x, trend = self._features(widths, dropped), self._trend(widths, dropped)
        # a little ridge: with few plans a slope is a guess
        scale = np.append(0.0, np.full(trend.shape[1] - 1, 1e-2 * len(y)))
        self._slopes = np.linalg.solve(trend.T @ trend + np.diag(scale) + 1e-9 * np.eye(len(scale)), trend.T @ y)
        left = y - trend @ self._slopes
        self._centre = x.mean(axis=0)
        self._scale = max(1e-9, float(x.var(axis=0).sum()))
        distances, products = _distances(x, x), self._products(x, x)
        best = -np.inf
        for length, linear, noise in product(LENGTHS, LINEAR, NOISES):
            kernel = _matern(distances / length) + linear * products
            lower = np.linalg.cholesky(kernel + noise * np.eye(len(y)))
            alpha = np.linalg.solve(lower, left)
            variance = max(1e-12, float(alpha @ alpha) / len(y))
            likelihood = -0.5 * len(y) * np.log(variance) - float(np.log(np.diag(lower)).sum())
            if likelihood > best + 1e-9:
                best = likelihood
                self._length, self._linear, self._variance, self._lower = float(length), linear, variance, lower
                self.noise = noise * variance
                self._weights = np.linalg.solve(lower.T, alpha)
        self._x = x

    def predict(self, widths: Ints, dropped: Bools) -> tuple[Floats, Floats]:
        """Expected values and standard deviations of a batch: [plans] each. Raises ValueError before `fit`."""
        mean, spent, x = self._expected(widths, dropped)
        before = 1.0 + self._linear * ((x - self._centre) ** 2).sum(axis=1) / self._scale
        variance = self._variance * np.maximum(1e-9, before - (spent**2).sum(axis=0))
        return mean, np.sqrt(variance)

    def predict_jointly(self, widths: Ints, dropped: Bools) -> tuple[Floats, Floats]:
        """Expected values and covariances of a batch: [plans], [plans, plans]."""
        mean, spent, x = self._expected(widths, dropped)
        before = self._kernel(x, x)
        return mean, np.asarray(self._variance * (before - spent.T @ spent), dtype=np.float64)

    def _expected(self, widths: Ints, dropped: Bools) -> tuple[Floats, Floats, Floats]:
        if self._x is None:
            raise ValueError("nothing was learned yet")
        x = self._features(widths, dropped)
        kernel = self._kernel(x, self._x)
        mean = self._trend(widths, dropped) @ self._slopes + kernel @ self._weights
        return np.asarray(mean, dtype=np.float64), np.linalg.solve(self._lower, kernel.T), x

    def _features(self, widths: Ints, dropped: Bools) -> Floats:
        a = self._arrays
        none = np.zeros((len(dropped), 1), dtype=np.bool_)
        gone = (a.block_of_group >= 0) & np.concatenate([dropped, none], axis=1)[:, a.block_of_group]
        return np.concatenate([np.where(gone, 0.0, widths / np.maximum(1, a.full)), ~dropped], axis=1)

    def _kernel(self, a: Floats, b: Floats) -> Floats:
        return _matern(_distances(a, b) / self._length) + self._linear * self._products(a, b)

    def _products(self, a: Floats, b: Floats) -> Floats:
        """The linear kernel, 1 on average over what was learned from."""
        found: Floats = (a - self._centre) @ (b - self._centre).T / self._scale
        return found

    def _trend(self, widths: Ints, dropped: Bools) -> Floats:
        """Columns of the mean: 1, the share of MACs kept and, where cuts were probed, what they cost in sum."""
        a = self._arrays
        columns = [np.ones(len(widths)), a.op_macs(widths, dropped).sum(axis=1) / a.full_macs]
        if self._prior is not None:
            columns.append(self._prior.total(widths, dropped, a.block_of_group))
        return np.stack(columns, axis=1)


def _distances(a: Floats, b: Floats) -> Floats:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2.0 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(0.0, squares)), dtype=np.float64)


def _matern(r: Floats) -> Floats:
    scaled = np.sqrt(5.0) * r
    return np.asarray((1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled), dtype=np.float64)
