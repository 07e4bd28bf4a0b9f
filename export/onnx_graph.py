"""Exports a PyTorch module as an ONNX file: traced without its weights, which are then written one by one beside it."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
import torch
from google.protobuf.message import DecodeError
from onnxscript import optimizer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.utils import _pytree as pytree
from tqdm import tqdm

from clean_lm.manifest import BundleError
from export.commands import progress
from weights.mapping import fill

OPSET = 20
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)  # that weights are stored in
INLINE = 1024  # bytes: smaller tensors stay in the graph file, where ONNX Runtime looks for shapes
PAGE = 4096  # larger ones start on a page, so that they can be memory-mapped
# The sizes to trace with. They stay symbolic in the graph, so that any others than 0 and 1 would do.
TRACED = {
    "batch": 2, "rows": 4, "texts": 3, "columns": 5, "capacity": 32, "text": 7, "prefix": 6, "melodies": 2, "styles": 3,
    "features": 77, "samples": 3001, "frames": 9, "past_codes": 3, "past_pending": 4, "past_latents": 6,
    "past_unheard": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph; sizes that are strings are symbolic."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def example(self) -> Tensor:
        """Zeros to trace with."""
        return torch.zeros([TRACED[s] if isinstance(s, str) else s for s in self.shape], dtype=self.dtype)

    def dynamic(self) -> dict[int, Any]:
        """Its symbolic axes, as torch.export wants them."""
        return {axis: Dim.DYNAMIC for axis, size in enumerate(self.shape) if isinstance(size, str)}


def write(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    inputs: dict[str, Any],
    outputs: list[TensorSpec],
    path: Path,
    shared: Mapping[str, ir.ExternalTensor] | None = None,
    change: Callable[[ir.Model], None] = lambda _: None,
) -> dict[str, ir.ExternalTensor]:
    """Export `module`, whose parameters are `weights` in `dtype`, to `path` and `path`.data.

    inputs: forward's arguments by name, each a TensorSpec or nested lists and tuples of them. outputs: in order.
    shared: weights that another graph in the same folder has written, to be read from its file. change: edits the
    traced graph in ways that PyTorch cannot express.
    Returns the weights that were written, for another graph to share.
    """
    progress(f"{path.name}: tracing")
    model = trace(module, dtype, inputs)
    _name(model.graph.inputs, pytree.tree_leaves(inputs))
    _name(model.graph.outputs, outputs)
    _attach(model, weights)
    change(model)
    optimizer.optimize_ir(model)
    _clean(model)
    return save(model, path, shared)


def trace(module: nn.Module, dtype: torch.dtype, inputs: dict[str, Any]) -> ir.Model:
    """The graph of a module, without memory for its weights."""
    with warnings_are_errors(), FakeTensorMode():
        fake = {name: torch.empty(p.shape, dtype=dtype) for name, p in module.named_parameters()}
        program = torch.onnx.export(
            fill(module, fake),
            kwargs=pytree.tree_map(TensorSpec.example, inputs),
            dynamic_shapes=pytree.tree_map(TensorSpec.dynamic, inputs),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return program.model


@contextlib.contextmanager
def warnings_are_errors() -> Iterator[None]:
    """A context in which any warning of the exporter is raised as an error."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    # It logs that a library is missing which none of these graphs needs.
    quiet = lambda record: not record.getMessage().startswith("torchvision is not installed")  # noqa: E731
    log.addFilter(quiet)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # torch warns of itself: it copies its own LeafSpec, which it has deprecated.
            message = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
            warnings.filterwarnings("ignore", message=message, category=FutureWarning)
            yield
    finally:
        log.removeFilter(quiet)


def _name(values: Sequence[ir.Value], specs: list[TensorSpec]) -> None:
    """Give the graph's inputs or outputs their names and symbolic sizes; the exporter chose others."""
    assert len(values) == len(specs)
    for value, spec in zip(values, specs, strict=True):
        assert value.dtype == _ONNX[spec.dtype], f"{spec.name}: {value.dtype}"
        value.name, value.shape = spec.name, ir.Shape(spec.shape)


def _attach(model: ir.Model, weights: Mapping[str, Tensor]) -> None:
    """Give every parameter its weights, which are read when they are written and not kept."""
    for name, value in model.graph.initializers.items():
        if name in weights:
            assert value.dtype is not None
            shape = ir.Shape(value.shape or ())
            read = lambda name=name: ir.tensor(weights[name].contiguous().numpy())  # noqa: E731
            value.const_value = ir.LazyTensor(read, dtype=value.dtype, shape=shape, name=name)


def _clean(model: ir.Model) -> None:
    """Drop what the exporter leaves behind: source lines with local paths, sizes of inner tensors under other names."""
    model.producer_name, model.producer_version, model.doc_string = "clean_lm", None, None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name, model.graph.doc_string = "clean_lm", None
    outputs = set(model.graph.outputs)
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in outputs:
                value.shape, value.type = None, None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def load(path: Path) -> ir.Model:
    """A graph whose weights are memory-mapped, copy on write, from files beside it: hard links too, which onnx_ir
    refuses. Raises BundleError for a file that is no graph, and for weights that are not in a file beside it."""
    try:
        model = ir.load(path)
    except DecodeError as error:
        raise BundleError(f"{path}: no ONNX graph: {error}; export the bundle again") from None
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            if Path(tensor.location).name != tensor.location:
                raise BundleError(
                    f"{path}: {tensor.name} lies in {tensor.location!r}, expected a file beside the graph"
                )
            data, shape = path.parent / tensor.location, tuple(tensor.shape.numpy())
            try:
                mapped = np.memmap(data, tensor.dtype.numpy(), "c", tensor.offset or 0, shape)
            except (ValueError, OverflowError) as error:
                raise BundleError(f"{data}: {tensor.name} is not in it: {error}; copy the bundle again") from None
            value.const_value = ir.Tensor(mapped, dtype=tensor.dtype, name=tensor.name)
    return model


def weight_of(value: ir.Value) -> Tensor:
    """A weight of a graph that `load` gave, not copied where it lies in a file. Raises BundleError for another type
    than an export writes."""
    assert value.const_value is not None
    if (found := value.const_value.dtype) not in FLOATS:
        raise BundleError(f"the weight {value.name} is {found.name}, expected FLOAT; export the bundle again")
    return torch.from_numpy(np.require(value.const_value.numpy(), requirements="W"))


def save(
    model: ir.Model, path: Path, shared: Mapping[str, ir.ExternalTensor] | None = None
) -> dict[str, ir.ExternalTensor]:
    """Write a graph to `path` and its weights, one at a time, to `path`.data; no such file where all are shared.

    shared: weights that lie in another graph's file. Returns where each of the others lies.
    """
    shared, data = shared or {}, path.with_name(path.name + ".data")
    own = {name: value for name, value in model.graph.initializers.items() if name not in shared}
    total = sum(value.const_value.nbytes for value in own.values() if value.const_value is not None)
    written: dict[str, ir.ExternalTensor] = {}
    with data.open("wb") as file, tqdm(total=total, desc=data.name, unit="B", unit_scale=True, disable=None) as bar:
        for name, value in own.items():
            bar.update(_write_weight(name, value, file, data.name, written))
    if not written:
        data.unlink()
    for name in model.graph.initializers.keys() & shared.keys():
        value = model.graph.initializers[name]
        assert value.shape == shared[name].shape, f"{name}: {value.shape}, shared {shared[name].shape}"
        value.const_value = shared[name]
    ir.save(model, path)
    return written


def _write_weight(
    name: str, value: ir.Value, file: BinaryIO, location: str, written: dict[str, ir.ExternalTensor]
) -> int:
    """Write one weight to its file and enter it in `written`, or keep it in the graph if it is small; its bytes."""
    tensor = value.const_value
    assert tensor is not None, f"{name} has no weights"
    array = np.asarray(tensor.numpy(), order="C")
    if array.nbytes < INLINE:
        value.const_value = ir.tensor(array, name=name)
        return array.nbytes
    file.seek(-file.tell() % PAGE, os.SEEK_CUR)  # a hole, read as zeros
    shape = ir.Shape(array.shape)
    external = ir.ExternalTensor(location, file.tell(), array.nbytes, tensor.dtype, shape=shape, name=name)
    value.const_value = written[name] = external
    file.write(array.data.cast("B"))
    return array.nbytes


_ONNX = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.int64: ir.DataType.INT64,
}
