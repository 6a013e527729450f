"""Speech networks of the transformers package: configurations, vocabularies, how raw audio is prepared for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import pretrained
from rlprune_edge.tasks.ctc import Vocabulary

import transformers  # isort: skip  # after pretrained.py has made it importable

RATE = 16_000
BUILT_IN = ("wav2vec2-base", "hubert-base", "wav2vec2-small")
"""networks that need no files: random weights, or trained from nothing"""


@dataclass(frozen=True)
class Preparation:
    """What is done to raw audio."""

    rate: int = RATE
    """samples per second"""
    normalise: bool = True
    """every recording to zero mean and unit variance"""


def built_in(name: str, tokens: int, blank: int) -> Any | None:
    """The configuration of a network that is known by name; `None` for any other name."""
    head = {"vocab_size": tokens, "pad_token_id": blank, "layerdrop": 0.0, "mask_time_prob": 0.0}
    if name == "wav2vec2-base":
        return transformers.Wav2Vec2Config(**head)
    if name == "hubert-base":
        return transformers.HubertConfig(**head)
    if name == "wav2vec2-small":
        return small(**head)
    return None


def small(**fields: Any) -> Any:
    """A Wav2Vec2 of about a million parameters for little data and no pretraining.

    Norms come first and follow every convolution, as in the large models: deep stacks learn from random weights so.
    """
    sizes = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "conv_dim": (64,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "attention_dropout": 0.05,
        "hidden_dropout": 0.05,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
    }
    return transformers.Wav2Vec2Config(**(sizes | fields))


def is_finished(config: Any) -> bool:
    """Whether the checkpoint of this configuration holds a CTC head."""
    return any("ForCTC" in name for name in config.architectures or ())


def with_head(config: Any, vocabulary: Vocabulary) -> Any:
    """The configuration for this vocabulary, without what belongs to pretraining and large data."""
    config.vocab_size, config.pad_token_id = len(vocabulary), vocabulary.blank
    config.layerdrop = 0.0
    config.apply_spec_augment = False  # it masks 10 frames at a time, more than a spoken word may have
    return config


def vocabulary(where: str, config: Any) -> Vocabulary:
    """The vocabulary of a folder or hub id. Raises UserError if there is none that fits the network."""
    with pretrained.fetched(where), pretrained.quiet():
        try:
            tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(pretrained.place(where))
        except TypeError as error:  # it opens `None` where there is no file
            raise OSError("it has no vocab.json, which names the letters that the network writes") from error
    written = {number: token for token, number in tokenizer.get_vocab().items() if number < config.vocab_size}
    if len(tokenizer.encoder) > config.vocab_size:  # of vocab.json; the tokenizer itself adds marks of its own
        raise UserError(
            f"The vocabulary of {where} has {len(tokenizer.encoder)} tokens, its network writes {config.vocab_size}: "
            "they are not of the same model. Put the vocab.json that the network was trained with into the folder."
        )
    tokens = tuple(written.get(number, f"<unused{number}>") for number in range(config.vocab_size))
    unknown = str(tokenizer.unk_token)
    return Vocabulary(
        tokens,
        int(config.pad_token_id),
        str(tokenizer.word_delimiter_token),
        tokens.index(unknown) if unknown in tokens else None,
    )


def preparation(where: str) -> Preparation:
    """How the network of a folder or hub id wants its audio; 16 kHz and normalised where it does not say."""
    try:
        with pretrained.quiet():
            extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(pretrained.place(where))
    except (OSError, ValueError):
        return Preparation()
    return Preparation(int(extractor.sampling_rate), bool(extractor.do_normalize))


def files(vocabulary: Vocabulary, prepared: Preparation, *, mask: bool) -> dict[str, bytes]:
    """What a speech network's own folder needs beside its weights."""
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    tokenizer = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "pad_token": vocabulary.tokens[vocabulary.blank],
        "unk_token": vocabulary.tokens[vocabulary.unknown if vocabulary.unknown is not None else vocabulary.blank],
        "bos_token": None,
        "eos_token": None,
        "word_delimiter_token": vocabulary.delimiter,
        "do_lower_case": False,
    }
    extractor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": prepared.rate,
        "padding_value": 0.0,
        "do_normalize": prepared.normalise,
        "return_attention_mask": mask,
    }
    named = (
        ("vocab.json", numbers),
        ("tokenizer_config.json", tokenizer),
        ("preprocessor_config.json", extractor),
    )
    return {name: json.dumps(content, indent=1, ensure_ascii=False).encode() for name, content in named}


def frames_of(config: Any, samples: int) -> int:
    """How many frames the network makes of so many samples; 0 where they are too few for its convolutions."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1 if samples >= kernel else 0
    return int(samples)


def shortest(config: Any) -> int:
    """The fewest samples that make a frame."""
    samples = 1
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        samples = (samples - 1) * stride + kernel
    return int(samples)


def wants_mask(config: Any) -> bool:
    """Whether padding is to be masked: networks with a group norm were trained on zeros instead."""
    return bool(config.feat_extract_norm == "layer")
