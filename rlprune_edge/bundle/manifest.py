"""Reads a bundle's manifest.json and says in one sentence what is wrong with it; stdlib only.

manifest.json, format 1: the keys of `REQUIRED`, `labels` or `tokenizer`, and whatever else the writer knew.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from rlprune_edge.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
"""lists every file of the bundle but itself and the signature, in the format of `sha256sum -c`"""
SIGNATURE = "signature.json"
"""who made it, if they say so; see signature.py"""

REQUIRED: dict[str, type] = {
    "task": str,
    "inputs": list,
    "outputs": list,
    "preprocessing": dict,
    "metrics": dict,
    "measurement": dict,
    "versions": dict,
    "files": dict,
    "golden": list,
    "tolerance": dict,
}
_KIND: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SAFE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


class BundleError(UserError):
    """The bundle cannot be trusted; the message is one sentence and names the file."""


@dataclass(frozen=True)
class Golden:
    """One recorded example: tensor name -> path of its .npy file inside the bundle."""

    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """A checked manifest; `raw` holds all of it, as read."""

    raw: dict[str, Any]
    files: dict[str, str]
    """path inside the bundle -> sha256, for all files but manifest.json and SHA256SUMS"""
    golden: tuple[Golden, ...]


def is_safe_name(name: object) -> bool:
    """Whether this is a plain relative path with `/` between ordinary parts (no `..`, no drive, no hidden file)."""
    return isinstance(name, str) and len(name) < 256 and all(_SAFE_PART.fullmatch(p) for p in name.split("/"))


def parse(data: bytes, where: str = MANIFEST) -> Manifest:
    """Check the bytes of a manifest. `where` is the path for the message. Raises BundleError."""
    try:
        raw = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise BundleError(f"{where} is not whole: it does not parse as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise BundleError(f"{where} holds {type(raw).__name__}, not a JSON object")
    _check_format(raw.get("format"), where)
    for key, kind in REQUIRED.items():
        if key not in raw:
            raise BundleError(f"{where} lacks the key {key!r}")
        if not isinstance(raw[key], kind):
            raise BundleError(f"{where}: {key!r} must be {_KIND[kind]}")
    if "labels" not in raw and "tokenizer" not in raw:
        raise BundleError(f"{where} lacks the key 'labels' (or 'tokenizer')")
    for key in ("baseline", "compressed"):
        if not isinstance(raw["metrics"].get(key), dict):
            raise BundleError(f"{where}: 'metrics' lacks {key!r}")
    names = [_check_tensor(spec, f"{where}: 'inputs'") for spec in raw["inputs"]]
    outputs = [_check_tensor(spec, f"{where}: 'outputs'") for spec in raw["outputs"]]
    if not names or not outputs:
        raise BundleError(f"{where}: the model needs at least one input and one output")
    for name, digest in raw["files"].items():
        if not is_safe_name(name) or name in (MANIFEST, SUMS, SIGNATURE):
            raise BundleError(f"{where}: 'files' names {name!r}, which is not a path inside the bundle")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise BundleError(f"{where}: the sha256 of {name!r} is not 64 lower-case hexadecimal digits")
    if "model.onnx" not in raw["files"]:
        raise BundleError(f"{where}: 'files' does not list model.onnx")
    _check_tokenizer(raw, where)
    for key in ("absolute", "relative"):
        value = raw["tolerance"].get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise BundleError(f"{where}: 'tolerance' needs {key!r}, a number that is not negative")
    golden = tuple(_golden(entry, set(names), set(outputs), raw["files"], where) for entry in raw["golden"])
    return Manifest(raw=raw, files=dict(raw["files"]), golden=golden)


def _check_format(number: object, where: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise BundleError(f"{where} has no format number (found {number!r}): it is not a bundle of rlprune-edge")
    if number > FORMAT:
        raise BundleError(
            f"{where} has format {number}, newer than the format {FORMAT} that this version reads: upgrade rlprune-edge"
        )


def _check_tokenizer(raw: dict[str, Any], where: str) -> None:
    found = raw.get("tokenizer")
    if found is not None and (not isinstance(found, dict) or not isinstance(found.get("kind"), str)):
        raise BundleError(f"{where}: 'tokenizer' must be an object with 'file' and 'kind'")
    named = [found.get("file")] if found is not None else []
    if raw["preprocessing"].get("kind") == "text":
        named.append(raw["preprocessing"].get("tokenizer"))
    for file in named:
        if not isinstance(file, str) or file not in raw["files"]:
            raise BundleError(f"{where}: the tokenizer's file {file!r} is not listed in 'files'")


def _check_tensor(spec: object, where: str) -> str:
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str) or not isinstance(spec.get("dtype"), str):
        raise BundleError(f"{where}: every entry needs a name and a dtype")
    shape = spec.get("shape")
    if not isinstance(shape, list) or not all(n is None or (type(n) is int and n >= 0) for n in shape):
        raise BundleError(f"{where}: the shape of {spec['name']!r} must be a list of sizes (null for a free one)")
    return str(spec["name"])


def _golden(entry: object, inputs: set[str], outputs: set[str], files: dict[str, str], where: str) -> Golden:
    parts = (entry.get("inputs"), entry.get("outputs")) if isinstance(entry, dict) else (None, None)
    for given, wanted in zip(parts, (inputs, outputs), strict=True):
        if not isinstance(given, dict) or set(given) != wanted:
            raise BundleError(f"{where}: a golden example must name a file for each of {', '.join(sorted(wanted))}")
        for path in given.values():
            if not isinstance(path, str) or path not in files:
                raise BundleError(f"{where}: the golden file {path!r} is not listed in 'files'")
    return Golden(inputs=dict(parts[0] or {}), outputs=dict(parts[1] or {}))
