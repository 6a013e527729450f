"""The README.md inside a bundle: what it is, how to run it, its figures with the device named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROWS = {
    "metric": "metric",
    "parameters": "parameters",
    "macs": "multiply-accumulates",
    "onnx_bytes": "ONNX file, bytes",
    "latency_ms": "latency, ms (95 % interval)",
    "memory_mb": "memory, MB",
}

_IMAGE = ("python predict.py array.npy        # or an image file, with Pillow installed",)
_COMMANDS = {
    "none": _IMAGE,
    "image": _IMAGE,
    "text": (
        'python predict.py --text "a line of text"',
        "python predict.py texts.txt        # one text in each line",
    ),
    "audio": ("python predict.py speech.wav       # FLAC and others with soundfile installed",),
}
_GIVEN = {"none": 'predict(array)["label"]', "image": 'predict(array)["label"]', "text": 'predict("a text")["label"]',
          "audio": 'predict(samples)["text"]'}  # fmt: skip
_PREPARED = (
    "From an app: prepare the inputs as `preprocessing` in `manifest.json` says, "
    'then `import predict; predict.load("this/folder").run({"name": array})`.'
)
_OTHERS = (
    "From JavaScript and C++: copy a folder of `examples/` out of the bundle, which stays as it is, and",
    "",
    "```",
    "cd node && npm install --ignore-scripts && node predict.mjs THE_BUNDLE --golden 0",
    "cd web && npm install --ignore-scripts && cp -r THE_BUNDLE bundle && python -m http.server   # then open the page",
    "cd cpp && cmake -S . -B build -DONNXRUNTIME_DIR=AN_UNPACKED_RELEASE && cmake --build build",
    "```",
)
_OWN_TOKENIZERS = ("wordpiece", "bpe")
"""that predict.py needs no package for"""


def readme(manifest: Mapping[str, Any]) -> str:
    """The text, from the manifest alone; rows that nobody knows are left out."""
    measurement, metrics = manifest["measurement"], manifest["metrics"]
    device = measurement.get("device", "an unnamed device")
    where = {"board": device, "local": f"{device} (the machine it was made on)"}.get(
        str(measurement.get("source")), f"{device} ({measurement.get('source', 'source not known')})"
    )
    settings = ", ".join(
        f"{text} {measurement[key]}" for key, text in (("threads", "threads:"), ("mode", "mode:")) if key in measurement
    )
    kind = str(manifest["preprocessing"].get("kind"))
    foreign = kind == "text" and (manifest.get("tokenizer") or {}).get("kind") not in _OWN_TOKENIZERS
    app = f'From an app: `import predict; predict.load("this/folder").{_GIVEN[kind]}`.' if kind in _GIVEN else _PREPARED
    if kind == "audio":
        app += (
            f" `samples` is an array of floats in -1..1 at {manifest['preprocessing'].get('sampling_rate')} per second."
        )
    rows = []
    for key, title in _ROWS.items():
        cells = [_cell(metrics[side], key) for side in ("baseline", "compressed")]
        if any(cells):
            rows.append(f"| {title} | {cells[0] or '-'} | {cells[1] or '-'} |")
    lines = [
        f"# Compressed model for the task `{manifest['task']}`",
        "",
        "Made by rlprune-edge. `manifest.json` says what goes in, what comes out and how it was measured.",
        "",
        "| | baseline | compressed |",
        "|---|---|---|",
        *rows,
        "",
        f"Latency and memory: on {where}" + (f"; {settings}." if settings else "."),
        "",
        "## Run it",
        "",
        "```",
        "python -m pip install numpy onnxruntime" + (" tokenizers" if foreign else ""),
        "python predict.py --golden 0",
        *_COMMANDS.get(kind, ()),
        "sha256sum -c SHA256SUMS",
        "```",
        "",
        app,
        "",
        *_OTHERS,
        "",
        f"Licence of the model: {manifest.get('licence') or 'not stated'}.",
        "",
    ]
    return "\n".join(lines)


def _cell(figures: Mapping[str, Any], key: str) -> str:
    value = figures.get(key)
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if key == "latency_ms" and figures.get("latency_ci_ms"):
        text += " ({:.4g} to {:.4g})".format(*figures["latency_ci_ms"])
    if key == "metric":
        words = [str(figures[k]) for k in ("unit", "name", "split") if figures.get(k)]
        text = " ".join([text, *words])
    return text
