"""The staircase: which widths are probed, and which of them are offered."""

from __future__ import annotations

import pytest
from planted import Planted

from rlprune_edge.records import WidthTimes
from rlprune_edge.search.staircase import candidate_widths, grid, paying_levels

# Measured on ONNX Runtime 1.31 (x86, AVX-512, one thread): a 3x3 convolution C -> C at 16x16, microseconds.
MEASURED_US = {64: 80.0, 63: 117.0, 60: 81.0, 56: 81.0, 52: 81.0, 48: 48.7, 33: 42.5, 32: 24.3, 31: 39.5, 28: 24.8,
               25: 29.6, 24: 24.9, 17: 17.0, 16: 9.2}  # fmt: skip


def levels_of(times_us: dict[int, float], space_width: int = 64) -> tuple[int, ...]:
    planted = Planted(widths=(16, 32, space_width))
    name = "stage2.0.conv1"
    times = {n: t * 1000.0 for n, t in times_us.items()}
    return paying_levels(planted.space, [WidthTimes((name,), times)])[name]


def test_no_offered_width_is_slower_than_a_wider_one() -> None:
    # 10 % off every group made ResNet-56 36 % slower: the reason that this file exists.
    assert levels_of(MEASURED_US) == (64, 48, 32, 16)


def test_levels_of_a_straight_line_are_steps_of_ten_percent() -> None:
    assert levels_of({n: float(n) for n in range(1, 65)}) == (64, 58, 52, 46, 40, 34, 28, 22, 16, 10, 4, 1)


def test_a_width_nearer_than_a_step_stays_where_the_next_one_is_far() -> None:
    assert levels_of({64: 100.0, 60: 80.0, 32: 50.0}) == (64, 60, 32)
    assert levels_of({64: 100.0, 60: 80.0, 56: 70.0, 32: 50.0}) == (64, 56, 32)


def test_differences_within_the_noise_do_not_count() -> None:
    assert levels_of({64: 100.0, 56: 98.5, 48: 98.1, 40: 97.0}) == (64, 40)


def test_where_nothing_pays_the_group_keeps_its_width() -> None:
    assert levels_of({64: 100.0, 48: 103.0, 32: 99.0}) == (64,)


def test_groups_without_a_table_keep_the_plain_grid() -> None:
    planted = Planted()
    levels = paying_levels(planted.space, [], step=0.25)
    assert levels["stage2"] == (64, 48, 32, 16)
    assert grid(8) == (8, 7, 6, 5, 4, 3, 2, 1)
    assert grid(1) == (1,)


def test_a_table_without_the_full_width_is_refused() -> None:
    with pytest.raises(ValueError, match="full width 64 was not timed"):
        levels_of({48: 1.0})


@pytest.mark.parametrize("width", [1, 2, 3, 7, 12, 16, 64, 100, 512, 1279])
def test_probed_widths_are_unique_ordered_and_hold_the_grid_and_its_blocks(width: int) -> None:
    widths = candidate_widths(width)
    assert widths[0] == width
    assert list(widths) == sorted(set(widths), reverse=True)
    assert widths[-1] >= 1
    assert set(grid(width)) <= set(widths)
    for n in grid(width):
        for block in (4, 8, 16):
            assert n < block or n // block * block in widths


def test_where_a_step_is_many_blocks_wide_only_their_edges_are_probed() -> None:
    assert candidate_widths(3072) == (3072, 2768, 2464, 2144, 1840, 1536, 1232, 928, 608, 304)
    assert all(n % 16 == 0 for n in candidate_widths(1537)[1:])


def test_a_group_of_few_heads_is_thinned_to_whole_heads() -> None:
    assert levels_of({4: 4.0, 3: 3.2, 2: 2.1, 1: 1.2}, space_width=4) == (4, 3, 2, 1)
