"""The bundle's own predict.py, run where a user runs it: in the bundle, with numpy and onnxruntime."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlprune_edge.bundle import predict_template as predict
from rlprune_edge.bundle.verify import verify

Write = Callable[..., Path]
PREPROCESSING = {
    "kind": "image", "layout": "NCHW", "dtype": "float32", "size": [4, 4], "channels": "L", "scale": 1 / 16,
    "mean": [0.5], "std": [0.25], "resize": None, "raw_max": 16,
}  # fmt: skip
COLOUR = {
    "kind": "image",
    "layout": "NCHW",
    "dtype": "float32",
    "size": [6, 5],
    "channels": "RGB",
    "scale": 1 / 255,
    "mean": [0.5, 0.25, 0.0],
    "std": [0.5, 1.0, 2.0],
    "resize": "bilinear",
}


def in_the_bundle(bundle: Path, *words: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    block = f"import sys; sys.modules.update(dict.fromkeys({without!r})); import runpy; sys.argv[:] = sys.argv[1:]; "
    command = [sys.executable, "-B", "-I", "-c", block + "runpy.run_path('predict.py', run_name='__main__')"]
    return subprocess.run([*command, "predict.py", *words], cwd=bundle, capture_output=True, text=True)


def test_golden_0_is_reproduced(bundle: Path, parts: dict[str, Any]) -> None:
    done = in_the_bundle(bundle, "--golden", "0", without=("torch", "onnx", "rlprune_edge", "PIL", "typer", "pydantic"))
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["reproduced"] is True
    assert answer["max_difference"] < 1e-4
    assert answer["predictions"][0]["index"] == int(parts["golden"][0][1]["scores"].argmax())
    assert len(verify(bundle)) == 6, "running predict.py changed the bundle"


def test_an_array_and_a_batch_of_them(bundle: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(5).integers(0, 17, size=(3, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "one.npy", images[1])
    np.save(tmp_path / "three.npy", images)
    one = json.loads(in_the_bundle(bundle, str(tmp_path / "one.npy"), "--top", "2").stdout)
    three = json.loads(in_the_bundle(bundle, str(tmp_path / "three.npy")).stdout)
    assert len(one["top"]) == 2
    assert one["top"][0]["label"] == one["label"]
    assert [len(three), three[1]["label"]] == [3, one["label"]]
    assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["missing.npy"], "cannot read missing.npy: No such file or directory"),
        (["README.md"], "cannot read README.md as an image"),
        (["--golden", "9"], "there is no golden example 9; the bundle has 2"),
        (["pickled.npy"], "pickled.npy is not an array of numbers in numpy's .npy format"),
        (["text.npy"], "an array of numbers is needed, not <U3 of shape [1]"),
        (["wide.npy"], "the image must be 4 x 4, not 4 x 9"),
    ],
)
def test_bad_input_is_one_sentence_and_2(bundle: Path, words: list[str], sentence: str) -> None:
    np.save(bundle / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(bundle / "text.npy", np.array(["abc"]))
    np.save(bundle / "wide.npy", np.zeros((4, 9)))
    done = in_the_bundle(bundle, *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence + "\n")


def test_without_pillow_image_files_get_a_sentence(bundle: Path) -> None:
    done = in_the_bundle(bundle, "photo.png", without=("PIL",))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("photo.png: image files need Pillow (python -m pip install pillow)")


def test_a_changed_model_is_not_run(bundle: Path) -> None:
    with open(bundle / "model.onnx", "ab") as file:
        file.write(b"\0")
    done = in_the_bundle(bundle, "--golden", "0")
    assert done.returncode == 2
    assert "is not the file that manifest.json describes" in done.stderr


def test_a_model_with_batch_1_takes_a_batch_in_turns(write: Write, tmp_path: Path) -> None:
    from rlprune_edge.records import TensorSpec

    bundle = write(tmp_path / "one", inputs=(TensorSpec("image.1", "float32", (1, 1, 4, 4)),))
    images = np.random.default_rng(5).integers(0, 17, size=(3, 4, 4))
    free = predict.load(write(tmp_path / "free")).predict(images)
    assert [a["label"] for a in predict.load(bundle).predict(images)] == [a["label"] for a in free]


def test_colour_images_are_prepared_as_the_manifest_says() -> None:
    image = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    expected = (image / 255 - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0]
    batch = predict._prepare_images(image, COLOUR)
    assert (batch.shape, batch.dtype) == ((1, 3, 6, 5), np.float32)
    np.testing.assert_allclose(batch[0], expected.transpose(2, 0, 1), atol=1e-6)
    swapped = predict._prepare_images(image[..., ::-1], {**COLOUR, "channels": "BGR", "layout": "NHWC"})
    np.testing.assert_allclose(swapped[0], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(12, 10), (3, 4), (6, 11)])
def test_resizing_is_pillows(size: tuple[int, int]) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is the reference here")
    image = np.random.default_rng(1).integers(0, 256, size=(*size, 3), dtype=np.uint8)
    rules = {**COLOUR, "scale": 1, "mean": None, "std": None, "layout": "NHWC"}
    expected = np.asarray(image_module.fromarray(image).resize((5, 6), image_module.Resampling.BILINEAR), dtype=float)
    assert np.abs(predict._prepare_images(image, rules)[0] - expected).max() <= 1.0  # Pillow rounds to whole numbers


def test_a_picture_is_brought_to_the_range_of_the_training_data(bundle: Path, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is optional for predict.py")
    raw = np.random.default_rng(2).integers(0, 17, size=(4, 4))
    image_module.fromarray((raw * 255 / 16).round().astype(np.uint8)).convert("RGB").save(tmp_path / "digit.png")
    from_file = json.loads(in_the_bundle(bundle, str(tmp_path / "digit.png")).stdout)
    assert from_file["probabilities"] == pytest.approx(predict.load(bundle).predict(raw)["probabilities"], abs=0.02)


def test_a_picture_of_unknown_range_is_not_guessed_at(write: Write, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is optional for predict.py")
    image_module.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "digit.png")
    preprocessing = {key: value for key, value in PREPROCESSING.items() if key != "raw_max"}
    done = in_the_bundle(write(tmp_path / "unsaid", preprocessing=preprocessing), str(tmp_path / "digit.png"))
    assert (done.returncode, "does not say what white is in raw values (raw_max)" in done.stderr) == (2, True)
    bytes_too = {**preprocessing, "scale": 1 / 255}
    done = in_the_bundle(write(tmp_path / "bytes", preprocessing=bytes_too), str(tmp_path / "digit.png"))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_copy_in_the_bundle_is_the_template(bundle: Path) -> None:
    assert (bundle / "predict.py").read_bytes() == Path(predict.__file__).read_bytes()


def test_a_bundle_can_be_moved(bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "usb stick" / "digits"
    moved.parent.mkdir()
    shutil.move(bundle, moved)
    assert len(verify(moved)) == 6
    assert in_the_bundle(moved, "--golden", "1").returncode == 0
