"""The frozen, torch-free records that pass between rooms.

Request -> Task -> nn.Module -> PruningSpace -> Plan -> Candidate -> OnnxArtifact -> Measurement -> Score -> Trial
-> Bundle

Units are part of the names: `_ns`, `_ms`, `_bytes`, `_mb` (1 MB = 10**6 bytes), `seconds`.
`None` means "not known", never a magic number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rlprune_edge.measurements import Measurement, Work

# ---------------------------------------------------------------- what can be cut


@dataclass(frozen=True)
class Group:
    """Channels that must be cut together, across all the layers that share them.

    For a block `y = x + conv2(relu(conv1(x)))`, the outputs of `conv1` are one group (cutting it narrows `conv1`,
    its BatchNorm and the input of `conv2`); the outputs of `conv2` belong to the group of `x`, since they are added to
    it.
    """

    name: str
    """name of the layer the group was found at, e.g. `layer1.0.conv1`"""
    width: int
    """channels in the uncut model"""
    levels: tuple[int, ...]
    """widths that may be chosen, widest first; the last is at least 1, the first is what a search begins with: the full
    width, or on a later rung of a ladder what the rung before has left"""
    producers: tuple[str, ...]
    """layers (convolutions, linear layers) whose outputs are these channels"""
    consumers: tuple[str, ...]
    """layers whose inputs are these channels"""
    block: str | None
    """the removable block that contains the whole group, if there is one"""
    depth: float
    """where in the network, 0 (input) to 1 (output)"""
    parameters: int
    """trained parameters that depend on this group (all of its channels)"""
    unit: str = "channel"
    """what is counted: `channel`, `head` (of attention) or `neuron` (of a feed-forward sub-layer)"""


@dataclass(frozen=True)
class Block:
    """A part of the network that can be removed because what is left of it without its layers is an identity."""

    name: str
    depth: float
    parameters: int
    ops: tuple[str, ...]
    """names of the `Op`s inside it"""
    parts: tuple[str, ...] = ()
    """names of the smaller blocks it is made of: a transformer's layer of its two sub-layers"""


@dataclass(frozen=True)
class Op:
    """One convolution, linear layer or product of attention, with the sizes that decide its cost at batch 1."""

    name: str
    kind: str
    """`conv`, `conv1d`, `linear` or `attention` (both products of all heads, which have no weights)"""
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    conv_groups: int
    in_hw: tuple[int, int]
    """height and width of the input, (1, 1) for a linear layer"""
    out_hw: tuple[int, int]
    in_group: str | None
    """name of the `Group` its input channels belong to, `None` where they cannot be cut"""
    out_group: str | None
    block: str | None
    in_repeat: int = 1
    """inputs that one channel of `in_group` stands for: 16 in a linear layer after a flatten of [C, 4, 4]"""
    out_repeat: int = 1
    """outputs that one unit of `out_group` stands for: 64 in a projection into heads of 64"""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference at full width."""
        return self.macs_at(self.in_channels, self.out_channels)

    def macs_at(self, in_channels: int, out_channels: int) -> int:
        """Multiply-accumulates with these channel counts; a depthwise convolution scales with one of them."""
        per_output = in_channels if self.conv_groups == 1 else max(1, self.in_channels // self.conv_groups)
        kernel = self.kernel[0] * self.kernel[1]
        return out_channels * self.out_hw[0] * self.out_hw[1] * kernel * per_output


@dataclass(frozen=True)
class PruningSpace:
    """All that may be cut from one model. Order of groups and blocks is the order of the network and never changes."""

    groups: tuple[Group, ...]
    blocks: tuple[Block, ...]
    ops: tuple[Op, ...]
    parameters: int
    """trained parameters of the uncut model"""
    removed: tuple[str, ...] = ()
    """blocks that are gone for good: on a later rung of a ladder, a search begins without them"""

    def group(self, name: str) -> Group:
        return next(g for g in self.groups if g.name == name)

    def uncut(self) -> Plan:
        """The plan that changes nothing."""
        return Plan(widths={g.name: g.width for g in self.groups}, dropped=())

    def start(self) -> Plan:
        """The plan a search begins with: the uncut model, or on a ladder what the rung before has left."""
        return self.plan({})

    def plan(self, widths: Mapping[str, int], dropped: tuple[str, ...] | frozenset[str] = ()) -> Plan:
        """A canonical plan: a removed block takes its own groups with it, so their widths are written as uncut.

        Groups that are not named keep their first level. Raises ValueError for what this space does not have.
        """
        gone = {*dropped, *self.removed}
        unknown = (gone - {b.name for b in self.blocks}) | (set(widths) - {g.name for g in self.groups})
        if unknown:
            raise ValueError(f"not in this pruning space: {', '.join(sorted(unknown))}")
        for block in self.blocks:  # a layer is gone with all of its parts, and the other way round
            if block.name in gone:
                gone.update(block.parts)
            elif block.parts and gone.issuperset(block.parts):
                gone.add(block.name)
        full = {}
        for g in self.groups:
            width = g.levels[0] if g.block in gone else int(widths.get(g.name, g.levels[0]))
            if not 1 <= width <= g.width:
                raise ValueError(f"{g.name}: width {width} is outside 1..{g.width}")
            full[g.name] = width
        return Plan(widths=full, dropped=tuple(b.name for b in self.blocks if b.name in gone))

    def macs(self, plan: Plan) -> int:
        """Multiply-accumulates of one inference of the cut model (convolutions, linear layers, attention)."""
        gone = set(plan.dropped)
        return sum(
            op.macs_at(
                plan.widths[op.in_group] * op.in_repeat if op.in_group else op.in_channels,
                plan.widths[op.out_group] * op.out_repeat if op.out_group else op.out_channels,
            )
            for op in self.ops
            if op.block not in gone
        )

    def without_levels(self) -> PruningSpace:
        """The same space without the widths on offer, which are each board's own."""
        return self.with_levels({g.name: (g.width,) for g in self.groups})

    def from_rung(self, plan: Plan) -> PruningSpace:
        """The same space for a search that begins with this plan: nothing wider, and no removed block, is offered."""
        gone = set(plan.dropped)
        levels = {
            g.name: (g.width,) if g.block in gone else tuple(n for n in g.levels if n <= plan.widths[g.name])
            for g in self.groups
        }
        return replace(self.with_levels(levels), removed=plan.dropped)

    def with_levels(self, levels: Mapping[str, tuple[int, ...]]) -> PruningSpace:
        """The same space, offering other widths for the groups named."""
        groups = tuple(replace(g, levels=levels.get(g.name, g.levels)) for g in self.groups)
        return replace(self, groups=groups)


@dataclass(frozen=True)
class Plan:
    """What to keep: a width for every group (integers) and the blocks to remove. Made by `PruningSpace.plan`."""

    widths: dict[str, int]
    dropped: tuple[str, ...]

    @property
    def key(self) -> str:
        """Canonical name, the same for the same network on every machine: key of cache, journal and resume."""
        text = json.dumps({"widths": self.widths, "dropped": sorted(self.dropped)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- what was made of it


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an ONNX model; a `None` in the shape is a free (batch) dimension."""

    name: str
    dtype: str
    """numpy name, e.g. `float32`"""
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class OnnxArtifact:
    """An exported candidate on disk."""

    path: str
    sha256: str
    graph_sha256: str
    """hash of the graph without the values of its large float weights; latency depends on this alone"""
    bytes: int
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_difference: float
    """largest absolute difference between ONNX Runtime's and torch's outputs on the check inputs"""
    work: Work | None = None


@dataclass(frozen=True)
class Skeleton:
    """An ONNX graph without its weights: what a board needs to time a model."""

    data: bytes
    """what travels: the ONNX file without values, packed by zlib"""
    stripped: int
    """tensors whose values were left out"""
    graph_bytes: int
    """before packing"""
    full_bytes: int
    """of the file it was made from, which is what it grows back to on the board"""


@dataclass(frozen=True)
class Quality:
    """How good a network is on one split."""

    metric: float
    """in the unit of the task's metric (accuracy and F1 in percent, WER in percent)"""
    loss: float
    examples: int
    others: dict[str, float] = field(default_factory=dict)
    """figures beside the metric by name, in percent: F1, character error rate"""


@dataclass(frozen=True)
class Failure:
    """Why a candidate could not be measured; the plan's own fault, never the board's."""

    kind: str
    message: str


@dataclass(frozen=True)
class Score:
    """The reward and the terms it is made of."""

    reward: float
    quality: float
    feasible: bool
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One line of the journal: a plan and all that became of it."""

    number: int
    plan: Plan
    quality: Quality | None
    parameters: int | None
    macs: int | None
    artifact: OnnxArtifact | None
    measurement: Measurement | None
    failure: Failure | None
    score: Score
    seconds: dict[str, float]
    """wall seconds per stage: cut, check, recover, score, export, parity, measure"""
    rung: int = 0
    """of a ladder, from 0: what it was cut from is what the rung before has left"""


# ---------------------------------------------------------------- what was asked for


@dataclass(frozen=True)
class MetricSpec:
    """The task's figure of merit."""

    name: str
    """`accuracy`, `f1` or `wer`"""
    higher_is_better: bool
    unit: str = "%"

    def drop(self, before: float, after: float) -> float:
        """Points lost (positive = worse), whichever way the metric points."""
        return before - after if self.higher_is_better else after - before


@dataclass(frozen=True)
class Target:
    """What the compressed model has to meet; all that is set must hold. Nothing set: weighted mode."""

    speedup: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None
    max_drop: float | None = None
    """points of the metric"""

    @property
    def hard(self) -> bool:
        return any(v is not None for v in (self.speedup, self.latency_ms, self.memory_mb))


@dataclass(frozen=True)
class Baseline:
    """The uncut model's figures, trial 0, that rewards and reports refer to."""

    quality: Quality
    latency_ms: float
    memory_mb: float | None
    parameters: int
    macs: int


@dataclass(frozen=True)
class WidthTimes:
    """The board's staircase for one kind of group: measured time of the same layers at several widths."""

    groups: tuple[str, ...]
    """names of the groups this holds for (same layers, same sizes)"""
    times_ns: dict[int, float]
