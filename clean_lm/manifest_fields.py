"""The fields of a manifest.json, with their types and bounds.

export/manifest.schema.json says the same as a JSON Schema, and is written from these classes
(python -m export.manifest_schema).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from clean_lm.typed_json import Count, Fields, Pattern, Range, kinds_of

FORMAT, VERSION = "clean_lm", 1

# of terminals, of lines, of the direction in which text runs, and halves of characters
_CONTROLS = r"\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_STEP = rf"(?!\.{{1,2}}(?:/|$))[^/\\{_CONTROLS}]+"  # one name of a path: not . or ..

Text = Annotated[str, Pattern(rf"[^{_CONTROLS}]*", "a line of text", 1000)]
Word = Annotated[str, Pattern(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", "a name of letters, digits, dots, - and _")]
FileName = Annotated[
    str, Pattern(rf"(?![A-Za-z]:)(?:\.\./)*(?:{_STEP}/)*{_STEP}", "a file's name, or its relative path", 1000)
]
Sha256 = Annotated[str, Pattern(r"[0-9a-f]{64}", "a SHA-256 in hexadecimal", 64)]
Size = Annotated[int, Range(1, 2**16)]  # of a tensor's axis, or a number of parts
Bytes = Annotated[int, Range(0, 2**50)]
Rate = Annotated[int, Range(1, 10**6)]  # samples a second
Seconds = Annotated[float, Range(1e-3, 86400)]
FrameRate = Annotated[float, Range(1e-3, 10**5)]  # frames a second
Share = Annotated[float, Range(0, 1)]
Nats = Annotated[float, Range(-1, 10**6)]  # an estimate may be below 0 by rounding
CacheUpdate = Literal["in_place", "new_columns"]
GraphName = Literal[
    "lm_inference",
    "lm_condition",
    "lm_melody",
    "lm_style",
    "style_features",
    "compression_encode",
    "compression_decode",
    "compression_stream",
    "text_encoder",
]


# model: what each part says of itself


@dataclass(frozen=True)
class LanguageModelInfo:
    """Sizes of the language model; words as in models.config.LMConfig."""

    layers: Annotated[int, Range(1, 1024)]
    heads: Annotated[int, Range(1, 1024)]
    head_dim: Annotated[int, Range(1, 4096)]
    dim: Size
    codebooks: Annotated[int, Range(1, 64)]
    card: Annotated[int, Range(1, 2**20)]
    special_token: Annotated[int, Range(1, 2**20)]
    delays: Annotated[tuple[Annotated[int, Range(0, 4096)], ...], Count(1, 64)]
    max_duration: Seconds  # of a window
    frame_rate: FrameRate | None  # None without a codec
    sample_rate: Rate
    channels: Annotated[int, Range(1, 64)]
    text_dim: Size
    text_encoder: Text
    self_wav: Literal["melody", "style"] | None = None


@dataclass(frozen=True)
class StyleInfo:
    """Sizes of a style model's conditioner."""

    style_levels: Annotated[int, Range(1, 64)]
    style_eval_q: Annotated[int, Range(1, 64)]
    style_length: Seconds  # of the excerpt
    style_rate: FrameRate  # of the features
    style_ds_factor: Size  # features a token


@dataclass(frozen=True)
class MertInfo:
    """Sizes of MERT."""

    style_sample_rate: Rate
    style_feature_dim: Size
    style_hop: Annotated[int, Range(1, 2**20)]  # samples from one feature to the next
    style_receptive_field: Annotated[int, Range(1, 2**20)]  # samples of one feature


@dataclass(frozen=True)
class CodecInfo:
    """Sizes of the codec."""

    sample_rate: Rate
    channels: Annotated[int, Range(1, 64)]
    hop: Annotated[int, Range(1, 2**20)]  # samples a frame
    frame_rate: FrameRate
    lookahead: Annotated[int, Range(0, 2**16)]  # frames after one that its sound depends on
    codebooks: Annotated[int, Range(1, 64)]
    card: Annotated[int, Range(1, 2**20)]


@dataclass(frozen=True)
class TextInfo:
    """Sizes of the text encoder."""

    text_dim: Size
    text_vocab: Annotated[int, Range(1, 2**24)]
    text_pad_token: Annotated[int, Range(0, 2**24)]
    text_eos_token: Annotated[int, Range(0, 2**24)]


# The part of `model` that a graph needs. The language model's comes last: it decides what several know.
PARTS: Mapping[str, type] = {
    "text_encoder": TextInfo,
    "style_features": MertInfo,
    "lm_style": StyleInfo,
    "compression_encode": CodecInfo,
    "lm_inference": LanguageModelInfo,
}
MODEL = {name: kind for part in PARTS.values() for name, kind in kinds_of(part).items()}


# Tensors that a runtime names, inputs and outputs of each graph: what each axis is, of `model`'s sizes; "" for any
Axes = Mapping[str, tuple[str, ...]]
TENSORS: Mapping[str, tuple[Axes, Axes]] = {
    "lm_inference": (
        {
            **{"codes": ("", "codebooks", ""), "position": ("",), "uniform": ("", "codebooks")},
            **{"cfg_coef": (), "temperature": (), "top_k": (), "top_p": ()},
        },
        {"next_codes": ("", "codebooks"), "logits": ("", "codebooks", "card")},
    ),
    "lm_condition": ({"text_states": ("", "", "text_dim"), "text_mask": ("", "")}, {}),
    "lm_melody": ({"audio": ("", "")}, {"self_wav": ("", "", "dim")}),
    "lm_style": ({"features": ("", "", ""), "eval_q": ()}, {"self_wav": ("", "", "dim")}),
    "style_features": ({"audio": ("", "")}, {"features": ("", "", "style_feature_dim")}),
    "compression_encode": ({"audio": ("", "", "")}, {"codes": ("", "", "")}),
    "compression_decode": ({"codes": ("", "", "")}, {"audio": ("", "", "")}),
    "compression_stream": ({"codes": ("", "", "")}, {"audio": ("", "", "")}),
    "text_encoder": ({"input_ids": ("", ""), "attention_mask": ("", "")}, {"last_hidden_state": ("", "", "text_dim")}),
}


# The rest


@dataclass(frozen=True)
class Defaults:
    """What a generation uses unless asked otherwise."""

    cfg_coef: Annotated[float, Range(-1000, 1000)]
    top_k: Annotated[int, Range(0, 2**20)]
    top_p: Share
    temperature: Annotated[float, Range(0, 1000)]
    duration: Seconds
    extend_stride: Seconds


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph; sizes that are texts are chosen by the caller."""

    name: Word
    dtype: Literal["float32", "float16", "int64", "int8"]
    shape: Annotated[tuple[Annotated[int, Range(0, 2**31)] | Text, ...], Count(0, 8)]


Tensors = Annotated[tuple[TensorInfo, ...], Count(1, 2**16)]


@dataclass(frozen=True)
class GraphEntry:
    """One graph."""

    file: FileName
    inputs: Tensors
    outputs: Tensors
    data: FileName | None = None  # the file of its weights, if not `file`.data


@dataclass(frozen=True)
class FileInfo:
    """A file's size and content."""

    bytes: Bytes
    sha256: Sha256


@dataclass(frozen=True)
class Quality:
    """A variant beside float32, as export.quality.Quality has it."""

    kl: Nats
    top1: Share
    perplexity: Annotated[float, Range(0, 10**30)]
    perplexity_fp32: Annotated[float, Range(0, 10**30)]
    greedy_frames: Annotated[int, Range(0, 10**6)]
    codes: Annotated[int, Range(0, 10**9)]
    source: Text
    within_bounds: bool
    kl_high: Nats | None = None
    perplexity_high: Annotated[float, Range(0, 10**30)] | None = None
    text_error: Annotated[float, Range(0, 10**30)] | None = None


@dataclass(frozen=True)
class VariantInfo:
    """One way in which the bundle stores its weights. Field by field: export/CONTRACT.md."""

    graphs: Mapping[GraphName, GraphEntry]
    bytes: Bytes
    cache: Literal["float", "int8"]
    cache_update: CacheUpdate
    quality: Quality | None = None
    sensitive: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Source:
    """The repository of the Hugging Face hub that the weights come from."""

    repository: Text
    revision: Text
    license: Text | None = None


@dataclass(frozen=True)
class Document:
    """The whole of a manifest.json."""

    format: Literal["clean_lm"]
    version: Literal[1]
    model: Annotated[Mapping[str, Any], Fields(MODEL)]
    model_sha256: Sha256  # of `model`, see clean_lm.manifest.model_sha256
    graphs: Mapping[GraphName, GraphEntry]
    files: Mapping[FileName, FileInfo]
    defaults: Annotated[Mapping[str, Any], Fields(kinds_of(Defaults))]  # {} without a language model
    cache_update: CacheUpdate | None = None
    source: Source | None = None
    variant: Word | None = None
    variants: Annotated[Mapping[Word, VariantInfo], Count(0, 64)] | None = None
    backends: Annotated[Mapping[Word, tuple[Word, ...]], Count(0, 64)] | None = None
