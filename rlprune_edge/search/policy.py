"""PPO's network: the usual one, on top of the prior of single cuts."""

from __future__ import annotations

import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from rlprune_edge.search.sensitivity import FLOOR


class PriorPolicy(MaskableActorCriticPolicy):
    """The usual network, its logits added to the prior's, which stand at the end of the observation.

    The action layer starts at almost zero, so that an untrained policy acts by the prior, and learns where it is wrong.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        actions = int(self.action_space.n)  # type: ignore[attr-defined]
        hidden = self.action_net
        assert isinstance(hidden, nn.Linear)
        self.mlp_extractor = _KeepPrior(self.mlp_extractor, actions)  # type: ignore[assignment]  # quacks like it
        self.action_net = _AddPrior(hidden, actions)
        options = {"lr": lr_schedule(1), **self.optimizer_kwargs}  # the base class of all optimizers names none
        self.optimizer = self.optimizer_class(self.parameters(), **options)


class _KeepPrior(nn.Module):
    """Hands the prior on, behind the hidden layer's output."""

    def __init__(self, inner: nn.Module, actions: int) -> None:
        super().__init__()
        self.inner, self.actions = inner, actions

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
        prior = (features[:, -self.actions :] - 1.0) * FLOOR
        return torch.cat([self.inner.forward_actor(features), prior], dim=1)  # type: ignore[operator]

    def forward_critic(self, features: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.inner.forward_critic(features)  # type: ignore[operator]
        return value


class _AddPrior(nn.Module):
    def __init__(self, learned: nn.Linear, actions: int) -> None:
        super().__init__()
        self.learned, self.actions = learned, actions

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.learned(latent[:, : -self.actions]) + latent[:, -self.actions :]
        return logits
