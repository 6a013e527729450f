"""Batches of examples of similar length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

POOL = 50
"""batches among which examples are sorted by length while training: random enough, and hardly any padding"""


def bucketed(
    order: Sequence[int], lengths: Sequence[int], batch_size: int, generator: torch.Generator | None
) -> Iterator[list[int]]:
    """The examples of `order` in batches. `lengths`: of every example, by its number.

    With a `generator` the order is kept from pool to pool, and batches within a pool come in random order; without one
    all examples are sorted by length. As many batches as without buckets: only the last one is smaller.
    """
    if generator is None:
        pools = [sorted(order, key=lambda i: lengths[i])]
    else:
        size = POOL * batch_size
        pools = [sorted(order[at : at + size], key=lambda i: lengths[i]) for at in range(0, len(order), size)]
    for pool in pools:
        batches = [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
        if generator is not None:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        yield from batches
