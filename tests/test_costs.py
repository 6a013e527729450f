"""What a training example costs, from which follows how many of them rank and refit a transformer."""

from __future__ import annotations

import pytest
from samples import a_space

from rlprune_edge.parents import _macs_of_one
from rlprune_edge.tasks import pretrained
from rlprune_edge.tasks.toy_text import ToyTextTask, vocabulary


def test_an_example_costs_by_its_own_length_and_not_by_the_one_that_is_timed() -> None:
    words = vocabulary()
    config = pretrained.tiny_bert(vocab_size=len(words) + len(pretrained.SPECIAL), max_position_embeddings=64)
    costs = {}
    for timed in (4, 16):
        task = ToyTextTask(sequence_length=timed)
        task.use(pretrained.word_tokenizer(words, config), config)
        space = a_space()
        costs[timed] = _macs_of_one(space.macs(space.uncut()), task.example_input(), task, seed=0) / space.macs(
            space.uncut()
        )
    assert costs[4] > 1, "texts of more than 4 tokens"
    assert costs[4] == pytest.approx(4 * costs[16], rel=0.01)
