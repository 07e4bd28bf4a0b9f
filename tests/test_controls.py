"""Bars, loops, endings, silence at the seam, takes that differ: lengths, levels, codes that stay the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from clean_lm import MusicalTime, audio, audio_files, cli, joining, onsets, take_codes, takes
from clean_lm.audio_codec import Codec
from clean_lm.joining import Joined, crossfaded, ranked
from clean_lm.manifest import sha256
from clean_lm.request import Request, validate
from clean_lm.source import read_source
from clean_lm.takes import Likelihood

BPM = 150  # a bar of 1.6 s: at 44.1 kHz 70560 samples, 80 frames of the codec
BAR = 70560


def drums(bars: float, rate: int = 44100, offset: float = 0.0) -> np.ndarray:
    """A click on every beat at 150, louder on the first of a bar: float64 [samples, 2]."""
    wav = 0.01 * np.random.default_rng(1).standard_normal((round((offset + bars * 1.6) * rate), 2))
    for beat in range(int(bars * 4)):
        at = round((offset + beat * 0.4) * rate)
        click = np.exp(-np.arange(2000) / 300) * np.sin(np.arange(2000) * 0.3)
        wav[at : at + 2000] += (0.9 if beat % 4 == 0 else 0.4) * click[: len(wav) - at, None]
    return wav


@pytest.fixture
def track(tmp_path) -> Path:
    """Three bars and a half after 0.2 s."""
    sf.write(tmp_path / "track.wav", drums(3.5, offset=0.2), 44100, "PCM_16")
    return tmp_path / "track.wav"


@pytest.fixture
def run(capsys, music):
    """A command that succeeds, with --json; its last line."""

    def call(command, *arguments):
        given = [command, *arguments, "--bundle", music("text", True), "--json", "--overwrite"]
        assert cli.main([*map(str, given)]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


@pytest.fixture
def refused(capsys, music):
    """What a command says that is refused."""

    def call(command, *arguments):
        assert cli.main([*map(str, [command, *arguments, "--bundle", music("text", True)])]) == 1
        return capsys.readouterr().err

    return call


def read(path: Path) -> np.ndarray:
    return sf.read(path, dtype="int16", always_2d=True)[0]


# bars


@pytest.mark.parametrize(("side", "prompt"), [("end", (0.2 + 2 * 1.6, 0.2 + 3 * 1.6)), ("start", (0.2, 1.8))])
def test_the_prompt_is_whole_bars_and_so_is_the_result(run, track, tmp_path, monkeypatch, side, prompt):
    """Its end is on a bar line and its frames are whole; the result has the bars' samples, from the prompt's first."""
    given, whole = [], Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda self, wav: given.append(wav) or whole(self, wav))
    said = run("continue", track, "-o", tmp_path / "out.wav", "--bpm", BPM, "--offset", 0.2, "--prompt-bars", 1,
               "--bars", 3, "--from", side, "--seed", 1)  # fmt: skip
    (wav,) = given
    assert wav.shape[2] == 80 * 640
    samples, rate = audio_files.read(track)
    begin, end = (round(second * 44100) for second in prompt)
    np.testing.assert_array_equal(wav[0], audio.convert_audio(samples[:, begin:end], rate, 32000, 1))
    assert len(read(tmp_path / "out.wav")) == 3 * BAR
    assert (said["seam"], said["bars"], said["takes"][0]["bars"]) == (1.6, 3, 3)


def test_a_bar_that_is_no_whole_number_of_frames(run, tmp_path, monkeypatch):
    """At 174: the prompt begins up to a frame before its first bar line, with silence where there is no track."""
    given, whole = [], Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda self, wav: given.append(wav) or whole(self, wav))
    bar = 4 * 60 / 174
    sf.write(tmp_path / "loop.wav", drums(2)[: round(2 * bar * 44100)], 44100, "PCM_16")
    said = run(
        "continue", tmp_path / "loop.wav", "-o", tmp_path / "out.wav", "--bpm", 174, "--prompt-bars", 2, "--bars", 4
    )
    assert given[0].shape[2] == 138 * 640  # 137.93 frames
    assert np.abs(given[0][0, 0, :40]).max() < 1e-3 < np.abs(given[0][0, 0, 46:60]).max()  # 44 samples of silence
    assert len(read(tmp_path / "out.wav")) == round(4 * bar * 44100)
    assert said["seam"] == pytest.approx(2 * bar, abs=1 / 44100)


def test_a_prompt_of_all_bars_that_there_are(run, track, tmp_path):
    """6 s have room for four bars at 165, the track has three after 0.2 s: the result has its bars all the same."""
    said = run("continue", track, "-o", tmp_path / "out.wav", "--bpm", 165, "--offset", 0.2, "--bars", 5)
    assert said["seam"] == pytest.approx(3 * 240 / 165, abs=1e-4)
    assert len(read(tmp_path / "out.wav")) == round(5 * 240 / 165 * 44100)


@pytest.mark.parametrize("command", [("--splice",), ("--splice", "--loop")])
def test_a_spliced_track_ends_on_its_grid(run, track, tmp_path, command):
    """Untouched to the last bar line, then new bars; with --loop, its first 10 ms meet the end."""
    run("continue", track, "-o", tmp_path / "out.wav", "--bpm", BPM, "--offset", 0.2, "--prompt-bars", 2, "--bars", 4,
        *command)  # fmt: skip
    old, new = read(track), read(tmp_path / "out.wav")
    assert len(new) == round((0.2 + 5 * 1.6) * 44100)
    seam, first = round((0.2 + 3 * 1.6) * 44100), 441 if "--loop" in command else 0
    np.testing.assert_array_equal(new[first : seam - 882], old[first : seam - 882])
    assert not first or (new[:first] != old[:first]).mean() > 0.5


def test_bars_of_music_from_a_text(run, tmp_path):
    run("generate", "-o", tmp_path / "out.wav", "--bpm", 174, "--bars", 2)
    assert len(read(tmp_path / "out.wav")) == round(2 * 240 / 174 * 32000)


def test_a_loop_has_its_length_and_goes_on(run, track, tmp_path):
    """Without bpm: the duration. The first sample is the one that came after the last."""
    common = ("continue", track, "--prompt-seconds", 1, "--seed", 1, "--rate", "codec", "--strategy", "clip")
    run(*common, "-o", tmp_path / "loop.wav", "--duration", 3, "--loop")
    run(*common, "-o", tmp_path / "long.wav", "--duration", 3.04)
    loop, long = read(tmp_path / "loop.wav").astype(int), read(tmp_path / "long.wav").astype(int)
    assert len(loop) == 3 * 32000
    angle = np.pi / 4 / 320
    assert abs(loop[0, 0] - np.cos(angle) * long[3 * 32000, 0] - np.sin(angle) * long[0, 0]) <= 1.5
    np.testing.assert_allclose(loop[320:], long[320 : 3 * 32000], atol=2)


def test_bars_in_python(music, track, tmp_path, run):
    """The same codes and the same bars as the command line's."""
    model = cli.MusicGen.load(music("text", True))
    wav, rate = audio_files.read(track)
    time = MusicalTime(BPM, prompt_bars=2, bars=4, offset=0.2)
    found, codes = model.generate_continuation(wav, rate, seed=1, return_tokens=True, musical_time=time)
    assert found.shape == (1, 1, 4 * 51200)
    run("continue", track, "-o", tmp_path / "out.wav", "--bpm", BPM, "--offset", 0.2, "--prompt-bars", 2, "--bars", 4,
        "--seed", 1, "--rate", "codec", "--save-codes")  # fmt: skip
    saved = np.array(json.loads((tmp_path / "out.codes.json").read_text())["codes"])
    np.testing.assert_array_equal(saved[:, : codes.shape[2] - 4], codes[0, :, :-4])  # the delays see another length
    assert np.shape(model.generate([None], seed=1, musical_time=MusicalTime(174, bars=3)))[2] == round(
        3 * 240 / 174 * 32000
    )
    default = model.generate_continuation(wav, rate, seed=1, musical_time=MusicalTime(BPM, offset=0.2))
    assert np.shape(default)[2] == 18 * 51200  # three bars of the prompt; 30 s have room for 18
    for bad, said in (
        ({"prompt_codes": codes, "prompt": None}, "musical_time: cuts a prompt to bars"),
        ({"prompt": wav, "musical_time": MusicalTime(BPM, prompt_bars=4)}, "prompt_bars: got 4, the track has 3"),
    ):
        with pytest.raises(ValueError, match=said):
            model.generate_continuation(**{"prompt_sample_rate": rate, "musical_time": time, **bad})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--bpm", 150, "--prompt-bars", 4), "--prompt-bars: got 4, the track has 3 whole bars of 1.600 s from 0 s on"),
        (("--bpm", 5), "--bpm: got 5.0, expected beats a minute, 20 to 500"),
        (("--offset", 1), "--bars: need the track's tempo"),
        (("--bars", 0), "--bars: need the track's tempo"),
        (("--bars", 4), "--bars: need the track's tempo; give bpm, or seconds"),
        (("--bpm", 150, "--bars", 2, "--prompt-bars", 2), "--bars: got 2, expected more than the prompt's 2"),
        (("--loop", "--fade-out", 1), "--loop: a loop has no end that fade_out could change"),
        (("--spread",), "--spread: is over the temperatures of several takes"),
        (("--retry-silent", 21), "--retry-silent: got 21"),
        (("--fade-in", 40), "--fade-in: got 40"),
    ],
)
def test_refused(refused, track, tmp_path, options, said):
    assert said in refused("continue", track, "-o", tmp_path / "out.wav", *options)
    assert not (tmp_path / "out.wav").exists()


def test_no_tempo_is_guessed(track, tmp_path, music, capsys):
    with pytest.raises(SystemExit):
        cli.main(["continue", str(track), "-o", "x.wav", "--bundle", str(music("text", True)), "--bpm", "auto"])
    assert "no tempo is guessed" in capsys.readouterr().err


# silence


class Levels:
    """A batch's judgement with given levels in place of those of decoded audio."""

    def __init__(self, monkeypatch, levels):
        self.asked = []
        original = takes.Batch._judge

        def judge(batch, part):
            self.asked.append((tuple(batch.seeds), part.begin, part.stop))
            values = iter([levels(seed, part) for seed in batch.seeds])
            monkeypatch.setattr(takes.audio, "rms", lambda wav: float(next(values)))
            original(batch, part)
            monkeypatch.undo()
            monkeypatch.setattr(takes.Batch, "_judge", judge)

        monkeypatch.setattr(takes.Batch, "_judge", judge)


def test_silent_takes_are_drawn_again_with_the_next_seeds(run, track, tmp_path, monkeypatch):
    """Of seeds 5, 6, 7 the second begins with silence, and so does 8: the take is that of 9; the others stay."""
    Levels(monkeypatch, lambda seed, part: 0.0 if seed in (6, 8) else 0.3)
    common = ("continue", track, "--prompt-seconds", 1, "--duration", 3, "--rate", "codec")
    said = run(*common, "-o", tmp_path / "out.wav", "--takes", 3, "--seed", 5, "--retry-silent", 3)
    assert [take["seed"] for take in said["takes"]] == [5, 9, 7]
    assert "warnings" not in said
    for name, seed in (("out-1", 5), ("out-2", 9), ("out-3", 7)):
        run(*common, "-o", tmp_path / "one.wav", "--seed", seed)
        difference = np.abs(read(tmp_path / f"{name}.wav").astype(int) - read(tmp_path / "one.wav"))
        assert difference.max() <= 2  # rows of a batch round differently


def test_a_take_that_stays_silent_is_said(run, track, tmp_path, monkeypatch, capsys):
    """And drawn no further than its first beat, but for the last try."""
    levels = Levels(monkeypatch, lambda seed, part: 0.0)
    said = run("continue", track, "-o", tmp_path / "out.wav", "--prompt-seconds", 1, "--duration", 3, "--seed", 5,
               "--retry-silent", 2)  # fmt: skip
    assert [seeds for seeds, *_ in levels.asked] == [(5,), (6,), (7,)]
    assert (said["takes"][0]["seed"], said["takes"][0]["silent"]) == (7, True)
    assert "the first beat is near-silent although the prompt is not; --retry-silent 3" in said["warnings"][0]


def test_seeds_go_round(run, track, tmp_path, monkeypatch):
    """After 2^64 - 1 comes 0, and no seed is tried twice."""
    levels = Levels(monkeypatch, lambda seed, part: 0.3 if seed == 2**64 - 1 else 0.0)
    run("continue", track, "-o", tmp_path / "out.wav", "--prompt-seconds", 1, "--duration", 3, "--takes", 2, "--seed",
        2**64 - 2, "--retry-silent", 3)  # fmt: skip
    assert [seeds for seeds, *_ in levels.asked] == [(2**64 - 2, 2**64 - 1), (0,), (1,), (2,)]


def test_a_silent_prompt_may_go_on_with_silence(run, tmp_path, monkeypatch):
    sf.write(tmp_path / "quiet.wav", np.full((88200, 1), 1e-4), 44100, "FLOAT")
    Levels(monkeypatch, lambda seed, part: 0.0)
    said = run("continue", tmp_path / "quiet.wav", "-o", tmp_path / "out.wav", "--duration", 3, "--retry-silent", 2)
    assert "silent" not in said["takes"][0]


@pytest.mark.parametrize(
    ("options", "seam", "bar"),
    [(("--bpm", BPM, "--offset", 0.2, "--prompt-bars", 1, "--bars", 8), 1.6, 80), (("--prompt-seconds", 1), 1, 100)],
)
def test_it_ends_where_it_is_quiet(run, track, tmp_path, monkeypatch, options, seam, bar):
    """One take is quiet in its second bar and again from the fourth on, the other from the third on: both are drawn to
    the fourth and no further, and end before they are quiet for good."""
    known = round(seam * 50)

    def level(seed, part):
        number = (part.begin - known) // bar
        quiet = part.end is not None and (number == 1 or number >= 3 if seed == 1 else number >= 2)
        return 0.001 if quiet else 0.3

    levels = Levels(monkeypatch, level)
    said = run("continue", track, "-o", tmp_path / "out.wav", "--until-silence", "--seed", 1, "--takes", 2, *options)
    assert levels.asked[-1][1:] == (known + 3 * bar, known + 4 * bar)
    for number, kept in ((1, 3), (2, 2)):
        assert len(read(tmp_path / f"out-{number}.wav")) == round((seam + kept * bar / 50) * 44100)
        assert said["takes"][number - 1]["duration"] == round(seam + kept * bar / 50, 3)


# takes that differ


def test_spread_draws_each_take_at_its_temperature(run, track, tmp_path):
    common = ("continue", track, "--prompt-seconds", 1, "--duration", 2, "--rate", "codec")
    said = run(*common, "-o", tmp_path / "out.wav", "--takes", 3, "--spread", "--seed", 5)
    assert [take["temperature"] for take in said["takes"]] == [0.8, 1.0, 1.25]
    for number, (seed, temperature) in enumerate([(5, 0.8), (6, 1.0), (7, 1.25)], 1):
        run(*common, "-o", tmp_path / "one.wav", "--seed", seed, "--temperature", temperature)
        np.testing.assert_array_equal(read(tmp_path / f"out-{number}.wav"), read(tmp_path / "one.wav"))


def test_log_probabilities_are_pytorchs():
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    found, sums, count = Likelihood(2), torch.zeros(2, dtype=torch.float64), torch.zeros(2)
    for _ in range(5):
        logits = (20 * generator.standard_normal((2, 4, 64))).astype(np.float32)
        codes, drawn = generator.integers(0, 64, (2, 4)), generator.random((2, 4)) < 0.7
        found.add(logits, codes, drawn)
        each = torch.from_numpy(logits).double().log_softmax(-1).gather(2, torch.from_numpy(codes)[:, :, None])[:, :, 0]
        sums += (each * torch.from_numpy(drawn)).sum(1)
        count += torch.from_numpy(drawn).sum(1)
    np.testing.assert_allclose([found.mean(0), found.mean(1)], (sums / count).numpy(), rtol=1e-12)


def test_ranked_takes_are_the_same_takes(run, track, tmp_path):
    """In another order: the sum of two ranks, each take with its own numbers."""
    common = ("continue", track, "--prompt-seconds", 1, "--duration", 3, "--rate", "codec", "--takes", 4, "--seed", 5)
    said = run(*common, "-o", tmp_path / "out.wav", "--rank")["takes"]
    run(*common, "-o", tmp_path / "plain.wav")
    assert sorted(take["seed"] for take in said) == [5, 6, 7, 8]
    for number, take in enumerate(said, 1):
        plain = tmp_path / f"plain-{take['seed'] - 4}.wav"
        np.testing.assert_array_equal(read(tmp_path / f"out-{number}.wav"), read(plain))
    ranks = np.zeros(4)
    for name in ("log_probability", "onset_agreement"):
        values = np.array([take[name] for take in said])
        ranks += (-values).argsort().argsort()
    assert list(ranks) == sorted(ranks)
    assert all(take["log_probability"] < 0 for take in said)


def test_equal_ranks_go_by_probability():
    made = [Joined(np.zeros((1, 1)), {"log_probability": p, "onset_agreement": o}, None) for p, o in  # type: ignore[arg-type]
            ((-3.0, 0.9), (-1.0, 0.1), (-2.0, 0.5))]  # fmt: skip
    assert [take.facts["log_probability"] for take in ranked(made)] == [-1.0, -2.0, -3.0]


def test_onsets_are_where_the_clicks_are():
    curve = onsets.onset_curve(drums(2).T, 44100)
    near = np.array([any(abs(place - beat) <= 3 for beat in range(0, 320, 40)) for place in range(len(curve))])
    assert curve[~near].max() < 0.6 * min(curve[beat - 3 : beat + 4].max() for beat in range(40, 320, 40))


def test_agreement_of_rhythms():
    """The same bar agrees, in its place in the bar alone where the bar is known; noise does not."""
    loop = onsets.onset_curve(drums(4).T, 44100)
    other = onsets.onset_curve(np.random.default_rng(3).standard_normal((2, 300_000)), 44100)
    shifted = np.roll(loop, 20)  # half a beat late
    assert onsets.agreement(loop, loop, 1.6) > 0.9
    assert onsets.agreement(loop, shifted, 1.6) < 0.3
    assert onsets.agreement(loop, shifted, None) > 0.9
    assert abs(onsets.agreement(loop, other, None)) < 0.3
    assert onsets.agreement(loop, np.zeros(300), 1.6) == 0


# extend, edit


def test_a_take_goes_on_from_its_own_codes(run, track, tmp_path, music, monkeypatch):
    """The same codes as a prompt in codes gives, joined to the untouched take; nothing is encoded."""
    common = ("--seed", 5, "--save-codes")
    run("continue", track, "-o", tmp_path / "out.wav", "--prompt-seconds", 1, "--duration", 3, *common)
    saved = json.loads((tmp_path / "out.codes.json").read_text())
    assert (saved["frame_rate"], saved["begin"], saved["end"], saved["seed"], len(saved["codes"][0])) == (
        50,
        0,
        3,
        5,
        150,
    )
    monkeypatch.setattr(Codec, "encode", lambda *_: pytest.fail("was encoded"))
    run("extend", tmp_path / "out.wav", "-o", tmp_path / "more.wav", "--prompt-seconds", 2, "--duration", 4, *common)
    old, new = read(tmp_path / "out.wav"), read(tmp_path / "more.wav")
    assert len(new) == 5 * 44100
    np.testing.assert_array_equal(new[: 3 * 44100 - 882], old[:-882])
    more = json.loads((tmp_path / "more.codes.json").read_text())
    assert (more["begin"], more["end"]) == (1, 5)
    np.testing.assert_array_equal(np.array(more["codes"])[:, :100], np.array(saved["codes"])[:, 50:])
    model = cli.MusicGen.load(music("text", True))
    model.set_generation_params(duration=4)
    _, codes = model.generate_continuation(
        prompt_codes=np.array([saved["codes"]])[:, :, 50:], seed=5, return_tokens=True
    )
    np.testing.assert_array_equal(codes[0], more["codes"])


def test_codes_of_a_spliced_take_in_bars(run, track, tmp_path):
    """They begin where the prompt does, and end where the last bar does, or before the fade."""
    bars = ("--bpm", BPM, "--offset", 0.2, "--prompt-bars", 1)
    said = run("continue", track, "-o", tmp_path / "out.wav", "--splice", *bars, "--bars", 3, "--fade-out", 0.5,
               "--save-codes")  # fmt: skip
    saved = json.loads((tmp_path / "out.codes.json").read_text())
    assert saved["begin"] == pytest.approx(0.2 + 2 * 1.6, abs=1e-4)
    assert saved["end"] == pytest.approx(said["duration"] - 0.5, abs=1e-3)
    more = run("extend", tmp_path / "out.wav", "-o", tmp_path / "more.wav", *bars, "--bars", 2)
    assert len(read(tmp_path / "more.wav")) == round((0.2 + 6 * 1.6) * 44100)
    assert more["seam"] == pytest.approx(saved["end"], abs=0.02)


def test_a_take_that_ends_in_a_bar_completes_it_first(run, track, tmp_path):
    """3 s at 150 are a bar and seven eighths: after 3.2 s, one whole bar is new. No more is drawn than that."""
    run("continue", track, "-o", tmp_path / "out.wav", "--prompt-seconds", 1, "--duration", 3, "--save-codes")
    more = ("--bpm", BPM, "--prompt-bars", 2, "--bars", 3, "--fade-out", 1.79, "--save-codes")
    run("extend", tmp_path / "out.wav", "-o", tmp_path / "more.wav", *more)
    assert len(read(tmp_path / "more.wav")) == 3 * BAR
    codes = json.loads((tmp_path / "more.codes.json").read_text())["codes"]
    assert len(codes[0]) == 3 * 80 + 1


def test_all_of_the_new_bars_may_fade(run, tmp_path):
    """A bar at 174 begins within a frame of the prompt, whose beginning is cut off again."""
    sf.write(tmp_path / "loop.wav", drums(2), 44100, "PCM_16")
    run("continue", tmp_path / "loop.wav", "-o", tmp_path / "out.wav", "--bpm", 174, "--prompt-bars", 1, "--bars", 2,
        "--fade-out", 240 / 174 - 1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "no such file; extend needs the codes that --save-codes writes beside a take"),
        ({"audio_sha256": "0" * 64}, "was changed since"),
        ({"audio_sha256": "none"}, "not readable as the codes of a take"),
        ({"begin": -1e6}, "its codes end at -999999 s, expected up to 1 s"),
        ({"begin": 0.5, "end": 9.0}, "its codes end at 1.5 s, expected up to 1 s"),
        ({"codes": [[0, 1], [0, 1]]}, "has 2 codebooks"),
        ({"codes": [[70], [0], [0], [0]]}, "codes: expected 0 .. 63"),
        ({"codes": [[0, 1], [0], [0], [0]]}, "expected lists of one length"),
        ({"end": 0.001}, "no frame of its codes is heard"),
        ({"frame_rate": 0}, "not readable as the codes of a take"),
        ({"more": 1}, "unknown field"),
    ],
)
def test_codes_that_are_none(refused, tmp_path, change, said):
    sf.write(tmp_path / "out.wav", np.full((32000, 1), 0.1), 32000)
    whole = {"format": take_codes.FORMAT, "frame_rate": 50, "card": 64, "begin": 0, "end": 1.0, "seed": 1,
             "codes": [[0] * 50] * 4, "audio_sha256": sha256(tmp_path / "out.wav")}  # fmt: skip
    if change is not None:
        (tmp_path / "out.codes.json").write_text(json.dumps(whole | change))
    assert said in refused("extend", tmp_path / "out.wav", "-o", tmp_path / "more.wav")


def test_codes_that_are_no_file(refused, tmp_path):
    """A device or a pipe may never end."""
    sf.write(tmp_path / "out.wav", np.full((32000, 1), 0.1), 32000)
    (tmp_path / "out.codes.json").symlink_to("/dev/null")
    assert "a folder, a pipe or a device" in refused("extend", tmp_path / "out.wav", "-o", tmp_path / "more.wav")


def test_a_take_of_the_same_length_is_another_one(run, refused, track, tmp_path):
    """Codes that an earlier run left are refused, though the sound that replaced theirs is as long."""
    common = ("continue", track, "-o", tmp_path / "out.wav", "--prompt-seconds", 1, "--duration", 2)
    run(*common, "--seed", 1, "--save-codes")
    run(*common, "--seed", 2)
    assert "was changed since" in refused("extend", tmp_path / "out.wav", "-o", tmp_path / "more.wav")


def test_codes_are_replaced_only_if_asked(run, refused, track, tmp_path):
    """out.wav and out.flac have one name for their codes. Those that are extended are an input, and stay."""
    common = ("--prompt-seconds", 1, "--duration", 2, "--save-codes")
    run("continue", track, "-o", tmp_path / "out.wav", *common)
    codes = (tmp_path / "out.codes.json").read_bytes()
    for command, source, more, said in (
        ("continue", track, (), "out.codes.json: exists already"),
        ("extend", tmp_path / "out.wav", ("--overwrite",), "out.codes.json: is the input"),
    ):
        assert said in refused(command, source, "-o", tmp_path / "out.flac", *common, *more)
        assert (tmp_path / "out.codes.json").read_bytes() == codes
    said = run("continue", track, "-o", tmp_path / "out.flac", *common)
    assert said["replaced"] == [str(tmp_path / "out.codes.json")]


def test_a_part_is_made_anew_and_the_rest_stays(run, track, tmp_path):
    """Bit for bit, but for 20 ms before the region and at its end; the track's length too. Bars count from 1."""
    run("edit", track, "-o", tmp_path / "out.wav", "--from", 1.8, "--to", 3.4, "--seed", 2)
    old, new = read(track), read(tmp_path / "out.wav")
    begin, stop = round(1.8 * 44100), round(3.4 * 44100)
    assert len(new) == len(old)
    np.testing.assert_array_equal(new[: begin - 882], old[: begin - 882])
    np.testing.assert_array_equal(new[stop:], old[stop:])
    assert (new[begin : stop - 882] != old[begin : stop - 882]).mean() > 0.9
    run("edit", track, "-o", tmp_path / "bars.wav", "--bpm", BPM, "--offset", 0.2, "--from-bar", 2, "--to-bar", 3,
        "--seed", 2)  # fmt: skip
    np.testing.assert_array_equal(read(tmp_path / "bars.wav"), new)


def test_an_edit_is_ranked_by_its_bars(run, track, tmp_path, monkeypatch):
    """And its first beat is one of the track's tempo."""
    compared, levels = [], Levels(monkeypatch, lambda seed, part: 0.3)
    with pytest.MonkeyPatch.context() as other:  # which Levels does not undo
        other.setattr(joining, "agreement", lambda before, after, bar: compared.append(bar) or 0.0)
        run("edit", track, "-o", tmp_path / "out.wav", "--bpm", BPM, "--from-bar", 2, "--to-bar", 3, "--rank")
    assert compared == [1.6]
    assert [stop - begin for _, begin, stop in levels.asked] == [20]


def test_an_edit_ends_in_a_crossfade_of_equal_power():
    ones, noise = np.random.default_rng(0).standard_normal((2, 1, 50_000))
    joined = crossfaded(ones, noise, 40_000, 20_000)
    np.testing.assert_array_equal(joined[:, 40_000:], noise[:, 40_000:])
    np.testing.assert_array_equal(joined[:, :20_000], ones[:, :20_000])
    for part in range(20_000, 40_000, 5000):
        assert abs(20 * np.log10(audio.rms(joined[:, part : part + 5000]))) < 0.25


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--from", 4), "--to: give it, or --to-bar: one of them"),
        (("--from", 4, "--to", 3), "error: region: got 3.0, expected an end after its begin, 4 s"),
        (("--from", 1, "--to", 30), "error: region: got 1 s to 30 s, expected a part of the track, which has 5.8 s"),
        (("--from-bar", 1, "--to", 3), "--from-bar: needs the track's tempo: give --bpm"),
        (("--from", 0, "--to", 3), "error: region: got 0.0, expected a begin of more than 0 s"),
    ],
)
def test_edits_that_are_refused(refused, track, tmp_path, options, said):
    assert said in refused("edit", track, "-o", tmp_path / "out.wav", *options)


def test_fades_of_a_result(run, track, tmp_path):
    common = (
        "continue",
        track,
        "--prompt-seconds",
        1,
        "--duration",
        3,
        "--rate",
        "codec",
        "--seed",
        5,
        "--strategy",
        "clip",
    )
    run(*common, "-o", tmp_path / "plain.wav")
    run(*common, "-o", tmp_path / "faded.wav", "--fade-in", 0.5, "--fade-out", 0.5)
    plain, faded = read(tmp_path / "plain.wav"), read(tmp_path / "faded.wav")
    np.testing.assert_array_equal(faded[16000:-16000], plain[16000:-16000])
    assert (faded[0], faded[-1]) == (0, 0)
    assert abs(int(faded[8000, 0]) - plain[8000, 0] / 2) <= 2  # halfway: 6 dB down


def test_what_a_request_draws_without_controls(music, track):
    """A fade, a loop or bars change nothing of the codes that they share."""
    model = cli.MusicGen.load(music("text", True))

    def codes(**options):
        request = validate(Request(input=track, seed=3, prompt_seconds=1.6, **options), model.lm.manifest)
        return takes.draw_takes(model, request, read_source(request, model.lm.manifest), lambda *_: None).takes[0].codes

    plain = codes(duration=3.2)
    assert plain.shape[1] == 160
    for other in (codes(duration=3.2, fade_in=0.1), codes(duration=3.2, loop=True), codes(duration=3.2, rank=True)):
        np.testing.assert_array_equal(other[:, :156], plain[:, :156])  # the delays at the end see another length
