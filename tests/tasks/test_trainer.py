"""Baselines trained by transformers' Trainer: resumed where they stopped, and without a trace of it elsewhere."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import pretrained
from rlprune_edge.tasks.arrays import guessing_loss
from rlprune_edge.tasks.task import LoadedModel
from rlprune_edge.tasks.text import Examples, TextTask
from rlprune_edge.tasks.trainer import BaselineRecipe, train_baseline

import transformers  # isort: skip  # after pretrained.py has made it importable

WORDS = ["good", "bad", "film", "the", "was"]
RECIPE = BaselineRecipe(epochs=2, learning_rate=5e-3, batch_size=2, warmup_steps=2, dropout=None)
STEPS = 60
"""2 epochs of 60 texts in batches of 2"""


def config() -> Any:
    return pretrained.tiny_bert(
        vocab_size=len(WORDS) + len(pretrained.SPECIAL),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )


class Opinions(TextTask):
    """Does a text say `good`?"""

    name = "opinions"
    chance_loss = guessing_loss(2)

    def __init__(self) -> None:
        super().__init__(max_length=8, sequence_length=8, training=RECIPE)
        self.labels = ["bad", "good"]
        self.use(pretrained.word_tokenizer(WORDS, config()), config())

    def examples(self, split: str) -> Examples:
        rng = random.Random(split)
        labels = [i % 2 for i in range(60)]
        texts = [" ".join([*rng.choices(WORDS[2:], k=rng.randint(1, 4)), WORDS[1 - label]]) for label in labels]
        return texts, torch.tensor(labels)

    def model(self, *_: object, **__: object) -> LoadedModel:
        raise AssertionError("not asked for here")


def train(cache: Path, recipe: BaselineRecipe = RECIPE, progress: Any = None) -> pretrained.Encoder:
    encoder, _ = train_baseline(
        lambda: pretrained.untrained(pretrained.with_head(config(), ["bad", "good"]), "classifier"),
        Opinions(),
        recipe,
        name="tiny",
        data="1",
        cache_dir=cache,
        progress=progress,
    )
    return encoder


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_training_that_was_cut_short_goes_on_with_the_same_result(tmp_path: Path) -> None:
    told: list[int] = []

    def stopped(done: int, _of: int, _loss: float) -> None:
        told.append(done)
        if done == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, progress=stopped)
    (folder,) = (tmp_path / "models").glob("*.unfinished")
    assert [path.name for path in folder.iterdir()] == ["checkpoint-30"]
    assert told == [25, 50]
    (folder / "checkpoint-55").mkdir()  # half written: without the state that is written last
    again: list[int] = []
    resumed = train(tmp_path, progress=lambda done, *_: again.append(done))
    assert again == [50, STEPS], "the first epoch was not trained again"
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".safetensors"]
    assert same(resumed, train(tmp_path / "elsewhere"))


def test_it_learns_and_leaves_no_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    verbosity = transformers.logging.get_verbosity()
    losses: list[float] = []
    encoder = train(tmp_path, progress=lambda _done, _of, loss: losses.append(loss))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert transformers.logging.get_verbosity() == verbosity
    assert capfd.readouterr() == ("", "")
    assert losses[-1] < losses[0]
    assert Opinions().score(encoder, "test").metric == 100.0
    assert not encoder.training
    assert "forward" not in vars(encoder), "Trainer's wrapping is gone"


def test_a_damaged_cache_file_is_replaced(tmp_path: Path) -> None:
    first = train(tmp_path)
    (file,) = (tmp_path / "models").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    assert same(first, train(tmp_path))
    assert len(file.read_bytes()) == len(whole)


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"opinions diverged .*a learning rate below 1e\+30 may help"):
        train(tmp_path, BaselineRecipe(epochs=1, learning_rate=1e30, batch_size=2, warmup_steps=0, dropout=None))
    assert not list((tmp_path / "models").glob("*.safetensors"))


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(UserError, match="The training could not be kept in"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("learning_rate", math.inf), ("batch_size", 0), ("warmup_steps", -1), ("dropout", 1.0)],
)
def test_a_recipe_that_makes_no_sense_is_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--train-{field.replace('_', '-')} {value} makes no sense"):
        BaselineRecipe().with_changes({field: value})
