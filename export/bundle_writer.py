"""Writes bundles: a folder that appears whole or not at all, and its manifest.json.

Every manifest is composed, validated and written here: `draft` for a new bundle, `with_variants` for one that gets
others, and then `publish` or `write`. Until then a manifest is in memory alone, and its new files are not hashed: what
is interrupted is opened by nothing, and a file that does not stay is not read for its hash.
"""

import contextlib
import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from clean_lm import atomic
from clean_lm.manifest import Manifest, sha256
from clean_lm.manifest_checks import model_sha256
from clean_lm.manifest_fields import FORMAT, VERSION
from export.commands import ExportError, require_new
from export.opened import MANIFEST
from export.sharing import Entries, Shared

FP32 = "fp32"  # the variant that every bundle is made from, whether it stays or not
UNHASHED = "0" * 64  # in place of a new file's SHA-256
VARIED = ("lm_condition", "lm_inference", "text_encoder")  # the graphs that variants store in their own way
# Where graphs run, and the variants to prefer there. On CPUs it is the default, the first that the user wanted. In WASM
# MatMulNBits takes 6 to 10 times as long as anything else; WebGPU takes no int8 caches. CUDA's attention is float16
# alone. What is fastest was measured on CPUs, in WASM and on WebGPU, not on CUDA and DirectML.
BACKENDS = {
    "cpu": (),
    "wasm": ("dynamic", "fp16", "fp32"),
    "webgpu": ("q4f16", "fp16", "fp32"),
    "cuda": ("fp16", "q4f16"),
    "directml": ("fp16", "q4f16", "fp32"),
}


# Folders


@contextlib.contextmanager
def new_folder(out: Path, bytes_required: int) -> Iterator[Path]:
    """A folder to write in, which becomes `out` when the block ends well and vanishes when it does not.

    Raises ExportError where `out` exists, the disk has too little room, or it is full before the end.
    """
    require_new(out, bytes_required)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic.folder(out) as folder:
            yield folder
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(f"{out}: the disk is full; nothing was kept of this export") from error
        raise


# The manifest


def draft(
    folder: Path,
    model: Mapping[str, Any],
    defaults: Mapping[str, Any],
    cache_update: str | None,
    graphs: Sequence[str],
    shared: Sequence[Shared] = (),
    source: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest of a new bundle, which is not written yet.

    cache_update: None where no graph has a cache. graphs: names of those in `folder`, whose tensors are read back from
    their files. shared: parts of other bundles, which stay there. source: the repository of the hub that the weights
    come from. fp32 is the only variant.
    """
    own = {name: describe(folder / f"{name}.onnx") for name in graphs}
    theirs = [part.entries(folder) for part in shared]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "model_sha256": model_sha256(model),
        "defaults": defaults,
        "cache_update": cache_update,
        "graphs": own | _union(graphs for graphs, _ in theirs),
        **({"source": source} if source else {}),
    }
    if cache_update:
        manifest |= _first_variant(folder, {name: own[name] for name in graphs if name in VARIED}, cache_update)
    files = {path.name: _file(path) for path in sorted(folder.iterdir())}
    manifest["files"] = files | _union(files for _, files in theirs)
    return _parsed(folder, manifest)


def with_variants(manifest: Manifest, variants: Mapping[str, Any], default: str) -> Manifest:
    """A bundle with these variants in place of its own, which is not written yet.

    variants: entries of the manifest by name; files of new ones lie in the folder.
    """
    folder, document = manifest.folder, manifest.document
    old, new = (_variant_files(entries) for entries in (document["variants"], variants))
    files = {name: entry for name, entry in document["files"].items() if name not in old}
    files |= {name: document["files"].get(name) or _file(folder / name) for name in sorted(new)}
    chosen = variants[default]
    changed = {
        **document,
        "graphs": document["graphs"] | chosen["graphs"],
        "cache_update": chosen["cache_update"],
        "variant": default,
        "variants": variants,
        "files": files,
        "backends": {backend: preferred(backend, variants, default) for backend in BACKENDS},
    }
    return _parsed(folder, changed)


def publish(manifest: Manifest) -> None:
    """End the making of a new bundle: remove whatever its manifest does not name, and write its manifest.json."""
    for path in manifest.folder.iterdir():
        if path.name not in manifest.files:
            path.unlink()
    write(manifest)


def write(manifest: Manifest) -> None:
    """Write a bundle's manifest.json, whole or not at all, with the hashes of its new files.

    Raises BundleError where the runtime would not read it.
    """
    folder, document = manifest.folder, manifest.document
    hashed = {
        name: {**entry, "sha256": sha256(folder / name)} if entry["sha256"] == UNHASHED else entry
        for name, entry in document["files"].items()
    }
    text = json.dumps({**document, "files": hashed}, indent=1) + "\n"
    Manifest.parse(folder, json.loads(text))
    with atomic.file(folder / MANIFEST) as file:
        file.write(text.encode())


def merged_model(
    lm: Mapping[str, Any], codec: Mapping[str, Any], text: Mapping[str, Any], mert: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest's `model` for a whole bundle, from what its parts say of themselves; {} for a part that is not
    there. The language model decides what several know."""
    model = {name: value for name, value in mert.items() if name.startswith("style_")}
    model |= {name: value for name, value in text.items() if name.startswith("text_")}
    model |= lm
    return model | {name: codec[name] for name in ("sample_rate", "hop", "frame_rate", "lookahead")}


def preferred(backend: str, variants: Mapping[str, Any], default: str) -> list[str]:
    """The variants that a backend should take, the best first; those that are worse than the bounds last."""
    held = [name for name in BACKENDS[backend] or (default,) if name in variants]
    return sorted(held, key=lambda name: not variants[name].get("quality", {}).get("within_bounds", True))


def describe(path: Path) -> dict[str, Any]:
    """A graph's entry: its inputs and outputs, read from its file, and whose weights it reads if not its own."""
    graph = onnx.load(path, load_external_data=False).graph
    places = {entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location"}
    (data,) = places or {None}
    return {
        "file": path.name,
        **({"data": data} if data not in (None, f"{path.name}.data") else {}),
        "inputs": [_tensor(t) for t in graph.input],
        "outputs": [_tensor(t) for t in graph.output],
    }


def size(folder: Path, graphs: Mapping[str, Any]) -> int:
    """Bytes of the files of some graphs' entries, weights included."""
    return sum(path.stat().st_size for graph in graphs.values() for path in folder.glob(f"{graph['file']}*"))


def _first_variant(folder: Path, graphs: Entries, cache_update: str) -> dict[str, Any]:
    """What a manifest says of its variants where float32 is the only one."""
    entry = {"graphs": graphs, "bytes": size(folder, graphs), "cache": "float", "cache_update": cache_update}
    return {"variant": FP32, "backends": {backend: [FP32] for backend in BACKENDS}, "variants": {FP32: entry}}


def _variant_files(variants: Mapping[str, Any]) -> set[str]:
    """The names of all files of some variants' graphs."""
    graphs = [graph["file"] for entry in variants.values() for graph in entry["graphs"].values()]
    return {f"{name}{end}" for name in graphs for end in ("", ".data")}


def _parsed(folder: Path, document: Mapping[str, Any]) -> Manifest:
    """A manifest as the runtime reads it, for a bundle whose hashes are not known yet. Raises BundleError."""
    return Manifest.parse(folder, json.loads(json.dumps(document)), {"hashes": False})


def _file(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": UNHASHED}


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return {"name": value.name, "dtype": dtype, "shape": [d.dim_param or d.dim_value for d in tensor.shape.dim]}


def _union(parts: Iterator[Entries]) -> Entries:
    return {name: entry for part in parts for name, entry in part.items()}
