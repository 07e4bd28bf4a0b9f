"""Audio in and out: beside julius, upstream's arrays and known loudness; files of every kind, and bad ones."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from julius.resample import resample_frac

from clean_lm import audio, audio_files, loudness
from clean_lm.audio import AudioError
from tests.support import GOLDEN

pytestmark = [pytest.mark.runtime, pytest.mark.quick]

RATES = (44100, 48000, 22050, 8000, 192000, 96000, 11025, 32000, 16000)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def sine(hertz: float, rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    wave = np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


# Rates and channels


@pytest.mark.parametrize("name", ["text", "audiogen", "finetune_fp16"])
def test_prompts_become_upstreams(name):
    arrays = np.load(GOLDEN / name / "audio.npz")
    rate = 16000 if name == "audiogen" else 32000
    wav = audio.convert_audio(arrays["prompt44100"], 44100, rate, 1)
    np.testing.assert_allclose(wav, arrays["prompt_resampled"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("to_rate", [32000, 16000])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("samples", [1, 2, 3, 441, 5000, 30011])
def test_resampling_is_julius(rate, to_rate, samples):
    wav = noise(2, 2, samples)
    expected = resample_frac(torch.from_numpy(wav), rate, to_rate).numpy()
    resampled = audio.resample(wav, rate, to_rate)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, expected, rtol=0, atol=1e-6)  # a wrong length is another shape


def test_the_length_is_rounded_as_julius_rounds_it():
    # samples * 320 / 441 = ...998: over 2^18, float32 has no room for such a fraction
    samples = next(n for n in range(400_000, 500_000) if n * 320 % 441 == 440)
    wav = np.zeros((1, samples), np.float32)
    expected = resample_frac(torch.from_numpy(wav), 44100, 32000).shape[1]
    assert audio.resample(wav, 44100, 32000).shape[1] == expected == samples * 320 // 441 + 1


def test_chunks_do_not_show(monkeypatch):
    wav = noise(2, 20000)
    whole = audio.resample(wav, 44100, 32000)
    monkeypatch.setattr(audio, "WINDOW_FLOATS", 1000)
    np.testing.assert_allclose(audio.resample(wav, 44100, 32000), whole, rtol=0, atol=1e-6)


def test_rates_without_a_common_divisor():
    resampled = audio.resample(sine(1000, 44101, 0.5), 44101, 32000, exact=True)[0]
    expected = sine(1000, 32000, 0.5)[0, : len(resampled)]
    np.testing.assert_allclose(resampled[2000:-2000], expected[2000:-2000], rtol=0, atol=1e-5)


def test_channels_are_audiocrafts():
    two, six = noise(2, 9), noise(6, 9)
    np.testing.assert_allclose(audio.convert_channels(six, 1), six.mean(axis=0, keepdims=True), atol=1e-7)
    np.testing.assert_array_equal(audio.convert_channels(two[:1], 2), two[[0, 0]])
    np.testing.assert_array_equal(audio.convert_channels(two, 2), two)
    np.testing.assert_array_equal(audio.convert_channels(six, 2), six[:2])
    with pytest.raises(AudioError, match="has 2 channels, 6 are wanted"):
        audio.convert_channels(two, 6)
    with pytest.raises(AudioError, match="got 0"):
        audio.convert_channels(two, 0)


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (np.zeros((1, 0), np.float32), "no samples"),
        (np.zeros((0, 5), np.float32), "no samples"),
        (np.array([[0, np.nan, np.inf]], np.float32), "2 of 3 samples are NaN"),
        (np.zeros((1, 5), np.int16), "got int16, expected floats"),
        (np.zeros(5, np.float32), "for mono add"),
    ],
)
def test_bad_waves_are_refused(tmp_path, wav, message):
    with pytest.raises(AudioError, match=message):
        audio.convert_audio(wav, 44100, 32000, 1)
    with pytest.raises(AudioError, match=f"out.wav.*{message}"):
        audio_files.write(tmp_path / "out.wav", wav, 32000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [0, -44100, 44100.5])
def test_bad_rates_are_refused(rate):
    with pytest.raises(AudioError, match="sample rates"):
        audio.convert_audio(noise(1, 9), rate, 32000, 1)


@pytest.mark.parametrize("with_soxr", [True, False])
@pytest.mark.parametrize("rate", [44100, 48000, 8000, 192000, 32000])
def test_to_source(monkeypatch, with_soxr, rate):
    if not with_soxr:
        monkeypatch.setitem(sys.modules, "soxr", None)
    wav = sine(1000, 32000, 1)
    back = audio.to_source(wav, 32000, rate, 2)
    assert back.shape == (2, rate)
    assert back.dtype == np.float32
    inner = slice(rate // 10, -rate // 10)
    np.testing.assert_allclose(back[:, inner], sine(1000, rate, 1, 2)[:, inner], atol=3e-4)
    for samples in (1, 2, 99, 6407):
        assert audio.to_source(noise(2, samples), 32000, rate, 1).shape == (1, int(samples * rate / 32000 + 0.5))


# The seam


def test_a_splice_keeps_the_source_and_is_exact():
    source, generated = noise(2, 1000), noise(2, 5000, seed=1)
    joined = audio.splice(source, generated, seam_samples=900, crossfade_samples=100, lead_samples=300)
    assert joined.shape == (2, 900 + 5000 - 300)
    np.testing.assert_array_equal(joined[:, :800], source[:, :800])
    np.testing.assert_array_equal(joined[:, 900:], generated[:, 300:])
    rise = (np.arange(100) + 0.5) / 100
    np.testing.assert_allclose(
        joined[:, 800:900], (1 - rise) * source[:, 800:900] + rise * generated[:, 200:300], atol=1e-6
    )


def test_a_splice_of_a_wave_with_itself_is_that_wave():
    wav = noise(1, 3000)
    np.testing.assert_array_equal(audio.splice(wav[:, :2000], wav, 2000, 500), wav)


@pytest.mark.parametrize(
    ("seam", "lead", "fade"), [(0, 0, 50), (10, 40, 50), (40, 10, 50), (60, 0, 50), (60, 80, 0), (0, 80, 1)]
)
def test_a_crossfade_longer_than_either_part_is_shortened(seam, lead, fade):
    source, generated = noise(1, 60), noise(1, 80, seed=1)
    joined = audio.splice(source, generated, seam, fade, lead)
    assert joined.shape[1] == seam + 80 - lead
    kept = seam - min(seam, lead, fade)
    np.testing.assert_array_equal(joined[:, :kept], source[:, :kept])
    np.testing.assert_array_equal(joined[:, seam:], generated[:, lead:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((61, 0), "seam_samples"), ((-1, 0), "seam_samples"), ((50, -1), "crossfade_samples"), ((50, 0, 81), "lead")],
)
def test_impossible_splices_are_refused(arguments, message):
    with pytest.raises(AudioError, match=message):
        audio.splice(noise(1, 60), noise(1, 80), *arguments)
    with pytest.raises(AudioError, match="source has 2 channels"):
        audio.splice(noise(2, 60), noise(1, 80), 10, 0)


# Files


@pytest.mark.parametrize(
    ("name", "subtype", "step"),
    [
        ("a.wav", "PCM_16", 2**-15),
        ("a.wav", "PCM_24", 2**-23),
        ("a.wav", "PCM_32", 2**-24),
        ("a.wav", "FLOAT", 0),
        ("a.flac", "PCM_16", 2**-15),
        ("a.flac", "PCM_24", 2**-23),
        ("a.ogg", "VORBIS", 0.2),
        ("a.mp3", "MPEG_LAYER_III", 0.2),
    ],
)
@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (8000, 1), (32000, 2)])
def test_files_come_back(tmp_path, name, subtype, step, rate, channels):
    wav = 0.5 * sine(440, rate, 2, channels)
    assert audio_files.write(tmp_path / name, wav, rate, subtype=subtype) == 0
    whole, found = audio_files.read(tmp_path / name)
    assert (whole.shape, found, whole.dtype) == (wav.shape, rate, np.float32)
    np.testing.assert_allclose(whole, wav, rtol=0, atol=step)
    for start, seconds, from_end, expected in [
        (0, 0.5, False, slice(0, rate // 2)),
        (0.25, 0.5, False, slice(rate // 4, rate // 4 * 3)),
        (0, 0.5, True, slice(-rate // 2, None)),
        (0.5, 0.25, True, slice(rate * 5 // 4, rate * 3 // 2)),
        (0.5, None, True, slice(0, rate * 3 // 2)),
        (0, 0.01, True, slice(-rate // 100, None)),  # libsndfile seeks wrongly in the last 2000 samples of an Ogg
        (1.5, 9, False, slice(rate * 3 // 2, None)),
        (0, 9, True, slice(None)),
    ]:
        part, _ = audio_files.read(tmp_path / name, start, seconds, from_end)
        np.testing.assert_array_equal(part, whole[:, expected])


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg"])
@pytest.mark.parametrize(
    ("start", "seconds", "from_end"), [(3, 2, False), (0, 6, True), (0, 0.01, True), (7, None, False)]
)
def test_parts_of_long_compressed_files(tmp_path, name, start, seconds, from_end):
    wav = 0.3 * noise(2, 44100 * 12 + 123)
    audio_files.write(tmp_path / name, wav, 44100)
    whole, _ = audio_files.read(tmp_path / name)
    assert whole.shape == wav.shape
    part, _ = audio_files.read(tmp_path / name, start, seconds, from_end)
    begin, end = audio_files.part(wav.shape[1], start * 44100, seconds and round(seconds * 44100), from_end)
    np.testing.assert_array_equal(part, whole[:, begin:end])


@pytest.mark.parametrize("picture", [0, 200_000])
def test_an_mp3_that_does_not_tell_its_length(tmp_path, picture):
    rate = 44100
    wav = np.concatenate([0.5 * noise(2, rate // 20), 0.5 * sine(440, rate, 7, 2)], axis=1)  # its bit rate falls
    path = tmp_path / "a.mp3"
    sf.write(path, wav.T, rate, bitrate_mode="VARIABLE", compression_level=0.5)
    data = path.read_bytes()
    tag = b"ID3\x03\x00\x00" + bytes([0, picture >> 14, picture >> 7 & 127, picture & 127]) + bytes(picture)
    tag = tag if picture else b""
    path.write_bytes(tag + data)
    counted, _ = audio_files.read(path)
    assert counted.shape == wav.shape
    second = next(at for at in range(40, 2000) if data[at : at + 2] == data[:2])  # without the frame that counts them
    path.write_bytes(tag + data[second:])
    with sf.SoundFile(path) as guessed:
        assert guessed.frames < wav.shape[1] - rate  # what libsndfile believes
    uncounted, _ = audio_files.read(path)
    assert 0 <= uncounted.shape[1] - wav.shape[1] < 2 * 1152 + 529  # the encoder's padding shows
    last, _ = audio_files.read(path, seconds=1, from_end=True)
    np.testing.assert_array_equal(last, uncounted[:, -rate:])


def test_the_quietest_step_of_16_bits_is_audio(tmp_path):
    wav = np.where(noise(1, 1000) > 0, 2.0**-15, 0).astype(np.float32)
    audio_files.write(tmp_path / "a.wav", wav, 192000)
    np.testing.assert_array_equal(audio_files.read(tmp_path / "a.wav")[0], wav)


@pytest.mark.parametrize(("subtype", "bits"), [("PCM_16", 16), ("PCM_24", 24)])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_integers_come_back_bit_for_bit(tmp_path, suffix, subtype, bits):
    values = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 70000)
    values[:2] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    sf.write(first, (values << (32 - bits)).astype(np.int32), 44100, subtype)
    wav, rate = audio_files.read(first)
    audio_files.write(second, wav, rate, subtype=subtype)
    np.testing.assert_array_equal(sf.read(second, dtype="int32")[0], sf.read(first, dtype="int32")[0])


def test_six_channels_and_one_sample(tmp_path):
    for wav in (noise(6, 1000), noise(1, 1)):
        audio_files.write(tmp_path / "a.wav", wav, 48000, subtype="FLOAT")
        np.testing.assert_array_equal(audio_files.read(tmp_path / "a.wav")[0], wav)


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "text":
        path.write_text("not audio at all\n" * 100)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "none":
        sf.write(path, np.zeros((0, 2)), 44100)
    elif kind == "nan":
        sf.write(path, np.array([0, np.nan, 1]), 44100, "FLOAT")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "raw":
        path = path.with_suffix(".raw")
        path.write_bytes(bytes(1000))
    elif kind == "damaged":
        path = path.with_suffix(".flac")
        audio_files.write(path, noise(1, 50000), 44100)
        path.write_bytes(path.read_bytes()[:30000])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "not found"),
        ("folder", "not a file"),
        ("pipe", "not a file"),
        ("text", "not readable as audio"),
        ("empty", "not readable as audio"),
        ("raw", "not readable as audio"),
        ("damaged", "not readable as audio"),
        ("none", "no samples"),
        ("nan", "1 of 3 samples are NaN"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, kind, message):
    path = bad_file(kind, tmp_path)
    with pytest.raises(AudioError, match=f"{path.name}: .*{message}.*; "):
        audio_files.read(path)


def test_an_unreadable_file_is_refused_by_name(tmp_path, monkeypatch):
    audio_files.write(tmp_path / "a.wav", noise(1, 9), 44100)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")  # as root nothing is unreadable

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError, match=r"a\.wav: cannot be read: Permission denied"):
        audio_files.read(tmp_path / "a.wav")


def test_parts_that_are_not_there_are_refused(tmp_path):
    for name in ("a.wav", "a.mp3"):
        audio_files.write(tmp_path / name, noise(1, 44100), 44100)
        for from_end in (False, True):
            with pytest.raises(AudioError, match=r"1\.000 s long, nothing is left after 2 s"):
                audio_files.read(tmp_path / name, start=2, seconds=1, from_end=from_end)
    for start, seconds in [(-1, None), (0, 0), (0, -1), (float("nan"), None), (0, float("inf"))]:
        with pytest.raises(AudioError, match=r"a\.wav: start"):
            audio_files.read(tmp_path / "a.wav", start, seconds)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype", "message"),
    [
        ("a.m4a", 44100, 1, None, "expected one of .wav, .flac, .ogg, .mp3"),
        ("a", 44100, 1, None, "the extension is ''"),
        ("a.mp3", 192000, 1, None, "192000 Hz"),
        ("a.mp3", 44100, 6, None, "6 channels"),
        ("a.flac", 44100, 2, "FLOAT", "as FLOAT"),
        ("a.wav", 44100, 2, "NOTHING", "as NOTHING"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, rate, channels, subtype, message):
    with pytest.raises(AudioError, match=message):
        audio_files.write(tmp_path / name, noise(channels, 100), rate, subtype=subtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_no_half_file_is_left(tmp_path, monkeypatch, call, error):
    path = tmp_path / "a.wav"
    audio_files.write(path, noise(1, 100), 44100)
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(os if call == "fsync" else Path, call, fail)
    with pytest.raises(type(error)):
        audio_files.write(path, noise(1, 5000), 44100)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Level


def test_values_over_1_are_clipped_and_counted(tmp_path):
    wav = np.array([[0.5, 1.5, -1.5, 1.0, -1.0]], np.float32)
    assert audio_files.write(tmp_path / "a.wav", wav, 44100) == 2
    np.testing.assert_array_equal(audio_files.read(tmp_path / "a.wav")[0], [[0.5, 1 - 2**-15, -1, 1 - 2**-15, -1]])
    assert audio_files.write(tmp_path / "a.wav", wav, 44100, subtype="FLOAT") == 0
    np.testing.assert_array_equal(audio_files.read(tmp_path / "a.wav")[0], wav)
    assert audio_files.write(tmp_path / "a.wav", wav, 44100, strategy="clip") == 4


def test_strategies_reach_their_headroom():
    wav = 0.1 * sine(997, 48000, 2, 2)
    peak, _ = loudness.normalize(wav, 48000, "peak")
    assert np.abs(peak).max() == pytest.approx(10 ** (-1 / 20), abs=1e-5)
    rms, _ = loudness.normalize(wav, 48000, "rms")
    assert np.sqrt(np.mean(rms**2)) == pytest.approx(10 ** (-18 / 20), abs=1e-5)
    loud, _ = loudness.normalize(wav, 48000, "loudness")
    assert loudness.loudness(loud, 48000) == pytest.approx(-14, abs=1e-4)
    clipped, count = loudness.normalize(10 * wav, 48000, "clip", headroom_db=6)
    assert np.abs(clipped).max() == pytest.approx(10 ** (-6 / 20), abs=1e-6)
    assert count == np.count_nonzero(np.abs(10 * wav) > 10 ** (-6 / 20))
    soft, _ = loudness.normalize(wav, 48000, "loudness", 14, compressor=True)
    np.testing.assert_allclose(soft, np.tanh(loud))
    with pytest.raises(AudioError, match="'louder', expected one of clip, peak, rms, loudness or None"):
        loudness.normalize(wav, 48000, "louder")


@pytest.mark.parametrize("strategy", ["clip", "peak", "rms", "loudness", None])
@pytest.mark.parametrize("samples", [1, 48000])
def test_silence_stays_silence(strategy, samples):
    wav = np.zeros((2, samples), np.float32)
    np.testing.assert_array_equal(loudness.normalize(wav, 48000, strategy)[0], wav)


@pytest.mark.parametrize("rate", [8000, 16000, 32000, 44100, 48000, 96000, 192000])
def test_loudness_of_a_full_scale_sine(rate):
    """BS.1770-4: a 997 Hz sine at 0 dB full scale in one channel reads -3.01 LKFS; in two, 3.01 dB more."""
    assert loudness.loudness(sine(997, rate, 3), rate) == pytest.approx(-3.01, abs=0.01)
    assert loudness.loudness(sine(997, rate, 3, 2), rate) == pytest.approx(0, abs=0.01)
    six = np.zeros((6, rate), np.float32)
    six[3] = 1  # the low-frequency channel does not count
    assert loudness.loudness(six, rate) == -np.inf


def test_loudness_gates():
    """EBU Tech 3341, cases 3 to 5, two of them halved: far under the rest, or under -70, nothing counts."""
    rate = 48000

    def levels(*parts: tuple[float, float]) -> np.ndarray:
        return np.concatenate([10 ** (db / 20) * sine(1000, rate, seconds, 2) for db, seconds in parts], axis=1)

    assert loudness.loudness(levels((-36, 5), (-23, 30), (-36, 5)), rate) == pytest.approx(-23, abs=0.1)
    quiet = levels((-72, 5), (-36, 5), (-23, 30), (-36, 5), (-72, 5))
    assert loudness.loudness(quiet, rate) == pytest.approx(-23, abs=0.1)
    assert loudness.loudness(levels((-26, 20), (-20, 20.1), (-26, 20)), rate) == pytest.approx(-23, abs=0.1)
    assert loudness.loudness(levels((-80, 1)), rate) == -np.inf


def test_loudness_weighs_frequencies():
    """The standard's filters by their own recursion, sample by sample, beside the product of spectra."""
    wav = noise(1, 19200)[0].astype(np.float64)
    filtered = wav
    for b, a in loudness.K_WEIGHTING:
        x1 = x2 = y1 = y2 = 0.0
        output = []
        for x0 in filtered:
            y0 = b[0] * x0 + b[1] * x1 + b[2] * x2 - a[1] * y1 - a[2] * y2
            x1, x2, y1, y2 = x0, x1, y0, y1
            output.append(y0)
        filtered = np.array(output)
    expected = -0.691 + 10 * np.log10(np.mean(filtered**2))
    assert loudness.loudness(wav[None], 48000) == pytest.approx(expected, abs=1e-6)
