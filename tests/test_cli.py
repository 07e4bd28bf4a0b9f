"""clean-lm: what each command writes and says, and what it refuses before anything is loaded."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from clean_lm import audio, audio_files, cli
from tests.support import GOLDEN, ROOT

pytestmark = pytest.mark.runtime

SHORT = ("--prompt-seconds", "1", "--duration", "2")
Run = Callable[..., dict[str, Any]]


def tone(seconds: float, rate: int, channels: int = 1, level: float = 0.95) -> np.ndarray:
    """Noise over a chord, up to `level`: float64 [samples, channels]."""
    time = np.arange(round(seconds * rate)) / rate
    chord = np.sin(2 * np.pi * np.array([[220], [277], [330]]) * time).sum(axis=0)
    wave = chord[:, None] + 0.3 * np.random.default_rng(0).standard_normal((len(time), channels))
    return level * wave / np.abs(wave).max()


@pytest.fixture
def track(tmp_path) -> Path:
    """2.5 s, stereo, 44.1 kHz, louder than the 1 dB of headroom that `clip` leaves."""
    sf.write(tmp_path / "track.wav", tone(2.5, 44100, 2), 44100, "PCM_16")
    return tmp_path / "track.wav"


@pytest.fixture
def run(capsys) -> Run:
    """A command that succeeds, with --json; its last line."""

    def call(*arguments: str | Path) -> dict[str, Any]:
        assert cli.main([*map(str, arguments), "--json"]) == 0, capsys.readouterr().err
        *progress, done = map(json.loads, capsys.readouterr().out.splitlines())
        assert done.pop("event") == "done"
        assert all(event["event"] == "progress" for event in progress)
        return {**done, "progress": progress}

    return call


def read(path: Path | str) -> tuple[np.ndarray, int]:
    """int16 or int32 [samples, channels] as stored, and the rate."""
    return sf.read(path, dtype="int16" if sf.info(path).subtype == "PCM_16" else "int32", always_2d=True)


def rms(wav: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wav, dtype=np.float64))))


# continue


def test_continue(run, music, track, tmp_path):
    """The prompt as the codec renders it and what follows, at the track's rate; progress only grows."""
    said = run("continue", track, "-o", tmp_path / "out.wav", "--bundle", music("text", True), "--seed", "3", *SHORT)
    wav, rate = read(tmp_path / "out.wav")
    assert (len(wav), wav.shape[1], rate) == (2 * 44100, 2, 44100)
    done = [event["done"] for event in said["progress"]]
    assert done == sorted(set(done))
    assert done[-1] == said["progress"][-1]["total"] == 50 + 3  # a second of frames, and the delays
    assert said.pop("seconds") > 0
    assert said.pop("real_time_factor") > 0
    assert said.pop("clipped") > 0  # `clip`, a dB under full scale
    assert np.abs(wav).max() == round(10 ** (-1 / 20) * 2**15)
    del said["progress"]
    (take,) = said.pop("takes")
    assert take.pop("first_beat_db") == pytest.approx(20 * np.log10(rms(wav[44100:66150]) / rms(wav[:44100])), abs=1)
    assert take == {"file": str(tmp_path / "out.wav"), "duration": 2.0, "seed": 3, "temperature": 1.0}
    expected = {"seed": 3, "seam": 1.0, "sample_rate": 44100, "channels": 2, "duration": 2.0}
    assert said == {"files": [str(tmp_path / "out.wav")], **expected}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out.wav", "track.wav"]


def test_a_continuation_is_said_in_words(music, track, tmp_path, capsys):
    assert cli.main(["continue", str(track), "-o", str(tmp_path / "a.flac"), "--bundle", str(music("text", True)),
                     "--seed", "3", "--strategy", "peak", *SHORT]) == 0  # fmt: skip
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path}/a.flac: 2.0 s, 44100 Hz, 2 channels"
    assert second.startswith("seed 3, new from 1.00 s on; ")
    assert np.abs(sf.read(tmp_path / "a.flac")[0]).max() == pytest.approx(10 ** (-1 / 20), abs=1e-4)


def test_rate_codec(run, music, track, tmp_path):
    said = run("continue", track, "-o", tmp_path / "out.wav", "--bundle", music("text", True), "--rate", "codec",
               *SHORT)  # fmt: skip
    assert read(tmp_path / "out.wav")[0].shape == (64000, 1)
    assert (said["sample_rate"], said["channels"], said["seam"]) == (32000, 1, 1.0)


def test_which_end(run, music, track, tmp_path):
    """The prompt is the last second, or the first: as the prompt alone, cut out, is continued."""
    wav, rate = read(track)
    for side, part in (("end", wav[-rate:]), ("start", wav[:rate])):
        sf.write(tmp_path / "part.wav", part, rate, "PCM_16")
        for name, source in (("whole", track), ("cut", tmp_path / "part.wav")):
            run("continue", source, "-o", tmp_path / f"{name}-{side}.wav", "--bundle", music("text", True),
                "--seed", "1", "--from", side, *SHORT)  # fmt: skip
        np.testing.assert_array_equal(read(tmp_path / f"whole-{side}.wav")[0], read(tmp_path / f"cut-{side}.wav")[0])
    assert (read(tmp_path / "whole-end.wav")[0] != read(tmp_path / "whole-start.wav")[0]).mean() > 0.5


SPLICES = [
    # rate, channels, as stored, written as
    (44100, 1, "PCM_16", ".wav"),
    (44100, 2, "PCM_24", ".wav"),
    (48000, 2, "PCM_24", ".flac"),
    (8000, 2, "PCM_16", ".flac"),
    (192000, 1, "FLOAT", ".wav"),
    (44100, 6, "PCM_16", ".wav"),
]


@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize(("rate", "channels", "subtype", "extension"), SPLICES)
def test_splice_keeps_the_tracks_bits(run, music, tmp_path, side, rate, channels, subtype, extension):
    """Up to the crossfade, in the track's own sample format; the length is exact, the level is not touched."""
    sf.write(tmp_path / "in.wav", tone(2.5, rate, channels), rate, subtype)
    out = tmp_path / f"out{extension}"
    said = run("continue", tmp_path / "in.wav", "-o", out, "--bundle", music("text", True), "--splice", "--from", side,
               *SHORT)  # fmt: skip
    seam, fade = round((2.5 if side == "end" else 1) * rate), round(0.02 * rate)
    assert sf.info(out).subtype == subtype
    (old, _), (new, found) = (sf.read(path, dtype="float64", always_2d=True) for path in (tmp_path / "in.wav", out))
    np.testing.assert_array_equal(new[: seam - fade], old[: seam - fade])
    assert (new[seam - fade : seam] != old[seam - fade : seam]).mean() > 0.5
    assert (len(new), new.shape[1], found) == (seam + rate, channels, rate)
    assert (said["seam"], said["duration"]) == (seam / rate, round((seam + rate) / rate, 3))


def test_no_silence_at_the_seam(run, music, tmp_path, monkeypatch):
    """A spliced prompt is whole frames: the codec fills the rest with silence, which would come after the track."""
    given, rate = [], 11025
    whole = cli.Codec.encode
    monkeypatch.setattr(cli.Codec, "encode", lambda s, wav: given.append(wav.shape[-1] / 640) or whole(s, wav))
    sf.write(tmp_path / "in.wav", tone(1.013, rate), rate, "PCM_16")
    for side, seam in (("end", round(1.013 * rate)), ("start", 50 * rate // 50)):
        said = run("continue", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--bundle", music("text", True),
                   "--splice", "--from", side, "--duration", "2", "--overwrite")  # fmt: skip
        assert given.pop() == 50
        assert read(tmp_path / "out.wav")[0].shape == (seam + rate, 1)
        assert said["seam"] == seam / rate


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_a_short_track_is_all_prompt(run, music, tmp_path, rate):
    """Shorter than --prompt-seconds. The seam is where the frame ends that its last sample is in."""
    sf.write(tmp_path / "in.wav", tone(0.513, rate), rate, "PCM_16")
    said = run("continue", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--bundle", music("text", True),
               "--duration", "2")  # fmt: skip
    assert said["seam"] == 0.52
    assert said["progress"][-1]["total"] == 100 - 26 + 3
    assert said["duration"] == 2


def test_seeds_and_takes(run, music, track, tmp_path):
    """A seed repeats; take 2 of seed 7 is take 1 of seed 8; their names are counted."""
    command = ("continue", track, "--bundle", music("text", True), "--text", "slow house", "--rate", "codec", *SHORT)
    said = run(*command, "-o", tmp_path / "out.wav", "--seed", "7", "--takes", "2")
    assert said["files"] == [str(tmp_path / f"out-{number}.wav") for number in (1, 2)]
    for name, seed in (("seven", 7), ("again", 7), ("eight", 8)):
        run(*command, "-o", tmp_path / f"{name}.wav", "--seed", seed)
    waves = {path.stem: read(path)[0].astype(int) for path in tmp_path.glob("*.wav")}
    np.testing.assert_array_equal(waves["seven"], waves["again"])
    for take, same, other in (("out-1", "seven", "eight"), ("out-2", "eight", "seven")):
        assert np.abs(waves[take] - waves[same]).max() <= 2  # of 32768: rows of a batch round differently
        assert np.abs(waves[take] - waves[other]).max() > 50


def test_stereo(run, music, track, tmp_path):
    """A stereo model keeps left and right, copies mono, and takes the first two of six."""
    for channels, options, found in ((1, (), 1), (2, ("--splice",), 2), (6, ("--rate", "codec"), 2)):
        sf.write(tmp_path / "in.wav", tone(1.5, 32000, channels), 32000)
        said = run("continue", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--bundle", music("stereo"), *SHORT,
                   "--overwrite", *options)  # fmt: skip
        assert said["channels"] == found == sf.info(tmp_path / "out.wav").channels


# generate, codec, info, plot


def test_generate(run, music, tmp_path):
    """With a text and without, and with another seed: other music."""
    command = ("generate", "--bundle", music("text", True), "--duration", "1", "--seed", "5", "-o")
    said = run(*command, tmp_path / "text.ogg", "--text", "slow house")
    run(*command, tmp_path / "other.flac", "--text", "slow house", "--seed", "6")
    assert (said["seed"], said["sample_rate"], said["duration"]) == (5, 32000, 1)
    assert "seam" not in said
    run(*command, tmp_path / "none.flac")
    run(*command, tmp_path / "text.flac", "--text", "slow house")
    none, text, other = (read(tmp_path / f"{name}.flac")[0] for name in ("none", "text", "other"))
    assert none.shape == text.shape == (32000, 1)
    assert min((none != text).mean(), (other != text).mean()) > 0.5
    assert run("generate", "--bundle", music("text", True), "--duration", "0.1", "-o", tmp_path / "x.wav")["seed"] >= 0


def test_codec(run, music, track, tmp_path, capsys):
    """Encoded and decoded as Codec does it, not cut at -1 dB; the figures are those of that sound."""
    bundle = music("text", True)
    said = run("codec", track, "-o", tmp_path / "out.wav", "--bundle", bundle)
    codec, (wav, rate) = cli.Codec.load(bundle), audio_files.read(track)
    sound = audio.convert_audio(wav, rate, 32000, 1)
    codes = codec.encode(sound[None])
    decoded = codec.decode(codes)[0, :, :80000]
    np.testing.assert_allclose(audio_files.read(tmp_path / "out.wav")[0], np.clip(decoded, -1, 1), atol=2**-15)
    assert (said["frames"], said["sample_rate"]) == (125, 32000)
    assert said["codes_used"] == [len(set(codes[0, k])) for k in range(4)]
    assert said["si_sdr_db"] == pytest.approx(audio.si_sdr(decoded, sound), abs=0.02)
    assert min(said["encode_real_time_factor"], said["decode_real_time_factor"]) > 0
    assert cli.main(["codec", str(track), "-o", str(tmp_path / "said.wav"), "--bundle", str(bundle)]) == 0
    assert (
        f"said.wav: 2.50 s, 32000 Hz, 125 frames of 4 codes\nSI-SDR {said['si_sdr_db']} dB" in capsys.readouterr().out
    )


def test_si_sdr():
    """20 dB for noise of a tenth, whatever the scale; high for the same wave."""
    wave, noise = np.random.default_rng(0).standard_normal((2, 100_000))
    assert audio.si_sdr(3 * (wave + noise / 10), wave) == pytest.approx(20, abs=0.1)
    assert audio.si_sdr(wave / 2, wave) > 100
    assert np.isfinite(audio.si_sdr(wave, np.zeros(100_000)))


def test_info(music, tmp_path, capsys):
    shutil.copytree(music("text", True), tmp_path / "bundle")
    (tmp_path / "bundle" / "lm_inference.onnx.data").unlink()
    assert cli.main(["info", str(tmp_path / "bundle")]) == 0
    lines = capsys.readouterr().out.splitlines()
    graphs = ["lm_condition", "lm_inference", *(f"compression_{x}" for x in ("encode", "decode", "stream"))]
    assert lines[0].endswith(f"bundle: {', '.join(graphs)}, text_encoder")
    assert lines[1].startswith("model     ")
    assert "layers 3, heads 4" in lines[1]
    sampling = "cfg_coef 3.0, top_k 250, top_p 0.0, temperature 1.0"
    assert lines[2] == f"defaults  {sampling}, duration 30.0, extend_stride 18.0"
    assert [line.split()[2] for line in lines if "MISSING" in line] == ["lm_inference.onnx.data"]
    assert cli.main(["info", str(tmp_path / "bundle"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "bundle" / "manifest.json").read_text())


def test_plot(track, tmp_path, capsys):
    """A picture of 1320 x 660; the seam is a line of its colour at its place."""
    import matplotlib.image

    assert cli.main(["plot", str(track)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/track.png\n"
    assert cli.main(["plot", str(track), "-o", str(tmp_path / "seam.png"), "--seam", "1.25"]) == 0
    plain, seam = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("track", "seam"))
    assert plain.shape == seam.shape == (660, 1320, 4)
    columns = np.flatnonzero((plain != seam).any(-1).sum(0) > 400)
    assert 1 <= len(columns) <= 4
    assert plain.std() > 0.1


def test_plots_of_any_length(tmp_path):
    """One sample, and minutes: no picture has more columns than COLUMNS."""
    from clean_lm import plot

    for samples in (1, 600, 3_000_000):
        wave = np.sin(np.arange(samples, dtype=np.float32))
        assert plot.spectrogram(wave).shape[1] <= plot.COLUMNS + 1
        low, high = plot.envelope(wave)
        assert len(low) == len(high) == min(samples, plot.COLUMNS)
        assert (low.min(), high.max()) == (wave.min(), wave.max())
    sf.write(tmp_path / "$x^.wav", np.zeros(1), 8000)
    assert cli.main(["plot", str(tmp_path / "$x^.wav")]) == 0


# What is refused


REFUSED = {
    "no input": (("none.wav",), "none.wav: not found"),
    "not audio": (("text.wav",), "text.wav: not readable as audio"),
    "extension": (("track.wav", "-o", "out.xyz"), "the extension is '.xyz', expected one of .wav, .flac, .ogg, .mp3"),
    "folder": (("track.wav", "-o", "none/out.wav"), "none: no such folder"),
    "a folder": (("track.wav", "-o", "folder.wav"), "folder.wav: a folder; choose another name"),
    "mp3": (("high.wav", "-o", "out.mp3"), "out.mp3: cannot hold 1 channels at 192000 Hz"),
    "no bundle": (("track.wav", "--bundle", "none"), "none/manifest.json: not found"),
    "no codec": (("track.wav", "--bundle", "lm"), "lm: contains no codec; export it with export/bundle.py"),
    "no text": (("track.wav", "--bundle", "mute", "--text", "x"), "--text: mute contains no text encoder"),
    "six channels": (("six.wav", "--bundle", "stereo"), "--rate: six.wav has 6 channels, the model 2: expected codec"),
    "prompt": (
        ("track.wav", "--duration", "2", "--prompt-seconds", "2"),
        "--duration: requested 2 s, but the prompt already has 2 s",
    ),
    "duration infinite": (
        ("track.wav", "--duration", "inf"),
        "--duration: got inf s, expected 0.02 s (a frame) or more",
    ),
    "duration nan": (("track.wav", "--duration", "nan"), "--duration: got nan"),
    "duration negative": (("track.wav", "--duration", "-1"), "--duration: got -1 s"),
    "prompt 0": (("track.wav", "--prompt-seconds", "0"), "--prompt-seconds: got 0.0, expected more than 0"),
    "prompt nan": (("track.wav", "--prompt-seconds", "nan"), "--prompt-seconds: got nan"),
    "takes": (("track.wav", "--takes", "0"), "--takes: got 0, expected 1 or more"),
    "seed": (("track.wav", "--seed", "-1"), "--seed: got -1, expected a number from 0 to 2^64 - 1"),
    "threads": (("track.wav", "--threads", "0"), "--threads: got 0, expected 1 or more"),
    "top k": (("track.wav", "--top-k", "-1"), "--top-k: got -1, expected a whole number from 0 (off) to 2^63 - 1"),
    "top p": (("track.wav", "--top-p", "nan"), "--top-p: got nan, expected 0 (off) to 1"),
    "temperature": (
        ("track.wav", "--temperature", "-0.5"),
        "--temperature: got -0.5, expected 0 (greedy) or at least 1e-06",
    ),
    "guidance": (("track.wav", "--cfg-coef", "inf"), "--cfg-coef: got inf, expected a finite number"),
    "negative text": (
        ("track.wav", "--bundle", "mute", "--negative-text", "x"),
        "--negative-text: mute contains no text",
    ),
    "negative text alone": (
        ("track.wav", "--negative-text", "x", "--cfg-coef", "1"),
        "--negative-text: counts for nothing with a cfg_coef of 1",
    ),
    "takes beyond memory": (
        ("track.wav", "--takes", "100000"),
        "--takes: got 100000, expected 1 or more, 1000 at most",
    ),
    "denormal": (
        ("track.wav", "--temperature", "1e-40"),
        "--temperature: got 1e-40, expected 0 (greedy) or at least 1e-06",
    ),
    "beyond float32": (
        ("track.wav", "--cfg-coef", "1e39"),
        "--cfg-coef: got 1e+39, expected a finite number, 1e+06 at most",
    ),
    "beyond int64": (("track.wav", "--top-k", str(2**63)), f"--top-k: got {2**63}, expected a whole number from 0"),
    "less than a frame": (
        ("track.wav", "--duration", "0.01"),
        "--duration: got 0.01 s, expected 0.02 s (a frame) or more",
    ),
    "more than a day": (
        ("track.wav", "--duration", "1e9"),
        "--duration: got 1e+09 s, expected 86400 s (a day) at most",
    ),
    "a prompt of a window": (
        ("long.wav", "--prompt-seconds", "35", "--duration", "60"),
        "--prompt-seconds: got 35, expected less than 30 s, the model's window, for a duration of 60 s",
    ),
    "fade": (("track.wav", *SHORT, "--fade-out", "1.5"), "--fade-out: got 1.5, expected 0 to 1 s, what is new"),
    "fade nan": (("track.wav", "--fade-out", "nan"), "--fade-out: got nan"),
    "channel": (("high.wav", "--channel", "left"), "--channel: got 'left', expected mix: the audio has 1 channel"),
    "nan": (("nan.wav", "--splice", "--takes", "4"), "nan.wav: 1 of 110250 samples are NaN or infinite"),
    "truncated": (("cut.wav",), "cut.wav: truncated: its header says 2.5 s, 1.2 s are there; copy it again"),
    "output is the input": (
        ("track.wav", "-o", "track.wav", "--overwrite"),
        "track.wav: is the input track.wav itself",
    ),
    "by a symbolic link": (("track.wav", "-o", "soft.wav", "--overwrite"), "soft.wav: is the input track.wav itself"),
    "by a hard link": (("track.wav", "-o", "hard.wav", "--overwrite"), "hard.wav: is the input track.wav itself"),
    "a take is the input": (
        ("take-2.wav", "-o", "take.wav", "--takes", "2", "--overwrite"),
        "take-2.wav: is the input",
    ),
    "an earlier output": (
        ("track.wav", "-o", "six.wav"),
        "six.wav: exists already; choose another name, or give --over",
    ),
    "an earlier take": (("track.wav", "-o", "take.wav", "--takes", "2"), "take-2.wav: exists already"),
    "splice": (
        ("track.wav", "--splice", "--rate", "codec"),
        "--rate: got codec, expected source: splice keeps the track as it is, its rate too",
    ),
}


def write_manifests(folder: Path, whole: Path) -> None:
    """Bundles that are manifests alone: whole, without a codec, without a text encoder, stereo."""
    tree = json.loads((whole / "manifest.json").read_text())
    mute = lambda graphs: {name: graph for name, graph in graphs.items() if name != "text_encoder"}  # noqa: E731
    variants = {name: {**one, "graphs": mute(one["graphs"])} for name, one in tree.get("variants", {}).items()}
    for name, change in {
        "bundle": {},
        "lm": {"graphs": {name: graph for name, graph in tree["graphs"].items() if "compression" not in name}},
        "mute": {"graphs": mute(tree["graphs"]), "variants": variants},
        "stereo": json.loads((GOLDEN / "conformance/bundles/stereo/manifest.json").read_text()),
    }.items():
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text(json.dumps({**tree, **change}))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_loaded(music, track, tmp_path, monkeypatch, capsys, name):
    """One line, status 1, nothing written."""
    monkeypatch.setattr(cli.MusicGen, "load", lambda *_, **__: pytest.fail("was loaded"))
    monkeypatch.chdir(tmp_path)
    write_manifests(tmp_path, music("text", True))
    Path("text.wav").write_text("not audio at all")
    Path("folder.wav").mkdir()
    sf.write("six.wav", tone(1.5, 8000, 6), 8000)
    sf.write("high.wav", tone(1.5, 192000), 192000)
    sf.write("take-2.wav", tone(1.5, 8000), 8000)
    sf.write("long.wav", tone(40, 8000), 8000)
    wave = tone(2.5, 44100)
    wave[10] = np.nan  # long before the prompt
    sf.write("nan.wav", wave, 44100, "FLOAT")
    content = track.read_bytes()
    Path("cut.wav").write_bytes(content[: len(content) // 2])
    Path("soft.wav").symlink_to("track.wav")
    Path("hard.wav").hardlink_to("track.wav")
    before = sorted(tmp_path.rglob("*"))
    arguments, message = REFUSED[name]
    assert cli.main(["continue", "--bundle", "bundle", "-o", "out.wav", *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--bundle", "bundle", "-o", "out.wav", "--duration", "0.001"), "--duration: got 0.001 s"),
        (("codec", "none.wav", "--bundle", "bundle", "-o", "out.wav"), "none.wav: not found"),
        (
            ("codec", "track.wav", "--bundle", "bundle", "-o", "track.wav", "--overwrite"),
            "is the input track.wav itself",
        ),
        (("plot", "track.wav", "-o", "track.wav", "--overwrite"), "is the input track.wav itself"),
        (("plot", "track.wav", "-o", "bundle/manifest.json"), "manifest.json: exists already"),
        (("codec", "track.wav", "--bundle", "bundle", "-o", "out.txt"), "the extension is '.txt'"),
        (("codec", "track.wav", "--bundle", "bundle", "-o", "out.wav"), "compression_encode.onnx: listed in"),
        (("codec", "track.wav", "--bundle", "bundle", "-o", "out.wav", "--threads", "-1"), "--threads: got -1"),
        (("info", "none"), "none/manifest.json: not found"),
        (("plot", "none.wav"), "none.wav: not found"),
        (("plot", "track.wav", "-o", "none/out.png"), "none"),
        (("plot", "track.wav", "-o", "out.xyz"), "xyz"),
        (("plot", "track.wav", "--seam", "9"), "seam: got 9.0 s, expected 0 .. 2.50, the length of track.wav"),
        (("plot", "track.wav", "--seam", "nan"), "seam: got nan s"),
    ],
)
def test_other_commands_refuse(music, track, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_manifests(tmp_path, music("text", True))
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(list(arguments)) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n"), said.err[:7]) == ("", 1, "error: ")
    assert message in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_plot_without_matplotlib(track, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "clean_lm.plot", None)
    assert cli.main(["plot", str(track)]) == 1
    assert capsys.readouterr().err == "error: plot needs matplotlib: pip install matplotlib\n"


def test_ctrl_c(music, track, tmp_path):
    """While it generates: status 130, no sound and no temporary file."""
    command = ["continue", track, "-o", tmp_path / "out.wav", "--bundle", music("text", True), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "clean_lm.cli", *map(str, command), "--duration", "30"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert json.loads(process.stdout.readline())["event"] == "progress"
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert "done" not in [json.loads(line)["event"] for line in out.splitlines()]
    assert (process.returncode, said) == (130, "interrupted: nothing more was written\n")
    assert list(tmp_path.iterdir()) == [track]
