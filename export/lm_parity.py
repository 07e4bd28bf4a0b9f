"""The language model of a bundle beside the PyTorch modules on random input, and beside upstream's own arrays."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clean_lm.delay_pattern import delay, prefill_length
from clean_lm.language_model import LanguageModel
from clean_lm.models.config import LMConfig
from export.opened import Bundle, mapped_language_model, opened
from export.parity import Comparison, compare
from export.quality import always
from export.reference import DOUBLE, GUIDED, Request, null_wav, reference_logits
from weights.mapping import Model

PREFILL, STEPS = 13, 20  # columns of the first call; calls after it
STYLE_TOKENS = 15  # of a style of 3 s


def parity(bundle: Bundle, model: Model[LMConfig], seed: int = 0, variant: str | None = None) -> list[Comparison]:
    """A variant of a bundle beside the PyTorch modules in float64, on random codes and conditions: with guidance and
    without conditions; melody and style models with double guidance too."""
    rng = np.random.default_rng(seed)
    c = model.config
    columns = rng.integers(0, c.card, (1, c.codebooks, PREFILL + STEPS))
    columns[:, :, 0] = c.special_token
    no_melody = null_wav(model)
    requests = random_requests(c, rng, STYLE_TOKENS if no_melody is None else len(no_melody))
    references = {
        dtype: reference_logits(model, columns, requests, no_melody, dtype)
        for dtype in dict.fromkeys((torch.float64, own_dtype(bundle, variant)))
    }
    # The bundle is opened last: its weights and PyTorch's are not in memory at once.
    lm = mapped_language_model(opened(bundle, variant=variant, hashes=False))
    exact, rounded = references.values()
    found = []
    for case, request in requests.items():
        theirs, pytorch = (logits[case][PREFILL - 1 :] for logits in (exact, rounded))
        found += compare(case, PREFILL, bundle_logits(lm, columns, PREFILL, request), theirs, pytorch)
    return found


def bundle_logits(lm: LanguageModel, columns: np.ndarray, prefill: int, request: Request) -> np.ndarray:
    """The graphs on given columns int64 [B, K, S]: a prefill, then one by one -> guided logits [calls, B, K, card]."""
    batch, _, length = columns.shape
    decoder = lm.decoder(batch, length, request.texts, request.sampling, request.self_wav)
    uniform = np.zeros(columns.shape[:2], dtype=np.float32)
    logits = []
    for start, end in calls(prefill, length):
        call = decoder.step if start else decoder.prefill
        call(columns[:, :, start:end], uniform)
        logits.append(decoder.logits.copy())
    return np.stack(logits)


def calls(prefill: int, length: int) -> list[tuple[int, int]]:
    """Which columns each call reads: the prefill, then one a step."""
    return [(0, prefill), *((s, s + 1) for s in range(prefill, length))]


def own_dtype(bundle: Bundle, variant: str | None) -> torch.dtype:
    """The precision that a variant computes in."""
    manifest = opened(bundle, variant=variant, hashes=False)
    return getattr(torch, manifest.graphs["lm_inference"].inputs["past_key_values.0.key"].dtype)


def random_requests(c: LMConfig, rng: np.random.Generator, places: int) -> dict[str, Request]:
    """The cases of a comparison by name; places: how many a melody or style takes in the prefix."""
    text = [rng.standard_normal((7, c.text_dim), dtype=np.float32)]
    if c.self_wav is None:
        return {"guided": Request(text), "null text": Request([None])}
    wav = [rng.standard_normal((places, c.dim), dtype=np.float32)]
    return {"guided": Request(text, wav), "double": Request(text, wav, DOUBLE), "nothing": Request([None])}


def golden(bundle: Path, folder: Path, variant: str | None = None) -> tuple[list[Comparison], list[str]]:
    """A variant beside upstream's arrays: logits of every step, and the tokens of every greedy generation.

    folder: golden.npz and meta.json, as tests/golden/README.md names their arrays.
    Returns the comparisons, and a line for every case whose tokens differ.
    """
    arrays = np.load(folder / "golden.npz")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    lm = LanguageModel.load(bundle, variant=variant, hashes=False)
    found, wrong = [], []
    for case, entry in meta["gen"].items():
        tokens, request = arrays[f"gen.{case}.tokens"], golden_request(arrays, meta, entry)
        prompt = arrays.get(f"gen.{case}.prompt")
        differ = count_different_tokens(lm, prompt, request, tokens)
        if differ:
            wrong.append(f"{case}: {differ} of {tokens.size} tokens differ from upstream's")
        if f"gen.{case}.step_logits" in arrays:
            columns = delay(tokens, lm.delays, tokens.shape[2], lm.special_token)[:, :, :-1]
            prefill = prefill_length(0 if prompt is None else prompt.shape[2], lm.delays)
            logits = bundle_logits(lm, columns, prefill, request)
            found += compare(case, prefill, logits, arrays[f"gen.{case}.step_logits"])
    return found, wrong


def count_different_tokens(lm: LanguageModel, prompt: np.ndarray | None, request: Request, tokens: np.ndarray) -> int:
    """How many of the tokens int64 [B, K, T] our generation of the same request has otherwise."""
    self_wav = always(request.self_wav)
    ours = lm.generate_codes(prompt, request.texts, self_wav, frames=tokens.shape[2], sampling=request.sampling)
    return int((ours != tokens).sum())


def golden_request(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], entry: Mapping[str, Any]) -> Request:
    """What a case of the goldens asks for; entry: its own in meta.json."""
    texts, self_wav = golden_texts(arrays, meta), None
    options = {name: value for name, value in entry["kwargs"].items() if name != "max_gen_len"}
    if entry.get("wav"):
        self_wav = [arrays["cond.desc.self_wav"][0] if wav else None for wav in entry["wav"]]
    states = [texts[description] for description in entry["descriptions"]]
    return Request(states, self_wav, replace(GUIDED, **options))


def golden_texts(arrays: Mapping[str, np.ndarray], meta: Mapping[str, str]) -> dict[str | None, np.ndarray | None]:
    """The text encoder's states [N, E] of the two descriptions that the goldens use, without padding."""
    states, mask = arrays["t5.two.hidden"], arrays["t5.two.attention_mask"].astype(bool)
    return {meta["D1"]: states[0][mask[0]], meta["D2"]: states[1][mask[1]], None: None}
