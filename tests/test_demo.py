"""The demo: its loops, its training, and what the model in demo/ can do."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import weights.codec
import weights.lm
import weights.text
from clean_lm import audio_files
from demo import checkpoint
from demo.train import __main__ as command
from demo.train import codec, evaluate, lm, measure, synth, text
from demo.train.trainer import Settings
from tests.support import ROOT
from weights.lm import audiocraft

pytestmark = pytest.mark.demo

DEMO = ROOT / "demo"
QUICK = Settings(steps=30, batch=4, rate=3e-3, warmup=5, betas=(0.9, 0.95), decay=0.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Where other programs run, several threads wait for each other in every one of PyTorch's small operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loops():
    return evaluate.held_out(12)


@pytest.fixture(scope="module")
def music():
    with evaluate.bundle(DEMO) as opened:
        yield opened


# Random checkpoints


def test_random_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["checkpoint.py", "--out", str(tmp_path)])
    checkpoint.main()
    assert weights.lm.load(tmp_path).config == checkpoint.TINY
    assert weights.codec.load(tmp_path / "compression_state_dict.bin").config == checkpoint.TINY_CODEC


def test_released_sizes():
    """The parameters of the released models, as their layouts count them."""
    counts = {"small": 420_371_456, "medium": 1_838_737_920, "large": 3_256_956_928}
    for size, count in counts.items():
        rows = audiocraft(checkpoint.SIZES[size])
        shapes = {piece.name: piece.shape for source in rows.values() for piece in source.pieces}
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == count


# Loops


def test_a_seed_is_a_loop():
    one, same, other = synth.loop(5, 2.0), synth.loop(5, 2.0), synth.loop(6, 2.0)
    np.testing.assert_array_equal(one.wave, same.wave)
    assert one.text == same.text
    assert not np.array_equal(one.wave, other.wave)


def test_the_prompt_is_synthesised():
    wav, rate = audio_files.read(DEMO / "loop.wav")
    assert rate == synth.RATE
    np.testing.assert_allclose(wav, command.prompt().wave[None], atol=2 / 2**15)


def test_loops_repeat_and_change():
    """One or two bars come again, and in most loops something in them has changed within ten seconds."""
    changed = []
    for seed in range(20):
        loop = synth.loop(seed, 10.0, "house")
        bars = 8 * loop.beat * synth.HOP
        before, after = loop.wave[:bars], loop.wave[bars : 2 * bars]
        assert before @ after > 0.5 * (before @ before)
        changed.append(not np.allclose(before, after, atol=1e-3))
    assert sum(changed) > 10


def test_measures_tell_loops_apart(loops):
    """Tempo and kind of a loop itself: what the model is measured with must not itself be wrong."""
    seam = round(evaluate.PROMPT * synth.RATE)
    assert sum(measure.same_tempo(loop.wave[:seam], loop.wave[seam:]) for loop in loops) >= 11
    other = [measure.same_tempo(a.wave[:seam], b.wave[seam:]) for a, b in pairwise(loops)]
    assert sum(other) <= 5


# Training


def test_codec_learns(tmp_path, capsys):
    loops = np.stack([np.round(synth.loop(seed, 2.0).wave * 32767) for seed in range(4)]).astype(np.int16)
    small = replace(codec.CONFIG, filters=2, dimension=16, card=32)
    codec.fit(loops, tmp_path, QUICK, small, seconds=0.32)
    first, last = losses(capsys)
    assert last < 0.95 * first


def test_lm_learns(tmp_path, capsys):
    """Codes that come again after ten frames: what was before is the only thing to know of them."""
    rng = np.random.default_rng(0)
    codes = np.tile(rng.integers(8, size=(16, 4, 10)), 6)
    small = replace(lm.CONFIG, layers=2, heads=4, dim=32, card=8)
    kinds = [("house", 0)] * len(codes)
    lm.fit(codes, kinds, text.Texts.load(DEMO / "t5"), tmp_path, QUICK, small, frames=50)
    first, last = losses(capsys)
    assert last < 0.9 * first


def test_padding_is_left_out():
    """A short text beside a long one, and alone: the same without padding, and not with it."""
    torch.manual_seed(0)
    model, texts = lm.Model(lm.CONFIG).eval(), text.Texts.load(DEMO / "t5")
    codes = torch.randint(512, (2, 4, 8))
    both = texts(["house", "drum and bass with a deep bass line"])
    with torch.no_grad():
        alone = model(codes[:1], texts(["house"]))[0]
        assert (model(codes, both)[0] - alone).abs().max() > 1e-2
        model.attention.padding = False
        torch.testing.assert_close(model(codes, both)[0], alone, atol=1e-4, rtol=1e-4)


def losses(capsys: pytest.CaptureFixture[str]) -> tuple[float, float]:
    """The first and the last loss that a training printed."""
    printed = [line.split("loss ")[1].split(",")[0] for line in capsys.readouterr().out.splitlines() if "loss" in line]
    return float(printed[0]), float(printed[-1])


def test_the_command(tmp_path):
    """All of it with tiny settings; a second call finds everything done and writes the same model."""
    first = train(tmp_path, "first")
    again = train(tmp_path, "again")
    assert "lm step 1" in first
    assert "step" not in again
    for name in ("state_dict.bin", "compression_state_dict.bin", "t5/model.safetensors", "loop.wav"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert weights.lm.load(tmp_path / "first").config == lm.CONFIG


def train(folder: Path, out: str) -> str:
    parts = ("codec", "decoder", "lm", "further")
    steps = ["--loops", "3", "--batch", "1", *(word for part in parts for word in (f"--{part}-steps", "2"))]
    arguments = [sys.executable, "-m", "demo.train", "--out", folder / out, "--work", folder / "work", *steps]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_written_weights_are_the_trained_ones(tmp_path):
    """Through upstream's names and back, but for float16's rounding."""
    torch.manual_seed(1)
    trained = codec.Codec(codec.CONFIG)
    command.write_codec(tmp_path / "compression_state_dict.bin", codec.CONFIG, trained.state_dict())
    stored = weights.codec.load(tmp_path / "compression_state_dict.bin")
    same_weights(stored, {"encoder": trained.encoder, "decoder": trained.decoder}, rtol=2e-3)
    model = lm.Model(lm.CONFIG)
    command.write_lm(tmp_path / "state_dict.bin", lm.CONFIG, model.state_dict())
    stored = weights.lm.load(tmp_path / "state_dict.bin")
    same_weights(stored, {"lm": model.lm, "condition": model.condition}, rtol=1e-3)


def same_weights(stored: Any, modules: dict[str, torch.nn.Module], rtol: float) -> None:
    for part, module in modules.items():
        read = stored.weights(part)
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(read[name], tensor, atol=1e-3, rtol=rtol, msg=f"{part}.{name}")


# The model in demo/


def test_files():
    assert weights.lm.load(DEMO).config == lm.CONFIG
    assert weights.codec.load(DEMO / "compression_state_dict.bin").config == codec.CONFIG
    assert weights.text.load(DEMO / "t5").config == text.config()
    done = subprocess.run(
        [sys.executable, "weights/check.py", "--ckpt", DEMO], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if "__pycache__" not in path.parts) < 16e6


def test_codec(loops):
    ratio, distance = evaluate.distortion(evaluate.load_codec(DEMO), loops[:4])
    untrained = evaluate.distortion(evaluate.untrained_codec(codec.CONFIG), loops[:4])
    assert ratio > 4
    assert ratio > untrained[0] + 10
    assert distance < untrained[1] - 1


def test_cross_entropy(loops):
    found = {name: v.mean() for name, v in evaluate.cross_entropies(DEMO, loops[:6], 40).items()}
    with_text, without = found.pop("the model, with its text"), found.pop("the model, without text")
    assert max(with_text, without) < min(found.values())


def test_the_demo_keeps_its_tempo(music):
    """make demo's own continuation."""
    music.set_generation_params(duration=evaluate.SECONDS, temperature=evaluate.TEMPERATURE)
    prompt, rate = audio_files.read(DEMO / "loop.wav")
    wave = evaluate.sound(music.generate_continuation(prompt[None], rate, ["drum and bass"], seed=1))[0, 0]
    seam = round(evaluate.PROMPT * synth.RATE)
    assert measure.same_tempo(wave[:seam], wave[seam:])


def test_most_continuations_keep_the_tempo(music, loops):
    """Of loops that have come around once before the seam; chance is one in seven."""
    heard, seam = evaluate.continuations(music, loops, evaluate.TEMPERATURE, 7.0), 7 * synth.RATE
    kept = [measure.same_tempo(loop.wave[:seam], wave[seam:]) for loop, wave in zip(loops, heard, strict=True)]
    assert sum(kept) > len(loops) / 2


def test_texts_are_obeyed(music):
    """With guidance 3, style and tempo as told beyond what chance gives, one in three and two deviations."""
    for right in evaluate.obeyed(music, evaluate.listen(evaluate.load_codec(DEMO), 40), 3):
        assert sum(right) > len(right) / 3 + 2 * (len(right) * 2 / 9) ** 0.5
