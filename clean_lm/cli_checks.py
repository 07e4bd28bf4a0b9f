"""What the command line refuses, in one line and before anything is loaded."""

import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clean_lm import audio, audio_files, memory
from clean_lm.audio import AudioError
from clean_lm.cli_output import outputs
from clean_lm.generation import Sampling
from clean_lm.manifest import BundleError, Manifest
from clean_lm.manifest_fields import CodecInfo, LanguageModelInfo
from clean_lm.options import LONGEST, MOST_TAKES, number, seconds, text, threads
from clean_lm.windows import plan


def validate(args: argparse.Namespace) -> Manifest:
    """Raise if an option cannot be used, or an output would replace something. Returns the bundle's manifest."""
    if not 1 <= args.takes <= MOST_TAKES:
        raise ValueError(
            f"--takes: got {args.takes}, expected 1 or more, {MOST_TAKES} at most: each has its own caches"
        )
    for name in ("text", "negative_text"):
        text(f"--{name.replace('_', '-')}", getattr(args, name))
    if args.seed is not None and not 0 <= args.seed <= 2**64 - args.takes:
        raise ValueError(f"--seed: got {args.seed}, expected a number from 0 to 2^64 - {args.takes}")
    validate_threads(args)
    with in_flags():
        sampling(args).validate()
    manifest = Manifest.read(args.bundle, variant=args.variant)
    validate_conditions(args, manifest, manifest.language_model)
    validate_style(args)
    for name in ("duration", "extend_stride"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(manifest.defaults, name))
    frame = 1 / manifest.codec.frame_rate
    seconds("--duration", args.duration, frame, f"{frame:g} s (a frame) or more")
    number("--extend-stride", args.extend_stride, f"seconds, {LONGEST:g} at most", 0, LONGEST)
    require_memory(args, manifest)
    validate_fade_out(args, args.duration)
    validate_outputs(args)
    return manifest


def validate_outputs(args: argparse.Namespace) -> None:
    """Raise AudioError if the output has no format, or if a file would be replaced: an input, or unasked an output."""
    audio_files.require_format(args.output)
    inputs = [getattr(args, "input", None), getattr(args, "style", None), *(getattr(args, "melody", None) or ())]
    for file in outputs(args):
        require_free(file, [path for path in inputs if path], args.overwrite)


def require_free(output: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    """Raise AudioError if `output` is one of the inputs, by whatever name, or is there already and may not be replaced.

    Links are followed, and where the file system takes Track.wav for track.wav, so does this.
    """
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise AudioError(f"{output}: is the input {path} itself, which is never replaced; choose another name")
    if not overwrite and not output.is_dir() and (output.exists() or output.is_symlink()):
        raise AudioError(f"{output}: exists already; choose another name, or give --overwrite")
    if overwrite and output.exists() and not output.is_dir():
        audio_files.require_replaceable(output)


def validate_prompt(args: argparse.Namespace, manifest: Manifest, prompt: np.ndarray, rate: int) -> None:
    """Raise if a prompt [channels, samples] leaves nothing to generate, or if its continuation could not be written."""
    model, frame_rate = manifest.language_model, manifest.codec.frame_rate
    length = prompt.shape[1] / rate
    if args.duration > model.max_duration and length >= model.max_duration:
        raise ValueError(
            f"--prompt-seconds: got {args.prompt_seconds:g}, expected less than {model.max_duration:g} s, the model's "
            f"window, for a --duration of {args.duration:g} s"
        )
    with in_flags():
        plan(args.duration, model.max_duration, args.extend_stride, frame_rate, math.ceil(length * frame_rate))
    validate_fade_out(args, args.duration - length)
    validate_format(args, manifest, rate, len(prompt))


def validate_format(args: argparse.Namespace, manifest: Manifest, rate: int = 0, channels: int = 0) -> None:
    """Raise AudioError if the output cannot hold the result; rate, channels: the track's, 0 for none."""
    model = manifest.language_model
    if not channels or args.rate == "codec":
        rate, channels = model.sample_rate, model.channels
    if 1 < model.channels < channels:
        raise AudioError(f"{args.input}: has {channels} channels, the model {model.channels}: give --rate codec")
    for file in outputs(args):
        audio_files.require_writable(file, rate, channels)


def validate_fade_out(args: argparse.Namespace, new: float) -> None:
    """Raise ValueError unless the fade is no longer than what is new, in seconds."""
    number("--fade-out", args.fade_out, f"0 to {new:g} s, what is new", 0, new)


def validate_conditions(args: argparse.Namespace, manifest: Manifest, model: LanguageModelInfo) -> None:
    """Raise BundleError if the bundle does not take the text, melody or style that is given."""
    for name in ("text", "negative_text"):
        if getattr(args, name) and "text_encoder" not in manifest.graphs:
            flag = name.replace("_", "-")
            raise BundleError(f"{args.bundle}: contains no text encoder for --{flag}; export it again with --text")
    if args.negative_text and args.cfg_coef == 1:
        raise ValueError(
            "--negative-text: counts for nothing with --cfg-coef 1, which turns guidance off; leave one out"
        )
    for kind in ("melody", "style"):
        if getattr(args, kind) and model.self_wav != kind:
            found = f"a {model.self_wav} model" if model.self_wav else "a model of texts alone"
            raise BundleError(f"{args.bundle}: takes no --{kind}: it is {found}")
    if args.style and "style_features" not in manifest.graphs:
        raise BundleError(f"{args.bundle}: contains no MERT for --style; export it again with --mert")
    if args.cfg_coef_beta is not None and not model.self_wav:
        raise BundleError(f"{args.bundle}: --cfg-coef-beta is for melody and style models")


def validate_style(args: argparse.Namespace) -> None:
    """Raise ValueError for an excerpt of --style that is none."""
    number("--style-length", args.style_length, f"seconds, more than 0, {LONGEST:g} at most", 1e-3, LONGEST)
    if args.style_start is not None:
        number("--style-start", args.style_start, f"seconds, 0 to {LONGEST:g}", 0, LONGEST)


def require_memory(args: argparse.Namespace, manifest: Manifest) -> None:
    """Raise ValueError if this machine has not the memory for the takes."""
    conditioned = args.text or args.negative_text or args.melody or args.style
    guidance = sampling(args).guidance if conditioned else "none"
    with in_flags():
        windows = plan(
            args.duration, manifest.language_model.max_duration, args.extend_stride, manifest.codec.frame_rate, 0
        )
    need = memory.of_generation(manifest, args.takes, windows, guidance)
    name = "--takes" if args.takes > 1 else "--duration"
    memory.require(name, need, f"{args.takes} takes of {args.duration:g} s")


def validate_threads(args: argparse.Namespace) -> None:
    """Raise ValueError for a number of threads that is none."""
    threads("--threads", args.threads)


def sampling(args: argparse.Namespace) -> Sampling:
    """How codes are drawn, of the command line."""
    return Sampling(True, args.temperature, args.top_k, args.top_p, args.cfg_coef, args.cfg_coef_beta)


def reference_audio(args: argparse.Namespace, codec: CodecInfo) -> np.ndarray | None:
    """The melody or style [channels, samples] at the model's rate, stems added up; None if none is given."""
    files = args.melody or ([args.style] if args.style else [])
    stems = [audio.convert_audio(*audio_files.read(file), codec.sample_rate, codec.channels) for file in files]
    if not stems:
        return None
    mix = np.zeros((codec.channels, max(stem.shape[1] for stem in stems)), np.float32)
    for stem in stems:
        mix[:, : stem.shape[1]] += stem
    return mix


@contextmanager
def in_flags() -> Iterator[None]:
    """Errors of Python's options under the names that the command line has for them: top_k is --top-k."""
    to_flag: Callable[[re.Match[str]], str] = lambda match: f"--{match[1].replace('_', '-')}:"  # noqa: E731
    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub(r"^(\w+):", to_flag, str(error))) from None
