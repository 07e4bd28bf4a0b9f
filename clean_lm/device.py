"""Where graphs run: the CPU, or a device with a memory of its own, by one of ONNX Runtime's execution providers."""

import importlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnxruntime as ort

HOST = "Cpu"  # ONNX Runtime's name of the memory that numpy's arrays are in
AUTO = "auto"
CPU = "CPUExecutionProvider"
# What a step spends its time on. Everything else that a provider leaves to the CPU is arithmetic with shapes and
# positions: ONNX Runtime puts it there on purpose.
WORK = {
    *("Attention", "GroupQueryAttention", "MultiHeadAttention", "Softmax"),
    *("FusedMatMul", "Gemm", "MatMul", "MatMulNBits"),
    *("DequantizeLinear", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulInteger", "MatMulIntegerToFloat"),
    *("Gelu", "LayerNormalization", "SkipLayerNormalization"),
    *("Conv", "ConvTranspose", "FusedConv", "LSTM"),
}


class DeviceError(ValueError):
    """A device that cannot be had: says what was found, and what to install or to choose."""


class DeviceWarning(RuntimeWarning):
    """A part of the work does not run on the device that was asked for."""


@dataclass(frozen=True)
class Device:
    """One of those that `device=` and --device name."""

    name: str
    provider: str  # ONNX Runtime's name of it
    package: str  # that has it
    caches: tuple[str, ...]  # types of keys and values that its attention takes
    variants: tuple[str, ...] = ()  # to prefer where a bundle's manifest does not say
    memory: str | None = None  # what ortvalue_from_shape_and_type calls its memory; None: it says so itself
    plugin: str | None = None  # a module with a library to register, where it comes apart from ONNX Runtime


FLOAT16 = ("fp16", "q4f16")
DEVICES = {
    device.name: device
    for device in (
        Device("cpu", CPU, "onnxruntime", ("float32", "float16", "int8")),
        Device("cuda", "CUDAExecutionProvider", "onnxruntime-gpu", ("float16",), FLOAT16, "cuda"),
        Device(
            "webgpu",
            "WebGpuExecutionProvider",
            "onnxruntime-ep-webgpu",
            ("float32", "float16"),
            (*FLOAT16, "fp32"),
            plugin="onnxruntime_ep_webgpu",
        ),
        Device(
            "directml",
            "DmlExecutionProvider",
            "onnxruntime-directml",
            ("float32", "float16"),
            (*FLOAT16, "fp32"),
            "dml",
        ),
        Device("coreml", "CoreMLExecutionProvider", "onnxruntime, on macOS", ("float32", "float16", "int8")),
    )
}
# What `auto` tries in turn. Not coreml: it has no kernel for the attention, which would run on the CPU.
TRIED = ("cuda", "webgpu", "directml")


def of_provider(name: str) -> Device | None:
    """The device of an execution provider; None for one that is none of DEVICES."""
    return next((device for device in DEVICES.values() if device.provider == name), None)


@cache
def register(device: Device) -> None:
    """Make a provider known to ONNX Runtime that comes as a library of its own, where it is installed."""
    if device.plugin is None or device.provider in ort.get_available_providers():
        return
    try:
        plugin = importlib.import_module(device.plugin)
    except ImportError:
        return
    ort.register_execution_provider_library(device.name, plugin.get_library_path())


def require_available(device: Device) -> None:
    """Raise DeviceError if the installed ONNX Runtime does not have a device's provider."""
    try:
        register(device)
    except Exception as error:  # onnxruntime has no common base class for its own
        raise DeviceError(f"device: {device.name}: its library cannot be loaded: {error}") from None
    available = ort.get_available_providers()
    if device.provider in available:
        return
    install = f"pip install {device.package}"
    if device.name == "coreml":
        install = f"it is part of {device.package}"
    elif device.plugin is None:
        install += " (and uninstall onnxruntime first: it takes its place)"
    else:
        install += f"; where {device.plugin} is installed already, it finds no GPU with a driver"
    raise DeviceError(
        f"device: {device.name} needs {device.provider}, this ONNX Runtime has {', '.join(available)}: {install}"
    )


def allocate(device: Device | None, array: np.ndarray, place: ort.OrtMemoryInfo) -> ort.OrtValue:
    """A copy of an array in a device's memory. place: where a session reads it from."""
    shape, dtype = list(array.shape), array.dtype.type
    if device is not None and device.memory is not None:
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device.memory, place.device_id)
    else:
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, memory_info=place)
    if array.size:
        value.update_inplace(np.ascontiguousarray(array))
    return value


def on_cpu(session: ort.InferenceSession) -> tuple[Counter[str], int]:
    """The operators of a session's nodes that run on the CPU, and how many nodes it has in all. Only of a session that
    was opened with session.record_ep_graph_assignment_info."""
    found, nodes = Counter(), 0
    for part in session.get_provider_graph_assignment_info():
        operators = [node.op_type for node in part.get_nodes()]
        nodes += len(operators)
        if part.ep_name == CPU:
            found.update(operators)
    return found, nodes


def fallback_words(graph: str, device: str, operators: Mapping[str, int], nodes: int) -> str | None:
    """What to warn of where work runs on the CPU, not on the device; None where that is shapes and positions alone."""
    work = {name: count for name, count in sorted(operators.items()) if name in WORK}
    if not work:
        return None
    listed = ", ".join(f"{count} {name}" for name, count in work.items())
    return (
        f"{graph}: {sum(operators.values())} of {nodes} nodes run on the CPU, not on {device}, {listed} among them: "
        "what they read and write moves between both in every call; another variant may avoid it"
    )
