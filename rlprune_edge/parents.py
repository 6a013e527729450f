"""The spine, part 1a: the network that candidates are cut from, its channels ranked, with what heals the cuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rlprune_edge.encoders import view
from rlprune_edge.errors import UserError
from rlprune_edge.inputs import Input, named
from rlprune_edge.prune import importance, recover, refit, structure
from rlprune_edge.prune.cut import Candidate, apply, check_against_masked
from rlprune_edge.prune.graph import CoupledGroup
from rlprune_edge.records import Plan, PruningSpace
from rlprune_edge.request import Request
from rlprune_edge.tasks.task import Task

IMPORTANCE_INPUTS = 512
IMPORTANCE_BATCH = 32
# A transformer's examples are long and its units few: fewer examples, as many as so much work makes.
ENCODER_RANKED = {"macs": 350_000_000_000, "least": 16, "most": IMPORTANCE_INPUTS}
# What the gradients of one batch keep grows with its work: half a minute of audio takes more than 1 GB.
ENCODER_BATCH = {"macs": 100_000_000_000, "least": 1, "most": 8}
ENCODER_REFIT = {"macs": 150_000_000_000, "least": 8, "most": 32}
# 8,192 rows do as well as 32,768 and take half the time; penalties of 0.01 and 0.1 are alike.
RECONSTRUCTION_ROWS = 8192
RECONSTRUCTION_PENALTY = 0.03
LENGTHS = 16
"""training examples whose mean length says what one of them costs"""


@dataclass(frozen=True)
class Parent:
    """A network that candidates are cut from: the uncut model, or on a ladder what the rung before has left.

    Plans are those of the uncut model; so are the names of groups and blocks.
    """

    module: torch.nn.Module
    groups: tuple[CoupledGroup, ...]
    ranking: importance.Ranking
    calibration: list[Input]
    """inputs that BatchNorm statistics are taken from"""
    targets: refit.Targets | None
    """what its layers give on calibration data, where it has no BatchNorm"""
    criterion: str
    """by which channels, heads and neurons are ranked"""
    removed: tuple[str, ...] = ()
    """blocks that it no longer has"""

    def cut(self, plan: Plan) -> Candidate:
        """What a plan leaves of it."""
        own = Plan(
            widths={g.name: plan.widths[g.name] for g in self.groups},
            dropped=tuple(name for name in plan.dropped if name not in self.removed),
        )
        return apply(self.module, self.groups, self.ranking, own)

    def check(self, candidate: Candidate, x: Input) -> float:
        """Hold a candidate against its masked twin, see `prune/cut.py`. Raises CandidateError."""
        return check_against_masked(candidate, self.module, self.groups, self.ranking, x)

    def heal(self, candidate: Candidate, calibration: list[Input] | None = None) -> None:
        """What a cut network gets before it is judged: no training, calibration data alone (its own by default)."""
        if self.targets is not None:
            refit.refit(candidate, self.targets)
        else:
            recover.recalibrate_batchnorm(candidate.module, self.calibration if calibration is None else calibration)

    def reconstruct(self, plan: Plan, x: Input, calibration: list[Input], *, seed: int) -> Candidate:
        """A plan's network with BatchNorm whose layers were fitted anew to what they give in this one for `x`.

        Ridge regression layer by layer, see `prune/refit.py`, then the statistics of `calibration`. On ResNet-56 at 2x
        the accuracy before any training rises from 76 to 86 % with 1,024 images, from 73 to 85 % on a worse plan.
        """
        targets = refit.collect(self.module, self.groups, x, rows=RECONSTRUCTION_ROWS, seed=seed)
        candidate = self.cut(plan)
        candidate.module.eval()
        refit.refit(candidate, targets, penalty=RECONSTRUCTION_PENALTY)
        recover.recalibrate_batchnorm(candidate.module, calibration)
        return candidate


def make(
    request: Request,
    task: Task,
    model: torch.nn.Module,
    groups: tuple[CoupledGroup, ...],
    *,
    macs: int,
    example: Input,
    removed: tuple[str, ...] = (),
) -> Parent:
    """Rank a model's channels and collect what its cuts are healed with; `macs` are those of one timed inference."""
    seen = view(model)
    one = 0 if seen is None else _macs_of_one(macs, example, task, request.seed)
    criterion = request.importance or ("taylor" if seen is None else "fisher")
    ranked_on = IMPORTANCE_INPUTS if seen is None else _as_many(one, **ENCODER_RANKED)
    batch = IMPORTANCE_BATCH if seen is None else _as_many(one, **ENCODER_BATCH)
    ranking = importance.rank(
        model,
        groups,
        criterion=criterion,
        batches=task.batches("train", batch, augment=True, seed=request.seed, limit=ranked_on),
        loss=task.loss,
    )
    refit_on = request.calibration_examples
    if seen is not None:
        refit_on = min(refit_on, _as_many(one, **ENCODER_REFIT))
    calibration, targets = _calibration(request, task, model, groups, refit_on)
    return Parent(model, groups, ranking, calibration, targets, criterion, removed)


def next_of(
    parent: Parent, module: torch.nn.Module, plan: Plan, *, request: Request, task: Task, space: PruningSpace, x: Input
) -> Parent:
    """The network that was cut from a parent by this plan and trained, as the parent of further candidates.

    Raises UserError where it can no longer be cut as the uncut model could.
    """
    found, _ = structure.find_groups(module.cpu(), x)
    groups = _as_named(found, parent.groups)
    widths = {g.name: g.width for g in groups}
    wanted = {g.name: plan.widths[g.name] for g in space.groups if g.block not in plan.dropped}
    if widths != wanted:
        odd = sorted(name for name in widths.keys() | wanted.keys() if widths.get(name) != wanted.get(name))
        raise UserError(f"what is left of {', '.join(odd)} cannot be cut on its own")
    device = next(parent.module.parameters()).device
    macs = space.macs(plan)
    return make(request, task, module.to(device), groups, macs=macs, example=x, removed=plan.dropped)


def _as_named(groups: Sequence[CoupledGroup], before: Sequence[CoupledGroup]) -> tuple[CoupledGroup, ...]:
    """The groups of a cut network under the names that the same channels had before: the layers are the same."""
    ends = [(s.layer, s.side) for g in before for s in g.slices]
    count = Counter(ends)
    # behind a concatenation a layer's channels are those of several groups: such layers say nothing
    owner = {(s.layer, s.side): g.name for g in before for s in g.slices if count[(s.layer, s.side)] == 1}
    found = []
    for group in groups:
        names = {owner[end] for s in group.slices if (end := (s.layer, s.side)) in owner}
        if len(names) != 1:
            raise UserError(f"the channels of {group.name} belong to {len(names)} groups of the network before")
        found.append(replace(group, name=names.pop()))
    return tuple(found)


def _macs_of_one(macs: int, example: Input, task: Task, seed: int) -> int:
    """Multiply-accumulates of a training example, which may be many times as long as the one that is timed."""
    lengths = [x for x, _ in task.batches("train", 1, seed=seed, limit=LENGTHS)]
    mean = sum(_size(x) for x in lengths) / len(lengths)
    return round(macs * mean / _size(example))


def _size(x: Input) -> int:
    return next(iter(named(x).values())).numel()


def _as_many(one: int, *, macs: int, least: int, most: int) -> int:
    """How many examples of `one` multiply-accumulates each make up `macs`."""
    return max(least, min(most, macs // max(1, one)))


def _calibration(
    request: Request, task: Task, model: torch.nn.Module, groups: tuple[CoupledGroup, ...], refit_on: int
) -> tuple[list[Input], refit.Targets | None]:
    """The data that cut networks are healed with, in batches; without BatchNorm, what the whole layers make of it."""
    if recover.has_batchnorm(model):
        batches = task.batches("train", 128, seed=request.seed, limit=request.calibration_examples)
        return [x for x, _ in batches], None
    x, _ = next(iter(task.batches("train", refit_on, seed=request.seed, limit=refit_on)))
    return [x], refit.collect(model, groups, x, seed=request.seed)
