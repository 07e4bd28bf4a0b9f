"""The language model's two graphs: their inputs and outputs, and the attention that they are traced with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir
import torch
from torch import Tensor

from clean_lm.models.config import LMConfig
from clean_lm.models.lm import LM, Condition, Description
from clean_lm.models.transformer import GroupQueryAttention, StandardAttention
from export.onnx_graph import TensorSpec, write

ATTENTION = {"ort": GroupQueryAttention, "standard": StandardAttention}
CACHE_UPDATE = {"ort": "in_place", "standard": "new_columns"}
LM_GRAPHS = ("lm_condition", "lm_inference")


class Source(Protocol):
    """Where the weights come from: a checkpoint (mapping.Model) or a bundle (BundleWeights)."""

    @property
    def config(self) -> LMConfig: ...

    def weights(self, component: str, dtype: torch.dtype = ...) -> Mapping[str, Tensor]:
        """The tensors of "lm" or "condition" by the names that its module has for them."""
        ...


def write_graphs(source: Source, folder: Path, attention: str, dtype: torch.dtype, suffix: str = "") -> None:
    """Write lm_condition.onnx and lm_inference.onnx with their weights; the suffix goes before .onnx."""
    c = source.config
    modules = {"condition": text_module(c), "lm": LM(c, ATTENTION[attention]())}
    specs = {"condition": condition_specs(c, dtype), "lm": lm_specs(c, attention, dtype)}
    changes = {"condition": lambda _: None, "lm": stop_sort_at_top_k}
    for graph, (name, module) in zip(LM_GRAPHS, modules.items(), strict=True):
        path = folder / f"{graph}{suffix}.onnx"
        write(module, source.weights(name, dtype), dtype, *specs[name], path, change=changes[name])


def text_module(c: LMConfig) -> Condition | Description:
    """The module that reads a text: it makes keys and values for cross-attention, or else a part of the prefix."""
    return Condition(c) if c.cross else Description(c)


def stop_sort_at_top_k(model: ir.Model) -> None:
    """Sort only the top_k most probable codes; top-p alone needs the others.

    PyTorch's sort is traced as a TopK of all codes, which takes 3 % of an int4 step.
    """
    [sort] = [node for node in model.graph if node.op_type == "TopK"]
    top_k, top_p = (next(value for value in model.graph.inputs if value.name == name) for name in ("top_k", "top_p"))
    [card] = [value.shape[2] for value in model.graph.outputs if value.name == "logits" and value.shape]
    tape = ir.tape.Tape()
    constant = lambda x, kind: tape.op("Constant", [], {"value": ir.tensor(x, dtype=kind)})  # noqa: E731
    every, none = constant(card, ir.DataType.INT64), constant(0, ir.DataType.INT64)
    nucleus = tape.op("Greater", [top_p, constant(0.0, ir.DataType.FLOAT)])
    whole = tape.op("Or", [nucleus, tape.op("Equal", [top_k, none])])
    count = tape.op("Where", [whole, every, tape.op("Min", [top_k, every])])
    count = tape.op("Reshape", [count, constant([1], ir.DataType.INT64)])
    model.graph.insert_before(sort, tape.nodes)
    sort.replace_input_with(1, count)


def condition_specs(c: LMConfig, dtype: torch.dtype) -> tuple[dict[str, Any], list[TensorSpec]]:
    """The inputs of lm_condition, by argument, and its outputs."""
    inputs = {
        "text_states": TensorSpec("text_states", dtype, ("texts", "text", c.text_dim)),
        "text_mask": TensorSpec("text_mask", torch.int64, ("texts", "text")),
    }
    if not c.cross:
        return inputs, [TensorSpec("description", dtype, ("texts", "text", c.dim))]
    caches = cache_specs(c, "cross_key_values", "text", c.head_dim, dtype, rows="texts")
    return inputs, [spec for cache in caches for spec in cache]


def lm_specs(c: LMConfig, attention: str, dtype: torch.dtype) -> tuple[dict[str, Any], list[TensorSpec]]:
    """The inputs of lm_inference, by argument, and its outputs."""
    head_dim = GroupQueryAttention.cache_dim(c.head_dim) if attention == "ort" else c.head_dim
    new = "columns" if c.cross else "prefix + columns"
    present = "capacity" if CACHE_UPDATE[attention] == "in_place" else new
    inputs = {
        "codes": TensorSpec("codes", torch.int64, ("rows", c.codebooks, "columns")),
        "position": TensorSpec("position", torch.int64, (1,)),
        "past": cache_specs(c, "past_key_values", "capacity", head_dim, dtype),
        "cross": cache_specs(c, "cross_key_values", "text", c.head_dim, dtype, rows="texts") if c.cross else [],
        "uniform": TensorSpec("uniform", torch.float32, ("batch", c.codebooks)),
        "cfg_coef": TensorSpec("cfg_coef", torch.float32, ()),
        "temperature": TensorSpec("temperature", torch.float32, ()),
        "top_k": TensorSpec("top_k", torch.int64, ()),
        "top_p": TensorSpec("top_p", torch.float32, ()),
    }
    if c.prepend:
        inputs |= {
            "prefix": TensorSpec("prefix", dtype, ("rows", "prefix", c.dim)),
            "cfg_coef_beta": TensorSpec("cfg_coef_beta", torch.float32, ()),
        }
    outputs = [
        TensorSpec("next_codes", torch.int64, ("batch", c.codebooks)),
        TensorSpec("logits", torch.float32, ("batch", c.codebooks, c.card)),
    ]
    return inputs, outputs + [spec for cache in cache_specs(c, "present", present, head_dim, dtype) for spec in cache]


def cache_specs(
    c: LMConfig, name: str, length: str, head_dim: int, dtype: torch.dtype, rows: str = "rows"
) -> list[tuple[TensorSpec, TensorSpec]]:
    """The keys and values of every layer; length: the symbolic size of their columns."""
    shape = (rows, c.heads, length, head_dim)
    return [
        (TensorSpec(f"{name}.{i}.key", dtype, shape), TensorSpec(f"{name}.{i}.value", dtype, shape))
        for i in range(c.layers)
    ]
