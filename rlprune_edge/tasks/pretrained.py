"""Networks and tokenizers of the transformers package behind the contract of a task (home of both libraries)."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlprune_edge import encoders
from rlprune_edge.errors import UserError
from rlprune_edge.inputs import Inputs
from rlprune_edge.tasks import weights as weight_files
from rlprune_edge.tasks.torchvision_models import import_torchvision

# transformers imports torchvision by itself, which fails beside some builds of torch unless this came first.
import_torchvision()
# The tokenizers' threads and the child processes of a measurement do not go together; the library warns about it.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers  # noqa: E402
import transformers  # noqa: E402

Head = Literal["classifier", "ctc"]

_AUTO = {"classifier": "AutoModelForSequenceClassification", "ctc": "AutoModelForCTC"}
# Other code takes attention apart layer by layer, which the fused kernels hide.
ATTENTION = "eager"
WEIGHTS = "model.safetensors"
_STORED = (WEIGHTS, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Parts of a base model that a checkpoint may lack: the pooler is made anew for a new classifier.
_OPTIONAL = ("pooler",)

SPELLED = {
    "bert": "BERT",
    "distilbert": "DistilBERT",
    "roberta": "RoBERTa",
    "xlm-roberta": "XLM-RoBERTa",
    "electra": "ELECTRA",
    "wav2vec2": "Wav2Vec2",
    "hubert": "HuBERT",
}
# Their default configurations are exactly the published networks', so that these need no network to be built.
BUILT_IN = {"bert-base-uncased": "bert", "distilbert-base-uncased": "distilbert"}

_SPECIAL_NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = 30_522
"""pieces in BERT's own vocabulary, and the most that one made here gets"""


class Encoder(nn.Module):
    """One of transformers' networks with a head: takes `Inputs` by name, returns logits.

    [N, classes] for a classifier, [N, frames, vocabulary] for CTC.
    """

    def __init__(self, network: Any) -> None:
        """`network`: a transformers.PreTrainedModel with a head."""
        super().__init__()
        self.network = network

    def forward(self, x: Inputs) -> Tensor:
        logits: Tensor = self.network(**x.tensors).logits
        return logits


# ---------------------------------------------------------------- networks


def configuration(where: str, families: Sequence[str]) -> Any:
    """The configuration of the network in a folder or on the hub. Raises UserError if there is none, or it is not of
    one of the `families` (transformers' `model_type`)."""
    with fetched(where), quiet():
        config = transformers.AutoConfig.from_pretrained(place(where), trust_remote_code=False)
    return _supported(config, where, families)


def built_in(name: str) -> Any | None:
    """The configuration of a published network that is known without asking the hub; `None` for any other name."""
    kind = BUILT_IN.get(name)
    return None if kind is None else transformers.AutoConfig.for_model(kind)


def tiny_bert(**sizes: int) -> Any:
    """The configuration of a BERT with sizes of one's own, named as in transformers' BertConfig."""
    return transformers.BertConfig(**sizes)


def is_finished(config: Any, classes: int) -> bool:
    """Whether the checkpoint of this configuration holds a classifier with that many classes."""
    named = config.architectures or ()
    return any("ForSequenceClassification" in name for name in named) and int(config.num_labels) == classes


def same_order(config: Any, labels: Sequence[str]) -> bool:
    """Whether a finished classifier's own names for its classes, if it has any, allow the data's order of them."""
    theirs = [str(config.id2label.get(number, "")).lower() for number in range(len(labels))]
    ours = [label.lower() for label in labels]

    def alike(one: str, other: str) -> bool:  # `neg` and `NEGATIVE`
        return bool(one and other) and (one.startswith(other) or other.startswith(one))

    known = all(any(alike(one, other) for other in ours) for one in theirs)
    return not known or all(alike(one, other) for one, other in zip(theirs, ours, strict=True))


def with_head(config: Any, labels: Sequence[str], *, dropout: float | None = None) -> Any:
    """The configuration for these classes. `dropout`: share left out before the classifier; `None`: as it was."""
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    if dropout is not None:
        setattr(config, "seq_classif_dropout" if config.model_type == "distilbert" else "classifier_dropout", dropout)
    return config


def untrained(config: Any, head: Head) -> Encoder:
    """A network with random weights, drawn from torch's generator, with the widths that its configuration tells."""
    network = getattr(transformers, _AUTO[head]).from_config(config, attn_implementation=ATTENTION)
    shape = getattr(config, encoders.SHAPE, None)
    if shape is not None:  # a pruned network, written by `save`
        encoders.reshape(network, shape)
    return Encoder(network).eval()


def trained(where: str, config: Any, head: Head, *, new_head: bool = False) -> Encoder:
    """The network of a folder or hub id with its weights, as float32.

    `new_head`: all but the head is taken; the head is random, drawn from torch's generator. Raises UserError if the
    weights cannot be had or do not fit the configuration.
    """
    if getattr(config, encoders.SHAPE, None) is not None:
        encoder = untrained(config, head)
        weight_files.load(encoder.network, Path(where).expanduser() / WEIGHTS, name=where)
        return encoder
    auto = getattr(transformers, _AUTO[head])
    options = {
        "config": config,
        "attn_implementation": ATTENTION,
        "dtype": torch.float32,
        "trust_remote_code": False,
        "ignore_mismatched_sizes": new_head,
        "output_loading_info": True,
    }
    with fetched(where), quiet():
        try:
            network, info = auto.from_pretrained(place(where), use_safetensors=True, **options)
        except OSError as error:
            if "safetensors" not in str(error):
                raise
            # A pickled file is opened by transformers with torch's `weights_only`, which runs no code.
            network, info = auto.from_pretrained(place(where), use_safetensors=False, **options)
    base = network.base_model_prefix + "."
    missing = [name for name in info["missing_keys"] if not (new_head and _is_new(name, base))]
    misfit = [name for name, *_ in info["mismatched_keys"] if not (new_head and _is_new(name, base))]
    if missing or misfit:
        raise UserError(
            f"The weights of {where} do not fit its config.json: {len(missing)} are missing and {len(misfit)} are of "
            f"another shape, e.g. {(missing + misfit)[0]}. Fetch the folder again, whole."
        )
    return Encoder(network).eval()


def _is_new(name: str, base: str) -> bool:
    return not name.startswith(base) or any(name.startswith(f"{base}{part}.") for part in _OPTIONAL)


def body_hash(encoder: Encoder) -> str:
    """Hash of the pretrained part, without the head and what may be random besides."""
    base = encoder.network.base_model_prefix + "."
    digest = hashlib.sha256()
    for name, tensor in encoder.network.state_dict().items():
        if not _is_new(name, base):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().numpy().data)
    return digest.hexdigest()


def described(encoder: Encoder) -> str:
    """E.g. `BERT, 6 layers, hidden 384, 12 heads (22.7 million parameters)`."""
    config = encoder.network.config
    parameters = sum(p.numel() for p in encoder.network.parameters()) / 1e6
    return (
        f"{SPELLED.get(config.model_type, config.model_type)}, {config.num_hidden_layers} layers, "
        f"hidden {config.hidden_size}, {config.num_attention_heads} heads ({parameters:.1f} million parameters)"
    )


def positions(config: Any) -> int:
    """Most tokens that the network takes at once."""
    # RoBERTa's positions start behind the padding's number.
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta") else 0
    return int(config.max_position_embeddings) - int(offset)


def save(encoder: Encoder, folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a network as transformers does: config.json, model.safetensors and `files` (those of the tokenizer).

    The widths of its layers, which may be narrower than the configuration says, stand in it under `rlprune_edge`.

    Raises UserError if the folder cannot be written.
    """
    config = copy.deepcopy(encoder.network.config)
    config.architectures = [type(encoder.network).__name__]
    seen = encoders.view(encoder)
    assert seen is not None
    setattr(config, encoders.SHAPE, seen.shape())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.to_json_file(folder / "config.json")
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"The network could not be saved in {folder}: {error}.") from error
    weight_files.save(encoder.network, folder / WEIGHTS, about={"format": "pt"})


def load(folder: Path, head: Head) -> Encoder:
    """The network that `save` wrote, in evaluation mode. Raises UserError if the folder does not hold one."""
    with fetched(str(folder)), quiet():
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    with torch.random.fork_rng(devices=[]):
        encoder = untrained(config, head)
    weight_files.load(encoder.network, folder / WEIGHTS, name=str(folder))
    return encoder


# ---------------------------------------------------------------- tokenizers


class Tokenizer:
    """Texts -> numbers of word pieces, cut to a length; the same as what an app does with the bundle's tokenizer."""

    def __init__(self, fast: Any, config: Any) -> None:
        """`fast`: one of transformers' fast tokenizers; `config`: of the network that it feeds."""
        self._core = tokenizers.Tokenizer.from_str(fast.backend_tokenizer.to_str())
        self._core.no_padding()
        self.pad = int(fast.pad_token_id)
        self.size = self._core.get_vocab_size()
        self.lowercase = '"lowercase":true' in fast.backend_tokenizer.to_str().replace(" ", "").replace("\n", "")
        segments = "token_type_ids" in fast.model_input_names and config.model_type in ("bert", "electra")
        self.inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if segments else ()))
        self.kind = type(self._core.model).__name__.lower()
        """`wordpiece`, `bpe` or `unigram`"""
        self._special = {name: str(getattr(fast, name)) for name in _SPECIAL_NAMES if getattr(fast, name) is not None}
        self._model_inputs = list(fast.model_input_names)

    def encode(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Numbers of each text's pieces with the special ones around them, at most `length`."""
        self._core.enable_truncation(length)
        return [encoding.ids for encoding in self._core.encode_batch(list(texts))]

    def batch(self, rows: Sequence[Sequence[int]]) -> Inputs:
        """int64 tensors [N, longest row], padded at the end."""
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self.pad, dtype=torch.int64)
        mask = torch.zeros((len(rows), longest), dtype=torch.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[number, : len(row)] = 1
        made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        return Inputs({name: made[name] for name in self.inputs})

    def settings(self) -> bytes:
        """The content of tokenizer_config.json, which AutoTokenizer needs beside tokenizer.json."""
        named = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": self._model_inputs, **self._special}
        return json.dumps(named, indent=1).encode()

    def file(self, length: int) -> bytes:
        """The content of tokenizer.json, set to cut texts to `length` and to pad nothing."""
        self._core.enable_truncation(length)
        return str(self._core.to_str()).encode()


def tokenizer(where: str, config: Any) -> Tokenizer:
    """The tokenizer of a folder or hub id. Raises UserError if there is none that fits the network."""
    with fetched(where), quiet():
        try:
            fast = transformers.AutoTokenizer.from_pretrained(place(where), use_fast=True, trust_remote_code=False)
        except (ValueError, TypeError, KeyError) as error:
            raise OSError(f"its tokenizer could not be read: {error}") from error
    if not fast.is_fast or fast.pad_token_id is None:
        raise UserError(f"{where} has no fast tokenizer with a padding token; expected is a tokenizer.json.")
    found = Tokenizer(fast, config)
    if found.size > config.vocab_size:
        raise UserError(
            f"The tokenizer of {where} knows {found.size} pieces and its network {config.vocab_size}: they are not of "
            "the same model. Put the tokenizer that the network was trained with into the folder."
        )
    return found


def made_tokenizer(texts: Sequence[str], config: Any) -> Tokenizer:
    """A lower-case WordPiece tokenizer like BERT's, with a vocabulary of its own from `texts`."""
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=min(VOCABULARY, config.vocab_size), special_tokens=list(SPECIAL), show_progress=False
    )
    core = _word_pieces({})
    core.train_from_iterator(texts, trainer)
    return _as_bert(core, config)


def word_tokenizer(words: Sequence[str], config: Any) -> Tokenizer:
    """A lower-case tokenizer that knows exactly these words."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words))}
    return _as_bert(_word_pieces(vocabulary), config)


def _word_pieces(vocabulary: dict[str, int]) -> Any:
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    core.decoder = tokenizers.decoders.WordPiece()
    return core


def _as_bert(core: Any, config: Any) -> Tokenizer:
    ends = [(token, core.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    core.post_processor = tokenizers.processors.BertProcessing(*ends)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    return Tokenizer(fast, config)


# ---------------------------------------------------------------- what goes wrong


def is_folder(where: str) -> bool:
    return Path(where).expanduser().is_dir()


def place(where: str) -> str:
    return str(Path(where).expanduser()) if is_folder(where) else where


def _supported(config: Any, where: str, families: Sequence[str]) -> Any:
    if config.model_type not in families:
        raise UserError(
            f"{where} is a network of type {config.model_type}, which cannot be compressed here; "
            f"this task takes {', '.join(families)}."
        )
    return config


@contextmanager
def fetched(where: str) -> Iterator[None]:
    """Translates what goes wrong while a network is fetched or read."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, weight_files.Damaged) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if is_folder(where):
            raise UserError(
                f"The folder {where} does not hold a network of the transformers package ({reason}). Expected are "
                "config.json, model.safetensors and the tokenizer's files, as save_pretrained writes them."
            ) from error
        if where.startswith(("/", ".", "~")) or where.count("/") > 1:
            raise UserError(f"There is no folder {where} (--model takes a folder or the id of a network).") from error
        raise UserError(
            f"The network {where} is not a folder here and could not be fetched from the hub ({reason}). With a local "
            "copy: --model FOLDER, which holds config.json, model.safetensors and the tokenizer's files."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    # The library tells on stderr what was not in a checkpoint, in the middle of our own progress display; what
    # matters of that is checked above.
    before = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    chatter = logging.getLogger("huggingface_hub")
    level = chatter.level
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    chatter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chatter.setLevel(level)
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()
