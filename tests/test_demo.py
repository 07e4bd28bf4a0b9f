"""What is in demo/ is what its scripts write, and the readers take it."""

import numpy as np
import pytest
import torch

import weights.codec
import weights.lm
from clean_lm import audio
from demo import checkpoint, loop
from weights.lm import audiocraft


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["checkpoint.py", "--out", str(tmp_path)])
    checkpoint.main()
    return tmp_path


def test_checkpoints(written):
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        here = checkpoint.Path(checkpoint.__file__).with_name(name)
        ours, theirs = (torch.load(path, weights_only=True) for path in (written / name, here))
        assert ours["xp.cfg"] == theirs["xp.cfg"]
        assert ours["best_state"].keys() == theirs["best_state"].keys()
        for key, tensor in ours["best_state"].items():
            torch.testing.assert_close(tensor, theirs["best_state"][key], msg=key)
    assert weights.lm.load(written).config == checkpoint.TINY
    assert weights.codec.load(written / "compression_state_dict.bin").config == checkpoint.TINY_CODEC


def test_released_sizes():
    """The parameters of the released models, as their layouts count them."""
    counts = {"small": 420_371_456, "medium": 1_838_737_920, "large": 3_256_956_928}
    for size, count in counts.items():
        rows = audiocraft(checkpoint.SIZES[size])
        shapes = {piece.name: piece.shape for source in rows.values() for piece in source.pieces}
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == count


def test_loop():
    wav, rate = audio.read(checkpoint.Path(loop.__file__).with_name("loop.wav"))
    assert (rate, wav.shape) == (loop.RATE, (1, 4 * loop.RATE))
    expected, _ = audio.normalize(loop.loop()[None], rate, "peak")
    np.testing.assert_allclose(wav, expected, atol=2 / 2**15)
