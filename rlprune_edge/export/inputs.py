"""Inputs for an ONNX file that came without any: of the right shapes, with values that a model might really get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from rlprune_edge.errors import UserError
from rlprune_edge.records import TensorSpec

SPEC_VERSION = 1
"""raised whenever the same model would get other inputs, so that figures of different inputs are never compared"""


def make(
    specs: Sequence[TensorSpec],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    given: Mapping[str, np.ndarray],
    rows: Mapping[str, int],
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """One array per input: a `given` one, else made up from `seed`.

    Floats are normal with variance 1; whole numbers are drawn from the rows of the table they look things up in
    (`rows`, by input) or from 0 and 1; masks are all ones and token types all zeros, as of one unpadded text. A free
    first dimension is 1, any other has to be in `shapes`. Raises UserError for shapes and arrays that do not fit.
    """
    names = [spec.name for spec in specs]
    for name in [*shapes, *given]:
        if name not in names:
            raise UserError(f"the model has no input {name!r}; its inputs are {', '.join(names)}")
    rng = np.random.RandomState(seed)
    feeds = {}
    for spec in specs:
        if spec.name in given:
            feeds[spec.name] = _fitting(spec, given[spec.name])
        else:
            feeds[spec.name] = _values(spec, _shape(spec, shapes.get(spec.name)), rows.get(spec.name), rng)
    return feeds


def words(spec: TensorSpec) -> str:
    """`input_ids: int64[1, ?, 768]`."""
    return f"{spec.name}: {spec.dtype}[{', '.join('?' if d is None else str(d) for d in spec.shape)}]"


def _shape(spec: TensorSpec, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    if wanted is not None:
        if not _fits(spec, wanted):
            raise UserError(f"the shape {'x'.join(map(str, wanted))} does not fit the input {words(spec)}")
        return wanted
    shape = tuple(1 if d is None and place == 0 else d for place, d in enumerate(spec.shape))
    if any(d is None for d in shape):
        example = "x".join("128" if d is None else str(d) for d in shape)
        raise UserError(
            f"how large is the input {words(spec)}? Say it as it will be in use: --shape {spec.name}={example}"
        )
    return tuple(d for d in shape if d is not None)


def _fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    return len(shape) == len(spec.shape) and all(
        n > 0 and d in (None, n) for d, n in zip(spec.shape, shape, strict=True)
    )


def _fitting(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    if array.dtype.name != spec.dtype or not _fits(spec, array.shape):
        raise UserError(f"the array given for {words(spec)} is {array.dtype.name}{list(array.shape)}")
    return array


def _values(spec: TensorSpec, shape: tuple[int, ...], rows: int | None, rng: np.random.RandomState) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind not in "fiub":
        raise UserError(f"the input {words(spec)} cannot be made up: give it with --inputs FILE.npz")
    if "mask" in spec.name:
        return np.ones(shape, dtype)
    if "token_type" in spec.name:
        return np.zeros(shape, dtype)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype)
    highest = 2 if rows is None or dtype.kind == "b" else max(1, min(rows, np.iinfo(dtype).max))
    return np.asarray(rng.randint(0, highest, prod(shape)).reshape(shape), dtype)
