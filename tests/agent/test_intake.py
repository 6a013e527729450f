"""Models from strangers are looked at before ONNX Runtime sees them: where their values lie, what they ask for."""

from __future__ import annotations

import os
import random
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import onnx
import planted_models
import pytest
from onnx import TensorProto, helper, numpy_helper
from planted_models import FLOAT, INT64, external, model, node, value

from rlprune_agent import intake, wire
from rlprune_agent.protocol import Failure

GB = 10**9
HUGE = 10**6


def checked(made: onnx.ModelProto | bytes, *, synthetic: bool = False, memory: int = GB) -> intake.Intake:
    data = made if isinstance(made, bytes) else made.SerializeToString()
    return intake.check(data, synthetic=synthetic, memory_bytes=memory)


def refused(made: onnx.ModelProto | bytes, *, synthetic: bool = False, memory: int = GB) -> Failure:
    with pytest.raises(Failure) as caught:
        checked(made, synthetic=synthetic, memory=memory)
    return caught.value


def test_a_good_model_passes_and_is_counted() -> None:
    found = checked(planted_models.dense(32))
    assert (found.nodes, found.opset, found.tensor_bytes, found.synthetic) == (3, 17, 2 * 32 * 32 * 4, [])


# ---------------------------------------------------------------- values outside of the file (F31)

PLACES = ["../weights.bin", "/etc/passwd", "link.bin", "a/b/weights.bin", "*/_ORT_MEM_ADDR_/*", "", None]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("synthetic", [False, True])
def test_a_tensor_whose_values_lie_elsewhere_is_refused(place: str | None, synthetic: bool) -> None:
    """F31"""
    made = model([node("Add", ["x", "w"])])
    made.graph.initializer.append(external("w", place))
    failure = refused(made, synthetic=synthetic)
    assert failure.kind == "load_failed"
    assert failure.message.startswith("the model was refused before ONNX Runtime saw it: the values of the tensor 'w'")
    assert (repr(place) if place is not None else "nowhere") in failure.message


@pytest.mark.parametrize("how", ["hardlink", "symlink", "parent", "absolute", "nested"])
def test_files_that_onnx_itself_wrote_beside_the_model_are_refused_however_they_got_there(
    tmp_path: Path, how: str
) -> None:
    """F31"""
    (tmp_path / "secret").write_bytes(b"\0" * 4096)
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    place = {"parent": "../secret", "absolute": str(tmp_path / "secret"), "nested": "deep/w.bin"}.get(how, "w.bin")
    if how in ("hardlink", "nested"):
        os.link(tmp_path / "secret", folder / place)
    elif how == "symlink":
        os.symlink(tmp_path / "secret", folder / place)
    made = model([node("Add", ["x", "w"])])
    made.graph.initializer.append(external("w", place))
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    assert place in refused((folder / "model.onnx").read_bytes()).message


def hidden_in(where: str) -> onnx.ModelProto:
    """A model with a tensor outside of the file in a place other than the main graph's initializers."""
    outside = external("w", "../w")
    inner = helper.make_graph([node("Add", ["x", "w"], "z")], "inner", [], [value("z", [4])], [outside])
    constant = node("Constant", [], "w", value=outside)
    if where == "constant":
        return model([constant, node("Add", ["x", "w"])])
    if where == "branch":
        branch = node("If", ["c"], then_branch=inner, else_branch=inner)
        return model([branch], {"c": np.array(True)})
    if where == "function":
        body = helper.make_function("own", "F", ["a"], ["b"], [constant, node("Add", ["a", "w"], "b")], [])
        return model([node("F", ["x"], domain="own")], functions=[body], domains=["own"])
    if where == "sparse":
        made = model([node("Add", ["x", "w"])])
        places = helper.make_tensor("i", INT64, [4], [0, 1, 2, 3])
        made.graph.sparse_initializer.append(helper.make_sparse_tensor(outside, places, [4]))
        return made
    made = model([node("Add", ["x", "x"])])
    made.graph.node[0].attribute.append(helper.make_attribute("list", [outside]))
    return made


@pytest.mark.parametrize("where", ["constant", "branch", "function", "sparse", "list"])
def test_wherever_in_the_model_it_hides(where: str) -> None:
    """F31"""
    assert "not in it but in '../w'" in refused(hidden_in(where)).message


def test_values_left_out_pass_only_if_the_job_says_so() -> None:
    made = model([node("Add", ["x", "w"])])
    made.graph.initializer.append(external("w", "rlprune-synthetic"))
    assert [(t.name, t.dims, t.bytes) for t in checked(made, synthetic=True).synthetic] == [("w", (4,), 16)]
    assert "the job does not say to make them up" in refused(made).message
    made.graph.initializer[0].raw_data = b"\0" * 16
    assert "cannot be without values" in refused(made, synthetic=True).message


# ---------------------------------------------------------------- memory (F13)


def shape(*dims: int) -> np.ndarray:
    return np.array(dims, np.int64)


def bombs() -> dict[str, onnx.ModelProto]:
    one = np.ones(1, np.float32)
    four = np.ones((1, 1, 1, 1), np.float32)
    ints = node("Constant", [], "s", value_ints=[HUGE, HUGE])
    double = helper.make_tensor("value", TensorProto.DOUBLE, [1], [1.0])
    inner = helper.make_graph([node("ConstantOfShape", ["s"], "z")], "inner", [], [value("z", [4])])
    either = node("If", ["c"], then_branch=inner, else_branch=inner)
    makes = {
        "ConstantOfShape": model([node("ConstantOfShape", ["s"])], {"s": shape(HUGE, HUGE)}),
        "ConstantOfShape of doubles": model(
            [node("ConstantOfShape", ["s"], value=double)], {"s": shape(1000, 200_000)}
        ),
        "a Constant's ints": model([ints, node("ConstantOfShape", ["s"])]),
        "in a branch": model([either], {"c": np.array(True), "s": shape(HUGE, HUGE)}),
        "Expand": model([node("Expand", ["w", "s"])], {"w": one, "s": shape(HUGE, HUGE)}),
        "Expand of the input": model(
            [node("Expand", ["x", "s"])], {"s": shape(HUGE, HUGE)}, inputs=[value("x", [1, 1])]
        ),
        "Tile": model([node("Tile", ["w", "s"])], {"w": np.ones(1000, np.float32), "s": shape(HUGE)}),
        "Range": model([node("Range", ["a", "b", "c"])], {"a": np.array(0), "b": np.array(10**12), "c": np.array(1)}),
        "RandomNormal": model([node("RandomNormal", [], shape=[HUGE, HUGE])]),
        "Resize": model([node("Resize", ["w", "", "", "s"])], {"w": four, "s": shape(1, 1, HUGE, HUGE)}),
        "a number without end": model([node("ConstantOfShape", ["s"])], {"s": shape(*[10**18] * 40)}),
        "an input without end": model([node("Relu", ["x"])], inputs=[value("x", [2**62] * 2000)]),
        "Pad": model([node("Pad", ["x", "s"])], {"s": shape(0, 10**12)}),
        "OneHot": model([node("OneHot", ["x", "s", "w"])], {"s": shape(10**12), "w": np.ones(2, np.float32)}),
        "an activation": model([node("Relu", ["x"])], inputs=[value("x", [HUGE, HUGE])]),
    }
    makes["a tensor left out"] = model([node("Add", ["x", "w"])])
    makes["a tensor left out"].graph.initializer.append(external("w", "rlprune-synthetic", [HUGE, HUGE]))
    makes["a sparse tensor"] = model([node("Add", ["x", "w"])])
    ones, places = helper.make_tensor("w", FLOAT, [1], [1.0]), helper.make_tensor("i", INT64, [1], [0])
    makes["a sparse tensor"].graph.sparse_initializer.append(helper.make_sparse_tensor(ones, places, [HUGE, HUGE]))
    return makes


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_asks_for_all_memory_is_too_big(name: str) -> None:
    """F13"""
    assert len(BOMBS[name].SerializeToString()) < 30_000
    failure = refused(BOMBS[name], synthetic=True)
    assert failure.kind == "too_big"
    assert "this board gives it 1.0 GB" in failure.message


def test_what_is_there_counts_too_and_a_modest_demand_passes() -> None:
    assert refused(planted_models.dense(64), memory=30_000).kind == "too_big"
    assert checked(planted_models.dense(64), memory=50_000).tensor_bytes == 2 * 64 * 64 * 4
    assert checked(model([node("ConstantOfShape", ["s"])], {"s": shape(100, 100)}), memory=50_000).nodes == 1


def test_the_boards_share_is_sixty_percent_of_its_memory() -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert intake.memory_limit() == pytest.approx(0.6 * int(total.split()[1]) * 1024, rel=0.01)


def test_a_tensor_without_the_values_it_announces_is_damaged() -> None:
    made = model([node("Add", ["x", "w"])], {"w": np.ones(4, np.float32)})
    made.graph.initializer[0].dims[0] = 10**12
    assert "has 16 bytes of values, not 4000000000000" in refused(made).message
    made.graph.initializer[0].dims[0] = -4
    assert "the shape [-4]" in refused(made).message


# ---------------------------------------------------------------- operators, functions, depth


def test_a_foreign_domain_is_not_supported_and_known_ones_are() -> None:
    assert refused(model([node("Secret", ["x"], domain="com.evil")])).kind == "unsupported_op"
    assert "'Secret' is of the domain 'com.evil'" in refused(model([node("Secret", ["x"], domain="com.evil")])).message
    assert checked(model([node("Relu", ["x"])], domains=["com.microsoft.nchwc"])).nodes == 1, "named, not used"
    assert checked(model([node("Gelu", ["x"], domain="com.microsoft")], domains=["com.microsoft"])).nodes == 1
    assert "reads files" in refused(model([node("EPContext", ["x"], domain="com.microsoft")])).message


def function(number: int, calls: int, times: int = 1) -> onnx.FunctionProto:
    """F<number>, which calls F<calls>, or an operator if that is negative."""
    op, domain = (f"F{calls}", "own") if calls >= 0 else ("Relu", "")
    names = ["a", *(f"t{i}" for i in range(1, times)), "b"]
    nodes = [node(op, [names[i]], names[i + 1], domain=domain) for i in range(times)]
    return helper.make_function("own", f"F{number}", ["a"], ["b"], nodes, [])


def calling(functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    return model([node("F0", ["x"], domain="own")], functions=functions, domains=["own"])


@pytest.mark.parametrize("backwards", [False, True])
def test_functions_may_call_each_other_sixteen_deep(backwards: bool) -> None:
    def chain(length: int) -> onnx.ModelProto:
        made = [function(i, i + 1 if i + 1 < length else -1) for i in range(length)]
        return calling(made[::-1] if backwards else made)

    assert checked(chain(16)).nodes == 17
    assert "more than 16 deep" in refused(chain(18)).message
    assert "more than 16 deep" in refused(chain(5000)).message


def test_a_function_that_reaches_itself_is_refused() -> None:
    failure = refused(calling([function(0, 1), function(1, 2), function(2, 0)]))
    assert failure.kind == "load_failed"
    assert "calls itself" in failure.message


def test_functions_that_multiply_are_too_big() -> None:
    failure = refused(calling([function(i, i + 1 if i < 9 else -1, times=10) for i in range(10)]))
    assert (failure.kind, "1000000 nodes" in failure.message) == ("too_big", True)


def test_a_function_that_reaches_itself_through_a_default_is_refused() -> None:
    made = function(0, -1)
    inner = helper.make_graph([node("F0", ["x"], "z", domain="own")], "g", [], [value("z", [4])])
    made.attribute_proto.append(helper.make_attribute("branch", inner))
    assert "calls itself" in refused(calling([made])).message
    last = function(1, -1)
    last.attribute_proto.append(helper.make_attribute("branch", inner))
    assert checked(calling([function(0, -1), last])).nodes == 4


def nested(depth: int) -> onnx.ModelProto:
    graph = helper.make_graph([node("Relu", ["x"], "z")], "g", [], [value("z", [4])])
    for _ in range(depth - 1):
        graph = helper.make_graph(
            [node("If", ["c"], "z", then_branch=graph, else_branch=graph)], "g", [], [value("z", [4])]
        )
    return model([node("If", ["c"], then_branch=graph, else_branch=graph)], {"c": np.array(True)})


def test_graphs_may_lie_eight_deep_in_one_another() -> None:
    assert checked(nested(8)).nodes > 8
    assert "more than 8 deep" in refused(nested(9)).message


# ---------------------------------------------------------------- damaged files (F30)


def test_a_file_cut_off_anywhere_is_refused_with_a_sentence_that_helps() -> None:
    """F30"""
    data = planted_models.dense(8).SerializeToString()
    for size in range(len(data) - 40):
        failure = refused(data[:size])
        assert failure.kind == "load_failed"
        assert f"not a whole ONNX file (protobuf, {size} bytes)" in failure.message


@pytest.mark.parametrize(
    "data", [b"", b"not a model", os.urandom(0), b"\xff" * 100, b"PK\3\4" + b"\0" * 100, b"\x0b\x0c"]
)
def test_garbage_is_refused(data: bytes) -> None:
    """F30"""
    assert "export it again" in refused(data).message


def test_no_damage_gets_past_as_anything_but_a_failure_or_a_model() -> None:
    """F30"""
    """8,000 files with bytes flipped, cut out or doubled: nothing but `Failure` is ever raised."""
    rng = random.Random(0)
    kinds: set[str] = set()
    seeds = [planted_models.dense(8), nested(3), calling([function(0, 1), function(1, -1)]), BOMBS["a sparse tensor"]]
    for data in [seed.SerializeToString() for seed in seeds]:
        for _ in range(2000):
            broken = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(broken))
                size = rng.randint(1, 9)
                change = rng.random()
                if change < 0.6:
                    broken[at] = rng.randrange(256)
                elif change < 0.8:
                    del broken[at : at + size]
                else:
                    broken[at:at] = broken[at : at + size]
            try:
                checked(bytes(broken), synthetic=True)
            except Failure as failure:
                kinds.add(failure.kind)
    assert kinds == {"load_failed", "unsupported_op", "too_big"}


def test_what_protobuf_would_merge_is_refused() -> None:
    """Two halves of a tensor may each be harmless and together point anywhere."""
    data = planted_models.dense(8).SerializeToString()
    assert "two graphs" in refused(data + data).message
    attribute = helper.make_attribute("value", numpy_helper.from_array(np.ones(4, np.float32)))
    twice = onnx.AttributeProto.FromString(attribute.SerializeToString()).SerializeToString()
    made = model([node("Constant", [], "y")])
    at_once = made.graph.node[0].SerializeToString()
    body = twice + attribute.t.SerializeToString().join([b"\x2a" + bytes([attribute.t.ByteSize()]), b""])
    part = b"\x2a" + bytes([len(body)]) + body
    assert len(body) < 128
    graph = b"\x0a" + bytes([len(at_once + part)]) + at_once + part
    assert "there twice" in refused(b"\x08\x08\x3a" + bytes([len(graph)]) + graph).message


def test_formats_that_would_not_be_checked_are_refused() -> None:
    assert "own format" in refused(b"\x18\0\0\0ORTM" + b"\0" * 100).message
    made = planted_models.dense(8)
    made.training_info.add()
    assert "training information" in refused(made).message


def test_the_walk_copies_no_tensor() -> None:
    data = planted_models.dense(2048).SerializeToString()
    tracemalloc.start()
    try:
        found = checked(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.tensor_bytes == 2 * 4 * 2048**2
    assert peak < 100_000


def test_the_number_of_fields_is_bounded() -> None:
    with pytest.raises(wire.Malformed, match="more than"):
        list(wire.fields(b"\x08\x01" * 1001, 0, 2002, wire.Budget(1000)))


# ---------------------------------------------------------------- packed graphs


def test_a_packed_graph_is_unpacked_and_a_bomb_is_not() -> None:
    data = planted_models.dense(8).SerializeToString()
    assert intake.unpacked(zlib.compress(data)) == data
    assert intake.unpacked(data) is data
    for broken, why in (
        (zlib.compress(data)[:-9], "is not whole"),
        (b"\x78\x9c" + b"\xff" * 50, "is damaged"),
        (zlib.compress(b"\0" * (intake.GRAPH_MAX + 1)), "more than 64 MB"),
    ):
        with pytest.raises(Failure, match=why) as caught:
            intake.unpacked(broken)
        assert caught.value.kind == "load_failed"
