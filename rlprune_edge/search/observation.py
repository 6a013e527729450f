"""What the policy sees: the state of the network, its neurons and layers, as one vector of numbers from 0 to 1.

Per group (`GROUP_FEATURES`, in the order of the space), per block (`BLOCK_FEATURES`) and once (`GLOBAL_FEATURES`),
one after the other. Times are the latency model's; a step's gain is told relative to the largest gain on offer in this
state, since a network of 50 groups has gains of 1 % that a small policy could not see.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlprune_edge.search.arrays import Bools, Floats, Ints, SpaceArrays

GROUP_FEATURES = (
    "share of the channels kept",
    "share kept after the next step (0 if there is none)",
    "latency the next step frees, over the largest on offer",
    "weights the next step frees, over the largest on offer",
    "share of the uncut model's parameters that depend on it",
    "share of the uncut model's MACs in its layers now",
    "depth in the network",
    "belongs to one removable block (otherwise shared by several)",
    "can still be cut",
    "lies in a removed block",
)
BLOCK_FEATURES = (
    "removed",
    "latency its removal frees, over the largest on offer",
    "share of the uncut model's parameters",
    "share of the uncut model's MACs in it now",
    "depth in the network",
    "can still be removed",
)
GLOBAL_FEATURES = (
    "predicted latency over the uncut model's",
    "latency target over predicted latency (1: met or none)",
    "memory target over predicted memory (1: met or none)",
    "share of the MACs kept",
    "share of the weights kept",
    "share of the blocks removed",
    "share of the horizon left",
    "budget met",
)


def size(space_groups: int, space_blocks: int) -> int:
    """Length of the vector."""
    return space_groups * len(GROUP_FEATURES) + space_blocks * len(BLOCK_FEATURES) + len(GLOBAL_FEATURES)


class Observer:
    """Writes the vectors of states; what never changes is computed once."""

    def __init__(self, arrays: SpaceArrays) -> None:
        self._arrays = arrays
        space = arrays.space
        self._group_parameters = np.array([g.parameters for g in space.groups]) / max(1, space.parameters)
        self._block_parameters = np.array([b.parameters for b in space.blocks]) / max(1, space.parameters)
        self._group_depth = np.array([g.depth for g in space.groups])
        self._block_depth = np.array([b.depth for b in space.blocks])
        g, b = np.arange(len(space.groups)), np.arange(len(space.blocks))
        self._ops_of_group = (arrays.op_in[None, :] == g[:, None]) | (arrays.op_out[None, :] == g[:, None])
        own = arrays.op_block[None, :] == b[:, None]
        self._ops_of_block = own | (arrays.parts @ own)

    def vectors(
        self,
        *,
        widths: Ints,
        next_widths: Ints,
        dropped: Bools,
        can: Bools,
        freed: Floats,
        freed_weights: Floats,
        globals_: Floats,
    ) -> NDArray[np.float32]:
        """A batch of states as float32 in 0..1: [states, size].

        `widths`, `next_widths` [states, groups] (0: no next), `dropped` [states, blocks]; `can`, `freed` (ms) and
        `freed_weights` [states, groups + blocks] of every cut; `globals_` [states, 8] in the order of
        `GLOBAL_FEATURES`.
        """
        a = self._arrays
        states, groups = widths.shape
        macs = a.op_macs(widths, dropped) / a.full_macs
        gain = _relative(freed, can)
        none = np.zeros((states, 1), dtype=np.bool_)
        in_removed = (a.block_of_group >= 0) & np.concatenate([dropped, none], axis=1)[:, a.block_of_group]
        per_group = (
            widths / a.full,
            next_widths / a.full,
            gain[:, :groups],
            _relative(freed_weights, can)[:, :groups],
            self._group_parameters,
            macs @ self._ops_of_group.T,
            self._group_depth,
            a.block_of_group >= 0,
            can[:, :groups],
            in_removed,
        )
        per_block = (
            dropped,
            gain[:, groups:],
            self._block_parameters,
            macs @ self._ops_of_block.T,
            self._block_depth,
            can[:, groups:],
        )
        table = []
        for rows, length in ((per_group, groups), (per_block, dropped.shape[1])):
            full = [np.broadcast_to(row, (states, length)) for row in rows]
            table.append(np.stack(full, axis=2).reshape(states, -1))
        vectors: NDArray[np.float32] = np.clip(np.concatenate([*table, globals_], axis=1), 0.0, 1.0).astype(np.float32)
        return vectors


def _relative(freed: Floats, can: Bools) -> Floats:
    offered = np.where(can, np.maximum(freed, 0.0), 0.0)
    largest = offered.max(axis=1, initial=0.0, keepdims=True)
    return np.asarray(np.where(largest > 0, offered / np.where(largest > 0, largest, 1.0), offered), dtype=np.float64)
