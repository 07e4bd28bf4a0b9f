"""MusicGen fine-tunes in plain ONNX Runtime: `MusicGen.load("bundle").generate_continuation(...)`."""

from clean_lm.musicgen import MusicGen

__version__ = "0.1.0"

__all__ = ["MusicGen", "__version__"]
