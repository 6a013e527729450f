"""What raw samples allow us to say: medians with intervals, percentiles, and warnings. Pure arithmetic.

Successive latencies are correlated, so intervals come from the medians of blocks, not from single samples: simulated
with a lag-1 correlation of 0.9, the textbook interval of 128 samples covers the true median 40 % of the time, the one
of 8 block medians 96 %. Two models are compared by the ratios of neighbouring blocks, which a drifting clock leaves
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from rlprune_edge.measurements import Ceiling, Energy, Interval, Process, Work

CONFIDENCE = 0.95
BUSY_CONFIDENCE = 0.999
"""where other processes had to be put up with: they come in stretches, so blocks are not as independent as they look"""

# Runs needed before a percentile is more than a guess (MLPerf loadgen's early stopping, no discarded run, 99 %).
PERCENTILE_RUNS = {50.0: 1, 90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}

Blocks = Sequence[Sequence[int]]


@lru_cache(maxsize=256)
def order_statistic_ranks(n: int, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Ranks (from 1) of the ordered values that bound the median of `n` independent ones; `None` if `n` is too small.

    The tightest symmetric pair (k, n + 1 - k) whose binomial coverage reaches `confidence`; free of any distribution.
    """
    below, best, ways, all_ways = 0.0, None, 1, 2**n
    for k in range(1, n // 2 + 1):
        below += ways / all_ways
        if 1 - 2 * below < confidence:
            break
        best = (k, n + 1 - k)
        ways = ways * (n - k + 1) // k  # n over k from n over k - 1: a process may have taken ten thousand samples
    return best


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Median with its order-statistic interval; below 6 values smallest to largest: a range, no interval."""
    ordered = np.sort(np.asarray(values, float))
    low, high = order_statistic_ranks(len(ordered), confidence) or (1, len(ordered))
    return Interval(float(np.median(ordered)), float(ordered[low - 1]), float(ordered[high - 1]))


def _interval(values: Sequence[float], process: Process) -> Interval:
    """Median of block figures with its interval, a wider one where others had to be put up with.

    Fewer than 11 blocks cannot give 99.9 %: then their whole range is stretched by half (of its logarithm).
    """
    if "busy" not in process.flags:
        return median_interval(values)
    found = median_interval(values, BUSY_CONFIDENCE)
    if order_statistic_ranks(len(values), BUSY_CONFIDENCE):
        return found
    low, high = (found.value * (end / found.value) ** 1.5 for end in (found.low, found.high))
    return Interval(found.value, low, high)


def _latency_ms(blocks: Blocks, process: Process) -> Interval:
    """One process: median of block medians; the interval of block medians, or that of all samples where it is wider."""
    of_blocks = _interval([float(np.median(block)) for block in blocks], process)
    of_samples = median_interval([float(sample) for block in blocks for sample in block])
    low, high = min(of_blocks.low, of_samples.low), max(of_blocks.high, of_samples.high)
    return Interval(of_blocks.value / 1e6, low / 1e6, high / 1e6)


def _ratios(process: Process) -> list[float]:
    pairs = zip(process.reference_ns, process.candidate_ns, strict=True)
    return [float(np.median(reference) / np.median(candidate)) for reference, candidate in pairs]


def across(intervals: Sequence[Interval]) -> Interval:
    """One figure from several fresh processes: the median of their values, with the wider of two intervals.

    Samples of different processes are never pooled: a process is the unit that differs (memory layout, placement).
    (a) From the median of the lower to the median of the upper ends: what the typical process knows of itself. The
    union of all intervals instead would let the one most disturbed process of three decide.
    (b) From the smallest to the largest process value: what the processes know of each other. It covers the median
    over all possible processes in 93.75 % (5 processes) or 75 % (3) of cases whatever their distribution, even where
    every process is perfectly sure of itself; `flags` then says `processes_differ`.
    The hull of both is right when the differences are within the processes (a) and when they are between them (b).
    """
    values = [i.value for i in intervals]
    low = min(float(np.median([i.low for i in intervals])), *values)
    high = max(float(np.median([i.high for i in intervals])), *values)
    return Interval(float(np.median(values)), low, high)


def latency(processes: Sequence[Process]) -> Interval:
    """Milliseconds of one inference of the candidate."""
    return across([_latency_ms(p.candidate_ns, p) for p in processes])


def reference_latency(processes: Sequence[Process]) -> Interval | None:
    """Milliseconds of one inference of the reference, `None` where there was none."""
    if not all(p.reference_ns for p in processes):
        return None
    return across([_latency_ms(p.reference_ns, p) for p in processes])


def speedup(processes: Sequence[Process]) -> Interval | None:
    """Reference over candidate: per process the median over pairs of neighbouring blocks and its sign-test interval."""
    if not all(p.reference_ns for p in processes):
        return None
    return across([_interval(_ratios(p), p) for p in processes])


def percentiles(processes: Sequence[Process]) -> dict[str, float | None]:
    """Milliseconds at p50 to p99.9; `None` below the number of runs that allows it.

    The median over processes of each one's percentile. Where a sample is the mean of several inferences only p50 is
    given: the tail of means says nothing about the tail of single runs.
    """
    samples = [np.concatenate([np.asarray(b, float) for b in p.candidate_ns]) / 1e6 for p in processes]
    fewest = min(len(s) for s in samples)
    of_means = any(p.candidate_loop > 1 for p in processes)
    found: dict[str, float | None] = {}
    for share, needed in PERCENTILE_RUNS.items():
        allowed = fewest >= needed and (share == 50.0 or not of_means)
        found[f"p{share:g}"] = float(np.median([np.percentile(s, share) for s in samples])) if allowed else None
    return found


def lag1_correlation(blocks: Blocks) -> float:
    """Correlation of neighbouring samples within blocks, around the median of all; 0 where there is nothing to see."""
    middle = float(np.median(np.concatenate([np.asarray(block, float) for block in blocks])))
    centred = [np.asarray(block, float) - middle for block in blocks]
    power = sum(float(np.sum(c * c)) for c in centred)
    count = sum(len(c) for c in centred)
    neighbours = sum(len(c) - 1 for c in centred)
    if power == 0 or neighbours == 0:
        return 0.0
    return sum(float(np.sum(c[1:] * c[:-1])) for c in centred) / neighbours * count / power


def _sample_flags(blocks: Blocks) -> set[str]:
    values = np.concatenate([np.asarray(block, float) for block in blocks])
    p10, q1, middle, q3, p90 = np.percentile(values, [10, 25, 50, 75, 90])
    found = set()
    if (q3 - q1) / middle > 0.10:
        found.add("noisy")
    if (q3 - q1) / middle > 0.25:
        found.add("very_noisy")
    if (p90 - p10) / middle > 0.25 or not 0.95 <= float(np.mean(values)) / middle <= 1.10:
        found.add("multimodal")
    if lag1_correlation(blocks) > 0.2:
        found.add("correlated")
    return found


def flags(processes: Sequence[Process]) -> tuple[str, ...]:
    """What a reader of the figures should know, in alphabetical order; one process is enough to raise a flag.

    `noisy`, `very_noisy`: quartiles apart by more than 10 % and 25 % of the median; `multimodal`: several speeds;
    `correlated`: neighbouring samples alike; `not_steady`: warm-up ended by its cap; `mean_of_k`: samples are means;
    `few_blocks`: below 6 blocks, the interval is only a range; `processes_differ`: more apart than each one's own
    interval allows; `blocks_dropped`: disturbed blocks were taken again; besides what the device flagged itself.
    """
    found: set[str] = set()
    for process in processes:
        found |= _sample_flags(process.candidate_ns)
        if not process.steady:
            found.add("not_steady")
        if process.candidate_loop > 1:
            found.add("mean_of_k")
        if len(process.candidate_ns) < 6:
            found.add("few_blocks")
        if process.dropped:
            found.add("blocks_dropped")
        found.update(process.flags)
    intervals = [_interval(_ratios(p), p) if p.reference_ns else _latency_ms(p.candidate_ns, p) for p in processes]
    values = [i.value for i in intervals]
    if max(values) - min(values) > float(np.median([i.high - i.low for i in intervals])):
        found.add("processes_differ")
    return tuple(sorted(found))


def fastest_possible_ms(work: Work, ceiling: Ceiling) -> float:
    """The latency below which a figure cannot be true: 90 % of what arithmetic or memory needs, whichever is more.

    Weights that fit the caches need not come from memory at every run, so only those beyond count.
    """
    compute = work.flops / ceiling.flops_per_second
    memory = max(0, work.weight_bytes - ceiling.cache_bytes) / ceiling.bytes_per_second
    return 0.9 * 1e3 * max(compute, memory)


def reference_drift(found_ms: float, calibrated_ms: float) -> str | None:
    """`reference_drift` above 5 % from the calibrated latency of the same model, `reference_lost` above 15 %."""
    away = max(found_ms / calibrated_ms, calibrated_ms / found_ms) - 1
    return "reference_lost" if away > 0.15 else "reference_drift" if away > 0.05 else None


def energy(processes: Sequence[Process]) -> Energy | None:
    """The process in the middle by net energy, `None` where none could measure it."""
    known = sorted((p.energy for p in processes if p.energy is not None), key=lambda e: e.net_mj)
    return known[len(known) // 2] if known else None


def memory_mb(processes: Sequence[Process]) -> tuple[float | None, float | None]:
    """Peak resident memory in MB, total and above the runtime's own: of the hungriest process, a budget must hold."""
    peaks = [(p.memory_peak_bytes, p.memory_before_bytes) for p in processes]
    known = [(peak, before) for peak, before in peaks if peak is not None and before is not None]
    if not known:
        return None, None
    return max(peak for peak, _ in known) / 1e6, max(peak - before for peak, before in known) / 1e6
