"""A pruning space as arrays, so that thousands of plans can be counted at once.

A batch of plans is `widths` [plans, groups] (int) with `dropped` [plans, blocks] (bool), in the order of the space.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlprune_edge.records import Plan, PruningSpace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class SpaceArrays:
    """Index tables of a space, and the counts that follow from widths alone."""

    def __init__(self, space: PruningSpace) -> None:
        self.space = space
        self.group_index = {g.name: i for i, g in enumerate(space.groups)}
        self.block_index = {b.name: i for i, b in enumerate(space.blocks)}
        self.full: Ints = np.array([g.width for g in space.groups], dtype=np.int64)
        self.block_of_group: Ints = np.array([self._block(g.block) for g in space.groups], dtype=np.int64)
        ops = space.ops
        self.op_in: Ints = np.array([self._group(op.in_group) for op in ops], dtype=np.int64)
        self.op_out: Ints = np.array([self._group(op.out_group) for op in ops], dtype=np.int64)
        self.op_block: Ints = np.array([self._block(op.block) for op in ops], dtype=np.int64)
        self.op_grouped: Bools = np.array([op.conv_groups > 1 for op in ops], dtype=np.bool_)
        self._conv_groups: Ints = np.array([op.conv_groups for op in ops], dtype=np.int64)
        self._in: Ints = np.array([op.in_channels for op in ops], dtype=np.int64)
        self._out: Ints = np.array([op.out_channels for op in ops], dtype=np.int64)
        self._kernel: Ints = np.array([op.kernel[0] * op.kernel[1] for op in ops], dtype=np.int64)
        self._in_repeat: Ints = np.array([op.in_repeat for op in ops], dtype=np.int64)
        self._out_repeat: Ints = np.array([op.out_repeat for op in ops], dtype=np.int64)
        self._weighty: Bools = np.array([op.kind != "attention" for op in ops], dtype=np.bool_)
        names = [b.name for b in space.blocks]
        self.parts: Bools = np.array([[n in b.parts for n in names] for b in space.blocks], dtype=np.bool_).reshape(
            len(names), len(names)
        )
        """[block, block]: whether the second is a part of the first"""
        self.gone: Bools = np.array([n in space.removed for n in names], dtype=np.bool_)
        """[blocks]: gone for good"""
        self._pixels: Ints = np.array([op.out_hw[0] * op.out_hw[1] for op in ops], dtype=np.int64)
        widths, dropped = self.encode(space.uncut())
        self.full_macs = float(self.op_macs(widths, dropped).sum())
        self.full_weights = float(self.op_weights(widths, dropped).sum())

    def _group(self, name: str | None) -> int:
        return -1 if name is None else self.group_index[name]

    def _block(self, name: str | None) -> int:
        return -1 if name is None else self.block_index[name]

    def encode(self, plan: Plan) -> tuple[Ints, Bools]:
        """One plan as a batch of one."""
        widths = np.array([[plan.widths[g.name] for g in self.space.groups]], dtype=np.int64)
        dropped = np.array([[b.name in plan.dropped for b in self.space.blocks]], dtype=np.bool_)
        return widths.reshape(1, len(self.full)), dropped.reshape(1, len(self.space.blocks))

    def decode(self, widths: Ints, dropped: Bools) -> Plan:
        """The canonical plan of one row: `widths` [groups], `dropped` [blocks]."""
        named = {g.name: int(n) for g, n in zip(self.space.groups, widths, strict=True)}
        return self.space.plan(named, tuple(b.name for b, d in zip(self.space.blocks, dropped, strict=True) if d))

    def kept_ops(self, dropped: Bools) -> Bools:
        """Which ops are still there: [plans, ops]."""
        padded = np.concatenate([dropped, np.zeros((len(dropped), 1), dtype=np.bool_)], axis=1)
        return ~padded[:, self.op_block]

    def removed(self, dropped: Bools, blocks: Ints) -> Bools:
        """`dropped` [plans, blocks] once one block of each, `blocks` [plans], goes, too.

        It takes its parts with it, and a layer that has no part left is gone as well.
        """
        rows: Bools = dropped | self.parts[blocks]
        rows[np.arange(len(rows)), blocks] = True
        part_left = (~rows[:, None, :] & self.parts).any(axis=2)
        return rows | (self.parts.any(axis=1) & ~part_left)

    def restored(self, dropped: Bools, block: int) -> Bools:
        """`dropped` [blocks] once this block is back: with its parts, and the layer it is a part of.

        What is gone for good stays so.
        """
        row: Bools = dropped & ~self.parts[block] & ~self.parts[:, block]
        row[block] = False
        return row | self.gone

    def op_weights(self, widths: Ints, dropped: Bools) -> Floats:
        """Weights of every op (biases and normalisation left out; attention's products have none): [plans, ops]."""
        return self._per_pixel(widths, dropped) * self._weighty

    def op_macs(self, widths: Ints, dropped: Bools) -> Floats:
        """Multiply-accumulates of every op at batch 1: [plans, ops]; rows add up to `PruningSpace.macs`."""
        return self._per_pixel(widths, dropped) * self._pixels

    def _per_pixel(self, widths: Ints, dropped: Bools) -> Floats:
        n_in = self._channels(widths, self.op_in, self._in // self._in_repeat) * self._in_repeat
        n_out = self._channels(widths, self.op_out, self._out // self._out_repeat) * self._out_repeat
        per_output = np.where(self.op_grouped, np.maximum(1, self._in // self._conv_groups), n_in)
        counts = (n_out * per_output * self._kernel).astype(np.float64)
        return counts * self.kept_ops(dropped)

    def _channels(self, widths: Ints, group: Ints, full: Ints) -> Ints:
        if not len(self.full):
            return np.broadcast_to(full, (len(widths), len(full)))
        return np.where(group >= 0, widths[:, group], full)
