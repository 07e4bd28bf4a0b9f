"""audiocraft's interface beside audiocraft: a 44.1 kHz stereo prompt in, its tokens and its sound out."""

import json
import subprocess
import sys
import time
from threading import Event

import numpy as np
import pytest

from clean_lm import MusicGen
from clean_lm.audio import AudioError
from clean_lm.audio_codec import PIECE, Codec
from clean_lm.manifest import BundleError, Manifest
from clean_lm.session import open_graph
from tests.support import GOLDEN, NAMES, GoldenTexts

pytestmark = [pytest.mark.parity, pytest.mark.runtime]


@pytest.fixture
def model(music, golden):
    def load(name: str) -> MusicGen:
        loaded = MusicGen.load(music(name))
        loaded.text = GoldenTexts(golden(name))  # pyright: ignore[reportAttributeAccessIssue]
        loaded.set_generation_params(use_sampling=False, duration=0.6)
        return loaded

    return load


def prompt_of(golden, name):
    arrays = golden(name).arrays
    if "e2e.prompt44100" not in arrays:
        return np.load(GOLDEN / name / "audio.npz")["prompt44100"]
    return arrays["e2e.prompt44100"]


@pytest.mark.parametrize("name", [*NAMES, "melody"])
def test_continuation_is_upstreams(golden, model, name):
    g, music = golden(name), model(name)
    prompt = prompt_of(golden, name)
    audio, tokens = music.generate_continuation(prompt, 44100, [g.meta["D1"]], return_tokens=True)
    np.testing.assert_array_equal(tokens, g["e2e.desc.tokens"])
    np.testing.assert_allclose(audio, g["e2e.desc.audio"], atol=1e-4 * np.abs(g["e2e.desc.audio"]).max())
    _, tokens = music.generate_continuation(prompt, 44100, return_tokens=True)
    np.testing.assert_array_equal(tokens, g["e2e.none.tokens"])
    _, tokens = music.generate_continuation(prompt[0], 44100, [""], return_tokens=True)
    np.testing.assert_array_equal(tokens, g["e2e.none.tokens"])


@pytest.mark.parametrize("name", ["text", "finetune_fp16", "stereo"])
def test_streaming_is_the_same_sound(golden, model, name):
    g, music = golden(name), model(name)
    whole = g["e2e.desc.audio"]
    for seconds in (0.02, 0.1, 0.25, 3.0):
        chunks = list(music.stream_continuation(prompt_of(golden, name), 44100, [g.meta["D1"]], chunk_seconds=seconds))
        size = round(seconds * music.frame_rate) * music.codec.hop
        assert [chunk.shape[2] for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
        np.testing.assert_allclose(np.concatenate(chunks, axis=2), whole, atol=1e-4 * np.abs(whole).max())


def test_the_prompt_is_heard_before_anything_is_generated(golden, model):
    music, heard, waited = model("text"), Event(), []
    music.set_custom_progress_callback(lambda done, _: waited.append(heard.wait(10)) if done == 1 else None)
    stream = music.stream_continuation(prompt_of(golden, "text"), 44100, chunk_seconds=0.02)
    assert next(stream).shape == (1, 1, 640)
    heard.set()
    assert len(list(stream)) > 1
    assert waited == [True]


def test_a_stream_runs_ahead(golden, model):
    """It goes on while nobody takes a chunk, and no longer once it is closed."""
    music, ended, seen = model("text"), Event(), []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done == total:
            ended.set()

    music.set_custom_progress_callback(progress)
    stream = music.stream_continuation(prompt_of(golden, "text"), 44100, chunk_seconds=0.1)
    next(stream)
    assert ended.wait(60)
    stream.close()
    seen.clear()
    music.set_generation_params(duration=30)
    stream = music.stream_continuation(prompt_of(golden, "text"), 44100, chunk_seconds=0.02)
    next(stream)
    stream.close()
    stopped = len(seen)
    assert stopped < 500
    time.sleep(0.1)
    assert len(seen) == stopped


def test_what_ends_a_stream_is_raised_where_it_is_taken(golden, model):
    music = model("text")

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    music.set_custom_progress_callback(stop)
    with pytest.raises(KeyboardInterrupt):
        list(music.stream_continuation(prompt_of(golden, "text"), 44100, chunk_seconds=0.1))


def test_stereo_codes_are_left_and_right_in_turn(golden, model):
    g, codec = golden("stereo"), model("stereo").codec
    codes = codec.encode(g["st2.wav"])
    np.testing.assert_array_equal(codes, g["st2.codes"])
    np.testing.assert_array_equal(codes[:, 0::2], g["st2.left"])
    np.testing.assert_allclose(codec.decode(codes), g["st2.audio"], atol=1e-5)
    np.testing.assert_allclose(codec.decode(g["st2.rand_codes"]), g["st2.rand_audio"], atol=1e-5)


def test_takes_of_one_prompt(golden, model):
    music = model("text")
    music.set_generation_params(duration=0.6, top_k=20)
    prompt = prompt_of(golden, "text")
    takes = music.generate_continuation(prompt, 44100, seed=5, takes=3)
    alone = music.generate_continuation(prompt, 44100, seed=6)
    np.testing.assert_allclose(takes[1], alone[0], atol=1e-6)
    assert np.abs(takes[0] - takes[1]).max() > 1e-3


def test_generate(golden, model):
    g, music = golden("text"), model("text")
    audio, tokens = music.generate([g.meta["D1"], None], return_tokens=True, progress=False)
    assert audio.shape == (2, 1, 19200)
    np.testing.assert_array_equal(tokens[:1, :, :30].shape, (1, 4, 30))
    unconditional = music.generate_unconditional(2)
    assert unconditional.shape == (2, 1, 19200)


@pytest.mark.parametrize("name", NAMES)
def test_ten_seconds_in_pieces(model, music, name):
    """Decoding cuts a long sound, a stream cuts it smaller: the sound of compression_decode, which does not."""
    codec = model(name).codec
    codes = np.random.default_rng(0).integers(0, 64, (2, 4 * codec.voices, 500))
    whole = open_graph(Manifest.read(music(name)), "compression_decode").session
    voices = [np.asarray(whole.run(None, {"codes": codes[:, v :: codec.voices]})[0]) for v in range(codec.voices)]
    expected = np.concatenate(voices, axis=1)
    assert codes.shape[2] > PIECE
    streamed = np.concatenate(list(codec.decode_stream(iter(np.split(codes, 10, axis=2)), 50)), axis=2)
    for audio in (codec.decode(codes), streamed):
        np.testing.assert_allclose(audio, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_bundle_without_a_stream_graph(music, tmp_path):
    """One that an earlier version exported."""
    tree = json.loads((music("text") / "manifest.json").read_text())
    del tree["graphs"]["compression_stream"]
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(BundleError, match=r"contains no graph compression_stream.*export the bundle again"):
        Codec.load(tmp_path)


PROMPT = np.zeros((1, 1, 3200), dtype=np.float32)
REFUSED = {
    "one axis": ({"prompt": PROMPT[0, 0]}, "prompt: got"),
    "integers": ({"prompt": PROMPT.astype(np.int16)}, "int16.*floats"),
    "empty": ({"prompt": PROMPT[:, :, :0]}, r"\[1, 1, 0\].*not empty"),
    "nan": ({"prompt": PROMPT + np.nan}, "prompt.*NaN"),
    "too long": (
        {"prompt": np.zeros((1, 1, 32000), dtype=np.float32)},
        r"0\.6 s, but the prompt already has 1 s",
    ),
    "as long": (
        {"prompt": np.zeros((1, 1, 19200), dtype=np.float32)},
        r"0\.6 s, but the prompt already has 0\.6 s",
    ),
    "rate": ({"prompt_sample_rate": 0}, "prompt_sample_rate: got 0"),
    "descriptions": ({"descriptions": ["a", "b"]}, "descriptions: got 2 for 1"),
    "seed": ({"seed": -3}, "seed.*-3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_generated(model, case):
    arguments, message = REFUSED[case]
    music, called = model("text"), []
    music.text.encode = lambda texts: [None for _ in texts]
    music.set_custom_progress_callback(lambda *done: called.append(done))
    with pytest.raises((ValueError, AudioError), match=f"(?s){message}"):
        music.generate_continuation(**{"prompt": PROMPT, "prompt_sample_rate": 32000, **arguments})
    assert not called


@pytest.mark.parametrize("duration", [0, -1, float("inf"), float("nan")])
def test_durations(model, duration):
    with pytest.raises(ValueError, match=r"duration: got .* more than 0"):
        model("text").set_generation_params(duration=duration)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (192_000, 2), (48_000, 6), (44_100, 2)])
def test_any_rate_and_channels(model, rate, channels):
    prompt = 0.1 * np.random.default_rng(0).standard_normal((channels, rate // 10)).astype(np.float32)
    audio, tokens = model("text").generate_continuation(prompt, rate, return_tokens=True)
    assert audio.shape == (1, 1, 19200)
    assert tokens.shape == (1, 4, 30)


def test_one_sample(model):
    audio = model("text").generate_continuation(np.full((1, 1), 0.5, dtype=np.float32), 32000)
    assert audio.shape == (1, 1, 19200)


def test_a_text_without_a_text_encoder(music):
    with pytest.raises(BundleError, match=r"no text encoder.*--text"):
        MusicGen.load(music("text")).generate(["a text"])


def test_never_torch(music):
    """The whole way in a process where importing torch fails."""
    program = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from clean_lm import MusicGen
model = MusicGen.load({str(music("text"))!r})
model.set_generation_params(duration=0.3)
assert model.generate_continuation(np.zeros((2, 4410), dtype=np.float32), 44100).shape == (1, 1, 9600)
heavy = {{"torch", "transformers", "onnx", "safetensors", "matplotlib"}} & {{m for m, v in sys.modules.items() if v}}
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_bundle_with_its_text_encoder(golden, music):
    """With the golden T5 in the bundle and its token ids, a description is what it is upstream."""
    g, model = golden("text"), MusicGen.load(music("text", text=True))
    assert model.text is not None
    model.text.tokens = lambda text: g["t5.desc.input_ids"][0].tolist()
    model.set_generation_params(use_sampling=False, duration=0.6)
    _, tokens = model.generate_continuation(prompt_of(golden, "text"), 44100, [g.meta["D1"]], return_tokens=True)
    np.testing.assert_array_equal(tokens, g["e2e.desc.tokens"])
