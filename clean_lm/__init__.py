"""MusicGen fine-tunes in plain ONNX Runtime: `MusicGen.load("bundle").generate_continuation(...)`."""

from clean_lm.musicgen import MusicGen

__all__ = ["MusicGen"]
