"""The speech tasks: recordings, transcripts, frames, error rates, and the networks that hear them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import pretrained_ctc, speech
from rlprune_edge.tasks.catalog import load_task
from rlprune_edge.tasks.speech import LibriSpeechTask
from rlprune_edge.tasks.task import BENCHMARK
from rlprune_edge.tasks.toy_speech import LETTERS, ToySpeechTask, spoken

import transformers  # isort: skip  # after pretrained.py has made it importable

TEXTS = ["BAD CAB", "A BED", "DEAF ACE", "FADE", "CAFE BAD"]


def recorded(text: str, seed: int, rate: int = 4000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.2 * spoken(text, np.random.default_rng(seed)), rate, format="FLAC")
    return buffer.getvalue()


def written(path: Path, texts: list[str], *, spoilt: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"audio": datasets.Audio(), "text": datasets.Value("string")})
    heard = [
        b"junk" if spoilt else recorded("".join(c for c in t if c in LETTERS) or "A", i) for i, t in enumerate(texts)
    ]
    rows = [{"bytes": content, "path": f"{i}.flac"} for i, content in enumerate(heard)]
    audio = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"audio": audio, "text": texts}).cast(features.arrow_schema)
    pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two configurations, as LibriSpeech has: `clean` with train alone, `other` with a test split."""
    folder = tmp_path / "speech"
    written(folder / "clean" / "train.100-00000-of-00001.parquet", [*TEXTS * 8])
    written(folder / "other" / "test-00000-of-00001.parquet", TEXTS[:3])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: clean\n  data_files:\n  - split: train.100\n    path: clean/train.100-*\n"
        "- config_name: other\n  data_files:\n  - split: test\n    path: other/test-*\n---\n"
    )
    return folder


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of a tiny network with the alphabet A to F, as save_pretrained does."""

    def make(kind: str = "wav2vec2", *, norm: str = "group", head: bool = True) -> Path:
        folder = tmp_path / f"{kind}-{norm}"
        config = transformers.AutoConfig.for_model(
            kind, vocab_size=9, pad_token_id=0, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, conv_dim=(8, 8), conv_kernel=(10, 4), conv_stride=(5, 4), feat_extract_norm=norm,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, do_stable_layer_norm=norm == "layer",
        )  # fmt: skip
        auto = transformers.AutoModelForCTC if head else transformers.AutoModel
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(folder)
        alphabet = {token: i for i, token in enumerate(["<pad>", "<unk>", "|", *"ABCDEF"])}
        (folder / "vocab.json").write_text(json.dumps(alphabet))
        extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=4000, do_normalize=True)
        extractor.save_pretrained(folder)
        return folder

    return make


def task_of(data: Path, folder: Path, cache: Path, **options: Any) -> LibriSpeechTask:
    task = LibriSpeechTask(str(data), **{"audio_seconds": 1.0, **options})
    task.model(str(folder), weights=None, cache_dir=cache)
    return task


def test_splits_come_from_the_first_configuration_that_has_them(data: Path, network: Any, tmp_path: Path) -> None:
    task = task_of(data, network(), tmp_path)
    assert task.notes[0] == "train: clean/train.100 (40 recordings); test: other/test (3 recordings)"
    sizes = {split: task.size(split) for split in ("train", "search", "validation", "test")}
    assert sizes == {"train": 32, "search": 4, "validation": 4, "test": 3}


@pytest.mark.parametrize(("kind", "norm"), [("wav2vec2", "group"), ("wav2vec2", "layer"), ("hubert", "group")])
def test_a_finished_network_is_used_as_it_is(data: Path, network: Any, tmp_path: Path, kind: str, norm: str) -> None:
    folder = network(kind, norm=norm)
    task = LibriSpeechTask(str(data), audio_seconds=1.0)
    loaded = task.model(str(folder), weights=None, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists(), "nothing was trained"
    assert task.labels == ["<pad>", "<unk>", "|", *"ABCDEF"]
    x = task.example_input()
    assert x.tensors["input_values"].shape == (1, 4000)
    assert ("attention_mask" in x.tensors) == (norm == "layer")
    assert task.preprocessing["sampling_rate"] == 4000
    own = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.allclose(loaded.module(x), own(**x.tensors).logits, atol=1e-5)
    assert (task.measured, task.measured_seconds) == ("1 s of audio", 1.0)
    quality = task.score(loaded.module, "validation")
    assert quality.examples == 4
    assert set(quality.others) == {"cer"}
    assert quality.loss > 0


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_frames_are_as_many_as_the_network_gives(data: Path, network: Any, tmp_path: Path, norm: str) -> None:
    task = task_of(data, network(norm=norm), tmp_path)
    loaded = task.model(str(tmp_path / f"wav2vec2-{norm}"), weights=None, cache_dir=tmp_path)
    for x, y in task.batches("train", 1, limit=5):
        with torch.no_grad():
            assert loaded.module(x).shape[1] == int(y.frames[0])
    config = loaded.module.network.config
    assert pretrained_ctc.frames_of(config, pretrained_ctc.shortest(config)) == 1
    assert pretrained_ctc.frames_of(config, pretrained_ctc.shortest(config) - 1) == 0


def test_a_masked_network_hears_a_recording_alike_alone_and_in_a_batch(
    data: Path, network: Any, tmp_path: Path
) -> None:
    task = task_of(data, network(norm="layer"), tmp_path)
    module = task.model(str(tmp_path / "wav2vec2-layer"), weights=None, cache_dir=tmp_path).module
    with torch.no_grad():
        alone = [float(task.loss(module(x), y)) for x, y in task.batches("train", 1)]
        together = [(float(task.loss(module(x), y)), len(y)) for x, y in task.batches("train", 8)]
    whole = sum(loss * count for loss, count in together) / len(alone)
    assert sum(alone) / len(alone) == pytest.approx(whole, rel=1e-3)
    assert (task.score_batch, task_of(data, network(), tmp_path).score_batch) == (8, 1)


def test_batches_hold_every_recording_once_and_are_the_seeds(data: Path, network: Any, tmp_path: Path) -> None:
    task = task_of(data, network(), tmp_path)

    def read(seed: int | None, *, augment: bool = False) -> list[tuple[torch.Tensor, tuple[str, ...]]]:
        batches = task.batches("train", 8, seed=seed, augment=augment)
        return [(x.tensors["input_values"], y.texts) for x, y in batches]

    assert sorted(t for _, texts in read(1) for t in texts) == sorted(t for _, texts in read(None) for t in texts)
    for first, second in zip(read(1, augment=True), read(1, augment=True), strict=True):
        assert torch.equal(first[0], second[0])
    assert any(a.shape != b.shape for (a, _), (b, _) in zip(read(1), read(1, augment=True), strict=True))
    for x, y in task.batches("train", 8, seed=2):
        assert x.tensors["input_values"].shape == (len(y), x.tensors["input_values"].shape[1])
        assert int(y.lengths.max()) == y.labels.shape[1]
        assert [task.vocabulary.spelled(t) for t in y.texts] == list(y.texts)


def test_error_rates_are_over_all_words_of_the_split(data: Path, network: Any, tmp_path: Path) -> None:
    task = task_of(data, network(), tmp_path)
    batches = list(task.batches("test", 1))
    perfect = [_logits(task, y.texts[0], int(y.frames[0])) for _, y in batches]
    assert task.figures(perfect, [y for _, y in batches]) == {"wer": 0.0, "cer": 0.0}
    deaf = [torch.zeros_like(logits) for logits in perfect]  # the first token, blank, everywhere
    assert task.figures(deaf, [y for _, y in batches]) == {"wer": 100.0, "cer": 100.0}
    (longest,) = [i for i, (_, y) in enumerate(batches) if y.texts[0] == "DEAF ACE"]
    mixed = [*perfect]
    mixed[longest] = _logits(task, "DEAF ACD", perfect[longest].shape[1])
    words = sum(len(y.texts[0].split()) for _, y in batches)
    assert task.figures(mixed, [y for _, y in batches])["wer"] == pytest.approx(100.0 / words)


def _logits(task: LibriSpeechTask, text: str, frames: int) -> torch.Tensor:
    numbers = [n for letter in task.vocabulary.encode(text) for n in (letter, task.vocabulary.blank)]
    numbers += [task.vocabulary.blank] * (frames - len(numbers))
    return torch.nn.functional.one_hot(torch.tensor([numbers]), len(task.vocabulary)).float()


def test_too_short_a_recording_to_time_is_refused(data: Path, network: Any, tmp_path: Path) -> None:
    task = task_of(data, network(), tmp_path, audio_seconds=0.001)
    with pytest.raises(UserError, match=r"--audio-seconds 0.001 is too short: .* 0.00625"):
        task.example_input()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf")])
def test_seconds_that_make_no_sense_are_refused(data: Path, seconds: float) -> None:
    with pytest.raises(UserError, match=r"--audio-seconds .* makes no sense"):
        LibriSpeechTask(str(data), audio_seconds=seconds)


def test_recordings_outside_of_the_alphabet_are_counted_not_hidden(network: Any, tmp_path: Path) -> None:
    written(tmp_path / "d" / "train-00000-of-00001.parquet", TEXTS * 4)
    written(tmp_path / "d" / "test-00000-of-00001.parquet", ["12", "A BED", "Ünö"])
    task = task_of(tmp_path / "d", network(), tmp_path)
    assert task.size("test") == 1
    assert task.notes[-1] == "left out of test, since they say nothing in the network's alphabet: 2 of 3 recordings"
    assert len(task.notes) == 3


def test_a_language_that_the_network_cannot_write_is_refused(network: Any, tmp_path: Path) -> None:
    for split in ("train", "test"):
        written(tmp_path / "d" / f"{split}-00000-of-00001.parquet", ["12 3"] * 20)
    with pytest.raises(UserError, match=r"such as '12 3', can be written in the network's alphabet, \| A B C D E F\."):
        task_of(tmp_path / "d", network(), tmp_path)


def test_long_recordings_are_left_out_of_training_alone(
    data: Path, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = task_of(data, network(), tmp_path)
    lengths = {split: whole._recordings(split)[1] for split in ("train", "search", "test")}
    limit = sorted(lengths["train"])[20]
    monkeypatch.setattr(speech, "LONGEST_SECONDS", limit / 4000)
    task = task_of(data, tmp_path / "wav2vec2-group", tmp_path)
    kept = sum(length <= limit for length in lengths["train"])
    assert (task.size("train"), task.size("search"), task.size("test")) == (kept, 4, 3)
    assert f"{32 - kept} training recordings of more than" in task.notes[-1]
    assert max(lengths["search"]) > limit, "one that would have been left out of train"


def test_a_damaged_recording_is_named(network: Any, tmp_path: Path) -> None:
    for split in ("train", "test"):
        written(tmp_path / "d" / f"{split}-00000-of-00001.parquet", ["A"] * 20, spoilt=True)
    task = task_of(tmp_path / "d", network(), tmp_path)
    with pytest.raises(UserError, match=r"d \(train\): recording 0 could not be decoded \(Format not recognised\)"):
        task.example_input()


def test_weights_of_a_file_go_into_the_network(data: Path, network: Any, tmp_path: Path) -> None:
    folder = network()
    other = transformers.AutoModelForCTC.from_pretrained(folder)
    torch.nn.init.constant_(other.lm_head.bias, 0.5)
    other.save_pretrained(tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    loaded = LibriSpeechTask(str(data)).model(str(folder), weights=file, cache_dir=tmp_path)
    assert loaded.source == "file model.safetensors"
    assert torch.equal(loaded.module.network.lm_head.bias, torch.full((9,), 0.5))
    for how in ("train", "untrained"):
        with pytest.raises(UserError, match="contradict each other: write --model wav2vec2-small"):
            LibriSpeechTask(str(data)).model(f"wav2vec2-small:{how}", weights=file, cache_dir=tmp_path)


def test_a_folder_without_its_vocabulary_is_refused(data: Path, network: Any, tmp_path: Path) -> None:
    folder = network()
    (folder / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"has no vocab.json, which names the letters"):
        task_of(data, folder, tmp_path)


def test_a_network_that_is_neither_here_nor_on_the_hub_names_the_option(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be fetched from the hub .* --model FOLDER"):
        LibriSpeechTask(str(data)).model("nobody/has-this", weights=None, cache_dir=tmp_path)


def test_a_network_without_a_head_is_trained_with_an_alphabet_of_its_own(
    data: Path, network: Any, tmp_path: Path
) -> None:
    folder = network(head=False)
    task = LibriSpeechTask(str(data), audio_seconds=1.0, recipe_changes={"epochs": 1})
    loaded = task.model(str(folder), weights=None, cache_dir=tmp_path / "cache")
    assert task.labels == ["<pad>", "<unk>", "|", *"ABCDEF"]
    assert "its CTC head is new" in loaded.notes[0] or "the baseline's CTC head is new" in loaded.notes[0]
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 1


def test_built_in_networks_say_what_they_need(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wav2vec2-small has no weights of its own: --model wav2vec2-small:train"):
        LibriSpeechTask(str(data)).model("wav2vec2-small", weights=None, cache_dir=tmp_path)
    task = LibriSpeechTask(str(data))
    loaded = task.model("wav2vec2-small:untrained", weights=None, cache_dir=tmp_path)
    assert "Wav2Vec2, 4 layers, hidden 128, 4 heads" in loaded.description
    assert "untrained" in loaded.notes[0]
    assert task.example_input().tensors["input_values"].shape == (1, 80_000)
    assert task.preprocessing["sampling_rate"] == 16_000


def test_a_network_of_another_kind_is_refused(data: Path, tmp_path: Path) -> None:
    transformers.BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"of type bert, .* this task takes wav2vec2, hubert"):
        LibriSpeechTask(str(data)).model(str(tmp_path / "bert"), weights=None, cache_dir=tmp_path)


def test_another_set_is_scored_too(data: Path, network: Any, tmp_path: Path) -> None:
    written(tmp_path / "digits" / "test-00000-of-00001.parquet", ["ACE", "BED"])
    task = task_of(data, network(), tmp_path)
    assert task.add_benchmark(str(tmp_path / "digits")) == "digits (test)"
    module = task.model(str(tmp_path / "wav2vec2-group"), weights=None, cache_dir=tmp_path).module
    assert task.score(module, BENCHMARK).examples == 2


def test_recordings_need_a_network_first(data: Path) -> None:
    with pytest.raises(UserError, match="reads no recording before its network"):
        next(iter(LibriSpeechTask(str(data)).batches("train", 2)))


def test_a_set_without_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"text": ["a"] * 20}), tmp_path / "texts" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(UserError, match="is no data set of transcribed recordings: it has the columns text"):
        LibriSpeechTask(str(tmp_path / "texts")).model("wav2vec2-small:untrained", weights=None, cache_dir=tmp_path)


# ---------------------------------------------------------------- toy-speech


def test_generated_recordings_are_the_same_again_and_in_no_two_splits(tmp_path: Path) -> None:
    first, second = (load_task("toy-speech", data=None, seed=s, cache_dir=tmp_path) for s in (0, 1))
    assert isinstance(first, ToySpeechTask)
    assert isinstance(second, ToySpeechTask)
    mine, other = first.recordings("test", 4000), second.recordings("test", 4000)
    assert list(mine.texts) == list(other.texts)
    assert all(np.array_equal(a, b) for a, b in zip(mine.samples, other.samples, strict=True))
    texts = [text for split in ("train", "search", "validation", "test") for text in first._texts[split]]
    assert len(set(texts)) == len(texts) == 1150
    assert "generated" in first.notes[0]


def test_a_tiny_wav2vec2_is_trained_for_them(tmp_path: Path) -> None:
    task = load_task(
        "toy-speech", data=None, seed=0, cache_dir=tmp_path, recipe_changes={"epochs": 1, "warmup_steps": 0}
    )
    losses: list[float] = []
    loaded = task.model(None, weights=None, cache_dir=tmp_path, progress=lambda _d, _n, loss: losses.append(loss))
    assert losses[-1] < losses[0], "a whole training is tried with the commands of the documentation"
    assert "from nothing: 1 epoch" in loaded.notes[0]
    assert task.example_input().tensors["input_values"].shape == (1, 8000)
    assert 2.0 < task.chance_loss < 3.0
