"""Half a bundle never stands in its place, and nobody's folder is overwritten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlprune_edge import __version__
from rlprune_edge.bundle import write as writing
from rlprune_edge.bundle.verify import verify
from rlprune_edge.errors import UserError

Write = Callable[..., Path]


def test_what_is_written_is_what_was_given(bundle: Path, model: Path, parts: dict[str, Any]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["format"], manifest["task"], manifest["labels"]) == (1, "tiny", ["zero", "one", "two"])
    assert manifest["inputs"] == [{"name": "image.1", "dtype": "float32", "shape": [None, 1, 4, 4]}]
    assert (manifest["parameters"], manifest["trial"]) == (48, {"number": 7})
    assert manifest["tool"] == {"name": "rlprune-edge", "version": __version__}
    assert "licence_text" not in manifest
    assert (bundle / "LICENSE").read_text() == "MIT, in full\n"
    assert (bundle / "model.onnx").read_bytes() == model.read_bytes()
    stored = np.load(bundle / manifest["golden"][1]["outputs"]["scores"], allow_pickle=False)
    np.testing.assert_array_equal(stored, parts["golden"][1][1]["scores"])
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_the_readme_names_the_device_and_repeats_the_figures(bundle: Path) -> None:
    text = (bundle / "README.md").read_text()
    assert "| metric | 97.5 % accuracy test | 97.25 |" in text
    assert "| latency, ms (95 % interval) | 2.5 | 1.219 (1.188 to 1.25) |" in text
    assert "on local (the machine it was made on); threads: 1, mode: report." in text


def test_the_sums_can_be_checked_with_coreutils(bundle: Path) -> None:
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True)
    listed = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert (checked.returncode, set(checked.stdout.splitlines())) == (0, {f"{name}: OK" for name in listed})


def test_a_bundle_that_is_there_is_replaced_whole(bundle: Path, write: Write, parts: dict[str, Any]) -> None:
    (bundle / "stray.txt").write_text("left by somebody")
    write(bundle, labels=["a", "b", "c"], golden=parts["golden"][:1])
    assert json.loads((bundle / "manifest.json").read_text())["labels"] == ["a", "b", "c"]
    assert len(verify(bundle)) == 5
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_not_a_bundle_is_left_alone(write: Write, tmp_path: Path, kind: str) -> None:
    place, thesis = tmp_path / "place", tmp_path / "elsewhere" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    if kind == "folder":
        thesis.parent.rename(place)
        thesis = place / "thesis.txt"
    elif kind == "file":
        place.write_text("years of work")
        thesis = place
    else:
        place.symlink_to(thesis.parent)
    with pytest.raises(UserError, match="is not a bundle; it was left alone"):
        write(place)
    assert thesis.read_text() == "years of work"


def test_an_empty_folder_is_used(write: Write, tmp_path: Path) -> None:
    (tmp_path / "out" / "bundle").mkdir(parents=True)
    assert verify(write(tmp_path / "out" / "bundle"))[0] == "19 files, none missing, none extra"


def test_values_that_are_not_finite_are_our_own_mistake(write: Write, tmp_path: Path, parts: dict[str, Any]) -> None:
    given, expected = parts["golden"][0]
    with pytest.raises(ValueError, match="'scores' is not finite"):
        write(tmp_path / "bundle", golden=[(given, {"scores": expected["scores"] * np.nan})])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_is_named_and_leaves_nothing(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No such file or directory \(.*gone\.onnx\)"):
        write(tmp_path / "bundle", model=tmp_path / "gone.onnx")
    assert list(tmp_path.iterdir()) == []


IN_A_CHILD = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from rlprune_edge.bundle.write import write_bundle
from rlprune_edge.errors import UserError
from rlprune_edge.records import TensorSpec

class KilledAtTheSecond(list):
    def __iter__(self):
        yield from list.__iter__(self)
        os.kill(os.getpid(), signal.SIGKILL)

example = ({"x": np.zeros((1, 4096), "float32")}, {"y": np.zeros((1, 3), "float32")})
golden = KilledAtTheSecond([example]) if sys.argv[3] == "kill" else [example]
if sys.argv[3] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    write_bundle(
        Path(sys.argv[1]), model=Path(sys.argv[2]), task="t", preprocessing={"kind": "none"}, labels=None, versions={},
        inputs=(TensorSpec("x", "float32", (1, 4096)),), outputs=(TensorSpec("y", "float32", (1, 3)),), golden=golden,
        metrics={"baseline": {}, "compressed": {}}, measurement={}, extra={},
    )
except UserError as error:
    print(error)
    sys.exit(2)
"""


def in_a_child(place: Path, model: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IN_A_CHILD, str(place), str(model), how]
    root = Path(writing.__file__).parents[2]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)


def test_a_file_system_that_takes_no_more_leaves_no_bundle(tmp_path: Path, model: Path) -> None:
    done = in_a_child(tmp_path / "bundle", model, "limit")
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith(f"The bundle could not be written at {tmp_path / 'bundle'}: File too large")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    sentence = writing._explain(OSError(28, "No space left on device"), tmp_path)
    assert sentence.startswith("The disk is full")
    assert "--resume" in sentence


def test_kill_9_in_the_middle_leaves_no_bundle_and_the_next_writing_clears_up(
    write: Write, tmp_path: Path, model: Path
) -> None:
    done = in_a_child(tmp_path / "bundle", model, "kill")
    assert done.returncode == -signal.SIGKILL
    left = [p.name for p in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".bundle.partial-")
    write(tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
