"""Tiny networks of every family of transformers that can be cut, with random weights, and inputs for them."""

from __future__ import annotations

import random
from typing import Any

import torch

from rlprune_edge.inputs import Inputs
from rlprune_edge.prune import space as spaces
from rlprune_edge.prune import structure
from rlprune_edge.prune.graph import CoupledGroup
from rlprune_edge.records import Plan, PruningSpace
from rlprune_edge.tasks.pretrained import Encoder  # first: it makes transformers importable

import transformers  # isort: skip

TEXT = ("bert", "roberta", "electra", "distilbert")
SPEECH = ("wav2vec2", "wav2vec2-norm-first", "hubert", "hubert-plain-projection")
FAMILIES = (*TEXT, *SPEECH)

_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
_AUDIO = {
    "vocab_size": 12,
    "conv_dim": (16, 24, 20),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def _configuration(family: str) -> tuple[str, Any]:
    t = transformers
    if family == "distilbert":
        config = t.DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=64, vocab_size=100)
        return "DistilBertForSequenceClassification", config
    if family in TEXT:
        more = {"roberta": {"max_position_embeddings": 64}, "electra": {"embedding_size": 16}}.get(family, {})
        name = {"bert": "Bert", "roberta": "Roberta", "electra": "Electra"}[family]
        return f"{name}ForSequenceClassification", getattr(t, f"{name}Config")(**_SIZES, vocab_size=100, **more)
    if family == "wav2vec2-norm-first":
        config = t.Wav2Vec2Config(**_SIZES, **_AUDIO, do_stable_layer_norm=True, feat_extract_norm="layer")
        return "Wav2Vec2ForCTC", config
    if family == "wav2vec2":
        return "Wav2Vec2ForCTC", t.Wav2Vec2Config(**_SIZES, **_AUDIO)
    return "HubertForCTC", t.HubertConfig(**_SIZES, **_AUDIO, feat_proj_layer_norm=family == "hubert")


def encoder(family: str, seed: int = 0) -> Encoder:
    """With weights larger than at birth, so that a cut changes the outputs visibly."""
    kind, config = _configuration(family)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = getattr(transformers, kind)._from_config(config, attn_implementation="eager")
        for name, weight in network.named_parameters():
            if weight.dim() > 1 and "embed" not in name and "conv" not in name:
                torch.nn.init.normal_(weight, std=0.3)
            elif weight.dim() == 1:  # also of norms: as long as all are 1, nobody sees them in another order
                weight.data += 0.3 * torch.randn_like(weight)
    return Encoder(network).eval()


def inputs(family: str, count: int = 2) -> Inputs:
    """Two or more real lengths in one batch, padded, with a mask where the family takes one."""
    generator = torch.Generator().manual_seed(1)
    if family in TEXT:
        ids = torch.randint(5, 90, (count, 16), generator=generator)
        mask = (torch.arange(16)[None] < torch.tensor([16, 11])[torch.arange(count) % 2][:, None]).long()
        made = {"input_ids": ids, "attention_mask": mask}
        return Inputs(made | ({"token_type_ids": 0 * ids} if family in ("bert", "electra") else {}))
    made = {"input_values": torch.randn((count, 4000), generator=generator)}
    if family == "wav2vec2-norm-first":
        lengths = torch.tensor([4000, 3000])[torch.arange(count) % 2]
        made["attention_mask"] = (torch.arange(4000)[None] < lengths[:, None]).long()
    return Inputs(made)


def parts(model: Encoder, x: Inputs) -> tuple[tuple[CoupledGroup, ...], PruningSpace]:
    groups, _ = structure.find_groups(model, x[:1])
    return groups, spaces.build(model, x[:1], groups)


def random_plan(space: PruningSpace, seed: int, *, drop: float = 0.25) -> Plan:
    rng = random.Random(seed)
    widths = {g.name: rng.randint(1, g.width) for g in space.groups}
    return space.plan(widths, tuple(b.name for b in space.blocks if rng.random() < drop))
