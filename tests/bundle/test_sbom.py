"""The bill of materials is one that scanners read, and says what the bundle says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnxruntime
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from rlprune_edge.bundle.verify import sha256_of

VERSIONS = {"onnxruntime": onnxruntime.__version__, "torch": "2.13.0", "device onnxruntime": "1.30.0", "numpy": "2.4.6"}


def test_it_is_valid_and_names_the_model_and_what_runs_it(write: Callable[..., Path], tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", versions=VERSIONS)
    text = (bundle / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    model = found["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256_of(bundle / "model.onnx")}]
    assert model["licenses"] == [{"license": {"id": "MIT"}}]
    scopes = {c["name"]: (c["version"], c["scope"]) for c in found["components"]}
    assert scopes == {
        "numpy": ("2.4.6", "required"),
        "onnxruntime": (onnxruntime.__version__, "required"),
        "torch": ("2.13.0", "excluded"),
    }
    runtime = next(c for c in found["components"] if c["name"] == "onnxruntime")
    assert runtime["properties"] == [{"name": "rlprune-edge:version-on-the-measured-device", "value": "1.30.0"}]


def test_a_licence_in_words_and_none_are_valid_too(write: Callable[..., Path], tmp_path: Path) -> None:
    for number, licence in enumerate(("free for research, ask for the rest", None)):
        bundle = write(tmp_path / str(number), extra={"licence": licence})
        text = (bundle / "sbom.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        assert licence is None or licence in text
        assert ("licenses" in text) == (licence is not None)
