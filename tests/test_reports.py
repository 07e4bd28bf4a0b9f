"""Public bug reports of this field, rebuilt as small inputs of our own: each is read right, or refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import soundfile as sf
import torch

from clean_lm import MusicGen, audio, audio_files, cli
from clean_lm.audio import AudioError
from clean_lm.audio_codec import Codec
from clean_lm.generation import Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.session import require_started
from tests.support import GOLDEN, ROOT, GoldenTexts

pytestmark = pytest.mark.runtime

GREEDY = Sampling(use_sampling=False)


def db(ratio: float) -> float:
    return 20 * float(np.log10(ratio))


# MP3 and other compressed files: as one uninterrupted decode gives them


def write_compressed(path: Path, channels: int, **how: Any) -> np.ndarray:
    """20 s of four sines, 44.1 kHz, as a file; what one read of soundfile gives of it [channels, samples]."""
    time = np.arange(20 * 44100) / 44100
    wave = sum(0.1 * np.sin(2 * np.pi * hertz * time) for hertz in (110, 164.8, 220, 277.2))
    with sf.SoundFile(path, "w", 44100, channels, **how) as file:
        for at in range(0, len(time), 65536):
            file.write(np.repeat(np.asarray(wave)[at : at + 65536, None], channels, axis=1))
    return sf.read(path, dtype="float32", always_2d=True)[0].T


COMPRESSED = {
    "variable": ("a.mp3", {"bitrate_mode": "VARIABLE", "compression_level": 0.3}),
    "constant": ("a.mp3", {"bitrate_mode": "CONSTANT", "compression_level": 0.3}),
    "average": ("a.mp3", {"bitrate_mode": "AVERAGE", "compression_level": 0.6}),
    "vorbis": ("a.ogg", {"subtype": "VORBIS"}),
}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_files_are_read_as_one_decode_gives_them(tmp_path, kind, channels):
    """Whole, and as prompts of both ends: no bursts where a decoder was not primed after a seek."""
    name, how = COMPRESSED[kind]
    whole = write_compressed(tmp_path / name, channels, **how)
    assert whole.shape[1] == 20 * 44100
    np.testing.assert_array_equal(audio_files.read(tmp_path / name)[0], whole)
    np.testing.assert_array_equal(audio_files.read(tmp_path / name, seconds=6)[0], whole[:, : 6 * 44100])
    last, _ = audio_files.read(tmp_path / name, seconds=6, from_end=True)
    np.testing.assert_array_equal(last, whole[:, -6 * 44100 :])


@pytest.mark.parametrize("tag", [0, 5000])
def test_an_mp3_without_a_count_and_with_a_tag(tmp_path, tag):
    """The same samples as of the file with its count, after the encoder's delay, which only the count tells."""
    path = tmp_path / "a.mp3"
    whole = write_compressed(path, 2, bitrate_mode="VARIABLE", compression_level=0.3)
    data = path.read_bytes()
    second = next(at for at in range(40, 2000) if data[at : at + 2] == data[:2])
    path.write_bytes((b"ID3\x03\0\0" + bytes([0, 0, tag >> 7, tag & 127]) + bytes(tag) if tag else b"") + data[second:])
    bare, _ = audio_files.read(path)
    delay = bare.shape[1] - whole.shape[1]
    assert 0 <= delay < 2 * 1152 + 529
    part = slice(3000, 5000)
    found = min(range(delay + 1), key=lambda d: np.abs(bare[:, d:][:, part] - whole[:, part]).max())
    assert np.abs(bare[:, found : found + whole.shape[1]] - whole)[:, 3000:].max() < 1e-6


def test_splice_keeps_an_mp3s_samples(music, tmp_path, capsys):
    """Up to the crossfade they are those of one uninterrupted decode."""
    whole = write_compressed(tmp_path / "a.mp3", 2, bitrate_mode="VARIABLE", compression_level=0.3)
    command = ["continue", tmp_path / "a.mp3", "-o", tmp_path / "out.wav", "--bundle", music("text", True), "--splice",
               "--prompt-seconds", "1", "--duration", "1.2"]  # fmt: skip
    assert cli.main([*map(str, command)]) == 0, capsys.readouterr().err
    out = audio_files.read(tmp_path / "out.wav")[0]
    seam, fade = whole.shape[1], round(0.02 * 44100)
    np.testing.assert_allclose(out[:, : seam - fade], whole[:, : seam - fade], rtol=0, atol=2**-15)
    assert out.shape[1] == seam + round(0.2 * 44100)


# Truncated files


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.au", "a.w64", "a.rf64", "a.mp3", "a.ogg"])
def test_truncated_files_are_refused(tmp_path, name):
    """Wherever the part that is asked for lies."""
    path = tmp_path / name
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, (5 * 44100, 2))
    with sf.SoundFile(path, "w", 44100, 2, format="RF64" if name == "a.rf64" else None) as file:
        for at in range(0, len(wave), 4096):
            file.write(wave[at : at + 4096])
    assert audio_files.read(path)[0].shape == (2, 5 * 44100)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for seconds, from_end in ((None, False), (1, False), (1, True)):
        with pytest.raises(AudioError, match=rf"{name}: truncated.*; copy it again"):
            audio_files.read(path, seconds=seconds, from_end=from_end)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_that_was_streamed_is_whole(tmp_path, size):
    """A writer to a pipe does not know the length, and says the largest."""
    sf.write(tmp_path / "a.wav", np.zeros(44100), 44100)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    at = content.index(b"data")
    content[at + 4 : at + 8] = size.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    assert audio_files.read(tmp_path / "a.wav")[0].shape == (1, 44100)


# Arrays


@pytest.mark.parametrize(
    ("shape", "turned"),
    [((176400, 2), r"\[2, 176400\].*\.T"), ((1, 44100, 2), r"\[1, 2, 44100\].*\.swapaxes"), ((20, 1), r"\[1, 20\]")],
)
def test_arrays_in_soundfiles_layout_are_refused(music, shape, turned):
    model = MusicGen.load(music("text", True))
    with pytest.raises(ValueError, match=rf"prompt: got shape \[{', '.join(map(str, shape))}\].*{turned}"):
        model.generate_continuation(np.zeros(shape, np.float32), 44100)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("int16", "divide int16 by 32768"), ("int32", "divide int32 by 2147483648"), ("uint8", "subtract 128")],
)
def test_integer_audio_is_refused_by_name(dtype, scale):
    with pytest.raises(AudioError, match=f"prompt: got {dtype}, expected floats; {scale}"):
        audio.as_batch(np.zeros((2, 100), dtype), "prompt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_tensors_are_arrays(dtype):
    """On whatever device, with whatever gradient; numpy has no bfloat16."""
    wave = torch.linspace(-0.5, 0.5, 100).to(dtype).reshape(1, 100).requires_grad_()
    found = audio.as_batch(wave, "prompt")
    np.testing.assert_array_equal(found, wave.detach().float().numpy()[None])
    assert (found.dtype, audio.as_batch([wave, wave], "prompt").shape) == (np.float32, (2, 1, 100))


def test_floats_of_any_width_are_read():
    for dtype in (np.float16, np.float64):
        assert audio.check(np.full((1, 9), 0.5, dtype), "prompt").dtype == np.float32
    with pytest.raises(AudioError, match="1 of 9 samples are NaN or infinite"):
        audio.check(np.array([[1e39] + [0.0] * 8]), "prompt")  # infinite in float32


def test_prompts_of_several_lengths():
    """One line with the lengths and what to do; of one length they are a batch."""
    short, long = np.zeros((2, 300), np.float32), np.zeros((2, 500), np.float32)
    with pytest.raises(AudioError, match=r"prompt: got lengths of 300, 500 samples, expected one.*last 300.*once per"):
        audio.as_batch([short, long], "prompt")
    with pytest.raises(AudioError, match=r"prompt: got \[1, 2\] channels in one list"):
        audio.as_batch([short, short[:1]], "prompt")
    with pytest.raises(AudioError, match=r"prompt\[1\]: got shape \[300\].*for mono add"):
        audio.as_batch([short, short[0]], "prompt")
    with pytest.raises(AudioError, match="prompt: got lists of several lengths"):
        audio.as_batch([[0.0, 0.1], [0.0]], "prompt")
    assert audio.as_batch([short, short + 0.1], "prompt").shape == (2, 2, 300)


# Tokens and seeds


@pytest.fixture
def model(music, golden) -> MusicGen:
    loaded = MusicGen.load(music("text"))
    loaded.text = GoldenTexts(golden("text"))  # pyright: ignore[reportAttributeAccessIssue]
    loaded.set_generation_params(use_sampling=False, duration=0.6)
    return loaded


def test_tokens_are_continued_as_upstream_continues_them(golden, model):
    """What return_tokens gives is a prompt, whole or in part; chunks of a stream are the same sound."""
    g, prompt = golden("text"), np.load(GOLDEN / "text" / "audio.npz")["prompt44100"]
    sound, tokens = model.generate_continuation(prompt, 44100, [g.meta["D1"]], return_tokens=True)
    known = -(-prompt.shape[2] * 50 // 44100)
    again, same = model.generate_continuation(
        descriptions=[g.meta["D1"]], prompt_codes=tokens[:, :, :known].astype(np.int32), return_tokens=True
    )
    np.testing.assert_array_equal(same, g["e2e.desc.tokens"])
    np.testing.assert_array_equal(again, sound)
    chunks = list(model.stream_continuation(descriptions=[g.meta["D1"]], prompt_codes=tokens[:, :, :known]))
    np.testing.assert_allclose(np.concatenate(chunks, axis=2), sound, atol=1e-4 * np.abs(sound).max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"prompt_codes": np.zeros((1, 4, 9))},
            "prompt_codes: got float64, expected integers: the codes that return_tok",
        ),
        ({"prompt_codes": np.zeros((1, 3, 9), int)}, r"prompt_codes: got shape \[1, 3, 9\]"),
        ({"prompt_codes": np.zeros((1, 4, 30), int)}, r"requested 0\.6 s, but the prompt already has 0\.6 s"),
        (
            {"prompt_codes": np.zeros((1, 4, 9), int), "prompt": np.zeros((1, 9))},
            "give prompt or prompt_codes: got both",
        ),
        ({}, "give prompt or prompt_codes: got neither"),
    ],
)
def test_codes_that_are_none_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate_continuation(**arguments)


def test_numpys_integers_are_seeds(music):
    lm = LanguageModel.load(music("text"))
    expected = lm.generate_codes(frames=9, seed=7, batch=2)
    given: tuple[Any, ...] = (
        np.int64(7),
        np.uint8(7),
        [np.int32(7), 8],
        np.array([7, 8]),
        (7, np.uint64(8)),
        range(7, 9),
    )
    for seed in given:
        np.testing.assert_array_equal(lm.generate_codes(frames=9, seed=seed, batch=2), expected)
    wrong: tuple[Any, ...] = ("7", 7.0, True, [7, "8"], [7], np.array([7.0, 8.0]), 2**64 - 1)
    for seed in wrong:
        with pytest.raises(ValueError, match=r"seed: got .*, expected a whole number from 0 to 2"):
            lm.generate_codes(frames=9, seed=seed, batch=2)


# Options


WRONG: Any = "no"  # no type that is expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, "generate_codes: unknown option top_k, expected one of batch, duration, extend_stride, frames"),
        ({"takes": True}, "takes: got True, expected a whole number from 1 to 1000"),
        ({"takes": 100_000}, "takes: got 100000, expected a whole number from 1 to 1000"),
        ({"batch": "2"}, "batch: got '2', expected a whole number"),
        ({"frames": True}, "frames: got True, expected a whole number"),
        ({"sampling": Sampling(temperature=1e-40)}, r"temperature: got 1e-40, expected 0 \(greedy\) or at least 1e-06"),
        ({"sampling": Sampling(temperature=WRONG)}, "temperature: got 'no'"),
        ({"sampling": Sampling(top_k=2**63)}, f"top_k: got {2**63}, expected a whole number from 0"),
        ({"sampling": Sampling(top_k=True)}, "top_k: got True"),
        ({"sampling": Sampling(cfg_coef=1e39)}, r"cfg_coef: got 1e\+39, expected a finite number, 1e\+06 at most"),
        ({"sampling": Sampling(use_sampling=WRONG)}, "use_sampling: got 'no', expected True or False"),
    ],
)
def test_options_are_refused_by_name(music, options, message):
    lm, request = LanguageModel.load(music("text")), {"frames": 9, **options}
    with pytest.raises(ValueError, match=message):
        lm.generate_codes(**request)


@pytest.mark.parametrize("least", [1e-6, 1e6])
def test_the_extremes_that_are_left_are_computed(music, least):
    """No NaN on the way: the lowest temperature is greedy, and the largest coefficients are finite."""
    lm = LanguageModel.load(music("text"))
    states = [np.random.default_rng(0).standard_normal((4, lm.text_dim)).astype(np.float32)]
    sampling = Sampling(temperature=1e-6, cfg_coef=least)
    drawn = lm.generate_codes(None, states, frames=20, sampling=sampling, seed=1)
    greedy = lm.generate_codes(None, states, frames=20, sampling=Sampling(use_sampling=False, cfg_coef=least))
    np.testing.assert_array_equal(drawn, greedy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"thread": 2},
            "load: unknown option thread, expected one of confine, device, hashes, providers, threads, variant",
        ),
        ({"threads": 0}, "threads: got 0"),
        ({"threads": "2"}, "threads: got '2'"),
        ({"hashes": "no"}, "hashes: got 'no', expected True or False"),
        ({"providers": "CUDAExecutionProvider"}, "providers: got 'CUDAExecutionProvider', expected a list"),
        ({"providers": ["NoSuchProvider"]}, "has no NoSuchProvider, only .*CPUExecutionProvider"),
        ({"providers": [("NoSuchProvider", {"device_id": 0})]}, "has no NoSuchProvider, only .*CPUExecutionProvider"),
    ],
)
def test_options_of_load_are_refused_by_name(music, options, message):
    with pytest.raises(ValueError, match=message):
        MusicGen.load(music("text"), **options)


def test_a_provider_that_does_not_start_is_an_error(music, monkeypatch):
    """ONNX Runtime takes the CPU in its place and says so only in its log."""
    with pytest.raises(ValueError, match="could not start CUDAExecutionProvider, only CPUExecutionProvider"):
        require_started(["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"])
    available = [*ort.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: available)
    session = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda *a, providers: session(*a, providers=["CPUExecutionProvider"]))
    with pytest.raises(ValueError, match="could not start CUDAExecutionProvider, only CPUExecutionProvider"):
        MusicGen.load(music("text"), providers=["CUDAExecutionProvider"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duration": 0.01}, r"duration: got 0\.01 s, expected more than 0: 0\.02 s \(a frame\) at least"),
        ({"duration": True}, "duration: got True"),
        ({"duration": "30"}, "duration: got '30'"),
        ({"duration": 1e9}, r"duration: got 1e\+09 s, expected 86400 s \(a day\) at most"),
        ({"extend_stride": "18"}, "extend_stride: got '18', expected seconds"),
    ],
)
def test_durations_are_refused_by_name(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.set_generation_params(**options)


@pytest.mark.parametrize("descriptions", ["a text", ["a", 5], 7])
def test_descriptions_that_are_none_are_refused(model, descriptions):
    with pytest.raises(ValueError, match="descriptions: got"):
        model.generate(descriptions)


# A negative text


@pytest.mark.parametrize("name", ["text", "melody"])
def test_a_negative_text_is_what_the_unconditional_row_reads(golden, music, name):
    """Guided logits are n + 3 (c - n), both of them rows of the same model that are given their texts."""
    g, lm = golden(name), LanguageModel.load(music(name))
    texts = g.texts([g.meta["D1"], g.meta["D2"]])
    columns, draws = np.random.default_rng(0).integers(0, lm.card, (2, 4, 5)), np.zeros((2, 4), np.float32)
    wav = [g["cond.desc.self_wav"][0], None] if name == "melody" else None
    alone = lm.decoder(2, 9, texts, Sampling(cfg_coef=1.0), wav)  # one pass: texts padded together, as in two
    alone.prefill(columns[[0, 0]], draws)
    guided = lm.decoder(1, 9, texts[:1], GREEDY, wav and wav[:1], texts[1:])
    guided.prefill(columns[:1], draws[:1])
    conditioned, negative = alone.logits
    np.testing.assert_allclose(guided.logits[0], negative + 3 * (conditioned - negative), rtol=0, atol=1e-4)
    plain = lm.decoder(1, 9, texts[:1], GREEDY, wav and wav[:1])
    plain.prefill(columns[:1], draws[:1])
    assert np.abs(plain.logits - guided.logits).max() > 0.1


def test_negative_descriptions(golden, model):
    """One per row, takes of it too; without one a row is what it was."""
    g = golden("text")
    d1, d2 = g.meta["D1"], g.meta["D2"]
    _, tokens = model.generate([d1], return_tokens=True, takes=2, negative_descriptions=[d2])
    states = [g.texts([text]) for text in (d1, d2)]
    expected = model.lm.generate_codes(None, states[0], frames=30, sampling=GREEDY, negative_states=states[1])
    np.testing.assert_array_equal(tokens, expected.repeat(2, axis=0))
    _, plain = model.generate([d1], return_tokens=True)
    assert (plain != tokens[:1]).any()
    np.testing.assert_array_equal(model.generate([d1], return_tokens=True, negative_descriptions=[None])[1], plain)
    chunks = list(model.stream([d1], negative_descriptions=[d2]))
    np.testing.assert_allclose(chunks[0], model.codec.decode(tokens[:1]), atol=1e-4)
    for wrong, message in ((["a", "b"], "got 2 for 1 prompts"), ("a", "got 'a', expected a list")):
        with pytest.raises(ValueError, match=f"negative_descriptions: {message}"):
            model.generate([d1], negative_descriptions=wrong)


# The level at the seam, the channel, the end


def stereo_track(kind: str) -> tuple[np.ndarray, int]:
    """The demo's loop, 44.1 kHz stereo: two channels that have nothing in common, or sound on the left alone."""
    loop, rate = audio_files.read(ROOT / "demo" / "loop.wav")
    loop = audio.to_source(loop, rate, 44100, 1)[0]
    right = {"decorrelated": loop[::-1], "left": np.zeros_like(loop), "opposite": -loop, "same": loop}[kind]
    return 0.5 * np.stack([loop, right * (1 if kind == "opposite" else 1.0)]), 44100


@pytest.mark.parametrize("kind", ["decorrelated", "left", "same"])
def test_the_level_meets_the_tracks_at_the_seam(demo_bundle, kind):
    """A mono mix loses 3 dB of channels with nothing in common; what the codec loses beside comes on top."""
    codec, (track, rate) = Codec.load(demo_bundle), stereo_track(kind)
    mono = audio.convert_audio(track, rate, codec.sample_rate, 1)
    decoded = codec.decode(codec.encode(mono[None]))[0, :, : mono.shape[1]]
    take = audio.to_source(decoded, codec.sample_rate, rate, 2)
    lead = take.shape[1]
    gain = audio.match_level(track, take, track.shape[1], lead, rate)
    before, after = (audio.rms(wave[:, -rate:]) for wave in (track, audio.amplify(take, gain)))
    assert db(after / before) == pytest.approx(0, abs=0.01)
    codecs = db(audio.rms(mono[:, -32000:]) / audio.rms(decoded[:, -32000:]))
    lost = {"decorrelated": db(before / audio.rms(track.mean(axis=0)[-rate:])), "left": 10 * np.log10(2), "same": 0}[
        kind
    ]
    assert gain == pytest.approx(lost + codecs, abs=0.1)
    assert audio.mix_loss(track) == pytest.approx({"left": 3.01, "same": 0}.get(kind, audio.mix_loss(track)), abs=0.01)


def test_levels_are_matched_within_bounds():
    loud, quiet = np.full((1, 100), 0.9), np.full((1, 100), 0.01)
    assert audio.match_level(loud, quiet, 100, 100, 50) == 12
    assert audio.match_level(quiet, loud, 100, 100, 50) == -12
    assert audio.match_level(loud, loud / 2, 100, 100, 50) == pytest.approx(20 * np.log10(2))
    for silent, other in ((loud * 0, loud), (loud, loud * 0), (loud * 1e-5, loud)):
        assert audio.match_level(silent, other, 100, 100, 50) == 0
    assert audio.match_level(loud, quiet, 0, 0, 50) == 0


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys) -> Run:
    """A command that succeeds, with --json: its last line, and what it warned of."""

    def call(*arguments: str | Path) -> dict[str, Any]:
        status = cli.main([*map(str, arguments), "--json"])
        said = capsys.readouterr()
        assert status == 0, said.err
        return {**json.loads(said.out.splitlines()[-1]), "err": said.err}

    return call


def test_splice_matches_the_level(run, music, tmp_path):
    """By as much as is said: behind the seam nothing else differs from --no-match-level."""
    track, rate = stereo_track("left")
    sf.write(tmp_path / "in.wav", 0.3 * track.T, rate, "FLOAT")
    command = ("continue", tmp_path / "in.wav", "--bundle", music("text", True), "--splice", "--prompt-seconds", "1",
               "--duration", "1.5", "--seed", "1", "-o")  # fmt: skip
    said, plain = run(*command, tmp_path / "a.wav"), run(*command, tmp_path / "b.wav", "--no-match-level")
    assert "level_db" not in plain
    assert abs(said["level_db"]) > 0.5
    matched, left = (audio_files.read(tmp_path / name)[0][:, track.shape[1] :] for name in ("a.wav", "b.wav"))
    np.testing.assert_allclose(matched, left * 10 ** (said["level_db"] / 20), rtol=2e-3, atol=1e-6)


def test_a_mono_mix_that_cancels_is_warned_of(run, music, tmp_path):
    """And a channel of the track can be chosen in place of it."""
    track, rate = stereo_track("opposite")
    sf.write(tmp_path / "in.wav", (track * [[1], [0.9]]).T, rate, "FLOAT")
    command = ("continue", tmp_path / "in.wav", "--bundle", music("text", True), "--prompt-seconds", "1", "--duration",
               "1.1", "--seed", "1", "-o")  # fmt: skip
    said = run(*command, tmp_path / "mix.wav")
    loss = db(np.sqrt((1 + 0.81) / 2) / 0.05)
    assert said["mix_loss_db"] == pytest.approx(loss, abs=0.1)
    assert said["err"].startswith(f"warning: {tmp_path}/in.wav: the mono mix that the model is given is {loss:.1f} dB")
    for channel, index in (("left", 0), ("right", 1)):
        chosen = run(*command, tmp_path / f"{channel}.wav", "--channel", channel)
        assert chosen["err"] == ""
        sf.write(tmp_path / "alone.wav", audio_files.read(tmp_path / "in.wav")[0][index], rate, "FLOAT")
        run("continue", tmp_path / "alone.wav", *command[2:], tmp_path / f"{channel}-alone.wav")
        stereo, mono = (audio_files.read(tmp_path / f"{name}.wav")[0] for name in (channel, f"{channel}-alone"))
        np.testing.assert_array_equal(stereo, mono[[0, 0]])


def test_an_output_is_replaced_when_asked(run, music, tmp_path, capsys):
    bundle = music("text", True)
    command = ("generate", "--bundle", bundle, "--duration", "0.1", "--seed", "1", "-o", tmp_path / "out.wav")
    assert "replaced" not in run(*command)
    first = (tmp_path / "out.wav").read_bytes()
    assert cli.main([*map(str, command)]) == 1
    assert (tmp_path / "out.wav").read_bytes() == first
    again = run(*command, "--seed", "2", "--overwrite")
    assert again["replaced"] == [str(tmp_path / "out.wav")]
    assert (tmp_path / "out.wav").read_bytes() != first
    capsys.readouterr()
    assert cli.main([*map(str, command), "--overwrite"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("out.wav: 0.1 s, 32000 Hz, 1 channels (replaced)")


def test_fade_out(run, music, tmp_path):
    """Half a period of a cosine to silence, over the last seconds alone."""
    command = (
        "generate",
        "--bundle",
        music("text", True),
        "--duration",
        "0.5",
        "--seed",
        "1",
        "--strategy",
        "peak",
        "-o",
    )
    run(*command, tmp_path / "plain.wav")
    run(*command, tmp_path / "faded.wav", "--fade-out", "0.2")
    plain, faded = (audio_files.read(tmp_path / f"{name}.wav")[0] for name in ("plain", "faded"))
    scale = faded[0, 100] / plain[0, 100]  # the peak may have been in the end
    np.testing.assert_allclose(faded[:, :9600], plain[:, :9600] * scale, atol=3e-4)
    assert (faded[:, -1] == 0).all()
    wave = np.ones((2, 100), np.float32)
    ended = audio.fade_out(wave, 50)
    np.testing.assert_array_equal(ended[:, :50], 1)
    np.testing.assert_allclose(ended[0, 50:], 0.5 + 0.5 * np.cos(np.pi * np.arange(1, 51) / 50), atol=1e-6)
    with pytest.raises(AudioError, match=r"fade_out: got 101 samples, expected 0 \.\. 100"):
        audio.fade_out(wave, 101)
