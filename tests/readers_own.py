"""What a reader of the documentation has: texts, recordings, networks; here tiny ones, with random weights."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from rlprune_edge.tasks import pretrained

import transformers  # isort: skip  # after pretrained.py has made it importable

WORDS = ["the", "film", "was", "good", "bad", "long", "and", "so", "it", "ended", "."]


def texts(folder: Path) -> None:
    """`reviews`, `other-reviews` and `my-bert`, a classifier for them."""
    rng = np.random.default_rng(0)
    for name, splits in (("reviews", {"train": 120, "test": 40}), ("other-reviews", {"test": 30})):
        (folder / name).mkdir()
        for split, count in splits.items():
            drawn = [" ".join(rng.choice(WORDS, rng.integers(4, 30))) for _ in range(count)]
            features = datasets.Features(
                {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
            )
            table = pa.table({"text": drawn, "label": [i % 2 for i in range(count)]}).cast(features.arrow_schema)
            table = table.replace_schema_metadata(features.arrow_schema.metadata)
            pq.write_table(table, folder / name / f"{split}-00000-of-00001.parquet")
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=768,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "my-bert")
    tokenizer = pretrained.word_tokenizer(WORDS, config)
    (folder / "my-bert" / "tokenizer.json").write_bytes(tokenizer.file(64))
    (folder / "my-bert" / "tokenizer_config.json").write_bytes(tokenizer.settings())


def recordings(folder: Path) -> None:
    """`recordings` at 8 kHz and `my-wav2vec2`, a network for 4 kHz that spells A to D."""
    rng = np.random.default_rng(0)
    (folder / "recordings").mkdir()
    features = datasets.Features({"audio": datasets.Audio(), "text": datasets.Value("string")})
    for split, count in {"train": 60, "test": 15}.items():
        stored, said = [], []
        for i in range(count):
            buffer = io.BytesIO()
            soundfile.write(buffer, 0.1 * rng.standard_normal(rng.integers(6000, 12000)), 8000, format="FLAC")
            stored.append({"bytes": buffer.getvalue(), "path": f"{i}.flac"})
            said.append(" ".join("".join(rng.choice(list("ABCD"), 3)) for _ in range(2)))
        audio = pa.array(stored, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        table = pa.table({"audio": audio, "text": said}).cast(features.arrow_schema)
        table = table.replace_schema_metadata(features.arrow_schema.metadata)
        pq.write_table(table, folder / "recordings" / f"{split}-00000-of-00001.parquet")
    config = transformers.Wav2Vec2Config(
        vocab_size=7, pad_token_id=0, hidden_size=96, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=512, conv_dim=(64, 64), conv_kernel=(10, 8), conv_stride=(5, 8),
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, layerdrop=0.0, mask_time_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    own = folder / "my-wav2vec2"
    transformers.Wav2Vec2ForCTC(config).save_pretrained(own)
    (own / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(["<pad>", "<unk>", "|", *"ABCD"])}))
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=4000).save_pretrained(own)
