"""Variants: codes and scales, the rewritten graphs beside the arithmetic that they stand for, quality, the manifest."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import soundfile as sf
import torch
from onnx import TensorProto, helper, numpy_helper

from clean_lm import atomic
from clean_lm.conditioning import Conditioning
from clean_lm.generation import Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError, Manifest, sha256
from clean_lm.models.lm import LM, Condition
from clean_lm.models.transformer import StandardAttention
from clean_lm.musicgen import MusicGen
from demo.checkpoint import TINY
from export import quality, quantize, rounding, sensitivity
from export.bundle_weights import BundleWeights
from export.bundle_writer import preferred
from export.commands import ExportError
from export.layerwise import MATRICES, Sequences, hessians
from export.lm import export
from export.parity import TOLERANCE
from export.quality import GREEDY, Codes, Exact, Quality, Reference, log_probabilities, measure
from export.quantize import add
from export.rewrite import Calibrated, rewrite
from export.rounding import Blocks, Storage, gptq, pack, quantize_columns, to_nearest
from export.sensitivity import costs, most_sensitive
from export.variants import FP32, VARIANTS, Storing, Variant
from tests.support import GOLDEN, PREFIXED, ROOT
from weights.mapping import fill

pytestmark = pytest.mark.export

QUANTIZED = tuple(name for name, variant in VARIANTS.items() if variant.bits)


@pytest.fixture(scope="module", autouse=True)
def short_samples() -> Iterator[None]:
    """Tiny models have little to say: fewer and shorter draws to round them on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "SAMPLES", (50, 50))
        yield


@pytest.fixture(scope="module")
def variants(music, tmp_path_factory) -> Path:
    """A whole bundle with every variant; do not change it."""
    folder = tmp_path_factory.mktemp("variants") / "bundle"
    shutil.copytree(music("text", True), folder)
    add(folder, list(VARIANTS))
    return folder


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


# Codes and scales


def rounded(weight: torch.Tensor, storage: Storage) -> torch.Tensor:
    """A matrix as it is read back."""
    return to_nearest(weight, storage).weight(len(weight))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks(bits, block):
    """No weight is farther from what is read back than half a step, but where a smaller step helps the others."""
    weight = normal(200, 24)
    blocks = to_nearest(weight, Storage(bits, block))
    count = -(-200 // block)
    assert (blocks.codes.shape, blocks.scales.shape) == ((24, count, block), (24, count))
    assert (blocks.codes.dtype, blocks.zeros) == (torch.uint8, None)
    assert int(blocks.codes.max()) < 2**bits
    back = blocks.weight(200)
    largest = torch.nn.functional.pad(weight.T, (0, count * block - 200)).reshape(24, count, block).abs().amax(-1)
    plain = largest / (2 ** (bits - 1) - 1)  # the step of absmax quantization
    step = plain.repeat_interleave(block, dim=1)[:, :200].T
    assert ((back - weight).abs() <= 3 * step).all()
    absmax = (weight / step).round() * step
    assert (back - weight).square().sum() <= (absmax - weight).square().sum()
    assert (((back - weight).abs() <= 0.5 * step).float().mean()) > 0.95


def test_zero_points():
    """Blocks whose values lie on one side have steps as small as their range allows; the padding is zero."""
    weight = normal(200, 24) + 3
    symmetric, blocks = (to_nearest(weight, Storage(4, 64, zero_points)) for zero_points in (False, True))
    assert blocks.zeros is not None
    assert (blocks.zeros.shape, blocks.zeros.dtype) == ((24, 4), torch.uint8)
    errors = [(b.weight(200) - weight).square().mean() for b in (symmetric, blocks)]
    assert errors[1] < 0.5 * errors[0]
    assert (blocks.weight(256)[200:] == 0).all()
    whole = torch.tensor([[-5.0, 0.0, 10.0]]).T  # steps of one: exact, and zero stays zero
    assert rounded(whole, Storage(4, 16, True)).tolist() == whole.tolist()


@pytest.mark.parametrize("zero_points", [False, True])
def test_blocks_of_zeros_and_of_one_value(zero_points):
    weight = torch.zeros(64, 3)
    weight[32:, 1] = 2.5
    weight[32:, 2] = -0.1
    torch.testing.assert_close(rounded(weight, Storage(4, 32, zero_points)), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("storage", [Storage(4, 32, True), Storage(4, 128, True), Storage(4, 32), Storage(8, 64)])
def test_gptq_keeps_what_the_matrix_gives(storage):
    """On inputs that are alike, as a layer's are, errors that do not show are traded for those that do."""
    weight, mix = normal(200, 24), normal(30, 200)
    x, other = normal(1000, 30) @ mix + 0.1 * normal(1000, 200), normal(500, 30)[200:] @ mix
    nearest, best = rounded(weight, storage), gptq(weight, x.T @ x, storage).weight(200)
    for read in (x, other):
        error, ours = ((read @ (w - weight)).square().mean() for w in (nearest, best))
        assert ours < 0.5 * error
    assert (best - weight).square().mean() > (nearest - weight).square().mean()


@pytest.mark.parametrize("rows", [24, 200])
@pytest.mark.parametrize("hessian", [0, 1])
def test_gptq_of_inputs_that_say_nothing(rows, hessian):
    """Inputs that have nothing to do with each other, and none at all: to the nearest."""
    weight, storage = normal(rows, 5), Storage(4, 32, True)
    ours, nearest = gptq(weight, hessian * torch.eye(rows), storage), to_nearest(weight, storage)
    torch.testing.assert_close(ours.weight(rows), nearest.weight(rows), rtol=0, atol=1e-6)
    assert ours.codes.shape == nearest.codes.shape


def test_gptq_is_the_definition():
    """One row after the other, the inverse of the Hessian computed anew for the rows that are left."""
    weight, x, storage = normal(32, 6).double(), normal(90, 32).double() @ normal(32, 32).double(), Storage(4, 16)
    hessian = x.T @ x
    damped = hessian + 0.1 * hessian.diagonal().mean() * torch.eye(32)
    left, expected, scales = weight.clone(), torch.zeros_like(weight), torch.zeros(0)
    for i in range(32):
        if i % 16 == 0:
            scales = to_nearest(left[i : i + 16].float(), storage).scales[:, 0].double()
        expected[i] = ((left[i] / scales).round().clamp(-8, 7)) * scales
        inverse = torch.linalg.inv(damped[i:, i:])
        left[i:] -= torch.outer(inverse[:, 0] / inverse[0, 0], left[i] - expected[i])
    ours = gptq(weight, hessian, storage).weight(32)
    assert ((ours - expected).abs() < 1e-4).float().mean() > 0.98  # float32 decides a few ties otherwise


@pytest.mark.parametrize("rows", [3, 1101])
def test_the_factor_of_a_hessian(rows):
    x = normal(2 * rows, rows).double()
    hessian = x.T @ x
    upper = rounding._inverse_factor(hessian).double()
    damped = hessian + 0.1 * hessian.diagonal().mean() * torch.eye(rows)
    torch.testing.assert_close(upper.T @ upper @ damped, torch.eye(rows).double(), rtol=0, atol=1e-5)
    assert torch.equal(upper, upper.triu())


def test_blocks_in_a_file(tmp_path):
    for zero_points in (False, True):
        blocks = to_nearest(normal(70, 3), Storage(4, 32, zero_points))
        blocks.save(tmp_path / "blocks")
        torch.testing.assert_close(Blocks.load(tmp_path / "blocks").weight(70), blocks.weight(70), rtol=0, atol=0)


def test_columns():
    weight = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    weight[:, 3] = 0
    codes, scales = quantize_columns(weight)
    back = (codes.float() - 128) * scales
    assert ((back - weight).abs() <= scales / 2 + 1e-7).all()
    assert (back[:, 3] == 0).all()


def test_packing():
    """The first of two codes lies in the lower half of a byte, as MatMulNBits has it."""
    codes = torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)
    assert pack(codes, 4).tolist() == [[0x21, 0x0F]]
    assert pack(codes, 8).tolist() == codes.tolist()


# Graphs


def graph_of(folder: Path, op: str, weight: np.ndarray) -> Path:
    """One MatMul or Gather."""
    if op == "MatMul":
        x, y, node = ("float", ["n", len(weight)]), ["n", weight.shape[1]], ["x", "w"]
    else:
        x, y, node = ("int64", ["n"]), ["n", weight.shape[1]], ["w", "x"]
    kinds = {"float": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, node, ["y"])],
        "one",
        [onnx.helper.make_tensor_value_info("x", kinds[x[0]], x[1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, y)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    path = folder / "one.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return np.asarray(ort.InferenceSession(str(path)).run(None, {"x": x})[0])


@pytest.mark.parametrize("size", [(256, 48), (200, 64), (24, 10)])
@pytest.mark.parametrize("name", QUANTIZED)
def test_a_matrix_is_the_one_of_its_codes(tmp_path, name, size):
    """Rows of the unit matrix survive the rounding of activations: what comes out is the matrix as it is read back."""
    variant = VARIANTS[name]
    if variant.dtype == "float16":
        variant = Variant(bits=variant.bits, block=variant.block, zero_points=variant.zero_points)
    weight = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    rewrite(graph_of(tmp_path, "MatMul", weight), tmp_path / "small.onnx", variant, Calibrated())
    found = run(tmp_path / "small.onnx", np.eye(size[0], dtype=np.float32))
    if variant.dynamic:
        codes, scales = quantize_columns(torch.from_numpy(weight))
        expected = ((codes.float() - 128) * scales).numpy()
    else:
        expected = rounded(torch.from_numpy(weight), variant.storage.fit(size[0])).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [16, 48, 128])
@pytest.mark.parametrize("variant", [VARIANTS["int4"], VARIANTS["dynamic"]])
def test_a_table_is_int8(tmp_path, variant, dim):
    table = np.random.default_rng(0).standard_normal((40, dim), dtype=np.float32)
    rewrite(graph_of(tmp_path, "Gather", table), tmp_path / "small.onnx", variant, Calibrated())
    found = run(tmp_path / "small.onnx", np.arange(40))
    np.testing.assert_allclose(found, table, rtol=0, atol=np.abs(table).max() / 250)
    assert (tmp_path / "small.onnx").stat().st_size < 2000 + 2 * table.nbytes // 4 + 40 * dim


def operators(path: Path) -> dict[str, int]:
    nodes = onnx.load(path, load_external_data=False).graph.node
    names = [node.op_type for node in nodes]
    return {name: names.count(name) for name in set(names)}


def test_what_is_rewritten(variants):
    """Every matrix and the table, and nothing that has no weights."""
    traced, layers = operators(variants / "lm_inference.onnx"), manifest(variants)["model"]["layers"]
    for name in QUANTIZED:
        found = operators(variants / f"lm_inference.{name}.onnx")
        attention = 6 * layers if VARIANTS[name].dynamic else 0  # which has operators of its own in the others
        assert found.get("MatMul", 0) == attention
        if VARIANTS[name].dynamic:
            assert not {"GroupQueryAttention", "MultiHeadAttention", "MatMulNBits"} & set(found)
            assert (found["MatMulInteger"], found["DynamicQuantizeLinear"]) == (traced["MatMul"], traced["MatMul"])
        else:
            assert found["MatMulNBits"] == traced["MatMul"]
            assert found["GatherBlockQuantized"] == 1


def test_nothing_is_left_of_the_weights(variants):
    """A variant's file holds its codes and scales, not what they were made of."""
    sizes = {name: (variants / f"lm_inference{suffix(name)}.onnx.data").stat().st_size for name in VARIANTS}
    assert sizes["int8"] < sizes["int8-32"] < 0.32 * sizes[FP32]
    assert sizes["int4"] < sizes["int4-32"] < sizes["int8"]
    assert sizes["int4"] < sizes["mixed"] < sizes["int8"]
    assert sizes["fp16"] < 0.55 * sizes[FP32]


def suffix(name: str) -> str:
    return "" if name == FP32 else f".{name}"


def test_an_int8_cache_is_the_keys_over_their_scales(variants):
    """Its channels have a scale each, and what the float cache holds is found in it, a step's half away."""
    graph = onnx.load(variants / "lm_inference.int8.onnx").graph
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if "past_key_values" in t.name}
    codes = np.random.default_rng(0).integers(0, 64, (1, 4, 30))
    caches = {}
    for name in ("int8", FP32):
        lm = LanguageModel.load(variants, variant=name)
        decoder = lm.decoder(1, 30, None, Sampling())
        decoder.prefill(codes, np.zeros((1, 4), np.float32))
        caches[name] = decoder.caches
    for name in ("past_key_values.0.key", "past_key_values.0.value"):
        scale = scales[f"{name}.scale"].reshape(1, 4, 1, 16)
        assert caches["int8"][name].dtype == np.int8
        back = caches["int8"][name] * scale
        error = np.abs(back - caches[FP32][name])
        # the layer's input differs too: its weights are rounded
        assert np.quantile(error / scale, 0.9) < 3
        assert (scale > 0).all()


@pytest.mark.parametrize("name", ["int8", "int8-32"])
def test_a_variant_is_the_model_of_its_rounded_weights(variants, name):
    """Beside PyTorch with the same rounded weights: what is left is the rounding of activations and of the cache."""
    traced, variant = BundleWeights(variants), VARIANTS[name]
    weights = dict(traced.weights("lm"))
    for key in weights:
        if key.rsplit(".")[-1] in MATRICES or key == "heads":
            weights[key] = rounded(weights[key], variant.storage.fit(len(weights[key])))
    module = fill(LM(traced.config, StandardAttention()), weights)
    columns = np.random.default_rng(0).integers(0, 64, (1, 4, 24))
    cross, empty = torch.zeros(0, 4, 1, 16), torch.zeros(1, 4, 0, 16)
    with torch.inference_mode():
        x, _ = module.read(torch.from_numpy(columns), torch.tensor([0]), [(empty, empty)] * 3, [(cross, cross)] * 3)
        theirs = module.logits(x[:, -1]).numpy()
    decoder = LanguageModel.load(variants, variant=name).decoder(1, 24, None, Sampling())
    decoder.prefill(columns, np.zeros((1, 4), np.float32))
    off = np.sqrt(np.square(decoder.logits - theirs).mean() / np.square(theirs).mean())
    assert off < 0.2


# Sensitivity


def test_what_is_sensitive_is_found():
    """One matrix with a few huge weights, whose blocks then have huge steps."""
    generator = torch.Generator().manual_seed(0)
    module = LM(TINY, StandardAttention())
    condition = Condition(TINY)
    make = lambda p: torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5  # noqa: E731
    weights = {name: torch.ones(p.shape) if "norm" in name else make(p) for name, p in module.named_parameters()}
    weights["layers.2.linear1"][::32] *= 30
    fill(module, weights)
    fill(condition, {name: make(p) for name, p in condition.named_parameters()})
    codes = np.random.default_rng(0).integers(0, TINY.card, (1, 4, 12))
    with torch.inference_mode():
        cross = condition(torch.randn(1, 5, TINY.text_dim, generator=generator), torch.ones(1, 5, dtype=torch.int64))
    named = {
        f"cross_key_values.{i}.{part}": x.numpy()
        for i, kv in enumerate(cross)
        for part, x in zip(("key", "value"), kv, strict=True)
    }
    sequences = [Sequences(module, codes, Conditioning(1, 2, named, None))]
    found = costs(sequences, lambda name: rounded(dict(module.named_parameters())[name], Storage(4, 32)))
    assert found.keys() == {*(f"layers.{i}.{name}" for i in range(TINY.layers) for name in MATRICES), "heads"}
    assert max(found, key=lambda name: found[name]) == "layers.2.linear1"


def test_costs_rank_as_rounding_one_by_one_does(variants):
    """The demo of what costs estimate: the divergence that is measured with one matrix rounded."""
    lm = LanguageModel.load(variants, variant=FP32)
    traced = BundleWeights(variants)
    module = fill(LM(traced.config, StandardAttention()), traced.weights("lm"))
    drawn = lm.generate_codes(batch=4, frames=60, seed=0)
    sequences = Sequences(module, drawn, lm.conditioner([None] * 4, None, "single"))
    back = {name: rounded(matrix, Storage(4, 32)) for name, matrix in module.named_parameters() if matrix.ndim == 2}
    estimated = costs([sequences], lambda name: back[name])
    inputs, measured = sensitivity.layer_inputs(sequences), {}
    exact = dict(module.named_parameters())
    for name in estimated:
        one = lambda other, name=name: back[other] if other == name else exact[other].data  # noqa: E731
        measured[name] = sensitivity.kl_divergence(sequences, inputs, one)
    ours, theirs = (np.argsort(np.argsort([of[name] for name in estimated])) for of in (estimated, measured))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9
    assert sum(estimated.values()) == pytest.approx(sensitivity.kl_divergence(sequences, inputs, lambda n: back[n]))


def test_hessians_are_of_what_each_matrix_reads(variants):
    traced = BundleWeights(variants)
    module = fill(LM(traced.config, StandardAttention()), traced.weights("lm"))
    codes = np.random.default_rng(0).integers(0, 64, (2, 4, 9))
    lm = LanguageModel.load(variants, variant=FP32)
    sequences = [Sequences(module, part[None], lm.conditioner([None], None, "single")) for part in codes]
    found = {name: hessian for name, _, hessian in hessians(module, sequences)}
    assert len(found) == 3 * len(MATRICES) + 1
    x = torch.cat([s.embed()[0] for s in sequences])
    weight, bias = (traced.weights("lm")[f"layers.0.norm1.{name}"] for name in ("weight", "bias"))
    normed = torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias)
    torch.testing.assert_close(found["layers.0.qkv"], normed.T @ normed, rtol=1e-4, atol=1e-4)
    assert (found["layers.0.cross_q"] == 0).all()  # no row has a text
    for name, hessian in found.items():
        assert "cross" in name or (hessian.diagonal() > 0).all(), name


def test_the_choice():
    costs, sizes = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, {"a": 8, "b": 1, "c": 1, "d": 1}
    assert most_sensitive(costs, sizes, 100) == ["b", "c"]  # half is left
    assert most_sensitive(costs, sizes, 4.5) == ["b", "c", "d"]
    assert most_sensitive(costs, sizes, 0) == ["b", "c", "d", "a"]
    costs, sizes = {"small": 1.1, "large": 4.0, "rest": 2.5}, {"small": 1, "large": 4, "rest": 9}
    assert most_sensitive(costs, sizes, 3.7) == ["large"]  # which makes the small one unnecessary


def test_mixed_has_both(variants):
    entry = manifest(variants)["variants"]["mixed"]
    graph = onnx.load(variants / "lm_inference.mixed.onnx", load_external_data=False).graph
    bits = {
        node.input[1].rsplit(".", 1)[0]: next(a.i for a in node.attribute if a.name == "bits")
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }
    assert {name for name, b in bits.items() if b == 8} == set(entry["sensitive"])
    assert 0 < len(entry["sensitive"]) < len(bits)


# Quality


def test_log_probabilities():
    x = np.array([[1.0, 2.0, 1000.0], [0.0, 0.0, 0.0]])
    expected = torch.from_numpy(x).log_softmax(-1).numpy()
    np.testing.assert_allclose(log_probabilities(x), expected, rtol=0, atol=1e-12)


@pytest.fixture
def reference(variants) -> Reference:
    lm = LanguageModel.load(variants, variant=FP32)
    codes = lm.generate_codes(frames=20, seed=0)
    return Reference(Exact.of(variants), [Codes(codes, [None], None, "test")])


def test_a_model_beside_itself(variants, reference):
    found = measure(LanguageModel.load(variants, variant=FP32), reference)
    assert (found.top1, found.greedy_frames) == (1, GREEDY)
    assert abs(found.kl) < 1e-9  # ONNX Runtime beside PyTorch, both in float32
    assert found.perplexity == pytest.approx(found.perplexity_fp32, rel=1e-6)
    assert found.codes == 80
    assert found.within_bounds


def test_greedy_frames(variants, reference):
    """Teacher forcing finds where two greedy generations part."""
    fp32, other = (LanguageModel.load(variants, variant=name) for name in (FP32, "int4"))
    ours, theirs = (quality.greedy(lm, reference.codes[0]) for lm in (fp32, other))
    differs = (ours != theirs).any(axis=(0, 1))
    first = int(differs.argmax()) if differs.any() else GREEDY
    assert first - 3 <= reference.greedy_frames(other) <= first  # a column holds codes of four frames
    assert reference.greedy_frames(fp32) == GREEDY


def test_reference_is_what_fp32_computes_step_by_step(variants):
    """The one pass of PyTorch, beside ONNX Runtime's steps with a cache: logits and the peaks of the cache."""
    lm = LanguageModel.load(variants, variant=FP32)
    texts = [None, np.random.default_rng(0).standard_normal((5, lm.text_dim), dtype=np.float32)]
    codes = Codes(lm.generate_codes(None, texts, frames=20, seed=0), texts, None, "test")
    reference = Reference(Exact.of(variants), [codes])
    stepped = quality.logits(lm, codes)
    tolerance = TOLERANCE * np.abs(stepped).max()
    ours, theirs = log_probabilities(reference.logits[0]), log_probabilities(stepped)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
    columns = quality.columns_of(lm, codes)
    decoder = lm.decoder(2, columns.shape[2], texts, Sampling(), None)
    decoder.prefill(columns[:, :, :-1], np.zeros((2, 4), np.float32))
    for name, cache in decoder.caches.items():
        peak = np.abs(cache).max(axis=(0, 2)).ravel()
        np.testing.assert_allclose(reference.scales[name], np.where(peak > 0, 1.5 * peak / 127, 1), rtol=1e-4)


def test_the_numbers(variants, reference):
    """KL divergence and perplexity as PyTorch has them, from the logits of one call after the other."""
    lm = LanguageModel.load(variants, variant="int8")
    found = measure(lm, reference)
    (codes,) = reference.codes
    ours = torch.from_numpy(quality.logits(lm, codes)).double().log_softmax(-1)
    theirs = torch.from_numpy(log_probabilities(reference.logits[0]))
    inside = torch.zeros(ours.shape[:3], dtype=torch.bool)  # [S, B, K]: frame t of codebook k is predicted at t + k
    targets = torch.zeros(ours.shape[:3], dtype=torch.int64)
    for k in range(4):
        inside[k : k + 20, 0, k] = True
        targets[k : k + 20, 0, k] = torch.from_numpy(codes.codes[0, k])
    kl = torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)[inside].mean()
    cross = torch.nn.functional.nll_loss(ours[inside], targets[inside])
    assert found.kl == pytest.approx(float(kl))
    assert found.perplexity == pytest.approx(float(cross.exp()))
    assert found.top1 == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1))[inside].double().mean()))
    assert found.kl > 0


def test_more_bits_cost_less(variants):
    cost = {name: entry["quality"]["kl"] for name, entry in manifest(variants)["variants"].items() if name != FP32}
    assert 0 < cost["fp16"] < cost["int8"] < cost["int4-32"]
    assert cost["mixed"] < cost["int4-32"]


def test_intervals():
    """The ends of a bootstrap over pieces are those of the normal distribution where there are many."""
    rng = np.random.default_rng(1)
    kl = rng.normal(0.02, 0.004, 400)
    cross = rng.normal(1.01, 0.05, 400)
    pieces = np.stack([kl * 100, kl, cross * 100, np.full(400, 100.0), np.full(400, 100.0)])
    kl_high, ratio_high = quality.intervals(pieces)
    assert kl_high == pytest.approx(kl.mean() + 1.96 * kl.std() / 20, rel=0.01)
    assert ratio_high == pytest.approx(np.exp(cross.mean() - 1 + 1.96 * cross.std() / 20), rel=0.001)
    assert quality.intervals(pieces[:, :1]) == (None, None)


def test_the_names_of_many_clips():
    """A manifest takes a line of 1000 characters."""
    assert quality.named(["a.wav", "b.wav"]) == "a.wav, b.wav"
    assert quality.named(["own samples"] * 3) == "own samples"
    assert quality.named([f"{i}\n{'x' * 250}.wav" for i in range(90)]).startswith("90 clips: 0")
    assert len(quality.named(["x" * 255] * 2)) < 130
    assert "\n" not in quality.named(["a\nb.wav"])


def test_pieces_add_up(variants, reference):
    """A second each, a shorter rest with the last."""
    lm = LanguageModel.load(variants, variant="int8")
    codes = Codes(lm.generate_codes(batch=2, frames=120, seed=0), [None] * 2, None, "test")
    theirs = quality.logits(LanguageModel.load(variants, variant=FP32), codes)
    pieces = quality.sums(lm, codes, theirs)
    assert pieces.shape == (5, 4)
    assert pieces[-1].sum() == 2 * 4 * 120
    assert pieces[-1].tolist() == [194, 194, 286, 286]  # 50 columns of 4 codebooks, of which three begin later


def test_bounds():
    good = Quality(kl=0.05, top1=0.1, perplexity=10.3, perplexity_fp32=10, greedy_frames=0, codes=1, source="")
    assert good.within_bounds
    assert not Quality(0.0501, 1, 10, 10, 0, 1, "").within_bounds
    assert not Quality(0, 1, 10.31, 10, 0, 1, "").within_bounds
    assert not Quality(0.02, 1, 10.1, 10, 0, 1, "", 0.06, 10.2).within_bounds
    assert not Quality(0.02, 1, 10.1, 10, 0, 1, "", 0.03, 10.4).within_bounds
    assert Quality(0.02, 1, 10.1, 10, 0, 1, "", 0.03, 10.2).within_bounds


# Bundles


def test_the_manifest(variants):
    tree = manifest(variants)
    assert list(tree["variants"]) == list(VARIANTS)
    assert tree["variant"] == FP32  # the first that was wanted
    assert tree["graphs"].items() >= tree["variants"][FP32]["graphs"].items()
    assert {path.name for path in variants.iterdir()} == {*tree["files"], "manifest.json"}
    for name, entry in tree["files"].items():
        assert entry == {"bytes": (variants / name).stat().st_size, "sha256": sha256(variants / name)}
    for name, entry in tree["variants"].items():
        assert entry["cache"] == VARIANTS[name].cache
        cache = next(t for t in entry["graphs"]["lm_inference"]["inputs"] if t["name"] == "past_key_values.0.key")
        assert cache["dtype"] == ("int8" if entry["cache"] == "int8" else VARIANTS[name].dtype)
        assert entry["bytes"] == sum(
            tree["files"][f"{graph['file']}{end}"]["bytes"]
            for graph in entry["graphs"].values()
            for end in ("", ".data")
        )
    encoders = {name: entry["graphs"].get("text_encoder", {}).get("file") for name, entry in tree["variants"].items()}
    assert encoders["int4"] == encoders["q4f16"] == "text_encoder.int8.onnx"
    assert encoders["dynamic"] == "text_encoder.dynamic.onnx"
    assert encoders[FP32] == encoders["fp16"] == "text_encoder.onnx"
    assert 0 < tree["variants"]["int8"]["quality"]["text_error"] < 0.05


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_makes_sound(variants, name):
    model = MusicGen.load(variants, variant=name)
    model.set_generation_params(duration=0.5)
    sound = model.generate(["slow house", None], seed=0)
    assert isinstance(sound, np.ndarray)
    assert sound.shape == (2, 1, 16000)
    assert np.isfinite(sound).all()


def test_another_variant(variants):
    with pytest.raises(BundleError, match=r"holds no variant 'int3', only fp32, fp16, int8"):
        MusicGen.load(variants, variant="int3")


@pytest.fixture
def copied(music, tmp_path) -> Path:
    return shutil.copytree(music("text"), tmp_path / "bundle")


def measured(monkeypatch: pytest.MonkeyPatch, *costs: float) -> None:
    """Have variants cost these KL divergences, one after the other."""
    left = iter(costs)
    monkeypatch.setattr(quantize, "measure", lambda *_: Quality(next(left), 1, 10, 10, 0, 1, ""))


def exported(folder: Path, *names: str) -> Path:
    export(GOLDEN / "text" / "state_dict.bin", folder / "bundle", variants=names)
    tree = manifest(folder / "bundle")
    assert list(tree["variants"]) == list(names)
    graphs = {graph["file"] for entry in tree["variants"].values() for graph in entry["graphs"].values()}
    listed = {f"{name}{end}" for name in graphs for end in ("", ".data")}
    assert {path.name for path in (folder / "bundle").iterdir()} == {*listed, "manifest.json"}
    assert {name: entry["sha256"] for name, entry in tree["files"].items()} == {
        name: sha256(folder / "bundle" / name) for name in listed
    }
    assert not list(folder.glob(".*"))
    return folder / "bundle"


def test_a_bundle_holds_what_was_asked_for(tmp_path, monkeypatch, capsys):
    """And no fp32 that nobody asked for; the default is the first within the bounds."""
    measured(monkeypatch, 1.0, 0.01, 0.0)
    folder = exported(tmp_path, "int4", "int8", "dynamic")
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "int4 is worse than the bounds: the default is int8"
    assert "WARNING" not in printed.err
    tree = manifest(folder)
    assert tree["variant"] == "int8"
    assert tree["graphs"]["lm_inference"]["file"] == "lm_inference.int8.onnx"
    assert LanguageModel.load(folder).generate_codes(frames=5).shape == (1, 4, 5)
    with pytest.raises(ExportError, match=r"holds int4, int8, dynamic, no fp32.*--variant fp32 int8-32, or with all"):
        add(folder, ["int8-32"])


def test_fp32_stays_where_it_was_asked_for(tmp_path, monkeypatch):
    measured(monkeypatch, 1.0)
    folder = exported(tmp_path, "int4", FP32)
    assert manifest(folder)["variant"] == FP32
    measured(monkeypatch, 0.01)
    add(folder, ["int8"])
    assert (manifest(folder)["variant"], list(manifest(folder)["variants"])) == ("int8", ["int4", FP32, "int8"])


def test_none_within_the_bounds_is_said_loudly(tmp_path, monkeypatch, capsys):
    """The default is the nearest to fp32, and both outputs say that it is worse than the bounds."""
    measured(monkeypatch, 3.0, 1.0, 2.0)
    folder = exported(tmp_path, "int4", "int8", "fp16")
    printed = capsys.readouterr()
    warning = printed.out.splitlines()[-1]
    assert warning in printed.err.splitlines()
    assert warning.startswith("WARNING: no variant of this bundle is within the bounds (KL divergence 0.05 nats")
    assert "the default is int8, whose KL divergence is the smallest" in warning
    tree = manifest(folder)
    assert tree["variant"] == "int8"
    assert not any(entry["quality"]["within_bounds"] for entry in tree["variants"].values())


def test_the_default_stays_where_none_that_is_added_is_within_the_bounds(copied, monkeypatch):
    measured(monkeypatch, 1.0)
    assert add(copied, ["int4"])[-1] == "int4 is worse than the bounds: the default is fp32"
    assert (manifest(copied)["variant"], list(manifest(copied)["variants"])) == (FP32, [FP32, "int4"])


def test_hard_links(music, tmp_path):
    """A copy that shares its files with the original: read as it is, and the original stays as it was."""
    original, linked = music("text", True), tmp_path / "linked"
    shutil.copytree(original, linked, copy_function=os.link)
    add(linked, ["int8"])
    assert set(manifest(linked)["variants"]) == {FP32, "int8"}
    assert set(manifest(original)["variants"]) == {FP32}
    assert Manifest.read(original)


def test_what_a_user_has_put_there_stays(copied, monkeypatch):
    """A run that fails removes the files of variants that no manifest names, an earlier run's too, and no others."""
    before = {path.name for path in copied.iterdir()}
    (copied / "lm_condition.int8.onnx.data").write_bytes(b"of a run that was killed")

    def fail(*_: object) -> None:
        (copied / "takes").mkdir()
        (copied / "README.md").write_text("mine")
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "measure", fail)
    with pytest.raises(KeyboardInterrupt):
        add(copied, ["int8"])
    assert {path.name for path in copied.iterdir()} == before | {"takes", "README.md"}


def test_leftovers_are_not_taken_for_ours(copied):
    (copied / "lm_condition.int8.onnx").write_bytes(b"broken")
    (copied / "lm_inference.mixed.onnx").write_bytes(b"broken")
    add(copied, ["int8"])
    assert not (copied / "lm_inference.mixed.onnx").exists()
    assert LanguageModel.load(copied, variant="int8").generate_codes(frames=5, seed=0).shape == (1, 4, 5)


def test_two_at_once(copied):
    with atomic.locked(copied), pytest.raises(ExportError, match=r"another export/quantize\.py writes to it"):
        add(copied, ["int8"])


def test_links_into_another_bundle(copied, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in copied.iterdir():
        (linked / path.name).symlink_to(path)
    before = (copied / "manifest.json").read_bytes()
    with pytest.raises(ExportError, match=r"is a link to .*cp -rL"):
        add(linked, ["int8"])
    assert (copied / "manifest.json").read_bytes() == before


def test_a_variant_that_overflows_is_left_out(copied, monkeypatch):
    costs = iter([math.nan, 0.01])
    monkeypatch.setattr(quantize, "measure", lambda *_: Quality(next(costs), 1, 10, 10, 0, 1, ""))
    lines = add(copied, ["fp16", "int8"])
    assert any("left out: float16 is too small" in line for line in lines)
    assert list(manifest(copied)["variants"]) == [FP32, "int8"]
    assert not list(copied.glob("*fp16*"))
    monkeypatch.setattr(quantize, "measure", lambda *_: Quality(math.nan, 1, 10, 10, 0, 1, ""))
    with pytest.raises(ExportError, match="left out"):
        add(copied, ["fp16"])


def test_refusals_of_adding(copied, tmp_path):
    with pytest.raises(ExportError, match="holds it already"):
        add(copied, [FP32])
    clip = tmp_path / "short.wav"
    sf.write(clip, np.zeros(16000, np.float32), 32000)
    with pytest.raises(ExportError, match=r"have 25 frames of codes in all, expected 100 or more"):
        add(copied, ["int8"], [clip])
    alone = tmp_path / "alone"
    export(GOLDEN / "text" / "state_dict.bin", alone)
    with pytest.raises(ExportError, match="no codec to read clips with"):
        add(alone, ["int8"], [clip])


@pytest.mark.parametrize("dtype", ["BFLOAT16", "FLOAT8E4M3FN", "INT8"])
def test_a_weight_of_another_type_is_refused(copied, dtype):
    """As an error of one line, whichever graph or matrix it is in."""
    path, tree = copied / "lm_inference.onnx", manifest(copied)
    model = onnx.load(path, load_external_data=False)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "layers.0.linear2")
    weight.data_type = onnx.TensorProto.DataType.Value(dtype)
    path.write_bytes(model.SerializeToString())
    tree["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (copied / "manifest.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"the weight layers\.0\.linear2 is {dtype}, expected FLOAT"):
        add(copied, ["int8"])
    assert list(manifest(copied)["variants"]) == [FP32]


def test_clips_are_not_rounded_on_what_they_are_measured_on(copied, tmp_path, monkeypatch):
    """What follows the measured part, of those clips that have enough of it."""
    monkeypatch.setattr(quality, "SAMPLES", (400, 50))
    noise, clips = np.random.default_rng(0).normal(0, 0.1, 9 * 32000).astype(np.float32), []
    for seconds in (6, 8, 9):
        clips.append(tmp_path / f"{seconds}.wav")
        sf.write(clips[-1], noise[: seconds * 32000], 32000)
    (eight, nine), whole = quality.clip_samples(copied, clips), quality.clip_codes(copied, clips, 10_000)
    assert (eight.source, nine.source) == ("8.wav", "9.wav")
    for found, codes in zip((eight, nine), whole[1:], strict=True):
        np.testing.assert_array_equal(found.codes[0], codes[:, quality.CLIP :])
    with pytest.raises(ExportError, match=r"^--calibration clips: the longest clip has 300 frames of codes"):
        add(copied, ["int4"], clips[:1], Storing(calibration="clips"))
    assert list(manifest(copied)["variants"]) == [FP32]


def test_a_weight_in_another_folder_is_refused(tmp_path):
    path = graph_of(tmp_path, "MatMul", np.ones((64, 64), np.float32))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    (weight,) = model.graph.initializer
    next(entry for entry in weight.external_data if entry.key == "location").value = "../w.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"lies in '../w.data', expected a file beside the graph"):
        rewrite(path, tmp_path / "small.onnx", VARIANTS["int8"], Calibrated())


def test_every_backend_has_its_variants(variants):
    """In the order to prefer them in, those beyond the bounds last; each with what its graphs need."""
    tree = manifest(variants)
    bad = {name for name, entry in tree["variants"].items() if not entry.get("quality", {}).get("within_bounds", True)}
    assert tree["backends"]["cpu"] == [tree["variant"]]
    orders = {"wasm": ["dynamic", "fp16", "fp32"], "webgpu": ["q4f16", "fp16", "fp32"], "cuda": ["fp16", "q4f16"]}
    for backend, order in orders.items():
        assert tree["backends"][backend] == sorted(order, key=bad.__contains__)
    assert preferred("wasm", {"int4": {}}, "int4") == []
    poor = {"quality": {"within_bounds": False}}
    assert preferred("wasm", {"fp32": {}, "dynamic": poor, "fp16": {}}, "fp32") == ["fp16", "fp32", "dynamic"]
    updates = {name: entry["cache_update"] for name, entry in tree["variants"].items()}
    assert updates == {name: "new_columns" if name == "dynamic" else "in_place" for name in updates}


def test_a_default_of_another_lowering(copied, monkeypatch):
    """Every variant keeps what its own graphs do to the cache, whichever is the default."""
    monkeypatch.setattr(quantize, "measure", lambda *_: Quality(0, 1, 10, 10, 0, 1, ""))
    add(copied, ["dynamic", "int8"])
    tree = manifest(copied)
    assert (tree["variant"], tree["cache_update"]) == ("dynamic", "new_columns")
    for name in ("dynamic", "int8", FP32):
        lm = LanguageModel.load(copied, variant=name)
        assert lm.in_place == (name != "dynamic")
        assert lm.generate_codes(frames=5, seed=0).shape == (1, 4, 5)
    assert add(copied, ["fp16"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted(copied, monkeypatch, error):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(quantize, "measure", fail)
    with pytest.raises(BaseException, match=r".*"):
        add(copied, ["int4"])
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_twice(variants):
    with pytest.raises(ExportError, match="holds int4, mixed already"):
        add(variants, ["int4", "mixed"])


def test_a_float_cache(copied):
    add(copied, ["int8"], storing=Storing(cache="float"))
    lm = LanguageModel.load(copied, variant="int8")
    assert lm.lm.inputs["past_key_values.0.key"].dtype == "float32"


def test_standard_has_no_operators_of_another_domain(bundle, tmp_path):
    with pytest.raises(
        ExportError, match=r"--attention standard with int4: MatMulNBits is no ai\.onnx operator; take fp32"
    ):
        export(GOLDEN / "text" / "state_dict.bin", tmp_path / "bundle", "standard", ["int4"])
    folder = shutil.copytree(bundle("text", "standard"), tmp_path / "standard")
    add(folder, ["dynamic"])
    model = onnx.load(folder / "lm_inference.dynamic.onnx", load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert {opset.domain for opset in model.opset_import} == {""}
    assert LanguageModel.load(folder, variant="dynamic").generate_codes(frames=5, seed=0).shape == (1, 4, 5)


def test_padded_heads(bundle, tmp_path):
    """A head size of 12 is 16 in the cache: the padding's channels are zeros, and their scale is no zero."""
    folder = shutil.copytree(bundle("stereo"), tmp_path / "stereo")
    add(folder, ["int8"])
    found = manifest(folder)["variants"]["int8"]["quality"]
    assert found["kl"] < 1
    assert np.isfinite(found["perplexity"])


def test_the_command(music, tmp_path):
    folder = shutil.copytree(music("text"), tmp_path / "bundle")
    clip = tmp_path / "loop.wav"
    shutil.copyfile(ROOT / "demo" / "loop.wav", clip)
    command = [sys.executable, "export/quantize.py", "--bundle", folder, "--variant", "int8", "--clip", clip]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("int8     KL ")
    assert "codes of loop.wav" in done.stdout
    missing = subprocess.run(
        [*command[:-1], tmp_path / "no.wav"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")


def test_a_changed_file_is_seen(copied):
    add(copied, ["int8"])
    data = copied / "lm_inference.int8.onnx.data"
    content = bytearray(data.read_bytes())
    content[99] ^= 1
    data.write_bytes(content)
    LanguageModel.load(copied, variant=FP32)
    with pytest.raises(BundleError, match=r"lm_inference\.int8\.onnx\.data: sha256"):
        LanguageModel.load(copied, variant="int8")


def test_info(variants):
    done = subprocess.run(
        [sys.executable, "-m", "clean_lm.cli", "info", variants], capture_output=True, text=True, check=True
    )
    assert "variant int4-32   KL" in done.stdout


def test_loading_reads_no_text_graphs(variants):
    model = MusicGen.load(variants, variant="int4")
    assert "session" not in vars(model.lm.conditioner.condition)
    assert model.text is not None
    assert "session" not in vars(model.text.graph)
    assert Manifest.read(variants).variant == FP32


# Melody and style models


@pytest.mark.parametrize("name", PREFIXED)
def test_variants_of_a_prefix(golden, tmp_path, name):
    """Calibrated and measured with one; what reads the sound stays as it is, and is there without fp32."""
    g = golden(name)
    wanted = ["int8", "mixed", "dynamic", "fp16", "q4f16"]
    export(GOLDEN / name / "state_dict.bin", tmp_path / "bundle", variants=wanted)
    manifest = Manifest.read(tmp_path / "bundle")
    assert list(manifest.variants) == wanted
    prompt, wav = g["gen.desc_p17.prompt"], g["cond.desc.self_wav"][0]
    texts = g.texts([g.meta["D1"]])
    for variant in wanted:
        lm = LanguageModel.load(tmp_path / "bundle", variant=variant)
        entry = manifest.variants[variant]
        assert not any(graph.startswith(("lm_melody", "lm_style")) for graph in entry.graphs)
        assert entry.quality is not None
        assert 0 < entry.quality.kl < {"fp16": 1e-3, "q4f16": 5}.get(variant, 0.5)  # sharp, random weights
        codes = lm.generate_codes(prompt, texts, lambda _: [wav], frames=30, sampling=Sampling(use_sampling=False))
        assert codes.shape == (1, 4, 30)
        if variant == "fp16":
            np.testing.assert_array_equal(codes[:, :, :19], g["gen.desc_p17.tokens"][:, :, :19])
    assert [manifest.variants[v].cache for v in wanted] == [VARIANTS[v].cache for v in wanted]


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("block", [32, 128])
def test_4_bits_with_zero_points_give_the_product(rows, block):
    """com.microsoft.MatMulNBits with accuracy_level 4 beside float64 of the dequantized weights.

    It rounds activations to int8 in blocks: each is off by half a step, its block's largest / 254, at most. A zero
    point that is dropped or that belongs to a neighbour is off by several times the sum of those.
    """
    K, N, rng = 256, 48, np.random.default_rng(block + rows)
    blocks = K // block
    codes = rng.integers(0, 16, (N, blocks, block), dtype=np.uint8)
    points = rng.integers(0, 16, (N, blocks), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.02, (N, blocks)).astype(np.float32)
    halves = codes[..., 0::2] | codes[..., 1::2] << 4  # the lower one first
    tensors = {"codes": halves, "scales": scales.reshape(-1)}
    tensors["points"] = (points[:, 0::2] | points[:, 1::2] << 4).reshape(-1)
    node = helper.make_node(
        "MatMulNBits", ["a", *tensors], ["y"], domain="com.microsoft", K=K, N=N, bits=4, block_size=block,
        accuracy_level=4,
    )  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", n]) for name, n in (("a", K), ("y", N))]
    held = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], held)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    a = rng.standard_normal((rows, K), dtype=np.float32)
    found = np.asarray(ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"a": a})[0])

    weights = ((codes.astype(np.float64) - points[:, :, None]) * scales[:, :, None]).reshape(N, K)
    steps = np.repeat(np.abs(a.reshape(rows, -1, block)).max(axis=2), block, axis=1) / 254
    bound = steps.astype(np.float64) @ np.abs(weights).T
    assert (np.abs(found - a.astype(np.float64) @ weights.T) <= bound + 1e-5).all()
    wrong = (codes.astype(np.float64) - 8) * scales[:, :, None]
    assert (np.abs(found - a.astype(np.float64) @ wrong.reshape(N, K).T) > bound).any()
