"""Export an EnCodec to ONNX: compression_encode, _decode and _stream.onnx, and manifest.json, in a new folder.

  python export/codec.py --codec compression_state_dict.bin
  python export/codec.py --codec encodec_32khz --out bundle

--codec is audiocraft's compression_state_dict.bin, or a Hugging Face folder of an EnCodec or of a MusicGen, whose codec
is taken. The graphs are then run beside the PyTorch modules, and the largest differences are printed; graphs that
disagree are not kept.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from clean_lm.audio_codec import Stream, decode_chunks
from clean_lm.console import Parser
from clean_lm.manifest import BundleError
from clean_lm.models.config import CodecConfig, ConfigError
from clean_lm.models.encodec import Decoder, Encoder, OnnxRecurrence, StandardRecurrence, StreamDecoder
from clean_lm.models.quantizer import negative_distance
from clean_lm.session import open_graph
from export.bundle_writer import draft, new_folder, publish
from export.commands import errors_as_one_line, print_files, progress, require_new, tell
from export.onnx_graph import TensorSpec, write
from export.opened import Bundle, opened
from export.parity import Verdict, against_pytorch, largest_difference, require_agreement
from weights.checkpoint import CheckpointError
from weights.codec import load
from weights.mapping import MappingError, Model, fill, require_finite

DTYPE = torch.float32
GRAPHS = ("compression_encode", "compression_decode", "compression_stream")
CODES, LATENTS = ("codes", "pending"), ("latents", "unheard")
FRAMES, CHUNK = 40, 7  # of the audio that is compared; of each call of compression_stream

ERRORS = (BundleError, CheckpointError, ConfigError, MappingError)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--codec", type=Path, required=True, help="audiocraft's compression_state_dict.bin, or a Hugging Face folder"
    )
    parser.add_argument("--base", type=Path, help="the model of a LoRA adapter")
    parser.add_argument("--out", type=Path, default=Path("bundle"), help="folder to create (default: bundle)")
    args = parser.parse_args()
    with errors_as_one_line(*ERRORS):
        export(args.codec, args.out, args.base)


def export(codec: Path, out: Path, base: Path | None = None) -> None:
    """Write the bundle, and print what was written and how far it is from PyTorch."""
    start = time.perf_counter()
    require_new(out)
    model = load(codec, base)
    tell(model.checkpoint.notes)
    require_finite(model)
    require_new(out, model.parameters * DTYPE.itemsize)
    with new_folder(out, model.parameters * DTYPE.itemsize) as folder:
        write_graphs(model, folder)
        bundle = draft(folder, describe(model.config), {}, None, GRAPHS)
        progress("comparing with the PyTorch modules")
        lines = require_agreement({"": parity(bundle, model)})
        publish(bundle)
    print_files(out, model.parameters, time.perf_counter() - start)
    print("\n".join(lines))


def write_graphs(model: Model[CodecConfig], folder: Path) -> None:
    """Write the graphs of GRAPHS with their weights; both decoders read those of compression_decode."""
    c = model.config
    audio, codes = codec_specs(c)
    past, present = stream_specs(c, "past"), stream_specs(c, "present")
    encode, decode, stream = (folder / f"{name}.onnx" for name in GRAPHS)
    write(Encoder(c, OnnxRecurrence()), model.weights("encoder", DTYPE), DTYPE, {"audio": audio}, [codes], encode)
    weights = model.weights("decoder", DTYPE)
    shared = write(Decoder(c, OnnxRecurrence()), weights, DTYPE, {"codes": codes}, [audio], decode)
    feed = {"codes": codes, "past": past}
    write(StreamDecoder(c, OnnxRecurrence()), weights, DTYPE, feed, [audio, *present], stream, shared)


def codec_specs(c: CodecConfig) -> tuple[TensorSpec, TensorSpec]:
    """Audio and codes: the input of one graph is the output of the other."""
    audio = TensorSpec("audio", DTYPE, ("batch", c.channels, "samples"))
    return audio, TensorSpec("codes", torch.int64, ("batch", c.codebooks, "frames"))


def stream_specs(c: CodecConfig, when: str) -> tuple[TensorSpec, ...]:
    """The state that one call of compression_stream returns ("present") and the next one takes ("past")."""
    codes = [TensorSpec(f"{when}.{part}", torch.int64, ("batch", c.codebooks, f"{when}_{part}")) for part in CODES]
    latents = [TensorSpec(f"{when}.{part}", DTYPE, ("batch", c.width, f"{when}_{part}")) for part in LATENTS]
    return *codes, *latents, TensorSpec(f"{when}.lstm", DTYPE, (c.lstm_layers, 2, "batch", c.width))


def describe(c: CodecConfig) -> dict[str, Any]:
    """The manifest's `model` of a bundle that holds a codec alone."""
    return {
        "sample_rate": c.sample_rate,
        "channels": c.channels,
        "hop": c.hop,
        "lookahead": c.lookahead,
        "frame_rate": c.frame_rate,
        "codebooks": c.codebooks,
        "card": c.card,
    }


def parity(bundle: Bundle, model: Model[CodecConfig], seed: int = 0) -> Verdict:
    """The graphs beside the PyTorch modules in float64, on random audio and codes."""
    c, rng = model.config, np.random.default_rng(seed)
    audio = 0.3 * rng.standard_normal((2, c.channels, FRAMES * c.hop - c.hop // 3)).astype(np.float32)
    codes = rng.integers(0, c.card, (2, c.codebooks, FRAMES))
    exact, rounded = (decode(model, codes, dtype) for dtype in (torch.float64, DTYPE))
    pytorch = encode(model, audio, DTYPE)
    # The bundle is opened last, a graph at a time: its weights and PyTorch's are not in memory at once.
    ours, decoded, streamed = (run(bundle, *pair) for pair in zip(GRAPHS, (audio, codes, codes), strict=True))
    compared = f"{(ours == pytorch).mean():.2%} of {ours.size} codes equal"
    unit = "the largest sample"
    return Verdict(compared, (
        against_pytorch("none farther than the nearest by over", "the largest distance",
                        *excess(model, audio, (ours, pytorch))),
        largest_difference(decoded, rounded, exact, unit, "audio within"),
        largest_difference(streamed, rounded, exact, unit, "streamed audio within"),
    ))  # fmt: skip


def run(bundle: Bundle, graph: str, feed: np.ndarray) -> np.ndarray:
    """A graph's output for audio or codes: of compression_stream a chunk at a time, of the others at once."""
    manifest = opened(bundle, hashes=False)
    found = open_graph(manifest, graph)
    if any(name.startswith("past.") for name in found.inputs):
        chunks = decode_chunks(Stream(found), [feed], CHUNK, manifest.codec.lookahead, manifest.codec.hop)
        return np.concatenate(list(chunks), axis=2)
    (name,), (output,) = found.inputs, found.outputs
    return found.run({name: feed})[output]


@torch.inference_mode()
def encode(model: Model[CodecConfig], audio: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The PyTorch modules in `dtype`: audio [B, channels, samples] -> codes int64 [B, K, T]."""
    encoder = fill(Encoder(model.config, StandardRecurrence()), model.weights("encoder", dtype))
    return encoder(torch.from_numpy(audio).to(dtype)).numpy()


@torch.inference_mode()
def decode(model: Model[CodecConfig], codes: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The PyTorch modules in `dtype`: codes int64 [B, K, T] -> audio [B, channels, T x hop]."""
    decoder = fill(Decoder(model.config, StandardRecurrence()), model.weights("decoder", dtype))
    return decoder(torch.from_numpy(codes)).numpy()


@torch.inference_mode()
def excess(model: Model[CodecConfig], audio: np.ndarray, codes: tuple[np.ndarray, ...]) -> list[float]:
    """For each of some codes [B, K, T]: how much farther than the nearest entry the worst of them is, in float64, as a
    share of the largest distance.

    0 where all are the nearest. Where two entries are equally near but for rounding, either may be chosen, and the
    codes of later codebooks differ then: each is judged by what the given codes before it leave.
    """
    encoder = fill(Encoder(model.config, StandardRecurrence()), model.weights("encoder", torch.float64))
    latent = rearrange(encoder.latent(torch.from_numpy(audio).double()), "b d t -> b t d")
    worst = []
    for chosen in map(torch.from_numpy, codes):
        left, share = latent, 0.0
        for code, table in zip(chosen.unbind(dim=1), encoder.codebooks, strict=True):
            near = negative_distance(left, table)
            given = near.gather(-1, code[..., None])
            share = max(share, float((near.amax(dim=-1, keepdim=True) - given).max() / near.abs().max()))
            left = left - table[code]
        worst.append(share)
    return worst


if __name__ == "__main__":
    main()
