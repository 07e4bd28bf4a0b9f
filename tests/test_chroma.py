"""The melody conditioner beside upstream's arrays, and beside torch.stft for sounds of any length, through ONNX too.

Differences of chroma are shares of the largest; a pitch class is equal or it is not.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clean_lm.models.chroma import Melody, filters
from clean_lm.models.config import MelodyConfig
from export.conditioner import write_graph
from weights.lm import load
from weights.mapping import Model, fill

pytestmark = [pytest.mark.parity, pytest.mark.models]

GOLDEN = Path(__file__).parent / "golden" / "melody"
SHARE = 1e-5
N_FFT, RATE = 16384, 32000
LENGTHS = [1, 2, N_FFT - 1, N_FFT, N_FFT + 1, 5 * N_FFT // 4 - 1, 2 * RATE, 30 * RATE - 1, 31 * RATE]
TINY = MelodyConfig(chroma=12, radix2_exp=4, sample_rate=10, duration=4.0, output_dim=3)

Run = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    return load(GOLDEN)


@pytest.fixture(scope="module")
def melody(model: Model) -> Melody:
    return fill(Melody(model.config.self_wav), model.weights("melody"))


@pytest.fixture(scope="module")
def graph(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The exported graph: audio -> self_wav."""
    folder = tmp_path_factory.mktemp("melody")
    session = ort.InferenceSession(str(folder / f"{write_graph(model, folder)}.onnx"))
    return lambda audio: np.asarray(session.run(["self_wav"], {"audio": audio})[0])


def noise(rows: int, samples: int) -> Tensor:
    return torch.randn(rows, samples, generator=torch.Generator().manual_seed(samples))


def reference_frames(audio: Tensor, c: MelodyConfig, window: Tensor) -> Tensor:
    """audio [M, samples] -> spectra of all frames [M, T, n_fft / 2 + 1], as upstream asks torch.stft for them."""
    missing = c.n_fft - audio.shape[1]
    if missing > 0:
        audio = F.pad(audio, (missing // 2, missing - missing // 2))
    spectra = torch.stft(audio, c.n_fft, c.hop, window=window, center=True, pad_mode="reflect", return_complex=True)
    return spectra.transpose(1, 2)


def reference_classes(audio: Tensor, c: MelodyConfig, window: Tensor) -> np.ndarray:
    """audio [M, samples] -> the class of each frame that the model is given [M, frames], in float64."""
    power = reference_frames(audio.double(), c, window.double()).abs() ** 2
    chroma = power @ filters(c).double()
    classes = (chroma / chroma.amax(dim=2, keepdim=True).clamp(min=1e-6)).argmax(dim=2).numpy()
    return classes[:, np.arange(c.frames) % classes.shape[1]]


def close(ours: Tensor, upstream: np.ndarray) -> None:
    assert ours.shape == upstream.shape
    assert np.abs(ours.numpy() - upstream).max() <= SHARE * np.abs(upstream).max()


# Upstream's arrays


def test_filters(golden, melody: Melody):
    upstream = golden("melody")["chroma.fbanks"]
    assert melody.filters.dtype == torch.float32
    assert np.abs(melody.filters.numpy().T - upstream).max() <= 1e-7 * upstream.max()


@pytest.mark.parametrize("count", [12, 24, 36])
def test_filters_of_other_counts(count: int):
    """C comes first, in every octave, and a fifth above it is seven semitones on."""
    c = MelodyConfig(chroma=count, radix2_exp=16, sample_rate=32000, duration=1.0, output_dim=1)
    for semitones in (-21, -9, 3, 15):
        for fifth in (0, 7):
            hertz = 440 * 2 ** ((semitones + fifth) / 12)
            assert filters(c)[round(hertz * c.n_fft / c.sample_rate)].argmax() == fifth * count // 12


def test_chroma(golden, melody: Melody):
    g = golden("melody")
    chroma = melody.chroma(torch.from_numpy(g["chroma.wav"])[:, 0])
    close(chroma.transpose(1, 2) / melody.window.square().sum(), g["chroma.raw"])
    np.testing.assert_array_equal(F.one_hot(chroma.argmax(dim=2), 12), g["chroma.onehot"])
    np.testing.assert_array_equal(F.one_hot(melody.fit(chroma.argmax(dim=2)), 12), g["chroma.matched"])


def test_silence(golden, melody: Melody):
    """Upstream's null melody: every frame on the first class, which is not zeros."""
    chroma = melody.chroma(torch.zeros(1, 1))
    np.testing.assert_array_equal(
        F.one_hot(melody.fit(chroma.argmax(dim=2)), 12), golden("melody")["chroma.null_matched"]
    )


@pytest.mark.parametrize("through", ["torch", "onnx"])
@pytest.mark.parametrize("case", ["desc", "none", "two"])
def test_conditions(golden, melody: Melody, graph: Run, case: str, through: str):
    """Rows are a melody or none each, then a null for each; no melody is silence."""
    g = golden("melody")
    wav, given = g["chroma.wav"][:, 0], {"desc": [True], "none": [False], "two": [True, False]}[case]
    audio = np.concatenate([wav if row else np.zeros_like(wav) for row in given + [False] * len(given)])
    ours = melody(torch.from_numpy(audio)) if through == "torch" else torch.from_numpy(graph(audio))
    close(ours, g[f"cond.{case}.self_wav"])


@pytest.mark.parametrize(
    ("case", "window", "start"),
    [("a", 0, 0), ("a", 1, 30), ("a", 2, 60), ("c", 0, 0), ("c", 3, 51), ("e", 0, 0), ("e", 1, 37)],
)
def test_windows(golden, graph: Run, case: str, window: int, start: int):
    """Window i has the melody's next second, from the start again where it ends; start in frames of the codec."""
    g = golden("melody")
    places = (np.arange(RATE) + start * RATE // 50) % g["chroma.wav"].shape[2]
    upstream = g[f"win.{case}.cond{window}.self_wav"]
    close(torch.from_numpy(graph(g["chroma.wav"][:, 0, places])), upstream[:1])
    close(torch.from_numpy(graph(np.zeros((1, RATE), np.float32))), upstream[-1:])


# Any length


@given(samples=st.integers(1, 70), exponent=st.integers(2, 5))
@settings(max_examples=150, deadline=None)
def test_frames(samples: int, exponent: int):
    """Cut frame by frame as torch.stft cuts them, the first that the model is given and no more."""
    c = replace(TINY, radix2_exp=exponent)
    audio, window = noise(2, samples).double(), torch.ones(c.n_fft, dtype=torch.float64)
    spectra = torch.fft.rfft(Melody(c).cut(audio))
    theirs = reference_frames(audio, c, window)[:, : c.frames]
    assert spectra.shape == theirs.shape
    torch.testing.assert_close(spectra, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", LENGTHS)
def test_lengths(melody: Melody, samples: int):
    audio = noise(2, samples)
    power = reference_frames(audio.double(), melody.config, melody.window.double()).abs() ** 2
    close(melody.chroma(audio), (power @ melody.filters.double())[:, : melody.config.frames].numpy())
    assert melody(audio).shape == (2, 235, melody.config.output_dim)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("samples", LENGTHS)
def test_lengths_through_onnx(melody: Melody, graph: Run, samples: int, rows: int):
    audio = noise(rows, samples)
    classes = reference_classes(audio, melody.config, melody.window)
    close(torch.from_numpy(graph(audio.numpy())), (melody.output_proj[classes] + melody.output_bias).numpy())


def test_no_scale_of_a_sound_changes_it(melody: Melody, graph: Run):
    audio = noise(1, 2 * RATE).numpy()
    np.testing.assert_array_equal(graph(audio * 2**-20), graph(audio))


# What the checkpoint stores


def test_the_stored_window_is_used(model: Model):
    """A file of fewer bits has a rounded one, with which the model was trained."""
    weights = dict(model.weights("melody"))
    stored = weights["window"].bfloat16().float()
    melody = fill(Melody(model.config.self_wav), weights | {"window": stored})
    audio = noise(1, RATE)
    power, other = (reference_frames(audio, melody.config, w).abs() ** 2 for w in (stored, weights["window"]))
    close(melody.chroma(audio), (power @ melody.filters).numpy())
    assert (power - other).abs().max() > 1e-4 * power.max()
