"""The text tasks: splits, tokens, padding, lengths, figures, and the networks that read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import pretrained
from rlprune_edge.tasks.catalog import load_task
from rlprune_edge.tasks.model_name import split_name
from rlprune_edge.tasks.task import BENCHMARK, Task
from rlprune_edge.tasks.text import ImdbTask
from rlprune_edge.tasks.toy_text import ToyTextTask, review, vocabulary

import transformers  # isort: skip  # after pretrained.py has made it importable

WORDS = ["the", "film", "was", "good", "bad", "and", "long", "short", "but", "fine", "."]
MakeTexts = Callable[..., Path]


def written(folder: Path, splits: dict[str, tuple[list[str], list[int]]], column: str = "text") -> Path:
    folder.mkdir(parents=True)
    features = datasets.Features({column: datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    for split, (texts, labels) in splits.items():
        table = pa.table({column: texts, "label": labels})
        table = table.cast(features.arrow_schema).replace_schema_metadata(features.arrow_schema.metadata)
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def reviews(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    texts, labels = [], []
    for i in range(count):
        length = int(torch.randint(1, 14, (1,), generator=generator))
        words = [WORDS[int(n)] for n in torch.randint(0, len(WORDS), (length,), generator=generator)]
        texts.append(" ".join([*words, "good" if i % 2 else "bad"]))
        labels.append(i % 2)
    return texts, labels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "reviews", {"train": reviews(60), "test": reviews(20, seed=1)})


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of a tiny network, as save_pretrained does."""

    def make(kind: str = "bert", *, finished: bool = False, labels: int = 2, name: str = "tiny") -> Path:
        folder = tmp_path / name
        sizes = {"vocab_size": len(WORDS) + 5, "max_position_embeddings": 40}
        if kind == "distilbert":
            config: Any = transformers.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32, **sizes)
        else:
            config = transformers.AutoConfig.for_model(
                kind, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **sizes
            )
        config.num_labels = labels
        auto = transformers.AutoModelForSequenceClassification if finished else transformers.AutoModel
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(folder)
        made = pretrained.word_tokenizer(WORDS, config)
        (folder / "tokenizer.json").write_bytes(made.file(40))
        (folder / "tokenizer_config.json").write_bytes(made.settings())
        return folder

    return make


def task_of(data: Path, folder: Path, cache: Path, **options: Any) -> ImdbTask:
    options = {"max_length": 16, "sequence_length": 8, **options}
    task = ImdbTask(str(data), **options)
    task.model(f"{folder}:untrained", weights=None, cache_dir=cache)
    return task


def test_validation_is_carved_from_train_and_test_is_its_own(data: Path, network: Any, tmp_path: Path) -> None:
    task = task_of(data, network(), tmp_path)
    assert {split: task.size(split) for split in ("train", "search", "validation", "test")} == {
        "train": 48, "search": 6, "validation": 6, "test": 20,
    }  # fmt: skip
    assert "no validation split" in task.notes[0]
    assert "6 training texts steer the search" in task.notes[0]
    assert task.labels == ["neg", "pos"]


def test_batches_are_padded_to_their_own_longest_and_hold_every_text_once(
    data: Path, network: Any, tmp_path: Path
) -> None:
    task = task_of(data, network(), tmp_path)
    for seed in (None, 4):
        seen = 0
        for x, y in task.batches("train", 8, seed=seed):
            ids, mask = x.tensors["input_ids"], x.tensors["attention_mask"]
            assert set(x.tensors) == {"input_ids", "attention_mask", "token_type_ids"}
            assert ids.shape == mask.shape
            assert mask[:, 0].all(), "every text begins with [CLS]"
            assert mask.any(dim=0).all(), "no column is padding alone"
            assert (ids[mask == 0] == 0).all()
            assert len(x) == len(y) <= 8
            seen += len(y)
        assert seen == 48


def test_texts_of_similar_length_are_together_and_the_order_is_the_seeds(
    data: Path, network: Any, tmp_path: Path
) -> None:
    task = task_of(data, network(), tmp_path)

    def read(seed: int | None) -> list[torch.Tensor]:
        return [x.tensors["attention_mask"] for x, _ in task.batches("train", 8, seed=seed)]

    padding = sum(float((mask == 0).sum()) for mask in read(3)) / sum(mask.numel() for mask in read(3))
    assert padding < 0.1
    assert all(torch.equal(a, b) for a, b in zip(read(3), read(3), strict=True))
    assert [m.shape for m in read(3)] != [m.shape for m in read(4)]
    limited = [y for _, y in task.batches("train", 5, seed=3, limit=12)]
    assert sum(len(y) for y in limited) == 12


@pytest.mark.parametrize("length", [5, 8, 16])
def test_the_timed_text_has_exactly_the_length_that_was_asked_for(
    data: Path, network: Any, tmp_path: Path, length: int
) -> None:
    task = task_of(data, network(), tmp_path, sequence_length=length)
    x = task.example_input()
    assert x.tensors["input_ids"].shape == (1, length)
    assert x.tensors["attention_mask"].all()
    assert x.tensors["input_ids"][0, 0] == 2
    assert task.measured == f"{length} tokens"


def test_short_texts_are_joined_where_none_is_long_enough(tmp_path: Path, network: Any) -> None:
    short = written(tmp_path / "short", {"train": (["good", "bad"] * 20, [1, 0] * 20), "test": (["good"], [1])})
    task = task_of(short, network(), tmp_path, sequence_length=16)
    (row,) = task.example_input().tensors["input_ids"].tolist()
    assert (len(row), row[0], row[-1]) == (16, 2, 3)
    assert not {2, 3} & set(row[1:-1])


def test_long_texts_are_cut_and_the_figures_say_so(data: Path, network: Any, tmp_path: Path) -> None:
    task = task_of(data, network(), tmp_path, max_length=6, sequence_length=6)
    assert max(x.tensors["input_ids"].shape[1] for x, _ in task.batches("train", 1)) == 6
    assert task.limits == "texts cut to 6 tokens"


def test_impossible_lengths_are_refused(data: Path, network: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--sequence-length 20 is longer than any text will be: --max-length is 16"):
        task_of(data, network(), tmp_path, sequence_length=20)
    with pytest.raises(UserError, match="--max-length 64 is more than the 40 tokens"):
        task_of(data, network(), tmp_path, max_length=64)
    with pytest.raises(UserError, match="Task digits takes no --sequence-length"):
        load_task("digits", data=None, seed=0, cache_dir=tmp_path, sequence_length=8)
    with pytest.raises(UserError, match="Task digits takes no --train-epochs"):
        load_task("digits", data=None, seed=0, cache_dir=tmp_path, recipe_changes={"epochs": 3})


def test_accuracy_and_f1(data: Path, network: Any, tmp_path: Path) -> None:
    task = task_of(data, network(), tmp_path)
    guesses, truth = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1]), torch.tensor([1, 1, 0, 0, 0, 1, 0, 0])
    outputs = torch.nn.functional.one_hot(guesses, 2).float()
    figures = task.figures([outputs[:5], outputs[5:]], [truth[:5], truth[5:]])
    assert figures == pytest.approx({"accuracy": 62.5, "f1": 100 * 4 / 7})  # 2 hits, 4 named, 3 there
    silent = task.figures([torch.tensor([[1.0, 0.0]])], [torch.tensor([0])])
    assert silent == {"accuracy": 100.0, "f1": 0.0}, "no positive text was there or named"


def test_a_second_set_is_scored_and_steers_nothing(data: Path, network: Any, tmp_path: Path) -> None:
    hidden = {"train": reviews(10, 5), "validation": reviews(8, 6)}
    other = written(tmp_path / "other", hidden, column="sentence")
    unlabelled = pa.table({"sentence": ["a"], "label": pa.array([-1], pa.int64())})
    pq.write_table(unlabelled.cast(pq.read_schema(other / "train-00000-of-00001.parquet")),
                   other / "test-00000-of-00001.parquet")  # fmt: skip
    task = task_of(data, network(), tmp_path)
    assert task.add_benchmark(str(other)) == "other (validation)"
    loaded = task.model(f"{tmp_path / 'tiny'}:untrained", weights=None, cache_dir=tmp_path)
    quality = task.score(loaded.module, BENCHMARK)
    assert quality.examples == 8
    assert set(quality.others) == {"f1"}
    with pytest.raises(UserError, match="There is no data folder /nowhere/at/all"):
        task.add_benchmark("/nowhere/at/all")


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra"])
def test_a_finished_classifier_is_used_as_it_is(data: Path, network: Any, tmp_path: Path, kind: str) -> None:
    folder = network(kind, finished=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A network\n")
    task = ImdbTask(str(data), max_length=16, sequence_length=8)
    loaded = task.model(str(folder), weights=None, cache_dir=tmp_path / "cache")
    assert (loaded.source, loaded.licence) == (str(folder), "apache-2.0")
    assert not (tmp_path / "cache").exists(), "nothing was trained"
    x = task.example_input()
    own = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.allclose(loaded.module(x), own(**x.tensors).logits, atol=1e-5)
    assert json.loads(task.bundle_files["tokenizer.json"])["truncation"]["max_length"] == 16
    assert task.preprocessing["inputs"] == list(x.tensors)


@pytest.mark.parametrize(
    ("names", "refused"),
    [(["NEGATIVE", "POSITIVE"], False), (["POSITIVE", "NEGATIVE"], True), (["LABEL_0", "LABEL_1"], False)],
)
def test_a_classifier_with_its_classes_in_another_order_is_refused(
    data: Path, network: Any, tmp_path: Path, names: list[str], refused: bool
) -> None:
    folder = network(finished=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    task = ImdbTask(str(data), max_length=16, sequence_length=8)
    if refused:
        with pytest.raises(UserError, match=r"in another order \(POSITIVE, NEGATIVE\) than .* \(neg, pos\)"):
            task.model(str(folder), weights=None, cache_dir=tmp_path)
    else:
        assert task.model(str(folder), weights=None, cache_dir=tmp_path).source == str(folder)


def test_a_class_that_train_does_not_have_is_named(tmp_path: Path, network: Any) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for split, labels in {"train": [0, 1] * 20, "test": [0, 2]}.items():
        pq.write_table(pa.table({"text": ["good"] * len(labels), "label": labels}), folder / f"{split}.parquet")
    task = task_of(folder, network(), tmp_path)
    with pytest.raises(UserError, match="has the class number 2, which train does not have"):
        task.size("test")


def test_an_encoder_without_a_classifier_is_trained_and_kept(data: Path, network: Any, tmp_path: Path) -> None:
    folder, cache = network(), tmp_path / "cache"
    training = {"epochs": 2, "learning_rate": 5e-3}
    told: list[tuple[int, int]] = []
    task = ImdbTask(str(data), max_length=16, sequence_length=8, recipe_changes=training)
    loaded = task.model(str(folder), weights=None, cache_dir=cache, progress=lambda d, n, _: told.append((d, n)))
    assert told[-1] == (12, 12), "6 batches of 8 in each of 2 epochs"
    assert "has no classifier for these 2 classes yet; the baseline was fine-tuned here: 2 epochs" in loaded.notes[0]
    assert "warm-up 1 steps instead of 500 because the training has 12 steps" in loaded.notes[1]
    assert loaded.module.network.config.classifier_dropout == 0.3
    (kept,) = (cache / "models").iterdir()
    again = ImdbTask(str(data), max_length=16, sequence_length=8, recipe_changes=training)
    second = again.model(str(folder), weights=None, cache_dir=cache, progress=lambda *_: pytest.fail("trained again"))
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name
    other = ImdbTask(str(data), max_length=16, sequence_length=8, recipe_changes={"epochs": 1})
    other.model(str(folder), weights=None, cache_dir=cache)
    assert len(list((cache / "models").iterdir())) == 2, "another recipe is another network"
    assert kept.exists()


def test_weights_from_a_file_go_into_the_network(data: Path, network: Any, tmp_path: Path) -> None:
    folder = network(finished=True)
    own = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    state = {name: tensor + 0.01 for name, tensor in own.state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    task = ImdbTask(str(data), max_length=16, sequence_length=8)
    loaded = task.model(str(folder), weights=tmp_path / "weights.pt", cache_dir=tmp_path)
    assert torch.equal(loaded.module.network.classifier.weight, state["classifier.weight"])
    assert loaded.source == "file weights.pt"
    for how in ("untrained", "train=2"):
        with pytest.raises(UserError, match=r"--weights contradict each other: write --model .*tiny"):
            task.model(f"{folder}:{how}", weights=tmp_path / "weights.pt", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody/has-this", "could not be fetched from the hub .* --model FOLDER"),
        ("/no/such/folder", "There is no folder /no/such/folder"),
    ],
)
def test_a_network_that_cannot_be_had(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=said):
        ImdbTask(str(data)).model(name, weights=None, cache_dir=tmp_path)


def test_a_network_of_another_kind_is_refused(data: Path, tmp_path: Path) -> None:
    transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path / "gpt")
    with pytest.raises(UserError, match="of type gpt2, which cannot be compressed here; this task takes bert, roberta"):
        ImdbTask(str(data)).model(str(tmp_path / "gpt"), weights=None, cache_dir=tmp_path)


def test_a_folder_that_is_cut_short_is_refused(data: Path, network: Any, tmp_path: Path) -> None:
    folder = network(finished=True)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:200])
    task = ImdbTask(str(data), max_length=16, sequence_length=8)
    with pytest.raises(UserError, match="does not hold a network of the transformers package"):
        task.model(str(folder), weights=None, cache_dir=tmp_path)


def test_texts_need_a_network_first(data: Path) -> None:
    with pytest.raises(UserError, match="reads no text before its network is loaded"):
        next(iter(ImdbTask(str(data)).batches("train", 2)))


def test_built_in_names_need_no_network_and_make_their_own_vocabulary(data: Path, tmp_path: Path) -> None:
    task = ImdbTask(str(data))
    loaded = task.model("distilbert-base-uncased:untrained", weights=None, cache_dir=tmp_path)
    assert "DistilBERT, 6 layers, hidden 768, 12 heads (67.0 million parameters)" in loaded.description
    assert any("vocabulary was made from the training texts" in note for note in loaded.notes)
    assert task.example_input().tensors["input_ids"].shape == (1, 128)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("folder/x:untrained", ("folder/x", "untrained")),
        ("x:train=4", ("x", "train=4")),
        ("x:train", ("x", "train")),
        ("C:/models/x", ("C:/models/x", "")),
        ("x", ("x", "")),
    ],
)
def test_what_is_to_be_done_stands_behind_the_name(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize("epochs", ["0", "", "three", "-1", "1.5"])
def test_a_number_of_epochs_that_is_none_is_told_from_a_name(epochs: str) -> None:
    with pytest.raises(UserError, match=rf"{epochs!r} is no number of epochs: 1 or more, as in x:train=3"):
        split_name(f"x:train={epochs}")


# ---------------------------------------------------------------- toy-text


def test_generated_reviews_are_the_same_again_in_no_two_splits_and_of_known_words() -> None:
    first, second = ToyTextTask(), ToyTextTask()
    texts = [text for split in ("train", "search", "validation", "test") for text in first.examples(split)[0]]
    assert len(set(texts)) == len(texts) == 3500
    assert first.examples("test")[0] == second.examples("test")[0]
    assert {word for text in texts for word in text.split()} <= set(vocabulary())
    assert 0.4 < float(first.examples("train")[1].float().mean()) < 0.6
    assert "generated" in first.notes[0]


def test_single_words_do_not_decide_a_generated_review() -> None:
    import random

    rng = random.Random(1)
    drawn = [review(rng) for _ in range(4000)]
    for word in ("good", "awful", "not", "but"):
        labels = [label for text, label in drawn if word in text.split()]
        assert 0.25 < sum(labels) / len(labels) < 0.75, word


def test_a_tiny_bert_is_trained_for_them(tmp_path: Path) -> None:
    task: Task = load_task("toy-text", data=None, seed=0, cache_dir=tmp_path, recipe_changes={"epochs": 1})
    loaded = task.model(None, weights=None, cache_dir=tmp_path)
    assert task.score(loaded.module, "validation").loss < 1.05 * task.chance_loss
    assert "from nothing: 1 epoch" in loaded.notes[0], "a whole training is tried with the documentation's commands"
    assert task.example_input().tensors["input_ids"].shape == (1, 64)
