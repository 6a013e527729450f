"""Fewer bits are used where they were measured to be faster and lose little; everything else is said and left."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from processes import finish_within_target
from samples import a_measurement

from rlprune_edge import precisions, rungs
from rlprune_edge import request as requests
from rlprune_edge.bundle.verify import inspect, verify
from rlprune_edge.compress import opened as open_run
from rlprune_edge.errors import UserError
from rlprune_edge.export import host, quantize
from rlprune_edge.measurements import Interval
from rlprune_edge.precisions import DYNAMIC, FP16, FP32, STATIC, Variant
from rlprune_edge.progress import Silent
from rlprune_edge.records import Baseline, Quality, Target
from rlprune_edge.run import Run
from rlprune_edge.run_folder import RunFolder

EXAMPLES = Path(__file__).parent / "examples"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def opened(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Opens runs on the bars, whose uncut model is measured; closes them."""
    monkeypatch.syspath_prepend(EXAMPLES)
    with contextlib.ExitStack() as inside:
        yield functools.partial(_open, inside, cache, tmp_path)


def _open(inside: contextlib.ExitStack, cache: Path, parent: Path, **words: Any) -> Run:
    request = requests.make({"task": "own_task:Bars", "target_speedup": 1.3, **words})
    folder = RunFolder.create(parent / f"run{len(list(parent.iterdir()))}", request)
    inside.callback(folder.close)
    return inside.enter_context(open_run(request, folder, Silent(), cache_dir=cache))


def variant(name: str, speedup: tuple[float, float, float], metric: float = 90.0, rejected: str = "") -> Variant:
    low, value, high = speedup
    measured = a_measurement(speedup=Interval(value, low, high))
    return Variant(name, None, None, Quality(metric, 0.3, 100), measured, rejected=rejected)


def fp32_of(run: Run) -> Variant:
    quality = run.task.score(run.loaded.module, "validation")
    return replace(variant(FP32, (0.99, 1.0, 1.01)), quality=quality, scored=run.loaded.module)


def test_int8_in_both_ways_is_a_model_of_its_own_that_answers_alike(opened: Any) -> None:
    run = opened(precision="int8", max_drop=5)
    fp32 = fp32_of(run)
    best, tried = precisions.choose(run, run.loaded.module, fp32, fp32.quality, mode="reward")
    assert [v.name for v in tried] == [FP32, STATIC, DYNAMIC]
    assert best.name in (STATIC, DYNAMIC)
    assert [v.name for v in tried if not v.rejected] == [best.name]
    assert all(v.measurement is not None for v in tried)
    static, dynamic = tried[1:]
    for made, kinds in ((static, {"QuantizeLinear", "DequantizeLinear"}), (dynamic, {"DynamicQuantizeLinear"})):
        assert made.ready is not None
        model = onnx.load(made.ready.artifact.path)
        assert kinds <= {node.op_type for node in model.graph.node}
        assert [o.domain for o in model.opset_import] == [""], "no domain that a board's runtime may not know"
        assert model.ir_version <= 8
        work = made.ready.artifact.work
        assert work is not None
        # What computes in 8 bits is not bound by the speed with floats; dynamically, convolutions stay floats.
        assert (work.flops == 0) == (made is static)
        assert model.graph.node[0].name.startswith("preprocess/"), "an app feeds raw values to this one, too"
        assert made.scored is not None
        with torch.no_grad():
            prepared_outputs = made.scored(run.example).numpy()
        raw = host.outputs(Path(made.ready.artifact.path), made.ready.raw(run, run.example))
        np.testing.assert_allclose(next(iter(raw.values())), prepared_outputs, atol=made.ready.tolerance)
        assert made.quality is not None
        assert fp32.quality is not None
        assert abs(made.quality.metric - fp32.quality.metric) <= 5
    assert "ranges by percentile over 128 training inputs" in static.details


def test_auto_tries_what_may_pay_here_and_says_why_not(opened: Any) -> None:
    run = opened(precision="auto")
    fp32 = fp32_of(run)
    best, tried = precisions.choose(run, run.loaded.module, fp32, fp32.quality, mode="reward")
    rows = {row["precision"]: row for row in precisions.table(tried)}
    assert set(rows) == {FP32, STATIC, DYNAMIC, FP16}
    assert rows[FP16]["why"] == "not tried: processors compute it in fp32"
    assert [name for name, row in rows.items() if row["kept"]] == [best.name]
    for name in (STATIC, DYNAMIC):
        low, high = rows[name]["speedup_ci"]
        assert low <= rows[name]["speedup"] <= high
        if name != best.name:
            assert rows[name]["why"]


@pytest.mark.parametrize(("fp32s", "mode"), [((50.0, 51.0, 52.0), "reward"), ((0.01, 0.02, 0.03), "brief")])
def test_what_is_no_faster_at_a_quick_look_is_not_measured_for_minutes(opened: Any, fp32s: Any, mode: str) -> None:
    run = opened(precision="auto", max_drop=5)
    fp32 = replace(fp32_of(run), measurement=variant(FP32, fp32s).measurement)
    best, tried = precisions.choose(run, run.loaded.module, fp32, fp32.quality, mode="brief")
    assert (best is fp32) == (mode == "reward")
    assert [row["mode"] for row in precisions.table(tried)[1:3]] == [mode, mode]


def test_what_harms_most_stays_in_fp32_until_little_enough_is_lost(opened: Any) -> None:
    run = opened(precision="int8", max_drop=0)
    fp32 = fp32_of(run)
    assert fp32.quality is not None
    # An uncut model that nobody reaches: everything there is has to be tried, and the table has to say what it cost.
    unreached = replace(fp32.quality, metric=200.0)
    best, tried = precisions.choose(run, run.loaded.module, fp32, unreached, mode="reward")
    assert best is fp32
    assert tried[0].rejected == ""
    assert "in fp32: " in tried[1].details
    assert len(tried[1].details.split("in fp32: ")[1].split(", ")) == 2, "of three nodes, not all"
    assert all("are allowed" in v.rejected for v in tried[1:])
    assert any("--precision int8 was asked for, and fp32 is handed over" in note for note in run.notes)


def test_the_fastest_beyond_the_intervals_is_taken() -> None:
    fp32 = variant(FP32, (1.95, 2.0, 2.05))
    overlapping, faster, fastest = (
        variant(STATIC, (2.0, 2.1, 2.2)), variant(DYNAMIC, (2.2, 2.3, 2.4)), variant(FP16, (2.5, 2.6, 2.7)),
    )  # fmt: skip
    assert not precisions._faster(overlapping, fp32)
    assert precisions._faster(faster, fp32)
    judged = [precisions._judged(v, fastest, fp32) for v in (fp32, overlapping, faster, fastest)]
    assert [v.rejected for v in judged] == [
        "fp16 is faster", "not faster than fp32 beyond the intervals", "fp16 is faster", "",
    ]  # fmt: skip


def test_what_may_be_lost_is_what_was_asked_or_half_a_point_of_fp32s(opened: Any) -> None:
    run = opened()
    fp32, uncut = variant(FP32, (1, 1, 1), metric=90.0), Quality(92.0, 0.3, 100)
    assert precisions._loses(run, Quality(89.5, 0.3, 100), fp32, uncut) == ""
    assert "loses 0.60 points more than fp32, 0.5 are allowed" in precisions._loses(
        run, Quality(89.4, 0.3, 100), fp32, uncut
    )
    run = opened(max_drop=3)
    assert precisions._loses(run, Quality(89.0, 0.3, 100), fp32, uncut) == ""
    assert "loses 3.10 points of the uncut model's accuracy, 3 are allowed" in precisions._loses(
        run, Quality(88.9, 0.3, 100), fp32, uncut
    )


def test_cutting_is_asked_for_what_fewer_bits_leave() -> None:
    base = Baseline(Quality(90, 0.3, 100), latency_ms=60.0, memory_mb=200.0, parameters=1, macs=1)
    assert rungs.eased(Target(speedup=3.0), base, 1.0) == Target(speedup=3.0)
    assert rungs.eased(Target(speedup=3.0), base, 1.5).speedup == pytest.approx(2.06)
    assert rungs.eased(Target(speedup=2.0), base, 4.0).speedup == pytest.approx(1.05), "something is always cut"
    assert rungs.eased(Target(latency_ms=20.0), base, 1.5).latency_ms == pytest.approx(30 / 1.03)
    assert rungs.eased(Target(latency_ms=50.0), base, 2.0).latency_ms == pytest.approx(60 / 1.05)
    assert rungs.eased(Target(memory_mb=100.0, max_drop=1.0), base, 2.0) == Target(memory_mb=100.0, max_drop=1.0)


def test_the_gain_of_the_uncut_model_is_measured_once_and_kept(opened: Any) -> None:
    assert precisions.gain(opened()) == 1.0
    run = opened(precision="auto")
    found = precisions.gain(run)
    kept = run.folder.read_json(precisions.GAIN)
    assert kept is not None
    assert found == kept["gain"] >= 1.0
    assert [row["precision"] for row in kept["tried"]] == [STATIC, DYNAMIC, FP16]
    run.folder.write_json(precisions.GAIN, {**kept, "gain": 1.75})
    assert precisions.gain(run) == 1.75
    assert precisions.gain(opened(precision="auto", target_speedup=None, max_memory_mb=500)) == 1.0


def test_a_run_hands_over_int8_with_its_proof(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["compress", "--task", "own_task:Bars", "--target-speedup", "1.05", "--budget", "8", "--precision", "int8"]
    words += ["--max-drop", "20", "--agent", "uniform", "--epochs", "1", "--finalists", "1", "--out", str(out)]
    words += ["--search-mode", "brief", "--final-mode", "reward"]
    returned, said, errors = finish_within_target(words, cache)
    report = json.loads((out / "report.json").read_text())
    rows = {row["precision"]: row for row in report["precision"]}
    assert set(rows) == {FP32, STATIC, DYNAMIC}
    kept = next(row for row in rows.values() if row["kept"])
    assert returned == 0, said + errors
    assert f"Precision {kept['precision']}: " in said
    assert report["compressed"]["precision"] == kept["precision"]
    assert report["compressed"]["latency_ms"] == kept["latency_ms"]
    assert "Precision</h2>" in (out / "report.html").read_text()
    manifest = inspect(out / "bundle")
    assert manifest["precision"] == kept["precision"]
    assert manifest["preprocessing"]["layout"] == "NHWC"
    if kept["precision"] != FP32:
        assert manifest["tolerance"]["absolute"] > 1e-3
    assert any("reproduced" in line for line in verify(out / "bundle"))


def test_half_precision_and_what_cannot_be_quantized(tmp_path: Path, opened: Any) -> None:
    run = opened()
    bare, _ = run.export(run.loaded.module, tmp_path / "bare.onnx", {})
    quantize.prepared(Path(bare.path), tmp_path / "prepared.onnx")
    quantize.half(tmp_path / "prepared.onnx", tmp_path / "half.onnx")
    x = {"input": run.example.numpy()}
    one, other = (next(iter(host.outputs(p, x).values())) for p in (Path(bare.path), tmp_path / "half.onnx"))
    assert 0 < np.abs(one - other).max() < 0.02 * np.abs(one).max()
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(Exception, match="onnxruntime cannot prepare it for quantization"):
        quantize.prepared(tmp_path / "broken.onnx", tmp_path / "x.onnx")
    with pytest.raises(UserError, match="--precision int4 is not known: choose auto, fp32, int8, fp16"):
        requests.make({"precision": "int4"})
