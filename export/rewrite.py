"""Rewrites a traced graph with smaller weights and caches: how a variant stores arrays, and which nodes read them."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from export.onnx_graph import save
from export.variants import Variant

# Arrays


def quantize_blocks(weight: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """weight [K, N] -> codes uint8 [N, ceil(K / block), block], scales float32 [N, ceil(K / block)].

    weight is about (code - 2^(bits - 1)) * scale. Of several scales a block gets the one with the least squared error:
    with them its largest value falls on the lowest code, of which there is no positive counterpart, or near it, or just
    outside the range, where it is clipped.
    """
    half = 2 ** (bits - 1)
    blocks = rearrange(F.pad(weight.T.float(), (0, -weight.shape[0] % block)), "n (k b) -> n k b", b=block)
    extreme = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
    least, best = torch.full_like(extreme, math.inf), torch.zeros_like(extreme)
    for share in SHARES[bits]:
        scale = extreme * (-share / half)
        error = (blocks - _steps(blocks, scale, half) * scale).square().sum(dim=-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    codes = (_steps(blocks, best, half) + half).to(torch.uint8)
    return codes, best.squeeze(-1)


# Shares of the scale that puts the largest value on the lowest code; negative: on the side of the highest.
SHARES = {4: (1.0, 0.9, 0.8, -1.1, -1.0, -0.9), 8: (1.0, -128 / 127)}


def _steps(blocks: Tensor, scale: Tensor, half: int) -> Tensor:
    """Values as whole numbers of steps of `scale`, clipped to -half .. half - 1."""
    return (blocks / torch.where(scale == 0, 1, scale)).round_().clamp_(-half, half - 1)


def quantize_columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [K, N] -> codes uint8 [K, N], scales float32 [N]: weight is about (code - 128) * scale."""
    scale = weight.abs().amax(dim=0) / 127
    return (_steps(weight, scale, 128) + 128).to(torch.uint8), scale


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes uint8 [..., n] -> [..., n * bits / 8]: of two 4-bit codes, the first lies in the lower half of the byte."""
    return codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)


# Graphs


def rewrite(
    source: Path, target: Path, variant: Variant, bits: Mapping[str, int], scales: Mapping[str, np.ndarray] | None
) -> None:
    """Write a variant of a traced graph.

    bits: by the name of each weight that has others than the variant. scales: where the cache becomes int8, float32
    [H * D] by the name of every cache input.
    """
    model = ir.load(source)
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
            _blocks(model.graph, node, weight, bits.get(weight.name, variant.bits or 8), variant.block)
    if scales is not None:
        _int8_cache(model.graph, scales)
    if not variant.standard:
        model.graph.opset_imports["com.microsoft"] = 1
    save(model, target)


def _blocks(graph: ir.Graph, node: ir.Node, weight: ir.Value, bits: int, block: int) -> None:
    """MatMul -> MatMulNBits. accuracy_level 4 lets it quantize the activations too, block by block."""
    rows, columns = _shape(weight)
    block = min(block, max(16, 2 ** math.ceil(math.log2(rows))))
    read = once(lambda: quantize_blocks(_tensor(weight), bits, block))
    count = -(-rows // block)
    codes = _lazy(graph, f"{weight.name}.int{bits}", (columns, count, block * bits // 8), ir.DataType.UINT8,
                  lambda: pack(read()[0], bits))  # fmt: skip
    scales = _lazy(graph, f"{weight.name}.scale", (columns, count), weight.dtype, lambda: read()[1])
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
    _replace(graph, node, ir.node("MatMulNBits", [node.inputs[0], codes, scales], attributes, domain="com.microsoft"))


def _dynamic(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    """MatMul -> the activations' scale, MatMulInteger, and both scales on its result."""
    rows, columns = _shape(weight)
    read = once(lambda: quantize_columns(_tensor(weight)))
    codes = _lazy(graph, f"{weight.name}.int8", (rows, columns), ir.DataType.UINT8, lambda: read()[0])
    scales = _lazy(graph, f"{weight.name}.scale", (columns,), ir.DataType.FLOAT, lambda: read()[1])
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
        read = once(lambda: quantize_columns(_tensor(table).T))
        codes = _lazy(graph, f"{table.name}.int8", (rows, columns), ir.DataType.UINT8, lambda: read()[0].T)
        scales = _lazy(graph, f"{table.name}.scale", (rows, 1), ir.DataType.FLOAT, lambda: read()[1][:, None])
        zero = _lazy(graph, "middle", (), ir.DataType.FLOAT, lambda: torch.tensor(128.0))
        found = ir.node("Gather", [codes, node.inputs[1]])
        wide = ir.node("Cast", [found.outputs[0]], {"to": ir.DataType.FLOAT})
        steps = ir.node("Sub", [wide.outputs[0], zero])
        scale = ir.node("Gather", [scales, node.inputs[1]])
        _replace(graph, node, found, wide, steps, scale, ir.node("Mul", [steps.outputs[0], scale.outputs[0]]))
        return
    block = 16 if columns < 32 else 32
    count = -(-columns // block)
    read = once(lambda: quantize_blocks(_tensor(table).T, 8, block))
    flat = lambda: rearrange(read()[0], "v k b -> v (k b)")[:, :columns]  # noqa: E731
    codes = _lazy(graph, f"{table.name}.int8", (rows, columns), ir.DataType.UINT8, flat)
    scales = _lazy(graph, f"{table.name}.scale", (rows, count), table.dtype, lambda: read()[1])
    attributes = {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    inputs = [codes, node.inputs[1], scales]
    _replace(graph, node, ir.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft"))


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


def once(compute: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Compute at the first call, give the same at the second and forget it: codes are written, then their scales."""
    held: list[tuple[Tensor, Tensor]] = []

    def read() -> tuple[Tensor, Tensor]:
        if held:
            return held.pop()
        held.append(compute())
        return held[0]

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


def _tensor(weight: ir.Value) -> Tensor:
    assert weight.const_value is not None
    return torch.from_numpy(np.array(weight.const_value.numpy())).float()
