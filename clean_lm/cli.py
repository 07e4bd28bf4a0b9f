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
import os
import secrets
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from tqdm import tqdm

from clean_lm import audio
from clean_lm.audio import AudioError
from clean_lm.manifest import BundleError, Manifest
from clean_lm.musicgen import Codec, MusicGen
from clean_lm.runtime import Sampling
from clean_lm.windows import windows

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
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    add = commands.add_parser("continue", help="continue a track", formatter_class=Help)
    add.set_defaults(run=run_continue)
    add.add_argument("input", type=Path, help="WAV, FLAC, OGG or MP3")
    add_generation(add)
    add.add_argument("--prompt-seconds", type=float, default=6.0, help="how much of the track to continue from")
    add.add_argument("--from", dest="side", choices=("end", "start"), default="end", help="which end of it")
    add.add_argument("--splice", action="store_true", help="join the new part to the untouched track, "
                     "in place of returning the prompt as the codec renders it")  # fmt: skip
    add.add_argument("--rate", choices=("source", "codec"), default="source", help="whose sample rate and channels")

    add = commands.add_parser("generate", help="music from a text", formatter_class=Help)
    add.set_defaults(run=run_generate)
    add_generation(add)

    add = commands.add_parser("codec", help="encode and decode alone: what the codec does to a track")
    add.set_defaults(run=run_codec)
    add.add_argument("input", type=Path)
    add_bundle(add)

    add = commands.add_parser("info", help="what a bundle holds")
    add.set_defaults(run=run_info)
    add.add_argument("bundle", type=Path)
    add.add_argument("--json", action="store_true", help="the manifest itself")

    add = commands.add_parser("plot", help="waveform and spectrogram as a picture (needs clean_lm[plot])")
    add.set_defaults(run=run_plot)
    add.add_argument("input", type=Path)
    add.add_argument("-o", "--output", type=Path, help="default: the input's name with .png")
    add.add_argument("--seam", type=float, help="seconds at which to draw a line: where the prompt ends")
    return top


def add_bundle(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", type=Path, required=True, help=".wav, .flac, .ogg or .mp3")
    command.add_argument("--bundle", type=Path, required=True, help="the folder that export/bundle.py wrote")
    command.add_argument("--threads", type=int, help="one per physical core where not given")
    command.add_argument("--json", action="store_true", help="progress and result as lines of JSON")


def add_generation(command: argparse.ArgumentParser) -> None:
    add_bundle(command)
    command.add_argument("--variant", help="int4, fp32, ...: of those that clean-lm info lists; default: the bundle's")
    command.add_argument("--text", help="a description")
    command.add_argument("--melody", nargs="+", type=Path, metavar="FILE", help="melody models: what to follow; "
                         "several files are stems, which are added up")  # fmt: skip
    command.add_argument("--style", type=Path, metavar="FILE", help="style models: what it shall sound like")
    command.add_argument("--style-start", type=float, help="seconds at which the excerpt that is heard begins; drawn "
                         "by the seed where not given")  # fmt: skip
    command.add_argument("--style-length", type=float, default=3.0, help="seconds of the excerpt")
    command.add_argument("--style-levels", type=int, default=3, help="how closely it is heard (audiocraft's eval_q)")
    command.add_argument("--duration", type=float, help="seconds in all, the prompt included, however many; default: "
                         "the bundle's, 30 or with AudioGen 10")  # fmt: skip
    command.add_argument("--extend-stride", type=float, help="seconds from one window to the next, where the duration "
                         "is longer than one; default: the bundle's, 18 or with AudioGen 2")  # fmt: skip
    command.add_argument("--takes", type=int, default=1, help="more than one: out-1.wav, out-2.wav, ...")
    command.add_argument("--seed", type=int, help="take b is drawn with seed + b - 1; a new one where not given")
    command.add_argument("--top-k", type=int, default=250, help="0: off")
    command.add_argument("--top-p", type=float, default=0.0, help="0: off; goes before --top-k")
    command.add_argument("--temperature", type=float, default=1.0, help="0: greedy")
    command.add_argument("--cfg-coef", type=float, default=3.0, help="guidance: how much the text counts")
    command.add_argument("--cfg-coef-beta", type=float, help="double guidance: how much more the text counts than a "
                         "melody or style; audiocraft suggests 5")  # fmt: skip
    command.add_argument("--strategy", choices=tuple(audio.HEADROOM_DB), help="level, as audiocraft's audio_write "
                         "has it; where not given clip, but with --splice the track keeps its own")  # fmt: skip


def run_continue(args: argparse.Namespace) -> None:
    if not 0 < args.prompt_seconds < math.inf:
        raise ValueError(f"--prompt-seconds: got {args.prompt_seconds}, expected more than 0")
    if args.splice and args.rate == "codec":
        raise ValueError("--splice keeps the track as it is, its rate too: leave --rate codec out")
    at_end = args.side == "end"
    prompt, rate = audio.read(args.input, seconds=args.prompt_seconds, from_end=at_end)
    model = refuse(args, prompt.shape[1] / rate, rate, len(prompt))
    if args.splice:
        prompt = whole_frames(prompt, rate, model["sample_rate"], model["hop"], at_end)
    sound = audio.convert_audio(prompt, rate, model["sample_rate"], model["channels"])
    takes, said = generate(args, load(args), sound)
    if args.rate == "codec":
        return finish(args, takes, said)
    takes = [audio.to_source(take, said["sample_rate"], rate, len(prompt)) for take in takes]
    said["sample_rate"] = rate
    if not args.splice:
        return finish(args, takes, said)
    track = audio.read(args.input)[0] if at_end else prompt
    seam, fade = track.shape[1], round(CROSSFADE * rate)
    takes = [audio.splice(track, take, seam, fade, lead_samples=prompt.shape[1]) for take in takes]
    said["seam"] = seam / rate
    return finish(args, takes, said, strategy=None, subtype=subtype(args.input, args.output))


def whole_frames(prompt: np.ndarray, rate: int, codec_rate: int, hop: int, at_end: bool) -> np.ndarray:
    """The prompt without what the codec would fill up to a whole frame: silence, which would be heard at the seam."""
    frames = prompt.shape[1] * codec_rate // (rate * hop)
    samples = frames * hop * rate // codec_rate or prompt.shape[1]
    return prompt[:, -samples:] if at_end else prompt[:, :samples]


def subtype(source: Path, output: Path) -> str | None:
    """The sample format that holds the source's samples as they are, where the output has one; None: its usual one."""
    found = sf.info(source).subtype
    if output.suffix.lower() == ".wav" and found in ("PCM_32", "FLOAT", "DOUBLE"):
        return "FLOAT"
    deep = output.suffix.lower() in (".wav", ".flac") and found in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
    return "PCM_24" if deep else None


def run_generate(args: argparse.Namespace) -> None:
    refuse(args)
    finish(args, *generate(args, load(args)))


def refuse(args: argparse.Namespace, prompt: float = 0.0, rate: int = 0, channels: int = 0) -> dict[str, Any]:
    """Raise, before anything is loaded, where the command cannot end well. Returns the manifest's `model`.

    prompt: its seconds; rate, channels: the track's, 0 where there is none.
    """
    if args.takes < 1:
        raise ValueError(f"--takes: got {args.takes}, expected 1 or more")
    if args.seed is not None and not 0 <= args.seed <= 2**64 - args.takes:
        raise ValueError(f"--seed: got {args.seed}, expected a number from 0 to 2^64 - {args.takes}")
    sampling(args).check()
    manifest = Manifest.read(args.bundle, variant=args.variant)
    model = dict(manifest.need("model", "frame_rate", "max_duration", "sample_rate", "channels"))
    if "hop" not in model:
        raise BundleError(f"{args.bundle}: holds no codec; export it with export/bundle.py")
    if args.text and "text_encoder" not in manifest.need("graphs"):
        raise BundleError(f"{args.bundle}: has no text encoder for --text; export it with --text")
    defaults = manifest.need("defaults", "duration", "extend_stride")
    for name in ("duration", "extend_stride"):
        if getattr(args, name) is None:
            setattr(args, name, defaults[name])
    if not 0 < args.duration < math.inf:
        raise ValueError(f"--duration: got {args.duration}, expected seconds above 0")
    known = math.ceil(prompt * model["frame_rate"])
    if int(args.duration * model["frame_rate"]) <= known:
        raise ValueError(f"--duration: got {args.duration:g} s, expected more than the prompt's {prompt:g} s")
    windows(args.duration, model["max_duration"], args.extend_stride, model["frame_rate"], known)
    for kind in ("melody", "style"):
        if getattr(args, kind) and model.get("self_wav") != kind:
            is_one = f"a {model['self_wav']} model" if model.get("self_wav") else "no such model"
            raise BundleError(f"{args.bundle}: takes no --{kind}: it is {is_one}")
    if args.style and "style_features" not in manifest.need("graphs"):
        raise BundleError(f"{args.bundle}: has no MERT for --style; export it with --mert")
    if args.cfg_coef_beta is not None and not model.get("self_wav"):
        raise BundleError(f"{args.bundle}: --cfg-coef-beta is for melody and style models")
    if not channels or args.rate == "codec":
        rate, channels = model["sample_rate"], model["channels"]
    if 1 < model["channels"] < channels:
        raise AudioError(f"{args.input}: has {channels} channels, the model {model['channels']}: give --rate codec")
    writable(args.output, rate, channels)
    return model


def sampling(args: argparse.Namespace) -> Sampling:
    return Sampling(True, args.temperature, args.top_k, args.top_p, args.cfg_coef, args.cfg_coef_beta)


def load(args: argparse.Namespace) -> MusicGen:
    """The model, with the command line's parameters."""
    threaded(args)
    model = MusicGen.load(args.bundle, variant=args.variant, threads=args.threads)
    model.sampling, model.duration, model.extend_stride = sampling(args), args.duration, args.extend_stride
    if args.style:
        model.set_style_conditioner_params(args.style_levels, args.style_length, args.style_start)
    return model


def told(args: argparse.Namespace, model: MusicGen) -> np.ndarray | None:
    """The melody or style [channels, samples] at the model's rate, stems added up; None where there is none."""
    files = args.melody or ([args.style] if args.style else [])
    stems = [audio.convert_audio(*audio.read(file), model.sample_rate, model.audio_channels) for file in files]
    if not stems:
        return None
    mix = np.zeros((model.audio_channels, max(stem.shape[1] for stem in stems)), np.float32)
    for stem in stems:
        mix[:, : stem.shape[1]] += stem
    return mix


def threaded(args: argparse.Namespace) -> None:
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads: got {args.threads}, expected 1 or more")


def writable(path: Path, rate: int, channels: int) -> None:
    """Raise AudioError where the result could not be written in the end."""
    if path.suffix.lower() not in audio.FORMATS:
        raise AudioError(f"{path}: the extension is {path.suffix!r}, expected one of {', '.join(audio.FORMATS)}")
    if not path.parent.is_dir():
        raise AudioError(f"{path.parent}: no such folder; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise AudioError(f"{path}: {'a folder' if path.is_dir() else 'its folder takes no files'}; choose another name")
    file_format, subtype, _ = audio.FORMATS[path.suffix.lower()]
    try:
        sf.SoundFile(BytesIO(), "w", rate, channels, subtype, format=file_format).close()
    except sf.LibsndfileError as error:
        found = f"{channels} channels at {rate} Hz"
        raise AudioError(f"{path}: cannot hold {found} ({error.error_string}); write .wav") from None


def generate(
    args: argparse.Namespace, model: MusicGen, prompt: np.ndarray | None = None
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The takes, each [channels, samples] at the codec's rate as the prompt, and what to say of them."""
    seed = secrets.randbits(32) if args.seed is None else args.seed
    texts, rate, wav = [args.text] * args.takes, model.sample_rate, told(args, model)
    wavs = None if wav is None else [wav] * args.takes
    start = time.perf_counter()
    with Bar(args, model) as bar:
        model.set_custom_progress_callback(bar)
        if prompt is not None:
            prompts = np.repeat(prompt[None], args.takes, axis=0)
            sound = model.generate_continuation(
                prompts, rate, texts, seed=seed, melody_wavs=wavs, melody_sample_rate=rate
            )
        elif wavs is not None:
            sound = model.generate_with_chroma(texts, wavs, rate, seed=seed)
        else:
            sound = model.generate(texts, seed=seed)
    assert isinstance(sound, np.ndarray)
    seconds = time.perf_counter() - start
    frames = 0 if prompt is None else math.ceil(prompt.shape[1] / model.codec.hop)  # what is new begins after them
    new = sound.shape[2] / model.sample_rate - frames / model.frame_rate
    said: dict[str, Any] = {"seed": seed, "seconds": round(seconds, 3), "sample_rate": model.sample_rate}
    said["real_time_factor"] = round(new * args.takes / seconds, 3)
    if prompt is not None:
        said["seam"] = frames / model.frame_rate
    return list(sound), said


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


def finish(
    args: argparse.Namespace,
    takes: list[np.ndarray],
    said: dict[str, Any],
    strategy: str | None = "clip",
    subtype: str | None = None,
) -> None:
    """Write the takes and say what was done. strategy, subtype: audio.write's, where --strategy is not given."""
    rate, files, clipped = said["sample_rate"], [], 0
    for number, take in enumerate(takes, start=1):
        stem = args.output.stem if len(takes) == 1 else f"{args.output.stem}-{number}"
        files.append(args.output.with_name(stem + args.output.suffix))
        clipped += audio.write(files[-1], take, rate, strategy=args.strategy or strategy, subtype=subtype)
    said |= {"channels": len(takes[0]), "duration": round(takes[0].shape[1] / rate, 3)}
    if args.json:
        print(json.dumps({"event": "done", "files": [str(file) for file in files], "clipped": clipped, **said}))
        return
    for file in files:
        print(f"{file}: {said['duration']} s, {rate} Hz, {said['channels']} channels")
    seam = f", new from {said['seam']:.2f} s on" if "seam" in said else ""
    print(f"seed {said['seed']}{seam}; {said['seconds']:.1f} s, {said['real_time_factor']:.2f} x real time")
    if clipped:
        print(f"{clipped} samples were clipped; --strategy peak keeps them")


def run_codec(args: argparse.Namespace) -> None:
    threaded(args)
    wav, rate = audio.read(args.input)
    model = Manifest.read(args.bundle).need("model", "sample_rate", "channels")
    writable(args.output, model["sample_rate"], model["channels"])
    codec = Codec.load(args.bundle, threads=args.threads)
    sound = audio.convert_audio(wav, rate, codec.sample_rate, codec.channels)
    start = time.perf_counter()
    codes = codec.encode(sound[None])
    middle = time.perf_counter()
    decoded = codec.decode(codes)[0, :, : sound.shape[1]]
    end = time.perf_counter()
    seconds = sound.shape[1] / codec.sample_rate
    said = {
        "si_sdr_db": round(si_sdr(decoded, sound), 2),
        "frames": codes.shape[2],
        "codes_used": [len(np.unique(codes[0, k])) for k in range(codes.shape[1])],
        "encode_real_time_factor": round(seconds / (middle - start), 2),
        "decode_real_time_factor": round(seconds / (end - middle), 2),
        "sample_rate": codec.sample_rate,
    }
    audio.write(args.output, decoded, codec.sample_rate)
    if args.json:
        print(json.dumps({"event": "done", "files": [str(args.output)], **said}))
        return
    print(f"{args.output}: {seconds:.2f} s, {codec.sample_rate} Hz, {codes.shape[2]} frames of {codes.shape[1]} codes")
    print(f"SI-SDR {said['si_sdr_db']} dB; different codes used: {' '.join(map(str, said['codes_used']))}")
    encode, decode = said["encode_real_time_factor"], said["decode_real_time_factor"]
    print(f"encoded at {encode} x real time, decoded at {decode} x")


def si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, "SDR - half-baked or well done?")."""
    x, y = estimate.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    target = y * (x @ y) / max(y @ y, 1e-12)
    return float(10 * np.log10(max(target @ target, 1e-12) / max(((x - target) ** 2).sum(), 1e-12)))


def run_info(args: argparse.Namespace) -> None:
    manifest = Manifest.read(args.bundle)
    if args.json:
        print(json.dumps(manifest.tree, indent=1))
        return
    model, defaults = manifest.need("model"), manifest.need("defaults")
    print(f"{args.bundle}: {', '.join(manifest.need('graphs'))}")
    for title, fields in (("model", model), ("defaults", defaults)):
        print(f"{title:10}" + ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None))
    for name, entry in manifest.tree.get("variants", {}).items():
        cost = entry.get("quality")
        said = f"  KL {cost['kl']:.1e} nats from fp32, top-1 {cost['top1']:.1%} ({cost['source']})" if cost else ""
        said += "  default" if name == manifest.tree["variant"] else ""
        print(f"{entry['bytes'] / 1e6:12.2f} MB  variant {name:8}{said}")
    for name, entry in manifest.need("files").items():
        there = "" if (manifest.folder / name).exists() else "   MISSING"
        print(f"{entry['bytes'] / 1e6:12.2f} MB  {name}{there}")


def run_plot(args: argparse.Namespace) -> None:
    try:
        from clean_lm.plot import plot
    except ImportError:
        raise ValueError("plot needs matplotlib: pip install 'clean_lm[plot]'") from None
    output = args.output or args.input.with_suffix(".png")
    plot(args.input, output, args.seam)
    print(output)


if __name__ == "__main__":
    sys.exit(main())
