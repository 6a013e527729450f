"""Networks trained here: once, seeded, and kept in a cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import weights
from rlprune_edge.tasks.task import Progress, Task

log = logging.getLogger(__name__)

# Part of the cached files' names; raise it when a change below would train another network from the same recipe.
CODE_VERSION = 1


@dataclass(frozen=True)
class Training:
    """How a network is trained from nothing."""

    epochs: int
    batch_size: int
    learning_rate: float
    """the highest of the schedule"""
    weight_decay: float
    momentum: float = 0.9
    schedule: Literal["cosine", "onecycle"] = "cosine"
    seed: int = 0


def train_once(
    build: Callable[[], nn.Module],
    task: Task,
    training: Training,
    *,
    name: str,
    data: str,
    cache_dir: Path,
    progress: Progress | None = None,
) -> nn.Module:
    """The network that `build` makes, trained on the task's `train` split, or taken from the cache if it was before.

    `name` names the architecture and `data` is a hash of the training data: together with the recipe they name the
    cache file, so all that changes the result must show in one of them. A damaged cache file is replaced. The seed is
    the recipe's, and the caller's random state is left as it was. Raises UserError if the training diverges or the
    cache cannot be written.
    """
    facts = {"code": CODE_VERSION, "task": task.name, "network": name, "data": data, **dataclasses.asdict(training)}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir / "models" / f"{task.name}-{name}-{key}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        module = build()
        if path.exists():
            try:
                weights.load(module, path, name=name)
                return module.eval()
            except UserError as error:
                log.warning("training again: %s", error)
        started = time.perf_counter()
        _train(module, task, training, progress)
    about = {"training": json.dumps(facts, sort_keys=True), "seconds": f"{time.perf_counter() - started:.1f}"}
    weights.save(module, path, about=about)
    return module.eval()


def _train(module: nn.Module, task: Task, how: Training, progress: Progress | None) -> None:
    # SGD with Nesterov momentum: on the digits as good as AdamW after as many epochs.
    optimizer = torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad],
        lr=how.learning_rate,
        momentum=how.momentum,
        nesterov=how.momentum > 0,
        weight_decay=how.weight_decay,
    )
    steps = how.epochs * math.ceil(task.size("train") / how.batch_size)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if how.schedule == "onecycle":
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.learning_rate, total_steps=steps)
    else:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    module.train()
    for epoch in range(how.epochs):
        total, seen = 0.0, 0
        for x, y in task.batches("train", how.batch_size, augment=True, seed=how.seed + epoch):
            optimizer.zero_grad(set_to_none=True)
            loss = task.loss(module(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(y)
            seen += len(y)
        if not math.isfinite(total):
            raise UserError(
                f"Training the baseline of {task.name} diverged in epoch {epoch + 1} (the loss is not finite); "
                f"a learning rate below {how.learning_rate:g} may help."
            )
        if progress is not None:
            progress(epoch + 1, how.epochs, total / seen)
