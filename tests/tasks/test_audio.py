"""Recordings as numbers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import audio


def stored(samples: np.ndarray, rate: int, kind: str = "FLAC") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


def tone(hertz: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    return np.asarray(0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate), dtype=np.float32)


def test_both_channels_are_mixed() -> None:
    left, right = tone(300, 8000), tone(500, 8000)
    mixed = audio.read(stored(np.stack([left, right], axis=1), 8000, "WAV"), 8000, where="x")
    assert mixed.dtype == np.float32
    assert np.allclose(mixed, (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize(("own", "rate"), [(8000, 16000), (44100, 16000), (16000, 4000)])
def test_another_rate_keeps_the_tone(own: int, rate: int) -> None:
    heard = audio.read(stored(tone(440, own), own), rate, where="x")
    assert len(heard) == pytest.approx(rate / 2, abs=2)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert np.argmax(spectrum) * rate / len(heard) == pytest.approx(440, abs=3)


def test_the_normalised_has_no_mean_and_unit_variance() -> None:
    heard = audio.normalised(3 + 0.01 * tone(200, 8000))
    assert (float(heard.mean()), float(heard.std())) == pytest.approx((0.0, 1.0), abs=1e-2)
    assert np.isfinite(audio.normalised(np.zeros(10, dtype=np.float32))).all()


def test_variants_come_from_the_generator_alone() -> None:
    wave = tone(300, 4000)
    same = [audio.varied(wave, 4000, np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(*same)
    lengths = {len(audio.varied(wave, 4000, np.random.default_rng(i))) for i in range(20)}
    assert min(lengths) < len(wave) < max(lengths)


@pytest.mark.parametrize(
    ("content", "said"), [(b"no sound at all", "could not be decoded"), (b"", "could not be decoded")]
)
def test_what_is_no_recording_is_named(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=f"recording 3 {said}"):
        audio.read(content, 8000, where="recording 3")


def test_silence_of_no_length_is_named() -> None:
    with pytest.raises(UserError, match="holds no sound"):
        audio.read(stored(np.zeros(0, dtype=np.float32), 8000, "WAV"), 8000, where="recording 0")


@pytest.mark.parametrize(("own", "rate"), [(8000, 16000), (44100, 16000), (16000, 4000), (8000, 8000)])
def test_a_length_is_known_from_the_header(own: int, rate: int) -> None:
    content = stored(tone(440, own, seconds=0.3211), own)
    assert audio.length(content, rate, where="x") == len(audio.read(content, rate, where="x"))


def test_stored_recordings_are_decoded_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waves = [tone(200 + 100 * i, 8000, seconds=0.1 * (i + 1)) for i in range(3)]
    files: list[bytes | str] = [*(stored(wave, 8000) for wave in waves[:2]), b"junk"]
    (tmp_path / "c.flac").write_bytes(stored(waves[2], 8000))
    files.append(str(tmp_path / "c.flac"))
    found = audio.Recordings(audio.Stored(files, 8000, where="mine"), ["A", "B", "junk", "C"])
    kept = found.select([3, 0])
    assert (kept.texts, kept.lengths()) == (["C", "A"], [2400, 800])
    assert np.allclose(kept.samples[0], waves[2], atol=1e-4)
    assert kept.samples[0] is kept.samples[0], "what fits into memory is decoded once"
    monkeypatch.setattr(audio, "KEPT_BYTES", 0)
    anew = found.select([3, 0]).samples
    assert anew[0] is not anew[0]
    assert np.array_equal(anew[0], kept.samples[0])
    with pytest.raises(UserError, match=r"mine: recording 2 could not be decoded \(Format not recognised\)"):
        found.lengths()


def test_a_fingerprint_is_of_sounds_and_texts() -> None:
    files = [stored(tone(300, 8000), 8000), stored(tone(400, 8000), 8000)]
    waves = [audio.read(file, 8000, where="x") for file in files]

    def fingerprint(order: list[int], texts: list[str]) -> str:
        return audio.Recordings(audio.Stored(files, 8000, where="x"), texts).select(order).fingerprint()

    assert fingerprint([0, 1], ["A", "B"]) == fingerprint([0, 1], ["A", "B"])
    assert len({fingerprint([0, 1], ["A", "B"]), fingerprint([1, 0], ["A", "B"]), fingerprint([0, 1], ["A", "C"])}) == 3
    assert audio.Recordings(waves, ["A", "B"]).fingerprint() != audio.Recordings(waves[::-1], ["A", "B"]).fingerprint()
