"""The examples in a bundle, as a reader of its README would use them: Node, a browser, a C++ compiler."""

from __future__ import annotations

import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from bundle.speech_bundles import as_wave, spoken
from bundle.text_bundles import TEXTS

from rlprune_edge.bundle import predict_template as predict
from rlprune_edge.export import selfcontained
from rlprune_edge.records import TensorSpec

App = Callable[..., Path]


@pytest.fixture
def images(write: Callable[..., Path], parts: dict[str, Any], tmp_path: Path) -> Path:
    """The bundle of grey images, with its preprocessing in the graph."""
    rules, whole = parts["preprocessing"], tmp_path / "whole.onnx"
    assert selfcontained.contain(parts["model"], whole, rules)
    session = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    golden = []
    for seed in range(2):
        raw = np.random.default_rng(seed).integers(0, 17, (1, 4, 4, 1), dtype=np.uint8)
        golden.append(({"image": raw}, {"scores": session.run(None, {"image": raw})[0]}))
    return write(
        tmp_path / "images",
        model=whole,
        inputs=(TensorSpec("image", "uint8", (None, 4, 4, 1)),),
        preprocessing=selfcontained.rules_left(rules, "uint8"),
        golden=golden,
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    """An example copied out of a bundle, its packages installed as the bundle's README says; once for all bundles."""
    made: dict[str, Path] = {}

    def app(bundle: Path, language: str) -> Path:
        if language not in made:
            folder = tmp_path_factory.mktemp(language) / language
            shutil.copytree(bundle / "examples" / language, folder)
            words = [needed("npm"), "install", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=300)
            made[language] = folder
        return made[language]

    return app


def needed(*names: str) -> str:
    """The program of one of these names; without it, the test is skipped, but not where everything has to be there."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        assert not os.environ.get("CI"), f"{names[0]} is missing"
        pytest.skip(f"there is no {names[0]} on this machine")
    return found


def node(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [needed("node"), "predict.mjs", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_node_repeats_the_examples_and_answers_as_predict_py(
    app: App, images: Path, write_texts: App, write_speech: App, tmp_path: Path
) -> None:
    folder = app(images, "node")
    texts, speech = write_texts(tmp_path / "texts"), write_speech(normalize=False)
    for bundle in (images, texts, speech):
        done = node(folder, bundle, "--golden", 1)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["reproduced"] is True
    raw = np.random.default_rng(7).integers(0, 17, (4, 4), dtype=np.uint8)
    np.save(tmp_path / "raw.npy", raw)
    same(json.loads(node(folder, images, tmp_path / "raw.npy").stdout), predict.load(images).predict(raw))
    model = predict.load(texts)
    for text in TEXTS:
        same(json.loads(node(folder, texts, f"--text={text}").stdout), model.predict(text))
    sound = as_wave(tmp_path / "hello.wav", spoken())
    assert json.loads(node(folder, speech, sound).stdout)["text"] == "HELLO WORLD"


def same(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    assert answer["label"] == expected["label"]
    got = {entry["label"]: entry["probability"] for entry in answer["top"]}
    assert got == pytest.approx(expected["probabilities"], abs=1e-5)


def test_node_says_what_is_wrong(app: App, images: Path, tmp_path: Path) -> None:
    folder = app(images, "node")
    np.save(tmp_path / "large.npy", np.zeros((5, 4), np.uint8))
    for words, said in (
        ([tmp_path / "large.npy"], "the image must be 4 x 4, not 5 x 4"),
        (["--text", "a text"], "not texts"),
        (["--golden", 9], "there is no golden example 9; the bundle has 2"),
        ([], "usage:"),
    ):
        done = node(folder, images, *words)
        assert (done.returncode, said in done.stderr) == (2, True), done
    stored = np.load(images / "golden/0-output-0.npy")
    np.save(images / "golden/0-output-0.npy", stored + np.float32(0.05))
    done = node(folder, images, "--golden", 0)
    assert (done.returncode, "does not reproduce this output" in done.stderr) == (2, True)
    with open(images / "model.onnx", "ab") as file:
        file.write(b"\x00")
    assert "model.onnx is not the file that manifest.json describes" in node(folder, images, "--golden", 1).stderr


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """Serves a folder on this machine; its address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

        def log_message(self, format: str, *args: object) -> None: ...

    def serve(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_page_repeats_the_examples_in_a_browser(
    app: App, images: Path, write_texts: App, write_speech: App, served: Callable[[Path], str], tmp_path: Path
) -> None:
    browser = needed("chromium", "google-chrome", "chromium-browser")
    folder = app(images, "web")
    bundles = {"images": images, "texts": write_texts(tmp_path / "texts"), "speech": write_speech(normalize=False)}
    for name, bundle in bundles.items():
        shutil.copytree(bundle, folder / name)
    address = served(folder)
    for name, bundle in bundles.items():
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--no-first-run", "--disable-component-update"]
        command += ["--virtual-time-budget=60000", "--dump-dom", f"{address}/index.html?bundle={name}"]
        page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        assert 'data-done="yes"' in page, page
        found = json.loads(html.unescape(re.search(r'id="golden">(.*?)</pre>', page, re.DOTALL)[1]))  # type: ignore[index]
        count = len(list((bundle / "golden").glob("*-output-0.npy")))
        assert [entry["golden"] for entry in found] == list(range(count))
        assert all(entry["reproduced"] and entry["maxDifference"] < 1e-4 for entry in found)
        assert '<input type="text"' in page if name == "texts" else '<input type="file"' in page


def test_the_cpp_example_repeats_an_example(images: Path, tmp_path: Path) -> None:
    place = os.environ.get("ONNXRUNTIME_DIR", "")
    if not place and not Path("/usr/include/onnxruntime").is_dir():
        pytest.skip("no headers of ONNX Runtime here, and ONNXRUNTIME_DIR does not say where a release of it is")
    folder = tmp_path / "cpp"
    shutil.copytree(images / "examples" / "cpp", folder)
    for words in (["-S", ".", "-B", "build", f"-DONNXRUNTIME_DIR={place}"], ["--build", "build"]):
        subprocess.run([needed("cmake"), *words], cwd=folder, check=True, timeout=300)
    golden = images / "golden"
    command = [folder / "build" / "predict", images / "model.onnx", f"image={golden / '0-input-0.npy'}", "--expect"]
    done = subprocess.run([*command, f"scores={golden / '0-output-0.npy'}"], capture_output=True, text=True)
    assert (done.returncode, ", as recorded" in done.stdout) == (0, True), done
    done = subprocess.run([*command, f"scores={golden / '1-output-0.npy'}"], capture_output=True, text=True)
    assert (done.returncode, ", NOT as recorded" in done.stdout) == (1, True), done
