"""Recordings -> what a CTC network takes, and its answer -> letters.

Goes into the bundles of speech models as it is, beside predict.py; needs Python 3.8 and numpy. WAV files (whole numbers
of 8 to 32 bits, or floats) are read here, others through the package `soundfile`. Every mistake is a ValueError of one
sentence; OSError where a file cannot be read.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

_HIGHEST_RATE = 768_000


def read(path: Path) -> tuple[np.ndarray, int]:
    """One recording: float32 [samples] in -1..1, all channels mixed to one, and its samples per second."""
    data = path.read_bytes()
    found = _wave(data) if data[:4] == b"RIFF" and data[8:12] == b"WAVE" else None
    if found is None:
        found = _other(path)
    channels, rate = found
    if not len(channels):
        raise ValueError(f"{path} holds no sound")
    return np.asarray(channels.mean(axis=1), dtype=np.float32), rate


def waveform(array: Any) -> np.ndarray:
    """float32 [samples] from floats in -1..1 or whole numbers of 8 (from 128 up and down), 16 or 32 bits."""
    samples = np.asarray(array)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"a recording of one channel is an array [samples], not {list(samples.shape)}")
    if samples.dtype == np.uint8:
        return np.asarray((samples.astype(np.float32) - 128) / 128, dtype=np.float32)
    if samples.dtype in (np.int16, np.int32):
        return np.asarray(samples / np.float64(-int(np.iinfo(samples.dtype).min)), dtype=np.float32)
    if samples.dtype.kind != "f":
        raise ValueError(f"the samples must be floats in -1..1 or whole numbers of 16 bits, not {samples.dtype}")
    if not np.isfinite(samples).all():
        raise ValueError("the recording holds samples that are not finite")
    return np.asarray(samples, dtype=np.float32)


def resampled(samples: np.ndarray, own_rate: int, rate: int) -> np.ndarray:
    """float32 [samples] at another rate: a sinc as wide as 20 samples of the lower rate under a Kaiser window (beta 5).

    Sample 0 stays in its place; before the beginning and after the end there is silence.
    """
    if own_rate == rate:
        return samples
    if not (0 < own_rate <= _HIGHEST_RATE and 0 < rate <= _HIGHEST_RATE):
        raise ValueError(f"a recording of {own_rate} samples per second cannot be brought to {rate}")
    common = math.gcd(own_rate, rate)
    up, down = rate // common, own_rate // common
    # As if `up - 1` zeros stood between the samples, the result were filtered and every `down`-th value kept; only what
    # is kept is worked out, and each kept value meets one of `up` subsets of the filter.
    widest = max(up, down)
    half = 10 * widest
    window = np.sinc(np.arange(-half, half + 1) / widest) * np.kaiser(2 * half + 1, 5.0)
    window *= up / window.sum()
    reach = half // up + 1
    places = half + np.arange(up)[:, None] + up * np.arange(reach, -reach - 1, -1)[None, :]
    inside = (places >= 0) & (places <= 2 * half)
    taps = np.where(inside, window[np.where(inside, places, 0)], 0.0)  # [up, 2 * reach + 1]
    count = -(-len(samples) * up // down)
    padded = np.zeros(len(samples) + 2 * reach + 1)
    padded[reach : reach + len(samples)] = samples
    result = np.empty(count, dtype=np.float32)
    block = max(1, 2_000_000 // taps.shape[1])  # so that a long recording takes no more memory than a short one
    for start in range(0, count, block):
        at = np.arange(start, min(count, start + block)) * down
        near = padded[(at // up)[:, None] + np.arange(2 * reach + 1)[None, :]]
        result[start : start + block] = (near * taps[at % up]).sum(axis=1)
    return result


def normalised(samples: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance, as transformers' Wav2Vec2FeatureExtractor makes them."""
    return np.asarray((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7), dtype=np.float32)


def decoded(scores: np.ndarray, tokens: list[str], rules: dict[str, Any]) -> str:
    """What [frames, tokens] say: the best token of each frame, repeats taken once, the blank and `skip` left out."""
    if rules.get("kind") != "ctc-greedy":
        raise ValueError(f"manifest.json: unknown kind of decoding {rules.get('kind')!r}")
    if scores.ndim != 2 or scores.shape[1] != len(tokens):
        raise ValueError(f"manifest.json has {len(tokens)} labels, and the model's output has shape {scores.shape}")
    best = scores.argmax(axis=1).tolist()
    skip = set(rules.get("skip") or ())
    letters = [
        tokens[number]
        for frame, number in enumerate(best)
        if (frame == 0 or number != best[frame - 1]) and number != rules["blank"] and tokens[number] not in skip
    ]
    return " ".join("".join(" " if letter == rules["word_delimiter"] else letter for letter in letters).split())


def _wave(data: bytes) -> tuple[np.ndarray, int] | None:
    """float32 [samples, channels] and the rate of a WAV file; `None` for a kind that is not read here."""
    at, shape = 12, None
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            tag, channels, rate, _, width = struct.unpack_from("<HHIIH", body)
            if tag == 0xFFFE and len(body) >= 26:  # what it is comes later
                tag = struct.unpack_from("<H", body, 24)[0]
            shape = tag, channels, rate, width // channels if channels else 0
        if name == b"data" and shape is not None:
            tag, channels, rate, width = shape
            whole = channels * width
            values = _values(body[: len(body) // whole * whole], tag, width) if whole else None
            return None if values is None else (values.reshape(-1, channels), rate)
        at += 8 + size + size % 2
    return None


def _values(body: bytes, tag: int, width: int) -> np.ndarray | None:
    if tag == 1 and width == 1:
        return waveform(np.frombuffer(body, dtype=np.uint8)) if body else np.zeros(0, dtype=np.float32)
    if tag == 1 and width in (2, 3, 4):
        wide = np.zeros((len(body) // width, 4), dtype=np.uint8)
        wide[:, 4 - width :] = np.frombuffer(body, dtype=np.uint8).reshape(-1, width)
        return np.asarray(wide.view("<i4")[:, 0] / np.float64(2**31), dtype=np.float32)
    if tag == 3 and width in (4, 8):
        return np.asarray(np.frombuffer(body, dtype=f"<f{width}"), dtype=np.float32)
    return None


def _other(path: Path) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package is there, its library is not
        raise ValueError(
            f"{path}: recordings other than WAV files need soundfile (python -m pip install soundfile)"
        ) from None
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except RuntimeError as error:
        raise ValueError(f"cannot read {path} as a recording") from error
    return samples, int(rate)
