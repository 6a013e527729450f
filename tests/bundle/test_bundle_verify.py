"""A stranger with numpy and onnxruntime can check a bundle, and nothing in it can change unnoticed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlprune_edge.bundle import manifest as manifests
from rlprune_edge.bundle import verify as verifying
from rlprune_edge.bundle.verify import BundleError, canonical_sums, inspect, read_input, run, sha256_of, verify

Write = Callable[..., Path]
FILES = [
    "LICENSE",
    "README.md",
    "SHA256SUMS",
    "examples/cpp/CMakeLists.txt",
    "examples/cpp/main.cpp",
    "examples/node/bundle.mjs",
    "examples/node/package.json",
    "examples/node/predict.mjs",
    "examples/web/bundle.mjs",
    "examples/web/index.html",
    "examples/web/package.json",
    "golden/0-input-0.npy",
    "golden/0-output-0.npy",
    "golden/1-input-0.npy",
    "golden/1-output-0.npy",
    "manifest.json",
    "model.onnx",
    "predict.py",
    "sbom.cdx.json",
]

# Everything that a machine with only Python, numpy and onnxruntime has; a bundle must not ask for more.
STRANGER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        allowed = {"numpy", "onnxruntime", "rlprune_edge"} | set(sys.stdlib_module_names)
        if name.split(".")[0] not in allowed and not sys._getframe(2).f_globals.get("__name__", "").startswith("onnx"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refuse())
from rlprune_edge.bundle.verify import main
code = main(sys.argv[1:])
refused = {"typer", "rich", "torch", "pydantic", "onnx", "plotly", "PIL"} & {m.split(".")[0] for m in sys.modules}
assert not refused, refused
sys.exit(code)
"""


def as_a_stranger(bundle: Path, *words: str) -> subprocess.CompletedProcess[str]:
    root = Path(verifying.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", STRANGER, str(bundle), *words], env=environment, capture_output=True, text=True
    )


def seal(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and make all sums right again, as a careful forger (or a newer writer) would."""
    path = bundle / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    sums = {p.relative_to(bundle).as_posix(): sha256_of(p) for p in bundle.rglob("*") if p.is_file()}
    del sums["SHA256SUMS"]
    (bundle / "SHA256SUMS").write_bytes(canonical_sums(sums))


def test_passes_with_numpy_and_onnxruntime_only(bundle: Path) -> None:
    done = as_a_stranger(bundle)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "ok 19 files, none missing, none extra"
    assert len(lines) == 6
    assert lines[-1].startswith("ok golden/1-output-0.npy: reproduced, largest difference ")


def test_the_list_of_files_is_the_one_flipped_below(bundle: Path) -> None:
    assert sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_anywhere_is_refused_by_name(bundle: Path, name: str) -> None:
    path = bundle / name
    whole = path.read_bytes()
    for place in {0, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1}:
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError) as caught:
            verify(bundle)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert len(verify(bundle)) == 6


def test_every_single_byte_of_the_sums_counts(bundle: Path) -> None:
    path = bundle / "SHA256SUMS"
    whole = path.read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x20  # turns letters into the other case and spaces into NUL
        path.write_bytes(changed)
        try:
            inspect(bundle)
        except BundleError as error:
            if "SHA256SUMS" in str(error):
                continue
        unnoticed.append(place)
    assert unnoticed == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + b"\n",
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text[:-1],
        lambda text: b"".join(reversed(text.splitlines(keepends=True))),
        lambda text: text + text.splitlines(keepends=True)[0],
        lambda text: text.replace(b"predict.py", b"../predict.py"),
        lambda text: text[:0],
    ],
)
def test_other_forms_of_the_sums_are_refused(bundle: Path, change: Callable[[bytes], bytes]) -> None:
    path = bundle / "SHA256SUMS"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BundleError, match="SHA256SUMS"):
        verify(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"^{name} is missing"):
        verify(bundle)


@pytest.mark.parametrize("name", ["payload.so", "golden/2-input-0.npy", ".hidden", "deep/er/file"])
def test_an_extra_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=f"^{name} in .* does not belong"):
        verify(bundle)


def test_what_python_left_there_is_explained(bundle: Path) -> None:
    (bundle / "__pycache__").mkdir()
    (bundle / "__pycache__" / "predict.cpython-311.pyc").write_bytes(b"x")
    with pytest.raises(BundleError, match="Python left it there, delete the folder"):
        verify(bundle)


def test_links_are_refused_even_to_the_right_bytes(bundle: Path) -> None:
    moved = bundle.parent / "model.onnx"
    shutil.move(bundle / "model.onnx", moved)
    (bundle / "model.onnx").symlink_to(moved)
    with pytest.raises(BundleError, match=r"^model\.onnx in .* is a link"):
        verify(bundle)
    (bundle / "model.onnx").unlink()
    shutil.move(moved, bundle / "model.onnx")
    shutil.move(bundle / "golden", bundle.parent / "golden")
    (bundle / "golden").symlink_to(bundle.parent / "golden")
    with pytest.raises(BundleError, match=r"^golden in .* is a link"):
        verify(bundle)


@pytest.mark.parametrize("name", ["../secret.npy", "/etc/passwd", "golden/../../secret.npy", "C:/x", "a\\b", "", "./a"])
def test_paths_out_of_the_bundle_are_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "secret.npy").write_bytes((bundle / "golden/0-input-0.npy").read_bytes())

    def point_outside(raw: dict[str, Any]) -> None:
        raw["files"][name] = sha256_of(bundle.parent / "secret.npy")
        raw["golden"][0]["inputs"]["image.1"] = name

    seal(bundle, point_outside)
    with pytest.raises(BundleError, match="not a path inside the bundle"):
        verify(bundle)


def test_outputs_that_the_model_does_not_give_are_refused(write: Write, parts: dict[str, Any], tmp_path: Path) -> None:
    given, expected = parts["golden"][0]
    wrong = write(tmp_path / "wrong", golden=[parts["golden"][1], (given, {"scores": expected["scores"] + 0.05})])
    with pytest.raises(BundleError, match=r"golden example 1 fails: .*1-output-0\.npy.*difference 0\.05\)"):
        verify(wrong)
    wide = {**parts["extra"], "tolerance": {"absolute": 0.06, "relative": 0}}
    assert (
        "largest difference 0.05"
        in verify(write(wrong, golden=[(given, {"scores": expected["scores"] + 0.05})], extra=wide))[-1]
    )


def test_a_model_other_than_described_is_refused(bundle: Path) -> None:
    def rename(raw: dict[str, Any]) -> None:
        raw["outputs"][0]["name"] = "logits"
        raw["golden"] = []

    seal(bundle, rename)
    with pytest.raises(BundleError, match=r"model\.onnx has other outputs \(scores\) than manifest\.json says"):
        verify(bundle)


def test_a_truncated_manifest_is_not_whole(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BundleError, match=r"manifest\.json and SHA256SUMS .* disagree"):
        verify(bundle)
    with pytest.raises(BundleError, match=r"manifest\.json is not whole: it does not parse as JSON"):
        manifests.parse(path.read_bytes())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 2}, "format 2, newer than the format 1 that this version reads: upgrade rlprune-edge"),
        ({"format": "1"}, "has no format number"),
        ({"format": True}, "has no format number"),
        ({"golden": None}, "'golden' must be a list"),
        ({"metrics": {"baseline": {}}}, "'metrics' lacks 'compressed'"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]}, "shape of 'x'"),
        ({"inputs": []}, "at least one input"),
        ({"tolerance": {"absolute": float("nan"), "relative": 0}}, "'tolerance' needs 'absolute'"),
        ({"golden": [{"inputs": {}, "outputs": {}}]}, "must name a file for each of image.1"),
    ],
)
def test_a_wrong_manifest_gets_a_clear_sentence(bundle: Path, change: dict[str, Any], sentence: str) -> None:
    seal(bundle, lambda raw: raw.update(change))
    with pytest.raises(BundleError) as caught:
        verify(bundle)
    assert "manifest.json" in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("key", [*manifests.REQUIRED, "labels"])
def test_a_missing_key_is_named(bundle: Path, key: str) -> None:
    seal(bundle, lambda raw: raw.pop(key))
    with pytest.raises(BundleError, match=f"lacks the key '{key}'"):
        verify(bundle)


def test_the_command_says_one_sentence_and_2(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"other bytes")
    done = as_a_stranger(bundle)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"model.onnx in {bundle} was changed: its sha256 is not the one that the manifest lists\n"
    assert as_a_stranger(bundle / "nowhere").stderr.startswith(f"{bundle / 'nowhere'} is not a folder")


def test_inspect_and_run(bundle: Path, parts: dict[str, Any]) -> None:
    assert inspect(bundle)["metrics"]["compressed"]["latency_ms"] == 1.21875
    prepared = parts["golden"][0][0]["image.1"]
    raw = (prepared[0, 0] * 0.25 + 0.5) * 16  # undoes the preprocessing, so the recorded answer must come out
    np.save(bundle.parent / "raw.npy", raw)
    answer = run(bundle, read_input(bundle.parent / "raw.npy"))
    scores = parts["golden"][0][1]["scores"][0].astype(float)
    expected = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)
    assert answer["label"] == ["zero", "one", "two"][int(scores.argmax())]
    with pytest.raises(BundleError, match="the image must be 4 x 4, not 5 x 4"):
        run(bundle, np.zeros((5, 4)))
    with pytest.raises(BundleError, match=r"cannot read gone\.npy: No such file"):
        read_input(Path("gone.npy"))
