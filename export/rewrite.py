"""Rewrites a traced graph with smaller weights and caches: which arrays are stored, and which nodes read them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from einops import rearrange
from torch import Tensor

from export.onnx_graph import load, save, weight_of
from export.rounding import Blocks, Storage, quantize_columns, to_nearest
from export.variants import Variant


@dataclass(frozen=True)
class Calibrated:
    """What a run of the float32 model says of how to store its matrices and caches."""

    rounded: Mapping[str, Path] = field(default_factory=dict)  # files of Blocks by the names of matrices
    others: Mapping[str, Storage] = field(default_factory=dict)  # of the matrices that are not stored as most are
    scales: Mapping[str, np.ndarray] | None = None  # where the cache becomes int8: [H * D] by each cache input's name
    stored: Path | None = None  # a graph that has these weights already, and a float cache


def rewrite(source: Path, target: Path, variant: Variant, calibrated: Calibrated) -> None:
    """Write a variant of a traced graph. What has not been rounded in calibration is rounded to the nearest code."""
    model = load(source)
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else node.inputs[0] if node.op_type == "Gather" else None
        if weight is None or weight.const_value is None or len(weight.shape or ()) != 2:
            continue
        assert weight.name
        if node.op_type == "Gather":
            _embedding(model.graph, node, weight, variant)
        elif variant.dynamic:
            _dynamic(model.graph, node, weight)
        else:
            _blocks(model.graph, node, weight, variant.storage, calibrated)
    if calibrated.scales is not None:
        _int8_cache(model.graph, calibrated.scales)
    if not variant.standard:
        model.graph.opset_imports["com.microsoft"] = 1
    save(model, target)


def _blocks(graph: ir.Graph, node: ir.Node, weight: ir.Value, storage: Storage, calibrated: Calibrated) -> None:
    """MatMul -> MatMulNBits. accuracy_level 4 lets it quantize the activations too, block by block."""
    (rows, columns), name = _shape(weight), weight.name or ""
    storage = calibrated.others.get(name, storage).fit(rows)
    file = None if name in calibrated.others else calibrated.rounded.get(name)
    parts = once(lambda: _packed(Blocks.load(file) if file else to_nearest(weight_of(weight).float(), storage)))
    count, bits, codes = -(-rows // storage.block), storage.bits, ir.DataType.UINT8
    packed, packed_zeros = storage.block * bits // 8, -(-count * bits // 8)
    inputs = [
        node.inputs[0],
        _lazy(graph, f"{name}.int{bits}", (columns, count, packed), codes, lambda: parts(0)),
        _lazy(graph, f"{name}.scale", (columns, count), weight.dtype, lambda: parts(1)),
    ]
    if storage.zero_points:
        inputs.append(_lazy(graph, f"{name}.zero", (columns, packed_zeros), codes, lambda: parts(2)))
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": storage.block, "accuracy_level": 4}
    _replace(graph, node, ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft"))


def _packed(blocks: Blocks) -> list[Tensor]:
    """Codes, scales, and zero points if there are any, as they are written."""
    codes, zeros = blocks.packed()
    return [codes, blocks.scales, *([] if zeros is None else [zeros])]


def _dynamic(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    """MatMul -> the activations' scale, MatMulInteger, and both scales on its result."""
    rows, columns = _shape(weight)
    parts = once(lambda: quantize_columns(weight_of(weight).float()))
    codes = _lazy(graph, f"{weight.name}.int8", (rows, columns), ir.DataType.UINT8, lambda: parts(0))
    scales = _lazy(graph, f"{weight.name}.scale", (columns,), ir.DataType.FLOAT, lambda: parts(1))
    zero = _lazy(graph, "zero", (), ir.DataType.UINT8, lambda: torch.tensor(128, dtype=torch.uint8))
    quantized = ir.node("DynamicQuantizeLinear", [node.inputs[0]], num_outputs=3)
    steps, scale, offset = quantized.outputs
    product = ir.node("MatMulInteger", [steps, codes, offset, zero])
    wide = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT})
    both = ir.node("Mul", [scale, scales])
    _replace(graph, node, quantized, product, wide, both, ir.node("Mul", [wide.outputs[0], both.outputs[0]]))


def _embedding(graph: ir.Graph, node: ir.Node, table: ir.Value, variant: Variant) -> None:
    """Gather -> the same on int8 codes, and their scales."""
    rows, columns = _shape(table)
    if variant.dynamic:
        parts = once(lambda: _dynamic_table(weight_of(table).float()))
        codes = _lazy(graph, f"{table.name}.int8", (rows, columns), ir.DataType.UINT8, lambda: parts(0))
        scales = _lazy(graph, f"{table.name}.scale", (rows, 1), ir.DataType.FLOAT, lambda: parts(1))
        zero = _lazy(graph, "middle", (), ir.DataType.FLOAT, lambda: torch.tensor(128.0))
        found = ir.node("Gather", [codes, node.inputs[1]])
        wide = ir.node("Cast", [found.outputs[0]], {"to": ir.DataType.FLOAT})
        steps = ir.node("Sub", [wide.outputs[0], zero])
        scale = ir.node("Gather", [scales, node.inputs[1]])
        _replace(graph, node, found, wide, steps, scale, ir.node("Mul", [steps.outputs[0], scale.outputs[0]]))
        return
    block = 16 if columns < 32 else 32
    count = -(-columns // block)
    parts = once(lambda: _block_table(weight_of(table).float(), block))
    codes = _lazy(graph, f"{table.name}.int8", (rows, columns), ir.DataType.UINT8, lambda: parts(0))
    scales = _lazy(graph, f"{table.name}.scale", (rows, count), table.dtype, lambda: parts(1))
    attributes = {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    inputs = [codes, node.inputs[1], scales]
    _replace(graph, node, ir.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft"))


def _dynamic_table(table: Tensor) -> list[Tensor]:
    """table [V, dim] -> codes [V, dim], scales [V, 1]."""
    codes, scales = quantize_columns(table.T)
    return [codes.T, scales[:, None]]


def _block_table(table: Tensor, block: int) -> list[Tensor]:
    """table [V, dim] -> codes [V, dim], scales [V, ceil(dim / block)]."""
    blocks = to_nearest(table.T, Storage(8, block))
    return [rearrange(blocks.codes, "v k b -> v (k b)")[:, : table.shape[1]], blocks.scales]


def _int8_cache(graph: ir.Graph, scales: Mapping[str, np.ndarray]) -> None:
    """Store the cache's keys and values as int8, with a scale for every channel of every head."""
    for node in graph:
        if node.op_type != "GroupQueryAttention":
            continue
        inputs = list(node.inputs) + [None] * (14 - len(node.inputs))
        for at, out, name in ((3, 1, "k"), (4, 2, "v")):
            cache = node.inputs[at]
            assert cache is not None
            assert cache.name
            cache.dtype = node.outputs[out].dtype = ir.DataType.INT8
            values = torch.from_numpy(scales[cache.name])
            inputs[at + 9] = _lazy(graph, f"{cache.name}.scale", tuple(values.shape), ir.DataType.FLOAT,
                                   lambda values=values: values)  # fmt: skip
            node.attributes[f"{name}_quant_type"] = ir.AttrString(f"{name}_quant_type", "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
        node.resize_inputs(14)
        for at in (12, 13):
            node.replace_input_with(at, inputs[at])


def once(compute: Callable[[], Sequence[Tensor]]) -> Callable[[int], Tensor]:
    """Arrays that are written one after the other, by their number: computed for the first, forgotten with the last."""
    held: list[Tensor] = []

    def read(number: int) -> Tensor:
        if number == 0:
            held[:] = compute()
        found = held[number]
        if number == len(held) - 1:
            held.clear()
        return found

    return read


def _lazy(
    graph: ir.Graph, name: str, shape: tuple[int, ...], dtype: ir.DataType | None, read: Callable[[], Tensor]
) -> ir.Value:
    """An initializer that is computed when it is written."""
    if name in graph.initializers:
        return graph.initializers[name]
    assert dtype is not None
    as_dtype = lambda: ir.tensor(np.asarray(read().contiguous().numpy(), dtype.numpy()))  # noqa: E731
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    value.const_value = ir.LazyTensor(as_dtype, dtype=dtype, shape=ir.Shape(shape), name=name)
    graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, old: ir.Node, *new: ir.Node) -> None:
    """Put nodes in the place of one, whose output the last of them has; drop weights that nothing reads any more."""
    weights = [value for value in old.inputs if value is not None and value.is_initializer()]
    ir.convenience.replace_nodes_and_values(graph, old, [old], new, old.outputs, new[-1].outputs)
    for value in weights:
        if not value.uses() and value.name:
            del graph.initializers[value.name]


def _shape(weight: ir.Value) -> tuple[int, int]:
    assert weight.const_value is not None
    rows, columns = weight.const_value.shape.numpy()
    return rows, columns
