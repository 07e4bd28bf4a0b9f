"""Bars and beats: where they begin, to the sample, and what does not fit.

python -m tests.test_musical_time    writes js/test/musical_time.json anew, the numbers that JavaScript must give
"""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from clean_lm import audio
from clean_lm.musical_time import MusicalTime, seconds_of
from tests.support import ROOT

FOR_JAVASCRIPT = ROOT / "js" / "test" / "musical_time.json"


def test_a_bar_at_174():
    """4 x 60 / 174 s: at 44.1 kHz 60827.586 samples, so that lines are rounded each by itself and never drift."""
    time = MusicalTime(174)
    assert time.bar == pytest.approx(1.3793103448)
    assert [time.line(n, 44100) for n in range(5)] == [0, 60828, 121655, 182483, 243310]
    assert time.length(16, 44100) == 973241
    assert MusicalTime(120, beats_per_bar=3).bar == 1.5


def test_the_prompt_is_up_to_the_last_bar_line():
    """At 120 a bar has 2 s; the track has 0.5 s before its first bar, and three bars and a half."""
    time = MusicalTime(120, prompt_bars=2, offset=0.5)
    assert time.prompt(7500, 1000, at_end=True) == (2500, 6500)
    assert time.prompt(7500, 1000, at_end=False) == (500, 4500)


@pytest.mark.parametrize(("missing", "end"), [(0, 243310), (1, 243309), (2, 243308), (3, 182483)])
def test_a_rendered_loop_may_lack_a_rounded_sample(missing, end):
    assert MusicalTime(174, prompt_bars=1).prompt(243310 - missing, 44100, at_end=True)[1] == end


@pytest.mark.parametrize(
    ("given", "prompt", "bars"),
    [
        ({}, 4, 21),  # of 6 s and 30 s: bars of 1.38 s
        ({"bars": 3}, 2, 3),
        ({"prompt_bars": 30}, 30, 31),
        ({"prompt_bars": 2, "bars": 8}, 2, 8),
    ],
)
def test_what_is_not_said_is_as_many_whole_bars_as_fit(given, prompt, bars):
    found = MusicalTime(174, **given).resolved(6, 30)
    assert (found.prompt_bars, found.bars) == (prompt, bars)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bpm": 0}, "bpm: got 0, expected beats a minute, 20 to 500"),
        ({"bpm": float("nan")}, "bpm: got nan"),
        ({"bpm": 120, "bars": 0}, "bars: got 0, expected a whole number from 1 to 10000"),
        ({"bpm": 120, "prompt_bars": 1.5}, "prompt_bars: got 1.5"),
        ({"bpm": 120, "prompt_bars": 4, "bars": 4}, "bars: got 4, expected more than the prompt's 4"),
        ({"bpm": 120, "beats_per_bar": 33}, "beats_per_bar: got 33"),
        ({"bpm": 120, "offset": -1}, "offset: got -1"),
    ],
)
def test_refused(given, said):
    with pytest.raises(ValueError, match=said):
        MusicalTime(**given).validate()


def test_a_track_that_is_too_short():
    with pytest.raises(ValueError, match=r"prompt_bars: got 4, the track has 3 whole bars of 2\.000 s from 0\.5 s on"):
        MusicalTime(120, prompt_bars=4, offset=0.5).prompt(7000, 1000, at_end=True)
    with pytest.raises(ValueError, match="has 0 whole bars"):
        MusicalTime(120, prompt_bars=4, offset=50).prompt(7000, 1000, at_end=True)


def test_frames_and_back():
    for rate in (50.0, 25.0, 44100 / 640, 30.3):
        for frames in (1, 7, 29, 1499, 1500, 4321):
            assert int(seconds_of(frames, rate) * rate) == frames


def test_a_loop_goes_on_where_it_began():
    """The sample after the last is the one that came there; the level of unlike music stays within a quarter dB."""
    noise = np.random.default_rng(1).standard_normal((2, 60_000)).astype(np.float32)
    loop = audio.close_loop(noise, 40_000, 20_000)
    assert loop.shape == (2, 40_000)
    np.testing.assert_allclose(loop[:, 0], noise[:, 40_000], atol=2e-4)
    np.testing.assert_array_equal(loop[:, 20_000:], noise[:, 20_000:40_000])
    for part in range(4):
        level = 20 * np.log10(audio.rms(loop[:, part * 5000 : part * 5000 + 5000]))
        assert abs(level) < 0.25


def test_fades():
    wav = np.ones((1, 8), np.float32)
    np.testing.assert_allclose(audio.fade_in(wav, 4), audio.fade_out(wav, 4)[:, ::-1])
    assert audio.fade_in(wav, 4)[0, 0] == 0
    with pytest.raises(audio.AudioError, match="fade_in: got 9 samples"):
        audio.fade_in(wav, 9)


def numbers_for_javascript() -> dict[str, Any]:
    """60 grids, half of them with lines that lie between two samples, and the ends of a piece of audio."""
    rng = np.random.default_rng(19)
    wav = rng.uniform(-1, 1, (2, 50)).astype(np.float32)
    return {
        "grids": [grid_for_javascript(rng, ties=bool(i % 2)) for i in range(60)],
        "audio": wav.tolist(),
        "fade_in": audio.fade_in(wav, 20).tolist(),
        "close_loop": audio.close_loop(wav, 34, 16).tolist(),
    }


def grid_for_javascript(rng: np.random.Generator, ties: bool) -> dict[str, Any]:
    """A grid and all its numbers. Ties: half a second or less a beat and an odd rate, so that lines end in .5."""
    bpm = float(rng.choice([60, 120, 240])) if ties else round(float(rng.uniform(20, 500)), int(rng.integers(0, 5)))
    rate = int(rng.choice([8001, 22051, 44101]) if ties else rng.choice([8000, 11025, 32000, 44100, 48000, 96000]))
    offset = float(rng.choice([0, 0.5, 1.25])) if ties else float(rng.uniform(0, 5))
    prompt_bars = int(rng.integers(1, 9))
    bars = prompt_bars + int(rng.integers(1, 9))
    time = MusicalTime(bpm, prompt_bars, bars, int(rng.choice([1, 3, 4, 7])), offset)
    time.validate()
    samples = time.line(prompt_bars + int(rng.integers(0, 3)), rate) + int(rng.integers(-2, 4))
    samples = max(samples, time.line(prompt_bars, rate))
    seconds, duration = float(rng.uniform(1, 20)), float(rng.uniform(10, 60))
    free = [
        MusicalTime(bpm, None, some, time.beats_per_bar, offset).resolved(seconds, duration) for some in (None, bars)
    ]
    frames, frame_rate = int(rng.integers(1, 5000)), float(rng.choice([50, 25, 44100 / 640, 30.3]))
    return {
        "given": asdict(time),
        "rate": rate,
        "samples": samples,
        "bar": time.bar,
        "lines": [time.line(n, rate) for n in range(20)],
        "lengths": [time.length(n, rate) for n in range(20)],
        "from_end": time.prompt(samples, rate, at_end=True),
        "from_start": time.prompt(samples, rate, at_end=False),
        "resolved": [seconds, duration, [[one.prompt_bars, one.bars] for one in free]],
        "seconds_of": [frames, frame_rate, seconds_of(frames, frame_rate)],
    }


def test_what_javascript_must_give():
    """js/test/musical_time.test.js compares its numbers with this file, which has Python's."""
    found = json.loads(json.dumps(numbers_for_javascript()))
    stored = json.loads(FOR_JAVASCRIPT.read_text(encoding="utf-8"))
    assert found["grids"] == stored["grids"], "write the file anew: python -m tests.test_musical_time"
    for name in ("audio", "fade_in", "close_loop"):  # the last bit of a cosine differs from one processor to another
        np.testing.assert_allclose(found[name], stored[name], atol=2e-7)


if __name__ == "__main__":
    FOR_JAVASCRIPT.write_text(json.dumps(numbers_for_javascript()) + "\n", encoding="utf-8")
    print(f"wrote {FOR_JAVASCRIPT}")
