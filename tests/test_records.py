"""Plans are canonical, spaces count what they say."""

from __future__ import annotations

import pytest

from rlprune_edge.records import MetricSpec, PruningSpace


def test_a_removed_block_takes_its_groups_with_it(space: PruningSpace) -> None:
    one = space.plan({"a": 8, "block.b": 16}, ("block",))
    other = space.plan({"a": 8}, ("block",))
    assert one.key == other.key
    assert one.widths == {"a": 8, "block.b": 32}
    assert space.plan({"a": 8}).key != one.key


@pytest.mark.parametrize("widths", [{"a": 0}, {"a": 17}, {"nobody": 3}])
def test_impossible_plans_are_refused(space: PruningSpace, widths: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"a: width|nobody"):
        space.plan(widths)


def test_macs_follow_both_sides_of_a_layer(space: PruningSpace) -> None:
    pixels = 8 * 8 * 9
    assert space.macs(space.uncut()) == pixels * (3 * 16 + 16 * 32 + 32 * 16)
    assert space.macs(space.plan({"a": 8, "block.b": 16})) == pixels * (3 * 8 + 8 * 16 + 16 * 8)
    assert space.macs(space.plan({"a": 8}, ("block",))) == pixels * 3 * 8


def test_drop_is_positive_when_it_got_worse() -> None:
    assert MetricSpec("accuracy", True).drop(92.0, 91.5) == pytest.approx(0.5)
    assert MetricSpec("wer", False).drop(5.0, 6.0) == pytest.approx(1.0)
