"""A bundle: what its manifest.json says is in it, and its graphs, opened in ONNX Runtime."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import onnxruntime as ort

FORMAT, VERSION = "clean_lm", 1
DTYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int8": np.int8}


class BundleError(ValueError):
    """A bundle that cannot be used: says which file, what was found and what was expected."""


class LoadOptions(TypedDict, total=False):
    """How to open a bundle: the arguments of every `load` by name."""

    variant: str | None  # of those that the bundle holds ("fp32", "int4", ...); None: its default
    threads: int | None  # None: one per physical core
    providers: Sequence[str]  # ONNX Runtime's execution providers; the CPU where not given
    hashes: bool  # compare every file's SHA-256 before it is opened; True where not given


@dataclass(frozen=True)
class Manifest:
    """manifest.json: what a bundle holds, and how to open it."""

    folder: Path
    tree: Mapping[str, Any]
    loading: LoadOptions

    @classmethod
    def read(cls, folder: Path | str, **loading: Unpack[LoadOptions]) -> "Manifest":
        """The bundle with the graphs of one variant. Raises FileNotFoundError, BundleError."""
        path = Path(folder) / "manifest.json"
        if not path.exists():
            raise FileNotFoundError(f"{path}: not found; a bundle is the folder that export/bundle.py writes")
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"{path}: not readable JSON: {error}") from None
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            found = tree.get("format") if isinstance(tree, dict) else type(tree).__name__
            raise BundleError(f"{path}: format is {found!r}, expected {FORMAT!r}")
        if tree.get("version") != VERSION:
            raise BundleError(f"{path}: version is {tree.get('version')!r}, this clean_lm reads {VERSION}")
        variants, variant = tree.get("variants", {}), loading.get("variant")
        if variant is not None and variant not in variants:
            raise BundleError(f"{path}: holds no variant {variant!r}, only {', '.join(variants) or 'one unnamed'}")
        return cls(Path(folder), tree if variant is None else chosen(tree, variants[variant]), loading)

    def need(self, entry: str, *fields: str) -> Mapping[str, Any]:
        """One entry, which must have these fields. Raises BundleError."""
        found = self.tree.get(entry, {})
        missing = [field for field in fields if field not in found]
        if missing:
            raise BundleError(f"{self.folder}/manifest.json: {entry} lacks {', '.join(missing)}; export it again")
        return found

    def check_files(self, names: Sequence[str]) -> None:
        """Raise FileNotFoundError or BundleError where a file is missing, of another size or of another content."""
        hashes = self.loading.get("hashes", True)
        for name in names:
            path, entry = self.folder / name, self.tree["files"][name]
            if not path.exists():
                raise FileNotFoundError(f"{path}: listed in manifest.json, but not there; copy the bundle again")
            if path.stat().st_size != entry["bytes"]:
                raise BundleError(f"{path}: {path.stat().st_size} bytes, manifest.json says {entry['bytes']}")
            if hashes and (found := sha256(path)) != entry["sha256"]:
                raise BundleError(f"{path}: sha256 is {found}, manifest.json says {entry['sha256']}")

    def tensor(self, graph: str, name: str) -> Mapping[str, Any]:
        """What the manifest says of one input or output: name, dtype, shape."""
        entry = self.tree["graphs"][graph]
        return next(tensor for tensor in entry["inputs"] + entry["outputs"] if tensor["name"] == name)

    def takes(self, graph: str, name: str) -> bool:
        """Whether a graph has this input."""
        return any(tensor["name"] == name for tensor in self.tree["graphs"][graph]["inputs"])

    def graph(self, name: str) -> "Graph":
        """One graph, its files checked, its session not yet open. Raises FileNotFoundError, BundleError."""
        if name not in self.need("graphs"):
            raise BundleError(f"{self.folder}: holds no {name}, only {', '.join(self.tree['graphs'])}")
        entry = self.tree["graphs"][name]
        parts = entry["file"], entry.get("data", entry["file"])
        self.check_files([file for file in self.tree["files"] if file.startswith(parts)])
        inputs, outputs = ({tensor["name"]: tensor for tensor in entry[half]} for half in ("inputs", "outputs"))
        return Graph(self.folder / entry["file"], inputs, outputs, self.loading)


@dataclass(frozen=True)
class Graph:
    """A graph and its tensors: {name: {dtype, shape}} with symbolic sizes as strings."""

    path: Path
    inputs: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, Mapping[str, Any]]
    loading: LoadOptions

    def open(self) -> "Graph":
        """Open its session now: what is asked for at every step. Raises BundleError."""
        assert self.session
        return self

    @cached_property
    def session(self) -> ort.InferenceSession:
        """Opened when first asked for: whoever gives no texts never loads what reads them. Raises BundleError."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.loading.get("threads") or 0
        options.log_severity_level = 3
        providers = list(self.loading.get("providers", ("CPUExecutionProvider",)))
        try:
            session = ort.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime has no common base class for its own
            raise BundleError(f"{self.path}: ONNX Runtime does not load it: {error}") from None
        differ = {tensor.name for tensor in session.get_inputs()} ^ self.inputs.keys()
        if differ:
            raise BundleError(f"{self.path}: its inputs are not those of manifest.json: {sorted(differ)}")
        return session

    def zeros(self, name: str, sizes: Mapping[str, int]) -> np.ndarray:
        """An array for one tensor, its symbolic sizes taken from `sizes`."""
        tensor = self.inputs.get(name) or self.outputs[name]
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor["shape"]]
        return np.zeros(shape, dtype=DTYPES[tensor["dtype"]])


def chosen(tree: Mapping[str, Any], variant: Mapping[str, Any]) -> Mapping[str, Any]:
    """A manifest with the graphs of one entry of its variants, whatever its default is."""
    update = variant.get("cache_update", tree.get("cache_update"))
    return {**tree, "graphs": {**tree.get("graphs", {}), **variant["graphs"]}, "cache_update": update}


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
