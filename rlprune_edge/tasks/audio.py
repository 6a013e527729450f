"""Recordings as numbers: any file that libsndfile reads, mixed to one channel, at the rate that a network wants."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from rlprune_edge.errors import UserError


def read(stored: bytes | str, rate: int, *, where: str) -> np.ndarray:
    """One recording as float32 [samples] in -1..1 at `rate` per second. Raises UserError if it cannot be decoded."""
    try:
        samples, own_rate = soundfile.read(
            io.BytesIO(stored) if isinstance(stored, bytes) else Path(stored), dtype="float32", always_2d=True
        )
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UserError(f"{where} could not be decoded ({error}).") from error
    if not len(samples):
        raise UserError(f"{where} holds no sound.")
    return resampled(samples.mean(axis=1), own_rate, rate)


def resampled(samples: np.ndarray, own_rate: int, rate: int) -> np.ndarray:
    """float32 [samples] at another rate, through a polyphase filter."""
    if own_rate == rate:
        return np.ascontiguousarray(samples, dtype=np.float32)
    common = math.gcd(own_rate, rate)
    return np.asarray(resample_poly(samples, rate // common, own_rate // common), dtype=np.float32)


def normalised(samples: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance, as transformers' feature extractor makes them."""
    return np.asarray((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7), dtype=np.float32)


def varied(samples: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A copy that is up to a tenth faster or slower, starts up to 50 ms later and has a little noise in it."""
    speed = rng.uniform(0.9, 1.1)
    at = np.arange(0, len(samples) - 1, speed)
    changed = np.interp(at, np.arange(len(samples)), samples)
    changed = np.concatenate([np.zeros(int(rng.uniform(0, 0.05) * rate)), changed])
    loudness = 10 ** (-rng.uniform(20, 50) / 20) * float(np.sqrt(np.mean(samples**2)))
    return np.asarray(changed + loudness * rng.standard_normal(len(changed)), dtype=np.float32)
