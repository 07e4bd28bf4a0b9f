"""Run the conformance kit through the Python runtime: a table of every case, and exit code 1 where one fails.

  python tests/conformance/run.py                tests/golden/conformance
  python tests/conformance/run.py folder         another copy of the kit

js/conformance.js does the same in JavaScript; tests/golden/conformance/README.md says how to write one more.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clean_lm.audio import convert_audio, convert_channels, match_level, resample, splice
from clean_lm.conditioning import PerRow, SelfWav
from clean_lm.delay_pattern import delay, undelay
from clean_lm.generation import Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.musicgen import MusicGen
from clean_lm.philox import uniforms
from clean_lm.text_encoder import TextEncoder
from clean_lm.windows import windows

KIT = Path(__file__).parents[1] / "golden" / "conformance"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """What one output of one case came to."""

    case: str
    what: str
    error: float  # of the largest number expected; of codes and ids, how many differ
    within: float

    @property
    def passed(self) -> bool:
        return self.error <= self.within


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=KIT)
    folder = parser.parse_args().folder
    failed = 0
    for case, bundle in read(folder):
        for row in check(case, bundle):
            failed += not row.passed
            verdict = "ok" if row.passed else "FAIL"
            print(f"{row.case:<64} {row.what:<9} {verdict:<4} {row.error:9.2g} of {row.within:g}", flush=True)
    print(f"{failed} failed" if failed else "all passed")
    sys.exit(min(failed, 1))


def read(folder: Path) -> Iterator[tuple[dict[str, Any], Path | None]]:
    """Every case, once with each of its bundles, its arrays in place of where they lie."""
    kit = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    data = (folder / "arrays.bin").read_bytes()
    for case in kit["cases"]:
        for bundle in case["bundles"] or [None]:
            name = f"{case['name']} [{bundle}]" if bundle else case["name"]
            yield resolved(case, data) | {"name": name}, bundle and folder / "bundles" / bundle


def resolved(value: Any, data: bytes) -> Any:
    """Arrays {dtype, shape, at} anywhere in it read from `data`: little-endian, row by row."""
    if isinstance(value, list):
        return [resolved(item, data) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dtype", "shape", "at"}:
        count = int(np.prod(value["shape"]))
        dtype = np.dtype(value["dtype"]).newbyteorder("<")
        return np.frombuffer(data, dtype, count, value["at"]).reshape(value["shape"])
    return {name: resolved(item, data) for name, item in value.items()}


def check(case: Mapping[str, Any], bundle: Path | None) -> list[Row]:
    """Run one case and compare all that is expected of it."""
    found = run(case, bundle)
    return [
        Row(case["name"], name, difference(found[name], expected), case["within"][name])
        for name, expected in case["expected"].items()
    ]


def run(case: Mapping[str, Any], bundle: Path | None) -> Arrays:
    """What this runtime makes of a case."""
    do = globals()[f"do_{case['do']}"]
    return do(**case["given"]) if bundle is None else do(opened(bundle), **case["given"])


@cache
def opened(bundle: Path) -> MusicGen:
    return MusicGen.load(bundle)


def difference(found: Any, expected: Any) -> float:
    """Between floats the largest, as a share of the largest expected; else how many numbers are not the same."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return np.inf
    if expected.dtype.kind != "f":
        return float((found != expected).sum())
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max(initial=1e-30))


# Arithmetic, without a graph


def do_uniforms(seed: str, steps: int, codebooks: int) -> Any:
    return {"uniforms": uniforms(int(seed), steps, codebooks)}


def do_delay(codes: np.ndarray, delays: list[int], frames: int, special: int) -> Any:
    return {"columns": delay(codes[None], delays, frames, special)[0]}


def do_undelay(columns: np.ndarray, delays: list[int]) -> Any:
    return {"codes": undelay(columns[None], delays)[0]}


def do_windows(**given: Any) -> Any:
    try:
        found = list(windows(**given))
    except ValueError:
        return {"refused": True}
    return {"windows": [[w.start, w.known, w.frames] for w in found]}


def do_convert(audio: np.ndarray, from_rate: int, to_rate: int, channels: int) -> Any:
    return {"audio": convert_audio(audio[None], from_rate, to_rate, channels)[0]}


def do_to_source(audio: np.ndarray, rate: int, source_rate: int, source_channels: int) -> Any:
    """audio.to_source as it is without soxr."""
    length = math.floor(audio.shape[1] * source_rate / rate + 0.5)
    return {"audio": resample(convert_channels(audio, source_channels), rate, source_rate, length, exact=True)}


def do_splice(source: np.ndarray, generated: np.ndarray, seam: int, crossfade: int, lead: int) -> Any:
    return {"audio": splice(source, generated, seam, crossfade, lead)}


def do_match_level(source: np.ndarray, generated: np.ndarray, seam: int, lead: int, rate: int) -> Any:
    return {"gain": np.array([match_level(source, generated, seam, lead, rate)])}


# Text and sound


def text_of(model: MusicGen) -> TextEncoder:
    assert model.text
    return model.text


def do_tokens(model: MusicGen, text: str) -> Any:
    return {"ids": text_of(model).tokens(text)}


def do_text_states(model: MusicGen, text: str) -> Any:
    return {"states": text_of(model).encode([text])[0]}


def do_token_states(model: MusicGen, ids: list[int]) -> Any:
    return {"states": text_of(model).states(ids)}


def do_encode(model: MusicGen, audio: np.ndarray) -> Any:
    return {"codes": model.codec.encode(audio[None])[0]}


def do_decode(model: MusicGen, codes: np.ndarray) -> Any:
    return {"audio": model.codec.decode(codes[None].astype(np.int64))[0]}


def do_decode_stream(model: MusicGen, codes: np.ndarray, parts: list[int], size: int) -> Any:
    ends = np.cumsum(parts)[:-1].tolist()
    pieces = list(model.codec.decode_stream(np.split(codes[None].astype(np.int64), ends, axis=2), size))
    return {"audio": np.concatenate(pieces, axis=2)[0], "samples": [piece.shape[2] for piece in pieces]}


# The language model


def sampled(sampling: Mapping[str, Any]) -> Sampling:
    return Sampling(use_sampling=True, **sampling)


def do_logits(
    model: MusicGen,
    columns: np.ndarray,
    calls: list[int],
    texts: PerRow,
    self_wav: PerRow | None,
    sampling: Mapping[str, Any],
) -> Any:
    decoder = model.lm.decoder(len(columns), columns.shape[2], texts, sampled(sampling), self_wav)
    found, start = [], 0
    for size in calls:
        read = decoder.step if start else decoder.prefill
        read(columns[:, :, start : start + size].astype(np.int64), np.zeros(columns.shape[:2], np.float32))
        found.append(decoder.logits.copy())
        start += size
    return {"logits": np.stack(found)}


def do_generate(model: MusicGen, **given: Any) -> Any:
    generation = begin(model.lm, **given)
    for _ in generation:
        pass
    return {"codes": generation.codes()}


def do_generate_takes(model: MusicGen, **given: Any) -> Any:
    return do_generate(model, **given)


def begin(
    lm: LanguageModel,
    *,
    prompt: np.ndarray | None,
    texts: PerRow | None,
    self_wav: PerRow | None,
    sampling: Mapping[str, Any],
    seed: str | None,
    uniform: np.ndarray | None,
    batch: int,
    negatives: PerRow | None = None,
    takes: int = 1,
    **length: Any,  # frames, or duration, max_duration and extend_stride
) -> Any:
    wavs: SelfWav | None = (lambda _: self_wav) if self_wav else None
    how = {"sampling": sampled(sampling), "seed": None if seed is None else int(seed), "uniform": uniform}
    return lm.begin(prompt, texts, wavs, batch=batch, negative_states=negatives, takes=takes, **how, **length)


def do_continue(
    model: MusicGen,
    audio: np.ndarray | None,
    sample_rate: int | None,
    description: str | None,
    melody: np.ndarray | None,
    melody_sample_rate: int | None,
    takes: int,
    seed: str,
    duration: float,
    max_duration: float,
    extend_stride: float,
    sampling: Mapping[str, Any],
) -> Any:
    more: dict[str, Any] = {"return_tokens": True, "seed": int(seed), "takes": takes}
    descriptions = [description]
    if melody is not None:
        more |= {"melody_wavs": [melody], "melody_sample_rate": melody_sample_rate}
    with settings(model, max_duration, duration=duration, extend_stride=extend_stride, **sampling):
        if audio is not None:
            sound, codes = model.generate_continuation(audio, sample_rate or 0, descriptions, **more)
        elif melody is not None:
            sound, codes = model.generate_with_chroma(descriptions, **more)
        else:
            sound, codes = model.generate(descriptions, **more)
    return {"codes": codes, "audio": sound}


def do_continue_batch(
    model: MusicGen,
    audio: np.ndarray | None,
    sample_rate: int | None,
    codes: np.ndarray | None,
    descriptions: list[str | None],
    negatives: list[str | None] | None,
    melodies: list[np.ndarray | None] | None,
    melody_sample_rate: int | None,
    style_features: PerRow | None,
    takes: int,
    seed: str | list[str],
    duration: float,
    max_duration: float,
    extend_stride: float,
    sampling: Mapping[str, Any],
) -> Any:
    seeds = int(seed) if isinstance(seed, str) else [int(one) for one in seed]
    more: dict[str, Any] = {"return_tokens": True, "seed": seeds, "takes": takes, "negative_descriptions": negatives}
    wavs = {} if melodies is None else {"melody_wavs": melodies, "melody_sample_rate": melody_sample_rate}
    with settings(model, max_duration, duration=duration, extend_stride=extend_stride, **sampling):
        if style_features is not None:
            _, made = model.generate_with_style(descriptions, style_features, **more)
        elif audio is None and codes is None:
            call = model.generate if melodies is None else model.generate_with_chroma
            _, made = call(descriptions, **wavs, **more)
        else:
            given = {"prompt": audio, "prompt_sample_rate": sample_rate, "prompt_codes": codes}
            _, made = model.generate_continuation(descriptions=descriptions, **given, **wavs, **more)
    return {"codes": made}


@contextmanager
def settings(model: MusicGen, max_duration: float, **params: Any) -> Iterator[None]:
    """A model with a case's settings; the length of its windows is put back afterwards."""
    before = model.max_duration
    try:
        model.max_duration = max_duration
        model.set_generation_params(**params)
        yield
    finally:
        model.max_duration = before


if __name__ == "__main__":
    main()
