"""clean-lm: continue music from the command line.

  clean-lm continue track.wav -o out.wav --bundle bundle
  clean-lm continue track.wav -o out.wav --bundle bundle --from end --splice --text "drum and bass" --takes 3
  clean-lm generate -o out.wav --bundle bundle --text "slow house"
  clean-lm generate -o out.wav --bundle melody --text "slow house" --melody vocals.wav other.wav
  clean-lm codec track.wav -o decoded.wav --bundle bundle
  clean-lm info bundle
  clean-lm plot out.wav --seam 6

`clean-lm COMMAND --help` lists the options of a command.
"""

import argparse
import json
import math
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clean_lm import __version__, audio, audio_files, loudness
from clean_lm.audio import AudioError
from clean_lm.audio_codec import Codec
from clean_lm.generation import Sampling
from clean_lm.manifest import BundleError, LanguageModelInfo, Manifest
from clean_lm.musicgen import MusicGen
from clean_lm.windows import plan

CROSSFADE = 0.02  # seconds: short enough not to smear a beat, long enough not to click


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status: 0, 1 after an error, 130 after Ctrl-C. argparse itself exits with 2."""
    args = parser().parse_args(arguments)
    try:
        args.run(args)
    except (AudioError, BundleError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing more was written", file=sys.stderr)
        return 130
    return 0


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser("clean-lm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"clean_lm {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    add = commands.add_parser("continue", help="continue a track", formatter_class=Help)
    add.set_defaults(run=run_continue)
    add.add_argument("input", type=Path, help="WAV, FLAC, OGG or MP3")
    add_generation(add)
    add.add_argument("--prompt-seconds", type=float, default=6.0, help="seconds of the track to continue from")
    add.add_argument("--from", dest="side", choices=("end", "start"), default="end", help="which end of it")
    add.add_argument("--splice", action="store_true", help="join the new part to the untouched track, "
                     "in place of returning the prompt as the codec renders it")  # fmt: skip
    add.add_argument("--rate", choices=("source", "codec"), default="source", help="whose sample rate and channels")

    add = commands.add_parser("generate", help="make music from a text", formatter_class=Help)
    add.set_defaults(run=run_generate)
    add_generation(add)

    add = commands.add_parser("codec", help="encode and decode a track: what the codec alone does to it")
    add.set_defaults(run=run_codec)
    add.add_argument("input", type=Path)
    add_bundle(add)

    add = commands.add_parser("info", help="what a bundle holds")
    add.set_defaults(run=run_info)
    add.add_argument("bundle", type=Path)
    add.add_argument("--json", action="store_true", help="the manifest itself")

    add = commands.add_parser("plot", help="waveform and spectrogram as a picture (needs matplotlib)")
    add.set_defaults(run=run_plot)
    add.add_argument("input", type=Path)
    add.add_argument("-o", "--output", type=Path, help="default: the input's name with .png")
    add.add_argument("--seam", type=float, help="seconds at which to draw a line: where the prompt ends")
    return top


def add_bundle(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", type=Path, required=True, help=".wav, .flac, .ogg or .mp3")
    command.add_argument("--bundle", type=Path, required=True, help="the folder that export/bundle.py wrote")
    command.add_argument("--threads", type=int, help="default: one per physical core")
    command.add_argument("--json", action="store_true", help="progress and result as lines of JSON")


def add_generation(command: argparse.ArgumentParser) -> None:
    add_bundle(command)
    command.add_argument("--variant", help="int4, fp32, ...: one that clean-lm info lists; default: the bundle's")
    command.add_argument("--text", help="a description")
    command.add_argument("--melody", nargs="+", type=Path, metavar="FILE", help="melody models: what to follow; "
                         "several files are stems, which are added up")  # fmt: skip
    command.add_argument("--style", type=Path, metavar="FILE", help="style models: audio whose style to take")
    command.add_argument("--style-start", type=float, help="second at which the excerpt of --style begins; drawn by "
                         "the seed if not given")  # fmt: skip
    command.add_argument("--style-length", type=float, default=3.0, help="seconds of the excerpt")
    command.add_argument("--style-levels", type=int, default=3, help="how closely to follow it (audiocraft's eval_q)")
    command.add_argument("--duration", type=float, help="seconds in all, the prompt included, however many; default: "
                         "the bundle's, 30 or with AudioGen 10")  # fmt: skip
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
    command.add_argument("--strategy", choices=tuple(loudness.HEADROOM_DB), help="level, as in audiocraft's "
                         "audio_write; default: clip, with --splice the track's own")  # fmt: skip


def run_continue(args: argparse.Namespace) -> None:
    if not 0 < args.prompt_seconds < math.inf:
        raise ValueError(f"--prompt-seconds: got {args.prompt_seconds}, expected more than 0")
    if args.splice and args.rate == "codec":
        raise ValueError("--splice keeps the track as it is, its rate too: leave --rate codec out")
    at_end = args.side == "end"
    prompt, rate = audio_files.read(args.input, seconds=args.prompt_seconds, from_end=at_end)
    manifest = validate(args, prompt.shape[1] / rate, rate, len(prompt))
    codec = manifest.codec
    if args.splice:
        prompt = audio.whole_frames(prompt, rate, codec.sample_rate, codec.hop, at_end)
    converted = audio.convert_audio(prompt, rate, codec.sample_rate, codec.channels)
    takes, summary = generate(args, load(args), converted)
    if args.rate == "codec":
        return write_takes(args, takes, summary)
    takes = [audio.to_source(take, summary["sample_rate"], rate, len(prompt)) for take in takes]
    summary["sample_rate"] = rate
    if not args.splice:
        return write_takes(args, takes, summary)
    track = audio_files.read(args.input)[0] if at_end else prompt
    seam, fade = track.shape[1], round(CROSSFADE * rate)
    takes = [audio.splice(track, take, seam, fade, lead_samples=prompt.shape[1]) for take in takes]
    summary["seam"] = seam / rate
    subtype = audio_files.lossless_subtype(args.input, args.output)
    return write_takes(args, takes, summary, strategy=None, subtype=subtype)


def run_generate(args: argparse.Namespace) -> None:
    validate(args)
    write_takes(args, *generate(args, load(args)))


def validate(args: argparse.Namespace, prompt: float = 0.0, rate: int = 0, channels: int = 0) -> Manifest:
    """Raise, before anything is loaded, if the command cannot end well. Returns the bundle's manifest.

    prompt: its seconds; rate, channels: the track's, 0 if there is none.
    """
    if args.takes < 1:
        raise ValueError(f"--takes: got {args.takes}, expected 1 or more")
    if args.seed is not None and not 0 <= args.seed <= 2**64 - args.takes:
        raise ValueError(f"--seed: got {args.seed}, expected a number from 0 to 2^64 - {args.takes}")
    validate_threads(args)
    sampling(args).validate()
    manifest = Manifest.read(args.bundle, variant=args.variant)
    model, codec = manifest.language_model, manifest.codec
    validate_conditions(args, manifest, model)
    for name in ("duration", "extend_stride"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(manifest.defaults, name))
    if not 1 / codec.frame_rate <= args.duration < math.inf:
        raise ValueError(f"--duration: got {args.duration:g} s, expected {1 / codec.frame_rate:g} s (a frame) or more")
    known = math.ceil(prompt * codec.frame_rate)
    plan(args.duration, model.max_duration, args.extend_stride, codec.frame_rate, known)
    if not channels or args.rate == "codec":
        rate, channels = model.sample_rate, model.channels
    if 1 < model.channels < channels:
        raise AudioError(f"{args.input}: has {channels} channels, the model {model.channels}: give --rate codec")
    audio_files.require_writable(args.output, rate, channels)
    return manifest


def validate_conditions(args: argparse.Namespace, manifest: Manifest, model: LanguageModelInfo) -> None:
    """Raise BundleError if the bundle does not take the text, melody or style that is given."""
    if args.text and "text_encoder" not in manifest.graphs:
        raise BundleError(f"{args.bundle}: contains no text encoder for --text; export it again with --text")
    for kind in ("melody", "style"):
        if getattr(args, kind) and model.self_wav != kind:
            found = f"a {model.self_wav} model" if model.self_wav else "a model of texts alone"
            raise BundleError(f"{args.bundle}: takes no --{kind}: it is {found}")
    if args.style and "style_features" not in manifest.graphs:
        raise BundleError(f"{args.bundle}: contains no MERT for --style; export it again with --mert")
    if args.cfg_coef_beta is not None and not model.self_wav:
        raise BundleError(f"{args.bundle}: --cfg-coef-beta is for melody and style models")


def sampling(args: argparse.Namespace) -> Sampling:
    return Sampling(True, args.temperature, args.top_k, args.top_p, args.cfg_coef, args.cfg_coef_beta)


def load(args: argparse.Namespace) -> MusicGen:
    """The model, with the command line's parameters."""
    model = MusicGen.load(args.bundle, variant=args.variant, threads=args.threads)
    model.sampling, model.duration, model.extend_stride = sampling(args), args.duration, args.extend_stride
    if args.style:
        model.set_style_conditioner_params(args.style_levels, args.style_length, args.style_start)
    return model


def reference_audio(args: argparse.Namespace, model: MusicGen) -> np.ndarray | None:
    """The melody or style [channels, samples] at the model's rate, stems added up; None if none is given."""
    files = args.melody or ([args.style] if args.style else [])
    stems = [audio.convert_audio(*audio_files.read(file), model.sample_rate, model.audio_channels) for file in files]
    if not stems:
        return None
    mix = np.zeros((model.audio_channels, max(stem.shape[1] for stem in stems)), np.float32)
    for stem in stems:
        mix[:, : stem.shape[1]] += stem
    return mix


def validate_threads(args: argparse.Namespace) -> None:
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads: got {args.threads}, expected 1 or more")


def generate(
    args: argparse.Namespace, model: MusicGen, prompt: np.ndarray | None = None
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The takes, each [channels, samples] at the codec's rate as the prompt, and a summary of them."""
    seed = secrets.randbits(32) if args.seed is None else args.seed
    rate, wav = model.sample_rate, reference_audio(args, model)
    texts, wavs, common = [args.text], None if wav is None else [wav], {"seed": seed, "takes": args.takes}
    start = time.perf_counter()
    with Bar(args, model) as bar:
        model.set_custom_progress_callback(bar)
        if prompt is not None:
            melodies = {"melody_wavs": wavs, "melody_sample_rate": rate}
            found = model.generate_continuation(prompt, rate, texts, **common, **melodies)
        elif wavs is not None:
            found = model.generate_with_chroma(texts, wavs, rate, **common)
        else:
            found = model.generate(texts, **common)
    assert isinstance(found, np.ndarray)
    seconds = time.perf_counter() - start
    frames = 0 if prompt is None else math.ceil(prompt.shape[1] / model.codec.hop)  # what is new begins after them
    new = found.shape[2] / model.sample_rate - frames / model.frame_rate
    summary: dict[str, Any] = {"seed": seed, "seconds": round(seconds, 3), "sample_rate": model.sample_rate}
    summary["real_time_factor"] = round(new * args.takes / seconds, 3)
    if prompt is not None:
        summary["seam"] = frames / model.frame_rate
    return list(found), summary


class Bar:
    """Progress on a terminal, or as lines of JSON."""

    def __init__(self, args: argparse.Namespace, model: MusicGen):
        self.json, self.takes, self.frame_rate = args.json, args.takes, model.frame_rate
        layout = "{l_bar}{bar}| {elapsed} < {remaining}{postfix}"
        self.bar = tqdm(desc="generating", bar_format=layout, disable=True if self.json else None)
        self.start, self.percent = time.perf_counter(), -1

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` columns: a frame of every take each."""
        factor = done * self.takes / self.frame_rate / (time.perf_counter() - self.start)
        if self.json and done * 100 // total > self.percent:
            self.percent = done * 100 // total
            event = {"event": "progress", "done": done, "total": total, "real_time_factor": round(factor, 3)}
            print(json.dumps(event), flush=True)
        self.bar.total = total
        self.bar.set_postfix_str(f"{factor:.2f} x real time", refresh=False)
        self.bar.update(done - self.bar.n)


def write_takes(
    args: argparse.Namespace,
    takes: list[np.ndarray],
    summary: dict[str, Any],
    strategy: str | None = "clip",
    subtype: str | None = None,
) -> None:
    """Write the takes and print what was done. strategy, subtype: audio_files.write's, unless --strategy is given."""
    rate, files, clipped = summary["sample_rate"], [], 0
    for number, take in enumerate(takes, start=1):
        stem = args.output.stem if len(takes) == 1 else f"{args.output.stem}-{number}"
        files.append(args.output.with_name(stem + args.output.suffix))
        clipped += audio_files.write(files[-1], take, rate, strategy=args.strategy or strategy, subtype=subtype)
    summary |= {"channels": len(takes[0]), "duration": round(takes[0].shape[1] / rate, 3)}
    if args.json:
        print(json.dumps({"event": "done", "files": [str(file) for file in files], "clipped": clipped, **summary}))
        return
    for file in files:
        print(f"{file}: {summary['duration']} s, {rate} Hz, {summary['channels']} channels")
    seam = f", new from {summary['seam']:.2f} s on" if "seam" in summary else ""
    print(f"seed {summary['seed']}{seam}; {summary['seconds']:.1f} s, {summary['real_time_factor']:.2f} x real time")
    if clipped:
        print(f"{clipped} samples were clipped; --strategy peak keeps them")


def run_codec(args: argparse.Namespace) -> None:
    validate_threads(args)
    wav, rate = audio_files.read(args.input)
    info = Manifest.read(args.bundle).codec
    audio_files.require_writable(args.output, info.sample_rate, info.channels)
    codec = Codec.load(args.bundle, threads=args.threads)
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
    audio_files.write(args.output, decoded, codec.sample_rate)
    if args.json:
        print(json.dumps({"event": "done", "files": [str(args.output)], **summary}))
        return
    print(f"{args.output}: {seconds:.2f} s, {codec.sample_rate} Hz, {codes.shape[2]} frames of {codes.shape[1]} codes")
    print(f"SI-SDR {summary['si_sdr_db']} dB; different codes used: {' '.join(map(str, summary['codes_used']))}")
    encode, decode = summary["encode_real_time_factor"], summary["decode_real_time_factor"]
    print(f"encoded at {encode} x real time, decoded at {decode} x")


def run_info(args: argparse.Namespace) -> None:
    manifest = Manifest.read(args.bundle)
    if args.json:
        print(json.dumps(manifest.document, indent=1))
        return
    print(f"{args.bundle}: {', '.join(manifest.graphs)}")
    for title in ("model", "defaults"):
        fields = manifest.document.get(title, {})
        print(f"{title:10}" + ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None))
    for name, variant in manifest.variants.items():
        cost = variant.quality
        words = f"  KL {cost['kl']:.1e} nats from fp32, top-1 {cost['top1']:.1%} ({cost['source']})" if cost else ""
        words += "  default" if name == manifest.default_variant else ""
        print(f"{variant.bytes / 1e6:12.2f} MB  variant {name:8}{words}")
    for name, entry in manifest.files.items():
        there = "" if (manifest.folder / name).exists() else "   MISSING"
        print(f"{entry.bytes / 1e6:12.2f} MB  {name}{there}")


def run_plot(args: argparse.Namespace) -> None:
    try:
        from clean_lm.plot import plot
    except ImportError:
        raise ValueError("plot needs matplotlib: pip install matplotlib") from None
    output = args.output or args.input.with_suffix(".png")
    plot(args.input, output, args.seam)
    print(output)


if __name__ == "__main__":
    sys.exit(main())
