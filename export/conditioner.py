"""The graph of melody and style models that reads a sound: lm_melody.onnx or lm_style.onnx, in float32 always."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clean_lm.manifest import Manifest
from clean_lm.models.chroma import Melody
from clean_lm.models.config import LMConfig, MelodyConfig, StyleConfig
from clean_lm.models.quantizer import negative_distance
from clean_lm.models.style import Style
from export.onnx_graph import TensorSpec, write
from export.verify import AGREES, DISAGREES, SHARP, TOLERANCE
from weights.mapping import Model, fill

DTYPE = torch.float32
FEATURE_RATE, FEATURE_SAMPLE_RATE = 75, 24_000  # MERT's: features a second, of a sound at this rate
SECONDS = (0.2, 7.0)  # of the sounds that are compared: one shorter than a frame
CLEAR = 1e-4  # of the largest: where the best and the second are closer, rounding may choose either


def write_graph(model: Model[LMConfig], folder: Path) -> str:
    """Write the graph with its weights to `folder`. Returns its name: the file's, without .onnx."""
    kind, module = conditioner(model)
    inputs, output = self_wav_ports(model.config.self_wav)
    name = f"lm_{kind}"
    write(module, model.weights(kind, DTYPE), DTYPE, inputs, [output], folder / f"{name}.onnx")
    return name


def conditioner(model: Model[LMConfig]) -> tuple[str, Melody | Style]:
    """Which conditioner a model has, by the name of its component, and its module, not filled."""
    c = model.config.self_wav
    assert c is not None
    return ("melody", Melody(c)) if isinstance(c, MelodyConfig) else ("style", Style(c))


def self_wav_ports(c: MelodyConfig | StyleConfig | None) -> tuple[dict[str, TensorSpec], TensorSpec]:
    """What goes into the graph, by argument, and what comes out."""
    assert c is not None
    if isinstance(c, MelodyConfig):
        audio = TensorSpec("audio", DTYPE, ("melodies", "samples"))
        return {"audio": audio}, TensorSpec("self_wav", DTYPE, ("melodies", c.frames, c.output_dim))
    features = TensorSpec("features", DTYPE, ("styles", "features", c.features))
    eval_q = TensorSpec("eval_q", torch.int64, ())
    return {"features": features, "eval_q": eval_q}, TensorSpec("self_wav", DTYPE, ("styles", "tokens", c.output_dim))


def describe(c: MelodyConfig | StyleConfig) -> dict[str, Any]:
    """What the manifest's `model` says of the conditioner, beside the sizes that its graph's tensors show."""
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


def parity(bundle: Path, model: Model[LMConfig], seed: int = 0) -> str:
    """One line on the graph beside the PyTorch modules in float64, on random input; it begins with the verdict."""
    kind, _ = conditioner(model)
    graph = Manifest.read(bundle, hashes=False).graph(f"lm_{kind}")
    compared: list[np.ndarray] = []
    vectors = 0
    for feed in feeds(model.config.self_wav, np.random.default_rng(seed)):
        (exact, margin), (own, _) = (reference(model, feed, dtype) for dtype in (torch.float64, DTYPE))
        (ours,) = graph.session.run(["self_wav"], feed)
        compared.append(np.stack([np.asarray(ours), own, exact])[:, margin > CLEAR])
        vectors += margin.size
    ours, own, exact = np.concatenate(compared, axis=1)
    largest = np.abs(exact).max()
    difference, rounding = (float(np.abs(x - exact).max() / largest) for x in (ours, own))
    tolerance = max(TOLERANCE, SHARP * rounding)
    return (
        f"{AGREES if difference <= tolerance else DISAGREES} with the PyTorch modules: {len(exact)} of {vectors} "
        f"vectors of lm_{kind}, those of a clear choice, largest difference {difference:.1e} of the largest value "
        f"(tolerance {tolerance:.1e}, PyTorch's own {rounding:.1e})"
    )


def feeds(c: MelodyConfig | StyleConfig | None, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Random input: sounds of two lengths, or features of an excerpt, told in one level and in all."""
    assert c is not None
    if isinstance(c, MelodyConfig):
        sounds = [0.3 * rng.standard_normal((2, int(seconds * c.sample_rate))) for seconds in SECONDS]
        return [{"audio": sound.astype(np.float32)} for sound in sounds]
    features = rng.standard_normal((2, int(c.length * FEATURE_RATE), c.features)).astype(np.float32)
    return [{"features": features, "eval_q": np.array(levels)} for levels in (1, c.levels)]


@torch.inference_mode()
def reference(model: Model[LMConfig], feed: dict[str, np.ndarray], dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The PyTorch modules in `dtype` -> self_wav [M, T, output_dim], how clear its choices are [M, T]."""
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
    """How far the best is before the second, as a share of the largest: scores [..., n] -> [...]."""
    best, second = scores.topk(2, dim=-1).values.unbind(dim=-1)
    return (best - second) / scores.abs().amax(dim=-1)
