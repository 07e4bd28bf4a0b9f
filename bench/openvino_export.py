"""Exports the model for OpenVINO as optimum-intel exports decoders: with the cache as a state of the graph.

    ReadValue [R, H, P, D] -> Gather by beam_idx -> Concat with the new columns -> Assign
                                                          |
                                       q -> ScaledDotProductAttention -> ...

OpenVINO's CPU plugin makes one operation of this pattern, which extends its cache in place. The weights of products are
stored as nncf's compress_weights stores them: a row of a matrix, or each 128 weights of it, have a scale and a zero.
Where nncf leaves the last product in 8 bits, this takes 4: it is the faster choice, and clean_lm's.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov  # pyright: ignore[reportMissingImports]
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from openvino import opset13 as ops  # pyright: ignore[reportMissingImports]
from openvino._offline_transformations import (  # pyright: ignore[reportMissingImports]
    apply_make_stateful_transformation,
    apply_moc_transformations,
)
from openvino.frontend import FrontEndManager  # pyright: ignore[reportMissingImports]
from openvino.frontend.pytorch.fx_decoder import (  # pyright: ignore[reportMissingImports]
    TorchFXPythonDecoder,
)
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.openvino_contender import FILE
from clean_lm.models.config import LMConfig
from clean_lm.models.lm import LM
from clean_lm.models.transformer import Cache, StandardAttention
from export.bundle_writer import new_folder
from export.lm_graphs import cache_specs
from export.onnx_graph import TensorSpec
from weights.lm import load
from weights.mapping import Model, fill

GROUP = 128  # weights that share a scale, in 4 bits


class FusedAttention(StandardAttention):
    """PyTorch's own attention, on a cache of exactly the columns that were read; it returns a longer one."""

    def columns(self, position: Tensor, rows: int, new: int, capacity: int) -> tuple[Tensor, ...]:
        last = repeat(capacity + torch.arange(new), "s -> 1 1 s 1")
        return (torch.arange(capacity + new) <= last,)  # [1, 1, S, P + S]

    def __call__(self, qkv: Tensor, cache: Cache, columns: tuple[Tensor, ...], heads: int) -> tuple[Tensor, Cache]:
        q, k, v = rearrange(qkv, "r s (three h d) -> three r h s d", three=3, h=heads)
        keys, values = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        read = F.scaled_dot_product_attention(q, keys, values, attn_mask=columns[0])
        return rearrange(read, "r h s d -> r s (h d)"), (keys, values)

    def cross(self, q: Tensor, cross: Cache, heads: int) -> Tensor:
        read = F.scaled_dot_product_attention(rearrange(q, "x s (h d) -> x h s d", h=heads), *cross)
        return rearrange(read, "x h s d -> x s (h d)")


class StatefulLM(LM):
    """Logits of the last column; guidance and sampling are the caller's."""

    def __init__(self, config: LMConfig):
        super().__init__(config, FusedAttention())

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, codes: Tensor, position: Tensor, beam_idx: Tensor, past: list[Cache], cross: list[Cache]
    ) -> tuple[Tensor, list[Cache]]:
        """codes [R, K, S], position [1] = P, beam_idx int32 [R]: the row of the cache that each row goes on with,
        past L x 2 x [R, H, P, D], cross L x 2 x [X, H, N, D]
        -> logits [R, K, card], present L x 2 x [R, H, P + S, D]."""
        chosen = [(k.index_select(0, beam_idx), v.index_select(0, beam_idx)) for k, v in past]
        x, present = self.read(codes, position, chosen, cross)
        return self.logits(x[:, -1]), present


def export(checkpoint: Path, out: Path, weights: Sequence[str]) -> None:
    """Write a folder for each way to store weights: fp32, int8 or int4. Raises CheckpointError."""
    model = load(checkpoint)
    graph = stateful(model)
    out.mkdir(parents=True, exist_ok=True)
    for kind in weights:
        with new_folder(out / kind, model.parameters * 4) as folder:
            stored = graph.clone()
            if kind != "fp32":
                compress(stored, int(kind.removeprefix("int")))
            ov.save_model(stored, folder / FILE, compress_to_fp16=False)


def stateful(model: Model[LMConfig]) -> ov.Model:
    """The graph in float32."""
    c, dtype = model.config, torch.float32
    inputs = {
        "codes": TensorSpec("codes", torch.int64, ("rows", c.codebooks, "columns")),
        "position": TensorSpec("position", torch.int64, (1,)),
        "beam_idx": TensorSpec("beam_idx", torch.int32, ("rows",)),
        "past": cache_specs(c, "past_key_values", "capacity", c.head_dim, dtype),
        # traced with half as many rows as there are: a single row without text would be traced as always one
        "cross": cache_specs(c, "cross_key_values", "text", c.head_dim, dtype, rows="batch"),
    }
    presents = pytree.tree_leaves(cache_specs(c, "present", "total", c.head_dim, dtype))
    graph = convert(fill(StatefulLM(c), model.weights("lm")), inputs)
    for value, spec in zip(graph.inputs, pytree.tree_leaves(inputs), strict=True):
        value.get_tensor().set_names({spec.name})
        value.get_node().set_partial_shape(ov.PartialShape([-1 if isinstance(n, str) else n for n in spec.shape]))
    for value, name in zip(graph.outputs, ["logits", *(spec.name for spec in presents)], strict=True):
        value.get_tensor().set_names({name})
    graph.validate_nodes_and_infer_types()
    states = {spec.name.replace("present", "past_key_values"): spec.name for spec in presents}
    apply_make_stateful_transformation(graph, states)
    start_empty(graph, c)
    return graph


def convert(module: torch.nn.Module, inputs: dict[str, Any]) -> ov.Model:
    """OpenVINO's graph of a module. inputs: forward's arguments by name, each a TensorSpec or nested lists of them."""
    example, sizes = (pytree.tree_map(f, inputs) for f in (TensorSpec.example, TensorSpec.dynamic))
    with warnings.catch_warnings(), torch.no_grad():
        # torch warns of itself: it copies its own LeafSpec, which it has deprecated.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        program = torch.export.export(module, (), example, dynamic_shapes=sizes)
        logging.disable(logging.WARNING)  # each operation that this version of torch does not have
        decoder = TorchFXPythonDecoder.from_exported_program(program)
        logging.disable(logging.NOTSET)
        # What openvino.convert_model does, which besides reports over the network that it was called.
        frontend = FrontEndManager().load_by_framework("pytorch")
        graph = frontend.convert(frontend.load(decoder))
    apply_moc_transformations(graph, cf=False)
    return graph


def start_empty(graph: ov.Model, c: LMConfig) -> None:
    """Begin with a cache of as many rows as the codes have, and no columns."""
    rows = ops.gather(ops.shape_of(graph.input("codes"), output_type="i64"), ops.constant([0]), ops.constant(0))
    size = ops.concat([rows, ops.constant(np.array([c.heads, 0, c.head_dim], dtype=np.int64))], axis=0)
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([ops.broadcast(ops.constant(np.float32(0)), size)])
    graph.validate_nodes_and_infer_types()


def compress(graph: ov.Model, bits: int) -> None:
    """Store the weights of every product in 8 or 4 bits, and those of the embedding in 8."""
    for node in graph.get_ops():
        kind, inputs = node.get_type_name(), node.input_values()
        if kind == "MatMul" and inputs[1].get_node().get_type_name() == "Constant":
            weights = inputs[1].get_node().data
            weights = weights if node.get_attributes()["transpose_b"] else weights.T
            product = ops.matmul(inputs[0], compressed(weights, bits), transpose_a=False, transpose_b=True)
            product.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(product.output(0))
        if kind == "Gather" and inputs[0].get_node().get_type_name() == "Constant" and len(inputs[0].get_shape()) == 2:
            table = compressed(inputs[0].get_node().data, 8)
            node.input(0).replace_source_output(table.output(0))
    graph.validate_nodes_and_infer_types()


def compressed(weights: np.ndarray, bits: int) -> ov.Node:
    """weights float32 [out, in] -> nodes that give them back, from unsigned integers (w - zero) x scale."""
    group = GROUP if bits == 4 and weights.shape[1] % GROUP == 0 else weights.shape[1]
    groups = np.ascontiguousarray(weights).reshape(weights.shape[0], -1, group)
    low, high = np.minimum(groups.min(-1, keepdims=True), 0), np.maximum(groups.max(-1, keepdims=True), 0)
    scale = np.maximum((high - low) / (2**bits - 1), 1e-8).astype(np.float16)
    zero = np.round(-low / scale.astype(np.float32)).clip(0, 2**bits - 1)
    whole = np.round(groups / scale.astype(np.float32) + zero).clip(0, 2**bits - 1)
    stored = [ops.convert(constant(values, bits), "f16") for values in (whole, zero)]
    product = ops.multiply(ops.subtract(*stored), ops.constant(scale))
    flat = ops.reshape(product, ops.constant(np.array(weights.shape, dtype=np.int64)), special_zero=False)
    return ops.convert(flat, "f32")


def constant(values: np.ndarray, bits: int) -> ov.Node:
    """Whole numbers as a constant of unsigned integers of 8 or 4 bits."""
    if bits == 8:
        return ops.constant(values.astype(np.uint8))
    pairs = values.astype(np.uint8).reshape(-1, 2)
    tensor = ov.Tensor(ov.Type.u4, ov.Shape(values.shape))  # with memory of its own: the constant keeps it, no copy
    tensor.data.reshape(-1)[:] = pairs[:, 0] | pairs[:, 1] << 4
    return ops.constant(tensor)
