"""What must agree within a manifest, beyond the types and bounds of its fields. js/src/manifest_checks.js is the same.

`model` is stored redundantly, as a hash: a damaged delay, sample rate or special token would be heard, not seen.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clean_lm.manifest_fields import (
    PARTS,
    TENSORS,
    Axes,
    CodecInfo,
    Defaults,
    Document,
    GraphEntry,
    GraphName,
    LanguageModelInfo,
    Tensors,
)
from clean_lm.typed_json import FieldError, read_as, read_part, shown

CACHE = "past_key_values."  # how the names of the cache's inputs begin; those of its outputs: "present."


def check_document(typed: Document, document: Mapping[str, Any]) -> None:
    """Raise FieldError where parts of a manifest contradict each other. document: the JSON of `typed`."""
    if (found := model_sha256(typed.model)) != typed.model_sha256:
        raise FieldError(f"model_sha256 is {typed.model_sha256}, and model's is {found}: it was changed or damaged")
    for name in PARTS:
        if name in typed.graphs:
            read_part(PARTS[name], typed.model, "model")
    for at, name, entry in _graphs(typed):
        _check_files(entry, at, typed)
        inputs, outputs = TENSORS[name]
        _check_tensors(entry.inputs, inputs, typed.model, f"{at}.inputs")
        _check_tensors(entry.outputs, outputs, typed.model, f"{at}.outputs")
    if "compression_encode" in typed.graphs:
        _check_codec(typed)
    _check_variants(typed, document)
    if "lm_inference" in typed.graphs:
        read_as(Defaults, typed.defaults, "defaults")
        _check_language_model(typed)


def model_sha256(model: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest's `model` in hexadecimal: of its JSON with the names sorted, without spaces, and whole
    numbers without a point, in UTF-8 (RFC 8785)."""
    plain = {name: _plain(value) for name, value in model.items()}
    text = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """30.0 as 30: what another language's JSON makes of it."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _graphs(typed: Document) -> Iterator[tuple[str, str, GraphEntry]]:
    """Every graph of every variant: where it stands, and its name."""
    for name, entry in typed.graphs.items():
        yield f"graphs.{name}", name, entry
    for variant, info in (typed.variants or {}).items():
        for name, entry in info.graphs.items():
            yield f"variants.{variant}.graphs.{name}", name, entry


def _check_files(entry: GraphEntry, at: str, typed: Document) -> None:
    """A graph's files are listed."""
    for field, file in (("file", entry.file), ("data", entry.data)):
        if file is not None and file not in typed.files:
            raise FieldError(f"{at}.{field} is {file!r}, which `files` does not list")


def _check_tensors(tensors: Tensors, needed: Axes, model: Mapping[str, Any], at: str) -> None:
    """No two have one name, and those that a runtime names are there, with the axes that they should have."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    if len(shapes) < len(tensors):
        raise FieldError(f"{at} has two tensors of one name")
    for name, axes in needed.items():
        found = shapes.get(name)
        if found is None or len(found) != len(axes):
            held = "none" if found is None else f"{len(found)} axes"
            raise FieldError(f"{at}: {name} has {held}, expected {len(axes)} axes")
        for size, axis in zip(found, axes, strict=True):
            if axis and axis in model and size != model[axis]:
                raise FieldError(f"{at}: {name} has a size {shown(size)}, expected model.{axis}, {model[axis]}")


def _check_codec(typed: Document) -> None:
    """The codec takes all of the model's channels at once, or each by itself; rates and codebooks follow from that."""
    info, graphs = read_part(CodecInfo, typed.model, "model"), typed.graphs
    taken = _shape(graphs["compression_encode"].inputs, "audio")[1]
    if taken not in (1, info.channels):
        raise FieldError(f"graphs.compression_encode: audio has {taken} channels, expected 1 or {info.channels}")
    codebooks = info.codebooks * int(taken) // info.channels
    ends: tuple[tuple[GraphName, str], ...] = (
        ("compression_encode", "outputs"),
        ("compression_decode", "inputs"),
        ("compression_stream", "inputs"),
    )
    for name, half in ends:
        if name in graphs and (found := _shape(getattr(graphs[name], half), "codes")[1]) != codebooks:
            raise FieldError(
                f"graphs.{name}: codes has {found} codebooks, expected {codebooks}, as model.codebooks says"
            )
    if not abs(info.sample_rate / info.hop - info.frame_rate) < 1:
        rate = f"sample_rate / hop, {info.sample_rate / info.hop:g}"
        raise FieldError(f"model.frame_rate is {info.frame_rate:g}, expected {rate}, rounded at most")


def _shape(tensors: Tensors, name: str) -> tuple[str | int, ...]:
    return next(tensor.shape for tensor in tensors if tensor.name == name)


def _check_variants(typed: Document, document: Mapping[str, Any]) -> None:
    """The default is one of the variants, and the bundle's own graphs are its."""
    variants = typed.variants or {}
    if (typed.variant is None) != (not variants):
        raise FieldError(f"variant is {typed.variant!r}, variants has {len(variants)} entries")
    for backend, names in (typed.backends or {}).items():
        _require_known(names, variants, f"backends.{backend}")
    for name, info in variants.items():
        if unknown := info.graphs.keys() - typed.graphs.keys():
            raise FieldError(f"variants.{name}.graphs has {min(unknown)}, which the bundle's graphs lack")
    if typed.variant is None:
        return
    _require_known([typed.variant], variants, "variant")
    for name, entry in document["variants"][typed.variant]["graphs"].items():
        if document["graphs"].get(name) != entry:
            raise FieldError(f"graphs.{name} is not that of the default variant {typed.variant}")


def _require_known(names: Sequence[str], variants: Mapping[str, Any], at: str) -> None:
    for name in names:
        if name not in variants:
            raise FieldError(f"{at} is {name!r}, expected one of the variants {', '.join(variants)}")


def _check_language_model(typed: Document) -> None:
    """Sizes that follow from each other."""
    info, graph = read_part(LanguageModelInfo, typed.model, "model"), typed.graphs["lm_inference"]
    if info.special_token != info.card:
        raise FieldError(f"model.special_token is {info.special_token}, expected card, {info.card}")
    if len(info.delays) != info.codebooks:
        raise FieldError(f"model.delays has {len(info.delays)} entries, expected one per codebook, {info.codebooks}")
    if info.dim != info.heads * info.head_dim:
        raise FieldError(f"model.dim is {info.dim}, expected heads x head_dim, {info.heads} x {info.head_dim}")
    _check_caches(graph, info, typed.cache_update, "")
    for name, variant in (typed.variants or {}).items():
        if "lm_inference" in variant.graphs:
            graph = variant.graphs["lm_inference"]
            _check_caches(graph, info, variant.cache_update, f"variants.{name}.", variant.cache)


def _check_caches(
    graph: GraphEntry, info: LanguageModelInfo, update: str | None, at: str, kind: str | None = None
) -> None:
    """Every layer has its caches; `cache_update` and `cache` are what their shapes and types say."""
    caches = {tensor.name for tensor in graph.inputs if tensor.name.startswith(CACHE)}
    if caches != {f"{CACHE}{layer}.{half}" for layer in range(info.layers) for half in ("key", "value")}:
        expected = f"2 for each of {info.layers} layers"
        raise FieldError(f"{at}graphs.lm_inference.inputs has {len(caches)} caches, expected {expected}")
    outputs = {tensor.name: tensor for tensor in graph.outputs}
    for past in (tensor for tensor in graph.inputs if tensor.name.startswith(CACHE)):
        present = outputs.get(past.name.replace("past_key_values", "present"))
        if present is None:
            raise FieldError(f"{at}graphs.lm_inference.outputs lacks the cache of {past.name}")
        if len(past.shape) != 4 or past.shape[1] != info.heads:
            found, name = " x ".join(map(str, past.shape)), f"{at}graphs.lm_inference.inputs: {past.name}"
            raise FieldError(f"{name} is {found}, expected {info.heads} heads on the second of 4 axes")
        found = "in_place" if present.shape == past.shape else "new_columns"
        if found != update:
            raise FieldError(f"{at}cache_update is {update!r}, and the shapes of {past.name} say {found!r}")
        if kind is not None and (kind == "int8") != (past.dtype == "int8"):
            raise FieldError(f"{at}cache is {kind!r}, and {past.name} is {past.dtype}")
