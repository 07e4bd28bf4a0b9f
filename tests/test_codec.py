"""The codec: upstream's codes and audio, through PyTorch and through the exported graphs; what is refused."""

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import EncodecConfig, EncodecModel

import export.codec as export_codec
from clean_lm.audio_codec import Stream, decode_chunks
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError, Manifest
from clean_lm.models.config import CodecConfig, ConfigError
from clean_lm.models.encodec import (
    Decoder,
    Encoder,
    StandardRecurrence,
    StreamDecoder,
    onnx_gates,
    reflect,
    torch_gates,
)
from clean_lm.session import open_graph
from export.bundle_writer import ExportError
from weights import audiocraft_config, huggingface_config
from weights.checkpoint import CheckpointError, open_layout
from weights.codec import describe, dropped, load
from weights.mapping import MappingError, differences, fill, fold_weight_norm

pytestmark = [pytest.mark.parity, pytest.mark.models]

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
HUGGINGFACE = GOLDEN / "finetune_fp16" / "hf_encodec_32khz"
CODECS = {
    "text": GOLDEN / "text" / "compression_state_dict.bin",
    "stereo": GOLDEN / "stereo" / "compression_state_dict.bin",
    "audiogen": GOLDEN / "audiogen" / "compression_state_dict.bin",
    "finetune_fp16": HUGGINGFACE,
}
CLOSE = 1e-5

# Tiny codecs of Hugging Face's, compared live: sizes that no golden has.
TINY: dict[str, dict[str, Any]] = {
    "reflect mono": {"pad_mode": "reflect", "audio_channels": 1, "upsampling_ratios": [4, 3]},
    "constant stereo": {
        "pad_mode": "constant",
        "audio_channels": 2,
        "upsampling_ratios": [2, 5, 3],
        "num_residual_layers": 2,
        "num_lstm_layers": 1,
        "compress": 1,
        "kernel_size": 5,
        "last_kernel_size": 3,
        "dilation_growth_rate": 3,
    },
    "reflect stereo": {
        "pad_mode": "reflect",
        "audio_channels": 2,
        "upsampling_ratios": [5, 8],
        "num_residual_layers": 3,
    },
}

Codec = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]  # encode, decode
Step = Callable[[np.ndarray], np.ndarray]  # one call of a stream
Streamed = Callable[[np.ndarray, int], np.ndarray]  # codes, size -> audio


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def modules(folder: Path) -> Codec:
    model = load(folder)
    encoder = fill(Encoder(model.config, StandardRecurrence()), model.weights("encoder"))
    decoder = fill(Decoder(model.config, StandardRecurrence()), model.weights("decoder"))
    return (
        lambda audio: encoder(torch.from_numpy(audio)).numpy(),
        lambda codes: decoder(torch.from_numpy(codes)).numpy(),
    )


def graphs(bundle: Path) -> Codec:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    encode, decode = (ort.InferenceSession(bundle / f"{name}.onnx", options) for name in export_codec.GRAPHS[:2])
    return (
        lambda audio: np.asarray(encode.run(["codes"], {"audio": audio})[0]),
        lambda codes: np.asarray(decode.run(["audio"], {"codes": codes})[0]),
    )


def step(decoder: StreamDecoder, dtype: torch.dtype = torch.float32) -> Step:
    """The PyTorch module as a stream."""
    c, past = decoder.config, ()

    def call(codes: np.ndarray) -> np.ndarray:
        nonlocal past
        new, none = torch.from_numpy(codes), torch.zeros(len(codes), c.width, 0, dtype=dtype)
        zeros = torch.zeros(c.lstm_layers, 2, len(codes), c.width, dtype=dtype)
        audio, past = decoder(new, past or (new[:, :, :0], new[:, :, :0], none, none, zeros))
        return audio.numpy()

    return call


def in_pieces(step: Step, c: CodecConfig, codes: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate(list(decode_chunks(step, [codes], size, c.lookahead, c.hop)), axis=2)


def streamed_modules(codec: Path) -> Streamed:
    model = load(codec)
    decoder = fill(StreamDecoder(model.config, StandardRecurrence()), model.weights("decoder"))
    return lambda codes, size: in_pieces(step(decoder), model.config, codes, size)


def streamed_graphs(codec: Path, bundle: Path) -> Streamed:
    config, graph = load(codec).config, open_graph(Manifest.read(bundle, threads=1), "compression_stream")
    return lambda codes, size: in_pieces(Stream(graph), config, codes, size)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A codec's bundle, exported when it is first asked for."""
    made: dict[Path, Path] = {}

    def make(codec: Path) -> Path:
        if codec not in made:
            made[codec] = tmp_path_factory.mktemp("codecs") / "bundle"
            export_codec.export(codec, made[codec])
        return made[codec]

    return make


@pytest.fixture(scope="module", params=["modules", "graphs"])
def opened(request: pytest.FixtureRequest, bundle: Callable[[Path], Path]) -> Callable[[Path], Codec]:
    return modules if request.param == "modules" else lambda codec: graphs(bundle(codec))


@pytest.fixture(scope="module", params=["modules", "graphs"])
def streamed(request: pytest.FixtureRequest, bundle: Callable[[Path], Path]) -> Callable[[Path], Streamed]:
    return streamed_modules if request.param == "modules" else lambda codec: streamed_graphs(codec, bundle(codec))


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / name / "codec.npz"))


@pytest.mark.parametrize("name", CODECS)
def test_upstream_codes_and_audio(opened: Callable[[Path], Codec], name: str):
    """Every array of encoding and decoding, single samples and odd lengths among them."""
    (encode, decode), arrays = opened(CODECS[name]), golden(name)
    cases = [key.removesuffix(".wav") for key in arrays if key.endswith(".wav")]
    assert len(cases) == 9
    for case in cases:
        assert np.array_equal(encode(arrays[f"{case}.wav"]), arrays[f"{case}.codes"]), case
    for case in [*cases, "dec", "dec1"]:
        audio = decode(arrays[f"{case}.codes"])
        assert audio.shape == arrays[f"{case}.audio"].shape
        np.testing.assert_allclose(audio, arrays[f"{case}.audio"], rtol=0, atol=CLOSE, err_msg=case)


@pytest.mark.parametrize("name", CODECS)
def test_upstream_latent(name: str):
    arrays, model = golden(name), load(CODECS[name])
    encoder = fill(Encoder(model.config, StandardRecurrence()), model.weights("encoder"))
    latent = encoder.latent(torch.from_numpy(arrays["enc.wav"])).numpy()
    np.testing.assert_allclose(latent, arrays["enc.latent"], rtol=0, atol=1e-5 * np.abs(arrays["enc.latent"]).max())


@pytest.mark.parametrize("name", ["text", "finetune_fp16"])
def test_rows_of_a_batch_do_not_mix(opened: Callable[[Path], Codec], name: str):
    (encode, decode), arrays = opened(CODECS[name]), golden(name)
    wav, codes = arrays["enc.wav"], arrays["dec.codes"]
    both = encode(np.concatenate([wav, wav[:, :, ::-1]]))
    assert np.array_equal(both[:1], arrays["enc.codes"])
    assert np.array_equal(both[1:], encode(np.ascontiguousarray(wav[:, :, ::-1])))
    np.testing.assert_allclose(decode(codes)[1:], decode(codes[1:]), rtol=0, atol=CLOSE)


def test_weight_norm_in_both_spellings():
    """Two files of one codec: not a number differs."""
    one, other = (load(HUGGINGFACE.with_name(HUGGINGFACE.name + end)) for end in ("", "_parametrized"))
    assert one.config == other.config
    assert {name.rsplit(".", 1)[1] for name in one.checkpoint.specs} > {"weight_g", "weight_v"}
    assert {name.rsplit(".", 1)[1] for name in other.checkpoint.specs} > {"original0", "original1"}
    for half in ("encoder", "decoder"):
        weights = other.weights(half)
        for name, tensor in one.weights(half).items():
            assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("conv", [nn.Conv1d(4, 6, 7), nn.Conv1d(4, 1, 1), nn.ConvTranspose1d(4, 6, 8)])
def test_weight_norm_as_pytorch_folds_it(conv: nn.Conv1d | nn.ConvTranspose1d):
    """Over the first axis: outputs, or the inputs of a transposed convolution."""
    normed = weight_norm(conv)
    assert isinstance(normed, type(conv))
    g, v = (tensor.detach() for name, tensor in normed.named_parameters() if name != "bias")
    g = g * torch.rand_like(g)
    normed.load_state_dict(normed.state_dict() | {"parametrizations.weight.original0": g})
    torch.testing.assert_close(fold_weight_norm(g, v), normed.weight.detach())
    assert fold_weight_norm(g.half(), v.half()).dtype == torch.float32  # folded before it is rounded


def test_gates():
    """PyTorch's i, f, g, o and ONNX's i, o, f, c."""
    rows = torch.arange(8)
    assert onnx_gates(rows).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert torch_gates(onnx_gates(rows)).tolist() == rows.tolist()


def test_reflect():
    x = torch.arange(1.0, 7.0)[None, None]
    assert torch.equal(reflect(x, 3, 5), torch.nn.functional.pad(x, (3, 5), mode="reflect"))
    assert reflect(x[..., :2], 3, 2).tolist() == [[[0, 0, 2, 1, 2, 0, 0]]]
    assert reflect(x[..., :1], 0, 1).tolist() == [[[1, 0]]]
    assert reflect(x[..., :3], 0, 3).tolist() == [[[1, 2, 3, 0, 3, 2]]]  # the mirror stands on a zero


def live(seed: int, **sizes: Any) -> EncodecModel:
    """A random codec of Hugging Face's, its config.json complete."""
    sizes = {"num_filters": 4, "hidden_size": 8, "codebook_size": 16, **sizes}
    sizes["sampling_rate"] = 50 * math.prod(sizes["upsampling_ratios"])
    bandwidth = 3.5 * 50 * math.log2(sizes["codebook_size"]) / 1000  # of 3 codebooks
    config = EncodecConfig(
        **sizes, target_bandwidths=[bandwidth], use_causal_conv=False, use_conv_shortcut=False, normalize=False
    )
    torch.manual_seed(seed)
    model = EncodecModel(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("original0"):
                tensor.mul_(0.5 + torch.rand_like(tensor))
            elif name.endswith("embed"):
                tensor.copy_(torch.randn_like(tensor))
    return model


@torch.inference_mode()
def assert_same(codec: Codec, model: Any, samples: int, batch: int, seed: int) -> None:
    """Codes equal, audio within 1e-5 of the largest sample (or of 1)."""
    encode, decode = codec
    torch.manual_seed(seed)
    audio = torch.randn(batch, model.config.audio_channels, samples)
    codes = model.encode(audio).audio_codes
    assert codes.shape == (1, batch, 3, math.ceil(samples / model.config.hop_length))
    assert np.array_equal(encode(audio.numpy()), codes[0].numpy())
    expected = model.decode(codes, [None]).audio_values
    atol = CLOSE * max(1.0, float(expected.abs().max()))
    np.testing.assert_allclose(decode(codes[0].numpy()), expected.numpy(), rtol=0, atol=atol)


@pytest.fixture(scope="module", params=TINY)
def live_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[EncodecModel, Path]:
    """A live codec, and a folder with it and its bundle."""
    folder = tmp_path_factory.mktemp("live")
    model = live(0, **TINY[request.param])
    model.save_pretrained(folder)
    export_codec.export(folder, folder / "bundle")
    return model, folder


@pytest.fixture(scope="module")
def live_codec(live_folder: tuple[EncodecModel, Path]) -> tuple[EncodecModel, Codec, Codec]:
    """A live codec, and ours of it: modules and graphs."""
    model, folder = live_folder
    return model, modules(folder), graphs(folder / "bundle")


@pytest.fixture(scope="module")
def live_stream(live_folder: tuple[EncodecModel, Path]) -> tuple[Codec, list[Streamed]]:
    """Ours of a live codec at once, and in pieces: modules and graph."""
    _, folder = live_folder
    return modules(folder), [streamed_modules(folder), streamed_graphs(folder, folder / "bundle")]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(samples=st.integers(1, 1300), batch=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_any_length(live_codec: tuple[EncodecModel, Codec, Codec], samples: int, batch: int, seed: int):
    model, *codecs = live_codec
    for codec in codecs:
        assert_same(codec, model, samples, batch, seed)


def test_shortest_lengths(live_codec: tuple[EncodecModel, Codec, Codec]):
    """Shorter than the padding: every length up to two frames and one."""
    model, *codecs = live_codec
    for samples in range(1, 2 * model.config.hop_length + 2):
        for codec in codecs:
            assert_same(codec, model, samples, 1, samples)


SIZES = st.fixed_dictionaries(
    {
        "pad_mode": st.sampled_from(["reflect", "constant"]),
        "audio_channels": st.integers(1, 2),
        "upsampling_ratios": st.lists(st.integers(2, 8), min_size=1, max_size=3),
        "num_filters": st.integers(3, 6),
        "hidden_size": st.integers(4, 12),
        "codebook_size": st.sampled_from([8, 16]),
        "num_residual_layers": st.integers(1, 3),
        "num_lstm_layers": st.integers(1, 3),
        "compress": st.integers(1, 3),
        "dilation_growth_rate": st.integers(1, 3),
        "kernel_size": st.integers(1, 8),
        "last_kernel_size": st.integers(1, 8),
        "residual_kernel_size": st.integers(1, 5),
    }
)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(sizes=SIZES, samples=st.integers(1, 1300), seed=st.integers(0, 2**32))
def test_any_sizes(tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, Any], samples: int, seed: int):
    folder = tmp_path_factory.mktemp("sizes")
    model = live(seed, **sizes)
    model.save_pretrained(folder)
    assert_same(modules(folder), model, samples, 2, seed)


CODES = np.random.default_rng(0).integers(0, 64, (1, 4, 90))


@pytest.mark.parametrize("size", [1, 2, 7, 30, 85, 90, 200])
@pytest.mark.parametrize("name", CODECS)
def test_chunks_are_one_pass(streamed: Callable[[Path], Streamed], name: str, size: int):
    """Upstream's sound of upstream's codes, and long random ones beside one pass."""
    decode, arrays = streamed(CODECS[name]), golden(name)
    for case in ("dec", "dec1", "enc"):
        audio, expected = decode(arrays[f"{case}.codes"], size), arrays[f"{case}.audio"]
        np.testing.assert_allclose(audio, expected, rtol=0, atol=CLOSE * np.abs(expected).max(), err_msg=case)
    whole = modules(CODECS[name])[1](CODES)
    np.testing.assert_allclose(decode(CODES, size), whole, rtol=0, atol=CLOSE * np.abs(whole).max())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(frames=st.integers(1, 40), size=st.integers(1, 12), batch=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_any_chunks(live_stream: tuple[Codec, list[Streamed]], frames: int, size: int, batch: int, seed: int):
    """Shorter than what the decoder looks ahead, and than its padding."""
    (_, whole), streams = live_stream
    codes = np.random.default_rng(seed).integers(0, 16, (batch, 3, frames))
    expected = whole(codes)
    for decode in streams:
        audio = decode(codes, size)
        np.testing.assert_allclose(audio, expected, rtol=0, atol=CLOSE * np.abs(expected).max())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(sizes=SIZES, frames=st.integers(1, 40), size=st.integers(1, 12), seed=st.integers(0, 2**32))
@torch.inference_mode()
def test_chunks_of_any_sizes(sizes: dict[str, Any], frames: int, size: int, seed: int):
    """Random codecs in float64: what a piece is cut from is exactly what it depends on, and no frame more."""
    config = huggingface_config.codec_config(live(seed, **sizes).config.to_dict())
    decoder, parts = Decoder(config, StandardRecurrence()), StreamDecoder(config, StandardRecurrence())
    torch.manual_seed(seed)
    shapes = {name: p.shape for name, p in decoder.named_parameters()}
    weights = {name: torch.randn(s, dtype=torch.float64) / math.prod(s[1:]) ** 0.5 for name, s in shapes.items()}
    codes = torch.randint(config.card, (2, config.codebooks, frames))
    whole = fill(decoder, weights)(codes).numpy()
    audio = in_pieces(step(fill(parts, weights), torch.float64), config, codes.numpy(), size)
    assert np.abs(audio - whole).max() < 1e-12 * np.abs(whole).max()


@pytest.mark.parametrize("sizes", [{}, {"kernel_size": 4, "last_kernel_size": 8}, {"dilation_growth_rate": 3}])
@torch.inference_mode()
def test_what_sound_depends_on(sizes: dict[str, Any]):
    """`lookahead` frames after one change its sound, those after them do not; `reach` likewise, behind the LSTM."""
    tiny = {"pad_mode": "constant", "audio_channels": 1, "upsampling_ratios": [8, 5, 4, 4], "num_residual_layers": 2}
    config = huggingface_config.codec_config(live(0, **{**tiny, **sizes}).config.to_dict())
    decoder = Decoder(config, StandardRecurrence())
    shapes = {name: p.shape for name, p in decoder.named_parameters()}
    weights = {name: torch.rand(s, dtype=torch.float64) / math.prod(s[1:]) ** 0.5 for name, s in shapes.items()}
    decoder, latents = fill(decoder, weights), torch.rand(1, config.width, 30, dtype=torch.float64)
    changed = latents.clone()
    changed[..., 15] += 1
    heard = (decoder.sound(changed) != decoder.sound(latents)).view(-1, config.hop).any(dim=1).nonzero().flatten()
    behind, ahead = config.reach
    assert heard.tolist() == list(range(15 - ahead, 15 + behind + 1))
    codes = torch.randint(config.card, (1, config.codebooks, 30))
    other = codes.clone()
    other[..., 15] = (other[..., 15] + 1) % config.card
    heard = (decoder(other) != decoder(codes)).view(-1, config.hop).any(dim=1).nonzero().flatten()
    right = (config.kernel_size - 1) // 2  # near counts an even kernel's longer side
    assert 15 - heard[0] == right + ahead <= config.lookahead


def echo(log: list[tuple[str, int]], lookahead: int) -> Step:
    """In place of a decoder: the frames themselves, from the first on that was not final."""
    held = np.zeros((1, 1, 0), dtype=np.int64)

    def call(codes: np.ndarray) -> np.ndarray:
        nonlocal held
        log.append(("decoded", codes.shape[2]))
        audio = np.concatenate([held, codes], axis=2)
        held = audio[:, :, -lookahead:]
        return np.repeat(audio, 2, axis=2)

    return call


def test_chunks_of_a_stream():
    """Audio comes as soon as it is final, and no frame is decoded twice."""
    log: list[tuple[str, int]] = []

    def frames() -> Iterator[np.ndarray]:
        for t in range(11):
            log.append(("came", t))
            yield np.full((1, 1, 1), t)

    heard = []
    for audio in decode_chunks(echo(log, 2), frames(), size=4, lookahead=2, hop=2):
        log.append(("heard", audio.shape[2]))
        heard += audio[0, 0].tolist()
    assert heard == [t for t in range(11) for _ in range(2)]
    assert [step for step in log if step[0] != "came" or step[1] in (5, 9, 10)] == [
        *(("came", 5), ("decoded", 6), ("heard", 8)),
        *(("came", 9), ("decoded", 4), ("heard", 8)),
        *(("came", 10), ("decoded", 1), ("heard", 6)),
    ]


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 9), st.integers(1, 9))
def test_chunks_of_any_parts(parts: list[int], size: int, lookahead: int):
    """However the frames come: the pieces are those of the whole."""
    log: list[tuple[str, int]] = []
    frames = np.arange(sum(parts))[None, None]
    stream = [frames[:, :, a:b] for a, b in pairwise(np.cumsum([0, *parts]))]
    audio = list(decode_chunks(echo(log, lookahead), iter(stream), size, lookahead, 2))
    assert [x for piece in audio for x in piece[0, 0, ::2]] == frames[0, 0].tolist()
    assert all(piece.shape[2] == 2 * size for piece in audio[:-1])
    assert all(0 < decoded <= size + lookahead for _, decoded in log)
    assert sum(decoded for _, decoded in log) == sum(parts)


def test_chunks_of_no_size():
    with pytest.raises(ValueError, match="size: got 0 frames, expected 1 or more"):
        decode_chunks(echo([], 4), [CODES], 0, 4, 640)


def test_one_copy_of_the_weights(bundle: Callable[[Path], Path]):
    """compression_stream has none of its own, and they are checked when it is opened."""
    folder = bundle(CODECS["text"])
    assert not (folder / "compression_stream.onnx.data").exists()
    manifest = Manifest.read(folder)
    assert manifest.document["graphs"]["compression_stream"]["data"] == "compression_decode.onnx.data"
    (sizes,) = (entry for name, entry in manifest.document["files"].items() if name == "compression_decode.onnx.data")
    wrong = {**manifest.document["files"], "compression_decode.onnx.data": {**sizes, "sha256": "0" * 64}}
    with pytest.raises(BundleError, match=r"compression_decode\.onnx\.data: sha256 is"):
        open_graph(Manifest.parse(folder, {**manifest.document, "files": wrong}), "compression_stream")


def test_manifest_and_contract(bundle: Callable[[Path], Path]):
    folder = bundle(CODECS["audiogen"])
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"] == {
        "sample_rate": 16000,
        "channels": 1,
        "hop": 320,
        "lookahead": 4,
        "frame_rate": 50,
        "codebooks": 4,
        "card": 64,
    }
    assert (manifest["defaults"], manifest["cache_update"]) == ({}, None)
    audio = {"name": "audio", "dtype": "float32", "shape": ["batch", 1, "samples"]}
    codes = {"name": "codes", "dtype": "int64", "shape": ["batch", 4, "frames"]}
    stream = manifest["graphs"].pop("compression_stream")
    assert (stream["file"], stream["data"]) == ("compression_stream.onnx", "compression_decode.onnx.data")
    for when, tensors in (("past", stream["inputs"][1:]), ("present", stream["outputs"][1:])):
        assert [(tensor["name"], tensor["dtype"], tensor["shape"]) for tensor in tensors] == [
            (f"{when}.codes", "int64", ["batch", 4, f"{when}_codes"]),
            (f"{when}.pending", "int64", ["batch", 4, f"{when}_pending"]),
            (f"{when}.latents", "float32", ["batch", 32, f"{when}_latents"]),
            (f"{when}.unheard", "float32", ["batch", 32, f"{when}_unheard"]),
            (f"{when}.lstm", "float32", [2, 2, "batch", 32]),
        ]
    assert (stream["inputs"][0], stream["outputs"][0]) == (codes, audio)
    assert manifest["graphs"] == {
        "compression_encode": {"file": "compression_encode.onnx", "inputs": [audio], "outputs": [codes]},
        "compression_decode": {"file": "compression_decode.onnx", "inputs": [codes], "outputs": [audio]},
    }
    with pytest.raises(BundleError, match=r"contains no graph lm_inference, only .*compression_encode"):
        LanguageModel.load(folder)


def test_no_warning_at_export(tmp_path: Path):
    """A fresh process in which a warning is an error says four steps and nothing else, and what it wrote."""
    live(0, **TINY["reflect mono"]).save_pretrained(tmp_path / "codec")
    paths = ["--codec", tmp_path / "codec", "--out", tmp_path / "bundle"]
    command = [sys.executable, "-W", "error", "export/codec.py", *paths]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "compression_encode.onnx: tracing",
        "compression_decode.onnx: tracing",
        "compression_stream.onnx: tracing",
        "comparing with the PyTorch modules",
    ]
    assert "compression_decode.onnx.data" in done.stdout
    assert "agrees with the PyTorch modules: 100.00% of 240 codes equal" in done.stdout


@pytest.mark.parametrize("graph", export_codec.GRAPHS)
def test_what_differs_is_not_written(
    bundle: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: str
):
    run, written = export_codec.run, bundle(CODECS["text"])

    def wrong(bundle: Path, name: str, feed: np.ndarray) -> np.ndarray:
        out = run(bundle, name, feed)
        if name == graph:
            out[0, 0, 0] = (out[0, 0, 0] + 1) % 64
        return out

    monkeypatch.setattr(export_codec, "write_graphs", lambda _, folder: copytree(written, folder, dirs_exist_ok=True))
    monkeypatch.setattr(export_codec, "run", wrong)
    with pytest.raises(ExportError, match="nothing was written: the graphs do not compute what PyTorch does"):
        export_codec.export(CODECS["text"], tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def layout(folder: Path, name: str) -> Path:
    path = folder / f"{name}.json"
    path.write_bytes(gzip.decompress((HERE / "layouts" / f"{name}.json.gz").read_bytes()))
    return path


@pytest.mark.parametrize(
    ("name", "config", "pad_mode", "sample_rate", "hop"),
    [
        ("encodec_32khz", "encodec_32khz.cfg.yaml", "constant", 32000, 640),
        ("audiogen_encodec_16khz", "audiogen_encodec_16khz.cfg.yaml", "constant", 16000, 320),
        ("hf_encodec_32khz", "hf_encodec_32khz.config.json", "reflect", 32000, 640),
        ("hf_encodec_32khz.parametrized", "hf_encodec_32khz.config.json", "reflect", 32000, 640),
    ],
)
def test_released_layouts(tmp_path: Path, name: str, config: str, pad_mode: str, sample_rate: int, hop: int):
    """Every tensor has its place: 104 that are read, 12 of the codebooks' training."""
    checkpoint = open_layout(layout(tmp_path, name), HERE / "layouts" / config)
    c, rows = describe(checkpoint)
    assert differences(rows, dropped(checkpoint), checkpoint.specs) == []
    assert len({piece.name for source in rows.values() for piece in source.pieces}) == len(checkpoint.specs) - 12 == 104
    assert (c.pad_mode, c.sample_rate, c.hop, c.frame_rate) == (pad_mode, sample_rate, hop, 50)
    assert (c.channels, c.codebooks, c.card, c.dimension, c.width) == (1, 4, 2048, 128, 1024)
    for half, module in (("encoder", Encoder), ("decoder", Decoder)):
        ours = dict(module(c, StandardRecurrence()).named_parameters())
        assert {f"{half}.{parameter}" for parameter in ours} == {row for row in rows if row.startswith(half)}


def test_codec_within_a_musicgen(tmp_path: Path):
    """Hugging Face's MusicGen folder has its codec in it, which is taken."""
    config = tmp_path / "config.json"
    inner = json.loads((HERE / "layouts" / "hf_encodec_32khz.config.json").read_text())
    (tmp_path / "folder").mkdir()
    tensors = {f"audio_encoder.{n}": t for n, t in load_file(HUGGINGFACE / "model.safetensors").items()}
    save_file(tensors | {"decoder.lm_heads.0.weight": torch.ones(2)}, tmp_path / "folder" / "model.safetensors")
    tiny = json.loads((HUGGINGFACE / "config.json").read_text())
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps({"model_type": "musicgen", "audio_encoder": tiny}))
    ours, alone = load(tmp_path / "folder"), load(HUGGINGFACE)
    assert ours.config == alone.config
    assert all(torch.equal(tensor, alone.weights("decoder")[name]) for name, tensor in ours.weights("decoder").items())
    config.write_text(json.dumps({"model_type": "musicgen", "audio_encoder": inner | {"use_causal_conv": True}}))
    with pytest.raises(ConfigError, match=r"audio_encoder\.use_causal_conv: found True, supported: False"):
        load(tmp_path / "folder")


def xp_cfg() -> dict[str, Any]:
    return yaml.safe_load((HERE / "layouts" / "encodec_32khz.cfg.yaml").read_text())


def config_json() -> dict[str, Any]:
    return json.loads((HERE / "layouts" / "hf_encodec_32khz.config.json").read_text())


def test_both_configurations_are_one_codec():
    """But for what they pad with: Hugging Face's conversion left that at its default."""
    ours, theirs = audiocraft_config.codec_config(xp_cfg()), huggingface_config.codec_config(config_json())
    assert replace(ours, pad_mode="reflect") == theirs
    assert (ours.ratios, ours.filters, ours.lstm_layers) == ((8, 5, 4, 4), 64, 2)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("compression_model", "dac", "found 'dac', supported: 'encodec'"),
        ("encodec.causal", True, "seanet.causal: found True, supported: False"),
        ("encodec.renormalize", True, "found True, supported: False"),
        ("encodec.quantizer", "no_quant", "found 'no_quant', supported: 'rvq'"),
        ("seanet.norm", "time_group_norm", "found 'time_group_norm', supported: 'weight_norm'"),
        ("seanet.activation", "Snake", "found 'Snake', supported: 'ELU'"),
        ("seanet.activation_params.alpha", 0.5, "found 0.5, supported: 1.0"),
        ("seanet.true_skip", False, "found False, supported: True"),
        ("seanet.disable_norm_outer_blocks", 1, "found 1, supported: 0"),
        ("seanet.decoder.trim_right_ratio", 0.5, "found 0.5, supported: 1.0"),
        ("seanet.decoder.final_activation", "Tanh", "found 'Tanh', supported: None"),
        ("seanet.encoder.lstm", 0, "found 0, supported: 2, as seanet.lstm"),
        ("seanet.decoder.kernel_size", 5, "found 5, supported: 7, as seanet.kernel_size"),
        ("seanet.channels", 2, "found 2, supported: 1"),
        ("seanet.pad_mode", "replicate", "pad_mode 'replicate': expected 'constant' or 'reflect'"),
        ("seanet.lstm", 0, "lstm_layers 0: expected a number above 0"),
        ("seanet.ratios", [8, 1], "expected numbers above 1"),
        ("seanet.ratios", None, "no seanet.ratios"),
        ("seanet.compress", 65, "filters 64: expected compress, 65, or more"),
        ("encodec.sample_rate", 44100, "sample_rate 44100 is not a multiple of the hop 640"),
        ("encodec.channels", "${channel}", "encodec.channels refers to channel, which is absent"),
        ("channels", 3, "channels 3: expected 1 or 2"),
    ],
)
def test_other_codecs_of_audiocraft(name: str, value: object, words: str):
    tree = xp_cfg()
    *path, last = name.split(".")
    node = tree
    for part in path:
        node = node[part]
    node[last] = value
    with pytest.raises(ConfigError) as error:
        audiocraft_config.codec_config(tree)
    assert words in str(error.value)


def test_everything_unsupported_at_once():
    tree = xp_cfg()
    tree["encodec"]["causal"] = tree["encodec"]["renormalize"] = True
    del tree["seanet"]["norm"]
    with pytest.raises(ConfigError) as error:
        audiocraft_config.codec_config(tree)
    assert str(error.value).splitlines() == [
        "clean_lm does not support this codec:",
        "  xp.cfg encodec.causal: found True, supported: False",
        "  xp.cfg encodec.renormalize: found True, supported: False",
        "  xp.cfg seanet.causal: found True, supported: False",
        "  xp.cfg seanet.norm: found nothing (audiocraft then takes 'none'), supported: 'weight_norm'",
    ]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("use_causal_conv", True, "found True, supported: False"),
        ("use_causal_conv", ..., "found nothing (transformers then takes True), supported: False"),
        ("use_conv_shortcut", ..., "found nothing (transformers then takes True), supported: False"),
        ("normalize", True, "found True, supported: False"),
        ("norm_type", "time_group_norm", "supported: 'weight_norm'"),
        ("trim_right_ratio", 0.5, "found 0.5, supported: 1.0"),
        ("chunk_length_s", 1.0, "found 1.0, supported: None"),
        ("codebook_dim", 64, "found 64, supported: hidden_size, 128"),
        ("pad_mode", ..., "no pad_mode"),
        ("target_bandwidths", [], "target_bandwidths: got [], expected numbers above 0"),
        ("target_bandwidths", ["a"], "got 'a' in it, expected a list of float"),
        ("upsampling_ratios", [], "ratios []: expected numbers above 1"),
    ],
)
def test_other_codecs_of_huggingface(name: str, value: object, words: str):
    tree = {key: item for key, item in (config_json() | {name: value}).items() if item is not ...}
    with pytest.raises(ConfigError) as error:
        huggingface_config.codec_config(tree)
    assert words in str(error.value)


@pytest.mark.parametrize(("bandwidths", "codebooks"), [([2.2], 4), ([2], 3), ([0.55, 1.1], 2)])
def test_codebooks_of_a_bandwidth(bandwidths: list[float], codebooks: int):
    assert huggingface_config.codec_config(config_json() | {"target_bandwidths": bandwidths}).codebooks == codebooks


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load(path)
    return str(error.value)


def test_a_pointer_says_what_to_fetch():
    """A fine-tune's compression_state_dict.bin may only name its codec."""
    message = refused(GOLDEN / "finetune_fp16" / "compression_state_dict.bin")
    for words in (
        "compression_state_dict.bin: a pointer to the codec 'facebook/encodec_32khz', without its weights",
        "download config.json and model.safetensors of it from Hugging Face",
        "hf download facebook/encodec_32khz --local-dir FOLDER",
        "--codec FOLDER",
    ):
        assert words in message


def test_a_language_model_is_not_a_codec(tmp_path: Path):
    message = refused(GOLDEN / "text" / "state_dict.bin")
    assert "state_dict.bin: not a codec checkpoint (xp.cfg lm_model: 'transformer_lm'" in message
    assert "give the compression_state_dict.bin beside it" in message
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert "model_type is 't5', expected 'encodec', or 'musicgen' with one in it" in refused(tmp_path)


def test_the_folder_of_a_fine_tune():
    assert load(GOLDEN / "text").checkpoint.path == CODECS["text"]
    assert load(HUGGINGFACE / "model.safetensors").config == load(HUGGINGFACE).config


def test_nothing_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"gone: no such file or folder"):
        load(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"no codec found; expected audiocraft's compression_state_dict\.bin"):
        load(tmp_path)


def test_other_files(tmp_path: Path):
    path = tmp_path / "compression_state_dict.bin"
    path.write_bytes(b"hello")
    assert "not a file of torch.save (5 bytes that begin b'hello'); expected compression_state_dict.bin" in refused(
        path
    )
    path.write_bytes(CODECS["text"].read_bytes()[:90_000])
    assert "truncated or damaged (90000 bytes" in refused(path)
    torch.save({"best_state": {}}, path)
    assert "has no xp.cfg; it holds best_state" in refused(path)


@pytest.mark.parametrize("name", ["text", "finetune_fp16"])
def test_every_difference_is_named(tmp_path: Path, name: str):
    """Missing, unexpected, misshapen and integer tensors, all at once; training's buffers may be absent."""
    if name == "text":
        package = torch.load(CODECS[name], weights_only=True)
        state, target = package["best_state"], tmp_path / "compression_state_dict.bin"
        conv, book = "encoder.model.0.conv.conv", "quantizer.vq.layers.1._codebook"
    else:
        state = load_file(HUGGINGFACE / "model.safetensors")
        (tmp_path / "config.json").write_bytes((HUGGINGFACE / "config.json").read_bytes())
        package, target, conv, book = {}, tmp_path, "encoder.layers.0.conv", "quantizer.layers.1.codebook"
    lstm = conv.split(".0.")[0].replace("encoder", "decoder") + ".1.lstm"
    del state[f"{conv}.weight_g"], state[f"{book}.cluster_size"]
    state["extra"] = torch.ones(3)
    state[f"{book}.embed"] = torch.ones(64, 15)
    state[f"{lstm}.bias_ih_l0"] = torch.ones(128, dtype=torch.int64)
    if name == "text":
        torch.save(package, target)
    else:
        save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(MappingError) as error:
        load(target)
    assert [line.split() for line in str(error.value).splitlines()[1:]] == [
        ["missing", f"{conv}.weight_g", "[2,", "1,", "1]"],
        ["unexpected", "extra", "[3]"],
        ["misshapen", f"{book}.embed:", "found", "[64,", "15],", "expected", "[64,", "16]"],
        ["not", "floats", f"{lstm}.bias_ih_l0:", "found", "torch.int64"],
    ]
