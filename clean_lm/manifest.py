"""A bundle's manifest.json, read once into typed dataclasses: what the bundle holds, and the sizes of its model."""

import hashlib
import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, TypedDict, Unpack

import numpy as np

from clean_lm import verified
from clean_lm.device import AUTO, DEVICES
from clean_lm.manifest_checks import check_document
from clean_lm.manifest_fields import (
    FORMAT,
    VERSION,
    CacheUpdate,
    CodecInfo,
    Defaults,
    Document,
    FileInfo,
    GraphEntry,
    LanguageModelInfo,
    MertInfo,
    StyleInfo,
    TensorInfo,
    TextInfo,
    VariantInfo,
)
from clean_lm.options import known, shown, threads
from clean_lm.typed_json import FieldError, read_as, read_part
from clean_lm.typed_json import shown as json_shown

LARGEST = 2**26  # bytes of a manifest.json: ten times what the largest model has with all variants
TOKENIZER = "tokenizer.json"  # of the graph text_encoder


class BundleError(ValueError):
    """A bundle that cannot be used: says which file, what was found and what was expected."""


class LoadOptions(TypedDict, total=False):
    """How to open a bundle: the arguments of every `load` by name."""

    variant: str | None  # of those that the bundle holds ("fp32", "int4", ...); None: its default
    threads: int | None  # None: one per physical core
    # "cpu", "cuda", "webgpu", "directml", "coreml", or "auto": the first that starts. Without a variant, the best for
    # it is taken. None: the CPU, with the bundle's default variant
    device: str | None
    providers: Sequence[str]  # in place of a device: ONNX Runtime's execution providers, for their options
    # Compare every file's SHA-256 before it is opened. True, the default: of a file that had the right one once and has
    # not changed since, that is enough. "again": it is read through even so. False: content is not compared.
    hashes: bool | Literal["again"]
    confine: Path | str | None  # a folder that no file of the bundle may lie outside of; None: anywhere on the disk


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
    cache_update: CacheUpdate | None
    passed: tuple[str, ...] = field(default=(), compare=False)  # devices and variants that were tried before, and why

    @classmethod
    def read(cls, folder: Path | str, **options: Unpack[LoadOptions]) -> "Manifest":
        """The bundle in `folder`. Raises FileNotFoundError, BundleError."""
        path = Path(folder) / "manifest.json"
        text = _read_manifest(path, options.get("confine"))
        try:
            document = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            raise BundleError(f"{path}: not readable JSON: {error}") from None
        except RecursionError:
            raise BundleError(f"{path}: not readable JSON: lists and objects are nested too deep") from None
        return cls.parse(Path(folder), document, options)

    @classmethod
    def parse(cls, folder: Path, document: Any, options: LoadOptions | None = None) -> "Manifest":
        """A manifest that belongs in `folder`, every entry of it checked. Raises BundleError, naming the field."""
        options = options or {}
        check_options(options)
        path = folder / "manifest.json"
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            found = document.get("format") if isinstance(document, dict) else document
            raise BundleError(f"{path}: format is {json_shown(found)}, expected {FORMAT!r}")
        if document.get("version") != VERSION:
            found = json_shown(document.get("version"))
            raise BundleError(f"{path}: version is {found}, this clean_lm reads {VERSION}")
        try:
            typed = read_as(Document, document, "")
            check_document(typed, document)
        except FieldError as error:
            raise BundleError(f"{path}: {error}; export the bundle again, or update clean_lm") from None
        return cls._chosen(folder, typed, document, options)

    @classmethod
    def _chosen(cls, folder: Path, typed: Document, document: Mapping[str, Any], options: LoadOptions) -> "Manifest":
        """The manifest with its graphs those of the variant that the options ask for."""
        variants, variant = typed.variants or {}, options.get("variant") or typed.variant
        entries, update = typed.graphs, typed.cache_update
        if variant is not None and variant not in variants:
            held = ", ".join(variants) or "one unnamed"
            raise BundleError(f"{folder / 'manifest.json'}: holds no variant {shown(variant)}, only {held}")
        if variant is not None:
            entries, update = {**entries, **variants[variant].graphs}, variants[variant].cache_update
        return cls(
            folder=folder,
            document=document,
            options=options,
            graphs={name: GraphInfo.of(name, entry) for name, entry in entries.items()},
            files=typed.files,
            variants=variants,
            variant=variant,
            default_variant=typed.variant,
            cache_update=update,
        )

    def used_files(self) -> set[str]:
        """The listed files that the variant uses: those of its graphs, and the text encoder's tokenizer."""
        return {TOKENIZER, *(file for graph in self.graphs for file in self.files_of(graph))} & self.files.keys()

    def used_bytes(self) -> int:
        """Bytes of the files that the variant uses."""
        return sum(self.files[file].bytes for file in self.used_files())

    def with_variant(self, name: str) -> "Manifest":
        """The same bundle with the graphs of another variant. Raises BundleError."""
        return self.with_options(variant=name)

    def with_options(self, **options: Unpack[LoadOptions]) -> "Manifest":
        """The same bundle, opened with other options. Raises BundleError."""
        return Manifest.parse(self.folder, self.document, {**self.options, **options})

    @cached_property
    def language_model(self) -> LanguageModelInfo:
        """Raises BundleError if the bundle has no language model."""
        self.require_graph("lm_inference")
        return read_part(LanguageModelInfo, self.document["model"], "model")

    @cached_property
    def codec(self) -> CodecInfo:
        """Raises BundleError if the bundle has no codec."""
        if "compression_encode" not in self.graphs:
            raise BundleError(f"{self.folder}: contains no codec; export it with export/bundle.py")
        return read_part(CodecInfo, self.document["model"], "model")

    @cached_property
    def text(self) -> TextInfo:
        """Raises BundleError if the bundle has no text encoder."""
        self.require_graph("text_encoder")
        return read_part(TextInfo, self.document["model"], "model")

    @cached_property
    def style(self) -> StyleInfo:
        """Raises BundleError if the bundle's model is not a style model."""
        self.require_graph("lm_style")
        return read_part(StyleInfo, self.document["model"], "model")

    @cached_property
    def mert(self) -> MertInfo:
        """Raises BundleError if the bundle has no MERT."""
        self.require_graph("style_features")
        return read_part(MertInfo, self.document["model"], "model")

    @cached_property
    def defaults(self) -> Defaults:
        """Raises BundleError if the bundle has no language model."""
        self.require_graph("lm_inference")
        return read_as(Defaults, self.document["defaults"], "defaults")

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
        """Raise FileNotFoundError or BundleError if a file is missing, not a regular file, outside of `confine`, of
        another size or of another content. hashes=False leaves out the last alone, see LoadOptions."""
        hashes = self.options.get("hashes", True)
        for name in names:
            path, entry = self.folder / name, self.files[name]
            try:
                size = regular_file(path, self.options.get("confine"))
            except FileNotFoundError:
                missing = f"{path}: listed in manifest.json, but not there; copy the bundle again"
                raise FileNotFoundError(missing) from None
            if size != entry.bytes:
                raise BundleError(f"{path}: {size} bytes, manifest.json says {entry.bytes}; copy the bundle again")
            if hashes and (found := verified.sha256(path, entry.sha256, again=hashes == "again")) != entry.sha256:
                raise BundleError(
                    f"{path}: sha256 is {found}, manifest.json says {entry.sha256}; copy the bundle again"
                )


def regular_file(path: Path, confine: Path | str | None = None) -> int:
    """The size of a file. Raises FileNotFoundError, and BundleError if it is a folder, a device, a pipe or a socket,
    which must not be opened, or lies outside of the folder `confine`, links followed."""
    try:
        status = path.stat()
        outside = confine is not None and not path.resolve(strict=True).is_relative_to(Path(confine).resolve())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found") from None
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a name that no file can have
        raise BundleError(f"{path}: cannot be opened: {error}") from None
    if outside:
        raise BundleError(f"{path}: lies outside of {confine}; a bundle opened confined has its files in there")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: not a regular file; copy the bundle again")
    return status.st_size


def _read_manifest(path: Path, confine: Path | str | None) -> str:
    try:
        size = regular_file(path, confine)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found; a bundle is the folder that export/bundle.py writes") from None
    if size > LARGEST:
        raise BundleError(f"{path}: {size} bytes, expected at most {LARGEST}")
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise BundleError(f"{path}: not readable JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def check_options(options: LoadOptions) -> None:
    """Raise ValueError for an option that is none of LoadOptions, or has the wrong type."""
    known(options, LoadOptions.__annotations__, "load")
    variant, providers = options.get("variant"), options.get("providers")
    if not isinstance(variant, (str, type(None))):
        raise ValueError(f"variant: got {shown(variant)}, expected the name of a variant, or None")
    threads("threads", options.get("threads"))
    hashes = options.get("hashes", True)
    if not isinstance(hashes, (bool, np.bool_)) and not (isinstance(hashes, str) and hashes == "again"):
        raise ValueError(f'hashes: got {shown(hashes)}, expected True or False, or "again"')
    confine = options.get("confine")
    if not isinstance(confine, (str, Path, type(None))) or confine == "":
        raise ValueError(f"confine: got {shown(confine)}, expected a folder, or None")
    device = options.get("device")
    if device is not None and (not isinstance(device, str) or device not in (AUTO, *DEVICES)):
        raise ValueError(f"device: got {shown(device)}, expected {', '.join((AUTO, *DEVICES))}, or None")
    if device is not None and providers:
        raise ValueError(f"device: got {device} and providers {shown(providers)}, expected one of them")
    if isinstance(providers, str) or not isinstance(providers, (Sequence, type(None))):
        raise ValueError(
            f'providers: got {shown(providers)}, expected a list of names, such as ["CPUExecutionProvider"]'
        )


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
