"""Caches in a device's memory: everywhere on the CPU's provider, whose memory then counts as another's, and on whatever
device ONNX Runtime finds on this machine."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from bench import device as bench
from clean_lm import cli
from clean_lm.audio_codec import Codec
from clean_lm.device import (
    CPU,
    DEVICES,
    TRIED,
    Device,
    DeviceError,
    DeviceWarning,
    fallback_words,
    on_cpu,
    require_available,
)
from clean_lm.generation import Decoder, Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import Manifest
from clean_lm.musicgen import MusicGen
from clean_lm.placement import expected, place, placements
from clean_lm.session import Graph
from clean_lm.text_encoder import TextEncoder
from tests.support import ROOT, feed

pytestmark = [pytest.mark.runtime]

BUNDLES = ROOT / "tests/golden/conformance/bundles"
APART = "apart"  # the CPU's provider, its memory taken for another's
GREEDY = Sampling(use_sampling=False)
RNG = np.random.default_rng(0)
TEXTS = [RNG.standard_normal((5, 768), dtype=np.float32), RNG.standard_normal((3, 768), dtype=np.float32)]


def missing(name: str) -> str:
    """Why a device cannot be had here; empty if it can."""
    try:
        require_available(DEVICES[name])
    except DeviceError as error:
        return str(error)
    return ""


HERE = [APART, *(pytest.param(n, marks=pytest.mark.skipif(bool(missing(n)), reason=missing(n))) for n in TRIED)]


@pytest.fixture(params=HERE)
def device(request, monkeypatch):
    """A device, by its name in LoadOptions."""
    if request.param != APART:
        try:
            LanguageModel.load(BUNDLES / "text", device=request.param)
        except DeviceError as error:
            pytest.skip(str(error))
        return request.param
    monkeypatch.setitem(DEVICES, APART, Device(APART, CPU, "onnxruntime", ("float32", "float16"), memory="cpu"))
    monkeypatch.setattr(Graph, "on_host", lambda graph, name: graph.options.get("device") != APART)
    monkeypatch.setattr(Graph, "device", property(lambda graph: DEVICES[graph.options.get("device") or "cpu"]))
    return APART


def both(bundle: str, device: str) -> tuple[LanguageModel, LanguageModel]:
    """A conformance bundle's language model on the CPU and on a device."""
    return LanguageModel.load(BUNDLES / bundle), LanguageModel.load(BUNDLES / bundle, device=device)


def prompt_of(lm: LanguageModel, prompts: int = 1, frames: int = 10) -> np.ndarray:
    return np.random.default_rng(1).integers(0, lm.card, (prompts, lm.codebooks, frames))


CASES: dict[str, dict[str, Any]] = {
    "no text": {},
    "a text": {"text_states": TEXTS[:1]},
    "greedy": {"text_states": TEXTS[:1], "sampling": GREEDY},
    "unguided": {"text_states": TEXTS[:1], "sampling": Sampling(cfg_coef=1.0)},
    "a negative text": {"text_states": TEXTS[:1], "negative_states": TEXTS[1:]},
    "two takes": {"text_states": TEXTS[:1], "takes": 2},
    "two prompts, two takes": {"text_states": [TEXTS[0], None], "takes": 2, "batch": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_codes_as_on_the_cpu(device, case):
    cpu, other = both("text", device)
    prompt = prompt_of(cpu, len(CASES[case].get("text_states", TEXTS[:1])))
    expected = cpu.generate_codes(prompt, frames=24, seed=1, **CASES[case])
    np.testing.assert_array_equal(other.generate_codes(prompt, frames=24, seed=1, **CASES[case]), expected)


def conditions(lm: LanguageModel) -> dict[str, Any]:
    """A text, and for melody models a melody that moves on in each window."""
    rng = np.random.default_rng(3)
    found: dict[str, Any] = {"text_states": [rng.standard_normal((5, lm.text_dim), dtype=np.float32)]}
    if lm.info.self_wav:
        wav = rng.standard_normal((6, int(lm.lm.inputs["prefix"].shape[2])), dtype=np.float32)
        found["self_wav"] = lambda start: [wav * (1 + start)]
    return found


def same(device: str, ours: np.ndarray, expected: np.ndarray) -> None:
    """The same codes; a real device rounds otherwise, and from one code on may draw others."""
    if device == APART:
        np.testing.assert_array_equal(ours, expected)
    assert ours.shape == expected.shape


@pytest.mark.parametrize("bundle", ["stereo", "standard", "melody"])
@pytest.mark.filterwarnings("ignore:.*new columns alone:clean_lm.device.DeviceWarning")
def test_other_models(device, bundle):
    """Stereo; a graph that gives the new columns alone; a prefix: the same logits, and the same codes."""
    cpu, other = both(bundle, device)
    given = conditions(cpu)
    for sampling in (GREEDY, Sampling()):
        how: dict[str, Any] = {"frames": 20, "seed": 3, "sampling": sampling, **given}
        same(device, other.generate_codes(prompt_of(cpu), **how), cpu.generate_codes(prompt_of(cpu), **how))
    columns, logits = prompt_of(cpu, frames=20), []
    for lm in (other, cpu):
        wavs = given["self_wav"](0.0) if "self_wav" in given else None
        decoder = lm.decoder(1, 20, given["text_states"], GREEDY, wavs)
        for start, end in ((0, 12), *((s, s + 1) for s in range(12, 20))):
            feed(decoder, columns[:, :, start:end], np.zeros((1, lm.codebooks)))
            logits.append(decoder.logits.copy())
    ours, expected = np.split(np.array(logits), 2)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("two_step", [False, True])
def test_windows(device, two_step):
    """Caches are used again in every window, with another prefix; guidance in two calls reads logits of both."""
    cpu, other = both("melody", device)
    how: dict[str, Any] = {"duration": 1.0, "max_duration": 0.5, "extend_stride": 0.25, "seed": 5, "takes": 2}
    how |= {"sampling": Sampling(two_step_cfg=two_step), **conditions(cpu)}
    same(device, other.generate_codes(**how), cpu.generate_codes(**how))


class Crossings:
    """Counts what moves between numpy's memory and a device's while it listens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.bound, self.read, self.written = Counter(), 0, 0
        bind, numpy, update = ort.IOBinding.bind_ortvalue_input, ort.OrtValue.numpy, ort.OrtValue.update_inplace

        def counted_bind(binding, name, value):
            self.bound[name] += 1
            bind(binding, name, value)

        def counted_numpy(value):
            self.read += value.tensor_size_in_bytes()
            return numpy(value)

        def counted_update(value, data):
            self.written += data.nbytes
            update(value, data)

        monkeypatch.setattr(ort.IOBinding, "bind_ortvalue_input", counted_bind)
        monkeypatch.setattr(ort.OrtValue, "numpy", counted_numpy)
        monkeypatch.setattr(ort.OrtValue, "update_inplace", counted_update)


def test_the_cache_never_crosses(device, monkeypatch):
    """A step binds what changes, a few hundred bytes; caches and the text's keys stay where they lie."""
    lm = LanguageModel.load(BUNDLES / "text", device=device)
    decoder = lm.decoder(1, 40, TEXTS[:1], GREEDY)
    assert decoder.caches == {}
    decoder.prefill(prompt_of(lm), np.zeros((1, 4)))
    seen = Crossings(monkeypatch)
    outputs = []
    monkeypatch.setattr(ort.IOBinding, "bind_ortvalue_output", lambda *bound: outputs.append(bound))
    for _ in range(20):
        decoder.step(np.zeros((1, 4, 1), np.int64), np.zeros((1, 4)))
    changing = {name for name in ("codes", "position", "uniform") if not lm.lm.on_host(name)}
    assert seen.bound == dict.fromkeys(changing, 20)
    assert "uniform" in changing
    assert (seen.read, seen.written, outputs) == (0, 0, [])


def test_a_cache_is_written_where_it_is_read(device, monkeypatch):
    """One value is bound as past and as present, and it is no array of numpy's."""
    inputs, outputs = {}, {}
    monkeypatch.setattr(ort.IOBinding, "bind_ortvalue_input", lambda binding, name, value: inputs.update({name: value}))
    monkeypatch.setattr(
        ort.IOBinding, "bind_ortvalue_output", lambda binding, name, value: outputs.update({name: value})
    )
    monkeypatch.setattr(LanguageModel, "_try", lambda lm: None)
    LanguageModel.load(BUNDLES / "text", device=device).decoder(1, 40, TEXTS[:1], GREEDY)
    caches = {name: value for name, value in inputs.items() if name.startswith("past_key_values.")}
    assert len(caches) == 6
    for name, value in caches.items():
        assert outputs[name.replace("past_key_values", "present")] is value
        assert value._numpy_obj is None
    assert all(inputs[f"cross_key_values.{i}.key"]._numpy_obj is None for i in range(3))


def test_logits_come_back_where_someone_reads_them(device):
    """A generation fetches codes alone, unless it is observed; a decoder of one's own fetches both."""
    cpu, other = both("text", device)
    how: dict[str, Any] = {"text_states": TEXTS[:1], "frames": 20, "seed": 1}
    generation = other.begin(prompt_of(cpu), **how)
    assert list(generation)
    assert not generation.decoder.logits.any()
    ours, theirs = (observed(lm, how) for lm in (other, cpu))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * np.abs(theirs).max())
    decoder = other.decoder(1, 20, TEXTS[:1], GREEDY)
    decoder.prefill(prompt_of(cpu), np.zeros((1, 4)))
    assert decoder.logits.any()


def observed(lm: LanguageModel, how: dict[str, Any]) -> np.ndarray:
    """The logits of every column of a generation."""
    rows: list[np.ndarray] = []
    generation = lm.begin(prompt_of(lm), **how)
    generation.observe = lambda logits, codes, drawn: rows.append(logits.copy())
    assert list(generation)
    return np.array(rows)


def test_on_the_cpu_nothing_is_copied(monkeypatch):
    """Arrays are bound once, and the caches are numpy's."""
    decoder = LanguageModel.load(BUNDLES / "text").decoder(1, 40, TEXTS[:1], GREEDY)
    decoder.prefill(np.zeros((1, 4, 5), np.int64), np.zeros((1, 4)))
    assert len(decoder.caches) == 6
    seen = Crossings(monkeypatch)
    decoder.step(np.zeros((1, 4, 1), np.int64), np.zeros((1, 4)))
    assert (seen.bound, seen.read, seen.written) == ({}, 0, 0)


def float16_of(folder: Path, device: str) -> LanguageModel | None:
    """A bundle's fp16 variant on a device; None on a GPU that does not compute in float16."""
    try:
        return LanguageModel.load(folder, device=device)
    except DeviceError as error:
        if "does not support it" not in str(error):
            raise
        return None


def test_a_float16_variant(device, bundle):
    """Its caches are float16 wherever they lie; on the CPU too, which has the kernels."""
    folder = bundle("text", "ort", "fp16")
    cpu, other = LanguageModel.load(folder), float16_of(folder, device)
    if other is None:
        pytest.skip(f"{device} does not compute in float16 here")
    for how in (CASES["a text"], CASES["no text"], CASES["two takes"]):
        expected = cpu.generate_codes(prompt_of(cpu), frames=24, seed=1, **how)
        np.testing.assert_array_equal(other.generate_codes(prompt_of(cpu), frames=24, seed=1, **how), expected)
    decoder = other.decoder(1, 9, TEXTS[:1], GREEDY)
    assert isinstance(decoder, Decoder)
    held = decoder.held
    assert {value.data_type() for name, value in held.items() if "key_values" in name} == {"tensor(float16)"}


def test_codec_and_text_encoder_follow(device):
    """They are opened on the same device, and give the same up to rounding."""
    audio = (np.random.default_rng(4).standard_normal((1, 1, 12_800)) * 0.1).astype(np.float32)
    found: list[list[Any]] = []
    for name in ("cpu", device):
        codec, text = Codec.load(BUNDLES / "text", device=name), TextEncoder.load(BUNDLES / "text", device=name)
        for graph in (codec.encoder, codec.stream, text.graph):
            assert graph.device is DEVICES[name]
        codes = np.arange(80).reshape(1, 4, 20) % 16
        found.append([codec.decode(codes), text.encode(["slow house"])[0], codec.encode(audio)])
    expected, ours = found
    for i in range(2):
        np.testing.assert_allclose(ours[i], expected[i], rtol=0, atol=1e-3 * np.abs(expected[i]).max())
    assert (ours[2] == expected[2]).mean() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device: got 'gpu', expected auto, cpu, cuda, webgpu, directml, coreml, or None"),
        ({"device": 1}, "device: got 1, expected auto, cpu"),
        ({"device": "cpu", "providers": [CPU]}, f"device: got cpu and providers ['{CPU}'], expected one of them"),
    ],
)
def test_options_that_are_none(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LanguageModel.load(BUNDLES / "text", **options)


INSTALL = {
    "cuda": "pip install onnxruntime-gpu (and uninstall onnxruntime first: it takes its place)",
    "webgpu": "pip install onnxruntime-ep-webgpu; where onnxruntime_ep_webgpu is installed already",
    "directml": "pip install onnxruntime-directml (and uninstall onnxruntime first: it takes its place)",
    "coreml": "it is part of onnxruntime, on macOS",
}


@pytest.mark.parametrize("name", INSTALL)
def test_a_device_that_is_not_there_is_an_error(monkeypatch, capsys, tmp_path, name):
    """It says what was found and what to install, in Python and on the command line."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["AzureExecutionProvider", CPU])
    monkeypatch.setattr("clean_lm.device.register", lambda device: None)
    message = f"device: {name} needs {DEVICES[name].provider}, this ONNX Runtime has AzureExecutionProvider, {CPU}: "
    with pytest.raises(DeviceError, match=re.escape(message + INSTALL[name])):
        MusicGen.load(BUNDLES / "text", device=name)
    out = tmp_path / "out.wav"
    options = ["--bundle", str(BUNDLES / "text"), "--device", name, "--duration", "0.2"]
    assert cli.main(["generate", "-o", str(out), *options]) == 1
    assert message + INSTALL[name] in capsys.readouterr().err
    assert not out.exists()


def test_a_device_that_does_not_start_is_an_error(monkeypatch):
    """ONNX Runtime would take the CPU in its place."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["DmlExecutionProvider", CPU])
    session = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda *a, providers: session(*a, providers=[CPU]))
    with pytest.raises(DeviceError, match=f"could not start DmlExecutionProvider, only {CPU}"):
        LanguageModel.load(BUNDLES / "text", device="directml")


def test_auto_takes_the_cpu_where_nothing_else_is(monkeypatch):
    """The same codes as without a device, and what was passed over is said."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr("clean_lm.device.register", lambda device: None)
    model, plain = MusicGen.load(BUNDLES / "text", device="auto"), MusicGen.load(BUNDLES / "text")
    assert (model.device, plain.device) == ("cpu, variant fp32", "cpu, variant fp32")
    assert [words.split(" needs ")[0] for words in model.passed] == [f"device: {name}" for name in TRIED]
    assert plain.passed == ()
    codes = plain.lm.generate_codes(frames=10, seed=0)
    np.testing.assert_array_equal(model.lm.generate_codes(frames=10, seed=0), codes)


def test_auto_goes_on_to_what_starts(monkeypatch):
    """A device and a variant that do not run are passed over, and said."""
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["WebGpuExecutionProvider", "DmlExecutionProvider", CPU]
    )
    tried = []

    def open(manifest: Manifest) -> str:
        tried.append((manifest.options.get("device"), manifest.variant))
        if tried[-1] != ("directml", "q4f16"):
            raise DeviceError(f"{tried[-1]} does not run")
        return " ".join(manifest.passed)

    found = place(with_variants(), open)
    assert tried == [
        ("webgpu", "q4f16"),
        ("webgpu", "fp16"),
        ("webgpu", "fp32"),
        ("directml", "fp16"),
        ("directml", "q4f16"),
    ]
    assert "cuda needs CUDAExecutionProvider" in found
    assert "('directml', 'fp16') does not run" in found


def with_variants(device: str = "auto", variant: str | None = None) -> Manifest:
    """A manifest with the variants that devices choose from; its files are those of fp32."""
    document = json.loads((BUNDLES / "text" / "manifest.json").read_text())
    fp32 = document["variants"]["fp32"]

    def changed(dtype: str) -> dict:
        entry = json.loads(json.dumps(fp32))
        for tensor in [*entry["graphs"]["lm_inference"]["inputs"], *entry["graphs"]["lm_inference"]["outputs"]]:
            if "key_values" in tensor["name"] or tensor["name"].startswith("present"):
                tensor["dtype"] = dtype
        return entry | {"cache": "int8" if dtype == "int8" else "float"}

    variants = {"fp32": fp32, "int8": changed("int8"), "fp16": changed("float16"), "q4f16": changed("float16")}
    standard = json.loads((BUNDLES / "standard" / "manifest.json").read_text())
    variants["dynamic"] = fp32 | {
        "cache_update": "new_columns",
        "graphs": fp32["graphs"]
        | {"lm_inference": {**standard["graphs"]["lm_inference"], "file": "lm_inference.onnx"}},
    }
    document |= {"variants": variants, "backends": {"webgpu": ["q4f16", "fp16", "fp32"], "coreml": ["dynamic"]}}
    return Manifest.parse(BUNDLES / "text", document, {"device": device, "variant": variant})


@pytest.mark.parametrize(
    ("device", "variant", "found"),
    [
        ("cpu", None, ["fp32"]),
        ("cpu", "int8", ["int8"]),
        ("cuda", None, ["fp16", "q4f16"]),  # of the device: the manifest does not name it
        ("webgpu", None, ["q4f16", "fp16", "fp32"]),
        ("webgpu", "fp32", ["fp32"]),
        ("directml", None, ["fp16", "q4f16", "fp32"]),
        ("coreml", None, ["fp32"]),  # `dynamic` is listed, but its cache cannot stay anywhere
    ],
)
def test_the_variant_that_suits_a_device(monkeypatch, device, variant, found):
    monkeypatch.setattr(ort, "get_available_providers", lambda: [one.provider for one in DEVICES.values()])
    passed = []
    chosen = list(placements(with_variants(device, variant), passed))
    assert [(one.options.get("device"), one.variant) for one in chosen] == [(device, name) for name in found]
    assert passed == []
    assert expected(with_variants(device, variant)).variant == found[0]


@pytest.mark.parametrize(("device", "variant"), [("webgpu", "int8"), ("cuda", "fp32"), ("cuda", "int8")])
def test_a_variant_that_a_device_cannot_run_is_an_error(monkeypatch, device, variant):
    monkeypatch.setattr(ort, "get_available_providers", lambda: [one.provider for one in DEVICES.values()])
    message = (
        rf"{device} needs a variant whose caches are .*float16, got {variant}; this bundle has fp32 \(float32\), int8"
    )
    with pytest.raises(DeviceError, match=message):
        place(with_variants(device, variant), lambda manifest: manifest)


def test_work_on_the_cpu_is_said():
    """Azure's provider, which is part of every ONNX Runtime, computes nothing."""
    with pytest.warns(DeviceWarning) as said:
        lm = LanguageModel.load(BUNDLES / "text", providers=["AzureExecutionProvider"])
    (words,) = {str(warning.message) for warning in said}
    start = r"lm_inference.onnx: (\d+) of \1 nodes run on the CPU, not on AzureExecutionProvider, 3 Gelu, 3 GroupQuery"
    assert re.match(start, words), words
    assert lm.lm.device is None
    expected = LanguageModel.load(BUNDLES / "text").generate_codes(frames=9, seed=0)
    np.testing.assert_array_equal(lm.generate_codes(frames=9, seed=0), expected)


def test_shapes_on_the_cpu_are_not_work():
    """ONNX Runtime computes shapes and positions on the CPU on purpose."""
    part = lambda name, *ops: SimpleNamespace(ep_name=name, get_nodes=lambda: [SimpleNamespace(op_type=o) for o in ops])  # noqa: E731
    parts = [part("CUDAExecutionProvider", "MatMul", "Gelu"), part(CPU, "Shape", "Gather"), part(CPU, "Gather")]
    session: Any = SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)
    operators, nodes = on_cpu(session)
    assert (operators, nodes) == ({"Shape": 1, "Gather": 2}, 5)
    assert fallback_words("lm.onnx", "cuda", operators, nodes) is None
    words = fallback_words("lm.onnx", "cuda", operators | Counter({"MatMul": 2}), 7)
    assert str(words).startswith("lm.onnx: 5 of 7 nodes run on the CPU, not on cuda, 2 MatMul among them")


def test_a_device_that_computes_wrong_is_an_error(device, monkeypatch):
    """What it makes of columns that are read at once is not what it makes of them one by one."""
    logits = lambda lm, columns, first: np.full((1, 4, 64), 1.1 if first > 1 else 1.0)  # noqa: E731
    monkeypatch.setattr(LanguageModel, "_read", logits)
    with pytest.raises(DeviceError, match=f"device: {device}, variant fp32: computes wrong: logits of 40 columns"):
        LanguageModel.load(BUNDLES / "text", device=device)


def test_a_cache_that_moves_is_said(device):
    """Of a graph that gives the new columns alone."""
    with pytest.warns(DeviceWarning, match="the whole cache moves to the device in every call"):
        assert LanguageModel.load(BUNDLES / "standard", device=device).decoder(1, 9, None, GREEDY).caches


@pytest.mark.bench
def test_the_benchmark_runs_everywhere(device, tmp_path, capsys):
    """With tiny sizes, on whatever device: what it writes, and what it says of a device that is not there."""
    out = tmp_path / "found" / "device.json"
    sizes = ["--rows", "1", "2", "--columns", "10", "--steps", "2", "--prompt", "12", "--frames", "16", "--out", out]
    bench.main([str(argument) for argument in ["--bundle", BUNDLES / "text", "--device", "cpu", *sizes]])
    found = json.loads(out.read_text())["variants"]["fp32"]
    assert (found["device"], found["nodes_on_cpu"], found["warnings"]) == ("cpu", None, [])
    assert (found["largest_difference"], found["top1_equal"], found["greedy_equal"]) == (0, 1, 1)
    assert found["step"].keys() == found["prefill"].keys() == found["whole"].keys() == {"1", "2"}
    assert found["step"]["2"]["10"] > 0
    assert found["whole"]["2"]["real_time_factor"] > 0
    other = LanguageModel.load(BUNDLES / "text", device=device)
    agreed = bench.agreement(other, LanguageModel.load(BUNDLES / "text"))
    assert agreed["largest_difference"] < 1e-3


def test_the_benchmark_enters_why_a_device_refuses(monkeypatch, tmp_path):
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr("clean_lm.device.register", lambda device: None)
    out = tmp_path / "device.json"
    bench.main(["--bundle", str(BUNDLES / "text"), "--device", "cuda", "--out", str(out)])
    assert "cuda needs CUDAExecutionProvider" in json.loads(out.read_text())["variants"]["fp32"]["refused"]
