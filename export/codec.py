"""Export an EnCodec to ONNX: compression_encode, _decode and _stream.onnx, and manifest.json, in a new folder.

  python export/codec.py --codec compression_state_dict.bin
  python export/codec.py --codec encodec_32khz --out bundle

--codec is audiocraft's compression_state_dict.bin, or a Hugging Face folder of an EnCodec, or of a MusicGen, whose
codec is then taken. The graphs are then run beside the PyTorch modules, and the largest differences are printed.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from clean_lm.audio_codec import Stream, decode_chunks
from clean_lm.manifest import Manifest
from clean_lm.models.config import CodecConfig, ConfigError
from clean_lm.models.encodec import Decoder, Encoder, OnnxRecurrence, StandardRecurrence, StreamDecoder
from clean_lm.models.quantizer import negative_distance
from export.bundle_writer import ExportError, new_folder, print_files, reported, write_manifest
from export.onnx_graph import TensorSpec, say, write
from export.verify import AGREES, DISAGREES, SHARP, TOLERANCE
from weights.checkpoint import CheckpointError
from weights.codec import load
from weights.mapping import MappingError, Model, fill

DTYPE = torch.float32
GRAPHS = ["compression_encode", "compression_decode", "compression_stream"]
CODES, LATENTS = ("codes", "pending"), ("latents", "unheard")
FRAMES, PIECE = 40, 7  # of the audio that is compared; of a piece of it in compression_stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--codec", type=Path, required=True, help="audiocraft's compression_state_dict.bin, or a Hugging Face folder"
    )
    parser.add_argument("--out", type=Path, default=Path("bundle"), help="folder to create (default: bundle)")
    args = parser.parse_args()
    with reported(CheckpointError, ConfigError, MappingError, ExportError, FileNotFoundError):
        export(args.codec, args.out)


def export(codec: Path, out: Path) -> None:
    """Write the bundle, and print what was written and how far it is from PyTorch."""
    start = time.perf_counter()
    model = load(codec)
    with new_folder(out, model.parameters * DTYPE.itemsize) as folder:
        write_graphs(model, folder)
        write_manifest(folder, describe(model.config), {}, None, GRAPHS)
        say("comparing with the PyTorch modules")
        verdict = parity(folder, model)
        if not verdict.startswith(AGREES):
            raise ExportError(f"nothing was written: the graphs are not what PyTorch computes. {verdict}")
    print_files(out, model.parameters, time.perf_counter() - start)
    print(verdict)


def write_graphs(model: Model[CodecConfig], folder: Path) -> None:
    """Write the graphs of GRAPHS with their weights; both decoders read those of compression_decode."""
    c = model.config
    audio, codes = codec_ports(c)
    past, present = stream_ports(c, "past"), stream_ports(c, "present")
    encode, decode, stream = (folder / f"{name}.onnx" for name in GRAPHS)
    write(Encoder(c, OnnxRecurrence()), model.weights("encoder", DTYPE), DTYPE, {"audio": audio}, [codes], encode)
    weights = model.weights("decoder", DTYPE)
    shared = write(Decoder(c, OnnxRecurrence()), weights, DTYPE, {"codes": codes}, [audio], decode)
    feed = {"codes": codes, "past": past}
    write(StreamDecoder(c, OnnxRecurrence()), weights, DTYPE, feed, [audio, *present], stream, shared)


def codec_ports(c: CodecConfig) -> tuple[TensorSpec, TensorSpec]:
    """Audio and codes: what goes into one graph comes out of the other."""
    audio = TensorSpec("audio", DTYPE, ("batch", c.channels, "samples"))
    return audio, TensorSpec("codes", torch.int64, ("batch", c.codebooks, "frames"))


def stream_ports(c: CodecConfig, when: str) -> tuple[TensorSpec, ...]:
    """What one call of compression_stream leaves ("present") for the next ("past")."""
    codes = [TensorSpec(f"{when}.{part}", torch.int64, ("batch", c.codebooks, f"{when}_{part}")) for part in CODES]
    latents = [TensorSpec(f"{when}.{part}", DTYPE, ("batch", c.width, f"{when}_{part}")) for part in LATENTS]
    return *codes, *latents, TensorSpec(f"{when}.lstm", DTYPE, (c.lstm_layers, 2, "batch", c.width))


def describe(c: CodecConfig) -> dict[str, Any]:
    """The manifest's `model` for a bundle that holds a codec alone."""
    return {
        "sample_rate": c.sample_rate,
        "channels": c.channels,
        "hop": c.hop,
        "lookahead": c.lookahead,
        "frame_rate": c.frame_rate,
        "codebooks": c.codebooks,
        "card": c.card,
    }


def parity(bundle: Path, model: Model[CodecConfig], seed: int = 0) -> str:
    """One line on the graphs beside the PyTorch modules, on random audio and codes; it begins with the verdict.

    Differences are from float64, beside them those of the PyTorch modules in the graphs' own precision.
    """
    c, rng = model.config, np.random.default_rng(seed)
    audio = 0.3 * rng.standard_normal((2, c.channels, FRAMES * c.hop - c.hop // 3)).astype(np.float32)
    codes = rng.integers(0, c.card, (2, c.codebooks, FRAMES))
    decoded, rounded = (decode(model, codes, dtype) for dtype in (torch.float64, DTYPE))
    own = encode(model, audio, DTYPE)
    # The bundle is opened last, a graph at a time: its weights and PyTorch's are not in memory at once.
    ours, whole, pieces = (run(bundle, name, feed) for name, feed in zip(GRAPHS, (audio, codes, codes), strict=True))
    farther, own_farther = excess(model, audio, (ours, own))
    largest = np.abs(decoded).max()
    off, off_pieces, own_off = (float(np.abs(x - decoded).max() / largest) for x in (whole, pieces, rounded))
    pairs = (farther, own_farther), (off, own_off), (off_pieces, own_off)
    agrees = all(x <= max(TOLERANCE, SHARP * y) for x, y in pairs)
    return (
        f"{AGREES if agrees else DISAGREES} with the PyTorch modules: {(ours == own).mean():.2%} of {ours.size} codes "
        f"equal, none farther than the nearest by over {farther:.1e} (PyTorch's own {own_farther:.1e}); audio within "
        f"{off:.1e} of the largest sample, in pieces within {off_pieces:.1e} (PyTorch's own {own_off:.1e})"
    )


def run(bundle: Path, graph: str, feed: np.ndarray) -> np.ndarray:
    """What a graph makes of audio or codes: compression_stream in pieces, the others at once."""
    manifest = Manifest.read(bundle, hashes=False)
    opened = manifest.graph(graph)
    if any(name.startswith("past.") for name in opened.inputs):
        model = manifest.need("model", "lookahead", "hop")
        pieces = decode_chunks(Stream(opened), [feed], PIECE, model["lookahead"], model["hop"])
        return np.concatenate(list(pieces), axis=2)
    (name,) = opened.inputs
    return np.asarray(opened.session.run(None, {name: feed})[0])


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
    """How much less near than the nearest is the worst of some codes [B, K, T], as a share of the largest nearness.

    In float64, each codebook after the given codes of those before it. 0 where all are the nearest; where two are
    equally near but for rounding, either may be chosen, and other codes then follow.
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
