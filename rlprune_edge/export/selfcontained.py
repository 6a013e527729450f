"""Put into a graph what an app would have to do to its inputs first: it feeds raw pixels or samples then.

Images: bytes [batch, height, width, channels] -> (raw * scale - mean) / std, channels first. Recordings: floats in
-1..1 [batch, samples] -> zero mean and unit variance over what the attention mask (if there is one) lets through, as
transformers' Wav2Vec2FeatureExtractor makes them. Texts and inputs of no kind stay as they are. What has moved into
the graph is under `in_graph` in the rules that are left for the app.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rlprune_edge import whole_file
from rlprune_edge.errors import CandidateError
from rlprune_edge.export import skeleton

Rules = Mapping[str, Any]

IMAGE, SAMPLES = "image", "samples"
"""what the inputs are called that an app feeds"""
PREPARED_SAMPLES = "input_values"
EPSILON = 1e-7
"""under the root of the variance, as transformers has it"""
_WHOLE = 1e-3
"""how far raw values that were worked out backwards may be from whole numbers"""
_PREFIX = "preprocess/"


def raw_images(images: np.ndarray, rules: Rules) -> np.ndarray:
    """What prepared images [n, c, h, w] were before: [n, h, w, c], bytes where all values are whole, else float32."""
    channels_last = images if rules.get("layout") == "NHWC" else images.transpose(0, 2, 3, 1)
    mean, std, scale = _constants(rules, channels_last.shape[-1])
    raw = (channels_last.astype(np.float64) * std + mean) / scale
    if rules.get("channels") == "BGR":
        raw = raw[..., ::-1]
    whole = np.rint(raw)
    if np.abs(raw - whole).max(initial=0.0) <= _WHOLE and whole.min(initial=0) >= 0 and whole.max(initial=0) <= 255:
        return np.ascontiguousarray(whole, dtype=np.uint8)
    return np.ascontiguousarray(raw, dtype=np.float32)


def raw_samples(prepared: np.ndarray) -> np.ndarray:
    """A recording [n, samples] that becomes `prepared` when it is prepared: about as loud as it was, without an offset.

    How loud it was shows in what is missing from a variance of 1, which is the share of `EPSILON`.
    """
    missing = np.maximum(1.0 - prepared.astype(np.float64).var(axis=-1, keepdims=True), EPSILON)
    return np.asarray(prepared * np.sqrt(EPSILON / missing), dtype=np.float32)


def rules_left(rules: Rules, raw_dtype: str) -> dict[str, Any]:
    """What is left for an app to do; `raw_dtype` is what `raw_images` gave."""
    kind = rules.get("kind")
    if kind == "image":
        moved = {k: rules[k] for k in ("layout", "dtype", "scale", "mean", "std", "formula") if k in rules}
        kept = {k: v for k, v in rules.items() if k not in moved}
        if rules.get("channels") == "BGR":
            moved["channels"], kept["channels"] = "BGR", "RGB"
        raw_max = rules.get("raw_max") or (255 if abs(rules.get("scale", 0) * 255 - 1) < 1e-6 else None)
        plain = {"layout": "NHWC", "dtype": raw_dtype, "scale": 1.0, "mean": None, "std": None, "raw_max": raw_max}
        return {**kept, **plain, "in_graph": moved}
    if kind == "audio" and rules.get("normalize"):
        return {**rules, "normalize": False, "in_graph": {"normalize": True}}
    return dict(rules)


def contain(source: Path, target: Path, rules: Rules, *, raw_dtype: str = "uint8") -> bool:
    """Write `source` with its preprocessing inside to `target`; False (and nothing written) where there is none.

    Raises CandidateError (`export_failed`) for a graph that does not take what the rules make.
    """
    if not _moves(rules):
        return False
    model = skeleton.read(source.read_bytes())
    _put_into(model, rules, raw_dtype)
    with whole_file.replacing(target) as part:
        part.write_bytes(model.SerializeToString())
    return True


def alone(inputs: Mapping[str, np.ndarray], rules: Rules, *, raw_dtype: str = "uint8") -> tuple[bytes, bytes] | None:
    """Two files: the preprocessing with nothing behind it, and nothing at all. `None` where there is none.

    `inputs` are prepared ones, in the shapes that count. What the first takes longer than the second is about what the
    preprocessing adds to a network's inference.
    """
    if not _moves(rules):
        return None

    def infos(ending: str) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name + ending, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ]

    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    graph = helper.make_graph(nodes, "preprocessing", infos(""), infos("_out"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    nothing = model.SerializeToString()
    _put_into(model, rules, raw_dtype)
    return model.SerializeToString(), nothing


def _moves(rules: Rules) -> bool:
    """Is there something that a graph can do in an app's place?"""
    kind = rules.get("kind")
    return kind == "image" or (kind == "audio" and bool(rules.get("normalize")))


def _put_into(model: onnx.ModelProto, rules: Rules, raw_dtype: str) -> None:
    if rules.get("kind") == "image":
        _image(model, rules, raw_dtype)
    else:
        _audio(model)


def _image(model: onnx.ModelProto, rules: Rules, raw_dtype: str) -> None:
    given = _inputs(model)
    if len(given) != 1:
        raise CandidateError("export_failed", f"a network of images takes one input, not {len(given)}")
    inner = given[0]
    sizes = [d.dim_value or (d.dim_param or None) for d in inner.type.tensor_type.shape.dim]
    if len(sizes) != 4:
        raise CandidateError("export_failed", f"a network of images takes [batch, c, h, w], not {sizes}")
    first = rules.get("layout") != "NHWC"
    batch, channels, height, width = sizes if first else (sizes[0], sizes[3], sizes[1], sizes[2])
    if not isinstance(channels, int):
        raise CandidateError("export_failed", f"a network of images takes a fixed number of channels, not {channels}")
    mean, std, scale = _constants(rules, channels)
    factor, offset = scale / std, mean / std
    raw = _fresh(model, IMAGE)
    kind = TensorProto.UINT8 if raw_dtype == "uint8" else TensorProto.FLOAT
    make = _Maker(model)
    value = make("Cast", [raw], to=TensorProto.FLOAT) if kind == TensorProto.UINT8 else raw
    if rules.get("channels") == "BGR":
        value = make("Gather", [value, make.constant("order", np.array([2, 1, 0]))], axis=3)
    value = make("Mul", [value, make.constant("factor", factor.astype(np.float32))])
    value = make("Sub", [value, make.constant("offset", offset.astype(np.float32))])
    if first:
        make("Transpose", [value], output=inner.name, perm=[0, 3, 1, 2])
    else:
        make("Identity", [value], output=inner.name)
    make.put_before([helper.make_tensor_value_info(raw, kind, [batch, height, width, channels])], instead_of=[inner])


def _audio(model: onnx.ModelProto) -> None:
    given = _inputs(model)
    samples = next((v for v in given if v.name == PREPARED_SAMPLES), given[0])
    mask = next((v for v in given if v.name == "attention_mask"), None)
    raw = _fresh(model, SAMPLES)
    make = _Maker(model)
    if mask is None:
        mean = make.mean(raw)
        centred = make("Sub", [raw, mean])
        variance = make.mean(make("Mul", [centred, centred]))
        heard = None
    else:
        heard = make("Cast", [mask.name], to=TensorProto.FLOAT)
        count = make.total(heard)
        mean = make("Div", [make.total(make("Mul", [raw, heard])), count])
        centred = make("Mul", [make("Sub", [raw, mean]), heard])
        variance = make("Div", [make.total(make("Mul", [centred, centred])), count])
    deviation = make("Sqrt", [make("Add", [variance, make.constant("epsilon", np.array(EPSILON, np.float32))])])
    make("Div", [centred, deviation], output=samples.name)
    fresh = onnx.ValueInfoProto()
    fresh.CopyFrom(samples)
    fresh.name = raw
    make.put_before([fresh], instead_of=[samples])


class _Maker:
    """Nodes that come before a graph's own."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self._nodes: list[onnx.NodeProto] = []

    def __call__(self, kind: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any) -> str:
        name = f"{_PREFIX}{kind}_{len(self._nodes)}"
        made = output or name
        self._nodes.append(helper.make_node(kind, list(inputs), [made], name=name, **attributes))
        return made

    def constant(self, name: str, value: np.ndarray) -> str:
        self._model.graph.initializer.append(numpy_helper.from_array(value, _PREFIX + name))
        return _PREFIX + name

    def mean(self, value: str) -> str:
        """Over the last axis, which is kept. Axes have been an input since opset 18."""
        if self._opset < 18:
            return self("ReduceMean", [value], axes=[-1], keepdims=1)
        return self("ReduceMean", [value, self._axis()], keepdims=1)

    def total(self, value: str) -> str:
        return self("ReduceSum", [value, self._axis()], keepdims=1)

    def _axis(self) -> str:
        name = _PREFIX + "axis"
        known = any(t.name == name for t in self._model.graph.initializer)
        return name if known else self.constant("axis", np.array([-1], np.int64))

    def put_before(self, fresh: list[onnx.ValueInfoProto], *, instead_of: list[onnx.ValueInfoProto]) -> None:
        graph = self._model.graph
        replaced = {value.name for value in instead_of}
        inputs = [*fresh, *(v for v in graph.input if v.name not in replaced)]
        nodes = [*self._nodes, *graph.node]
        del graph.input[:], graph.node[:]
        graph.input.extend(inputs)
        graph.node.extend(nodes)


def _constants(rules: Rules, channels: int) -> tuple[np.ndarray, np.ndarray, float]:
    mean, std = (
        np.zeros(channels) + np.asarray(rules.get(k) or v, dtype=np.float64) for k, v in (("mean", 0.0), ("std", 1.0))
    )
    return mean, std, float(rules.get("scale") or 1.0)


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {t.name for t in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _fresh(model: onnx.ModelProto, name: str) -> str:
    """A name that nothing in the graph has."""
    taken = {value.name for value in (*model.graph.input, *model.graph.initializer)}
    taken |= {output for node in model.graph.node for output in node.output}
    while name in taken:
        name += "_raw"
    return name
