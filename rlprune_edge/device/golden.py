"""The golden model: what a device has to be able to run, rightly and as fast as ever, before its figures are believed.

Made here, byte by byte, so that it is the same on every machine and needs no `onnx`. Its numbers are small integers:
every float arithmetic gives exactly the same outputs.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

_ROWS, _WIDTH, _LAYERS = 256, 384, 8  # 0.6 GFLOP: about 20 ms on a Pi 4
_LIMIT = 255.0


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _node(kind: str, inputs: list[str], output: str) -> bytes:
    return b"".join(_bytes(1, name) for name in inputs) + _bytes(2, output) + _bytes(4, kind)


def _tensor(name: str, value: np.ndarray) -> bytes:
    dims = b"".join(_number(1, size) for size in value.shape)
    return dims + _number(2, 1) + _bytes(8, name) + _bytes(9, value.astype("<f4").tobytes())


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_bytes(1, _number(1, size)) for size in shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, 1) + _bytes(2, dims)))


def _mixed(rows: int, columns: int, largest: int) -> np.ndarray:
    """Integers from `-largest` to `largest`, well mixed, from a formula: a generator's stream may change one day."""
    at = np.arange(rows * columns, dtype=np.uint64)
    for factor in (2654435761, 2246822519, 3266489917):
        at = (at + np.uint64(1)) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
        at ^= at >> np.uint64(15)
    values: np.ndarray = (at % np.uint64(2 * largest + 1)).astype(np.float32) - largest
    return values.reshape(rows, columns)


def _weight() -> np.ndarray:
    return _mixed(_WIDTH, _WIDTH, 1)


def inputs() -> dict[str, np.ndarray]:
    """What the golden model is run on."""
    return {"x": _mixed(_ROWS, _WIDTH, 3)}


def expected() -> dict[str, np.ndarray]:
    """What it has to answer, to the last bit."""
    value, weight = inputs()["x"], _weight()
    for _ in range(_LAYERS):
        value = np.clip(value @ weight, -_LIMIT, _LIMIT)
    return {"y": value}


@cache
def model() -> bytes:
    """The ONNX file (IR 7, opset 13): eight times the same product, clipped."""
    nodes, name = [], "x"
    for layer in range(_LAYERS):
        last = "y" if layer == _LAYERS - 1 else f"c{layer}"
        nodes.append(_node("MatMul", [name, "w"], f"h{layer}"))
        nodes.append(_node("Clip", [f"h{layer}", "low", "high"], last))
        name = last
    limits = {"low": np.array(-_LIMIT), "high": np.array(_LIMIT)}
    graph = b"".join(_bytes(1, node) for node in nodes) + _bytes(2, "golden")
    graph += b"".join(_bytes(5, _tensor(key, value)) for key, value in {"w": _weight(), **limits}.items())
    graph += _bytes(11, _value("x", (_ROWS, _WIDTH))) + _bytes(12, _value("y", (_ROWS, _WIDTH)))
    return _number(1, 7) + _bytes(7, graph) + _bytes(8, _bytes(1, "") + _number(2, 13))


@cache
def sha256() -> str:
    """Of the file."""
    return hashlib.sha256(model()).hexdigest()
