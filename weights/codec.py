"""The codec's table: our tensors <- audiocraft's or Hugging Face's EnCodec."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clean_lm.models.config import CodecConfig, ConfigError
from clean_lm.models.encodec import onnx_gates
from weights import audiocraft_config, huggingface_config
from weights.checkpoint import Checkpoint, open_codec
from weights.mapping import (
    Dropped,
    Model,
    Piece,
    Source,
    codebook_training_state,
    match,
    one,
    require_tensors,
    stack,
    weight_norm,
    weight_norm_names,
)

# By layout: what the names of a codec's tensors and settings begin with.
PREFIX = {"audiocraft": "", "encodec": "", "huggingface": "audio_encoder."}


@dataclass(frozen=True)
class Names:
    """What a library calls the parts of a codec. Activations count as layers."""

    layers: str  # of "encoder" or "decoder"
    conv: str  # within a layer
    conv_transpose: str
    codebook: str  # by its number


AUDIOCRAFT = Names("{}.model", "conv.conv", "convtr.convtr", "quantizer.vq.layers.{}._codebook")
HUGGINGFACE = Names("{}.layers", "conv", "conv", "quantizer.layers.{}.codebook")


def load(path: Path, base: Path | None = None) -> Model[CodecConfig]:
    """Open a codec and match it; `base`: the model of an adapter.

    Raises CheckpointError, ConfigError, MappingError, FileNotFoundError.
    """
    checkpoint = open_codec(path, base)
    return match(checkpoint, *describe(checkpoint), dropped(checkpoint))


def describe(checkpoint: Checkpoint) -> tuple[CodecConfig, dict[str, Source]]:
    """The codec that a checkpoint's configuration describes, and its table. Raises ConfigError, naming the file."""
    try:
        config = read_config(checkpoint)
        blocks = len(config.ratios) * config.residual_layers
        counts = {"codebooks": config.codebooks, "lstm_layers": config.lstm_layers, "residual blocks": blocks}
        require_tensors(checkpoint.specs, **counts)
        return config, table(checkpoint, config)
    except ConfigError as error:
        raise ConfigError(f"{checkpoint.path}: {error}") from None


def read_config(checkpoint: Checkpoint) -> CodecConfig:
    """The codec that a checkpoint's configuration describes. Raises ConfigError."""
    if checkpoint.layout == "audiocraft":
        return audiocraft_config.codec_config(checkpoint.config)
    return huggingface_config.codec_config(checkpoint.config, PREFIX[checkpoint.layout])


def table(checkpoint: Checkpoint, c: CodecConfig) -> dict[str, Source]:
    """Ours <- theirs, for the layout of `checkpoint`, which may spell weight norm in either way."""
    names = AUDIOCRAFT if checkpoint.layout == "audiocraft" else HUGGINGFACE
    return Table(names, PREFIX[checkpoint.layout], weight_norm_names(checkpoint.specs), c).rows()


def dropped(checkpoint: Checkpoint) -> list[Dropped]:
    """What is left out on purpose, and why."""
    names = AUDIOCRAFT if checkpoint.layout == "audiocraft" else HUGGINGFACE
    codebook = PREFIX[checkpoint.layout] + names.codebook.format("*")
    return codebook_training_state(codebook) + (_MUSICGEN if checkpoint.layout == "huggingface" else [])


_MUSICGEN = [
    Dropped("decoder.*", "the language model is exported by export/lm.py"),
    Dropped("enc_to_dec_proj.*", "the language model is exported by export/lm.py"),
    Dropped("audio_enc_to_dec_proj.*", "the language model is exported by export/lm.py"),
    Dropped("text_encoder.*", "the text encoder is exported by export/text.py"),
]


@dataclass(frozen=True)
class Table:
    """The rows of one layout. A convolution's weight is folded from two tensors, an LSTM's gates are reordered."""

    names: Names
    prefix: str
    weight_norm: tuple[str, str]
    c: CodecConfig

    def rows(self) -> dict[str, Source]:
        c = self.c
        names = [f"{self.prefix}{self.names.codebook.format(k)}.embed" for k in range(c.codebooks)]
        shape = c.card, c.dimension
        rows = {f"encoder.codebooks.{k}": one("codebooks", name, shape) for k, name in enumerate(names)}
        return rows | {"decoder.codebooks": stack("codebooks", names, shape)} | self.encoder() | self.decoder()

    def encoder(self) -> dict[str, Source]:
        c, layer, width = self.c, 1, self.c.filters
        rows = self.conv("encoder", "first", 0, (width, c.channels, c.kernel_size))
        for i, ratio in enumerate(reversed(c.ratios)):
            rows |= self.residuals("encoder", f"stages.{i}", layer, width)
            layer += c.residual_layers + 2  # an activation, and the strided convolution
            rows |= self.conv("encoder", f"stages.{i}.conv", layer - 1, (2 * width, width, 2 * ratio))
            width *= 2
        rows |= self.lstm("encoder", layer)
        return rows | self.conv("encoder", "last", layer + 2, (c.dimension, width, c.last_kernel_size))

    def decoder(self) -> dict[str, Source]:
        c, layer, width = self.c, 2, self.c.width
        rows = self.conv("decoder", "first", 0, (width, c.dimension, c.kernel_size)) | self.lstm("decoder", 1)
        for i, ratio in enumerate(c.ratios):
            transposed = (width, width // 2, 2 * ratio)
            rows |= self.conv("decoder", f"stages.{i}.conv", layer + 1, transposed, transposed=True)
            width //= 2
            rows |= self.residuals("decoder", f"stages.{i}", layer + 2, width)
            layer += c.residual_layers + 2
        return rows | self.conv("decoder", "last", layer + 1, (c.channels, width, c.last_kernel_size))

    def residuals(self, half: str, ours: str, layer: int, width: int) -> dict[str, Source]:
        c, hidden = self.c, width // self.c.compress
        rows: dict[str, Source] = {}
        for j in range(c.residual_layers):
            residual, block = f"{ours}.residuals.{j}", f"{layer + j}.block"
            rows |= self.conv(half, f"{residual}.narrow", f"{block}.1", (hidden, width, c.residual_kernel_size))
            rows |= self.conv(half, f"{residual}.widen", f"{block}.3", (width, hidden, 1))
        return rows

    def conv(
        self, half: str, ours: str, layer: int | str, shape: tuple[int, int, int], transposed: bool = False
    ) -> dict[str, Source]:
        name = self.names.conv_transpose if transposed else self.names.conv
        theirs = f"{self.prefix}{self.names.layers.format(half)}.{layer}.{name}"
        g = (shape[0], 1, 1)
        return {
            f"{half}.{ours}.weight": weight_norm("convolutions", theirs, self.weight_norm, g, shape),
            f"{half}.{ours}.bias": one("convolutions", f"{theirs}.bias", (shape[1 if transposed else 0],)),
        }

    def lstm(self, half: str, layer: int) -> dict[str, Source]:
        width = self.c.width
        rows: dict[str, Source] = {}
        for i in range(self.c.lstm_layers):
            theirs = f"{self.prefix}{self.names.layers.format(half)}.{layer}.lstm"
            for ours, parts, shape in (
                ("w", ("weight_ih",), (4 * width, width)),
                ("r", ("weight_hh",), (4 * width, width)),
                ("b", ("bias_ih", "bias_hh"), (4 * width,)),
            ):
                pieces = tuple(Piece(f"{theirs}.{part}_l{i}", shape) for part in parts)
                rows[f"{half}.lstm.{ours}.{i}"] = Source("LSTM", pieces, fold=fold_gates)
        return rows


def fold_gates(*parts: Tensor) -> Tensor:
    """Weights [4C, C] or biases [4C] of an LSTM as ONNX has them, one direction: [1, ...]."""
    return torch.cat([onnx_gates(part) for part in parts])[None]
