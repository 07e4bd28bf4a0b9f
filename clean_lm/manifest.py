"""A bundle's manifest.json, read once into typed dataclasses: what the bundle holds, and the sizes of its model."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from clean_lm.options import flag, integer, known, shown
from clean_lm.typed_json import FieldError, convert, read_as

FORMAT, VERSION = "clean_lm", 1
T = TypeVar("T")


class BundleError(ValueError):
    """A bundle that cannot be used: says which file, what was found and what was expected."""


class LoadOptions(TypedDict, total=False):
    """How to open a bundle: the arguments of every `load` by name."""

    variant: str | None  # of those that the bundle holds ("fp32", "int4", ...); None: its default
    threads: int | None  # None: one per physical core
    providers: Sequence[str]  # ONNX Runtime's execution providers; default: the CPU
    hashes: bool  # compare every file's SHA-256 before it is opened; default: True


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph; sizes that are strings are chosen by the caller."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class GraphEntry:
    """One graph as manifest.json has it."""

    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    data: str | None = None  # the file of its weights, if not `file`.data


@dataclass(frozen=True)
class GraphInfo:
    """One graph, its tensors by name."""

    name: str
    file: str
    data: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]

    @classmethod
    def of(cls, name: str, entry: GraphEntry) -> "GraphInfo":
        inputs, outputs = ({tensor.name: tensor for tensor in half} for half in (entry.inputs, entry.outputs))
        return cls(name, entry.file, entry.data or f"{entry.file}.data", inputs, outputs)


@dataclass(frozen=True)
class FileInfo:
    """A file's size and content."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class VariantInfo:
    """One way in which the bundle stores its weights. Field by field: export/CONTRACT.md."""

    graphs: Mapping[str, GraphEntry]
    bytes: int
    cache: Literal["float", "int8"]
    cache_update: Literal["in_place", "new_columns"]
    quality: Mapping[str, Any] | None = None
    sensitive: tuple[str, ...] = ()


@dataclass(frozen=True)
class LanguageModelInfo:
    """Sizes of the language model; words as in models.config.LMConfig."""

    layers: int
    heads: int
    head_dim: int
    dim: int
    codebooks: int
    card: int
    special_token: int
    delays: tuple[int, ...]
    max_duration: float  # seconds of a window
    frame_rate: float | None  # frames a second; None without a codec
    sample_rate: int
    channels: int
    text_dim: int
    text_encoder: str
    self_wav: Literal["melody", "style"] | None = None


@dataclass(frozen=True)
class CodecInfo:
    """Sizes of the codec."""

    sample_rate: int
    channels: int
    hop: int  # samples a frame
    frame_rate: float
    lookahead: int  # frames after one that its sound depends on


@dataclass(frozen=True)
class StyleInfo:
    """Sizes of a style model's conditioner and of MERT."""

    style_levels: int
    style_eval_q: int
    style_length: float  # seconds of the excerpt
    style_sample_rate: int
    style_receptive_field: int | None = None  # samples of one feature; None without MERT


@dataclass(frozen=True)
class Defaults:
    """What a generation uses unless asked otherwise."""

    cfg_coef: float
    top_k: int
    top_p: float
    temperature: float
    duration: float  # seconds
    extend_stride: float  # seconds


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds, with the graphs of one variant. `document` is the JSON itself, for the bundle writer."""

    folder: Path
    document: Mapping[str, Any]
    options: LoadOptions
    graphs: Mapping[str, GraphInfo]
    files: Mapping[str, FileInfo]
    variants: Mapping[str, VariantInfo]
    variant: str | None  # the one that is opened
    default_variant: str | None
    backends: Mapping[str, tuple[str, ...]]
    cache_update: Literal["in_place", "new_columns"] | None

    @classmethod
    def read(cls, folder: Path | str, **options: Unpack[LoadOptions]) -> "Manifest":
        """The bundle in `folder`. Raises FileNotFoundError, BundleError."""
        path = Path(folder) / "manifest.json"
        if not path.exists():
            raise FileNotFoundError(f"{path}: not found; a bundle is the folder that export/bundle.py writes")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"{path}: not readable JSON: {error}") from None
        return cls.parse(Path(folder), document, options)

    @classmethod
    def parse(cls, folder: Path, document: Any, options: LoadOptions | None = None) -> "Manifest":
        """A manifest that belongs in `folder`, every entry of it checked. Raises BundleError, naming the field."""
        options = options or {}
        check_options(options)
        path = folder / "manifest.json"
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            found = document.get("format") if isinstance(document, dict) else type(document).__name__
            raise BundleError(f"{path}: format is {found!r}, expected {FORMAT!r}")
        if document.get("version") != VERSION:
            raise BundleError(f"{path}: version is {document.get('version')!r}, this clean_lm reads {VERSION}")
        try:
            manifest = cls._parse(folder, document, options)
        except FieldError as error:
            raise BundleError(f"{path}: {error}; export it again") from None
        for name, part in (("lm_inference", "language_model"), ("compression_encode", "codec")):
            if name in manifest.graphs:
                getattr(manifest, part)  # which raises
        return manifest

    @classmethod
    def _parse(cls, folder: Path, document: Mapping[str, Any], options: LoadOptions) -> "Manifest":
        variants = convert(Mapping[str, VariantInfo], document.get("variants", {}), "variants")
        default = convert(str | None, document.get("variant"), "variant")
        variant = options.get("variant") or default
        if variant is not None and variant not in variants:
            held = ", ".join(variants) or "one unnamed"
            raise BundleError(f"{folder / 'manifest.json'}: holds no variant {variant!r}, only {held}")
        entries = convert(Mapping[str, GraphEntry], document.get("graphs", {}), "graphs")
        update = convert(Literal["in_place", "new_columns"] | None, document.get("cache_update"), "cache_update")
        if variant is not None:
            entries, update = {**entries, **variants[variant].graphs}, variants[variant].cache_update
        return cls(
            folder=folder,
            document=document,
            options=options,
            graphs={name: GraphInfo.of(name, entry) for name, entry in entries.items()},
            files=convert(Mapping[str, FileInfo], document.get("files", {}), "files"),
            variants=variants,
            variant=variant,
            default_variant=default,
            backends=convert(Mapping[str, tuple[str, ...]], document.get("backends", {}), "backends"),
            cache_update=update,
        )

    def with_variant(self, name: str) -> "Manifest":
        """The same bundle with the graphs of another variant. Raises BundleError."""
        return Manifest.parse(self.folder, self.document, {**self.options, "variant": name})

    @cached_property
    def language_model(self) -> LanguageModelInfo:
        """Raises BundleError if the bundle has no language model."""
        self.require_graph("lm_inference")
        return self._part(LanguageModelInfo, "model")

    @cached_property
    def codec(self) -> CodecInfo:
        """Raises BundleError if the bundle has no codec."""
        if "compression_encode" not in self.graphs:
            raise BundleError(f"{self.folder}: contains no codec; export it with export/bundle.py")
        return self._part(CodecInfo, "model")

    @cached_property
    def style(self) -> StyleInfo:
        """Raises BundleError if the bundle's model is not a style model."""
        return self._part(StyleInfo, "model")

    @cached_property
    def defaults(self) -> Defaults:
        """Raises BundleError if the bundle has none."""
        return self._part(Defaults, "defaults")

    def _part(self, cls: type[T], entry: str) -> T:
        try:
            return read_as(cls, self.document.get(entry, {}), entry)
        except FieldError as error:
            raise BundleError(f"{self.folder / 'manifest.json'}: {error}; export it again") from None

    def require_graph(self, name: str) -> GraphInfo:
        """One graph. Raises BundleError if the bundle does not contain it."""
        if name not in self.graphs:
            held = ", ".join(self.graphs) or "none"
            raise BundleError(f"{self.folder}: contains no graph {name}, only {held}; export the bundle again")
        return self.graphs[name]

    def files_of(self, graph: str) -> list[str]:
        """The files of one graph: the model, and its weights. Raises BundleError."""
        info = self.require_graph(graph)
        return [file for file in self.files if file in (info.file, info.data)]

    def check_files(self, names: Sequence[str]) -> None:
        """Raise FileNotFoundError or BundleError if a file is missing, of another size or of another content."""
        hashes = self.options.get("hashes", True)
        for name in names:
            path, entry = self.folder / name, self.files[name]
            if not path.exists():
                raise FileNotFoundError(f"{path}: listed in manifest.json, but not there; copy the bundle again")
            if path.stat().st_size != entry.bytes:
                raise BundleError(f"{path}: {path.stat().st_size} bytes, manifest.json says {entry.bytes}")
            if hashes and (found := sha256(path)) != entry.sha256:
                raise BundleError(f"{path}: sha256 is {found}, manifest.json says {entry.sha256}")


def check_options(options: LoadOptions) -> None:
    """Raise ValueError for an option that is none of LoadOptions, or has the wrong type."""
    known(options, LoadOptions.__annotations__, "load")
    variant, threads, providers = (options.get(name) for name in ("variant", "threads", "providers"))
    if not isinstance(variant, (str, type(None))):
        raise ValueError(f"variant: got {shown(variant)}, expected the name of a variant, or None")
    if threads is not None:
        integer("threads", threads, 1, 1024)
    flag("hashes", options.get("hashes", True))
    if isinstance(providers, str) or not isinstance(providers, (Sequence, type(None))):
        raise ValueError(
            f'providers: got {shown(providers)}, expected a list of names, such as ["CPUExecutionProvider"]'
        )


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
