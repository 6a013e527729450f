"""When a model is warm, and how many inferences make one sample. Pure arithmetic on nanoseconds."""

from __future__ import annotations

from statistics import median
from typing import Sequence

MEDIAN_SHIFT = 0.02
QUARTILE_SHIFT = 0.05
MAD_SHIFT = 0.10


def quantile(ordered: Sequence[float], share: float) -> float:
    """Quantile of an ordered sequence, linear between neighbours."""
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _spread(values: Sequence[float]) -> float:
    middle = median(values)
    return median([abs(v - middle) for v in values])


def is_steady(earlier: Sequence[int], later: Sequence[int]) -> bool:
    """Do two consecutive windows of samples look like one steady state?

    Shifts of median, quartiles and median absolute deviation, and a first value of the later window that is no outlier
    above; the bounds follow pyperf's calibration of warm-ups. The MAD's shift is taken as a share of the median, not of
    the MAD: relative to itself the MAD of 60 undisturbed samples differs by more than 10 % two times out of three.
    """
    first, second = sorted(earlier), sorted(later)
    middle = median(first)
    low, high = quantile(second, 0.25), quantile(second, 0.75)
    return (
        abs(median(second) / middle - 1) <= MEDIAN_SHIFT
        and abs(low / quantile(first, 0.25) - 1) <= QUARTILE_SHIFT
        and abs(high / quantile(first, 0.75) - 1) <= QUARTILE_SHIFT
        and abs(_spread(second) - _spread(first)) <= MAD_SHIFT * middle
        and later[0] <= high + 1.5 * (high - low)
    )


def is_multimodal(values: Sequence[float]) -> bool:
    """Do samples look as if there were several speeds? The host flags by the same rule."""
    ordered = sorted(values)
    middle = median(ordered)
    spread = quantile(ordered, 0.9) - quantile(ordered, 0.1)
    return spread > 0.25 * middle or not 0.95 <= sum(ordered) / len(ordered) / middle <= 1.10


def loop_for(run_ns: float, *, floor_ns: float, sample_ns: float) -> int:
    """Inferences per sample: 1 where one takes at least `floor_ns`, else as many as fill `sample_ns`."""
    if run_ns >= floor_ns:
        return 1
    return max(1, -int(-sample_ns // max(run_ns, 1.0)))


def narrow_enough(values: Sequence[float], rank: int, target: float) -> bool:
    """Is the order-statistic interval (`rank`-th smallest to `rank`-th largest) within +- `target` of the median?

    `rank` comes with the job: the host owns the statistics, so that there is one table of ranks.
    """
    ordered = sorted(values)
    half = (ordered[-rank] - ordered[rank - 1]) / 2
    return half <= target * median(ordered)
