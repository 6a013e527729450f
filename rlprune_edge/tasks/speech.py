"""Speech recognition with transformers' CTC networks: LibriSpeech and any transcribed recordings (home of jiwer)."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from torch import Tensor

from rlprune_edge.encoders import SPEECH
from rlprune_edge.errors import UserError
from rlprune_edge.inputs import Inputs
from rlprune_edge.records import MetricSpec
from rlprune_edge.tasks import audio, ctc, hub, pretrained, pretrained_ctc
from rlprune_edge.tasks import weights as weight_files
from rlprune_edge.tasks.audio import Recordings
from rlprune_edge.tasks.buckets import bucketed
from rlprune_edge.tasks.ctc import Vocabulary
from rlprune_edge.tasks.model_card import licence
from rlprune_edge.tasks.model_name import UNTRAINED, epochs_asked, split_name
from rlprune_edge.tasks.pretrained_ctc import Preparation
from rlprune_edge.tasks.splits import four_splits
from rlprune_edge.tasks.task import BENCHMARK, SPLITS, Batches, LoadedModel, Progress, Recipe, Task
from rlprune_edge.tasks.trainer import BaselineRecipe, own_network, train_baseline

AUDIO_SECONDS = 5.0
LONGEST_SECONDS = 20.0
"""of a training recording: longer ones are left out, since one alone would decide how much memory training takes"""
CHANCE_EXAMPLES = 50
"""transcripts from which the loss at chance is computed"""

# Spoken digits (2,160 recordings): 5.9 % of the validation words wrong after 20 epochs, 9.6 % after 15.
FROM_NOTHING = BaselineRecipe(epochs=20, learning_rate=1e-3, batch_size=16, warmup_steps=500, dropout=None)
FROM_PRETRAINED = dataclasses.replace(FROM_NOTHING, epochs=10, learning_rate=5e-5)


@dataclass(frozen=True)
class Transcripts:
    """What was said in a batch of recordings."""

    labels: Tensor
    """int64 [N, longest], padded"""
    lengths: Tensor
    """letters that count, [N]"""
    frames: Tensor
    """frames of the network's output that are no padding, [N]"""
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def to(self, device: torch.device) -> Transcripts:
        return Transcripts(self.labels.to(device), self.lengths.to(device), self.frames.to(device), self.texts)


class SpeechTask(Task):
    """Transcribed recordings; a subclass says where they come from.

    Rate, vocabulary and frames belong to the network, so no recording can be read before `model` was called.
    """

    metric = MetricSpec("wer", higher_is_better=False)
    takes_modules = False
    other_metrics = (MetricSpec("cer", higher_is_better=False),)
    limits = "greedy CTC decoding without a language model"
    chance_loss = 3.0  # until a network is loaded, which brings the alphabet
    # What is right in a frame is nearly always one token, so there is little in softened distributions.
    recipe = Recipe(
        learning_rate=1e-4,
        epochs=5,
        batch_size=16,
        weight_decay=0.01,
        warmup_steps=100,
        distillation_temperature=2.0,
        distillation_weight=0.5,
        feature_weight=1.0,
        mixed_precision=True,
    )

    def __init__(self, *, audio_seconds: float) -> None:
        """`audio_seconds`: of the recording that is timed."""
        if not 0 < audio_seconds < math.inf:
            raise UserError(
                f"--audio-seconds {audio_seconds:g} makes no sense: give the seconds that are timed, above 0."
            )
        self.measured_seconds = audio_seconds
        self.measured = f"{audio_seconds:g} s of audio"
        self.preprocessing = {"kind": "audio"}  # the rest comes with the network
        self._config: Any = None
        self._vocabulary: Vocabulary | None = None
        self._prepared = Preparation()
        self._read: dict[str, tuple[Recordings, list[int]]] = {}

    # ------------------------------------------------------------ for subclasses

    def recordings(self, split: str, rate: int) -> Recordings:
        """All recordings of a split at `rate`, with what was said; called once for each split and network."""
        raise NotImplementedError

    def transcripts(self, split: str) -> Sequence[str]:
        """What is said in a split; from that of train a vocabulary is made where there is none."""
        raise NotImplementedError

    # ------------------------------------------------------------ the contract

    def size(self, split: str) -> int:
        return len(self._recordings(split)[1])

    def read(
        self, split: str, batch_size: int, *, augment: bool, generator: torch.Generator | None, limit: int | None
    ) -> Batches:
        """Padded batches of recordings of similar length: `Inputs` of float32 [N, samples], `Transcripts`."""
        found, lengths = self._recordings(split)
        order = torch.arange(len(found.texts))
        if generator is not None:
            order = torch.randperm(len(found.texts), generator=generator)
        seed = None if generator is None else int(torch.randint(2**31, (1,), generator=generator))
        rng = np.random.default_rng(seed)
        for batch in bucketed(order[:limit].tolist(), lengths, batch_size, generator):
            waves = [found.samples[i] for i in batch]
            if augment:
                waves = [audio.varied(wave, self._prepared.rate, rng) for wave in waves]
            waves = [self._long_enough(wave) for wave in waves]
            yield self._batch(waves), self._transcripts(waves, [found.texts[i] for i in batch])

    def example_input(self) -> Inputs:
        """Real training audio of exactly the length that is timed: recordings joined until they are long enough."""
        assert self.measured_seconds is not None
        wanted = round(self.measured_seconds * self._prepared.rate)
        if wanted < pretrained_ctc.shortest(self._config):
            least = pretrained_ctc.shortest(self._config) / self._prepared.rate
            raise UserError(
                f"--audio-seconds {self.measured_seconds:g} is too short: the network takes {least:g} or more."
            )
        joined: list[np.ndarray] = []
        samples = self._recordings("train")[0].samples
        while sum(map(len, joined)) < wanted:
            joined.append(samples[len(joined) % len(samples)])
        return self._batch([np.concatenate(joined)[:wanted]])

    def loss(self, outputs: Tensor, targets: Transcripts) -> Tensor:
        """Mean over the recordings of the CTC loss per letter; `outputs` are logits [N, frames, tokens]."""
        return ctc.loss(outputs, targets.labels, targets.frames, targets.lengths, blank=self.vocabulary.blank)

    def figures(self, outputs: Sequence[Tensor], targets: Sequence[Transcripts]) -> dict[str, float]:
        """Word and character error rates in percent, over all words and characters of the split."""
        said, heard = [], []
        for logits, truth in zip(outputs, targets, strict=True):
            said += list(truth.texts)
            heard += [self.vocabulary.greedy(row[:n]) for row, n in zip(logits, truth.frames.tolist(), strict=True)]
        return {"wer": 100.0 * float(jiwer.wer(said, heard)), "cer": 100.0 * float(jiwer.cer(said, heard))}

    @property
    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            raise UserError(
                f"Task {self.name} reads no recording before its network is loaded, which has the alphabet."
            )
        return self._vocabulary

    def use(self, config: Any, vocabulary: Vocabulary, prepared: Preparation) -> None:
        """Read recordings for this network from now on."""
        self._config, self._vocabulary, self._prepared, self._read = config, vocabulary, prepared, {}
        masked = pretrained_ctc.wants_mask(config)
        # Padding changes a group norm's statistics, and an app gives such a network one recording at a time.
        self.score_batch = 8 if masked else 1
        self.labels = list(vocabulary.tokens)
        self.model_files = pretrained_ctc.files(vocabulary, prepared, mask=masked)
        self.preprocessing = {
            "kind": "audio",
            "sampling_rate": prepared.rate,
            "normalize": prepared.normalise,
            "layout": "[batch, samples]",
            "min_samples": pretrained_ctc.shortest(config),
            "dtype": "float32",
            "decoding": {
                "kind": "ctc-greedy",
                "blank": vocabulary.blank,
                "word_delimiter": vocabulary.delimiter,
                "skip": vocabulary.unwritten,
            },
        }
        for split in SPLITS:
            silent = [not vocabulary.spelled(text) for text in self.transcripts(split)]
            if any(silent):
                count = f"{sum(silent)} of {len(silent)} recordings"
                self._note(f"left out of {split}, since they say nothing in the network's alphabet: {count}")
        texts = [vocabulary.encode(vocabulary.spelled(text)) for text in self.transcripts("train")]
        texts = [text for text in texts if text][:CHANCE_EXAMPLES]
        if not texts:
            alphabet = " ".join(token for token in vocabulary.tokens if token not in vocabulary.unwritten)
            raise UserError(
                f"No transcript of the training recordings, such as {self.transcripts('train')[0]!r}, can be written "
                f"in the network's alphabet, {alphabet}. "
                "Take a network for this language, or write :train after its name, which makes an alphabet."
            )
        # about 6 frames a letter, as of speech at 50 frames a second: the loss at chance hardly depends on it
        self.chance_loss = ctc.guessing_loss(
            texts, [6 * len(text) for text in texts], tokens=len(vocabulary), blank=vocabulary.blank
        )

    def _note(self, said: str) -> None:
        if said not in self.notes:
            self.notes = (*self.notes, said)

    def _recordings(self, split: str) -> tuple[Recordings, list[int]]:
        """The recordings that say something in the network's alphabet, spelled in it, and their samples' number."""
        if split not in self._read:
            vocabulary = self.vocabulary
            found = self.recordings(split, self._prepared.rate)
            spelled = [vocabulary.spelled(text) for text in found.texts]
            kept = [i for i, text in enumerate(spelled) if text]
            if not kept:
                raise UserError(
                    f"Split {split} of task {self.name} has no recording to use (of {len(found.texts)}): either the "
                    "data set has too few, or none says anything in the network's alphabet."
                )
            rest = Recordings(found.select(kept).samples, [spelled[i] for i in kept])
            self._read[split] = (rest, rest.lengths())
        return self._read[split]

    def _long_enough(self, wave: np.ndarray) -> np.ndarray:
        return np.pad(wave, (0, max(0, pretrained_ctc.shortest(self._config) - len(wave))))

    def _batch(self, waves: Sequence[np.ndarray]) -> Inputs:
        longest = max(len(wave) for wave in waves)
        padded = np.zeros((len(waves), longest), dtype=np.float32)
        mask = torch.zeros((len(waves), longest), dtype=torch.int64)
        for row, wave in enumerate(waves):
            padded[row, : len(wave)] = audio.normalised(wave) if self._prepared.normalise else wave
            mask[row, : len(wave)] = 1
        made = {"input_values": torch.from_numpy(padded)}
        if pretrained_ctc.wants_mask(self._config):
            made["attention_mask"] = mask
        return Inputs(made)

    def _transcripts(self, waves: Sequence[np.ndarray], texts: Sequence[str]) -> Transcripts:
        encoded = [self.vocabulary.encode(text) for text in texts]
        labels = torch.full((len(texts), max(map(len, encoded))), self.vocabulary.blank, dtype=torch.int64)
        for row, letters in enumerate(encoded):
            labels[row, : len(letters)] = torch.tensor(letters, dtype=torch.int64)
        frames = torch.tensor([pretrained_ctc.frames_of(self._config, len(wave)) for wave in waves])
        return Transcripts(labels, torch.tensor([len(letters) for letters in encoded]), frames, tuple(texts))

    def fingerprint(self) -> str:
        """Hash of the training recordings, of what is said in them, and of how they are prepared."""
        return hashlib.sha256(f"{self._prepared}{self._recordings('train')[0].fingerprint()}".encode()).hexdigest()


class LibriSpeechTask(SpeechTask):
    """Read speech: the hub's LibriSpeech, or any transcribed recordings in its layout."""

    name = "librispeech"
    model_names = ("facebook/wav2vec2-base-960h", *pretrained_ctc.BUILT_IN)

    def __init__(
        self,
        data: str | None = None,
        audio_seconds: float | None = None,
        recipe_changes: Mapping[str, Any] | None = None,
    ) -> None:
        """`data`: a folder or hub id, the hub's LibriSpeech if `None`; `recipe_changes`: to the baseline's recipe.

        Opens the data set but decodes no recording. Raises UserError if it cannot be opened or has another layout.
        """
        super().__init__(audio_seconds=AUDIO_SECONDS if audio_seconds is None else audio_seconds)
        self._training = dict(recipe_changes or {})
        self.where = data or HUB_ID
        found, said = hub.open_recordings(self.where)
        self._splits, note = four_splits(
            found, lambda split: torch.zeros(len(split), dtype=torch.int64), self.where, noun="recordings"
        )
        self.notes = (said, note)

    def recordings(self, split: str, rate: int) -> Recordings:
        if split == BENCHMARK:
            return _decoded(self._benchmark, rate, "the benchmark")
        found = _decoded(self._splits[split], rate, f"{self.where} ({split})")
        if split != "train":
            return found
        kept = [i for i, length in enumerate(found.lengths()) if length <= LONGEST_SECONDS * rate]
        if len(kept) < len(found.texts):
            left = len(found.texts) - len(kept)
            self._note(f"{left} training recordings of more than {LONGEST_SECONDS:g} s were left out")
        return found.select(kept)

    def transcripts(self, split: str) -> Sequence[str]:
        return hub.recordings(self._splits[split], f"{self.where} ({split})")[1]

    def add_benchmark(self, where: str) -> str:
        """`where`: a folder or hub id; its test split is taken, or else validation, or else train."""
        found, _ = hub.open_recordings(where, option="--benchmark")
        split = next((name for name in ("test", "validation", "train") if name in found), None)
        if split is None:
            raise UserError(f"{where} has no split test, validation or train.")
        self._benchmark = found[split]
        self._read.pop(BENCHMARK, None)
        return f"{Path(where.rstrip('/')).name} ({split})"

    def model(
        self, name: str | None, *, weights: Path | None, cache_dir: Path, progress: Progress | None = None
    ) -> LoadedModel:
        """`name`: a folder or hub id, or one of `BUILT_IN` with `:train`, `:train=EPOCHS` or `:untrained` after it."""
        base, how = split_name(name or self.model_names[0])
        if weights is not None and how:
            raise UserError(f"--model {name} and --weights contradict each other: write --model {base}.")
        if base in pretrained_ctc.BUILT_IN:
            return self._from_nothing(base, how, weights, cache_dir, progress)
        config = pretrained.configuration(base, SPEECH)
        prepared = pretrained_ctc.preparation(base)
        finished = pretrained_ctc.is_finished(config) and not how
        alphabet = (
            pretrained_ctc.vocabulary(base, config) if finished else ctc.made_vocabulary(self.transcripts("train"))
        )
        config = pretrained_ctc.with_head(config, alphabet)
        self.use(config, alphabet, prepared)
        if how == "untrained":
            return self._untrained(base, config)
        if finished or weights is not None:
            with torch.random.fork_rng(devices=[]):
                encoder = pretrained.trained(base, config, "ctc", new_head=not finished)
            source = base
            if weights is not None:
                weight_files.load(encoder.network, weights, name=base)
                source = f"file {weights.name}"
            return LoadedModel(encoder, base, pretrained.described(encoder), source, licence=licence(base))

        def build() -> pretrained.Encoder:
            return pretrained.trained(base, config, "ctc", new_head=True)

        recipe = self._recipe(FROM_PRETRAINED, how)
        with torch.random.fork_rng(devices=[]):
            data = f"{self.fingerprint()} {pretrained.body_hash(build())}"
        encoder, notes = train_baseline(
            build, self, recipe, name=Path(base.rstrip("/")).name, data=data, cache_dir=cache_dir, progress=progress
        )
        said = (f"the baseline's CTC head is new and it was fine-tuned here: {notes[0]}", *notes[1:])
        source = f"{base}, fine-tuned here"
        return LoadedModel(encoder, base, pretrained.described(encoder), source, said, licence(base))

    def _recipe(self, recipe: BaselineRecipe, how: str) -> BaselineRecipe:
        return recipe.with_changes(self._training | epochs_asked(how))

    def _from_nothing(
        self, base: str, how: str, weights: Path | None, cache_dir: Path, progress: Progress | None
    ) -> LoadedModel:
        if not how and weights is None:
            raise UserError(
                f"{base} has no weights of its own: --model {base}:train trains it on this data from nothing (which "
                f"only wav2vec2-small is made for), --model {base}:untrained takes random weights, to try out speed "
                "alone; or give --weights FILE."
            )
        alphabet = ctc.made_vocabulary(self.transcripts("train"))
        config = pretrained_ctc.built_in(base, len(alphabet), alphabet.blank)
        self.use(config, alphabet, Preparation())
        if how == "untrained":
            return self._untrained(base, config)
        return own_network(
            lambda: pretrained.untrained(config, "ctc"),
            self,
            self._recipe(FROM_NOTHING, how),
            name=base,
            weights_file=weights,
            fingerprint=self.fingerprint,
            cache_dir=cache_dir,
            progress=progress,
        )

    def _untrained(self, base: str, config: Any) -> LoadedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = pretrained.untrained(config, "ctc")
        return LoadedModel(encoder, base, pretrained.described(encoder), "untrained (random weights)", (UNTRAINED,))


HUB_ID = "openslr/librispeech_asr"


def _decoded(split: Any, rate: int, where: str) -> Recordings:
    stored, texts = hub.recordings(split, where)
    return Recordings(audio.Stored(stored, rate, where=where), texts)
