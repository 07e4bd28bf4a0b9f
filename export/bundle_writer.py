"""Folders that appear whole or not at all, and the manifest that says what is in a bundle."""

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from clean_lm.manifest import FORMAT, VERSION, sha256

VARIED = ("lm_condition", "lm_inference", "text_encoder")  # the graphs that variants store in their own way
# Where graphs run, and the variants to prefer there. On CPUs it is the default, the first that the user wanted. In WASM
# MatMulNBits takes 6 to 10 times as long as anything else; WebGPU takes no int8 caches.
BACKENDS = {"cpu": (), "wasm": ("dynamic", "fp16", "fp32"), "webgpu": ("q4f16", "fp16", "fp32")}


class ExportError(RuntimeError):
    """Why an export was not made, and what to do."""


@contextlib.contextmanager
def reported(*errors: type[Exception], interrupted: str = "nothing was written") -> Iterator[None]:
    """End a command with a line instead of a traceback where these errors end it, or Ctrl-C."""
    try:
        yield
    except errors as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted: {interrupted}")


@contextlib.contextmanager
def new_folder(out: Path, needed: int) -> Iterator[Path]:
    """A folder to write in, which becomes `out` when the block ends well and vanishes when it does not.

    needed: bytes that will be written. Raises ExportError where `out` exists or the disk is too small.
    """
    if out.exists():
        raise ExportError(f"{out} already exists; remove it or choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise ExportError(f"{out.parent}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        partial.rename(out)
        _sync(out.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(f"{out}: the disk is full; nothing was kept of this export") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(
    folder: Path,
    model: dict[str, Any],
    defaults: dict[str, Any],
    cache_update: str | None,
    graphs: Sequence[str],
    shared_graphs: dict[str, Any] | None = None,
    shared_files: dict[str, Any] | None = None,
) -> None:
    """Write manifest.json: every tensor as read back from its file, every file with its size and SHA-256.

    cache_update: None where no graph has a cache. shared: entries of another bundle's manifest, which stay there.
    What has variants stands for the one that is there, fp32.
    """
    own = {name: describe(folder / f"{name}.onnx") for name in graphs}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "defaults": defaults,
        "cache_update": cache_update,
        "graphs": own | (shared_graphs or {}),
    }
    if cache_update:
        varied = {name: own[name] for name in graphs if name in VARIED}
        entry = {"graphs": varied, "bytes": size(folder, varied), "cache": "float", "cache_update": cache_update}
        manifest |= {
            "variant": "fp32",
            "backends": {backend: ["fp32"] for backend in BACKENDS},
            "variants": {"fp32": entry},
        }
    manifest["files"] = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    manifest["files"] |= shared_files or {}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def size(folder: Path, graphs: Mapping[str, Any]) -> int:
    """Bytes of some graphs of a manifest, weights included."""
    return sum(path.stat().st_size for graph in graphs.values() for path in folder.glob(f"{graph['file']}*"))


def print_files(out: Path, parameters: int, seconds: float) -> None:
    """Say what was written, and in what time."""
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {path}")
    print(f"{parameters / 1e6:10.2f} M parameters")
    print(f"{seconds:10.1f} s")


def describe(path: Path) -> dict[str, Any]:
    """A graph's inputs and outputs, and whose weights it reads where they are not its own, from its file."""
    graph = onnx.load(path, load_external_data=False).graph
    places = {entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location"}
    (data,) = places or {None}
    return {
        "file": path.name,
        **({"data": data} if data not in (None, f"{path.name}.data") else {}),
        "inputs": [_tensor(t) for t in graph.input],
        "outputs": [_tensor(t) for t in graph.output],
    }


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return {"name": value.name, "dtype": dtype, "shape": [d.dim_param or d.dim_value for d in tensor.shape.dim]}
