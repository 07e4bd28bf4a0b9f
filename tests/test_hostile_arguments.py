# pyright: reportArgumentType=false
"""Arguments and files of strangers: refused by name, at once, and without the memory that they claim."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from clean_lm import audio, audio_files, cli, memory, options
from clean_lm.audio import AudioError
from clean_lm.generation import Sampling
from clean_lm.manifest import BundleError, Manifest
from clean_lm.text_encoder import TextEncoder, tokenizer_errors
from clean_lm.tokenizer_bounds import check_growth
from clean_lm.windows import Window, windows
from tests.support import GOLDEN

pytestmark = [pytest.mark.runtime, pytest.mark.quick]

KIT = GOLDEN / "conformance" / "bundles" / "stereo"  # a tiny whole bundle


# Options


NUMBERS = [float("nan"), float("inf"), -float("inf"), -1, 1e308, 10**400, True, "5", None, [1], 5e-324]


@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_are_refused_by_name(value):
    checks = (
        lambda: options.number("x", value, "0.5 to 1", 0.5, 1),
        lambda: options.seconds("x", value, 0.02, "0.02 s or more"),
        lambda: options.rate("x", value),
        lambda: options.integer("x", value, 0, 100),
    )
    for check in checks:
        with pytest.raises(ValueError, match=r"^x: got .*expected") as error:
            check()
        assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "change", [{"temperature": 1e-45}, {"cfg_coef": 1e39}, {"top_k": 2**63}, {"top_p": 1.5}, {"cfg_coef_beta": 1e308}]
)
def test_what_float32_and_int64_do_not_hold(change):
    [name] = change
    with pytest.raises(ValueError, match=f"^{name}: got"):
        Sampling(**change).validate()


def test_threads_are_a_small_multiple_of_the_cpus():
    assert options.threads("threads", options.most_threads()) == 4 * (os.cpu_count() or 1)
    with pytest.raises(ValueError, match=r"^threads: got 2000, expected 1 or more, \d+ at most: 4 for each CPU"):
        options.threads("threads", 2000)


def test_a_long_text_is_refused():
    assert options.texts("descriptions", ["x" * 10_000, None, ""]) == ["x" * 10_000, None, ""]
    with pytest.raises(ValueError, match="descriptions: got a text of 20000 characters, expected 10000 at most"):
        options.texts("descriptions", ["x" * 20_000])


def test_lists_are_counted_before_they_are_copied():
    for wrong in (range(2**62), [1, 2], np.zeros((2, 2), np.int64)):
        with pytest.raises(ValueError, match="seed: got"):
            options.seeds(wrong, 3)


# Windows and memory


def test_windows_take_no_memory():
    """A day in windows of 30 s; and no more than can be counted at once."""
    day = windows(86400.0, 30.0, 18.0, 50.0, 0)
    assert not isinstance(day, list)
    assert sum(1 for _ in day) == 4800 - 1 + 1
    with pytest.raises(ValueError, match=r"extend_stride: got 0\.02 s, about 4320000 windows"):
        windows(86400.0, 30.0, 0.02, 50.0, 0)


def test_what_a_generation_needs():
    """By the manifest's sizes: the caches of both passes, codes, draws and audio."""
    manifest = Manifest.read(KIT)
    model = manifest.language_model
    need = memory.of_generation(manifest, 10, [Window(0, 0, 100)], "single")
    columns = 100 + max(model.delays)
    head = -(-model.head_dim // 8) * 8  # padded for the attention operator
    assert need.caches == 2 * 10 * columns * 2 * model.layers * model.heads * head * 4
    assert need.codes >= 10 * model.codebooks * 100 * 12
    assert need.audio == round(10 * model.channels * 100 / 50 * model.sample_rate * 4 * memory.AUDIO_COPIES)
    assert memory.of_generation(manifest, 10, [Window(0, 0, 100)], "none").caches * 2 == need.caches
    assert memory.of_generation(manifest, 10, [Window(0, 0, 100)], "none", whole=False).audio == 0


def test_memory_that_is_not_known_refuses_nothing(monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", Path("none"))
    monkeypatch.setattr(memory, "LIMITS", ())
    monkeypatch.setattr(memory.os, "sysconf", lambda _: 1000)
    assert memory.available() == 1_000_000
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.available() == 2**63 - 1


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    for text, found in (("123456\n", 123456), ("max\n", 2**63 - 1)):
        (tmp_path / "limit").write_text(text)
        monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
        monkeypatch.setattr(memory, "LIMITS", (tmp_path / "limit",))
        monkeypatch.delattr(memory.os, "sysconf", raising=False)
        assert memory.available() == found


@pytest.mark.parametrize(("count", "words"), [(5, "5 bytes"), (5_000_000, "5.0 MB"), (41.2e9, "41.2 GB")])
def test_sizes_have_digits(count, words):
    assert memory.size(count) == words


# The command line


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert cli.main([*map(str, arguments)]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n"), said.err[:7]) == ("", 1, "error: "), said.err
    return said.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threads", "2000"], "--threads: got 2000"),
        (["--duration", "1e9"], "--duration: got 1e+09 s, expected 86400 s"),
        (["--duration", "86400", "--extend-stride", "0.02"], "--extend-stride: got 0.02 s, about 4320000 windows"),
        (["--text", "x" * 20_000], "--text: got a text of 20000 characters"),
        (["--negative-text", "\ud800"], "--negative-text: got"),
        (["--style-length", "nan"], "--style-length: got nan"),
        (["--style-start", "-1"], "--style-start: got -1"),
    ],
)
def test_flags_are_refused_before_anything_is_loaded(capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(cli.MusicGen, "load", lambda *_, **__: pytest.fail("was loaded"))
    assert message in refused(capsys, "generate", "-o", tmp_path / "out.wav", "--bundle", KIT, *flags)
    assert not list(tmp_path.iterdir())


def test_more_than_the_machine_has(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10_000_000)
    said = refused(capsys, "generate", "-o", tmp_path / "out.wav", "--bundle", KIT, "--takes", 1000, "--duration", 30)
    assert "error: --takes: 1000 takes of 30 s: needs" in said
    assert "this machine has 10.0 MB available: fewer takes" in said


@pytest.mark.parametrize("seconds", ["1e308", "nan", "inf", "-1", "0"])
def test_prompt_seconds(capsys, tmp_path, seconds):
    said = refused(
        capsys, "continue", "none.wav", "-o", tmp_path / "out.wav", "--bundle", KIT, "--prompt-seconds", seconds
    )
    assert "--prompt-seconds: got" in said


def test_a_manifest_shows_control_characters(capsys, tmp_path):
    document = json.loads((KIT / "manifest.json").read_text())
    document["model"]["text_encoder"] = "t5\x1b[31mred\x07"
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert "t5\\x1b[31mred\\x07" in refused(capsys, "info", tmp_path)


# Audio


def wav_header(rate: int, samples: int, claimed: int, channels: int = 1) -> bytes:
    """A WAV of 16 bit silence, whose header claims more."""
    data = bytes(2 * samples * channels)
    head = b"RIFF" + struct.pack("<I", 36 + 2 * claimed * channels) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * 2 * channels, 2 * channels, 16)
    return head + b"data" + struct.pack("<I", 2 * claimed * channels) + data


@pytest.mark.parametrize("rate", [0, 1, 999, 10**9])
@pytest.mark.parametrize("command", ["codec", "continue"])
def test_rates_that_no_sound_has(capsys, tmp_path, rate, command):
    (tmp_path / "in.wav").write_bytes(wav_header(rate, 5000, 5000))
    said = refused(capsys, command, tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--bundle", KIT)
    assert "in.wav: " in said


def test_a_flac_that_claims_2_36_samples(tmp_path, monkeypatch):
    path = tmp_path / "in.flac"
    sf.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 9000), 32000)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # the last 36 bits of STREAMINFO's 8 bytes from 18 on
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"in\.flac: .*(truncated|damaged|memory)"):
        audio_files.read(path)
    with pytest.raises(AudioError, match=r"in\.flac: .*(truncated|damaged|memory)"):
        audio_files.read(path, seconds=1, from_end=True)


def test_memory_follows_what_is_read(tmp_path, monkeypatch):
    path = tmp_path / "in.wav"
    sf.write(path, np.zeros(50_000), 32000)
    monkeypatch.setattr(memory, "available", lambda: 100_000)
    with pytest.raises(AudioError, match=r"50000 samples need 400\.0 kB of memory, this machine has 100\.0 kB"):
        audio_files.read(path)
    assert audio_files.read(path, seconds=0.1)[0].shape == (1, 3200)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "null", "none"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "in.wav"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to("in.wav")
    elif kind == "null":
        path = tmp_path / "a\0b.wav"
    with pytest.raises(AudioError, match=r"not a file|not found|cannot be read"):
        audio_files.read(path)


def test_outputs_that_are_no_files_are_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    for name in ("fifo.wav", "loop.wav"):
        with pytest.raises(AudioError, match=f"{name}: a loop of links, a pipe or a device"):
            audio_files.require_writable(tmp_path / name, 32000, 1)


@pytest.mark.parametrize("rate", [1e-300, 2**40, float("nan"), float("inf"), -1, 0, "44100", None])
def test_rates_of_arrays(rate):
    for call in (
        lambda: audio.convert_audio(np.zeros((1, 100), np.float32), rate, 32000, 1),
        lambda: audio.resample(np.zeros((1, 100), np.float32), 32000, rate),
        lambda: audio.to_source(np.zeros((1, 100), np.float32), 32000, rate, 1),
    ):
        with pytest.raises(AudioError, match="sample rates: got"):
            call()


def test_other_audio_arguments():
    wave = np.zeros((1, 100), np.float32)
    calls = (
        lambda: audio.convert_audio(wave, 32000, 32000, 10**6),
        lambda: audio.resample(wave, 1_000_000, 10),
        lambda: audio.amplify(wave, 1e308),
        lambda: audio.fade_out(wave, 1.5),
        lambda: audio.splice(wave, wave, 10, float("nan")),
        lambda: audio.check([[None]], "audio"),
        lambda: audio_files.read(3),
    )
    for call in calls:
        with pytest.raises(AudioError):
            call()


# Tokenizers


class Panic(BaseException):
    """As pyo3's, which is made anew in each library that has it."""


Panic.__name__ = "PanicException"


def test_a_panic_is_a_bundle_error():
    path = Path("tokenizer.json")
    found = pytest.raises(BundleError, match=r"^tokenizer\.json: not readable: first second; export")
    with found, tokenizer_errors(path, "not readable"):
        raise Panic("first\nsecond")
    for end in (KeyboardInterrupt, SystemExit):
        with pytest.raises(end), tokenizer_errors(Path("tokenizer.json"), "not readable"):
            raise end


class Tokens:
    """A tokenizer of a stranger."""

    normalizer = None

    def __init__(self, ids: list[int]):
        self.ids = ids

    def encode(self, _: str) -> "Tokens":
        return self


@pytest.mark.parametrize(("ids", "message"), [([], "no tokens"), ([70], "token 70"), ([1] * 3000, "3000 tokens")])
def test_tokens_that_the_text_encoder_does_not_know(ids, message):
    encoder = TextEncoder(None, Tokens(ids), Path("tokenizer.json"), 64)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=message):
        encoder.tokens("x")


@pytest.mark.parametrize(
    ("step", "value", "message"),
    [
        ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "y" * 100}, "101 times as long"),
        (
            "normalizer",
            {
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "yyyy"}] * 9,
            },
            "times as long",
        ),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 40}, "times as long"),
        ("post_processor", {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}] * 99}, "99 times"),
    ],
    ids=["replace", "replace again and again", "bytes", "template"],
)
def test_a_tokenizer_that_makes_texts_long_is_refused(tmp_path, step, value, message):
    plain = KIT.with_name("text") / "tokenizer.json"
    tokenizer = json.loads(plain.read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {step: value}))
    with pytest.raises(ValueError, match=message):
        check_growth(tmp_path / "tokenizer.json")
    check_growth(plain)
