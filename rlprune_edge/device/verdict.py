"""Is one model faster than another? What may be claimed, and what may not."""

from __future__ import annotations

from rlprune_edge.measurements import Interval, Verdict

UNCALIBRATED_FLOOR = 0.02
"""noise floor of a board that was never calibrated: a smaller difference is not called a gain"""
TOLERANCE = 0.05
"""an interval reaching further than this from its value, as a share, cannot carry `same`"""


def verdict(speedup: Interval, noise_floor: float | None = None, *, only_range: bool = False) -> Verdict:
    """`faster` or `slower` where the whole interval and the board's noise floor agree, else `same` or `noisy`.

    `noise_floor` is the share by which two measurements of one model differ on this board (`device calibrate`); no
    smaller difference is ever called a gain. `same` means: no difference that this board could show, and none above
    `TOLERANCE` hidden in a wide interval; where the interval is wider, saying `same` would claim to know more than the
    run does. An `only_range` of a few blocks carries nothing: it is `noisy`.
    """
    floor = UNCALIBRATED_FLOOR if noise_floor is None else noise_floor
    if only_range:
        word = "noisy"
    elif speedup.low > 1 and speedup.value > 1 + floor:
        word = "faster"
    elif speedup.high < 1 and speedup.value < 1 / (1 + floor):
        word = "slower"
    elif max(speedup.high / speedup.value, speedup.value / speedup.low) - 1 > max(TOLERANCE, floor):
        word = "noisy"
    else:
        word = "same"
    return Verdict(word, speedup, floor)
