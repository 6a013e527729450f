"""The four splits of a data set that has two or three: what steers a search is never what judges it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from rlprune_edge.errors import UserError
from rlprune_edge.tasks.arrays import split_by_class

CARVED = 2000
"""examples taken from train for search, and as many for validation, where the data set has no validation split"""
SPLIT_SEED = 0


def four_splits(
    found: Mapping[str, Any], classes: Callable[[Any], Tensor], where: str, *, noun: str
) -> tuple[dict[str, Any], str]:
    """Train, search, validation and test as rows of the data set, and what to say about them.

    `found`: the data set's own splits by name; others than train, validation and test are ignored. `classes`: the class
    numbers [N] of the rows of a split, so that every part has its share of each class (all zero where there are no
    classes). `noun`: what an example is, in the plural (`images`). Raises UserError if train or test is missing.
    """
    absent = [split for split in ("train", "test") if split not in found]
    if absent:
        raise UserError(
            f"{where} has no split {' and no split '.join(absent)}; it has {', '.join(found)}. "
            "Expected are train and test, and validation if there is one."
        )
    if "validation" in found:
        search, validation = split_by_class(classes(found["validation"]), (0.5,), seed=SPLIT_SEED)
        rows = {
            "train": found["train"],
            "search": found["validation"].select(search.tolist()),
            "validation": found["validation"].select(validation.tolist()),
        }
        note = (
            f"the data set's own validation split steers the search ({len(search)} {noun}) and the choice between "
            f"finalists (the other {len(validation)}); the test split was read for the final figures only"
        )
    else:
        targets = classes(found["train"])
        share = min(CARVED / len(targets), 0.1)
        search, validation, train = split_by_class(targets, (share, share), seed=SPLIT_SEED)
        rows = {
            "train": found["train"].select(train.tolist()),
            "search": found["train"].select(search.tolist()),
            "validation": found["train"].select(validation.tolist()),
        }
        note = (
            f"the data set has no validation split: {len(search)} training {noun} steer the search and "
            f"{len(validation)} the choice between finalists. Weights that were trained on all of train saw these "
            f"{noun}, which makes figures on both parts optimistic; the test split was read for the final figures only"
        )
    return {**rows, "test": found["test"]}, note
