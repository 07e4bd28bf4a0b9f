"""Compare a bundle with the PyTorch modules that it was exported from, and with upstream's own arrays.

  python export/verify.py --bundle bundle --ckpt state_dict.bin
  python export/verify.py --bundle bundle --ckpt state_dict.bin --golden tests/golden/text
  python export/verify.py --bundle bundle --ckpt state_dict.bin --quality --clip loop.wav

A row for every call of the model, on the same codes: the prefill and each step, guided and null text. Differences are
of logits, from the PyTorch modules in float64. "of largest" is the largest difference as a share of the largest logit,
"PyTorch" the same for the PyTorch modules in the bundle's own precision. A call agrees within 5e-5, or within four
times PyTorch's own worst where a sharp model rounds more. Variants with rounded weights cannot agree: --quality says
what they cost beside fp32, on the clips' own codes, or without clips on what fp32 draws. Exits with 1 where a call does
not agree, a generation of --golden has other tokens than upstream's, or the default variant is worse than the bounds.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clean_lm.audio import AudioError
from clean_lm.delay_pattern import delay, prefill_length
from clean_lm.manifest import BundleError, Manifest
from clean_lm.models.config import ConfigError, LMConfig
from clean_lm.runtime import LanguageModel
from export.bundle_writer import describe, reported
from export.lm_graphs import CACHE_UPDATE, LM_GRAPHS, write_graphs
from export.quality import Reference, always, calibrate, measure
from export.reference import DOUBLE, GUIDED, Told, calls, null_wav, reference_logits
from weights.checkpoint import CheckpointError
from weights.lm import load
from weights.mapping import MappingError, Model

PREFILL, STEPS = 13, 20
STYLE_TOKENS = 15  # of 3 s
TOLERANCE = 5e-5  # of the largest logit
SHARP = 4  # times PyTorch's own rounding error
AGREES, DISAGREES = "agrees", "DISAGREES"
EXACT = ("fp32", "fp16")  # variants whose weights are not rounded to codes


@dataclass(frozen=True)
class Comparison:
    """One call of the model, ours beside a reference."""

    case: str
    call: str
    max: float  # difference of logits
    mean: float
    relative: float  # max, as a share of the case's largest logit
    tolerance: float  # of relative
    pytorch: float  # what PyTorch in the same precision has for relative
    top5: float  # share of the reference's five best codes that are among ours
    tokens: float  # share of greedy codes that are equal

    @property
    def agrees(self) -> bool:
        return self.relative <= self.tolerance


def compare(
    case: str, prefill: int, ours: np.ndarray, reference: np.ndarray, pytorch: np.ndarray | None = None
) -> list[Comparison]:
    """Logits [calls, B, K, card], the first call a prefill of that many columns."""
    largest = np.abs(reference).max()
    own = np.zeros(len(ours)) if pytorch is None else np.abs(pytorch - reference).max((1, 2, 3)) / largest
    rows = []
    for i, (x, y) in enumerate(zip(ours.astype(np.float64), reference.astype(np.float64), strict=True)):
        best_x, best_y = (np.argsort(-logits, axis=-1, kind="stable")[..., :5] for logits in (x, y))
        rows.append(
            Comparison(
                case,
                f"prefill of {prefill}" if i == 0 else f"step {i}",
                max=float(np.abs(x - y).max()),
                mean=float(np.abs(x - y).mean()),
                relative=float(np.abs(x - y).max() / largest),
                tolerance=max(TOLERANCE, SHARP * float(own.max())),
                pytorch=float(own[i]),
                top5=float((best_x[..., None] == best_y[..., None, :]).any(-1).mean()),
                tokens=float((best_x[..., 0] == best_y[..., 0]).mean()),
            )
        )
    return rows


def bundle_logits(lm: LanguageModel, columns: np.ndarray, prefill: int, told: Told) -> np.ndarray:
    """The graphs on the same: [calls, B, K, card]."""
    batch, _, length = columns.shape
    decoder = lm.decoder(batch, length, told.texts, told.sampling, told.wavs)
    uniform = np.zeros(columns.shape[:2], dtype=np.float32)
    logits = []
    for start, end in calls(prefill, length):
        decoder(columns[:, :, start:end], uniform)
        logits.append(decoder.logits.copy())
    return np.stack(logits)


def parity(bundle: Path, model: Model[LMConfig], seed: int = 0, variant: str | None = None) -> list[Comparison]:
    """A variant of the bundle beside the PyTorch modules: random codes and text states, guided and with nothing told;
    melody and style models with random ones, and with double guidance too."""
    rng = np.random.default_rng(seed)
    c = model.config
    columns = rng.integers(0, c.card, (1, c.codebooks, PREFILL + STEPS))
    columns[:, :, 0] = c.special_token
    nothing = null_wav(model)
    cases = random_cases(c, rng, STYLE_TOKENS if nothing is None else len(nothing))
    references = {
        dtype: {case: reference_logits(model, columns, PREFILL, told, nothing, dtype) for case, told in cases.items()}
        for dtype in dict.fromkeys((torch.float64, own_dtype(bundle, variant)))
    }
    # The bundle is opened last: its weights and PyTorch's are not in memory at once.
    lm = LanguageModel.load(bundle, variant=variant, hashes=False)
    exact, *rounded = references.values()
    steps = []
    for case, told in cases.items():
        ours = bundle_logits(lm, columns, PREFILL, told)
        steps += compare(case, PREFILL, ours, exact[case], rounded[0][case])
    return steps


def own_dtype(bundle: Path, variant: str | None) -> torch.dtype:
    """The precision that a variant computes in."""
    manifest = Manifest.read(bundle, variant=variant, hashes=False)
    return getattr(torch, manifest.tensor("lm_inference", "past_key_values.0.key")["dtype"])


def random_cases(c: LMConfig, rng: np.random.Generator, places: int) -> dict[str, Told]:
    """What a model is told in a comparison; places: of a melody or style."""
    text = [rng.standard_normal((7, c.text_dim), dtype=np.float32)]
    if c.self_wav is None:
        return {"guided": Told(text), "null text": Told([None])}
    wav = [rng.standard_normal((places, c.dim), dtype=np.float32)]
    return {"guided": Told(text, wav), "double": Told(text, wav, DOUBLE), "nothing": Told([None])}


def golden(bundle: Path, folder: Path, variant: str | None = None) -> tuple[list[Comparison], list[str]]:
    """A variant beside upstream's arrays: logits of every step, and the tokens of every greedy generation.

    folder: golden.npz and meta.json, as tests/golden/README.md names their arrays.
    Returns the comparisons, and a line for every case whose tokens differ.
    """
    arrays = np.load(folder / "golden.npz")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    lm = LanguageModel.load(bundle, variant=variant, hashes=False)
    steps, wrong = [], []
    for case, said in meta["gen"].items():
        tokens, prompt = arrays[f"gen.{case}.tokens"], arrays.get(f"gen.{case}.prompt")
        told = golden_told(arrays, meta, said)
        ours = lm.generate_codes(prompt, told.texts, always(told.wavs), frames=tokens.shape[2], sampling=told.sampling)
        if not np.array_equal(ours, tokens):
            wrong.append(f"{case}: {(ours != tokens).sum()} of {tokens.size} tokens differ from upstream's")
        if f"gen.{case}.step_logits" in arrays:
            columns = delay(tokens, lm.delays, tokens.shape[2], lm.special_token)[:, :, :-1]
            prefill = prefill_length(0 if prompt is None else prompt.shape[2], lm.delays)
            logits = bundle_logits(lm, columns, prefill, told)
            steps += compare(case, prefill, logits, arrays[f"gen.{case}.step_logits"])
    return steps, wrong


def golden_told(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], said: Mapping[str, Any]) -> Told:
    """What a case of the goldens is told; said: its entry in meta.json."""
    texts, wavs = golden_texts(arrays, meta), None
    given = {name: value for name, value in said["kwargs"].items() if name != "max_gen_len"}
    if said.get("wav"):
        wavs = [arrays["cond.desc.self_wav"][0] if wav else None for wav in said["wav"]]
    states = [texts[description] for description in said["descriptions"]]
    return Told(states, wavs, replace(GUIDED, **given))


def golden_texts(arrays: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> dict[str | None, np.ndarray | None]:
    """The text encoder's states [N, E] of the two descriptions that the goldens use, without padding."""
    states, mask = arrays["t5.two.hidden"], arrays["t5.two.attention_mask"].astype(bool)
    return {meta["D1"]: states[0][mask[0]], meta["D2"]: states[1][mask[1]], None: None}


def table(steps: list[Comparison]) -> list[str]:
    """The comparisons in columns."""
    heads = f"{'max':>9}{'mean':>10}{'of largest':>12}{'PyTorch':>10}{'top 5':>8}{'tokens':>8}"
    lines = [f"{'case':<12}{'call':<16}{heads}"]
    for s in steps:
        pytorch = f"{s.pytorch:.1e}" if s.pytorch else "-"
        numbers = f"{s.max:>9.1e}{s.mean:>10.1e}{s.relative:>12.1e}{pytorch:>10}{s.top5:>8.1%}{s.tokens:>8.1%}"
        lines.append(f"{s.case:<12}{s.call:<16}{numbers}{'' if s.agrees else '  <-'}")
    return lines


def summary(steps: list[Comparison], reference: str) -> str:
    """One line on all comparisons with one reference."""
    worst = max(steps, key=lambda s: s.relative / s.tolerance)
    tokens = sum(s.tokens for s in steps) / len(steps)
    verdict = AGREES if worst.agrees else DISAGREES
    return (
        f"{verdict} with {reference}: {len(steps)} calls, largest difference {worst.relative:.1e} of the largest logit "
        f"({worst.case}, {worst.call}; tolerance {worst.tolerance:.1e}), greedy tokens equal {tokens:.2%}"
    )


def same_model(bundle: Path, model: Model) -> None:
    """Raise BundleError where the bundle's sizes are not the checkpoint's."""
    said = {name: tuple(v) if isinstance(v, list) else v for name, v in Manifest.read(bundle).need("model").items()}
    has = {name: getattr(model.config, name, value) for name, value in said.items()}
    other = [f"{name} {said[name]} (the checkpoint has {has[name]})" for name in said if said[name] != has[name]]
    if other:
        raise BundleError(f"{bundle}: exported from another model than {model.checkpoint.path}: {', '.join(other)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--ckpt", type=Path, required=True, help="the checkpoint that the bundle was exported from")
    parser.add_argument("--golden", type=Path, help="folder of upstream's arrays for this checkpoint")
    parser.add_argument("--quality", action="store_true", help="measure what every variant costs beside fp32")
    parser.add_argument("--clip", nargs="+", type=Path, default=[], help="sound to measure on")
    args = parser.parse_args()
    errors = AudioError, BundleError, CheckpointError, ConfigError, MappingError, FileNotFoundError
    with reported(*errors, interrupted="nothing was verified"):
        agrees = verify(args.bundle, args.ckpt, args.golden, args.quality or bool(args.clip), args.clip)
        sys.exit(0 if agrees else 1)


def verify(bundle: Path, ckpt: Path, folder: Path | None, quality: bool = False, clips: Sequence[Path] = ()) -> bool:
    """Print the tables; whether everything agrees, and the default is within the bounds."""
    model = load(ckpt)
    same_model(bundle, model)
    held = list(Manifest.read(bundle).need("variants"))
    exact = [name for name in held if name in EXACT]
    if not exact and not quality:
        raise BundleError(f"{bundle}: {', '.join(held)} only, whose weights are rounded: measure it with --quality")
    checks, wrong = [(name, "the PyTorch modules", parity(bundle, model, variant=name)) for name in exact], []
    if folder and "fp32" in exact:
        steps, wrong = golden(bundle, folder, "fp32")
        checks.append(("fp32", "upstream's arrays", steps))
    for _, _, steps in checks:
        print("\n".join(table(steps)), end="\n\n")
    for name, reference, steps in checks:
        print(f"{'' if name == 'fp32' else name + ' '}{summary(steps, reference)}")
    if folder and "fp32" in exact:
        print("\n".join(wrong) or "every greedy generation has upstream's tokens")
    agrees = not wrong and all(s.agrees for _, _, steps in checks for s in steps)
    return cost(bundle, model, clips) and agrees if quality else agrees


def cost(bundle: Path, model: Model[LMConfig], clips: Sequence[Path]) -> bool:
    """Print what every variant costs beside fp32, the checkpoint's where the bundle has none; whether the default is
    within the bounds."""
    manifest = Manifest.read(bundle, hashes=False)
    names = [name for name in manifest.tree["variants"] if name != "fp32"]
    with exact_model(manifest, model) as lm:
        measured, _ = calibrate(lm, bundle, clips)
        reference = Reference(lm, measured)
    found = {name: measure(LanguageModel.load(bundle, variant=name, hashes=False), reference) for name in names}
    print("\n" + "\n".join(f"{name:8} {quality.line()}" for name, quality in found.items()))
    default = manifest.tree["variant"]
    return default == "fp32" or found[default].within_bounds


@contextlib.contextmanager
def exact_model(manifest: Manifest, model: Model[LMConfig]) -> Iterator[LanguageModel]:
    """The fp32 variant of a bundle, or where it has none one that is exported for the while."""
    if "fp32" in manifest.tree["variants"]:
        yield LanguageModel.load(manifest.folder, variant="fp32", hashes=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        attention = next(name for name, update in CACHE_UPDATE.items() if update == manifest.tree["cache_update"])
        write_graphs(model, Path(folder), attention, torch.float32)
        graphs = {name: describe(Path(folder) / f"{name}.onnx") for name in LM_GRAPHS}
        yield LanguageModel.open(Manifest(Path(folder), {**manifest.tree, "graphs": graphs, "files": {}}, {}))


if __name__ == "__main__":
    main()
