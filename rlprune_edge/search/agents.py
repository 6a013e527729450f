"""The searchers by the names a user types; each is loaded when it is used, so that naming them needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlprune_edge.errors import UserError
from rlprune_edge.search.parts import Parts

if TYPE_CHECKING:
    from rlprune_edge.records import Target
    from rlprune_edge.search.end import SearchEnd
    from rlprune_edge.search.env import PruningEnv
    from rlprune_edge.search.tally import OnTrial


@dataclass(frozen=True)
class Agent:
    """Where a searcher is, and what it wants to be told."""

    module: str
    function: str
    what: str
    """in a line, for a list of them"""
    takes: tuple[str, ...] = ("seed",)
    probes: bool = False
    """asks for what single cuts cost (`sensitivity`)"""


_PPO = ("seed", "budget", "parts", "settings", "policy", "warm_start", "log")
AGENTS: dict[str, Agent] = {
    "ppo": Agent("ppo", "search_with_ppo", "PPO with prior, knapsack plans and surrogates", _PPO, probes=True),
    "ppo-cold": Agent("ppo", "search_with_cold_ppo", "PPO alone, every episode evaluated", ("seed", "policy", "log")),
    "dqn": Agent("dqn", "search_with_dqn", "deep Q-learning, every episode evaluated", ("seed", "budget")),
    "knapsack": Agent("field_knapsack", "search_with_knapsack", "latency knapsack (SPDY, HALP)", probes=True),
    "greedy": Agent("field_greedy", "search_with_greedy", "step by step (NetAdapt)", ("seed", "budget")),
    "evolution": Agent("field_optuna", "search_with_evolution", "NSGA-II (Optuna)", ("seed", "budget")),
    "tpe": Agent("field_optuna", "search_with_tpe", "tree-structured Parzen estimator (Optuna)"),
    "gp": Agent("field_gp", "search_with_gp", "Gaussian process with local search"),
    "random": Agent("baselines", "search_with_random", "random plans that fill the budget"),
    "random-policy": Agent("baselines", "search_with_random_policy", "random actions in PPO's episodes"),
    "uniform": Agent("baselines", "search_with_uniform", "the same share of every group", ()),
}


@dataclass(frozen=True)
class Entrant:
    """A searcher with what it is helped by."""

    agent: str
    prior: bool
    parts: Parts


def entrant(text: str) -> Entrant:
    """`ppo`, or `ppo:no-surrogate+neighbours` for PPO without one part that it has, and with one that it has not.

    Raises UserError for anything else.
    """
    agent, _, words = text.partition(":")
    if agent not in AGENTS:
        raise UserError(f"There is no agent called {agent!r}. Known are: {', '.join(AGENTS)}.")
    wanted = {word.removeprefix("no-"): not word.startswith("no-") for word in words.split("+") if word}
    parts = [field.name for field in fields(Parts)]
    for name in wanted:
        if agent != "ppo" or name not in ("prior", *parts):
            raise UserError(
                f"{text!r} is not understood: only ppo has parts, and they are prior, {', '.join(parts)}. "
                "Write for instance ppo:no-surrogate, or ppo:neighbours+masks."
            )
    prior = wanted.pop("prior", True)
    return Entrant(agent, prior, replace(Parts(), **wanted))


def informed(agent: str, *, prior: bool, target: Target) -> bool:
    """Whether an agent begins with what single cuts cost.

    PPO does where a budget ends its episodes: without one it has to stop by itself, of which they say nothing.
    """
    if not AGENTS[agent].probes:
        return False
    return agent != "ppo" or (prior and target.hard)


def search(agent: str, env: PruningEnv, *, on_trial: OnTrial | None = None, **options: Any) -> SearchEnd:
    """Run the searcher named `agent` until its budget is spent (`BudgetSpent` from `evaluate`) or nothing new comes.

    Of the `options` (`seed`, `budget` in candidates, ...) it is told those that it takes. Raises UserError for an
    unknown name; `DeviceError` and `KeyboardInterrupt` out of `evaluate` pass through.
    """
    if agent not in AGENTS:
        raise UserError(f"There is no agent called {agent!r}. Known are: {', '.join(AGENTS)}.")
    found = AGENTS[agent]
    function: Callable[..., SearchEnd] = getattr(import_module(f"rlprune_edge.search.{found.module}"), found.function)
    return function(env, on_trial=on_trial, **{k: v for k, v in options.items() if k in found.takes})
