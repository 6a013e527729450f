"""Run the model of this bundle: needs numpy and onnxruntime, nothing else.

    python predict.py photo.png            (image files need Pillow; .npy arrays do not)
    python predict.py array.npy --top 3    (H x W, H x W x C, or a batch of them; raw values, as a camera gives them)
    python predict.py --golden 0           (repeat a recorded example and compare)

From an app:

    import predict
    model = predict.load("path/to/bundle")
    model.predict(array)["label"]
"""

# ruff: noqa: T201 (this file is a command of its own; Python 3.8 is enough for it)

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import onnxruntime
except ImportError as missing:
    if __name__ == "__main__":
        print(f"{missing}: python -m pip install numpy onnxruntime", file=sys.stderr)
        raise SystemExit(2) from None
    raise


class PredictError(Exception):
    """One sentence that says what is wrong with the input or the bundle."""


def load(bundle_dir: str | Path, threads: int | None = None) -> Model:
    """Open a bundle. `threads` defaults to the number it was measured with. Raises PredictError."""
    return Model(Path(bundle_dir), threads)


class Model:
    """A loaded bundle; `predict(array)` for raw values, `run(inputs)` for values that are already prepared."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)
        try:
            self.inputs = [str(spec["name"]) for spec in self.manifest["inputs"]]
            self.outputs = [str(spec["name"]) for spec in self.manifest["outputs"]]
            expected = self.manifest["files"]["model.onnx"]
            self.preprocessing: dict[str, Any] = self.manifest["preprocessing"]
        except (KeyError, TypeError) as error:
            raise PredictError(f"{folder / 'manifest.json'} is not whole: {error} is missing") from error
        path = folder / "model.onnx"
        try:
            model = path.read_bytes()
        except OSError as error:
            raise PredictError(f"cannot read {path}: {error.strerror}") from error
        if hashlib.sha256(model).hexdigest() != expected:
            raise PredictError(f"{path} is not the file that manifest.json describes (its sha256 differs)")
        options = onnxruntime.SessionOptions()
        measured = self.manifest.get("measurement") or {}
        wanted = threads if threads is not None else measured.get("threads")
        if isinstance(wanted, int) and wanted > 0:
            options.intra_op_num_threads = wanted
        options.inter_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many classes that share no base but this one
            raise PredictError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {_first(error)}") from error
        self.labels: list[str] | None = self.manifest.get("labels")

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for prepared inputs by name. Raises PredictError where names, types or shapes do not fit."""
        if set(inputs) != set(self.inputs):
            raise PredictError(f"the model takes {', '.join(self.inputs)}; given: {', '.join(sorted(inputs))}")
        try:
            values = self.session.run(self.outputs, inputs)
        except Exception as error:  # as above
            raise PredictError(f"the model cannot run on this input: {_first(error)}") from error
        return {name: values[i] for i, name in enumerate(self.outputs)}

    def prepare(self, array: np.ndarray) -> np.ndarray:
        """The model's input batch for raw values, by the manifest's preprocessing. Raises PredictError."""
        kind = self.preprocessing.get("kind")
        if kind == "none":
            return np.ascontiguousarray(array, dtype=self.preprocessing.get("dtype"))
        if kind != "image":
            raise PredictError(f"predict.py cannot prepare inputs of kind {kind!r}; prepare them and call run()")
        try:
            return _prepare_images(array, self.preprocessing)
        except (KeyError, TypeError) as error:
            raise PredictError(f"manifest.json: the preprocessing of images is not whole ({error})") from error

    def predict(self, array: np.ndarray, top: int = 5) -> Any:
        """Label and probabilities for one raw array (a dict), or a list of them for a batch. Raises PredictError."""
        if len(self.inputs) != 1:
            raise PredictError(f"the model takes {len(self.inputs)} inputs: prepare them and call run()")
        array = np.asarray(array)
        if array.dtype.kind not in "biuf" or array.size == 0:
            raise PredictError(f"an array of numbers is needed, not {array.dtype} of shape {list(array.shape)}")
        batch = self.prepare(array)
        shape = self.manifest["inputs"][0]["shape"]
        parts = [batch[i : i + 1] for i in range(len(batch))] if shape and shape[0] == 1 else [batch]
        values = np.concatenate([self.run({self.inputs[0]: part})[self.outputs[0]] for part in parts])
        if values.ndim != 2:
            return {"outputs": {self.outputs[0]: values.tolist()}}
        answers = [self.describe(row, top) for row in values]
        return answers if self._is_batch(array) else answers[0]

    def describe(self, scores: np.ndarray, top: int = 5) -> dict[str, Any]:
        """Label, probability of every class (softmax of the model's scores) and the `top` most probable."""
        powers = np.exp(scores.astype(np.float64) - scores.max())
        probabilities = powers / powers.sum()
        names = self.labels or [str(i) for i in range(len(scores))]
        order = np.argsort(-probabilities, kind="stable")
        best = [{"label": names[i], "probability": round(float(probabilities[i]), 6)} for i in order[: max(1, top)]]
        shares = {names[i]: round(float(p), 6) for i, p in enumerate(probabilities)}
        return {"label": names[order[0]], "index": int(order[0]), "top": best, "probabilities": shares}

    def check_golden(self, number: int) -> tuple[float, dict[str, np.ndarray]]:
        """Run recorded example `number`; largest absolute difference, and the outputs.

        Raises PredictError where the outputs differ by more than the manifest's tolerance.
        """
        recorded = self.manifest.get("golden") or []
        if not 0 <= number < len(recorded):
            raise PredictError(f"there is no golden example {number}; the bundle has {len(recorded)}")
        entry = recorded[number]
        outputs = self.run({name: read_array(self.folder / path) for name, path in entry["inputs"].items()})
        allowed = self.manifest.get("tolerance") or {}
        worst = 0.0
        for name, path in entry["outputs"].items():
            expected, got = read_array(self.folder / path), outputs[name]
            if got.shape != expected.shape:
                raise PredictError(f"{path}: the model gives shape {list(got.shape)}, not {list(expected.shape)}")
            worst = max(worst, float(np.max(np.abs(got.astype(np.float64) - expected), initial=0.0)))
            if not np.allclose(got, expected, rtol=allowed.get("relative", 0), atol=allowed.get("absolute", 0)):
                raise PredictError(f"{path}: the model does not reproduce this output (largest difference {worst:.3g})")
        return worst, outputs

    def _is_batch(self, array: np.ndarray) -> bool:
        if self.preprocessing.get("kind") == "image":
            return array.ndim == 4 or (array.ndim == 3 and _channels(self.preprocessing) == 1 and array.shape[-1] != 1)
        return bool(array.shape[0] != 1)


def read_array(path: Path) -> np.ndarray:
    """The array of one .npy file. Raises PredictError; pickled objects are refused."""
    try:
        with open(path, "rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise PredictError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise PredictError(f"{path} is not an array of numbers in numpy's .npy format") from error
    return array


def read_image(path: Path, preprocessing: dict[str, Any]) -> np.ndarray:
    """Raw values (H x W or H x W x 3) of an image file, in the range the model was trained on. Needs Pillow."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise PredictError(
            f"{path}: image files need Pillow (python -m pip install pillow); .npy arrays do not"
        ) from None
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if _channels(preprocessing) == 1 else "RGB"), dtype=np.float32)
    except (OSError, UnidentifiedImageError) as error:
        raise PredictError(f"cannot read {path} as an image") from error
    highest = preprocessing.get("raw_max")
    if highest is None and abs(preprocessing.get("scale", 0) * 255 - 1) < 1e-6:
        highest = 255
    if highest is None:
        raise PredictError(
            f"{path}: manifest.json does not say what white is in raw values (raw_max); give a .npy array"
        )
    return pixels * np.float32(highest / 255)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PredictError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PredictError(f"{path} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        raise PredictError(f"{path} is not a bundle manifest of format 1")
    return manifest


def _channels(rules: dict[str, Any]) -> int:
    known = {"RGB": 3, "BGR": 3, "L": 1, "GRAY": 1, "GRAYSCALE": 1}
    kind = str(rules.get("channels")).upper()
    if kind not in known:
        raise PredictError(f"manifest.json: unknown kind of channels {rules.get('channels')!r}")
    return known[kind]


def _prepare_images(array: np.ndarray, rules: dict[str, Any]) -> np.ndarray:
    """Raw H x W, H x W x C or a batch of them -> the model's batch. x -> (x * scale - mean) / std, per channel."""
    channels = _channels(rules)
    images: np.ndarray = np.asarray(array, dtype=np.float32)
    if channels == 1 and (images.ndim == 2 or images.shape[-1] != 1):
        images = images[..., None]
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[-1] != channels:
        wanted = "H x W" if channels == 1 else "H x W x 3"
        raise PredictError(f"an image of shape {wanted}, or a batch of them, is needed, not {list(array.shape)}")
    height, width = (int(n) for n in rules["size"])
    if images.shape[1:3] != (height, width):
        if rules.get("resize") != "bilinear":
            raise PredictError(f"the image must be {height} x {width}, not {images.shape[1]} x {images.shape[2]}")
        rows, columns = _weights(images.shape[1], height), _weights(images.shape[2], width)
        images = np.asarray(np.einsum("yh,nhwc,xw->nyxc", rows, images, columns, optimize=True), dtype=np.float32)
    if str(rules.get("channels")).upper() == "BGR":
        images = images[..., ::-1]
    images = images * np.float32(rules.get("scale", 1.0))
    mean, std = rules.get("mean"), rules.get("std")
    if mean is not None:
        images = images - np.asarray(mean, dtype=np.float32)
    if std is not None:
        images = images / np.asarray(std, dtype=np.float32)
    if rules.get("layout", "NCHW") == "NCHW":
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, dtype=rules.get("dtype", "float32"))


def _weights(old: int, new: int) -> np.ndarray:
    """Bilinear resampling of one axis as a `new` x `old` matrix; the filter widens when shrinking, as Pillow's does."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old)[None, :] + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.clip(1.0 - distance, 0.0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def _first(error: Exception) -> str:
    """The first line of a message, short enough for one sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON document; exit 2 and one sentence on stderr where something is wrong."""
    parser = argparse.ArgumentParser(description="Run the model of this bundle.")
    parser.add_argument("input", nargs="?", type=Path, help=".npy array of raw values, or an image file")
    parser.add_argument("--golden", type=int, metavar="N", help="repeat recorded example N and compare")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="how many of the most probable to list")
    parser.add_argument("--threads", type=int, metavar="N", help="default: as it was measured")
    options = parser.parse_args(argv)
    if (options.input is None) == (options.golden is None):
        parser.error("give either an input file or --golden N")
    try:
        model = load(Path(__file__).resolve().parent, options.threads)
        if options.golden is not None:
            worst, outputs = model.check_golden(options.golden)
            answer: Any = {"golden": options.golden, "reproduced": True, "max_difference": worst}
            first = outputs[model.outputs[0]]
            if first.ndim == 2:
                answer["predictions"] = [model.describe(row, options.top) for row in first]
        elif options.input.suffix.lower() == ".npy":
            answer = model.predict(read_array(options.input), options.top)
        else:
            answer = model.predict(read_image(options.input, model.preprocessing), options.top)
    except PredictError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(answer, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
