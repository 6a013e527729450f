"""The task toy-text: reviews GENERATED from a small grammar, and a tiny BERT that learns them here in under a minute.

For first tries and tests without a network. Its figures say how the product works, nothing about language.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import pretrained
from rlprune_edge.tasks.arrays import guessing_loss
from rlprune_edge.tasks.task import LoadedModel, Progress
from rlprune_edge.tasks.text import Examples, TextTask
from rlprune_edge.tasks.trainer import BaselineRecipe, own_network

SIZES = {"train": 2400, "search": 300, "validation": 300, "test": 500}
SEED = 0
LENGTH = 64

GOOD = ("good", "great", "lovely", "clever", "moving", "brilliant", "funny", "warm")
BAD = ("bad", "awful", "dull", "silly", "boring", "weak", "cold", "clumsy")
THINGS = ("film", "plot", "acting", "music", "ending", "story", "cast", "script")
DEGREES = ("very", "rather", "really", "quite", "so")
PLAIN = (
    "it was shot in rome in spring",
    "the crew was young",
    "we saw it on a monday",
    "it runs for two hours",
    "the director lives in oslo",
    "there were few people in the room",
)
NOT, BUT = "not", "but"

# 98 % after 12 epochs (25 seconds on two free cores), 93 % after 9. A warm-up and a rate for random weights, unlike
# IMDB's for pretrained ones.
TRAINING = BaselineRecipe(epochs=12, learning_rate=5e-4, batch_size=32, warmup_steps=100, dropout=0.1)


def review(rng: random.Random) -> tuple[str, int]:
    """A text and whether it is positive: its opinion is that after `but`, if there is one, and `not` turns it round.

    Neither the words of praise nor their number decide, so that attention has something to do.
    """

    def opinion() -> tuple[str, int]:
        positive = rng.random() < 0.5
        turned = rng.random() < 0.4
        word = rng.choice(GOOD if positive else BAD)
        words = ["the", rng.choice(THINGS), "was", *([NOT] if turned else [])]
        words += [rng.choice(DEGREES)] if rng.random() < 0.4 else []
        return " ".join([*words, word]), int(positive != turned)

    said, label = opinion()
    if rng.random() < 0.5:
        second, label = opinion()
        said = f"{said} {BUT} {second}"
    around = [rng.choice(PLAIN) for _ in range(rng.randint(0, 3))]
    around.insert(rng.randint(0, len(around)), said)
    return " . ".join(around) + " .", label


def vocabulary() -> list[str]:
    """All words that a review can hold."""
    plain = {word for sentence in PLAIN for word in sentence.split()}
    return sorted({*GOOD, *BAD, *THINGS, *DEGREES, *plain, NOT, BUT, "the", "was", "."})


class ToyTextTask(TextTask):
    """Generated reviews: is the opinion that counts a good one?"""

    name = "toy-text"
    model_names = ("tiny-bert",)
    chance_loss = guessing_loss(2)
    notes = (
        "toy-text is generated from a small grammar: its figures show that the product works, and nothing else",
        f"{SIZES['train']} generated reviews train, {SIZES['search']} steer the search, {SIZES['validation']} choose "
        f"between finalists, {SIZES['test']} are the test",
    )

    def __init__(
        self,
        max_length: int | None = None,
        sequence_length: int | None = None,
        recipe_changes: Mapping[str, Any] | None = None,
    ) -> None:
        """`recipe_changes`: fields of the baseline's recipe."""
        longest = max_length or LENGTH
        super().__init__(
            max_length=longest,
            sequence_length=sequence_length or min(longest, LENGTH),
            training=TRAINING.with_changes(recipe_changes or {}),
        )
        self.labels = ["bad", "good"]
        rng = random.Random(SEED)
        made: dict[str, None] = {}  # no text twice, so that none is in two splits
        labels: dict[str, int] = {}
        while len(made) < sum(SIZES.values()):
            text, label = review(rng)
            made[text], labels[text] = None, label
        texts = list(made)
        self._examples: dict[str, Examples] = {}
        for split, count in SIZES.items():
            taken, texts = texts[:count], texts[count:]
            self._examples[split] = (taken, torch.tensor([labels[text] for text in taken]))

    def examples(self, split: str) -> Examples:
        return self._examples[split]

    def model(
        self, name: str | None, *, weights: Path | None, cache_dir: Path, progress: Progress | None = None
    ) -> LoadedModel:
        name = name or self.model_names[0]
        if name not in self.model_names:
            raise UserError(f"Task toy-text has no model {name!r}; it has {', '.join(self.model_names)}.")
        words = vocabulary()

        def config() -> Any:
            sizes = pretrained.tiny_bert(
                vocab_size=len(words) + len(pretrained.SPECIAL),
                hidden_size=128,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=512,
                max_position_embeddings=max(self.max_length, LENGTH),
            )
            return pretrained.with_head(sizes, self.labels or [], dropout=self.training.dropout)

        self.use(pretrained.word_tokenizer(words, config()), config())
        description = "a tiny BERT for generated text, 4 layers, hidden 128, 4 heads"
        return own_network(
            lambda: pretrained.untrained(config(), "classifier"),
            self,
            self.training,
            name=name,
            description=description,
            weights_file=weights,
            fingerprint=self.fingerprint,
            cache_dir=cache_dir,
            progress=progress,
        )
