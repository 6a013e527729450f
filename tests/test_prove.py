"""A bundle is run on a device: its answers have to be the recorded ones, its latency is held against its claim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle.conftest import LABELS, PREPROCESSING
from bundle.test_bundle_verify import seal
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from rlprune_edge import prove
from rlprune_edge.bundle.verify import BundleError, sha256_of, verify
from rlprune_edge.bundle.write import write_bundle
from rlprune_edge.cli import app
from rlprune_edge.device.boards import load_device
from rlprune_edge.device.meter import MODES
from rlprune_edge.export import host
from rlprune_edge.measurements import Interval
from rlprune_edge.records import TensorSpec

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two matrix products, large enough to be timed, with two golden examples; no latency is claimed."""
    weights = np.random.default_rng(0).normal(size=(16, 4096)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["h"])]
    nodes.append(helper.make_node("MatMul", ["h", "v"], ["scores"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("image", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [value("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(weights[:3].T.copy() / 4096, "v")],
    )
    model = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    golden = []
    for seed in range(2):
        given = {"image": np.random.default_rng(seed).normal(size=(1, 1, 4, 4)).astype(np.float32)}
        golden.append((given, host.outputs(model, given)))
    return write_bundle(
        tmp_path / "bundle",
        model=model,
        task="tiny",
        inputs=(TensorSpec("image", "float32", (None, 1, 4, 4)),),
        outputs=(TensorSpec("scores", "float32", (None, 3)),),
        preprocessing=PREPROCESSING,
        labels=LABELS,
        metrics={"baseline": {}, "compressed": {}},
        measurement={"source": "local", "device": "local", "threads": 1, "mode": "verify"},
        versions={},
        golden=golden,
        extra={"timed_golden": 1},
    )


def claims(bundle: Path, milliseconds: float, key: str) -> None:
    latency = {"value": milliseconds, "low": milliseconds * 0.98, "high": milliseconds * 1.02}
    seal(bundle, lambda raw: raw["measurement"].update(latency_ms=latency, options={"device_key": key}))


@pytest.mark.parametrize(
    ("measured", "word"),
    [
        ((0.98, 1.0, 1.02), "as claimed"),
        ((1.03, 1.05, 1.07), "as claimed"),
        ((1.05, 1.08, 1.1), "slower"),
        ((0.88, 0.9, 0.93), "faster"),
        ((0.93, 0.96, 0.965), "as claimed"),
    ],
)
def test_another_latency_is_one_that_lies_apart_by_more_than_the_noise(
    measured: tuple[float, float, float], word: str
) -> None:
    low, value, high = measured
    assert prove.judge(Interval(value, low, high), Interval(1.0, 0.98, 1.02), 0.02) == word


def test_its_answers_and_its_claim_are_looked_at_on_the_device(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLPRUNE_CACHE", str(cache))
    for name in ("reward", "verify"):  # what is looked at does not depend on how long it takes
        monkeypatch.setitem(MODES, name, replace(MODES["brief"], local_wait_seconds=0.1))
    with load_device("local", cache_dir=cache, threads=1) as station:
        key = station.key
    words = ["bundle", "verify", str(bundle), "--device", "local", "--mode"]
    said = CliRunner().invoke(app, [*words, "reward"])
    assert said.exit_code == 0, said
    assert "2 golden examples reproduced on local" in said.stdout
    assert "verdict: not comparable (the bundle does not say which device its latency is of)" in said.stdout
    claims(bundle, 1.0, key)
    assert "verdict: not comparable (mode reward is too short" in CliRunner().invoke(app, [*words, "reward"]).stdout
    claims(bundle, 1e-6, key)
    done = CliRunner().invoke(app, [*words, "verify"])
    assert (done.exit_code, "verdict: slower" in done.stdout) == (4, True), done.stdout
    claims(bundle, 1.0, "another")
    other = CliRunner().invoke(app, [*words, "reward"]).stdout
    assert "its latency is claimed for 'local', and 'local' is another device, or has other versions" in other


def test_an_answer_that_is_another_there_is_refused(bundle: Path, cache: Path) -> None:
    # The host recorded this answer; a device that gives the true one is then the one that differs.
    stored = bundle / "golden" / "0-output-0.npy"
    np.save(stored, np.load(stored) + np.float32(0.5))
    seal(bundle, lambda raw: raw["files"].update({"golden/0-output-0.npy": sha256_of(stored)}))
    with pytest.raises(BundleError, match="golden example 0 fails"):
        verify(bundle)
    with pytest.raises(BundleError, match=r"golden example 0 fails on 'local': .*differs from the host's"):
        prove.prove(bundle, "local", mode="brief", cache_dir=cache)


@pytest.mark.parametrize("number", [2, -1, "0", None])
def test_a_timed_example_that_is_none_is_refused(bundle: Path, cache: Path, number: Any) -> None:
    seal(bundle, lambda raw: raw.update(timed_golden=number))
    with pytest.raises(BundleError, match="'timed_golden' is"):
        prove.prove(bundle, "local", mode="brief", cache_dir=cache)


def test_without_examples_there_is_nothing_to_hold_it_against(bundle: Path, cache: Path) -> None:
    for path in (bundle / "golden").iterdir():
        path.unlink()

    def forget(raw: dict[str, Any]) -> None:
        raw["golden"] = []
        raw["files"] = {name: sha for name, sha in raw["files"].items() if not name.startswith("golden/")}

    seal(bundle, forget)
    with pytest.raises(BundleError, match="no golden examples"):
        prove.prove(bundle, "local", mode="brief", cache_dir=cache)
