"""Text classification with transformers' encoders: IMDB and any labelled texts, from the hub or a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlprune_edge.encoders import TEXT
from rlprune_edge.errors import UserError
from rlprune_edge.inputs import Inputs
from rlprune_edge.records import MetricSpec
from rlprune_edge.tasks import hub, pretrained
from rlprune_edge.tasks import weights as weight_files
from rlprune_edge.tasks.arrays import guessing_loss
from rlprune_edge.tasks.buckets import bucketed
from rlprune_edge.tasks.model_card import licence
from rlprune_edge.tasks.model_name import UNTRAINED, epochs_asked, split_name
from rlprune_edge.tasks.pretrained import Tokenizer
from rlprune_edge.tasks.splits import four_splits
from rlprune_edge.tasks.task import BENCHMARK, Batches, LoadedModel, Progress, Recipe, Task
from rlprune_edge.tasks.trainer import BaselineRecipe, train_baseline

Examples = tuple[Sequence[str], Tensor]
"""texts and their class numbers [N]"""

MAX_LENGTH = 256
SEQUENCE_LENGTH = 128


class TextTask(Task):
    """Labelled texts, cut into word pieces by the network's own tokenizer; a subclass says where they come from.

    The tokenizer belongs to the network, so no text can be read before `model` was called.
    """

    metric = MetricSpec("accuracy", higher_is_better=True)
    takes_modules = False
    other_metrics = (MetricSpec("f1", higher_is_better=True),)
    score_batch = 32
    recipe = Recipe(
        learning_rate=1e-4,
        epochs=5,
        batch_size=32,
        weight_decay=0.01,
        warmup_steps=100,
        feature_weight=1.0,
        mixed_precision=True,
    )

    def __init__(self, *, max_length: int, sequence_length: int, training: BaselineRecipe) -> None:
        """`max_length`: tokens that a text is cut to; `sequence_length`: tokens of the text that is timed."""
        if sequence_length > max_length:
            raise UserError(
                f"--sequence-length {sequence_length} is longer than any text will be: --max-length is {max_length}."
            )
        self.max_length, self.sequence_length, self.training = max_length, sequence_length, training
        self.measured = f"{sequence_length} tokens"
        self.limits = f"texts cut to {max_length} tokens"
        self.preprocessing = {"kind": "text", "max_length": max_length}  # the tokenizer's part comes with the network
        self._tokenizer: Tokenizer | None = None
        self._rows: dict[str, list[list[int]]] = {}

    # ------------------------------------------------------------ for subclasses

    def examples(self, split: str) -> Examples:
        """Texts and class numbers of a split; called often, so it should return what it holds."""
        raise NotImplementedError

    # ------------------------------------------------------------ the contract

    def size(self, split: str) -> int:
        return len(self.examples(split)[1])

    def read(
        self,
        split: str,
        batch_size: int,
        *,
        augment: bool,  # noqa: ARG002 - there is no way to change a text a little that keeps what it says
        generator: torch.Generator | None,
        limit: int | None,
    ) -> Batches:
        """Padded batches of texts of similar length: `Inputs` of int64 [N, tokens], classes [N]."""
        rows, targets = self._encoded(split), self.examples(split)[1]
        order = torch.arange(len(rows)) if generator is None else torch.randperm(len(rows), generator=generator)
        for batch in bucketed(order[:limit].tolist(), [len(row) for row in rows], batch_size, generator):
            yield self.tokenizer.batch([rows[i] for i in batch]), targets[batch]

    def example_input(self) -> Inputs:
        """A real training text of exactly `sequence_length` tokens; several after one another where all are shorter."""
        rows = self._encoded("train")
        length = self.sequence_length
        found = next((row for row in rows if len(row) >= length), None)
        if found is None:
            found = [rows[0][0]]
            for row in rows:
                found += row[1:-1]
                if len(found) >= length:
                    break
            found = [*(found * (length // len(found) + 1))[: length - 1], rows[0][-1]]
        return self.tokenizer.batch([[*found[: length - 1], found[-1]]])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits [N, classes]."""
        return F.cross_entropy(outputs, targets)

    def figures(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, float]:
        """Accuracy and F1 in percent: of the second class where there are two, else the classes' mean."""
        guesses, truth = torch.cat(list(outputs)).argmax(dim=1), torch.cat(list(targets))
        classes = range(len(self.labels or ()))
        scores = []
        for c in [1] if len(classes) == 2 else classes:
            hits = int(((guesses == c) & (truth == c)).sum())
            named = int((guesses == c).sum()) + int((truth == c).sum())
            scores.append(2 * hits / named if named else 0.0)
        accuracy = 100.0 * int((guesses == truth).sum()) / len(truth)
        return {"accuracy": accuracy, "f1": 100.0 * float(np.mean(scores))}

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise UserError(f"Task {self.name} reads no text before its network is loaded, which brings the tokenizer.")
        return self._tokenizer

    def use(self, tokenizer: Tokenizer, config: Any) -> None:
        """Read texts with this tokenizer from now on, for a network of this configuration. Raises UserError."""
        if self.max_length > pretrained.positions(config):
            raise UserError(
                f"--max-length {self.max_length} is more than the {pretrained.positions(config)} tokens that the "
                "network can take."
            )
        self._tokenizer, self._rows = tokenizer, {}
        content = tokenizer.file(self.max_length)
        self.bundle_files = {"tokenizer.json": content}
        self.bundle_extra = {"tokenizer": {"file": "tokenizer.json", "kind": tokenizer.kind}}
        self.model_files = {"tokenizer.json": content, "tokenizer_config.json": tokenizer.settings()}
        self.preprocessing |= {
            "tokenizer": "tokenizer.json",
            "lowercase": tokenizer.lowercase,
            "inputs": list(tokenizer.inputs),
            "dtype": "int64",
            "padding": tokenizer.pad,
        }

    def _encoded(self, split: str) -> list[list[int]]:
        if split not in self._rows:
            self._rows[split] = self.tokenizer.encode(self.examples(split)[0], self.max_length)
        return self._rows[split]

    def fingerprint(self) -> str:
        """Hash of the training texts, their classes and the length they are cut to."""
        texts, targets = self.examples("train")
        digest = hashlib.sha256(f"{self.max_length} {len(texts)}".encode())
        for text in texts:
            digest.update(f"{len(text)}:{text}".encode())
        digest.update(targets.numpy().data)
        return digest.hexdigest()


class ImdbTask(TextTask):
    """Is a review positive? The hub's IMDB, or any data set of labelled texts in its layout."""

    name = "imdb"
    model_names = tuple(pretrained.BUILT_IN)

    def __init__(
        self,
        data: str | None = None,
        max_length: int | None = None,
        sequence_length: int | None = None,
        recipe_changes: Mapping[str, Any] | None = None,
    ) -> None:
        """`data`: a folder or hub id, the hub's IMDB if `None`. `recipe_changes`: fields of the baseline's recipe.

        Raises UserError if the data set cannot be opened or has another layout.
        """
        super().__init__(
            max_length=max_length or MAX_LENGTH,
            sequence_length=sequence_length or min(SEQUENCE_LENGTH, max_length or MAX_LENGTH),
            training=BaselineRecipe().with_changes(recipe_changes or {}),
        )
        self.where = data or HUB_IDS["imdb"]
        found = hub.open_splits(self.where)
        first = next(iter(found.values()))
        self.column = hub.text_column(found.get("train", first), self.where)
        _, self.labels = hub.class_labels(found.get("train", first), self.where)
        self.chance_loss = guessing_loss(len(self.labels))
        self._splits, note = four_splits(
            found, lambda split: hub.class_labels(split, self.where)[0], self.where, noun="texts"
        )
        self.notes = (note,)
        self._read: dict[str, Examples] = {}

    def examples(self, split: str) -> Examples:
        if split not in self._read:
            rows, where = self._splits[split], f"{self.where} ({split})"
            targets = hub.class_labels(rows, where)[0]
            if int(targets.max()) >= len(self.labels or ()):
                raise UserError(f"{where} has the class number {int(targets.max())}, which train does not have.")
            self._read[split] = (hub.texts(rows, self.column, where), targets)
        return self._read[split]

    def add_benchmark(self, where: str) -> str:
        """`where`: a folder, a hub id, or `sst2`; its first labelled split of test, validation, train is taken."""
        place = where if Path(where).expanduser().is_dir() else HUB_IDS.get(where, where)
        found = hub.open_splits(place, option="--benchmark")
        split = next((s for s in ("test", "validation", "train") if s in found and hub.is_labelled(found[s])), None)
        if split is None:
            raise UserError(f"{where} has no labelled split test, validation or train; it has {', '.join(found)}.")
        targets, labels = hub.class_labels(found[split], where)
        if len(labels) != len(self.labels or ()):
            raise UserError(
                f"{where} has {len(labels)} classes and task {self.name} has {len(self.labels or ())}: a benchmark has "
                "to ask the same question of other texts."
            )
        self._read[BENCHMARK] = (hub.texts(found[split], hub.text_column(found[split], where), where), targets)
        self._rows.pop(BENCHMARK, None)
        return f"{Path(where.rstrip('/')).name} ({split})"

    def model(
        self, name: str | None, *, weights: Path | None, cache_dir: Path, progress: Progress | None = None
    ) -> LoadedModel:
        """`name`: a folder or hub id, also with `:train`, `:train=EPOCHS` or `:untrained` (random weights) after it."""
        base, how = split_name(name or self.model_names[0])
        if weights is not None and how:
            raise UserError(f"--model {name} and --weights contradict each other: write --model {base}.")
        labels = self.labels or []
        if how == "untrained":
            return self._untrained(base)
        config = pretrained.configuration(base, TEXT)
        self.use(pretrained.tokenizer(base, config), config)
        if weights is not None or (not how and pretrained.is_finished(config, len(labels))):
            if weights is None and not pretrained.same_order(config, labels):
                theirs = ", ".join(config.id2label.values())
                raise UserError(
                    f"The classifier of {base} has its classes in another order ({theirs}) than {self.where} "
                    f"({', '.join(labels)}): it would be judged upside down. Renumber the data's labels, or train a "
                    f"new classifier: --model {base}:train."
                )
            encoder = pretrained.trained(
                base, pretrained.with_head(config, labels), "classifier", new_head=weights is not None
            )
            source = base
            if weights is not None:
                weight_files.load(encoder.network, weights, name=base)
                source = f"file {weights.name}"
            return LoadedModel(encoder, base, pretrained.described(encoder), source, licence=licence(base))
        recipe = self.training.with_changes(epochs_asked(how))

        def build() -> pretrained.Encoder:
            return pretrained.trained(
                base, pretrained.with_head(config, labels, dropout=recipe.dropout), "classifier", new_head=True
            )

        with torch.random.fork_rng(devices=[]):
            pretrained_hash = pretrained.body_hash(build())
        content = hashlib.sha256(self.bundle_files["tokenizer.json"]).hexdigest()
        encoder, notes = train_baseline(
            build,
            self,
            recipe,
            name=Path(base.rstrip("/")).name,
            data=f"{self.fingerprint()} {pretrained_hash} {content}",
            cache_dir=cache_dir,
            progress=progress,
        )
        why = "" if how else f"{base} has no classifier for these {len(labels)} classes yet; "
        said = (f"{why}the baseline was fine-tuned here: {notes[0]}", *notes[1:])
        source = f"{base}, fine-tuned here"
        return LoadedModel(encoder, base, pretrained.described(encoder), source, said, licence(base))

    def _untrained(self, base: str) -> LoadedModel:
        config = pretrained.built_in(base)
        notes = [UNTRAINED]
        if config is None:
            config = pretrained.configuration(base, TEXT)
            self.use(pretrained.tokenizer(base, config), config)
        else:
            self.use(pretrained.made_tokenizer(self.examples("train")[0], config), config)
            notes.append("its vocabulary was made from the training texts, since none is at hand for random weights")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = pretrained.untrained(pretrained.with_head(config, self.labels or []), "classifier")
        return LoadedModel(encoder, base, pretrained.described(encoder), "untrained (random weights)", tuple(notes))


HUB_IDS = {"imdb": "stanfordnlp/imdb", "sst2": "stanfordnlp/sst2"}
