"""The task toy-speech: GENERATED sounds that spell words, and a tiny Wav2Vec2 that learns them here in under a minute.

For first tries and tests without a network. Its figures say how the product works, nothing about speech.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import pretrained, pretrained_ctc
from rlprune_edge.tasks.audio import Recordings
from rlprune_edge.tasks.ctc import made_vocabulary
from rlprune_edge.tasks.pretrained_ctc import Preparation
from rlprune_edge.tasks.speech import SpeechTask
from rlprune_edge.tasks.task import LoadedModel, Progress
from rlprune_edge.tasks.trainer import BaselineRecipe, own_network

SIZES = {"train": 800, "search": 100, "validation": 100, "test": 150}
SEED = 0
RATE = 4000
LETTERS = "ABCDEFGHI"
# Each letter is a low and a high tone at once, as of a telephone's keys.
LOW, HIGH = (310.0, 430.0, 590.0), (800.0, 1080.0, 1450.0)
AUDIO_SECONDS = 2.0

TRAINING = BaselineRecipe(epochs=10, learning_rate=2e-3, batch_size=16, warmup_steps=100, dropout=None)


def spoken(text: str, rng: np.random.Generator) -> np.ndarray:
    """The sound of a text, float32 [samples]: pitch, tempo and loudness vary, letters are apart, noise is in it."""
    pitch, tempo = rng.uniform(0.96, 1.04), rng.uniform(0.85, 1.15)
    parts = [np.zeros(int(rng.uniform(0.02, 0.08) * RATE))]
    for letter in text:
        if letter == " ":
            parts.append(np.zeros(int(0.16 * tempo * RATE)))
            continue
        number = LETTERS.index(letter)
        at = np.arange(int(rng.uniform(0.07, 0.10) * tempo * RATE)) / RATE
        tones = [np.sin(2 * np.pi * pitch * f * at + rng.uniform(0, 6)) for f in (LOW[number % 3], HIGH[number // 3])]
        edge = np.minimum(1.0, np.minimum(at, at[::-1]) / 0.008)
        parts += [rng.uniform(0.6, 1.0) * edge * sum(tones), np.zeros(int(rng.uniform(0.025, 0.05) * tempo * RATE))]
    whole = np.concatenate([*parts, np.zeros(int(0.05 * RATE))])
    return np.asarray(whole + rng.uniform(0.02, 0.25) * rng.standard_normal(len(whole)), dtype=np.float32)


class ToySpeechTask(SpeechTask):
    """Generated sounds: which letters, which words?"""

    name = "toy-speech"
    model_names = ("tiny-wav2vec2",)
    notes = (
        "toy-speech is generated from tones: its figures show that the product works, and nothing else",
        f"{SIZES['train']} generated recordings train, {SIZES['search']} steer the search, {SIZES['validation']} "
        f"choose between finalists, {SIZES['test']} are the test",
    )

    def __init__(self, audio_seconds: float | None = None, recipe_changes: Mapping[str, Any] | None = None) -> None:
        """`recipe_changes`: fields of the baseline's recipe."""
        super().__init__(audio_seconds=AUDIO_SECONDS if audio_seconds is None else audio_seconds)
        self.training = TRAINING.with_changes(recipe_changes or {})
        rng = np.random.default_rng(SEED)
        made: dict[str, None] = {}  # no text twice, so that none is in two splits
        while len(made) < sum(SIZES.values()):
            words = ("".join(rng.choice(list(LETTERS), rng.integers(2, 5))) for _ in range(rng.integers(1, 4)))
            made[" ".join(words)] = None
        texts = list(made)
        self._texts: dict[str, list[str]] = {}
        for split, count in SIZES.items():
            self._texts[split], texts = texts[:count], texts[count:]

    def recordings(self, split: str, rate: int) -> Recordings:
        assert rate == RATE
        rng = np.random.default_rng([SEED, list(SIZES).index(split)])
        return Recordings([spoken(text, rng) for text in self._texts[split]], self._texts[split])

    def transcripts(self, split: str) -> Sequence[str]:
        return self._texts[split]

    def model(
        self, name: str | None, *, weights: Path | None, cache_dir: Path, progress: Progress | None = None
    ) -> LoadedModel:
        name = name or self.model_names[0]
        if name not in self.model_names:
            raise UserError(f"Task toy-speech has no model {name!r}; it has {', '.join(self.model_names)}.")
        alphabet = made_vocabulary(self.transcripts("train"))
        # A group norm after the first convolution, as in Wav2Vec2's base model; but norms before the sub-layers, with
        # which it learns from random weights in a minute.
        config = pretrained_ctc.small(
            vocab_size=len(alphabet),
            pad_token_id=alphabet.blank,
            layerdrop=0.0,
            mask_time_prob=0.0,
            hidden_size=96,
            num_hidden_layers=3,
            intermediate_size=384,
            conv_dim=(48, 48, 64),
            conv_kernel=(10, 4, 4),
            conv_stride=(5, 4, 4),
            feat_extract_norm="group",
            conv_bias=False,
        )
        self.use(config, alphabet, Preparation(rate=RATE))
        description = "a tiny Wav2Vec2 for generated sounds, 3 layers, hidden 96, 4 heads"
        return own_network(
            lambda: pretrained.untrained(config, "ctc"),
            self,
            self.training,
            name=name,
            description=description,
            weights_file=weights,
            fingerprint=self.fingerprint,
            cache_dir=cache_dir,
            progress=progress,
        )
