"""Small bundles of texts: a real tokenizer, and a network whose answers can be worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tokenizers
from onnx.helper import make_node, make_tensor_value_info

from rlprune_edge.bundle.write import write_bundle
from rlprune_edge.records import TensorSpec

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = "The film was a déjà-vu: don't watch it, 3 of 10 at best. Ζήσης ΣΊΣΥΦΟΣ İstanbul straße 電影 좋다 unaffable."
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TEXTS = ["the film was a déjà-vu", "", "3 of 10 [SEP] at best\u00a0" + "unaffable " * 30]


def word_pieces(*, lowercase: bool, strip: bool | None = None) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece({}, unk_token="[UNK]"))
    core.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip)
    core.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=900,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=list(map(chr, range(33, 127))),
    )
    core.train_from_iterator([WORDS] * 5, trainer)
    core.add_tokens([tokenizers.AddedToken("Film", single_word=True), tokenizers.AddedToken("jà", normalized=True)])
    core.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return core


def network_of_texts(core: tokenizers.Tokenizer, path: Path) -> Path:
    """The masked mean of what is looked up for each token, times a matrix: [batch, tokens] -> [batch, 2]."""
    rng = np.random.default_rng(0)
    constants = {
        "words": rng.normal(size=(core.get_vocab_size(), 8)),
        "segments": rng.normal(size=(2, 8)),
        "matrix": rng.normal(size=(8, 2)),
    }
    nodes = [
        make_node("Gather", ["words", "input_ids"], ["found"]),
        make_node("Gather", ["segments", "token_type_ids"], ["segment"]),
        make_node("Add", ["found", "segment"], ["all"]),
        make_node("Cast", ["attention_mask"], ["mask"], to=onnx.TensorProto.FLOAT),
        make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        make_node("Mul", ["all", "wide"], ["kept"]),
        make_node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
        make_node("ReduceSum", ["wide", "tokens"], ["count"], keepdims=0),
        make_node("Div", ["sum", "count"], ["mean"]),
        make_node("MatMul", ["mean", "matrix"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "texts",
        [make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "tokens"]) for name in INPUTS],
        [make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [
            *(onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()),
            onnx.numpy_helper.from_array(np.array([2]), "last"),
            onnx.numpy_helper.from_array(np.array([1]), "tokens"),
        ],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, path)
    return path


def scores(network: Path, core: tokenizers.Tokenizer, text: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the fast tokenizer and ONNX Runtime make of a text, cut to 24 tokens."""
    core.no_padding()
    core.enable_truncation(24)
    ids = np.array([core.encode(text).ids])
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    return given, session.run(None, given)[0]


def text_bundle(
    network: Path,
    core: tokenizers.Tokenizer,
    folder: Path,
    shape: tuple[int | None, ...] = (None, None),
    **changed: Any,
) -> Path:
    """A bundle of that network, whose inputs are free or of one shape."""
    golden = []
    for text in TEXTS if shape[1] is None else ():
        given, expected = scores(network, core, text)
        golden.append((given, {"logits": expected}))
    parts: dict[str, Any] = {
        "model": network,
        "task": "reviews",
        "inputs": tuple(TensorSpec(name, "int64", shape) for name in INPUTS),
        "outputs": (TensorSpec("logits", "float32", (None, 2)),),
        "preprocessing": {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 24, "padding": 0},
        "labels": ["negative", "positive"],
        "metrics": {"baseline": {}, "compressed": {}},
        "measurement": {"threads": 1},
        "versions": {},
        "golden": golden,
        "files": {"tokenizer.json": core.to_str().encode()},
        "extra": {"tokenizer": {"file": "tokenizer.json", "kind": "wordpiece"}},
    }
    return write_bundle(folder, **{**parts, **changed})
