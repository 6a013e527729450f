"""Choose the widths that pay on this board, from measured times of the layers at several widths.

Latency is a staircase, not a line: on ONNX Runtime (x86, AVX-512) a convolution with 63 channels takes 46 % longer than
one with 64, and removing 10 % of every group of ResNet-56 made it 36 % slower. A width that is not faster than some
wider one costs accuracy and buys nothing, so it is never offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlprune_edge.records import PruningSpace, WidthTimes

STEP = 0.10
"""the prescribed pruning step, a share of the full width"""
NOISE = 0.02
"""a width must be faster than the wider ones by more than this share: what repeated short timings differ by"""

# Kernels work in blocks of channels (ONNX Runtime's NCHWc path in 8 or 16, NEON in 4): the widths worth a probe are
# the 10 % steps themselves and the multiples of these next to them. Which of them pays is measured, never assumed.
_BLOCKS = (4, 8, 16)
_WIDE = 8  # blocks in one step
_STEEPER = 1.25  # a stair's edge, not noise on a slope


def grid(width: int, step: float = STEP) -> tuple[int, ...]:
    """The plain ladder of widths, one `step` (a share of `width`) apart, rounded, widest first, never below 1."""
    if not 0.0 < step < 1.0:
        raise ValueError(f"a pruning step is a share between 0 and 1, not {step}")
    shares = (1.0 - k * step for k in range(int(1.0 / step + 1e-9)))
    widths = {max(1, round(width * share)) for share in shares}
    return tuple(sorted(widths | {width}, reverse=True))


def candidate_widths(width: int, step: float = STEP) -> tuple[int, ...]:
    """The widths to probe for a group of `width` channels, widest first: the grid and its blocked neighbours.

    Where a step is many blocks wide, a width beside a block's edge costs hardly more than the edge does: there the grid
    is moved to the edges, so that a feed-forward sub-layer of 3,072 neurons takes 10 probes and not 60.
    """
    plain = grid(width, step)
    widest = _BLOCKS[-1]
    if width * step >= _WIDE * widest:
        return tuple(sorted({width, *(max(widest, round(n / widest) * widest) for n in plain[1:])}, reverse=True))
    found = set(plain)
    for n in plain:
        for block in _BLOCKS:
            down = n // block * block
            up = -(-n // block) * block
            found.update(w for w in (down, up) if 1 <= w < width)
    return tuple(sorted(found, reverse=True))


def paying_levels(
    space: PruningSpace, tables: Sequence[WidthTimes], *, noise: float = NOISE, step: float = STEP
) -> dict[str, tuple[int, ...]]:
    """The widths to offer for every group of the space, widest first, the full width always among them.

    A width is kept if it is faster than every wider kept one by more than `noise` (a share). The kept widths are then
    thinned to one `step` apart (a share of the full width), except where that would skip a width that pays and has no
    other near it; just before a stair's edge the width behind the edge is taken. A group without a table keeps the
    plain grid; one that nothing pays for is left at its full width.

    Raises ValueError for a table without a time for a group's full width.
    """
    measured: Mapping[str, WidthTimes] = {name: table for table in tables for name in table.groups}
    levels: dict[str, tuple[int, ...]] = {}
    for group in space.groups:
        table = measured.get(group.name)
        if table is None:
            levels[group.name] = grid(group.width, step)
            continue
        if group.width not in table.times_ns:
            raise ValueError(f"{group.name}: the full width {group.width} was not timed")
        times = {n: t for n, t in table.times_ns.items() if 1 <= n <= group.width}
        levels[group.name] = _thinned(_pareto(times, noise), times, max(1.0, step * group.width))
    return levels


def _pareto(times_ns: Mapping[int, float], noise: float) -> list[int]:
    kept: list[int] = []
    fastest = float("inf")
    for width in sorted(times_ns, reverse=True):
        if times_ns[width] < fastest * (1.0 - noise) or not kept:
            kept.append(width)
            fastest = times_ns[width]
    return kept


def _thinned(widths: Sequence[int], times_ns: Mapping[int, float], step: float) -> tuple[int, ...]:
    """`widths` (widest first) thinned to about `step` channels apart; half a channel of rounding is forgiven."""
    levels = [widths[0]]
    while True:
        here = levels[-1]
        near = [n for n in widths if here - step + 0.5 < n < here]
        far = [n for n in widths if n <= here - step + 0.5]
        # The next width beyond a step, unless it lies more than two steps away while a nearer one pays.
        if far and (not near or far[0] > here - 2 * step - 0.5):
            levels.append(_edge(here, [n for n in far if n > far[0] - step], times_ns))
        elif near:
            levels.append(near[-1])
        else:
            return tuple(levels)


def _edge(here: int, widths: Sequence[int], times_ns: Mapping[int, float]) -> int:
    """The widest of `widths`, or the one just over the edge of a stair: 33 channels pay a little, 32 far more."""
    freed_per_channel = {n: (times_ns[here] - times_ns[n]) / (here - n) for n in widths}
    best = max(widths, key=lambda n: freed_per_channel[n])
    return best if freed_per_channel[best] > _STEEPER * freed_per_channel[widths[0]] else widths[0]
