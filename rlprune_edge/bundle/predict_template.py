"""Run the model of this bundle: needs numpy and onnxruntime, nothing else.

    python predict.py photo.png            (image files need Pillow; .npy arrays do not)
    python predict.py array.npy --top 3    (H x W, H x W x C, or a batch of them; raw values, as a camera gives them)
    python predict.py --text "a text"      (models of texts; a file has one text in each line)
    python predict.py speech.wav           (models of speech; other recordings need soundfile)
    python predict.py --golden 0           (repeat a recorded example and compare)

From an app:

    import predict
    model = predict.load("path/to/bundle")
    model.predict(array)["label"]          (a text or a list of them; a recording as an array [samples])
"""

# ruff: noqa: T201 (this file is a command of its own; Python 3.8 is enough for it)

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Mapping

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
    """A loaded bundle; `predict` for what a camera, a person or a microphone gives, `run` for prepared inputs."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)
        try:
            self.inputs = [str(spec["name"]) for spec in self.manifest["inputs"]]
            self.outputs = [str(spec["name"]) for spec in self.manifest["outputs"]]
            self.manifest["files"]["model.onnx"]
            self.preprocessing: dict[str, Any] = self.manifest["preprocessing"]
        except (KeyError, TypeError) as error:
            raise PredictError(f"{folder / 'manifest.json'} is not whole: {error} is missing") from error
        path, model = folder / "model.onnx", self._file("model.onnx")
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
        self._tokenizer: Any = None

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

    def predict(self, given: Any, top: int = 5, sampling_rate: int | None = None) -> Any:
        """What the model says of raw values, as a dict; a list of dicts for a batch. Raises PredictError.

        An image is an array (see above), a text a `str` (a list of them for several), a recording an array [samples]
        of floats in -1..1 or 16-bit numbers at `sampling_rate` (the model's own unless given). A dict of prepared
        inputs by name goes to the model as it is. Answers: label and probabilities; `text`, `frames` and `seconds`
        for a recording; `outputs` for a model that gives neither classes nor letters.
        """
        if isinstance(given, Mapping):
            return self._answer(self.run(dict(given)), top, batch=True)
        kind = self.preprocessing.get("kind")
        if kind == "text":
            if isinstance(given, str):
                return self._answer(self.run(self.prepare_text(given)), top)
            if not isinstance(given, (list, tuple)) or not all(isinstance(text, str) for text in given):
                raise PredictError("the model takes a text or a list of texts")
            # one by one: padding to the longest would cost time and change the last digits
            return [self._answer(self.run(self.prepare_text(text)), top) for text in given]
        if kind == "audio":
            return self._transcribe(given, sampling_rate)
        if isinstance(given, str):
            raise PredictError(f"the model takes no texts: its inputs are of kind {kind!r}")
        if len(self.inputs) != 1:
            raise PredictError(f"the model takes {len(self.inputs)} inputs: give a dict of prepared ones")
        array = np.asarray(given)
        if array.dtype.kind not in "biuf" or array.size == 0:
            raise PredictError(f"an array of numbers is needed, not {array.dtype} of shape {list(array.shape)}")
        batch = self.prepare(array)
        shape = self.manifest["inputs"][0]["shape"]
        parts = [batch[i : i + 1] for i in range(len(batch))] if shape and shape[0] == 1 else [batch]
        values = np.concatenate([self.run({self.inputs[0]: part})[self.outputs[0]] for part in parts])
        return self._answer({self.outputs[0]: values}, top, batch=self._is_batch(array))

    def predict_file(self, path: Path, top: int = 5) -> Any:
        """The same for a file: a .npy array, an image, a text with one text in each line, or a recording."""
        kind, is_array = self.preprocessing.get("kind"), path.suffix.lower() == ".npy"
        if kind == "text":
            return self.predict(_read_lines(path), top)
        if is_array:
            return self.predict(read_array(path), top)
        if kind == "audio":
            speech = _beside("speech")
            samples, rate = _in_words(lambda: speech.read(path), path)
            return self.predict(samples, top, rate)
        return self.predict(read_image(path, self.preprocessing), top)

    def prepare_text(self, text: str) -> dict[str, np.ndarray]:
        """The model's inputs for one text, each [1, tokens]. Raises PredictError."""
        rules = self.preprocessing
        if self._tokenizer is None:
            self._tokenizer = _in_words(lambda: _beside("tokens").load(self._file(rules.get("tokenizer"))))
        length, fixed = rules.get("max_length"), self.manifest["inputs"][0]["shape"][-1]
        if not isinstance(length, int):
            raise PredictError("manifest.json: the preprocessing of texts has no max_length")
        length = length if fixed is None else min(length, fixed)
        numbers = _in_words(lambda: self._tokenizer.encode(text, length))
        padding = [0] * (0 if fixed is None else fixed - len(numbers))
        made = {
            "input_ids": numbers + [rules.get("padding", 0)] * len(padding),
            "attention_mask": [1] * len(numbers) + padding,
            "token_type_ids": [0] * len(numbers) + padding,
        }
        return self._typed({name: np.asarray([row]) for name, row in made.items()})

    def prepare_audio(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """The model's inputs for float32 [samples] at the model's rate, each [1, samples]. Raises PredictError."""
        rules, fixed = self.preprocessing, self.manifest["inputs"][0]["shape"][-1]
        samples = np.pad(samples, (0, max(0, int(rules.get("min_samples") or 0) - len(samples))))
        if rules.get("normalize"):
            samples = _beside("speech").normalised(samples)
        missing = 0 if fixed is None else fixed - len(samples)
        if missing < 0:
            raise PredictError(f"the recording has {len(samples)} samples, and the model takes {fixed}")
        mask = np.pad(np.ones(len(samples)), (0, missing))[None]
        samples = np.pad(samples, (0, missing))[None]
        return self._typed({name: mask if name == "attention_mask" else samples for name in self.inputs})

    def _transcribe(self, given: Any, sampling_rate: int | None) -> dict[str, Any]:
        if isinstance(given, str):
            raise PredictError("the model takes no texts: its inputs are recordings")
        speech, rules = _beside("speech"), self.preprocessing
        rate = rules.get("sampling_rate")
        if not isinstance(rate, int) or not isinstance(rules.get("decoding"), dict):
            raise PredictError("manifest.json: the preprocessing of audio has no sampling_rate or no decoding")
        own_rate = rate if sampling_rate is None else int(sampling_rate)
        samples = _in_words(lambda: speech.waveform(given))
        at_rate = _in_words(lambda: speech.resampled(samples, own_rate, rate))
        scores = self.run(self.prepare_audio(at_rate))[self.outputs[0]]
        if scores.ndim != 3:
            raise PredictError(f"the model's output has shape {list(scores.shape)}, not [1, frames, tokens]")
        said = _in_words(lambda: speech.decoded(scores[0], self.labels or [], rules["decoding"]))
        return {"text": said, "frames": scores.shape[1], "seconds": round(len(samples) / own_rate, 3)}

    def _typed(self, made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those that the model takes, in the types it takes."""
        types = {str(spec["name"]): spec["dtype"] for spec in self.manifest["inputs"]}
        unknown = set(types) - set(made)
        if unknown:
            raise PredictError(f"predict.py does not know what {', '.join(sorted(unknown))} is; call run()")
        return {name: np.ascontiguousarray(made[name], dtype=dtype) for name, dtype in types.items()}

    def _answer(self, outputs: dict[str, np.ndarray], top: int, batch: bool = False) -> Any:
        values = outputs[self.outputs[0]]
        if values.ndim != 2:
            return {"outputs": {self.outputs[0]: values.tolist()}}
        answers = [self.describe(row, top) for row in values]
        return answers if batch else answers[0]

    def _file(self, name: Any) -> bytes:
        """The content of a file of the bundle, which must be the one that manifest.json lists."""
        expected = self.manifest["files"].get(name) if isinstance(name, str) else None
        if expected is None or Path(name).name != name:
            raise PredictError(f"manifest.json: {name!r} is not one of the bundle's files")
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise PredictError(f"cannot read {path}: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise PredictError(f"{path} is not the file that manifest.json describes (its sha256 differs)")
        return content

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


def _read_lines(path: Path) -> list[str]:
    """One text for each line, empty ones too."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # no other character ends a line of a text file
    except OSError as error:
        raise PredictError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PredictError(f"{path} is not a text file in UTF-8") from error
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise PredictError(f"{path} holds no text")
    return [line[:-1] if line.endswith("\r") else line for line in lines]


def _beside(name: str) -> ModuleType:
    """The module that lies beside this file, as source: an import would leave a __pycache__ in the bundle."""
    if name not in _LOADED:
        path = Path(__file__).resolve().with_name(f"{name}.py")
        module = ModuleType(f"{__name__}_{name}")
        try:
            code = compile(path.read_bytes(), str(path), "exec")
        except OSError as error:
            raise PredictError(f"{path}, which belongs to predict.py, cannot be read: {error.strerror}") from error
        exec(code, module.__dict__)
        _LOADED[name] = module
    return _LOADED[name]


_LOADED: dict[str, ModuleType] = {}


def _in_words(work: Callable[[], Any], path: Path | None = None) -> Any:
    """What `work` gives, with its mistakes as PredictError."""
    try:
        return work()
    except OSError as error:
        raise PredictError(f"cannot read {path}: {error.strerror or error}") from error
    except KeyError as error:
        raise PredictError(f"manifest.json lacks {error}") from error
    except ValueError as error:
        raise PredictError(str(error)) from error


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
    dtype = np.dtype(rules.get("dtype", "float32"))
    if dtype.kind == "u":
        images = np.clip(np.rint(images), 0, rules.get("raw_max") or np.iinfo(dtype).max)
    return np.ascontiguousarray(images, dtype=dtype)


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
    parser.add_argument(
        "input", nargs="?", type=Path, help="an image, a recording, texts line by line, or a .npy array"
    )
    parser.add_argument("--text", help="a text, for models of texts")
    parser.add_argument("--golden", type=int, metavar="N", help="repeat recorded example N and compare")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="how many of the most probable to list")
    parser.add_argument("--threads", type=int, metavar="N", help="default: as it was measured")
    options = parser.parse_args(argv)
    if sum(given is not None for given in (options.input, options.text, options.golden)) != 1:
        parser.error("give an input file, --text TEXT or --golden N, and one of these only")
    try:
        model = load(Path(__file__).resolve().parent, options.threads)
        if options.golden is not None:
            worst, outputs = model.check_golden(options.golden)
            answer: Any = {"golden": options.golden, "reproduced": True, "max_difference": worst}
            first = outputs[model.outputs[0]]
            if first.ndim == 2:
                answer["predictions"] = [model.describe(row, options.top) for row in first]
        elif options.text is not None:
            answer = model.predict(options.text, options.top)
        else:
            answer = model.predict_file(options.input, options.top)
    except PredictError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(answer, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
