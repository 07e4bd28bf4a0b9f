"""The graph that encodes melody or style audio into the conditioning prefix: lm_melody.onnx or lm_style.onnx.

It is float32 in every variant.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clean_lm.models.chroma import Melody
from clean_lm.models.config import LMConfig, MelodyConfig, StyleConfig
from clean_lm.models.quantizer import negative_distance
from clean_lm.models.style import Style
from clean_lm.session import open_graph
from export.onnx_graph import TensorSpec, write
from export.opened import Bundle, opened
from export.parity import Verdict, largest_difference
from weights.mapping import Model, fill

DTYPE = torch.float32
FEATURE_RATE, FEATURE_SAMPLE_RATE = 75, 24_000  # MERT's: features a second, of a sound at this rate
SECONDS = (0.2, 7.0)  # of the melodies that are compared: one shorter than a frame
CLEAR = 1e-4  # of the largest score: where the best and the second are closer, rounding may choose either


def write_graph(model: Model[LMConfig], folder: Path) -> str:
    """Write the graph with its weights. Returns its name: the file's, without .onnx."""
    kind, module = conditioner(model)
    inputs, output = self_wav_specs(model.config.self_wav)
    name = f"lm_{kind}"
    write(module, model.weights(kind, DTYPE), DTYPE, inputs, [output], folder / f"{name}.onnx")
    return name


def conditioner(model: Model[LMConfig]) -> tuple[str, Melody | Style]:
    """The name of a model's conditioner, "melody" or "style", and its module without weights."""
    c = model.config.self_wav
    assert c is not None
    return ("melody", Melody(c)) if isinstance(c, MelodyConfig) else ("style", Style(c))


def self_wav_specs(c: MelodyConfig | StyleConfig | None) -> tuple[dict[str, TensorSpec], TensorSpec]:
    """The inputs of the graph, by argument, and its output."""
    assert c is not None
    if isinstance(c, MelodyConfig):
        audio = TensorSpec("audio", DTYPE, ("melodies", "samples"))
        return {"audio": audio}, TensorSpec("self_wav", DTYPE, ("melodies", c.frames, c.output_dim))
    features = TensorSpec("features", DTYPE, ("styles", "features", c.features))
    eval_q = TensorSpec("eval_q", torch.int64, ())
    return {"features": features, "eval_q": eval_q}, TensorSpec("self_wav", DTYPE, ("styles", "tokens", c.output_dim))


def describe(c: MelodyConfig | StyleConfig) -> dict[str, Any]:
    """What the manifest's `model` says of the conditioner; its sizes are those of its graph's tensors."""
    if isinstance(c, MelodyConfig):
        return {"self_wav": "melody"}
    return {
        "self_wav": "style",
        "style_length": c.length,
        "style_sample_rate": FEATURE_SAMPLE_RATE,
        "style_rate": FEATURE_RATE,
        "style_ds_factor": c.ds_factor,
        "style_levels": c.levels,
        "style_eval_q": c.eval_q,
    }


def parity(bundle: Bundle, model: Model[LMConfig], seed: int = 0) -> Verdict:
    """The graph beside the PyTorch modules in float64, on random input.

    Only vectors whose choices (of pitches, of codes) are clear count: elsewhere rounding may choose another.
    """
    kind, _ = conditioner(model)
    graph = open_graph(opened(bundle, hashes=False), f"lm_{kind}")
    compared: list[np.ndarray] = []
    vectors = 0
    for feed in feeds(model.config.self_wav, np.random.default_rng(seed)):
        (exact, margin), (pytorch, _) = (reference(model, feed, dtype) for dtype in (torch.float64, DTYPE))
        ours = graph.run(feed)["self_wav"]
        compared.append(np.stack([ours, pytorch, exact])[:, margin > CLEAR])
        vectors += margin.size
    ours, pytorch, exact = np.concatenate(compared, axis=1)
    difference = largest_difference(ours, pytorch, exact, "the largest value")
    return Verdict(f"{len(exact)} of {vectors} vectors of lm_{kind}, those of a clear choice", (difference,))


def verdicts(bundle: Bundle, model: Model[LMConfig]) -> dict[str, Verdict]:
    """By the graph's name; {} for a model without one."""
    return {f"lm_{conditioner(model)[0]}": parity(bundle, model)} if model.config.self_wav else {}


def feeds(c: MelodyConfig | StyleConfig | None, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Random input: melodies of two lengths, or a style's features with one level of its codebooks and with all."""
    assert c is not None
    if isinstance(c, MelodyConfig):
        sounds = [0.3 * rng.standard_normal((2, int(seconds * c.sample_rate))) for seconds in SECONDS]
        return [{"audio": sound.astype(np.float32)} for sound in sounds]
    features = rng.standard_normal((2, int(c.length * FEATURE_RATE), c.features)).astype(np.float32)
    return [{"features": features, "eval_q": np.array(levels)} for levels in (1, c.levels)]


@torch.inference_mode()
def reference(model: Model[LMConfig], feed: dict[str, np.ndarray], dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The PyTorch modules in `dtype` -> self_wav [M, T, output_dim], the smallest lead of its choices [M, T]."""
    kind, module = conditioner(model)
    fill(module, model.weights(kind, dtype))
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    tensors = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
    if isinstance(module, Melody):
        margin = module.fit(lead(module.chroma(tensors["audio"])))
    else:
        left = module.encode(tensors["features"])
        margin = torch.full(left.shape[:2], torch.inf, dtype=dtype)
        for code, table in zip(module.quantize(left).unbind(dim=1), module.codebooks, strict=True):
            margin = margin.minimum(lead(negative_distance(left, table)))
            left = left - table[code]
    return module(**tensors).numpy(), margin.numpy()


def lead(scores: Tensor) -> Tensor:
    """How far the best is ahead of the second, as a share of the largest: scores [..., n] -> [...]."""
    best, second = scores.topk(2, dim=-1).values.unbind(dim=-1)
    return (best - second) / scores.abs().amax(dim=-1)
