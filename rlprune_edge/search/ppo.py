"""PPO with invalid actions masked, as the search's agent.

What surprised us in sb3-contrib 2.9.2: its `train` normalises the advantages of every minibatch, and one of a single
step becomes NaN (stable-baselines3 guards against that, the masked version does not): no rollout leaves a small rest.
It draws minibatches from numpy's global generator and actions from torch's.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from rlprune_edge.errors import BudgetSpent
from rlprune_edge.records import Plan, Trial
from rlprune_edge.search import rounds
from rlprune_edge.search.end import SearchEnd
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.imagination import Imagination
from rlprune_edge.search.parts import Parts
from rlprune_edge.search.policy import PriorPolicy
from rlprune_edge.search.process_state import own_process_state
from rlprune_edge.search.tally import OnTrial, Tally
from rlprune_edge.search.warm_start import WarmStart

PAST = 512
"""episodes whose rewards say what an ordinary one is"""


@dataclass(frozen=True)
class PpoSettings:
    """Hyperparameters; the defaults of the first four are prescribed."""

    learning_rate: float = 3e-4
    gamma: float = 0.99
    clip_range: float = 0.2
    entropy: float = 0.01
    gae_lambda: float = 1.0
    """1: the reward comes once, at the end, so every step is credited with all of it"""
    hidden: tuple[int, ...] = (64, 64)
    episodes_per_update: int = 8
    batch_size: int = 64
    epochs: int = 10
    normalise_reward: bool = True


LITERAL = Parts(demonstrations=False, surrogate=False)
"""every episode is evaluated for real and nothing else teaches the policy"""


def search_with_ppo(
    env: PruningEnv,
    *,
    seed: int,
    budget: int | None = None,
    parts: Parts | None = None,
    settings: PpoSettings | None = None,
    policy: Path | None = None,
    log: Path | None = None,
    warm_start: WarmStart | None = None,
    on_trial: OnTrial | None = None,
) -> SearchEnd:
    """Let PPO propose plans until the budget is spent or hardly a proposal is new; `on_trial` hears each distinct one.

    With the surrogate among its `parts` in rounds of imagination (see `rounds`), else every episode is evaluated. The
    policy is saved to `policy` at the end, however it comes; `warm_start` begins with another search's. Every update is
    logged in the folder `log`, see `training_log`.

    The same seed and the same answers of `evaluate` give the same plans in the same order. The policy runs on one torch
    thread and on its own random numbers; inside `evaluate`, and afterwards, the caller's threads and generators are
    back. Whatever else `evaluate` raises (`DeviceError`, `KeyboardInterrupt`) passes through.
    """
    settings, parts = settings or PpoSettings(), parts or Parts()
    callers, callers_all = env.evaluate, env.evaluate_all
    tally = Tally(env, on_trial)
    with own_process_state() as put_back:

        def evaluate(plan: Plan) -> Trial:
            with put_back():
                return callers(plan)

        def evaluate_all(plans: Iterable[Plan]) -> Iterator[Trial]:
            coming = callers_all(plans)
            while True:
                with put_back():
                    trial = next(coming, None)
                if trial is None:
                    return
                yield trial

        dream = Imagination(env, count=rounds.WALKS, masked=parts.masks)
        scores, told = _StandardScores(settings.normalise_reward), _Told(settings.normalise_reward, tally)
        if parts.surrogate:
            episodes, epochs = rounds.EPISODES_PER_UPDATE, rounds.EPOCHS
            agent = _agent(dream, env, seed, settings, episodes=episodes, epochs=epochs)
        else:
            real, episodes = DummyVecEnv([lambda: env]), settings.episodes_per_update
            agent = _agent(real, env, seed, settings, episodes=episodes, epochs=settings.epochs)
        if log is not None:
            scores.logged = told.logged = training_log(agent, env, log)
        env.evaluate, env.evaluate_all = evaluate, evaluate_all
        try:
            if parts.surrogate:
                rounds.search(
                    env,
                    dream,
                    agent,
                    tally,
                    practise=lambda steps: _learn(agent, steps, scores),
                    parts=parts,
                    budget=budget,
                    seed=seed,
                    warm_start=warm_start,
                )
            else:
                rounds.introduce(env, agent, tally, parts=parts, seed=seed, warm_start=warm_start)
                _learn(agent, sys.maxsize, told)
            return tally.end("repeats")
        except BudgetSpent:
            return tally.end("budget")
        finally:
            env.evaluate, env.evaluate_all = callers, callers_all
            if policy is not None:
                agent.save(policy)
            if log is not None:
                agent.logger.close()


def search_with_cold_ppo(
    env: PruningEnv, *, seed: int, policy: Path | None = None, log: Path | None = None, on_trial: OnTrial | None = None
) -> SearchEnd:
    """PPO as in `search_with_ppo`, with nothing but its own real episodes to learn from."""
    return search_with_ppo(env, seed=seed, parts=LITERAL, policy=policy, log=log, on_trial=on_trial)


def _agent(
    envs: VecEnv, env: PruningEnv, seed: int, settings: PpoSettings, *, episodes: int, epochs: int
) -> MaskablePPO:
    """An agent whose rollouts hold about so many episodes."""
    wanted = episodes * env.mean_episode / envs.num_envs
    # Whole minibatches, or a rest of at least half of one: see the module's docstring.
    half = max(2, settings.batch_size // 2)
    n_steps = half * max(2, round(wanted / half + 0.5)) if envs.num_envs == 1 else max(4, round(wanted))
    return MaskablePPO(
        PriorPolicy if env.prior is not None else "MlpPolicy",
        envs,
        learning_rate=settings.learning_rate,
        n_steps=n_steps,
        batch_size=settings.batch_size if envs.num_envs == 1 else envs.num_envs * n_steps // 8,
        n_epochs=epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        ent_coef=settings.entropy,
        policy_kwargs={"net_arch": list(settings.hidden)},
        seed=seed,
        device="cpu",  # 64 x 64: a transfer to a GPU costs more than the network
    )


def training_log(agent: MaskablePPO, env: PruningEnv, folder: Path) -> Callable[[Sequence[float]], None]:
    """Log every update of an agent in a folder, as TensorBoard reads it and as JSON lines (`progress.json`).

    Beside what stable-baselines3 says of an update (`train/entropy_loss`, `train/approx_kl`, ...): the mean reward of
    the episodes of late, imagined ones where it imagines, how many candidates were evaluated, and the best that meets
    the target. Returns what is to be called after each update.
    """
    agent.set_logger(configure(str(folder), ["tensorboard", "json"]))

    def logged(rewards: Sequence[float]) -> None:
        if "train/loss" not in agent.logger.name_to_value:
            return  # nothing was learned yet
        met = [t.score.reward for t in env.trials.values() if t.score.feasible]
        agent.logger.record("search/evaluated", len(env.trials))
        agent.logger.record("search/mean_reward", float(np.mean(rewards)) if rewards else float("nan"))
        if met:
            agent.logger.record("search/best_reward", max(met))
        agent.logger.dump(agent.num_timesteps)

    return logged


def _learn(agent: MaskablePPO, steps: int, callback: BaseCallback) -> None:
    agent.learn(steps, callback=callback, log_interval=sys.maxsize, reset_num_timesteps=agent.num_timesteps == 0)


class _StandardScores(BaseCallback):
    """Normalises the rewards of a rollout."""

    def __init__(self, normalise: bool) -> None:
        super().__init__()
        self._normalise = normalise
        self._rewards: deque[float] = deque(maxlen=PAST)
        self.logged: Callable[[Sequence[float]], None] = lambda _: None
        """hears the rewards of late before each rollout, when the update before it is over"""

    def _on_rollout_start(self) -> None:
        self.logged(self._rewards)

    def _on_step(self) -> bool:
        self._rewards.extend(float(r) for r in self.locals["rewards"][self.locals["dones"]])
        return True

    def _on_rollout_end(self) -> None:
        """Rewards as standard scores among the episodes of late.

        Uncentred, a reward around 0.7 discounted by 0.99 per step differs more between the first and the last step of
        an episode than between a good plan and a bad one, and that is what the untrained critic lets through. Scores
        are cut at 3 so that one failed candidate does not drown the rest of a batch.
        """
        if not self._normalise or not self._rewards:
            return
        model = cast(MaskablePPO, self.model)
        buffer, starts, last_obs = model.rollout_buffer, model._last_episode_starts, model._last_obs
        assert starts is not None
        assert isinstance(last_obs, np.ndarray)
        past = np.array(self._rewards)
        middle = float(np.median(past))
        # Median and absolute deviation: failures and missed budgets are outliers, and common in the first batch.
        spread = 1.4826 * float(np.median(np.abs(past - middle)))
        spread = spread if spread > 1e-9 else max(1e-9, float(past.std()))
        ends = np.concatenate([buffer.episode_starts[1:], starts[None]]).astype(bool)
        buffer.rewards[ends] = np.clip((buffer.rewards[ends] - middle) / spread, -3.0, 3.0)
        with torch.no_grad():
            values = model.policy.predict_values(torch.as_tensor(last_obs, device=model.device))
        buffer.compute_returns_and_advantage(last_values=values, dones=starts)


class _Told(_StandardScores):
    """Counts what real episodes come to as well, and ends the search once they only repeat each other."""

    def __init__(self, normalise: bool, tally: Tally) -> None:
        super().__init__(normalise)
        self._tally = tally

    def _on_step(self) -> bool:
        super()._on_step()
        info = self.locals["infos"][0]
        if "trial" in info:
            self._tally.count(info["trial"], new=info["new"])
        return not self._tally.stale
