"""Recordings as numbers: any file that libsndfile reads, mixed to one channel, at the rate that a network wants."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from rlprune_edge.errors import UserError

KEPT_BYTES = 2**30
"""of decoded recordings that a split keeps in memory; what is more is decoded anew whenever it is read"""


@dataclass(frozen=True)
class Recordings:
    """Recordings, one number after another in time, and what is said in them."""

    samples: Sequence[np.ndarray]
    """float32 [samples] at the network's rate, neither normalised nor padded"""
    texts: Sequence[str]

    def lengths(self) -> list[int]:
        """Samples of every recording; decodes none that is stored."""
        return self.samples.lengths() if isinstance(self.samples, Stored) else [len(wave) for wave in self.samples]

    def select(self, rows: Sequence[int]) -> Recordings:
        """Some of them, in the order of `rows`."""
        stored = isinstance(self.samples, Stored)
        samples = self.samples.select(rows) if stored else [self.samples[i] for i in rows]  # type: ignore[attr-defined]
        return Recordings(samples, [self.texts[i] for i in rows])

    def fingerprint(self) -> str:
        """Hash of sounds and texts; of what is stored the files' content, so that nothing is decoded for it."""
        digest = hashlib.sha256()
        for row, text in enumerate(self.texts):
            samples = self.samples
            content = samples.content(row) if isinstance(samples, Stored) else np.ascontiguousarray(samples[row]).data
            digest.update(f"{len(text)}:{text}:{len(content)}:".encode())
            digest.update(content)
        return digest.hexdigest()


class Stored(Sequence[np.ndarray]):
    """Recordings as files or their content, decoded one by one: a hundred hours of speech fit into no memory."""

    def __init__(
        self, files: Sequence[bytes | str], rate: int, *, where: str, rows: Sequence[int] | None = None
    ) -> None:
        """`files`: contents or paths, of which `rows` are taken (`None`: all), at `rate` samples per second.

        `where`: what the data set is called in messages.
        """
        self._files, self._rate, self._where = files, rate, where
        self._rows = range(len(files)) if rows is None else rows
        self._decoded: dict[int, np.ndarray] = {}
        self._kept = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> np.ndarray:  # type: ignore[override]
        """One recording. Raises UserError if it cannot be decoded."""
        row = self._rows[number]
        if row in self._decoded:
            return self._decoded[row]
        wave = read(self._files[row], self._rate, where=self._named(row))
        if self._kept + wave.nbytes <= KEPT_BYTES:
            self._decoded[row] = wave
            self._kept += wave.nbytes
        return wave

    def lengths(self) -> list[int]:
        """Samples of every recording, from the files' headers. Raises UserError for one that has none."""
        return [length(self._files[row], self._rate, where=self._named(row)) for row in self._rows]

    def content(self, number: int) -> bytes:
        """The file as it is."""
        stored = self._files[self._rows[number]]
        return stored if isinstance(stored, bytes) else Path(stored).read_bytes()

    def select(self, rows: Sequence[int]) -> Stored:
        return Stored(self._files, self._rate, where=self._where, rows=[self._rows[i] for i in rows])

    def _named(self, row: int) -> str:
        return f"{self._where}: recording {row}"


def read(stored: bytes | str, rate: int, *, where: str) -> np.ndarray:
    """One recording as float32 [samples] in -1..1 at `rate` per second. Raises UserError if it cannot be decoded."""
    try:
        samples, own_rate = soundfile.read(_file(stored), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UserError(f"{where} could not be decoded ({_reason(error)}).") from error
    if not len(samples):
        raise UserError(f"{where} holds no sound.")
    return resampled(samples.mean(axis=1), own_rate, rate)


def length(stored: bytes | str, rate: int, *, where: str) -> int:
    """How many samples `read` returns, as the header tells. Raises UserError if there is none that can be read."""
    try:
        header = soundfile.info(_file(stored))
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UserError(f"{where} could not be decoded ({_reason(error)}).") from error
    return math.ceil(int(header.frames) * rate / int(header.samplerate))


def _file(stored: bytes | str) -> io.BytesIO | Path:
    return io.BytesIO(stored) if isinstance(stored, bytes) else Path(stored)


def _reason(error: Exception) -> str:
    # The library's own words name the object that was opened, of which nobody here has heard.
    return str(getattr(error, "error_string", None) or error).rstrip(".")


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
