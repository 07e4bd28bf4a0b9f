"""clean_lm as a contender, and what the benchmark reads of its bundles."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from bench.weights import read_bytes
from bench.workload import CFG_COEF, TOP_K, Coder, Mode, Model, Step, Workload, fill_random
from clean_lm.audio_codec import Codec
from clean_lm.generation import Decoder, Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import Manifest
from clean_lm.musicgen import MusicGen
from clean_lm.session import Graph, open_graph

ROOT = Path(__file__).parents[1]
FP32 = "fp32"
EXPORTED = ("fp32", "int8", "mixed", "int4")
SAMPLING = Sampling(top_k=TOP_K, cfg_coef=CFG_COEF)


def export(checkpoint: Path, bundle: Path, variants: Sequence[str]) -> None:
    """Write a bundle with fp32 and these variants of the language model. Raises CalledProcessError."""
    wanted = dict.fromkeys([FP32, *variants])
    parts = ["--lm", checkpoint / "state_dict.bin", "--codec", checkpoint / "compression_state_dict.bin"]
    command = [sys.executable, ROOT / "export" / "bundle.py", *parts, "--out", bundle, "--variant", *wanted]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def variants(bundle: Path) -> tuple[str, ...]:
    """The variants that a bundle holds."""
    return tuple(Manifest.read(bundle).variants)


def sizes(bundle: Path) -> Model:
    """The sizes of a bundle's model."""
    model = Manifest.read(bundle).language_model
    return Model(**{field.name: getattr(model, field.name) for field in fields(Model)})


def graph_file(bundle: Path, variant: str) -> Path:
    """The file of a variant's lm_inference."""
    return bundle / Manifest.read(bundle, variant=variant).graphs["lm_inference"].file


def condition(bundle: Path) -> Graph:
    """The float32 lm_condition, for contenders that have none of their own."""
    return open_graph(Manifest.read(bundle, variant=FP32, hashes=False), "lm_condition")


def music(bundle: Path, variant: str) -> MusicGen:
    """The whole bundle, for streaming."""
    return MusicGen.load(bundle, variant=variant, hashes=False)


class OurCoder:
    """The bundle's codec."""

    name = "clean_lm"

    def __init__(self, bundle: Path):
        codec = Codec.load(bundle, hashes=False)
        self.encode, self.decode = codec.encode, codec.decode


class Ours:
    """One variant of a bundle."""

    def __init__(self, bundle: Path, variant: str, coder: Coder, workload: Workload):
        self.name = f"clean_lm {variant}"
        self.coder: Coder = coder
        self.model, self.workload = sizes(bundle), workload
        self.lm = LanguageModel.load(bundle, variant=variant, hashes=False)
        self.graph = graph_file(bundle, variant)

    def rows(self, mode: Mode) -> int:
        return mode.takes * (2 if mode.text else 1)

    def prefill(self, mode: Mode, columns: int) -> Step:
        decoder = self._decoder(mode)
        codes = decoder.prefill(self.model.codes(mode.takes, columns), self._uniform(mode))
        return self._steps(mode, decoder, codes)

    def seek(self, mode: Mode, at: int) -> Step:
        decoder = self._decoder(mode)
        for cache in decoder.caches.values():
            fill_random(cache)
        decoder.filled = at
        codes = decoder.step(self.model.codes(mode.takes, 1), self._uniform(mode))
        return self._steps(mode, decoder, codes)

    def step_bytes(self, mode: Mode, at: int) -> int:
        names = [name for name in self.lm.lm.inputs if name.startswith("past_key_values.")]
        column = sum(self.lm.lm.zeros(name, {"rows": self.rows(mode), "capacity": 1}).nbytes for name in names)
        return read_bytes(self.graph, mode.text) + at * column

    def continue_audio(self, mode: Mode, audio: np.ndarray, workload: Workload) -> np.ndarray:
        codes = self.coder.encode(audio)
        frames = workload.frames(self.model)[1]
        codes = self.lm.generate_codes(codes, self._texts(mode), frames=frames, sampling=SAMPLING, seed=0)
        return self.coder.decode(codes)

    def _texts(self, mode: Mode) -> list[np.ndarray | None]:
        return [self.model.text() if mode.text else None] * mode.takes

    def _decoder(self, mode: Mode) -> Decoder:
        decoder = self.lm.decoder(mode.takes, self.workload.capacity(self.model), self._texts(mode), SAMPLING)
        assert isinstance(decoder, Decoder)
        return decoder

    def _uniform(self, mode: Mode) -> np.ndarray:
        return np.full((mode.takes, self.model.codebooks), 0.5, dtype=np.float32)

    def _steps(self, mode: Mode, decoder: Decoder, codes: np.ndarray) -> Step:
        """The steps that follow. codes [B, K] is the decoder's own array, which every call fills anew."""
        uniform = self._uniform(mode)
        return lambda: decoder.step(codes[:, :, None], uniform)
