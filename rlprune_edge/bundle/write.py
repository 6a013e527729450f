"""Writes a bundle: built whole beside its place, then renamed, so that half a bundle never stands there."""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from rlprune_edge import __version__
from rlprune_edge.bundle.manifest import FORMAT, MANIFEST, SIGNATURE, SUMS, is_safe_name, parse
from rlprune_edge.bundle.readme import readme
from rlprune_edge.bundle.sbom import FILE as SBOM
from rlprune_edge.bundle.sbom import sbom
from rlprune_edge.bundle.verify import canonical_sums, sha256_of
from rlprune_edge.errors import UserError
from rlprune_edge.records import TensorSpec

# Another instruction set adds in another order, so float32 outputs move in their last digits from machine to machine.
# These limits leave room for that; `extra` may set others (quantized models need wider ones).
ABSOLUTE_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3

Tensors = Mapping[str, np.ndarray]

_OURS = ("model.onnx", "golden", "examples", "README.md", "LICENSE", SBOM, MANIFEST, SUMS, SIGNATURE)
_EXAMPLES = {
    "web": ("index.html", "package.json", "bundle.mjs"),
    "node": ("predict.mjs", "package.json", "bundle.mjs"),
    "cpp": ("main.cpp", "CMakeLists.txt"),
}
"""folders of examples/, each complete by itself, so that it can be copied and built elsewhere"""
_BESIDE_PREDICT = {"text": ("tokens.py",), "audio": ("speech.py",)}
"""what predict.py reads for a kind of preprocessing"""


def write_bundle(
    out_dir: Path,
    *,
    model: Path,
    task: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    preprocessing: dict[str, Any],
    labels: list[str] | None,
    metrics: dict[str, Any],
    measurement: dict[str, Any],
    versions: dict[str, str],
    golden: Iterable[tuple[Tensors, Tensors]],
    extra: Mapping[str, Any],
    files: Mapping[str, bytes] = MappingProxyType({}),
    sign: Callable[[bytes], bytes] | None = None,
) -> Path:
    """Write the bundle at `out_dir` and return that path; a bundle that is already there is replaced.

    `metrics` is `{"baseline": {...}, "compressed": {...}}`; figures it may hold are those of `report.json` (`metric`,
    `latency_ms`, `latency_ci_ms`, ...), and `name`, `unit`, `split` beside them. `measurement` says `source`, `device`,
    `threads` and `mode`; `predict.py` runs with that number of threads. `golden` holds (inputs, outputs) by tensor
    name, the outputs as the host's ONNX Runtime gave them. `preprocessing` is `{"kind": "none"}` or
    `{"kind": "image", "size": [h, w], "channels": "RGB"|"BGR"|"L", "scale", "mean", "std", "layout", "dtype",
    "resize": "bilinear"|None, "raw_max"}`, worked off as: resize, x * scale, - mean, / std, layout. `raw_max` is the
    raw value of white; image files need it where that is not 255.
    The other kinds are `{"kind": "text", "tokenizer": "tokenizer.json", "max_length", "padding"}`, and `{"kind":
    "audio", "sampling_rate", "normalize", "min_samples", "decoding": {"kind": "ctc-greedy", "blank", "word_delimiter",
    "skip"}}` with the output's tokens as `labels`.
    `files` are written beside the model: name in the bundle -> content, such as a tokenizer.
    `extra` goes into the manifest as it is (parameters, macs, licence, weights, plan, trial, tokenizer, tolerance); its
    `licence_text` becomes the file LICENSE. `sign` makes signature.json out of SHA256SUMS.

    Raises UserError where the place holds something else, or the disk does not take it.
    """
    out_dir = Path(out_dir).absolute()
    if out_dir.is_symlink() or (out_dir.exists() and not _replaceable(out_dir)):
        raise UserError(
            f"{out_dir} exists and is not a bundle; it was left alone. Name another folder or move it away."
        )
    details = dict(extra)
    licence_text = details.pop("licence_text", None)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "tool": {"name": "rlprune-edge", "version": __version__},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": task,
        "inputs": [_tensor(spec) for spec in inputs],
        "outputs": [_tensor(spec) for spec in outputs],
        "preprocessing": preprocessing,
        "labels": labels,
        "metrics": metrics,
        "measurement": measurement,
        "versions": versions,
        "tolerance": {"absolute": ABSOLUTE_TOLERANCE, "relative": RELATIVE_TOLERANCE},
        "files": {},
        "golden": [],
    }
    fixed = set(manifest) - {"tolerance"}
    if fixed & set(details):
        raise ValueError(f"extra may not replace {', '.join(sorted(fixed & set(details)))}")
    manifest.update(details)
    partial = out_dir.with_name(f".{out_dir.name}.partial-{secrets.token_hex(4)}")
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        _fill(partial, manifest, model=model, golden=golden, licence_text=licence_text, further=files, sign=sign)
        _put_in_place(partial, out_dir)
    except OSError as error:
        raise UserError(_explain(error, out_dir)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _sweep(out_dir)
    return out_dir


def _fill(
    folder: Path,
    manifest: dict[str, Any],
    *,
    model: Path,
    golden: Iterable[tuple[Tensors, Tensors]],
    licence_text: str | None,
    further: Mapping[str, bytes],
    sign: Callable[[bytes], bytes] | None,
) -> None:
    shutil.copyfile(model, folder / "model.onnx")
    kind = manifest["preprocessing"].get("kind")
    copied = {"predict.py": "predict_template.py"} | {name: name for name in _BESIDE_PREDICT.get(str(kind), ())}
    for name, template in copied.items():
        shutil.copyfile(Path(__file__).with_name(template), folder / name)
    _copy_examples(folder / "examples")
    taken = {name.lower() for name in (*_OURS, *copied)}  # not every file system keeps a and A apart
    for name, content in further.items():
        if not is_safe_name(name) or name.split("/")[0].lower() in taken or (folder / name).exists():
            raise ValueError(f"{name!r} is no free name for a file in the bundle")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "golden").mkdir()
    for number, (given, expected) in enumerate(golden):
        manifest["golden"].append(
            {
                "inputs": _save_all(folder, f"golden/{number}-input", given),
                "outputs": _save_all(folder, f"golden/{number}-output", expected),
            }
        )
    (folder / "README.md").write_text(readme(manifest), encoding="utf-8")
    (folder / SBOM).write_bytes(sbom(manifest, sha256_of(folder / "model.onnx")))
    if licence_text:
        (folder / "LICENSE").write_text(licence_text, encoding="utf-8")
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    manifest["files"] = {name: sha256_of(folder / name) for name in files}
    # allow_nan=False: other languages' JSON readers refuse NaN
    data = (json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    parse(data)
    (folder / MANIFEST).write_bytes(data)
    sums = {**manifest["files"], MANIFEST: sha256_of(folder / MANIFEST)}
    content = canonical_sums(sums)
    (folder / SUMS).write_bytes(content)
    if sign is not None:
        (folder / SIGNATURE).write_bytes(sign(content))
    for name in (
        *sums,
        SUMS,
        *([SIGNATURE] if sign else []),
    ):  # a rename that outlives its contents in a power cut would be half a bundle
        _sync(folder / name)


def _copy_examples(folder: Path) -> None:
    source = Path(__file__).with_name("examples")
    for language, names in _EXAMPLES.items():
        (folder / language).mkdir(parents=True)
        for name in names:
            own = source / language / name
            shutil.copyfile(own if own.is_file() else source / name, folder / language / name)


def _save_all(folder: Path, stem: str, tensors: Tensors) -> dict[str, str]:
    """Write each tensor to a file of its own, numbered, since tensor names may hold `/` or `:`."""
    paths = {}
    for number, (name, array) in enumerate(tensors.items()):
        if not np.isfinite(array).all():
            raise ValueError(f"golden tensor {name!r} is not finite")
        # numpy writes straight to a file without saying why the disk refused it, so the bytes go through memory
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
        paths[name] = f"{stem}-{number}.npy"
        (folder / paths[name]).write_bytes(buffer.getvalue())
    return paths


def _put_in_place(partial: Path, out_dir: Path) -> None:
    """Rename `partial` to `out_dir`. What was there is moved aside first and put back if the second rename fails."""
    if not out_dir.exists():
        os.rename(partial, out_dir)
        return
    aside = out_dir.with_name(f".{out_dir.name}.replaced-{secrets.token_hex(4)}")
    os.rename(out_dir, aside)
    try:
        os.rename(partial, out_dir)
    except OSError:
        os.rename(aside, out_dir)
        raise


def _replaceable(out_dir: Path) -> bool:
    return out_dir.is_dir() and ((out_dir / MANIFEST).is_file() or not any(out_dir.iterdir()))


def _sweep(out_dir: Path) -> None:
    """Remove what this or an earlier, killed writing of the same bundle left beside it."""
    for kind in ("partial", "replaced"):
        for left in out_dir.parent.glob(f".{out_dir.name}.{kind}-*"):
            shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _explain(error: OSError, out_dir: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full: the bundle could not be written at {out_dir}; nothing was left there. "
            "Make room and run the same command with --resume: the search is not repeated."
        )
    return (
        f"The bundle could not be written at {out_dir}: {error.strerror or error} ({error.filename or 'no file named'})"
    )


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
