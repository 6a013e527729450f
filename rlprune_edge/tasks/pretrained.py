"""Networks of the transformers package behind the contract of a task (home of transformers)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rlprune_edge.inputs import Inputs


class Encoder(nn.Module):
    """One of transformers' networks with a head: takes `Inputs` by name, returns logits.

    [N, classes] for a classifier, [N, frames, vocabulary] for CTC.
    """

    def __init__(self, network: Any) -> None:
        """`network`: a transformers.PreTrainedModel with a head."""
        super().__init__()
        self.network = network

    def forward(self, x: Inputs) -> Tensor:
        logits: Tensor = self.network(**x.tensors).logits
        return logits
