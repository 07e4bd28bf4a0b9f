"""What is attacked: each function makes one input from a seed, in a folder of its own, and says how to try it."""

import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
import yaml

from clean_lm import audio_files, cli
from clean_lm.audio import AudioError
from clean_lm.manifest import BundleError, Manifest
from clean_lm.models.config import ConfigError
from clean_lm.musicgen import MusicGen
from tests.fuzz.mutations import WRONG, changed, damaged
from tests.fuzz.outcomes import Case
from tests.support import GOLDEN
from weights import codec, lm, text
from weights.checkpoint import CheckpointError
from weights.mapping import MappingError, Model, require_finite

BUNDLE = GOLDEN / "conformance/bundles/text"
CHECKPOINTS = (CheckpointError, ConfigError, MappingError, FileNotFoundError)
PROMPT = 0.3 * np.sin(np.arange(4800) / 9).astype(np.float32)[None]


# Bundles


def manifest(rng: random.Random, folder: Path) -> Case:
    """A manifest.json of another content."""
    tree = changed(json.loads((BUNDLE / "manifest.json").read_text()), rng)
    return _bundle(folder, "manifest.json", _json(tree))


def manifest_bytes(rng: random.Random, folder: Path) -> Case:
    """A manifest.json that is damaged."""
    return _bundle(folder, "manifest.json", damaged((BUNDLE / "manifest.json").read_bytes(), rng))


def manifest_in_javascript(rng: random.Random, folder: Path) -> Case:
    """A manifest.json of another content: JavaScript refuses what Python refuses. Needs Node."""
    content = _json(changed(json.loads((BUNDLE / "manifest.json").read_text()), rng))
    (folder / "manifest.json").write_bytes(content)
    return Case(lambda: _compare(folder), (BundleError,), "manifest.json")


def _compare(folder: Path) -> str | None:
    script = Path(__file__).with_name("verdict.mjs")
    found = subprocess.run(["node", script, folder], capture_output=True, text=True, check=False)
    verdict = found.stdout.strip()
    if found.returncode or not verdict.isprintable():
        return f"JavaScript: {found.stderr[-300:]} {verdict!r}"
    try:
        Manifest.read(folder)
    except BundleError as error:
        if verdict == "accepted":
            return f"JavaScript accepts, Python does not: {error}"
        raise
    return None if verdict == "accepted" else f"Python accepts, JavaScript does not: {verdict}"


def bundle_file(rng: random.Random, folder: Path) -> Case:
    """Another file of a bundle that is damaged."""
    name = rng.choice([path.name for path in sorted(BUNDLE.iterdir()) if path.name != "manifest.json"])
    return _bundle(folder, name, damaged((BUNDLE / name).read_bytes(), rng))


def _bundle(folder: Path, name: str, content: bytes) -> Case:
    for path in BUNDLE.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    (folder / name).write_bytes(content)
    run = lambda: None if _sound(folder) == _reference() else "accepted, and sounds otherwise"  # noqa: E731
    return Case(run, (BundleError, FileNotFoundError), name)


@cache
def _reference() -> bytes:
    return _sound(BUNDLE)


def _sound(bundle: Path) -> bytes:
    """What a bundle generates, with every option given: its defaults may be others."""
    model = MusicGen.load(bundle, threads=1)
    model.set_generation_params(temperature=0.0, duration=1.0, cfg_coef=3.0, top_k=10, extend_stride=5.0)
    found = model.generate_continuation(PROMPT, 32_000, ["drum and bass"], seed=1)
    return np.asarray(found).tobytes()


# Checkpoints


def checkpoint_bytes(rng: random.Random, folder: Path) -> Case:
    """audiocraft's files, damaged: their tensors are what they were, or refused."""
    name, load = rng.choice((("state_dict.bin", lm.load), ("compression_state_dict.bin", codec.load)))
    source = GOLDEN / rng.choice(("text", "audiogen")) / name
    (folder / name).write_bytes(damaged(source.read_bytes(), rng))
    return Case(lambda: _same(_accepted(load(folder / name)), load(source)), CHECKPOINTS, name)


def checkpoint_config(rng: random.Random, folder: Path) -> Case:
    """audiocraft's files with another xp.cfg."""
    name, load = rng.choice((("state_dict.bin", lm.load), ("compression_state_dict.bin", codec.load)))
    package = _package(GOLDEN / rng.choice(("text", "melody", "style", "stereo")) / "state_dict.bin", name)
    tree = changed(yaml.safe_load(package["xp.cfg"]), rng)
    config: Any = _yaml(tree) if rng.random() < 0.9 else rng.choice(WRONG)
    torch.save({**package, "xp.cfg": config}, folder / name)
    return Case(lambda: _same(_accepted(load(folder / name))), CHECKPOINTS, name)


def _package(lm_file: Path, name: str) -> dict[str, Any]:
    return torch.load(lm_file.with_name(name) if lm_file.with_name(name).exists() else GOLDEN / "text" / name)


def huggingface_config(rng: random.Random, folder: Path) -> Case:
    """A Hugging Face folder with another config.json."""
    source, load = rng.choice(
        ((GOLDEN / "finetune_fp16/hf_encodec_32khz", codec.load), (GOLDEN / "_t5/t5-base", text.load))
    )
    shutil.copytree(source, folder, dirs_exist_ok=True)
    tree = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_bytes(_json(changed(tree, rng)))
    return Case(lambda: _same(_accepted(load(folder))), CHECKPOINTS, f"{source.name}/config.json")


def safetensors_header(rng: random.Random, folder: Path) -> Case:
    """A safetensors file whose header or length is another. Its tensors have no checksum: a flipped bit there stays."""
    source = GOLDEN / "_t5/t5-base"
    shutil.copytree(source, folder, dirs_exist_ok=True)
    content = (source / "model.safetensors").read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    (folder / "model.safetensors").write_bytes(damaged(content[:head], rng) + content[head:])
    return Case(lambda: _same(_accepted(text.load(folder))), CHECKPOINTS, "model.safetensors")


def _same(model: Model[Any], other: Model[Any] | None = None) -> str | None:
    """Whether a model that is accepted is another than the whole file gives, where that is known."""
    if other is None:
        return None
    if model.config != other.config:
        return "accepted with another configuration"
    ours, theirs = (dict(_tensors(found)) for found in (model, other))
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return None if equal else "accepted with other tensors"


def _accepted(model: Model[Any]) -> Model[Any]:
    """A model as every export takes it: its records' checksums compared, its tensors read and finite."""
    require_finite(model)
    return model


def _tensors(model: Model[Any]) -> dict[str, torch.Tensor]:
    components = {name.split(".")[0] for name in model.rows}
    return {f"{part}.{name}": tensor for part in components for name, tensor in model.weights(part).items()}


# Sound and arguments


FORMATS = (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "PCM_24"))


def sound(rng: random.Random, folder: Path) -> Case:
    """An audio file that is damaged: refused, or finite samples and no more than a file of its size can hold."""
    form, subtype = rng.choice(FORMATS)
    path = folder / f"track.{form.lower()}"
    path.write_bytes(damaged(_encoded(form, subtype), rng))
    return Case(lambda: _finite(path), (AudioError,), f"{form} {subtype}")


@cache
def _encoded(form: str, subtype: str) -> bytes:
    file = io.BytesIO()
    sf.write(file, np.repeat(PROMPT.T, 2, axis=1), 32_000, format=form, subtype=subtype)
    return file.getvalue()


def _finite(path: Path) -> str | None:
    wav, rate = audio_files.read(path)
    return None if np.isfinite(wav).all() and wav.size < 10**7 and rate > 0 else f"{wav.shape} at {rate} Hz"


FLAGS = ("duration", "takes", "seed", "temperature", "top-k", "top-p", "cfg-coef", "prompt-seconds", "extend-stride",
         "threads", "fade-out", "text", "negative-text", "strategy", "variant", "rate")  # fmt: skip
ABSURD = ["0", "-1", "1e9", "1e308", "1e-45", "1e39", "nan", "inf", "-inf", "9223372036854775808", "100000", "x", "",
          "\x1b[31m", "0.5", "1", "2", "0x10", "１"]  # fmt: skip


def command(rng: random.Random, folder: Path) -> Case:
    """clean-lm with one to three absurd flags."""
    path = folder / "track.wav"
    path.write_bytes(_encoded("WAV", "PCM_16"))
    value = lambda flag: rng.choice([*ABSURD, *(["a" * 20_000] if "text" in flag else [])])  # noqa: E731
    flags = [part for flag in rng.sample(FLAGS, rng.choice((1, 2, 3))) for part in (f"--{flag}", value(flag))]
    kind = rng.choice((["continue", str(path)], ["continue", str(path)], ["generate"], ["codec", str(path)]))
    given = [*kind, "-o", str(folder / "out.wav"), "--bundle", str(BUNDLE), *flags]
    if "--duration" not in flags and kind[0] != "codec":
        given += ["--duration", "0.5"]
    return Case(lambda: _main(given), (), " ".join(given[:1] + flags)[:300])


def _main(given: list[str]) -> None:
    if code := cli.main(given):
        raise SystemExit(code)


OPTIONS: dict[str, Callable[[MusicGen, Any], Any]] = {
    **{
        name: lambda model, value, name=name: model.set_generation_params(**{"duration": 0.5, name: value})
        for name in ("top_k", "top_p", "temperature", "duration", "cfg_coef", "cfg_coef_beta", "extend_stride")
    },
    "seed": lambda model, value: model.generate([None], seed=value),
    "takes": lambda model, value: model.generate([None], takes=value),
    "descriptions": lambda model, value: model.generate(value),
    "description": lambda model, value: model.generate([value]),
    "prompt": lambda model, value: model.generate_continuation(value, 32_000),
    "prompt_sample_rate": lambda model, value: model.generate_continuation(PROMPT, value),
    "prompt_codes": lambda model, value: model.generate_continuation(prompt_codes=value),
    "chunk_seconds": lambda model, value: next(model.stream([None], chunk_seconds=value)),
    "num_samples": lambda model, value: model.generate_unconditional(value),
}
ARRAYS = [float("nan"), float("inf"), np.zeros((1, 0), np.float32), np.full((1, 400), np.nan, np.float32),
          np.zeros((2, 1, 400)), np.zeros((10**6, 1), np.int16), np.zeros((1, 400), complex), np.array(None),
          np.zeros((1, 4, 3), np.int64), np.full((1, 4, 3), 99), np.zeros((0, 4, 3), int),
          np.float16(2), [PROMPT[0]]]  # fmt: skip


def option(rng: random.Random, folder: Path) -> Case:
    """An option of the Python API with a value that it should not have."""
    name, value = rng.choice(list(OPTIONS)), rng.choice([*WRONG, *ARRAYS])
    model = MusicGen.load(BUNDLE, threads=1, hashes=False)
    model.set_generation_params(duration=0.5)

    def run() -> None:
        OPTIONS[name](model, value)
        if model.duration <= 1:
            model.generate([None], seed=1)

    return Case(run, (ValueError,), f"{name}={str(value)[:60]}")


def _yaml(tree: Any) -> str:
    try:
        return yaml.safe_dump(tree)
    except RecursionError:
        return "x: " + "[" * 5000


def _json(tree: Any) -> bytes:
    """A tree as JSON, however deep."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    sys.set_int_max_str_digits(10_000)
    try:
        return json.dumps(tree).encode()
    finally:
        sys.setrecursionlimit(limit)
        sys.set_int_max_str_digits(4300)


TARGETS: dict[str, Callable[[random.Random, Path], Case]] = {
    target.__name__: target
    for target in (
        *((manifest_in_javascript,) if shutil.which("node") else ()),
        *(manifest, manifest_bytes, bundle_file, checkpoint_bytes, checkpoint_config, huggingface_config),
        *(safetensors_header, sound, command, option),
    )
}
