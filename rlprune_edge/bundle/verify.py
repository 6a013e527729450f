"""Opens a bundle as a stranger would: every byte checked, every golden output reproduced.

`python -m rlprune_edge.bundle.verify DIR` needs numpy and onnxruntime only. It shows that a bundle is whole and does
what its manifest says. Who made it is what a signature tells (`--trust PUBLIC_KEY`, which needs the package
cryptography, too): whoever rewrites all the files and all the sums makes another whole bundle.
"""

# ruff: noqa: T201 (its main must run where typer is not installed, so it prints for itself)

from __future__ import annotations

import argparse
import hashlib
import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprune_edge.bundle.manifest import MANIFEST, SIGNATURE, SUMS, BundleError, Manifest, is_safe_name, parse
from rlprune_edge.errors import EXIT_OK, EXIT_USER, UserError

if TYPE_CHECKING:
    import numpy as np

    from rlprune_edge.bundle.predict_template import Model

__all__ = [
    "BundleError",
    "canonical_sums",
    "checked_sums",
    "inspect",
    "main",
    "read_input",
    "run",
    "run_file",
    "sha256_of",
    "verify",
]

_SUMS_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def verify(bundle_dir: Path, trust: Sequence[Path] = ()) -> list[str]:
    """The checks passed, in order. Raises BundleError at the first that fails: one sentence that names the file.

    With public keys to `trust` the bundle must be signed by one of them.
    """
    folder = Path(bundle_dir)
    manifest, names = _check_files(folder)
    done = [
        f"{len(names)} files, none missing, none extra",
        f"{SUMS}: every file has its sha256",
        f"{MANIFEST}: format 1",
        *_check_signature(folder, trust),
    ]
    model = _load(folder)
    _check_tensors(model, manifest)
    done.append("model.onnx: loads, inputs and outputs as described")
    for number, example in enumerate(manifest.golden):
        try:
            worst, _ = model.check_golden(number)
        except _predict_error() as error:
            raise BundleError(f"golden example {number} fails: {error}") from error
        files = ", ".join(example.outputs.values())
        done.append(f"{files}: reproduced, largest difference {worst:.2g}")
    return done


def checked_sums(bundle_dir: Path) -> bytes:
    """The content of SHA256SUMS, after every file was checked against it. Raises BundleError."""
    _check_files(Path(bundle_dir))
    return (Path(bundle_dir) / SUMS).read_bytes()


def inspect(bundle_dir: Path) -> dict[str, Any]:
    """The manifest, after every file was checked against its sha256 (nothing is run). Raises BundleError."""
    return _check_files(Path(bundle_dir))[0].raw


def run(bundle_dir: Path, given: Any, top: int = 5) -> Any:
    """What the bundle's own predict.py says of raw values: an array, a text or a list of them. Raises BundleError."""
    folder = Path(bundle_dir)
    _check_files(folder)
    try:
        return _load(folder).predict(given, top)
    except _predict_error() as error:
        raise BundleError(str(error)) from error


def run_file(bundle_dir: Path, path: Path, top: int = 5) -> Any:
    """The same for a file: a .npy array, an image, a recording, or texts line by line. Raises BundleError."""
    folder = Path(bundle_dir)
    _check_files(folder)
    try:
        return _load(folder).predict_file(path, top)
    except _predict_error() as error:
        raise BundleError(str(error)) from error


def read_input(path: Path) -> np.ndarray:
    """The array of one .npy file, for `run`. Raises BundleError."""
    predict_error = _predict_error()
    from rlprune_edge.bundle.predict_template import read_array

    try:
        return read_array(path)
    except predict_error as error:
        raise BundleError(str(error)) from error


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def canonical_sums(sums: dict[str, str]) -> bytes:
    """The one valid content of SHA256SUMS for these files; `sha256sum -c SHA256SUMS` reads it too."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()


def _check_files(folder: Path) -> tuple[Manifest, list[str]]:
    names = _list(folder)
    for needed in (SUMS, MANIFEST):
        if needed not in names:
            raise BundleError(f"{needed} is missing: {folder} is not a whole bundle")
    try:
        text = (folder / SUMS).read_bytes()
        listed = _parse_sums(text, str(folder / SUMS))
        actual = {name: sha256_of(folder / name) for name in names if name not in (SUMS, SIGNATURE)}
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}") from error
    if listed.get(MANIFEST) != hashlib.sha256(data).hexdigest():
        raise BundleError(f"{MANIFEST} and {SUMS} in {folder} disagree: one of the two was changed")
    manifest = parse(data, str(folder / MANIFEST))
    for name in sorted(set(manifest.files) | set(listed) | set(actual)):
        if name != MANIFEST:
            _judge(name, actual.get(name), manifest.files.get(name), listed.get(name), folder)
    if text != canonical_sums(actual):
        raise BundleError(f"{folder / SUMS} was changed: its lines are not in the canonical order")
    return manifest, names


def _judge(name: str, actual: str | None, manifest: str | None, sums: str | None, folder: Path) -> None:
    """Three witnesses of one file: what is on disk, what the manifest says, what SHA256SUMS says. Two outvote one."""
    if actual == manifest == sums:
        return
    if manifest is None and sums is None:
        hint = ": Python left it there, delete the folder" if "__pycache__" in name else ""
        raise BundleError(f"{name} in {folder} does not belong to the bundle{hint}")
    if actual is None and manifest is not None and sums is not None:
        raise BundleError(f"{name} is missing from {folder}")
    if actual not in (None, manifest, sums):
        raise BundleError(f"{name} in {folder} was changed: its sha256 is not the one that the manifest lists")
    culprit = SUMS if actual == manifest else MANIFEST
    raise BundleError(f"{culprit} in {folder} was changed: what it says of {name} is contradicted by the other two")


def _list(folder: Path) -> list[str]:
    """Relative paths of all files. Raises BundleError for links and whatever else is not a plain file or folder."""
    if folder.is_symlink() or not folder.is_dir():
        raise BundleError(f"{folder} is not a folder: give the folder that holds {MANIFEST}")
    names = []
    for parent, folders, files in os.walk(folder):
        for entry in sorted(folders + files):
            path = Path(parent, entry)
            name = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                names.append(name)
            elif not stat.S_ISDIR(mode):
                raise BundleError(f"{name} in {folder} is a link or a special file; a bundle holds plain files only")
    return sorted(names)


def _parse_sums(text: bytes, where: str) -> dict[str, str]:
    sums: dict[str, str] = {}
    lines = text.decode("utf-8", errors="replace").split("\n")
    if lines.pop() != "":
        raise BundleError(f"{where} was changed: its last line does not end")
    for number, line in enumerate(lines, start=1):
        match = _SUMS_LINE.fullmatch(line)
        if not match or not is_safe_name(match[2]) or match[2] in sums or match[2] == SUMS:
            raise BundleError(f"{where} was changed: line {number} is not '<sha256>  <file in the bundle>'")
        sums[match[2]] = match[1]
    return sums


def _load(folder: Path) -> Model:
    predict_error = _predict_error()
    from rlprune_edge.bundle.predict_template import load

    try:
        return load(folder)
    except predict_error as error:
        raise BundleError(str(error)) from error


def _predict_error() -> type[Exception]:
    # Imported late, so that a missing onnxruntime is a sentence and `inspect` works without it.
    try:
        from rlprune_edge.bundle.predict_template import PredictError
    except ImportError as error:
        raise BundleError(f"running a bundle needs numpy and onnxruntime: {error}") from error
    return PredictError


def _check_signature(folder: Path, trust: Sequence[Path]) -> list[str]:
    """What there is to say of the signature; nothing where there is none and none is asked for."""
    path = folder / SIGNATURE
    if not path.is_file():
        if trust:
            raise BundleError(f"{SIGNATURE} is missing from {folder}: nobody has signed this bundle")
        return []
    try:
        from rlprune_edge.bundle import signature
    except ImportError as error:
        if trust:
            raise BundleError(f"a signature is checked with the package cryptography: {error}") from error
        return [f"{SIGNATURE}: not checked, since the package cryptography is not there"]
    try:
        keys = [signature.load_public_key(key) for key in trust]
        by = signature.check(path.read_bytes(), (folder / SUMS).read_bytes(), keys)
    except OSError as error:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}") from error
    whose = "a key that you trust" if trust else "a key that was not compared with yours: --trust PUBLIC_KEY"
    return [f"{SIGNATURE}: of these files, by {by}, {whose}"]


def _check_tensors(model: Model, manifest: Manifest) -> None:
    for kind, found in (("inputs", model.session.get_inputs()), ("outputs", model.session.get_outputs())):
        described = {spec["name"]: len(spec["shape"]) for spec in manifest.raw[kind]}
        actual = {tensor.name: len(tensor.shape) for tensor in found}
        if described != actual:
            raise BundleError(f"model.onnx has other {kind} ({', '.join(actual)}) than {MANIFEST} says")


def main(argv: list[str] | None = None) -> int:
    """Prints `ok ...` for each check and returns 0, or prints one sentence to stderr and returns 2."""
    parser = argparse.ArgumentParser(prog="python -m rlprune_edge.bundle.verify")
    parser.add_argument("bundle_dir", type=Path, metavar="BUNDLE_DIR")
    parser.add_argument("--trust", type=Path, action="append", default=[], metavar="PUBLIC_KEY")
    asked = parser.parse_args(argv)
    try:
        for line in verify(asked.bundle_dir, asked.trust):
            print(f"ok {line}")
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
