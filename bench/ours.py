"""clean_lm as a contender, and all that the benchmark knows of its bundles."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import clean_lm.musicgen
from bench.weights import read_bytes
from bench.workload import CFG_COEF, TOP_K, Coder, Mode, Model, Step, Workload, fill_random
from clean_lm.manifest import Graph, Manifest
from clean_lm.runtime import Decoder, LanguageModel, Sampling

ROOT = Path(__file__).parents[1]
FP32 = "fp32"
EXPORTED = ("int8", "int4")  # the variants of a new bundle, besides fp32: each takes minutes to make
SAMPLING = Sampling(top_k=TOP_K, cfg_coef=CFG_COEF)


def export(checkpoint: Path, bundle: Path, variants: Sequence[str]) -> None:
    """Write a bundle with fp32 and these variants of the language model. Raises CalledProcessError."""
    wanted = dict.fromkeys([FP32, *variants])
    parts = ["--lm", checkpoint / "state_dict.bin", "--codec", checkpoint / "compression_state_dict.bin"]
    command = [sys.executable, ROOT / "export" / "bundle.py", *parts, "--out", bundle, "--variant", *wanted]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def variants(bundle: Path) -> tuple[str, ...]:
    """The variants of the language model that a bundle holds."""
    return tuple(Manifest.read(bundle).need("variants"))


def sizes(bundle: Path) -> Model:
    """The sizes of a bundle's model."""
    model = Manifest.read(bundle).need("model")
    said = {name: model[name] for name in Model.__dataclass_fields__}
    return Model(**{**said, "delays": tuple(model["delays"])})


def graph_file(bundle: Path, variant: str) -> Path:
    """The file of a variant's lm_inference."""
    return Manifest.read(bundle, variant=variant, hashes=False).graph("lm_inference").path


def condition(bundle: Path) -> Graph:
    """The float32 lm_condition, for a contender that has none of its own."""
    return Manifest.read(bundle, variant=FP32, hashes=False).graph("lm_condition")


def music(bundle: Path, variant: str) -> clean_lm.musicgen.MusicGen:
    """Everything, for streaming."""
    return clean_lm.musicgen.MusicGen.load(bundle, variant=variant, hashes=False)


class OurCoder:
    """The bundle's codec."""

    name = "clean_lm"

    def __init__(self, bundle: Path):
        codec = clean_lm.musicgen.Codec.load(bundle, hashes=False)
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
        return self._go_on(mode, self._decoder(mode), columns)

    def seek(self, mode: Mode, at: int) -> Step:
        decoder = self._decoder(mode)
        for cache in decoder.caches.values():
            fill_random(cache)
        decoder.filled = at
        return self._go_on(mode, decoder, 1)

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

    def _go_on(self, mode: Mode, decoder: Decoder, columns: int) -> Step:
        """Read `columns` more, and the step after them."""
        uniform = np.full((mode.takes, self.model.codebooks), 0.5, dtype=np.float32)
        codes = decoder(self.model.codes(mode.takes, columns), uniform)  # the decoder's own array: every call fills it
        return lambda: decoder(codes[:, :, None], uniform)
