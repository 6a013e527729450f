"""Small bundles of recordings: a network that says what it hears, token by token."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.helper import make_node, make_tensor_value_info

from rlprune_edge.bundle.write import write_bundle
from rlprune_edge.records import TensorSpec

TOKENS = ["<pad>", "<unk>", "|", "D", "E", "H", "L", "O", "R", "W"]
DECODING = {"kind": "ctc-greedy", "blank": 0, "word_delimiter": "|", "skip": ["<pad>", "<unk>"]}
SAID = "| H H E _ L _ L L ? O | | W O R L _ D D _ |"
"""frame by frame; `_` is the blank, `?` the unknown token"""
RATE = 16000


def spoken(frames: str = SAID) -> np.ndarray:
    """float32 [samples] of which the network below hears these frames: one sample for each token and frame."""
    numbers = [TOKENS.index({"_": "<pad>", "?": "<unk>"}.get(letter, letter)) for letter in frames.split()]
    rng = np.random.default_rng(0)
    scores = rng.uniform(-0.5, 0.4, size=(len(numbers), len(TOKENS)))
    scores[np.arange(len(numbers)), numbers] = 0.75
    return scores.astype(np.float32).ravel()


def network(path: Path, inputs: tuple[str, ...], shape: tuple[int | str, int | str]) -> Path:
    """[batch, samples] -> [batch, frames, tokens]: what is heard at a frame's samples is said, loudest token first."""
    values = "input_values"
    nodes = []
    if "attention_mask" in inputs:
        nodes.append(make_node("Cast", ["attention_mask"], ["mask"], to=onnx.TensorProto.FLOAT))
        nodes.append(make_node("Mul", ["input_values", "mask"], ["kept"]))
        values = "kept"
    graph = onnx.helper.make_graph(
        [*nodes, make_node("Reshape", [values, "cut"], ["logits"])],
        "speech",
        [
            make_tensor_value_info(
                name, onnx.TensorProto.INT64 if name == "attention_mask" else onnx.TensorProto.FLOAT, shape
            )
            for name in inputs
        ],
        [make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [shape[0], "frames", len(TOKENS)])],
        [onnx.numpy_helper.from_array(np.array([0, -1, len(TOKENS)]), "cut")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, path)
    return path


def speech_bundle(
    folder: Path, inputs: tuple[str, ...] = ("input_values",), samples: int | None = None, **rules: Any
) -> Path:
    """A bundle of that network, for recordings of any length or of so many samples."""
    model = network(folder.with_suffix(".onnx"), inputs, ("batch", samples or "samples"))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    golden = []
    for frames in (SAID, "H E") if samples is None else ():
        heard = spoken(frames)[None]
        whole = {"input_values": heard, "attention_mask": np.ones(heard.shape, dtype=np.int64)}
        given = {key: whole[key] for key in inputs}
        golden.append((given, {"logits": session.run(None, given)[0]}))
    preprocessing = {"kind": "audio", "sampling_rate": RATE, "normalize": True, "dtype": "float32"}
    return write_bundle(
        folder,
        model=model,
        task="speech",
        inputs=tuple(
            TensorSpec(key, "int64" if key == "attention_mask" else "float32", (None, samples)) for key in inputs
        ),
        outputs=(TensorSpec("logits", "float32", (None, None, len(TOKENS))),),
        preprocessing={**preprocessing, "decoding": DECODING, **rules},
        labels=TOKENS,
        metrics={"baseline": {}, "compressed": {}},
        measurement={"threads": 1},
        versions={},
        golden=golden,
        extra={},
    )


def as_wave(path: Path, samples: np.ndarray, *, bits: int = 16, channels: int = 1, rate: int = RATE) -> Path:
    """A PCM file as the standard library writes it; the second channel is the first with other noise."""
    columns = [samples + 0.01 * n * (-1) ** n for n in range(channels)]
    values = np.round(np.stack(columns, axis=1).ravel() * (2 ** (bits - 1) - 1)).astype(np.int64)
    if bits == 8:
        values += 128
    body = b"".join(int(v).to_bytes(bits // 8, "little", signed=bits > 8) for v in values)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        file.writeframes(body)
    return path
