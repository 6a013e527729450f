"""What a bundle was made with and needs, as a CycloneDX 1.6 bill of materials, the form that scanners read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

FILE = "sbom.cdx.json"
RUNS_IT = ("numpy", "onnxruntime")
"""what predict.py imports; everything else took part in making the bundle and is not needed to use it"""
_MEASURED = "device "
"""begins the names of versions that were found on the device"""


def sbom(manifest: Mapping[str, Any], model_sha256: str) -> bytes:
    """The content of the file, from the manifest alone; the same for the same manifest."""
    versions: Mapping[str, str] = manifest["versions"]
    tool = manifest["tool"]
    foreign = (manifest.get("tokenizer") or {}).get("kind") not in (None, "wordpiece", "bpe")
    needed = (*RUNS_IT, "tokenizers") if foreign else RUNS_IT
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name="model.onnx",
        description=str(manifest.get("model") or f"a model for the task {manifest['task']}"),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=model_sha256)],
        licenses=[LicenseFactory().make_from_string(manifest["licence"])] if manifest.get("licence") else [],
        bom_ref="model.onnx",
    )
    packages = [
        Component(
            name=name,
            version=version,
            purl=PackageURL("pypi", None, name, version),
            scope=ComponentScope.REQUIRED if name in needed else ComponentScope.EXCLUDED,
            properties=[Property(name="rlprune-edge:version-on-the-measured-device", value=versions[_MEASURED + name])]
            if _MEASURED + name in versions
            else [],
            bom_ref=f"{name}@{version}",
        )
        for name, version in sorted(versions.items())
        if not name.startswith(_MEASURED) and name != tool["name"]
    ]
    made_by = Component(
        type=ComponentType.APPLICATION,
        name=tool["name"],
        version=tool["version"],
        purl=PackageURL("pypi", None, tool["name"], tool["version"]),
        bom_ref=tool["name"],
    )
    bom = Bom(
        components=packages,
        serial_number=uuid5(NAMESPACE_URL, f"rlprune-edge {model_sha256} {manifest['created_at']}"),
        metadata=BomMetaData(
            tools=ToolRepository(components=[made_by]),
            component=model,
            timestamp=datetime.fromisoformat(manifest["created_at"]),
        ),
    )
    bom.register_dependency(model, [package for package in packages if package.name in needed])
    return (JsonV1Dot6(bom).output_as_string(indent=1) + "\n").encode()
