"""Alphabets, greedy decoding and the loss of an answer that knows nothing."""

from __future__ import annotations

import pytest
import torch

from rlprune_edge.tasks import ctc

ALPHABET = ctc.made_vocabulary(["Hello big World", "don't"])


def frames(text: str) -> torch.Tensor:
    """Logits that say `text`, one frame a token: `.` is blank, `?` unknown."""
    numbers = {".": ALPHABET.blank, "?": ALPHABET.unknown, " ": ALPHABET.tokens.index("|")}
    return torch.nn.functional.one_hot(
        torch.tensor([numbers.get(c, ALPHABET.tokens.index(c) if c in ALPHABET.tokens else 0) for c in text]),
        len(ALPHABET),
    ).float()


def test_an_alphabet_has_blank_first_and_every_letter_once() -> None:
    assert ALPHABET.tokens[:3] == ("<pad>", "<unk>", "|")
    assert ALPHABET.tokens[3:] == tuple(sorted(set("HELLOBIGWORLDDON'T")))
    assert (ALPHABET.blank, ALPHABET.unknown) == (0, 1)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [("hello  world", "HELLO WORLD"), ("Hello, World!", "HELLO WORLD"), ("don't", "DON'T"), ("xyz", ""), (" \t ", "")],
)
def test_texts_are_spelled_as_the_network_can(text: str, spelled: str) -> None:
    assert ALPHABET.spelled(text) == spelled
    assert ALPHABET.encode(spelled) == [ALPHABET.tokens.index("|" if c == " " else c) for c in spelled]


def test_a_lower_case_alphabet_spells_in_lower_case() -> None:
    assert ctc.Vocabulary(("<pad>", "|", "a", "b"), blank=0).spelled("AB  ba") == "ab ba"


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("HHEEL.LO", "HELLO"),
        ("HELLO", "HELO"),  # repeats without a blank between them are one letter
        (" B I G  ", "B I G"),
        ("B?IG", "BIG"),
        ("....", ""),
        ("B  I", "B I"),
        ("B . I", "B I"),
    ],
)
def test_greedy_decoding(said: str, heard: str) -> None:
    assert ALPHABET.greedy(frames(said)) == heard


def test_marks_leave_nothing_and_letters_of_two_signs_are_letters() -> None:
    alphabet = ctc.Vocabulary(("<pad>", "<s>", "?", "[SP]", "a", "ch"), blank=0, delimiter="[SP]", unknown=2)
    assert alphabet.unwritten == ["<pad>", "<s>", "?"]
    assert alphabet.greedy(torch.eye(6)[[1, 5, 0, 4, 3, 2, 4]]) == "cha a"
    assert alphabet.spelled("a? A") == "a a"


def test_a_constant_answer_at_the_best_share_has_the_guessing_loss() -> None:
    labels, long = [[2, 3, 2], [4, 2, 3]], [18, 18]
    counts = torch.ones(6)
    for label in labels:
        counts += torch.bincount(torch.tensor(label), minlength=6)
    counts[0] = 0.0

    def constant(share: float) -> float:
        probabilities = (1 - share) * counts / counts.sum()
        probabilities[0] = share
        logits = (probabilities.log() + 7.0).expand(2, 18, 6)  # the loss normalises them
        return float(ctc.loss(logits, torch.tensor(labels), torch.tensor(long), torch.tensor([3, 3]), blank=0))

    best = min(constant(0.05 * i) for i in range(1, 20))
    assert ctc.guessing_loss(labels, long, tokens=6, blank=0) == pytest.approx(best, rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_of_its_recordings() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 20, 8), torch.tensor([[1, 2, 3], [4, 5, 0]])
    lengths, long = torch.tensor([3, 2]), torch.tensor([20, 11])
    both = ctc.loss(logits, labels, long, lengths, blank=0)
    alone = [ctc.loss(logits[i : i + 1, : long[i]], labels[i : i + 1], long[i : i + 1], lengths[i : i + 1], blank=0)
             for i in range(2)]  # fmt: skip
    assert float(both) == pytest.approx(float(sum(alone)) / 2, rel=1e-5)
    changed = logits.clone()
    changed[1, 11:] += 100 * torch.randn(9, 8)  # padding
    assert torch.equal(ctc.loss(changed, labels, long, lengths, blank=0), both)


def test_no_constant_answer_is_better_than_the_guessing_loss() -> None:
    labels, long = [[2, 3, 2], [4, 2]], [18, 12]
    guess = ctc.guessing_loss(labels, long, tokens=6, blank=0)
    padded = torch.tensor([[2, 3, 2], [4, 2, 0]])
    torch.manual_seed(0)
    for _ in range(50):
        constant = torch.randn(6).expand(2, 18, 6)
        assert float(ctc.loss(constant, padded, torch.tensor(long), torch.tensor([3, 2]), blank=0)) > 0.9 * guess
    assert 0 < guess < 10


def test_a_recording_too_short_for_its_words_does_not_spoil_the_loss() -> None:
    loss = ctc.loss(torch.randn(1, 2, 6), torch.tensor([[1, 2, 3]]), torch.tensor([2]), torch.tensor([3]), blank=0)
    assert float(loss) == 0.0
