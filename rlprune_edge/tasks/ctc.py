"""Connectionist temporal classification: vocabulary, greedy decoding, the loss of an answer that knows nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GRID_EXAMPLES = 10
"""transcripts on which the share of blank in a constant answer is chosen"""


@dataclass(frozen=True)
class Vocabulary:
    """The letters that a network writes, in the order of its outputs."""

    tokens: tuple[str, ...]
    blank: int
    """the number of the token that stands for no letter; transformers pads labels with it as well"""
    delimiter: str = "|"
    """the token between words"""
    unknown: int | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def spelled(self, text: str) -> str:
        """`text` as the network can write it: its case, its letters alone, one space between words."""
        letters = {t for t in self.tokens if len(t) == 1 and t != self.delimiter} - set(self.unwritten)
        if not any(letter.islower() for letter in letters):
            text = text.upper()
        elif not any(letter.isupper() for letter in letters):
            text = text.lower()
        return " ".join("".join(c if c in letters or c.isspace() else "" for c in text).split())

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text that is `spelled` already."""
        numbers = {token: number for number, token in enumerate(self.tokens)}
        return [numbers[self.delimiter if letter == " " else letter] for letter in text]

    @property
    def unwritten(self) -> list[str]:
        """Tokens that leave nothing in a text: blank, unknown and marks such as `<s>`."""
        marks = {self.blank, self.unknown}
        return [
            token
            for number, token in enumerate(self.tokens)
            if token != self.delimiter and (number in marks or _special(token))
        ]

    def greedy(self, logits: Tensor) -> str:
        """What [frames, tokens] say: the best token of every frame, repeats taken once, blanks left out."""
        best = torch.unique_consecutive(logits.argmax(dim=-1)).tolist()
        unwritten = set(self.unwritten)
        letters = [self.tokens[number] for number in best if self.tokens[number] not in unwritten]
        return " ".join("".join(" " if letter == self.delimiter else letter for letter in letters).split())


def _special(token: str) -> bool:
    return len(token) > 1 and token.startswith(("<", "[")) and token.endswith((">", "]"))


def made_vocabulary(texts: Sequence[str]) -> Vocabulary:
    """Blank, unknown, the delimiter, then all characters of the texts in upper case."""
    letters = sorted({letter for text in texts for letter in text.upper() if not letter.isspace()} - {"|"})
    return Vocabulary(("<pad>", "<unk>", "|", *letters), blank=0, unknown=1)


def loss(logits: Tensor, labels: Tensor, frames: Tensor, lengths: Tensor, *, blank: int) -> Tensor:
    """Mean over the recordings of the CTC loss per letter.

    `logits` [N, frames, tokens]; `labels` [N, longest], of which `lengths` [N] count, as `frames` [N] do of the frames.
    A recording too short for its transcript counts as nothing.
    """
    scores = F.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    each = F.ctc_loss(scores, labels, frames, lengths, blank=blank, reduction="none", zero_infinity=True)
    return (each / lengths.clamp_min(1)).mean()


def guessing_loss(labels: Sequence[Sequence[int]], frames: Sequence[int], *, tokens: int, blank: int) -> float:
    """The loss of the best answer that is the same in every frame of every recording: what a model knows at chance.

    Letters get their shares among all `labels`, and blank the share (of a coarse grid) that is best for the first few.
    """
    counts = torch.ones(tokens)  # no share is zero, or one rare letter would cost everything
    for label in labels:
        counts += torch.bincount(torch.tensor(label, dtype=torch.int64), minlength=tokens)
    counts[blank] = 0.0
    longest = max(len(label) for label in labels)
    padded = torch.tensor([[*label, *[blank] * (longest - len(label))] for label in labels])
    lengths, long = torch.tensor([len(label) for label in labels]), torch.tensor(frames)

    def constant(share: float, count: int) -> float:
        probabilities = (1 - share) * counts / counts.sum()
        probabilities[blank] = share
        logits = probabilities.log().expand(count, int(long[:count].max()), tokens)
        return float(loss(logits, padded[:count], long[:count], lengths[:count], blank=blank))

    # Each answer takes as long as a batch of training's loss does, and with long texts that is seconds.
    best = min(
        torch.linspace(0.05, 0.95, 19).tolist(), key=lambda share: constant(share, min(GRID_EXAMPLES, len(labels)))
    )
    return constant(best, len(labels))
