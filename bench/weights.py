"""How many bytes of weights a graph reads."""

from pathlib import Path

import numpy as np


def read_bytes(path: Path, text: bool) -> int:
    """What a step reads of a graph's weights: the embedding is looked up, without a text cross-attention is skipped."""
    unread = ("embedding",) if text else ("embedding", "cross")
    return sum(size for name, size in weight_bytes(path).items() if not any(part in name for part in unread))


def weight_bytes(path: Path) -> dict[str, int]:
    """The weights of an ONNX file by name, counted without their data."""
    import onnx  # not above: memory is measured in processes that open graphs without it

    sizes = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        element = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        sizes[tensor.name] = int(np.prod(tensor.dims)) * element.itemsize
    return sizes
