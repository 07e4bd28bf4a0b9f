"""A bundle's graphs, opened in ONNX Runtime when they are first run."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from clean_lm import device as devices
from clean_lm.device import CPU, HOST, Device, DeviceError, DeviceWarning
from clean_lm.manifest import BundleError, GraphInfo, LoadOptions, Manifest
from clean_lm.manifest_fields import TensorInfo
from clean_lm.options import shown

# Older ones end the process with a division by zero where cross-attention has no rows: without a text, that is.
OLDEST = (1, 29)
Provider = str | tuple[str, dict[str, Any]]
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int8)": "int8"}
DTYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int8": np.int8}


@dataclass(frozen=True)
class Graph:
    """A graph and its tensors by name."""

    path: Path
    info: GraphInfo
    options: LoadOptions

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        return self.info.inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        return self.info.outputs

    def open(self) -> "Graph":
        """Open its session now, for a graph that every generation runs. Raises BundleError."""
        assert self.session
        return self

    @cached_property
    def session(self) -> ort.InferenceSession:
        """Opened at the first use: without texts, the graphs that read them are never loaded. Warns of work that does
        not run on the device. Raises BundleError, DeviceError."""
        providers = providers_of(self.options)
        require_providers(providers)
        try:
            session = ort.InferenceSession(str(self.path), self.session_options(), providers=providers)
        except Exception as error:  # onnxruntime has no common base class for its own
            raise BundleError(f"{self.path}: ONNX Runtime does not load it: {error}") from None
        require_started(providers, session.get_providers())
        require_same(self.path, "input", self.inputs, session.get_inputs())
        require_same(self.path, "output", self.outputs, session.get_outputs())
        if names(providers)[0] != CPU:
            name = self.device.name if self.device else names(providers)[0]
            if words := devices.fallback_words(self.path.name, name, *devices.on_cpu(session)):
                warnings.warn(words, DeviceWarning, stacklevel=2)
        return session

    def session_options(self) -> ort.SessionOptions:
        """How ONNX Runtime opens it."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.options.get("threads") or 0
        options.log_severity_level = 3
        if names(providers_of(self.options))[0] != CPU:  # see device.on_cpu
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    @property
    def device(self) -> Device | None:
        """Where it runs; None for a provider that is none of devices.DEVICES."""
        return devices.of_provider(names(providers_of(self.options))[0])

    @cached_property
    def places(self) -> Mapping[str, ort.OrtMemoryInfo]:
        """The memory that each input is read from."""
        inputs = zip(self.session.get_inputs(), self.session.get_input_memory_infos(), strict=True)
        return {tensor.name: place for tensor, place in inputs}

    def on_host(self, name: str) -> bool:
        """Whether an input is read from the memory that numpy's arrays are in."""
        return self.places[name].name == HOST

    def value(self, name: str, array: np.ndarray) -> ort.OrtValue:
        """An array as an input: on the host in its own memory, where later changes of it count; else a copy on the
        device."""
        if self.on_host(name):
            return ort.OrtValue.ortvalue_from_numpy(array)
        return devices.allocate(self.device, array, self.places[name])

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run the graph once: arrays by input name -> arrays by output name: of `outputs`, or of all."""
        wanted = list(outputs or self.outputs)
        with run_errors(self.path):
            found = self.session.run(wanted, dict(feeds))
        return {name: np.asarray(array) for name, array in zip(wanted, found, strict=True)}

    def zeros(self, name: str, sizes: Mapping[str, int]) -> np.ndarray:
        """An array for one tensor, its symbolic sizes taken from `sizes`."""
        tensor = self.inputs.get(name) or self.outputs[name]
        if unknown := [size for size in tensor.shape if isinstance(size, str) and size not in sizes]:
            raise BundleError(f"{self.path}: {name} has a size {shown(unknown[0])}, expected {', '.join(sizes)}")
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
        return np.zeros(shape, dtype=DTYPES[tensor.dtype])


@contextmanager
def run_errors(path: Path) -> Iterator[None]:
    """Raise BundleError for what ONNX Runtime raises while it runs a graph."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime has no common base class for its own
        raise BundleError(f"{path}: ONNX Runtime does not run it: {' '.join(str(error).split())}") from None


def require_same(path: Path, half: str, expected: Mapping[str, TensorInfo], found: Sequence[ort.NodeArg]) -> None:
    """Raise BundleError unless a session's inputs or outputs have the names, types and shapes of manifest.json."""
    held = {tensor.name: (TYPES.get(tensor.type, tensor.type), tuple(tensor.shape)) for tensor in found}
    wanted = {name: (tensor.dtype, tensor.shape) for name, tensor in expected.items()}
    for name in sorted(held.keys() | wanted.keys()):
        if held.get(name) != wanted.get(name):
            have, want = (" ".join(map(str, tensors.get(name, ("none",)))) for tensors in (held, wanted))
            raise BundleError(
                f"{path}: {half} {shown(name)} is {have}, manifest.json says {want}; export the bundle again"
            )


def require_version() -> None:
    """Raise ValueError if the installed ONNX Runtime is older than what pyproject.toml allows."""
    found = ort.__version__
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ValueError(f"onnxruntime {found} found, expected {oldest} or newer: pip install -U onnxruntime")


def providers_of(options: LoadOptions) -> list[Provider]:
    """The execution providers that a bundle is opened with."""
    device = options.get("device")
    return list(options.get("providers") or (CPU if device is None else devices.DEVICES[device].provider,))


def names(providers: Sequence[Provider]) -> list[str]:
    """Of execution providers, which may come with their options."""
    return [provider if isinstance(provider, str) else provider[0] for provider in providers]


def require_providers(providers: Sequence[Provider]) -> None:
    """Raise ValueError if the installed ONNX Runtime does not have one of them: it would take the CPU, silently."""
    for device in map(devices.of_provider, names(providers)):
        if device is not None:
            devices.register(device)
    available = ort.get_available_providers()
    if missing := [name for name in names(providers) if name not in available]:
        raise DeviceError(
            f"providers: this ONNX Runtime has no {', '.join(missing)}, only {', '.join(available)}; install the "
            "package of onnxruntime that has it (onnxruntime-gpu for CUDA), or leave it out"
        )


def require_started(providers: Sequence[Provider], started: Sequence[str]) -> None:
    """Raise ValueError if ONNX Runtime has one of them but could not start it, and took another instead."""
    if failed := [name for name in names(providers) if name not in started]:
        raise DeviceError(
            f"providers: ONNX Runtime could not start {', '.join(failed)}, only {', '.join(started)}; see its message "
            "above for what is missing (drivers, CUDA, cuDNN), or leave it out"
        )


def open_graph(manifest: Manifest, name: str) -> Graph:
    """One graph of a bundle, its files checked, its session not yet open. Raises FileNotFoundError, BundleError, and
    ValueError if this ONNX Runtime is too old or lacks a provider."""
    require_version()
    require_providers(providers_of(manifest.options))
    info = manifest.require_graph(name)
    manifest.check_files(manifest.files_of(name))
    if info.data not in manifest.files and (manifest.folder / info.data).exists():
        raise BundleError(f"{manifest.folder / info.data}: not listed in manifest.json; copy the bundle again")
    return Graph(manifest.folder / info.file, info, manifest.options)
