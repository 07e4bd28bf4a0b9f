"""Graphs that are traced once for the whole run: torch takes ten seconds for one of a tiny model, many tests want it.

`Traces` stands in for export.onnx_graph.trace. What a graph depends on is its key: the module's classes and settings,
the shapes of its parameters, its other tensors, and the inputs. A module that is not the project's own, or whose code a
test has replaced, is traced as ever. The graphs lie in a folder that the workers of a run share; the next run begins
with an empty one, so that none outlives the code that it was traced from.
"""

import dataclasses
import fcntl
import functools
import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

import clean_lm.models
from export import onnx_graph

MODELS = [importlib.import_module(f"clean_lm.models.{m.name}") for m in pkgutil.iter_modules(clean_lm.models.__path__)]
READ = ("TRACED", "OPSET", "TensorSpec", "fill", "warnings_are_errors")  # by onnx_graph.trace
COUNTED = "tests.traces"
# The exporter's functions: torch collects the same ones, by parsing their source, for every trace.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
OF_MODULES = frozenset(vars(nn.Module()))  # what every module has; parameters and submodules are looked at one by one


class Unknown(Exception):
    """Something that no key can be made of."""


class Traces:
    """Traces modules, or reads the graphs of those that were traced before from `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.trace = onnx_graph.trace
        self.code = code()

    def __call__(self, module: nn.Module, dtype: torch.dtype, inputs: dict[str, Any]) -> ir.Model:
        """The graph of a module, as export.onnx_graph.trace returns it."""
        try:
            key = hashlib.sha256(repr((describe(module), str(dtype), describe(inputs))).encode()).hexdigest()
        except Unknown:
            return self.trace(module, dtype, inputs)
        if self.code != code():
            return self.trace(module, dtype, inputs)
        path = self.folder / f"{key}.onnx"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                names = {name for name, _ in module.named_parameters()}
                written = without_weights(self.trace(module, dtype, inputs), names)
                path.with_suffix(".new").write_bytes(written)
                path.with_suffix(".new").rename(path)
        return with_names(ir.from_proto(onnx.load_model_from_string(path.read_bytes())))


def code() -> list[tuple[str, int]]:
    """Which objects the names of the modules' code stand for: others, where a test has replaced one."""
    found = [(f"{module.__name__}.{name}", value) for module in MODELS for name, value in vars(module).items()]
    for name, value in found.copy():
        if inspect.isclass(value) and value.__module__.startswith("clean_lm."):
            found += [(f"{name}.{inner}", member) for inner, member in vars(value).items()]
    found += [(name, getattr(onnx_graph, name)) for name in READ]
    return sorted((name, id(value)) for name, value in found if not name.rpartition(".")[2].startswith("__"))


def describe(x: Any) -> Any:
    """What tells one module, setting or input from another, as strings and numbers. Raises Unknown."""
    if x is None or isinstance(x, bool | int | float | str | torch.dtype):
        return repr(x)
    if isinstance(x, nn.Parameter):
        return "parameter", tuple(x.shape)
    if isinstance(x, Tensor):
        return str(x.dtype), tuple(x.shape), hashlib.sha256(x.numpy().tobytes()).hexdigest()
    if isinstance(x, Mapping):
        return [(describe(key), describe(value)) for key, value in x.items()]
    if isinstance(x, Sequence):
        return [type(x).__name__, *map(describe, x)]
    kind = type(x)
    if not kind.__module__.startswith(("clean_lm.models.", "export.onnx_graph", "torch.nn.")):
        raise Unknown(kind)
    if isinstance(x, nn.Module):
        parts = {**x._parameters, **x._buffers, **x._modules}
        parts |= {name: value for name, value in vars(x).items() if name not in OF_MODULES}
        return f"{kind.__module__}.{kind.__qualname__}", describe(parts)
    if dataclasses.is_dataclass(x):
        return kind.__qualname__, [(f.name, describe(getattr(x, f.name))) for f in dataclasses.fields(x)]
    return kind.__qualname__, describe(vars(x))


def without_weights(model: ir.Model, names: set[str]) -> bytes:
    """A traced graph as a file's bytes. Its parameters have no values yet: they become references to no file.

    An inner value may have a parameter's name, which no file allows: each gets a number before its name. How many names
    were given is kept too: the exporter goes on counting from there.
    """
    names_given = model.graph._name_authority
    model.graph.metadata_props[COUNTED] = f"{names_given._value_counter} {names_given._node_counter}"
    for i, value in enumerate(inner_values(model)):
        value.name = f"{i}:{value.name}"
    for name in names & model.graph.initializers.keys():
        value = model.graph.initializers[name]
        assert value.dtype is not None
        assert value.shape is not None
        value.const_value = ir.ExternalTensor("nowhere", 0, 0, value.dtype, shape=value.shape, name=name)
    return ir.to_proto(model).SerializeToString()


def with_names(model: ir.Model) -> ir.Model:
    """The graph of a file that `without_weights` wrote, its inner values named as they were traced."""
    names_given = model.graph._name_authority
    counted = map(int, model.graph.metadata_props.pop(COUNTED).split())
    names_given._value_counter, names_given._node_counter = counted
    for value in inner_values(model):
        assert value.name is not None
        value.name = value.name.partition(":")[2]
    return model


def inner_values(model: ir.Model) -> list[ir.Value]:
    """What the nodes of a graph make, its outputs among them."""
    return [value for node in ir.traversal.RecursiveGraphIterator(model.graph) for value in node.outputs]
