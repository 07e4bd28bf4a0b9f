"""MusicGen fine-tunes in plain ONNX Runtime: `MusicGen.load("bundle").generate_continuation(...)`."""

__version__ = "0.1.0"  # before the imports: clean_lm.cli prints it

from clean_lm.musical_time import MusicalTime
from clean_lm.musicgen import MusicGen

__all__ = ["MusicGen", "MusicalTime", "__version__"]
