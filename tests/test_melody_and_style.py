"""What melody and style models are given beside a text: from a sound to upstream's tokens, by command too."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from transformers import HubertModel

from clean_lm import MusicGen
from clean_lm.audio import convert_audio
from clean_lm.cli import main
from clean_lm.conditioning import Excerpt
from clean_lm.manifest import BundleError
from export.bundle import export
from export.bundle_writer import ExportError
from tests.conformance import make as make_conformance
from tests.support import GOLDEN, ROOT, GoldenTexts
from tests.tiny_models import hubert, mert_folder

pytestmark = [pytest.mark.parity, pytest.mark.runtime]

CODEC = GOLDEN / "melody" / "compression_state_dict.bin"


@pytest.fixture(scope="module")
def mert(tmp_path_factory) -> HubertModel:
    """As wide as the style conditioner wants, and tiny otherwise."""
    return hubert(hidden_size=768, num_attention_heads=12)


@pytest.fixture(scope="module")
def style_bundle(tmp_path_factory, mert) -> Path:
    path = tmp_path_factory.mktemp("style")
    out = path / "bundle"
    export(GOLDEN / "style" / "state_dict.bin", CODEC, None, out, mert_path=mert_folder(path / "mert", mert))
    return out


@pytest.fixture
def melody(music, golden) -> MusicGen:
    return ready(MusicGen.load(music("melody")), golden("melody"))


@pytest.fixture
def style(style_bundle, golden) -> MusicGen:
    return ready(MusicGen.load(style_bundle), golden("style"))


def ready(music, g):
    music.text = GoldenTexts(g)
    music.set_generation_params(use_sampling=False, duration=0.6)
    return music


def sound(seconds, rate=44_100, channels=2, seed=0):
    return 0.3 * np.random.default_rng(seed).standard_normal((channels, int(seconds * rate))).astype(np.float32)


@pytest.mark.parametrize("case", ["desc", "two", "wavonly", "textonly", "dbl_beta5"])
def test_a_melody_is_upstreams(golden, melody, case):
    """Of a sound at the model's rate: chroma, prefix, tokens."""
    g = golden("melody")
    said, upstream = g.meta["gen"][case], g[f"gen.{case}.tokens"]
    beta = said["kwargs"].get("cfg_coef_beta")
    melody.set_generation_params(use_sampling=False, duration=upstream.shape[2] / 50, cfg_coef_beta=beta)
    if said["wav"]:
        wavs = [g["chroma.wav"][0] if wav else None for wav in said["wav"]]
        _, tokens = melody.generate_with_chroma(said["descriptions"], wavs, 32_000, return_tokens=True)
    else:
        _, tokens = melody.generate(said["descriptions"], return_tokens=True)
    np.testing.assert_array_equal(tokens, upstream)


def test_no_melody_in_a_list_is_none(melody):
    _, none = melody.generate([None], return_tokens=True)
    _, listed = melody.generate_with_chroma([None], [None], 44_100, return_tokens=True)
    np.testing.assert_array_equal(listed, none)


def test_melodies_of_any_rate_and_shape(melody):
    """[B, C, T], [C, T] and a list; both channels count, and another length, rate or channel number is no error."""
    stereo = sound(1.0)
    _, listed = melody.generate_with_chroma([None], [stereo], 44_100, return_tokens=True)
    for same in (stereo, stereo[None]):
        _, tokens = melody.generate_with_chroma([None], same, 44_100, return_tokens=True)
        np.testing.assert_array_equal(tokens, listed)
    _, mono = melody.generate_with_chroma([None], [stereo.mean(axis=0, keepdims=True)], 44_100, return_tokens=True)
    np.testing.assert_array_equal(mono, listed)
    for rate, seconds in ((8_000, 0.01), (48_000, 31.0), (44_100, 0.0001)):
        assert melody.generate_with_chroma([None], [sound(seconds, rate)], rate).shape == (1, 1, 19_200)


def test_the_shorter_melody_of_a_batch_is_padded(golden, melody):
    """As audiocraft does: with silence to the longest's end, and not repeated as it is alone."""
    short, long = sound(0.6, 32_000, 1), sound(4.0, 32_000, 1, seed=1)
    together = melody._wavs([None, None], [short, long], 32_000, None)(0.0)
    padded = np.zeros_like(long)
    padded[:, : short.shape[1]] = short
    alone = melody._wavs([None], [padded], 32_000, None)(0.0)
    np.testing.assert_array_equal(together[0], alone[0])
    assert (together[0] != melody._wavs([None], [short], 32_000, None)(0.0)[0]).any()


def test_styles_in_javascript(style_bundle, tmp_path):
    """Of features and of a sound, one prompt with and one without: a kit of these cases, for js/conformance.js."""
    if not shutil.which("node") or not (ROOT / "js" / "node_modules").exists():
        pytest.skip("needs node and js/node_modules: ONNXRUNTIME_NODE_INSTALL=skip npm ci --prefix js")
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    (bundles / "style").symlink_to(style_bundle)
    features = np.random.default_rng(0).standard_normal((224, 768)).astype(np.float32)
    sampling = make_conformance.DRAWN | {"top_k": 20, "two_step_cfg": False}
    nothing = {
        "audio": None, "sample_rate": None, "codes": None, "descriptions": [None, None], "negatives": None,
        "melodies": None, "melody_sample_rate": None, "style_features": None, "takes": 2, "seed": "3", "duration": 0.6,
        "max_duration": 30.0, "extend_stride": 18.0, "sampling": sampling,
    }  # fmt: skip
    cases = {
        "features": {"style_features": [features, None]},
        "features, guidance in two calls": {
            "style_features": [features, None],
            "sampling": sampling | {"two_step_cfg": True},
        },
        "a sound": {"melodies": [sound(4.0), None], "melody_sample_rate": 44_100},
    }
    made = [
        make_conformance.complete(
            make_conformance.case(name, "continue_batch", nothing | given, None, ["style"]), bundles
        )
        for name, given in cases.items()
    ]
    make_conformance.write(tmp_path, made)
    program = ["node", ROOT / "js" / "conformance.js", tmp_path]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert (done.stdout.count(" ok "), done.returncode) == (len(cases), 0), done.stdout + done.stderr


def test_a_style_from_features(golden, style):
    """Upstream's stages from the features on are the graph's: the tokens are those of what it makes."""
    g = golden("style")
    features = np.random.default_rng(0).standard_normal((224, 768)).astype(np.float32)
    rows = style.lm.self_wav.run({"features": features[None], "eval_q": np.array(3)})["self_wav"]
    texts = [g.meta["D1"], None]
    _, tokens = style.generate_with_style(texts, [features, None], return_tokens=True)
    expected = style.lm.generate_codes(
        None, g.texts(texts), lambda _: [rows[0], None], frames=30, sampling=style.sampling
    )
    np.testing.assert_array_equal(tokens, expected)
    style.set_style_conditioner_params(eval_q=1)
    _, freer = style.generate_with_style(texts, [features, None], return_tokens=True)
    assert (freer[0] != tokens[0]).any()
    np.testing.assert_array_equal(freer[1], tokens[1])


def test_a_style_is_heard_by_mert(style, mert):
    """An excerpt at 24 kHz: the features that transformers has of it."""
    heard = sound(5.0, 32_000, 1)
    style.set_style_conditioner_params(excerpt_length=3.0, excerpt_start=1.0)
    ours = style._reference().style_features(heard, 32_000, None)
    excerpt = convert_audio(heard[None, :, 32_000:128_000], 32_000, 24_000, 1)[0]
    with torch.inference_mode():
        theirs = mert(torch.from_numpy(excerpt)).last_hidden_state[0].numpy()
    assert ours.shape == (224, 768)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    _, heard_by_it = style.generate_with_chroma([None], [heard], 32_000, return_tokens=True)
    _, features = style.generate_with_style([None], [ours], return_tokens=True)
    np.testing.assert_array_equal(heard_by_it, features)


def test_the_excerpt():
    wav = np.arange(100.0)
    assert Excerpt(length=3.0, start=2.0).of(wav, 10, None).tolist() == list(range(20, 50))
    drawn = [Excerpt(length=3.0).of(wav, 10, seed)[0] for seed in range(200)]
    assert drawn == [Excerpt(length=3.0).of(wav, 10, seed)[0] for seed in range(200)]
    assert min(drawn) < 5
    assert 65 < max(drawn) <= 70
    assert Excerpt(length=10.0).of(wav, 10, 0).tolist() == wav.tolist()
    for start, length in ((None, 11.0), (8.0, 3.0)):
        with pytest.raises(ValueError, match=r"got 10\.00 s of audio, expected an excerpt"):
            Excerpt(length=length, start=start).of(wav, 10, 0)


def test_a_style_in_windows(golden, style):
    """The same excerpt in each."""
    features = np.random.default_rng(0).standard_normal((50, 768)).astype(np.float32)
    style.max_duration = 1.0
    style.set_generation_params(use_sampling=False, duration=1.5, extend_stride=0.6)
    _, tokens = style.generate_with_style(["x"[:0]], [features], return_tokens=True)
    assert tokens.shape == (1, 4, 75)


REFUSED = {
    "a melody in a text model": ("text", lambda m: m.generate_with_chroma([None], [sound(1)], 44_100), "no melody"),
    "a style in a melody model": (
        "melody",
        lambda m: m.generate_with_style([None], [np.zeros((9, 768), np.float32)]),
        "no style",
    ),
    "rows": ("melody", lambda m: m.generate_with_chroma([None], [sound(1)] * 2, 44_100), "got 2 for 1"),
    "axes": (
        "melody",
        lambda m: m.generate_with_chroma([None], [sound(1)[0]], 44_100),
        r"melody.*\[channels, samples\]",
    ),
    "nan": (
        "melody",
        lambda m: m.generate_with_chroma([None], [sound(1) + np.nan], 44_100),
        "melody.*NaN",
    ),
    "empty": ("melody", lambda m: m.generate_with_chroma([None], [sound(0)], 44_100), "not empty"),
    "rate": ("melody", lambda m: m.generate_with_chroma([None], [sound(1)], 0), "melody_sample_rate: got 0"),
    "beta": ("text", lambda m: m.set_generation_params(cfg_coef_beta=float("nan")), "cfg_coef_beta.*nan"),
    "stride": ("text", lambda m: m.set_generation_params(extend_stride=30.0), "extend_stride: got 30"),
    "levels of no style": ("melody", lambda m: m.set_style_conditioner_params(), "eval_q: got 3.*0 levels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(music, case):
    name, run, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        run(MusicGen.load(music(name)))


def test_double_guidance_of_a_text_model(music):
    model = MusicGen.load(music("text"))
    model.set_generation_params(duration=0.2, cfg_coef_beta=5.0)
    with pytest.raises(ValueError, match="cfg_coef_beta: this model takes no melody or style"):
        model.generate([None])


@pytest.mark.parametrize(("features", "message"), [((9, 7), r"\[9, 7\].*\[F, 768\]"), ((0, 768), "F > 0")])
def test_features_refused(style, features, message):
    with pytest.raises(ValueError, match=message):
        style.generate_with_style([None], [np.zeros(features, np.float32)])
    for levels in (0, 7):
        with pytest.raises(ValueError, match=f"eval_q: got {levels}, this model has 6 levels"):
            style.set_style_conditioner_params(eval_q=levels)


def test_a_sound_without_mert(golden, style):
    style.mert = None
    with pytest.raises(BundleError, match=r"no MERT.*--mert.*generate_with_style"):
        style.generate_with_chroma([None], [sound(4.0)], 44_100)


def test_mert_belongs_to_style_models(tmp_path, mert):
    with pytest.raises(ExportError, match="--mert is for style models"):
        export(
            GOLDEN / "melody" / "state_dict.bin",
            CODEC,
            None,
            tmp_path / "b",
            mert_path=mert_folder(tmp_path / "m", mert),
        )
    narrow = mert_folder(tmp_path / "n", hubert())
    with pytest.raises(ExportError, match="features 24 wide in MERT, 768"):
        export(GOLDEN / "style" / "state_dict.bin", CODEC, None, tmp_path / "b", mert_path=narrow)
    assert not (tmp_path / "b").exists()


def test_a_shared_mert(tmp_path, style_bundle):
    """Of another bundle, found by its path; its own style's settings stay."""
    out = tmp_path / "second"
    export(GOLDEN / "style" / "state_dict.bin", style_bundle, None, out, mert_path=style_bundle)
    assert not (out / "style_features.onnx").exists()
    ours, theirs = (json.loads((path / "manifest.json").read_text()) for path in (out, style_bundle))
    assert ours["model"] == theirs["model"]
    assert MusicGen.load(out).mert is not None


@pytest.fixture
def wav(tmp_path) -> Path:
    sf.write(tmp_path / "in.wav", sound(4.0).T, 44_100)
    return tmp_path / "in.wav"


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_the_command_with_stems(music, wav, tmp_path):
    """Several files are added up, whatever their lengths and rates: the same as their sum."""
    drums, voice = sound(1.0, seed=1), sound(0.5, seed=2)
    sf.write(tmp_path / "a.wav", drums.T, 44_100, subtype="FLOAT")
    sf.write(tmp_path / "b.wav", voice.T, 44_100, subtype="FLOAT")
    mix = drums.copy()
    mix[:, : voice.shape[1]] += voice
    sf.write(tmp_path / "mix.wav", mix.T, 44_100, subtype="FLOAT")
    common = ("--bundle", music("melody"), "--duration", 0.5, "--seed", 3)
    for out, files in (("1", ["a.wav", "b.wav"]), ("2", ["mix.wav"]), ("3", ["a.wav"])):
        melody = [tmp_path / file for file in files]
        assert run("generate", "-o", tmp_path / f"{out}.wav", *common, "--melody", *melody) == 0
    first, second, third = (sf.read(tmp_path / f"{out}.wav", dtype="int16")[0] for out in "123")
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


def test_the_command_continues_with_a_melody_in_windows(music, wav, tmp_path):
    common = ("--bundle", music("melody"), "--prompt-seconds", 1, "--duration", 31, "--extend-stride", 20)
    out = tmp_path / "out.wav"
    assert run("continue", wav, "-o", out, *common, "--melody", wav, "--seed", 1) == 0
    assert sf.info(out).duration == pytest.approx(31, abs=0.01)


def test_the_command_with_a_style(style_bundle, wav, tmp_path):
    common = ("--bundle", style_bundle, "--duration", 0.5, "--seed", 3, "--style", wav)
    for out, more in (("1", ()), ("2", ()), ("3", ("--style-start", 0.5)), ("4", ("--style-levels", 1))):
        assert run("generate", "-o", tmp_path / f"{out}.wav", *common, *more) == 0
    sounds = [sf.read(tmp_path / f"{out}.wav", dtype="int16")[0] for out in "1234"]
    np.testing.assert_array_equal(sounds[0], sounds[1])
    assert (sounds[0] != sounds[2]).any()
    assert (sounds[0] != sounds[3]).any()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("text", ["--melody", "in.wav"], "text takes none: it is a model of texts alone"),
        ("melody", ["--style", "in.wav"], "melody takes none: it is a melody model"),
        ("text", ["--cfg-coef-beta", "5"], "text takes none: it is for melody and style models"),
        ("melody", ["--melody", "none.wav"], "none.wav"),
        ("text", ["--duration", "0"], "--duration: got 0 s"),
        ("text", ["--duration", "40", "--extend-stride", "30"], "--extend-stride: got 30.0 s"),
    ],
)
def test_the_command_refuses(music, wav, tmp_path, capsys, monkeypatch, name, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run("generate", "-o", tmp_path / "out.wav", "--bundle", music(name), *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()


def test_never_torch(style_bundle, music):
    """Melody and style too in a process where importing torch fails."""
    program = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from clean_lm import MusicGen
sound = np.random.default_rng(0).standard_normal((2, 176400)).astype(np.float32)
for bundle in ({str(style_bundle)!r}, {str(music("melody"))!r}):
    model = MusicGen.load(bundle)
    model.set_generation_params(duration=0.3, cfg_coef_beta=5.0)
    assert model.generate_with_chroma([None], [sound], 44100).shape == (1, 1, 9600)
heavy = {{"torch", "transformers", "onnx", "safetensors"}} & {{m for m, v in sys.modules.items() if v}}
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)
