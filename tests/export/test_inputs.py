"""Inputs for models that came without any."""

from __future__ import annotations

import numpy as np
import pytest

from rlprune_edge.errors import UserError
from rlprune_edge.export.inputs import make
from rlprune_edge.records import TensorSpec

TEXT = (
    TensorSpec("input_ids", "int64", (None, None)),
    TensorSpec("attention_mask", "int64", (None, None)),
    TensorSpec("token_type_ids", "int64", (None, None)),
)
IMAGE = (TensorSpec("x", "float32", (None, 3, 8, 8)),)


def test_an_image_is_drawn_from_the_seed() -> None:
    (first,), (again,), (other,) = (make(IMAGE, shapes={}, given={}, rows={}, seed=seed).values() for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == ((1, 3, 8, 8), np.float32)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert abs(float(first.std()) - 1) < 0.2


def test_a_text_is_of_the_length_asked_for_with_ids_its_table_has() -> None:
    shapes = {name: (1, 16) for name in ("input_ids", "attention_mask", "token_type_ids")}
    feeds = make(TEXT, shapes=shapes, given={}, rows={"input_ids": 50})
    assert feeds["input_ids"].shape == (1, 16)
    assert 0 <= feeds["input_ids"].min() <= feeds["input_ids"].max() < 50
    assert len(set(feeds["input_ids"].ravel().tolist())) > 4
    assert feeds["attention_mask"].min() == 1
    assert feeds["token_type_ids"].max() == 0


def test_given_arrays_are_taken_as_they_are() -> None:
    x = np.ones((2, 3, 8, 8), np.float32)
    assert make(IMAGE, shapes={}, given={"x": x}, rows={})["x"] is x


@pytest.mark.parametrize(
    ("shapes", "given", "words"),
    [
        ({}, {}, r"input_ids: int64\[\?, \?\].*--shape input_ids=1x128"),
        ({"ids": (1, 2)}, {}, "no input 'ids'; its inputs are input_ids, attention_mask"),
        ({"input_ids": (1, 2, 3)}, {}, "1x2x3 does not fit"),
        ({"input_ids": (1, 0)}, {}, "1x0 does not fit"),
        ({}, {"input_ids": np.ones((1, 4), np.int32)}, r"is int32\[1, 4\]"),
    ],
)
def test_what_does_not_fit_is_said(
    shapes: dict[str, tuple[int, ...]], given: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        make(TEXT, shapes=shapes, given=given, rows={})
