"""Counts the bytes of weights that a graph reads."""

from pathlib import Path

import numpy as np


def read_bytes(path: Path, text: bool) -> int:
    """Bytes of weights that a step reads: all but the embedding's, and without a text but cross-attention's."""
    unread = ("embedding",) if text else ("embedding", "cross")
    return sum(size for name, size in weight_bytes(path).items() if not any(part in name for part in unread))


def weight_bytes(path: Path) -> dict[str, int]:
    """The weights of an ONNX file by name, counted without their data."""
    import onnx  # imported here: memory is measured in processes that do without it

    sizes = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        element = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        sizes[tensor.name] = int(np.prod(tensor.dims)) * element.itemsize
    return sizes
