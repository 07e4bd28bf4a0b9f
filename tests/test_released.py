"""Acceptance on real weights, for whoever has them: the numbers that Hugging Face tests musicgen-small against.

Set CLEAN_LM_MUSICGEN_SMALL to a folder of facebook/musicgen-small in Hugging Face's layout (config.json,
generation_config.json, model.safetensors, tokenizer.json). The numbers are those of transformers'
tests/models/musicgen/test_modeling_musicgen.py, which masks a text's padding: texts are therefore given alone.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from clean_lm import MusicGen

SMALL = os.environ.get("CLEAN_LM_MUSICGEN_SMALL")
pytestmark = pytest.mark.skipif(not SMALL, reason="CLEAN_LM_MUSICGEN_SMALL is not set: no released weights")

LOGITS = [-0.9708, -3.0149, -4.6415, -1.4754, -0.2786, -2.3523, -2.6049, -6.7467,
          -1.0206, -3.2984, -3.3968, -1.5108, -1.5786, -3.1493, -1.1503, -0.0545]  # fmt: skip
GREEDY = [-1.1998e-04, -2.2302e-04, 4.6296e-04, 1.0524e-03, 2.4827e-04,
          -4.0288e-05, -1.2468e-04, 4.9846e-05, 7.1485e-04, 4.4197e-04]  # fmt: skip
GUIDED = [0.0283, 0.0246, 0.0650, 0.0640, 0.0599, 0.0711, 0.0420, 0.0112,
          0.0511, 0.0746, 0.1363, 0.1213, 0.0185, -0.0578, -0.0908, 0.0443]  # fmt: skip
CONTINUED = [-0.0036, -0.0130, -0.0261, -0.0384, -0.0557, -0.0718, -0.0680, -0.0632,
             -0.0529, -0.0403, -0.0289, -0.0198, -0.0136, -0.0101, -0.0095, -0.0040]  # fmt: skip


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> MusicGen:
    from export.bundle import export

    folder, out = Path(SMALL or ""), tmp_path_factory.mktemp("released") / "bundle"
    export(folder, folder, folder, out)
    return MusicGen.load(out)


def greedy(music: MusicGen, frames: int, cfg_coef: float) -> None:
    music.set_generation_params(use_sampling=False, duration=(frames + 0.5) / music.frame_rate, cfg_coef=cfg_coef)


def test_logits_of_a_text(music):
    assert music.text is not None
    decoder = music.lm.decoder(1, 1, music.text.encode(["80s music"]), music.sampling)
    decoder(np.full((1, 4, 1), 2048), np.zeros((1, 4)))
    guided = decoder.logits[0, 0, :16]
    greedy(music, 7, cfg_coef=1.0)
    decoder = music.lm.decoder(1, 1, music.text.encode(["80s music"]), music.sampling)
    decoder(np.full((1, 4, 1), 2048), np.zeros((1, 4)))
    np.testing.assert_allclose(decoder.logits[0, 0, :16], LOGITS, rtol=1e-4, atol=1e-4)
    assert np.abs(guided - decoder.logits[0, 0, :16]).max() > 0.01


def test_greedy_without_guidance(music):
    greedy(music, 7, cfg_coef=1.0)
    audio = music.generate(["80s music"])
    assert audio.shape == (1, 1, 4480)
    np.testing.assert_allclose(audio[0, 0, :10], GREEDY, rtol=1e-4, atol=1e-4)


def test_greedy_with_guidance(music):
    greedy(music, 7, cfg_coef=3.0)
    np.testing.assert_allclose(music.generate(["80s music"])[0, 0, :16], GUIDED, rtol=1e-4, atol=1e-4)


def test_continuation(music):
    """Half a second of beeps after as much silence: how the shorter of their two prompts is padded."""
    time = np.arange(16_000) / 32_000
    beeps = np.cos(2 * np.pi * 440 * time) * ((time % 0.25) / 0.25 >= 0.5)
    prompt = np.concatenate([np.zeros(16_000), beeps]).astype(np.float32)
    greedy(music, 57, cfg_coef=1.0)
    audio = music.generate_continuation(prompt[None], 32_000, ["80s music"])
    assert audio.shape == (1, 1, 36_480)
    np.testing.assert_allclose(audio[0, 0, -16:], CONTINUED, rtol=1e-4, atol=2e-4)
