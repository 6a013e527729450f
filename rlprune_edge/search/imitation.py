"""Show a policy good plans: raise the probability of every action that still leads to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from rlprune_edge.records import Plan
from rlprune_edge.search.arrays import Bools, Ints
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.walk import Walk

LEARNING_RATE = 1e-3
BATCH = 256


@dataclass(frozen=True)
class Lesson:
    """States on the way to good plans: what was seen, what was possible, what led further."""

    seen: torch.Tensor
    """[states, observation]"""
    possible: Bools
    """[states, actions]"""
    wanted: torch.Tensor
    """bool [states, actions]"""


def lesson(env: PruningEnv, plans: list[Plan], rng: np.random.Generator, *, masked: bool = True) -> Lesson:
    """Walk to each plan in a random order of its cuts, and note the states on the way."""
    walk = env.walks(len(plans))
    levels, dropped = _goals(walk, plans)
    seen, possible, wanted = [], [], []
    running = np.ones(len(plans), dtype=np.bool_)
    for _ in range(env.horizon):
        masks, obs = walk.masks(), walk.observe()
        cuts = np.concatenate([walk.level < levels, dropped & ~walk.dropped], axis=1) & masks[:, :-1]
        # a budget ends the episode by itself; where there is none, the policy has to
        done: Bools = np.logical_not(np.any(cuts, axis=1))
        useful = np.concatenate([cuts, done[:, None]], axis=1)
        told = running & (~done | (not env.limits.hard))
        seen.append(obs[told])
        possible.append(masks[told] if masked else np.ones_like(masks[told]))
        wanted.append(useful[told])
        draws = np.argmax(rng.random(useful.shape) * useful, axis=1)
        running &= ~done & ~walk.take(draws)
        if not running.any():
            break
    return Lesson(
        torch.as_tensor(np.concatenate(seen)), np.concatenate(possible), torch.as_tensor(np.concatenate(wanted))
    )


def _goals(walk: Walk, plans: list[Plan]) -> tuple[Ints, Bools]:
    """Levels [plans, groups] and removals [plans, blocks] to come to; a removed block's groups need no cut."""
    rows = [walk.arrays.encode(plan) for plan in plans]
    widths, dropped = np.concatenate([w for w, _ in rows]), np.concatenate([d for _, d in rows])
    names = walk.arrays.space.groups
    levels = [[group.levels.index(int(n)) for group, n in zip(names, row, strict=True)] for row in widths]
    return np.array(levels, dtype=np.int64).reshape(len(plans), len(names)), dropped


def imitate(
    policy: MaskableActorCriticPolicy, taught: Lesson, *, steps: int, until: float, rng: np.random.Generator
) -> float:
    """At most `steps` steps of gradient descent on -log p(wanted); stops at a mean p of `until`. The mean p before.

    Any order of a plan's cuts leads to it, so what counts is the probability of all that lead further together.
    """
    if len(taught.seen) == 0:
        return 1.0
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    likely = 0.0
    policy.set_training_mode(True)
    for _ in range(steps):
        rows = rng.permutation(len(taught.seen))[:BATCH]
        distribution = policy.get_distribution(taught.seen[rows], action_masks=taught.possible[rows]).distribution
        logits = distribution.logits.masked_fill(~taught.wanted[rows], -torch.inf)  # type: ignore[union-attr]
        log_p = torch.logsumexp(logits, dim=1)
        likely = float(log_p.detach().exp().mean())
        if likely >= until:
            break
        optimizer.zero_grad(set_to_none=True)
        (-log_p.mean()).backward()
        optimizer.step()
    return likely
