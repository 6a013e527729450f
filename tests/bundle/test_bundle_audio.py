"""Bundles of speech models: a recording goes in, a text comes out, without anything of ours."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle.speech_bundles import DECODING, RATE, SAID, as_wave, spoken
from scipy.signal import resample_poly

from rlprune_edge.bundle import predict_template as predict
from rlprune_edge.bundle import speech
from rlprune_edge.bundle.verify import run, run_file, verify

Alone = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("inputs", [("input_values",), ("input_values", "attention_mask")])
def test_a_recording_becomes_a_text(write_speech: Callable[..., Path], inputs: tuple[str, ...]) -> None:
    bundle = write_speech(inputs=inputs)
    model, heard = predict.load(bundle), spoken()
    answer = {"text": "HELLO WORLD", "frames": len(SAID.split()), "seconds": round(len(heard) / RATE, 3)}
    assert model.predict(heard) == answer
    assert model.predict((heard * 32767).astype(np.int16)) == answer
    assert model.predict(heard.tolist()) == answer
    assert run(bundle, heard) == answer
    assert verify(bundle)[-1].startswith("golden/1-output-0.npy: reproduced")
    prepared = model.prepare_audio(heard)
    assert list(prepared) == list(inputs)
    assert model.predict(prepared)["outputs"]["logits"][0][0] == pytest.approx(
        prepared["input_values"][0, :10].tolist()
    )


def test_a_model_of_one_length_gets_silence_after_the_end(write_speech: Callable[..., Path]) -> None:
    bundle = write_speech(inputs=("input_values", "attention_mask"), samples=400)
    model = predict.load(bundle)
    assert model.prepare_audio(spoken())["attention_mask"].sum() == len(spoken())
    answer = model.predict(spoken())
    assert (answer["text"], answer["frames"]) == ("HELLO WORLD", 40)
    with pytest.raises(predict.PredictError, match="the recording has 410 samples, and the model takes 400"):
        model.predict(np.zeros(410, dtype=np.float32))


def test_what_is_too_short_for_the_network_gets_silence(write_speech: Callable[..., Path]) -> None:
    prepared = predict.load(write_speech(min_samples=50, normalize=False)).prepare_audio(spoken("H E"))["input_values"]
    np.testing.assert_array_equal(prepared[0], np.pad(spoken("H E"), (0, 30)))


def test_the_command_reads_files_and_leaves_the_bundle_whole(
    write_speech: Callable[..., Path], alone: Alone, tmp_path: Path
) -> None:
    bundle = write_speech()
    expected = predict.load(bundle).predict(spoken())
    done = alone(bundle, str(as_wave(tmp_path / "speech.wav", spoken())), without=("soundfile",))
    assert (json.loads(done.stdout), done.stderr) == (expected, "")
    np.save(tmp_path / "speech.npy", spoken())
    assert json.loads(alone(bundle, str(tmp_path / "speech.npy")).stdout) == expected
    assert json.loads(alone(bundle, "--golden", "0").stdout)["reproduced"] is True
    assert verify(bundle)[0] == "19 files, none missing, none extra"
    assert run_file(bundle, tmp_path / "speech.wav") == expected
    command = [sys.executable, "-m", "rlprune_edge", "bundle", "run", str(bundle), str(tmp_path / "speech.wav")]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == expected


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("channels", [1, 2])
def test_wave_files_of_all_widths(tmp_path: Path, bits: int, channels: int) -> None:
    import soundfile

    path = as_wave(tmp_path / "speech.wav", spoken(), bits=bits, channels=channels)
    samples, rate = speech.read(path)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    assert (rate, samples.dtype) == (RATE, np.float32)
    np.testing.assert_array_equal(samples, expected)
    assert np.abs(samples - spoken()).max() < 2.0 ** (2 - bits) + 0.006 * (channels - 1)


@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_other_forms_of_wave_files(tmp_path: Path, subtype: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    soundfile.write(tmp_path / "speech.wav", spoken(), RATE, subtype=subtype, format=kind)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    np.testing.assert_allclose(speech.read(tmp_path / "speech.wav")[0], spoken(), atol=2**-23)


def test_flac_needs_a_package(write_speech: Callable[..., Path], alone: Alone, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "speech.flac", spoken(), RATE)
    bundle = write_speech()
    done = alone(bundle, str(tmp_path / "speech.flac"))
    assert (json.loads(done.stdout)["text"], done.stderr) == ("HELLO WORLD", "")
    done = alone(bundle, str(tmp_path / "speech.flac"), without=("soundfile",))
    needs = "speech.flac: recordings other than WAV files need soundfile (python -m pip install soundfile)\n"
    assert (done.returncode, done.stdout, done.stderr.endswith(needs)) == (2, "", True)


@pytest.mark.parametrize("own_rate", [8000, 11025, 22050, 24000, 44100, 48000, 15999])
@pytest.mark.parametrize("count", [1, 5, 4003])
def test_resampling_is_scipys(own_rate: int, count: int) -> None:
    samples = np.random.default_rng(own_rate).normal(size=count).astype(np.float32)
    common = math.gcd(own_rate, RATE)
    expected = resample_poly(samples.astype(np.float64), RATE // common, own_rate // common)
    got = speech.resampled(samples, own_rate, RATE)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 5e-7  # of samples of size 1: float32's own rounding


def test_a_long_recording_is_resampled_in_blocks() -> None:
    samples = np.random.default_rng(0).normal(size=30 * 44100).astype(np.float32)
    assert np.abs(speech.resampled(samples, 44100, RATE) - resample_poly(samples, 160, 441)).max() < 5e-6


def test_a_tone_survives_resampling(write_speech: Callable[..., Path], tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / RATE)
    got = speech.resampled(tone.astype(np.float32), 8000, RATE)
    assert np.abs(got - expected)[200:-200].max() < 2e-3
    model = predict.load(write_speech())
    in_memory = model.predict(tone, sampling_rate=8000)
    assert (in_memory["frames"], in_memory["seconds"]) == (1600, 1.0)
    assert model.predict_file(as_wave(tmp_path / "tone.wav", tone, rate=8000))["frames"] == 1600


def test_normalising_is_transformers() -> None:
    import transformers

    import rlprune_edge.tasks.pretrained  # noqa: F401 (makes transformers importable)

    extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    for samples in (spoken(), spoken() * 1e-4 + 0.3, np.zeros(100, dtype=np.float32)):
        expected = extract(samples, sampling_rate=RATE)["input_values"][0]
        np.testing.assert_allclose(speech.normalised(samples), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.zeros((2, 100), dtype=np.float32), r"an array \[samples\], not \[2, 100\]"),
        (np.zeros(0, dtype=np.float32), r"not \[0\]"),
        (np.zeros(100, dtype=np.int64), "floats in -1..1 or whole numbers of 16 bits, not int64"),
        (np.full(100, np.nan), "samples that are not finite"),
        ("hello", "takes no texts: its inputs are recordings"),
        (np.zeros(103, dtype=np.float32), "the model cannot run on this input"),
    ],
)
def test_what_is_no_recording_is_refused(write_speech: Callable[..., Path], given: Any, sentence: str) -> None:
    with pytest.raises(predict.PredictError, match=sentence):
        predict.load(write_speech()).predict(given)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read speech.wav: No such file or directory"),
        (b"", "cannot read speech.wav as a recording"),
        (b"RIFF\0\0\0\0WAVE", "cannot read speech.wav as a recording"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 1, 0, RATE, 0, 0, 16), "cannot read speech.wav as"),
        (
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 1, 1, RATE, 0, 2, 16) + b"data\0\0\0\0",
            "speech.wav holds no sound",
        ),
        (
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 1, 1, 0, 0, 2, 16) + b"data\4\0\0\0abcd",
            "a recording of 0 samples per second cannot be brought to 16000",
        ),
    ],
)
def test_spoiled_files_are_one_sentence(
    write_speech: Callable[..., Path], alone: Alone, content: bytes | None, sentence: str
) -> None:
    bundle = write_speech()
    if content is not None:
        (bundle / "speech.wav").write_bytes(content)
    done = alone(bundle, "speech.wav")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(sentence)


def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = as_wave(tmp_path / "speech.wav", spoken()).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:-101])
    assert len(speech.read(tmp_path / "cut.wav")[0]) == len(spoken()) - 51


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"decoding": None}, "has no sampling_rate or no decoding"),
        ({"sampling_rate": None}, "has no sampling_rate or no decoding"),
        ({"decoding": {**DECODING, "kind": "beam"}}, "unknown kind of decoding 'beam'"),
        ({"decoding": {"kind": "ctc-greedy", "blank": 0}}, "manifest.json lacks 'word_delimiter'"),
    ],
)
def test_a_manifest_that_says_too_little(
    write_speech: Callable[..., Path], change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(predict.PredictError, match=sentence):
        predict.load(write_speech(**change)).predict(spoken())


def test_the_readme_shows_how_recordings_are_given(write_speech: Callable[..., Path]) -> None:
    bundle = write_speech()
    text = (bundle / "README.md").read_text()
    assert "python predict.py speech.wav " in text
    assert 'predict(samples)["text"]`. `samples` is an array of floats in -1..1 at 16000 per second.' in text
    assert (bundle / "speech.py").read_bytes() == Path(speech.__file__).read_bytes()
    assert not (bundle / "tokens.py").exists()
