"""Deep Q-learning (Mnih et al. 2015) in PPO's place, to compare: every episode evaluated, no prior, no masks."""

from __future__ import annotations

import sys
from typing import Any

from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from rlprune_edge.errors import BudgetSpent
from rlprune_edge.records import Plan, Trial
from rlprune_edge.search.end import SearchEnd
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.process_state import own_process_state
from rlprune_edge.search.tally import OnTrial, Tally

EXPLORING = 0.5
"""share of the search in which random actions become rare"""
ASSUMED = 100
"""candidates, where no budget is known"""


def search_with_dqn(
    env: PruningEnv, *, seed: int, budget: int | None = None, on_trial: OnTrial | None = None
) -> SearchEnd:
    """Learn the worth of actions until the budget is spent or hardly a proposal is new.

    stable-baselines3's DQN cannot be told which actions are possible: one that is not costs it a step.
    """
    callers, tally = env.evaluate, Tally(env, on_trial)
    with own_process_state() as put_back:

        def evaluate(plan: Plan) -> Trial:
            with put_back():
                return callers(plan)

        env.evaluate = evaluate
        try:
            exploring = EXPLORING * (budget or ASSUMED) * env.mean_episode
            agent = DQN(
                "MlpPolicy",
                DummyVecEnv([lambda: env]),
                learning_starts=round(8 * env.mean_episode),
                buffer_size=50_000,
                target_update_interval=500,
                # of what `learn` is asked for, which is without an end
                exploration_fraction=exploring / sys.maxsize,
                seed=seed,
                device="cpu",
            )
            agent.learn(sys.maxsize, callback=_Told(tally), log_interval=sys.maxsize)
            return tally.end("repeats")
        except BudgetSpent:
            return tally.end("budget")
        finally:
            env.evaluate = callers


class _Told(BaseCallback):
    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def _on_step(self) -> bool:
        info: dict[str, Any] = self.locals["infos"][0]
        if "trial" in info:
            self._tally.count(info["trial"], new=info["new"])
        return not self._tally.stale
