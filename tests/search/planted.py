"""A planted problem: a small residual network whose latency and loss follow known laws, so that answers can be checked.

Nothing here stands in for our own code: it is the far end, the board and the data set.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from rlprune_edge.errors import BudgetSpent
from rlprune_edge.measurements import Interval, Measurement
from rlprune_edge.records import (
    Baseline,
    Block,
    Group,
    MetricSpec,
    Op,
    Plan,
    PruningSpace,
    Quality,
    Target,
    Trial,
    WidthTimes,
)
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.reward import RewardWeights, loss_quality, score
from rlprune_edge.search.sensitivity import Sensitivity, probes
from rlprune_edge.search.staircase import candidate_widths, grid, paying_levels

ACCURACY = MetricSpec("accuracy", higher_is_better=True)
CHANCE = math.log(10.0)


def conv(name: str, n_in: int, n_out: int, hw: int, *, kernel: int, **where: str | None) -> Op:
    return Op(
        name=name,
        kind="conv" if hw > 1 else "linear",
        in_channels=n_in,
        out_channels=n_out,
        kernel=(kernel, kernel),
        stride=(1, 1),
        padding=(kernel // 2, kernel // 2),
        dilation=(1, 1),
        conv_groups=1,
        in_hw=(hw, hw),
        out_hw=(hw, hw),
        in_group=where.get("in_group"),
        out_group=where.get("out_group"),
        block=where.get("block"),
    )


def residual_space(widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3) -> PruningSpace:
    """A CIFAR ResNet's skeleton: one group per stage and per block; the first block of a later stage stays."""
    ops = [conv("stem", 3, widths[0], 32, kernel=3, out_group="stage0")]
    inner: list[tuple[str, int, str | None]] = []
    removable: list[str] = []
    for stage, width in enumerate(widths):
        hw = 32 >> stage
        for b in range(blocks):
            name = f"stage{stage}.{b}"
            can_go = not (stage > 0 and b == 0)
            block = name if can_go else None
            source = f"stage{stage}" if can_go else f"stage{stage - 1}"
            n_in = width if can_go else widths[stage - 1]
            mid = f"{name}.conv1"
            ops.append(conv(mid, n_in, width, hw, kernel=3, in_group=source, out_group=mid, block=block))
            ops.append(
                conv(f"{name}.conv2", width, width, hw, kernel=3, in_group=mid, out_group=f"stage{stage}", block=block)
            )
            if not can_go:
                ops.append(conv(f"{name}.short", n_in, width, hw, kernel=1, in_group=source, out_group=f"stage{stage}"))
            else:
                removable.append(name)
            inner.append((mid, width, block))
    ops.append(conv("head", widths[-1], 10, 1, kernel=1, in_group=f"stage{len(widths) - 1}"))

    order = [op.name for op in ops]
    named = inner + [(f"stage{s}", w, None) for s, w in enumerate(widths)]
    groups = []
    for name, width, block in named:
        touching = [op for op in ops if name in (op.in_group, op.out_group)]
        groups.append(
            Group(
                name=name,
                width=width,
                levels=grid(width),
                producers=tuple(op.name for op in touching if op.out_group == name),
                consumers=tuple(op.name for op in touching if op.in_group == name),
                block=block,
                depth=order.index(touching[0].name) / len(order),
                parameters=sum(op.macs // (op.out_hw[0] * op.out_hw[1]) for op in touching),
            )
        )
    groups.sort(key=lambda g: g.depth)
    found = tuple(
        Block(
            name=name,
            depth=order.index(f"{name}.conv1") / len(order),
            parameters=sum(op.macs // (op.out_hw[0] * op.out_hw[1]) for op in ops if op.block == name),
            ops=tuple(op.name for op in ops if op.block == name),
        )
        for name in removable
    )
    parameters = sum(op.macs // (op.out_hw[0] * op.out_hw[1]) for op in ops)
    return PruningSpace(groups=tuple(groups), blocks=found, ops=tuple(ops), parameters=parameters)


class Planted:
    """The board and the data set: known laws of latency, memory and loss over a space."""

    def __init__(self, seed: int = 0, *, noise: float = 0.01, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3):
        rng = np.random.default_rng(seed)
        self.space = residual_space(widths, blocks)
        self.noise = noise
        self._harm = {g.name: float(v) for g, v in zip(self.space.groups, rng.lognormal(-0.6, 0.9, 99), strict=False)}
        self._loss_of = {
            b.name: float(v) for b, v in zip(self.space.blocks, rng.lognormal(-1.6, 0.8, 99), strict=False)
        }
        self.tables = self._tables()
        self.space = self.space.with_levels(paying_levels(self.space, self.tables))
        uncut = self.space.uncut()
        self.baseline = Baseline(
            quality=self.quality(uncut),
            latency_ms=self.latency_ms(uncut, noisy=False),
            memory_mb=self.memory_mb(uncut),
            parameters=self.space.parameters,
            macs=self.space.macs(uncut),
        )

    def _op_us(self, op: Op, n_in: int, n_out: int) -> float:
        """Channels are rounded up to 8; off the multiples of 4 the slow path; narrow outputs use the unit badly."""

        def blocked(n: int) -> int:
            return -(-n // 8) * 8 if n > 4 else 4

        work = blocked(n_in) * blocked(n_out) * op.out_hw[0] * op.out_hw[1] * op.kernel[0] * op.kernel[1] / 30_000.0
        slow = 1.45 if n_out % 4 or (n_in % 4 and n_in > 3) else 1.0
        badly = 1.0 + 0.8 * math.exp(-n_out / 12.0)
        return 2.0 + work * slow * badly + 0.0004 * n_out * op.out_hw[0] * op.out_hw[1]

    def latency_ms(self, plan: Plan, *, noisy: bool = True) -> float:
        kept = [op for op in self.space.ops if op.block not in plan.dropped]
        us = 20.0
        outs = []
        for op in kept:
            n_in = plan.widths[op.in_group] if op.in_group else op.in_channels
            n_out = plan.widths[op.out_group] if op.out_group else op.out_channels
            us += self._op_us(op, n_in, n_out)
            outs.append((n_out, op))
        # Neighbours of unlike layout are reordered in between: an interaction that no probe of one group shows.
        us += sum(0.0006 * n * a.out_hw[0] * a.out_hw[1] for (n, a), (m, _) in pairwise(outs) if n % 8 != m % 8)
        if noisy:
            draw = int(hashlib.sha256(plan.key.encode()).hexdigest()[:8], 16) / 2**32 - 0.5
            us *= 1.0 + 2 * self.noise * draw
        return us / 1000.0

    def memory_mb(self, plan: Plan) -> float:
        weights = 0
        for op in self.space.ops:
            if op.block not in plan.dropped:
                n_in = plan.widths[op.in_group] if op.in_group else op.in_channels
                n_out = plan.widths[op.out_group] if op.out_group else op.out_channels
                weights += op.macs_at(n_in, n_out) // (op.out_hw[0] * op.out_hw[1])
        return 30.0 + 1.3 * 4.0 * weights / 1e6

    def loss(self, plan: Plan) -> float:
        """Cuts in a row hurt more than their sum; the last channels of a group hurt most."""
        harm = 0.0
        for group in self.space.groups:
            if group.block in plan.dropped and group.block is not None:
                continue
            cut = 1.0 - plan.widths[group.name] / group.width
            harm += self._harm[group.name] * (cut**1.7) / (1.05 - cut)
        gone = sum(self._loss_of[name] for name in plan.dropped)
        stages = [name.split(".")[0] for name in plan.dropped]
        gone += 0.35 * sum(stages.count(s) - 1 for s in set(stages))
        # In a deeper network each group and block carries less of it; written for 12 groups and 7 blocks.
        harm, gone = harm * 12 / len(self.space.groups), gone * 7 / len(self.space.blocks)
        return 0.2 + 0.35 * harm + 0.8 * gone + 0.25 * harm * gone

    def quality(self, plan: Plan) -> Quality:
        loss = self.loss(plan)
        return Quality(metric=10.0 + 82.0 * math.exp(-0.6 * (loss - 0.2)), loss=loss, examples=1000)

    def sensitivity(self, *, most: int | None = None) -> Sensitivity:
        """What the single cuts, at most so many, truly cost, scored as the spine scores them."""
        groups: dict[str, dict[int, float]] = {}
        blocks: dict[str, float] = {}
        for name, width, plan in probes(self.space, most=most):
            left = loss_quality(self.loss(plan), uncut_loss=self.baseline.quality.loss, chance_loss=CHANCE)
            if width is None:
                blocks[name] = 1.0 - left
            else:
                groups.setdefault(name, {})[width] = 1.0 - left
        return Sensitivity(groups, blocks)

    def _tables(self) -> tuple[WidthTimes, ...]:
        tables = []
        for group in self.space.groups:
            times = {}
            for n in candidate_widths(group.width):
                us = 0.0
                for op in self.space.ops:
                    if group.name in (op.in_group, op.out_group):
                        n_in = n if op.in_group == group.name else op.in_channels
                        n_out = n if op.out_group == group.name else op.out_channels
                        us += self._op_us(op, n_in, n_out)
                times[n] = us * 1000.0
            tables.append(WidthTimes(groups=(group.name,), times_ns=times))
        return tuple(tables)

    def measurement(self, plan: Plan) -> Measurement:
        ms = self.latency_ms(plan)
        return Measurement(
            source="simulated",
            device="planted",
            mode="reward",
            threads=1,
            model_sha256=plan.key,
            graph_sha256=plan.key,
            reference_sha256=None,
            latency_ms=Interval(ms, ms, ms),
            reference_ms=None,
            speedup=None,
            percentiles_ms={},
            memory_mb=self.memory_mb(plan),
            memory_delta_mb=None,
            max_output_difference=0.0,
            flags=(),
            processes=(),
            vitals_before={},
            vitals_after={},
            versions={},
            device_seconds=1.0,
            measured_at="2026-01-01T00:00:00Z",
        )

    def evaluator(
        self, target: Target, budget: int, *, weights: RewardWeights | None = None
    ) -> Callable[[Plan], Trial]:
        """What the spine gives: remembers plans, counts the distinct ones, raises BudgetSpent for one too many."""
        known: dict[str, Trial] = {}

        def evaluate(plan: Plan) -> Trial:
            if plan.key in known:
                return known[plan.key]
            if len(known) >= budget:
                raise BudgetSpent(f"{budget} candidates")
            quality, measurement = self.quality(plan), self.measurement(plan)
            known[plan.key] = Trial(
                number=len(known) + 1,
                plan=plan,
                quality=quality,
                parameters=None,
                macs=self.space.macs(plan),
                artifact=None,
                measurement=measurement,
                failure=None,
                score=score(
                    quality,
                    measurement.latency_ms.value,
                    measurement.memory_mb,
                    baseline=self.baseline,
                    target=target,
                    metric=ACCURACY,
                    chance_loss=CHANCE,
                    weights=weights,
                ),
                seconds={},
            )
            return known[plan.key]

        return evaluate

    def env(
        self,
        target: Target,
        budget: int = 10_000,
        *,
        evaluate: Callable[[Plan], Trial] | None = None,
        weights: RewardWeights | None = None,
        fill: bool = True,
        horizon: int | None = None,
        sensitivity: Sensitivity | None = None,
        masks: bool = True,
    ) -> PruningEnv:
        return PruningEnv(
            self.space,
            evaluate or self.evaluator(target, budget, weights=weights),
            baseline=self.baseline,
            target=target,
            tables=self.tables,
            fill=fill,
            horizon=horizon,
            sensitivity=sensitivity,
            masks=masks,
        )
