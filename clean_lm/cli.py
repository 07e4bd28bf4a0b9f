"""clean-lm: continue music from the command line.

  clean-lm continue track.wav -o out.wav --bundle bundle
  clean-lm continue track.wav -o out.wav --bundle bundle --from end --splice --text "drum and bass" --takes 3
  clean-lm continue loop.wav -o out.wav --bundle bundle --bpm 174 --prompt-bars 4 --bars 16 --loop
  clean-lm edit track.wav -o out.wav --bundle bundle --from 12 --to 16
  clean-lm extend out.wav -o longer.wav --bundle bundle
  clean-lm generate -o out.wav --bundle bundle --text "slow house"
  clean-lm generate -o out.wav --bundle melody --text "slow house" --melody vocals.wav other.wav
  clean-lm codec track.wav -o decoded.wav --bundle bundle
  clean-lm info bundle
  clean-lm plot out.wav --seam 6
  clean-lm serve --models bundles
  clean-lm batch rows.jsonl -o out --bundle bundle

`clean-lm COMMAND --help` lists the options of a command.
"""

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clean_lm import __version__, audio, audio_files, console, loudness, take_codes
from clean_lm.audio import AudioError
from clean_lm.audio_codec import ENCODE_BYTES, Codec
from clean_lm.cli_checks import in_flags, require_free, validate_outputs, validate_threads
from clean_lm.cli_output import Bar, outputs, replaced, write_takes
from clean_lm.console import Parser
from clean_lm.device import AUTO, DEVICES, DeviceWarning
from clean_lm.joining import Outcome, finish, written_as
from clean_lm.manifest import BundleError, LoadOptions, Manifest
from clean_lm.musical_time import MOST_BARS
from clean_lm.musicgen import MusicGen
from clean_lm.options import integer
from clean_lm.placement import expected
from clean_lm.request import JOINS, RATES, SIDES, Request, validate
from clean_lm.request_options import OPTIONS
from clean_lm.source import QUIET_MIX_DB, Source, quiet_mix, read_source, result_format
from clean_lm.takes import draw_takes


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status: 0, 1 after an error, 130 after Ctrl-C, 143 after SIGTERM, 141 where nobody
    reads its output. argparse itself exits with 2."""

    def command() -> None:
        args = parser().parse_args(arguments)
        args.run(args)

    return console.run(command, (AudioError, BundleError, ValueError, OSError), "nothing more was written")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser("clean-lm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"clean_lm {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    add = commands.add_parser("continue", help="continue a track", formatter_class=Help)
    add.set_defaults(run=run_continue)
    add.add_argument("input", type=Path, help="WAV, FLAC, OGG or MP3")
    add_generation(add)
    add_prompt(add)
    add_bars(add, prompt=True)
    add.add_argument("--from", dest="side", choices=SIDES, default="end", help="which end of it")
    add.add_argument("--splice", action="store_true", help="join the new part to the untouched track, "
                     "in place of returning the prompt as the codec renders it")  # fmt: skip
    add.add_argument("--rate", choices=RATES, default="source", help="whose sample rate and channels")

    add = commands.add_parser("edit", help="make a part of a track anew", formatter_class=Help, description="Make a "
                              "part of a track anew. The model hears what comes before it, and nothing of what comes "
                              "after: the new part is crossfaded into that.")  # fmt: skip
    add.set_defaults(run=run_edit)
    add.add_argument("input", type=Path, help="WAV, FLAC, OGG or MP3")
    add_generation(add, length=False)
    add_prompt(add)
    add.add_argument("--from", dest="begin", type=float, metavar="SECONDS", help="where the new part begins")
    add.add_argument("--to", dest="stop", type=float, metavar="SECONDS", help="where it ends")
    add.add_argument("--from-bar", type=int, metavar="N", help="with --bpm, in place of --from: the first bar that is "
                     "made anew; the track's first one is 1")  # fmt: skip
    add.add_argument("--to-bar", type=int, metavar="N", help="in place of --to: the first bar that stays as it is")
    add_tempo(add)

    add = commands.add_parser("extend", help="continue a take of ours from its own codes", formatter_class=Help,
                              description="Continue a take that was written with --save-codes: from the codes beside "
                              "it, in place of encoding its sound once more.")  # fmt: skip
    add.set_defaults(run=run_extend)
    add.add_argument("input", type=Path, help="a take: out.wav, with out.codes.json beside it")
    add_generation(add)
    add_prompt(add)
    add_bars(add, prompt=True)

    add = commands.add_parser("generate", help="make music from a text", formatter_class=Help)
    add.set_defaults(run=run_generate)
    add_generation(add)
    add_bars(add, prompt=False)

    add = commands.add_parser("codec", help="encode and decode a track: what the codec alone does to it")
    add.set_defaults(run=run_codec)
    add.add_argument("input", type=Path)
    add_bundle(add)

    add = commands.add_parser("info", help="what a bundle holds")
    add.set_defaults(run=run_info)
    add.add_argument("bundle", type=Path)
    add_verify(add)
    add.add_argument("--json", action="store_true", help="the manifest itself")

    add = commands.add_parser("plot", help="waveform and spectrogram as a picture (needs matplotlib)")
    add.set_defaults(run=run_plot)
    add.add_argument("input", type=Path)
    add.add_argument("-o", "--output", type=Path, help="default: the input's name with .png")
    add.add_argument("--seam", type=float, help="seconds at which to draw a line: where the prompt ends")
    add_overwrite(add)

    add = commands.add_parser("serve", help="a local service for plugins, apps and browsers", formatter_class=Help)
    add.set_defaults(run=run_serve)
    add_serve(add)

    add = commands.add_parser("batch", help="a list of tracks or a folder of them, on one machine or many",
                              formatter_class=Help, description="Continue every track of a list or a folder, or make "
                              "music from every text. Rows give options under the names that follow, with _ for -; "
                              "those given here are for the rows that do not.")  # fmt: skip
    add.set_defaults(run=run_batch)
    add_batch(add)
    return top


def add_bundle(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", type=Path, required=True, help=".wav, .flac, .ogg or .mp3")
    command.add_argument("--bundle", type=Path, required=True, help="the folder that export/bundle.py wrote")
    add_overwrite(command)
    command.add_argument("--threads", type=int, help="default: one per physical core")
    add_device(command)
    add_verify(command)
    command.add_argument("--json", action="store_true", help="progress and result as lines of JSON")


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=(AUTO, *DEVICES), help="where it runs, with the variant that suits it "
                         "(auto: the first that starts, else the CPU); default: the CPU, with the bundle's "
                         "variant")  # fmt: skip


def add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--models", type=Path, required=True, metavar="FOLDER", help="a folder of bundles, or a bundle"
    )
    command.add_argument("--host", default="127.0.0.1", help="another one than this machine's own needs --token")
    command.add_argument("--port", type=int, default=8000, help="0: a free one, which the log names")
    command.add_argument("--variant", help="int8, mixed, ...: of the bundles that have it; default: each bundle's")
    command.add_argument("--threads", type=int, help="of a generation; default: one per physical core")
    add_device(command)
    command.add_argument("--preload", nargs="+", default=[], metavar="NAME", help="models to load at once, in place of "
                         "at their first use")  # fmt: skip
    command.add_argument("--resident-memory", type=float, metavar="GB", help="of weights that stay loaded: the least "
                         "recently used go first; default: half of what is available")  # fmt: skip
    command.add_argument("--token", help="a secret that every request must send: Authorization: Bearer TOKEN; needed "
                         "with another --host")  # fmt: skip
    command.add_argument("--allow-origin", nargs="+", default=[], metavar="URL", help="web pages of other origins that "
                         "may use the service: http://localhost:3000, app://name")  # fmt: skip
    command.add_argument("--allow-host", nargs="+", default=[], metavar="NAME", help="names beside localhost that the "
                         "service is reached by")  # fmt: skip
    command.add_argument("--parallel", type=int, default=1, help="generations at the same time")
    command.add_argument("--queue", type=int, default=32, help="jobs that may wait; more are answered with 429")
    command.add_argument("--body-mb", type=float, default=100.0, help="of a request")
    command.add_argument("--max-audio", type=float, default=900.0, help="seconds of a track that is sent")
    command.add_argument("--max-duration", type=float, default=300.0, help="seconds of a generation")
    command.add_argument("--max-takes", type=int, default=8)
    command.add_argument("--data", type=Path, metavar="FOLDER", help="where jobs and results are kept; default: the "
                         "user's data folder")  # fmt: skip
    command.add_argument("--keep-days", type=float, default=7.0, help="that a finished job is kept")
    command.add_argument("--keep-gb", type=float, default=5.0, help="of finished jobs in all; the oldest go first")
    command.add_argument("--plugin-append", action="store_true", help="give the gary4juce plugin what it had before: "
                         "the track without the prompt, then prompt and new part as the codec renders them; default: "
                         "the new part joined to the untouched track")  # fmt: skip


def add_overwrite(command: argparse.ArgumentParser) -> None:
    command.add_argument("--overwrite", action="store_true", help="replace an output that is there already")


def add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("--verify", action="store_true", help="read every file of the bundle that is opened through "
                         "and compare its SHA-256, even if that was done before and the file has not changed since; "
                         "info: of all files")  # fmt: skip


def add_batch(command: argparse.ArgumentParser) -> None:
    command.add_argument("rows", help=".jsonl, .csv or .parquet, or a folder of audio; a path, or an address that "
                         "fsspec opens (s3://...)")  # fmt: skip
    command.add_argument("-o", "--output", required=True, help="a folder, or an address: the audio and "
                         "results.parquet")  # fmt: skip
    command.add_argument("--bundle", help="of the rows that name none")
    command.add_argument("--variant", help="int8, mixed, ...; default: the bundle's")
    command.add_argument("--format", choices=[suffix[1:] for suffix in audio_files.FORMATS], default="wav")
    command.add_argument("--resume", action="store_true", help="go on with the job in the output folder: rows that "
                         "are done and unchanged are left as they are")  # fmt: skip
    command.add_argument("--max-failures", type=int, metavar="N", help="end the job when more rows fail")
    command.add_argument("--actors", type=int, help="processes that draw, each with the model in its memory; default: "
                         "as many as CPUs and memory allow")  # fmt: skip
    command.add_argument("--threads", type=int, help="of each actor; default: 1")
    command.add_argument("--together", type=int, default=8, metavar="TAKES", help="that an actor draws in one batch, "
                         "at most, where each comes out as it would alone")  # fmt: skip
    command.add_argument("--gpus", type=float, default=0.0, help="of each actor; 0.25: four actors share one")
    add_device(command)
    command.add_argument("--address", help="of a Ray cluster (auto, host:6379); default: this machine alone")
    command.add_argument("--json", action="store_true", help="progress and result as lines of JSON")
    command.add_argument("--seed", dest="job_seed", type=int, default=0, help="rows without a seed get one from this "
                         "number and their id")  # fmt: skip
    words = {"boolean": {"action": "store_true", "default": None}, "integer": {"type": int}, "number": {"type": float}}
    given = [(name, option) for name, option in OPTIONS.items() if name not in ("seed", "side", "join", "match_level")]
    for name, option in given:
        kind = words.get(option.kind, {"choices": option.choices or None})
        command.add_argument(f"--{name.replace('_', '-')}", help=option.words, **kind)
    command.add_argument("--from", dest="side", choices=SIDES, help=OPTIONS["side"].words)
    command.add_argument("--join", choices=JOINS, help=OPTIONS["join"].words)
    command.add_argument("--splice", dest="join", action="store_const", const="splice", help="--join splice")
    command.add_argument("--no-match-level", dest="match_level", action="store_false", default=None)


def add_prompt(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompt-seconds", type=float, default=6.0, help="seconds of the track to continue from")
    command.add_argument("--no-match-level", action="store_true", help="with --splice, leave the new part's level as "
                         "the model gives it, in place of the track's at the seam")  # fmt: skip
    command.add_argument("--channel", choices=audio.CHANNELS, default="mix", help="what a mono model is given of a "
                         "track with several channels")  # fmt: skip
    command.add_argument("--retry-silent", type=int, default=0, metavar="N", help="draw a take again, up to N times "
                         "with the next seeds, whose first beat is near-silent although the prompt is not")  # fmt: skip


def add_bars(command: argparse.ArgumentParser, prompt: bool) -> None:
    add_tempo(command)
    if prompt:
        command.add_argument("--prompt-bars", type=int, help="whole bars to continue from, up to the track's last bar "
                             "line (--from start: from its first); default: as many as fit into "
                             "--prompt-seconds, and as the track has")  # fmt: skip
    command.add_argument("--bars", type=int, help="of the result, the prompt's among them, in place of --duration; "
                         "default: as many as fit into it")  # fmt: skip
    command.add_argument("--loop", action="store_true", help="let the end meet the beginning, so that the result can "
                         "be repeated without a click")  # fmt: skip
    command.add_argument("--until-silence", action="store_true", help="end where the music has been quiet for a bar "
                         "(without --bpm: for 2 s), if that comes before the end")  # fmt: skip


def add_tempo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--bpm", type=tempo, help="beats a minute of the track; lengths are then "
                         "whole bars")  # fmt: skip
    command.add_argument("--beats-per-bar", type=int, default=4)
    command.add_argument("--offset", type=float, default=0.0, metavar="SECONDS", help="from the beginning of the track "
                         "to its first bar line")  # fmt: skip


def tempo(text: str) -> float:
    """An argument of --bpm."""
    if text == "auto":  # librosa 0.11 said 121 for a loop at 90, and 83 for one at 167: no grid to cut bars by
        raise argparse.ArgumentTypeError("got auto: no tempo is guessed, as bars are cut to the sample; give the "
                                         "number that your DAW or the loop's name has")  # fmt: skip
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected beats a minute") from None


def add_generation(command: argparse.ArgumentParser, length: bool = True) -> None:
    add_bundle(command)
    command.add_argument("--variant", help="int4, fp32, ...: one that clean-lm info lists; default: the bundle's")
    command.add_argument("--text", help="a description")
    command.add_argument("--negative-text", help="a description to lead away from")
    command.add_argument("--melody", nargs="+", type=Path, metavar="FILE", help="melody models: what to follow; "
                         "several files are stems, which are added up")  # fmt: skip
    command.add_argument("--style", type=Path, metavar="FILE", help="style models: audio whose style to take")
    command.add_argument("--style-start", type=float, help="second at which the excerpt of --style begins; drawn by "
                         "the seed if not given")  # fmt: skip
    command.add_argument("--style-length", type=float, default=3.0, help="seconds of the excerpt")
    command.add_argument("--style-levels", type=int, default=3, help="how closely to follow it (audiocraft's eval_q)")
    if length:
        command.add_argument("--duration", type=float, help="seconds in all, the prompt included, however many; "
                             "default: the bundle's, 30 or with AudioGen 10")  # fmt: skip
    command.add_argument("--extend-stride", type=float, help="seconds from one window to the next, where the duration "
                         "is longer than one; default: the bundle's, 18 or with AudioGen 2")  # fmt: skip
    command.add_argument("--takes", type=int, default=1, help="more than one: out-1.wav, out-2.wav, ...")
    command.add_argument("--seed", type=int, help="take n is drawn with seed + n - 1; default: a new one")
    command.add_argument("--top-k", type=int, default=250, help="0: off")
    command.add_argument("--top-p", type=float, default=0.0, help="0: off; if given, --top-k is ignored")
    command.add_argument("--temperature", type=float, default=1.0, help="0: greedy")
    command.add_argument("--cfg-coef", type=float, default=3.0, help="guidance: how much the text counts")
    command.add_argument("--cfg-coef-beta", type=float, help="double guidance: how much more the text counts than a "
                         "melody or style; audiocraft suggests 5")  # fmt: skip
    command.add_argument("--spread", action="store_true", help="takes of different temperatures: 0.8 times "
                         "--temperature for the first, 1.25 times for the last")  # fmt: skip
    command.add_argument("--rank", action="store_true", help="number the takes by how well they go on: how probable "
                         "the model finds them, and how their onsets agree with the prompt's")  # fmt: skip
    command.add_argument("--save-codes", action="store_true", help="write each take's codes beside it, out.codes.json, "
                         "for clean-lm extend")  # fmt: skip
    if length:
        command.add_argument("--fade-in", type=float, default=0.0, metavar="SECONDS", help="bring the beginning up")
        command.add_argument("--fade-out", type=float, default=0.0, metavar="SECONDS", help="bring the end down to "
                             "silence")  # fmt: skip
    command.add_argument("--strategy", choices=tuple(loudness.HEADROOM_DB), help="level, as in audiocraft's "
                         "audio_write; default: clip, with --splice the track's own")  # fmt: skip


def run_continue(args: argparse.Namespace) -> None:
    args.join = "splice" if args.splice else "rendered"
    run_request(args, request_of(args, input=args.input, match_level=not args.no_match_level))


def run_edit(args: argparse.Namespace) -> None:
    given = {"input": args.input, "match_level": not args.no_match_level, "join": "splice", "duration": 1.0}
    request = request_of(args, **given)
    run_request(args, replace(request, region=region(args, request)))


def region(args: argparse.Namespace, request: Request) -> tuple[float, float]:
    """Seconds of the part that is made anew. Raises ValueError."""
    found = []
    for seconds, bar, name in ((args.begin, args.from_bar, "from"), (args.stop, args.to_bar, "to")):
        if (seconds is None) == (bar is None):
            raise ValueError(f"--{name}: give it, or --{name}-bar: one of them")
        if bar is None:
            found.append(seconds)
            continue
        if (time := request.time) is None:
            raise ValueError(f"--{name}-bar: needs the track's tempo: give --bpm")
        with in_flags():
            time.validate()
        integer(f"--{name}-bar", bar, 1, MOST_BARS)
        found.append(time.offset + (bar - 1) * time.bar)
    return found[0], found[1]


def run_extend(args: argparse.Namespace) -> None:
    args.join, args.codes = "splice", take_codes.beside(args.input)
    run_request(args, request_of(args, input=args.input, match_level=not args.no_match_level))


def run_generate(args: argparse.Namespace) -> None:
    run_request(args, request_of(args))


def request_of(args: argparse.Namespace, **given: Any) -> Request:
    """The request that the options make."""
    same = {field.name: getattr(args, field.name) for field in fields(Request) if hasattr(args, field.name)}
    return Request(**{**same, "melody": tuple(args.melody or ()), **given})


def run_request(args: argparse.Namespace, request: Request) -> None:
    """Check, generate, write."""
    validate_threads(args)
    manifest = expected(Manifest.read(args.bundle, variant=args.variant, device=args.device))
    with in_flags():
        request = validate(request, manifest)
    validate_outputs(args)
    with in_flags():
        source = read_source(request, manifest)
        rate, channels = result_format(request, manifest, source)
    for file in outputs(args):
        audio_files.require_writable(file, rate, channels)
    quiet = warn_of_quiet_mix(args, source)
    with said_warnings():
        model = load(args)
        outcome, facts = generate(args, model, request, source)
    summary = facts | outcome.facts | quiet | placed(args, model)
    strategy, subtype = written_as(request.join, request.input, args.output)
    write_takes(args, outcome, summary, strategy, subtype)


def warn_of_quiet_mix(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """Warn where a prompt's channels cancel each other in the mono mix that the model is given; for the summary."""
    if source.mix_loss_db <= QUIET_MIX_DB:
        return {}
    message = quiet_mix(str(args.input), source.mix_loss_db) + "; try --channel left"
    console.say(f"warning: {console.plain(message)}")
    return {"mix_loss_db": round(source.mix_loss_db, 1), "warnings": [message]}


def load(args: argparse.Namespace) -> MusicGen:
    """The model; where a device was asked for, it is said which one it got."""
    how: LoadOptions = {"variant": args.variant, "threads": args.threads, "device": args.device, "hashes": hashes(args)}
    model = MusicGen.load(args.bundle, **how)
    for words in model.passed:
        console.say(f"passed over: {console.plain(words)}")
    if args.device is not None:
        console.say(f"device: {console.plain(model.device)}")
    return model


def placed(args: argparse.Namespace, model: MusicGen) -> dict[str, Any]:
    """For a summary: the device, where one was asked for."""
    return {} if args.device is None else {"device": model.device, "passed_over": list(model.passed)}


@contextmanager
def said_warnings() -> Iterator[None]:
    """Print warnings of work that does not run on the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DeviceWarning)
        warnings.showwarning = lambda message, *_: console.say(f"warning: {console.plain(str(message))}")
        yield


def hashes(args: argparse.Namespace) -> bool | Literal["again"]:
    """How files are compared, see LoadOptions."""
    return "again" if args.verify else True


def generate(
    args: argparse.Namespace, model: MusicGen, request: Request, source: Source
) -> tuple[Outcome, dict[str, Any]]:
    """The takes, and what was measured."""
    start = time.perf_counter()
    with Bar(args, model) as bar:
        drawn = draw_takes(model, request, source, lambda _, done, total: bar(done, total))
    outcome = finish(model, request, source, drawn)
    seconds = time.perf_counter() - start
    factor = round(drawn.frames / model.frame_rate / seconds, 3)
    return outcome, {
        "seed": request.seed,
        "seconds": round(seconds, 3),
        "sample_rate": outcome.rate,
        "real_time_factor": factor,
    }


def run_codec(args: argparse.Namespace) -> None:
    validate_threads(args)
    validate_outputs(args)
    wav, rate = audio_files.read(args.input)
    info = Manifest.read(args.bundle).codec
    audio_files.require_writable(args.output, info.sample_rate, info.channels)
    samples = math.ceil(wav.shape[1] / rate * info.sample_rate) * info.channels
    audio.require_memory(str(args.input), samples, ENCODE_BYTES, "cut it into parts")
    with said_warnings():
        codec = Codec.load(args.bundle, threads=args.threads, device=args.device, hashes=hashes(args))
    converted = audio.convert_audio(wav, rate, codec.sample_rate, codec.channels)
    start = time.perf_counter()
    codes = codec.encode(converted[None])
    middle = time.perf_counter()
    decoded = codec.decode(codes)[0, :, : converted.shape[1]]
    end = time.perf_counter()
    seconds = converted.shape[1] / codec.sample_rate
    summary = {
        "si_sdr_db": round(audio.si_sdr(decoded, converted), 2),
        "frames": codes.shape[2],
        "codes_used": [len(np.unique(codes[0, k])) for k in range(codes.shape[1])],
        "encode_real_time_factor": round(seconds / (middle - start), 2),
        "decode_real_time_factor": round(seconds / (end - middle), 2),
        "sample_rate": codec.sample_rate,
    }
    summary |= replaced([args.output])
    audio_files.write(args.output, decoded, codec.sample_rate)
    if args.json:
        print(json.dumps({"event": "done", "files": [str(args.output)], **summary}))
        return
    again = " (replaced)" if "replaced" in summary else ""
    frames = f"{codes.shape[2]} frames of {codes.shape[1]} codes"
    print(f"{console.plain(args.output)}{again}: {seconds:.2f} s, {codec.sample_rate} Hz, {frames}")
    print(f"SI-SDR {summary['si_sdr_db']} dB; different codes used: {' '.join(map(str, summary['codes_used']))}")
    encode, decode = summary["encode_real_time_factor"], summary["decode_real_time_factor"]
    print(f"encoded at {encode} x real time, decoded at {decode} x")


def run_info(args: argparse.Namespace) -> None:
    manifest = Manifest.read(args.bundle, hashes=hashes(args))
    if args.verify:
        manifest.check_files(list(manifest.files))
    if args.json:
        print(json.dumps(manifest.document, indent=1))
        return
    for line in info_lines(args.bundle, manifest):
        print(console.plain(line))


def info_lines(bundle: Path, manifest: Manifest) -> Iterator[str]:
    """What a bundle holds, in words."""
    yield f"{bundle}: {', '.join(manifest.graphs)}"
    for title in ("model", "defaults"):
        fields = manifest.document.get(title, {})
        yield f"{title:10}" + ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None)
    for name, variant in manifest.variants.items():
        cost = variant.quality
        words = f"  KL {cost.kl:.1e} nats from fp32, top-1 {cost.top1:.1%} ({cost.source})" if cost else ""
        words += "  default" if name == manifest.default_variant else ""
        yield f"{variant.bytes / 1e6:12.2f} MB  variant {name:8}{words}"
    for name, entry in manifest.files.items():
        there = "" if (manifest.folder / name).exists() else "   MISSING"
        yield f"{entry.bytes / 1e6:12.2f} MB  {name}{there}"


def run_batch(args: argparse.Namespace) -> None:
    try:
        from clean_lm.batch import command
    except ImportError as error:
        raise ValueError(f"batch needs the extra: pip install 'clean_lm[batch]' ({error})") from None
    command.batch(args)


def run_serve(args: argparse.Namespace) -> None:
    try:
        from clean_lm.service import command
    except ImportError as error:
        raise ValueError(f"serve needs the extra: pip install 'clean_lm[serve]' ({error})") from None
    command.run(args)


def run_plot(args: argparse.Namespace) -> None:
    try:
        from clean_lm.plot import plot
    except ImportError:
        raise ValueError("plot needs matplotlib: pip install matplotlib") from None
    output = args.output or args.input.with_suffix(".png")
    require_free(output, [args.input], args.overwrite)
    audio_files.require_replaceable(output)
    again = " (replaced)" if output.exists() else ""
    plot(args.input, output, args.seam)
    print(f"{console.plain(output)}{again}")


if __name__ == "__main__":
    sys.exit(main())
