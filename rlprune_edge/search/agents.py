"""The searchers by the names a user types; each is loaded when it is used, so that naming them needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlprune_edge.errors import UserError

if TYPE_CHECKING:
    from rlprune_edge.records import Trial
    from rlprune_edge.search.end import SearchEnd
    from rlprune_edge.search.env import PruningEnv


def _ppo(env: PruningEnv, **options: Any) -> SearchEnd:
    from rlprune_edge.search.ppo import search_with_ppo

    return search_with_ppo(env, **options)


def _random(env: PruningEnv, **options: Any) -> SearchEnd:
    from rlprune_edge.search.baselines import search_with_random

    return search_with_random(env, **options)


def _uniform(env: PruningEnv, *, seed: int, **options: Any) -> SearchEnd:
    from rlprune_edge.search.baselines import search_with_uniform

    del seed  # it draws no random numbers
    return search_with_uniform(env, **options)


AGENTS: dict[str, Callable[..., SearchEnd]] = {"ppo": _ppo, "random": _random, "uniform": _uniform}


def search(
    agent: str,
    env: PruningEnv,
    *,
    seed: int,
    on_trial: Callable[[Trial], None] | None = None,
    **options: Any,
) -> SearchEnd:
    """Run the searcher named `agent` until its budget is spent (`BudgetSpent` from `evaluate`) or nothing new comes.

    `options` go to that searcher (`settings=PpoSettings(...)` for `ppo`). Raises UserError for an unknown name;
    `DeviceError` and `KeyboardInterrupt` out of `evaluate` pass through.
    """
    if agent not in AGENTS:
        raise UserError(f"There is no agent called {agent!r}. Known are: {', '.join(AGENTS)}.")
    return AGENTS[agent](env, seed=seed, on_trial=on_trial, **options)
