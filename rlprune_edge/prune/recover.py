"""Heal a cut network: BatchNorm statistics during the search, the prescribed fine-tuning for finalists."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rlprune_edge import whole_file
from rlprune_edge.bfloat16 import mixed
from rlprune_edge.encoders import view
from rlprune_edge.errors import UserError
from rlprune_edge.inputs import Input
from rlprune_edge.prune.features import FeatureMatch
from rlprune_edge.prune.space import device_of

Batches = Iterable[tuple[Input, Any]]
Loss = Callable[[torch.Tensor, Any], torch.Tensor]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def has_batchnorm(model: nn.Module) -> bool:
    return any(isinstance(m, NORMS) for m in model.modules())


def recalibrate_batchnorm(model: nn.Module, inputs: Iterable[Input]) -> bool:
    """Replace BatchNorm statistics by those of the cut network on `inputs` (batches [N, ...]); False if it has none.

    Cutting shifts the statistics of what is left; without this the accuracy of a cut network says little about what
    fine-tuning makes of it (rank correlation 0.40 against 0.79; EagleEye, ECCV 2020).
    """
    norms = [m for m in model.modules() if isinstance(m, NORMS)]
    if not norms:
        return False
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # plain average over the batches
        m.train()
    device = device_of(model)
    with torch.no_grad():
        for x in inputs:
            if len(x) > 1:  # one input alone has no variance
                model(x.to(device))
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
        m.eval()
    return True


@dataclass(frozen=True)
class FineTuning:
    """How finalists are trained; the defaults are the prescribed ones."""

    epochs: int = 5
    learning_rate: float = 1e-4
    batch_size: int = 32
    optimizer: str = "adamw"
    """`adamw` or `sgd`"""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    """`cosine`, `linear` or `constant`, after a linear warm-up"""
    warmup_steps: int = 100
    temperature: float = 4.0
    """softens both distributions (Hinton et al. 2015, section 2)"""
    distillation_weight: float = 0.9
    """share of the teacher's loss; the labels have the rest"""
    feature_weight: float = 0.0
    """weight of the difference between the two networks' features (see `features`), beside those two; 0: none"""
    mixed_precision: bool = False
    """layers compute in bfloat16 where the processor does so itself"""
    feature_share: float = 0.6
    """share of the training after which that weight has fallen to 0: first the features, then what they are for"""


@dataclass(frozen=True)
class Epoch:
    """One epoch of fine-tuning, for the report."""

    number: int
    train_loss: float
    seconds: float
    learning_rate: float
    metric: float | None = None
    """what `judge` said of the network after it"""


def fine_tune(
    student: nn.Module,
    teacher: nn.Module | None,
    *,
    epoch_batches: Callable[[int], Batches],
    steps_per_epoch: int,
    loss: Loss,
    settings: FineTuning,
    judge: Callable[[nn.Module], float] | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> list[Epoch]:
    """Train `student` in place, guided by the uncut `teacher` if there is one, and leave it in inference mode.

    `epoch_batches(e)` yields augmented, shuffled batches of epoch e (0-based). Teacher and student see the same images.
    `judge` is asked after every epoch, for the record only: it steers nothing.
    With a `checkpoint` every epoch is saved there whole, and a run that was broken off goes on after the last one.
    """
    optimizer = _optimizer(student, settings)
    total = max(1, steps_per_epoch * settings.epochs)
    warmup = min(settings.warmup_steps, total // 10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total, warmup, settings.schedule))
    if teacher is not None:
        teacher.eval()
    device = device_of(student)
    # Memory is what a GPU lacks first. Where hidden states are compared, they are kept in any case.
    frugal = None if settings.feature_weight or device.type != "cuda" else view(student)
    if frugal is not None:
        frugal.network.gradient_checkpointing_enable()
    done = _restore(checkpoint, student, optimizer, scheduler)
    for number in range(len(done), settings.epochs):
        started, sum_loss, count = time.perf_counter(), 0.0, 0
        student.train()
        with _matched(student, teacher, settings) as features:
            step = number * steps_per_epoch
            for x, y in ((x.to(device), y.to(device)) for x, y in epoch_batches(number)):
                with mixed(device, wanted=settings.mixed_precision):
                    out = student(x).float()
                value = loss(out, y)
                if teacher is not None:
                    with torch.no_grad(), mixed(device, wanted=settings.mixed_precision):
                        guide = teacher(x).float()
                    share = settings.distillation_weight
                    value = (1 - share) * value + share * distillation_loss(out, guide, settings.temperature)
                weight = settings.feature_weight * max(0.0, 1 - step / (settings.feature_share * total))
                if features is not None and weight and (difference := features.loss()) is not None:
                    value = value + weight * difference
                step += 1
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                scheduler.step()
                sum_loss += float(value.detach()) * len(x)
                count += len(x)
        seconds = time.perf_counter() - started
        metric = judge(student) if judge is not None else None
        epoch = Epoch(number + 1, sum_loss / max(1, count), seconds, float(scheduler.get_last_lr()[0]), metric)
        done.append(epoch)
        if checkpoint is not None:
            _save(checkpoint, student, optimizer, scheduler, done)
        on_epoch(epoch)
    if frugal is not None:
        frugal.network.gradient_checkpointing_disable()
    student.eval()
    return done


def _matched(
    student: nn.Module, teacher: nn.Module | None, settings: FineTuning
) -> contextlib.AbstractContextManager[FeatureMatch | None]:
    if teacher is None or not settings.feature_weight:
        return contextlib.nullcontext()
    return FeatureMatch(student, teacher)


def _save(
    path: Path,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    done: list[Epoch],
) -> None:
    state = {
        "student": student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": scheduler.last_epoch,
        "epochs": [asdict(e) for e in done],
    }
    try:
        with whole_file.replacing(path) as part:
            torch.save(state, part)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise UserError(f"Cannot write {path}: {error}.\nFree some space, then go on with --resume.") from error


def _restore(
    path: Path | None,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> list[Epoch]:
    if path is None or not path.exists():
        return []
    state = torch.load(path, weights_only=True, map_location=device_of(student))
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.last_epoch = state["step"]
    return [Epoch(**e) for e in state["epochs"]]


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divergence of the softened class distributions, scaled by T^2 so that gradients keep their size.

    Outputs are [N, classes], or [N, frames, classes] of which every frame counts as an example.
    """
    return F.kl_div(
        F.log_softmax(student.flatten(0, -2) / temperature, dim=-1),
        F.log_softmax(teacher.flatten(0, -2) / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    ) * (temperature**2)


def _optimizer(model: nn.Module, settings: FineTuning) -> torch.optim.Optimizer:
    # no weight decay on norms and biases: it only shrinks scales that BatchNorm undoes
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    free = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=True)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    raise ValueError(f"unknown optimizer {settings.optimizer!r}, expected adamw or sgd")


def _rate(step: int, total: int, warmup: int, schedule: str) -> float:
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "linear":
        return max(0.0, 1 - progress)
    return 1.0
