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
    """Writes the vector of a state; what never changes is computed once."""

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

    def vector(
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
        """One state as float32 in 0..1.

        `widths`, `next_widths` [groups] (0: no next), `dropped` [blocks]; `can`, `freed` (ms) and `freed_weights`
        [groups + blocks] of every cut; `globals_` in the order of `GLOBAL_FEATURES`.
        """
        a = self._arrays
        groups = len(a.full)
        macs = a.op_macs(widths[None, :], dropped[None, :])[0] / a.full_macs
        gain = _relative(freed, can)
        in_removed = (a.block_of_group >= 0) & np.append(dropped, False)[a.block_of_group]
        per_group = (
            widths / a.full,
            next_widths / a.full,
            gain[:groups],
            _relative(freed_weights, can)[:groups],
            self._group_parameters,
            self._ops_of_group @ macs,
            self._group_depth,
            a.block_of_group >= 0,
            can[:groups],
            in_removed,
        )
        per_block = (
            dropped,
            gain[groups:],
            self._block_parameters,
            self._ops_of_block @ macs,
            self._block_depth,
            can[groups:],
        )
        table = [np.stack(rows, axis=1).ravel() for rows in (per_group, per_block) if len(rows[0])]
        vector: NDArray[np.float32] = np.clip(np.concatenate([*table, globals_]), 0.0, 1.0).astype(np.float32)
        return vector


def _relative(freed: Floats, can: Bools) -> Floats:
    offered = np.where(can, np.maximum(freed, 0.0), 0.0)
    largest = offered.max(initial=0.0)
    return np.asarray(offered / largest if largest > 0 else offered, dtype=np.float64)
