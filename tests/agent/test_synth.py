"""Made-up weights: the same everywhere, fit to be computed with, in a file that is otherwise the one it came from."""

from __future__ import annotations

import hashlib
import random
import zlib

import numpy as np
import onnx
import planted_models
import pytest
from onnx import TensorProto, helper, numpy_helper
from planted_models import model, node, value

from rlprune_agent import intake, synth
from rlprune_agent.protocol import Failure
from rlprune_agent.runtime import Model
from rlprune_agent.tensors import Synthetic, Use
from rlprune_edge.export import skeleton

ROOM = 10**9
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
}


def tensor(dims: tuple[int, ...], use: Use | None = None, dtype: str = "float32") -> Synthetic:
    return Synthetic("w", TYPES[dtype], dims, use, dims, ((0, 0, 0),))


def drawn(wanted: Synthetic, dtype: str, *, seed: int = 1, number: int = 0) -> np.ndarray:
    data = b"".join(bytes(portion) for portion in synth.seeded(seed)(number, wanted))
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(wanted.dims)


def filled(made: onnx.ModelProto, seed: int = 1) -> onnx.ModelProto:
    return onnx.load_model_from_string(synth.whole(skeleton.strip(made.SerializeToString()).data, {"seed": seed}, ROOM))


# ---------------------------------------------------------------- the stream


@pytest.mark.parametrize(
    ("dtype", "sha256"),
    [
        ("float32", "ef2a18cb593d05fa"),
        ("float16", "94f92152aca4245a"),
        ("float64", "d6f5f32b5c32d3fb"),
        ("int8", "e9be3594251a7aa1"),
        ("int32", "72f40c150f94ef32"),
    ],
)
def test_the_stream_is_the_same_on_every_numpy(dtype: str, sha256: str) -> None:
    """Pinned: a board with an older numpy and the next year's must make the very same weights."""
    values = drawn(tensor((321, 1001), Use("MatMul", 1, {}, "y"), dtype), dtype, seed=7, number=3)
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == sha256


def test_the_stream_is_the_mersenne_twister_of_every_textbook() -> None:
    """Python's own generator, seeded with the same two words, gives the same bits: none of it is numpy's making."""
    values = drawn(tensor((4000,), dtype="int8"), "int8", seed=7, number=3)
    words = random.Random(3 << 32 | 7)
    assert values.tobytes() == b"".join(words.getrandbits(32).to_bytes(4, "little") for _ in range(1000))


def test_tensors_and_seeds_have_values_of_their_own() -> None:
    wanted = tensor((64, 64))
    streams = [drawn(wanted, "float32", seed=s, number=n).tobytes() for s in (0, 1, 2**32 - 1) for n in (0, 1, 99)]
    assert len(set(streams)) == 9
    assert len(np.unique(drawn(tensor((100_000,)), "float32"))) > 99_000


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("fan_in", [1, 27, 768, 3072, 100_000])
def test_weights_keep_the_variance_and_none_is_zero_or_denormal(dtype: str, fan_in: int) -> None:
    wanted = tensor((fan_in, max(1, 200_000 // fan_in)), Use("MatMul", 1, {}, "y"), dtype)
    values = drawn(wanted, dtype).astype(np.float64)
    assert np.abs(values).min() >= np.finfo(dtype).tiny
    assert abs(values.mean()) < 0.01 * values.std() * 3
    assert values.std() == pytest.approx(fan_in**-0.5, rel=0.01 if dtype != "float16" else 0.02)


def test_quantised_weights_fill_their_range() -> None:
    values = drawn(tensor((100_000,), dtype="int8"), "int8")
    counts = np.bincount(values.astype(int) + 128, minlength=256)
    assert (counts.min(), counts.max()) == (pytest.approx(390, abs=90), pytest.approx(390, abs=90))
    assert np.abs(drawn(tensor((1000,), dtype="int32"), "int32")).max() <= 1024


def test_scales_and_variances_are_near_one() -> None:
    for use in (Use("BatchNormalization", 4, {}, ""), Use("LayerNormalization", 1, {}, ""), Use("Mul", 1, {}, "")):
        values = drawn(tensor((10_000,), use), "float32")
        assert 0.79 < values.min() < values.max() < 1.21
        assert values.mean() == pytest.approx(1, abs=0.01)


# ---------------------------------------------------------------- what a tensor is for


@pytest.mark.parametrize(
    ("op", "place", "attributes", "dims", "expected"),
    [
        ("Conv", 1, {}, (64, 32, 3, 3), ("weight", 288)),
        ("Conv", 1, {"group": [32]}, (32, 1, 3, 3), ("weight", 9)),
        ("Conv", 1, {}, (512, 256, 10), ("weight", 2560)),
        ("Conv", 2, {}, (64,), ("bias", 1)),
        ("ConvTranspose", 1, {"strides": [2, 2]}, (32, 64, 4, 4), ("weight", 128)),
        ("Gemm", 1, {}, (512, 10), ("weight", 512)),
        ("Gemm", 1, {"transB": [1]}, (10, 512), ("weight", 512)),
        ("Gemm", 0, {"transA": [1]}, (512, 10), ("weight", 512)),
        ("MatMul", 1, {}, (768, 3072), ("weight", 768)),
        ("MatMul", 1, {}, (12, 64, 128), ("weight", 64)),
        ("MatMul", 0, {}, (10, 768), ("weight", 768)),
        ("LSTM", 1, {}, (1, 400, 80), ("weight", 80)),
        ("LayerNormalization", 2, {}, (768,), ("bias", 1)),
        ("BatchNormalization", 3, {}, (64,), ("bias", 1)),
        ("Add", 1, {}, (768,), ("bias", 1)),
        ("Gather", 0, {}, (30522, 768), ("other", 1)),
        ("Concat", 0, {}, (1, 1, 768), ("other", 1)),
    ],
)
def test_purposes(
    op: str, place: int, attributes: dict[str, list[int]], dims: tuple[int, ...], expected: object
) -> None:
    assert tuple(synth.purpose(tensor(dims, Use(op, place, attributes, "y")))) == expected


def test_a_weight_is_followed_through_a_transposition() -> None:
    weight = np.ones((3072, 768), np.float32)
    made = model(
        [node("Transpose", ["w"], "t", perm=[1, 0]), node("MatMul", ["x", "t"])],
        {"w": weight},
        inputs=[value("x", [1, 768])],
        outputs=[value("y", [1, 3072])],
    )
    graph = intake.unpacked(skeleton.strip(made.SerializeToString()).data)
    (found,) = intake.check(graph, synthetic=True, memory_bytes=ROOM).synthetic
    assert synth.purpose(found) == ("weight", 768)


# ---------------------------------------------------------------- the file


def quantised() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.integers(-128, 128, (64, 32, 3, 3), np.int8),
        "s": rng.random(64).astype(np.float32) / 1000,
        "z": np.zeros(64, np.int8),
        "xs": np.float32(0.02),
        "xz": np.int8(3),
    }
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], "q"),
        node("DequantizeLinear", ["q", "xs", "xz"], "d"),
        node("DequantizeLinear", ["w", "s", "z"], "wd", axis=0),
        node("Conv", ["d", "wd"]),
    ]
    shapes = {"inputs": [value("x", [1, 32, 8, 8])], "outputs": [value("y", [1, 64, 6, 6])]}
    return model(nodes, weights, **shapes)


def with_inner_graphs() -> onnx.ModelProto:
    """Weights in an initializer, in a Constant, in both branches of an If and inside a function."""

    def array(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((20, 20)).astype(np.float32)

    def constant(seed: int, name: str) -> onnx.NodeProto:
        return node("Constant", [], name, value=numpy_helper.from_array(array(seed), "inside"))

    def branch(seed: int) -> onnx.GraphProto:
        tensors = [numpy_helper.from_array(array(seed), "bw")]
        return helper.make_graph([node("MatMul", ["h", "bw"], "z")], "b", [], [value("z", [4, 20])], tensors)

    opset = [helper.make_opsetid("", 17)]
    body = helper.make_function("own", "F", ["a"], ["b"], [constant(5, "fw"), node("MatMul", ["a", "fw"], "b")], opset)
    nodes = [
        constant(1, "cw"),
        node("MatMul", ["x", "cw"], "c"),
        node("MatMul", ["c", "w"], "h"),
        node("If", ["go"], "i", then_branch=branch(2), else_branch=branch(3)),
        node("F", ["i"], domain="own"),
    ]
    weights = {"w": array(4), "go": np.array(True)}
    shapes = {"inputs": [value("x", [4, 20])], "outputs": [value("y", [4, 20])]}
    return model(nodes, weights, **shapes, functions=[body], domains=["own"])


@pytest.mark.parametrize("make", [planted_models.dense, quantised, with_inner_graphs], ids=lambda make: make.__name__)
def test_with_the_true_values_it_is_the_same_model_again(make: object) -> None:
    assert callable(make)
    made: onnx.ModelProto = make()
    data = made.SerializeToString(deterministic=True)
    graph, stripped = skeleton.bare(data)
    found = intake.check(graph, synthetic=True, memory_bytes=ROOM)
    assert len(found.synthetic) == stripped > 0
    true = [raw for raw in raw_values(made) if len(raw) > 1024]
    again = synth.fill(graph, found, lambda number, _: [true[number]])
    assert onnx.load_model_from_string(again) == made
    assert synth.fill(data, intake.check(data, synthetic=False, memory_bytes=ROOM), synth.seeded(1)) is data


def raw_values(message: object) -> list[bytes]:
    """`raw_data` of all tensors of a model, in the order of the file."""
    if isinstance(message, TensorProto):
        return [message.raw_data]
    fields = sorted(message.ListFields(), key=lambda pair: pair[0].number)  # type: ignore[attr-defined]
    found: list[bytes] = []
    for field, content in fields:
        if field.message_type is not None:
            for part in content if field.is_repeated else [content]:
                found += raw_values(part)
    return found


@pytest.mark.parametrize("make", [planted_models.dense, quantised, with_inner_graphs], ids=lambda make: make.__name__)
def test_made_up_weights_run_and_are_not_the_old_ones(make: object) -> None:
    assert callable(make)
    made: onnx.ModelProto = make()
    again = filled(made)
    onnx.checker.check_model(again)
    results = []
    for each in (made, again, filled(made, seed=2)):
        session = Model(each.SerializeToString(), 1)
        results.append(session.checked_run(session.random_inputs(0))["y"])
    assert all(np.isfinite(result).all() and result.std() > 0.01 for result in results)
    assert not np.allclose(results[0], results[1])
    assert not np.allclose(results[1], results[2])


def deep(layers: int, *, residual: bool, relu: bool, dtype: type = np.float32) -> onnx.ModelProto:
    nodes, weights, at = [], {}, "x"
    for i in range(layers):
        weights[f"w{i}"] = np.ones((16, 16, 3, 3), dtype)
        weights[f"b{i}"] = np.ones(16, dtype)
        nodes.append(node("Conv", [at, f"w{i}", f"b{i}"], f"c{i}", pads=[1, 1, 1, 1]))
        out = f"c{i}"
        if relu:
            nodes.append(node("Relu", [out], f"r{i}"))
            out = f"r{i}"
        if residual and i:
            nodes.append(node("Add", [out, at], f"a{i}"))
            out = f"a{i}"
        at = out
    nodes.append(node("Identity", [at]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shapes = {"inputs": [value("x", [1, 16, 8, 8], kind)], "outputs": [value("y", [1, 16, 8, 8], kind)]}
    return model(nodes, weights, **shapes)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_a_hundred_layers_neither_vanish_nor_overflow(residual: bool, relu: bool) -> None:
    layers = 30 if residual and not relu else 100
    session = Model(filled(deep(layers, residual=residual, relu=relu)).SerializeToString(), 1)
    out = session.checked_run(session.random_inputs(0))["y"]
    assert np.isfinite(out).all()
    assert 1e-3 < np.abs(out).max() < 1e25


def test_halves_survive_twenty_layers() -> None:
    session = Model(filled(deep(20, residual=False, relu=True, dtype=np.float16)).SerializeToString(), 1)
    out = session.checked_run(session.random_inputs(0))["y"]
    assert np.isfinite(out).all()
    assert 1e-3 < np.abs(out.astype(np.float32)).max() < 1e3


# ---------------------------------------------------------------- what a job may say


@pytest.mark.parametrize("weights", [{}, {"seed": -1}, {"seed": 2**32}, {"seed": True}, {"seed": "1"}, [1], "yes", 7])
def test_a_seed_is_a_number_or_there_is_none(weights: object) -> None:
    with pytest.raises(Failure, match="weights must be") as caught:
        synth.whole(planted_models.dense().SerializeToString(), weights, ROOM)
    assert caught.value.kind == "bad_request"


def test_a_whole_model_is_passed_on_as_it_is_and_a_graph_only_with_a_seed() -> None:
    data = planted_models.dense().SerializeToString()
    assert synth.whole(data, None, ROOM) is data
    assert synth.whole(data, {"seed": 1}, ROOM) is data
    sent = skeleton.strip(data).data
    assert sent == zlib.compress(skeleton.bare(data)[0], 9)
    with pytest.raises(Failure, match="not a whole ONNX file"):
        synth.whole(sent, None, ROOM)
    with pytest.raises(Failure, match="announces") as caught:
        synth.whole(sent, {"seed": 1}, 1000)
    assert caught.value.kind == "too_big"
