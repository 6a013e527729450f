"""Turn what was measured of a candidate into the reward, and keep the terms it is made of.

An infrastructure fault never comes here: no reward is made of a cable that came loose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlprune_edge.errors import UserError
from rlprune_edge.measurements import Measurement
from rlprune_edge.records import Baseline, MetricSpec, Quality, Score, Target

FAILED_REWARD = -2.5
"""of a candidate that cannot run on the board, or whose output is wrong: below every one that works"""
_LARGEST_PENALTY = 1.5  # quality is above -1, so a working candidate stays above FAILED_REWARD


@dataclass(frozen=True)
class RewardWeights:
    """What the terms of the reward are worth."""

    latency: float = 0.25
    """weighted mode: worth of ln(speed-up); at 0.25, twice as fast balances losing 17 % of the metric"""
    memory: float = 0.10
    """weighted mode: worth of ln(memory saved)"""
    over_latency: float = 4.0
    """hard budget: cost of exceeding the latency target, per 100 % (1 % over costs 0.04)"""
    over_memory: float = 4.0
    """hard budget: cost of exceeding the memory target, per 100 %"""
    over_drop: float = 1.0
    """cost of losing more points than allowed, per 100 points"""
    drop_allowance: float = 5.0
    """the search judges before fine-tuning and allows this many times `max_drop`: a naive cut of ResNet-56 had lost 33
    points after BatchNorm recalibration and 4.5 after fine-tuning, seven times fewer"""


def loss_quality(loss: float, *, uncut_loss: float, chance_loss: float) -> float:
    """How much of what the uncut model knows is left: 1 at its own loss, 0 at the loss of guessing, in (-1, about 1].

    `q = 1 - x` with `x = (loss - uncut_loss) / (chance_loss - uncut_loss)`; beyond guessing (`x > 1`, common for a deep
    cut before fine-tuning) `q = 1/x - 1`, which goes on smoothly to -1, so that there, too, better is rewarded more.
    `chance_loss` is ln(classes) for cross-entropy. The loss and not the metric, since the cross-entropy after
    BatchNorm recalibration ranks candidates best: Spearman 0.79 with their accuracy after fine-tuning, accuracy
    without recalibration 0.40 (44 pruned ResNet-20s; EagleEye, arXiv 2007.02491, reports the same direction).
    """
    if not math.isfinite(loss):
        return -1.0
    # A model hardly better than guessing still needs a scale that is not zero.
    scale = max(chance_loss - uncut_loss, 0.05 * abs(chance_loss), 1e-6)
    x = (loss - uncut_loss) / scale
    return 1.0 - x if x <= 1.0 else 1.0 / x - 1.0


def latency_target_ms(target: Target, baseline: Baseline) -> float | None:
    """The latency to meet in milliseconds, the stricter of the two ways to ask for it; `None` if neither is set."""
    limits = [target.latency_ms] if target.latency_ms is not None else []
    if target.speedup is not None:
        limits.append(baseline.latency_ms / target.speedup)
    return min(limits, default=None)


def judged_latency_ms(measurement: Measurement, baseline: Baseline) -> float:
    """The latency that counts in the search, in milliseconds on the baseline's scale.

    Where the uncut model was timed in turns with the candidate it is the baseline's latency over that paired
    speed-up: a board that slowed down between trial 0 and now has slowed both. Otherwise the median itself.
    """
    if measurement.speedup is not None:
        return baseline.latency_ms / measurement.speedup.value
    return measurement.latency_ms.value


def score(
    quality: Quality | None,
    latency_ms: float | None,
    memory_mb: float | None,
    *,
    baseline: Baseline,
    target: Target,
    metric: MetricSpec,
    chance_loss: float,
    weights: RewardWeights | None = None,
) -> Score:
    """The reward of one candidate; always finite.

    - A failed candidate (no `quality` or no `latency_ms`, or figures that are not numbers) gets `FAILED_REWARD`.
    - Hard budget (speed-up, latency, memory): `R = q` (see `loss_quality`) if it is met, otherwise less by the weighted
      overshoots (a large sum levels off at 1.5); a `max_drop` beside it costs the points lost beyond it.
    - `max_drop` alone: `R = ln(latency0 / latency)` if the drop is allowed, otherwise minus the excess, so that
      allowed is never worse than not.
    - Nothing set: `R = m + latency * ln(latency0 / latency) + memory * ln(memory0 / memory)`, with `m` the metric
      over the uncut model's (for lower-is-better ones of `100 - metric`, e.g. of 1 - WER).

    The drop is judged for good after fine-tuning; in the search, before it, it is a proxy (`drop_allowance`) and
    `feasible` does not depend on it: it says whether the measured latency and memory meet what was asked.
    Raises UserError for a memory target without a measured memory of the uncut model.
    """
    w = weights or RewardWeights()
    if target.memory_mb is not None and baseline.memory_mb is None:
        raise UserError(
            "A memory target was set, but the memory of the uncut model could not be measured on this device."
        )
    if quality is None or latency_ms is None or not _usable(quality, latency_ms):
        return Score(reward=FAILED_REWARD, quality=-1.0, feasible=False, terms={"failed": 1.0})

    q = loss_quality(quality.loss, uncut_loss=baseline.quality.loss, chance_loss=chance_loss)
    drop = metric.drop(baseline.quality.metric, quality.metric)
    terms = {"quality": q, "log_speedup": math.log(baseline.latency_ms / latency_ms), "drop": drop}
    limit_ms = latency_target_ms(target, baseline)
    if limit_ms is not None:
        terms["over_latency"] = max(0.0, latency_ms / limit_ms - 1.0)
    if target.memory_mb is not None:
        # Memory that could not be read is not known to be met.
        terms["over_memory"] = max(0.0, memory_mb / target.memory_mb - 1.0) if memory_mb is not None else 1.0
    if target.max_drop is not None:
        terms["over_drop"] = max(0.0, drop - w.drop_allowance * target.max_drop) / 100.0
    if memory_mb and baseline.memory_mb:
        terms["log_memory_saved"] = math.log(baseline.memory_mb / memory_mb)

    feasible = terms.get("over_latency", 0.0) == 0.0 and terms.get("over_memory", 0.0) == 0.0
    if target.hard:
        over = (
            w.over_latency * terms.get("over_latency", 0.0)
            + w.over_memory * terms.get("over_memory", 0.0)
            + w.over_drop * terms.get("over_drop", 0.0)
        )
        reward = q - _LARGEST_PENALTY * (1.0 - math.exp(-over / _LARGEST_PENALTY))
    elif target.max_drop is not None:
        allowed = terms["over_drop"] == 0.0
        reward = max(0.0, terms["log_speedup"]) if allowed else -w.over_drop * terms["over_drop"]
    else:
        terms["metric_kept"] = _metric_kept(quality.metric, baseline.quality.metric, metric)
        reward = terms["metric_kept"] + w.latency * terms["log_speedup"] + w.memory * terms.get("log_memory_saved", 0.0)
    return Score(reward=reward, quality=q, feasible=feasible, terms=terms)


def scored_part(score: Score, target: Target, weights: RewardWeights | None = None) -> float:
    """What of a reward needed the network to be scored, higher is better: what a surrogate has to predict.

    With a hard budget the quality, less what losing too much costs; with `max_drop` alone the points lost, negative;
    else the share of the metric that is kept. -1 for a failed candidate, which is as bad as no network at all.
    """
    w = weights or RewardWeights()
    if "failed" in score.terms:
        return -100.0 if not target.hard and target.max_drop is not None else -1.0
    if target.hard:
        return score.quality - w.over_drop * score.terms.get("over_drop", 0.0)
    return -score.terms["drop"] if target.max_drop is not None else score.terms["metric_kept"]


def imagined(
    part: float,
    latency_ms: float,
    memory_mb: float | None,
    *,
    baseline: Baseline,
    target: Target,
    weights: RewardWeights | None = None,
) -> float:
    """The reward that a plan would have with this `scored_part` and these figures, a hard budget being met."""
    w = weights or RewardWeights()
    if target.hard:
        return part
    log_speedup = math.log(baseline.latency_ms / max(1e-9, latency_ms))
    if target.max_drop is not None:
        over = max(0.0, -part - w.drop_allowance * target.max_drop) / 100.0
        return max(0.0, log_speedup) if over == 0.0 else -w.over_drop * over
    saved = math.log(baseline.memory_mb / memory_mb) if memory_mb and baseline.memory_mb else 0.0
    return part + w.latency * log_speedup + w.memory * saved


def _usable(quality: Quality, latency_ms: float) -> bool:
    return (
        math.isfinite(quality.metric) and math.isfinite(quality.loss) and math.isfinite(latency_ms) and latency_ms > 0
    )


def _metric_kept(after: float, before: float, metric: MetricSpec) -> float:
    if metric.higher_is_better:
        return after / max(before, 1e-9)
    return max(0.0, 100.0 - after) / max(100.0 - before, 1e-9)
