"""A bundle's language model: checks a request and begins its generation."""

import secrets
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from clean_lm import memory
from clean_lm.audio import as_array
from clean_lm.conditioning import Conditioner, Conditioning, PerRow, SelfWav
from clean_lm.device import DEVICES, DeviceError, DeviceWarning
from clean_lm.generation import SETTINGS, Decoder, Generation, GenerationOptions, Sampling, columns_drawn
from clean_lm.manifest import BundleError, LoadOptions, Manifest
from clean_lm.options import (
    LONGEST_WINDOW,
    MOST_FRAMES,
    MOST_ROWS,
    MOST_TAKES,
    integer,
    is_list,
    known,
    number,
    rows_given,
    seconds,
    seeds,
    shown,
)
from clean_lm.philox import uniforms
from clean_lm.placement import place
from clean_lm.session import Graph, open_graph
from clean_lm.two_step import TwoStep
from clean_lm.windows import Window, longest, plan

TRIED_COLUMNS = 40  # that a device is tried with: from 32 on WebGPU's attention reads them with another kernel
LARGEST_DIFFERENCE = 0.03  # root mean square, between two ways to the same logits: float32 has 1e-4, wrong ones 0.07
SELF_WAV = {"melody": "lm_melody", "style": "lm_style"}  # the graph of each kind of prefix


class LanguageModel:
    """lm_inference, lm_condition and lm_melody or lm_style of a bundle. Safe to call from several threads."""

    def __init__(self, manifest: Manifest, lm: Graph, condition: Graph, self_wav: Graph | None = None):
        self.manifest, self.lm, self.self_wav = manifest, lm, self_wav
        model, defaults = manifest.language_model, manifest.defaults
        self.info = model
        self.delays, self.codebooks, self.card = list(model.delays), model.codebooks, model.card
        self.special_token, self.text_dim = model.special_token, model.text_dim
        self.frame_rate, self.max_duration = model.frame_rate, model.max_duration
        self.in_place = manifest.cache_update == "in_place"
        self.sampling = Sampling(use_sampling=True, **{name: getattr(defaults, name) for name in SETTINGS})
        self.extend_stride = defaults.extend_stride
        self.conditioner = Conditioner(lm, condition, self_wav, model.text_dim)

    @classmethod
    def load(cls, bundle: Path | str, **options: Unpack[LoadOptions]) -> "LanguageModel":
        """Open a bundle, see LoadOptions. Raises FileNotFoundError, BundleError, DeviceError."""
        return place(Manifest.read(bundle, **options), cls.open)

    @classmethod
    def open(cls, manifest: Manifest) -> "LanguageModel":
        """The language model of a manifest that is already read."""
        kind = manifest.language_model.self_wav
        wav = open_graph(manifest, SELF_WAV[kind]) if kind else None
        lm = cls(manifest, open_graph(manifest, "lm_inference"), open_graph(manifest, "lm_condition"), wav)
        if lm.lm.device is DEVICES["cpu"]:
            lm.lm.open()
        else:
            lm._try()
        return lm

    def _try(self) -> None:
        """Read the same columns at once and one by one: where a device cannot compute, or computes wrong, it shows.
        Warns where the cache cannot stay on the device. Raises DeviceError."""
        if not self.in_place:
            words = (
                "its graph gives the new columns alone, which numpy copies into the cache: the whole cache moves to "
            )
            words += "the device in every call; take a variant whose cache_update is in_place"
            warnings.warn(f"{self.lm.path}: {words}", DeviceWarning, stacklevel=2)
        device = self.lm.device.name if self.lm.device else self.manifest.options.get("providers")
        what = f"device: {device}, variant {self.manifest.variant}:"
        columns = (uniforms(0, TRIED_COLUMNS, self.codebooks).T[None] * self.card).astype(np.int64)
        try:
            at_once, singly = (self._read(columns, first) for first in (TRIED_COLUMNS, 1))
        except BundleError as error:
            raise DeviceError(f"{what} does not run this bundle: {error}") from None
        off = np.sqrt(np.square(at_once - singly).mean() / np.square(at_once).mean())
        if not off < LARGEST_DIFFERENCE:  # NaN is not
            raise DeviceError(
                f"{what} computes wrong: logits of {TRIED_COLUMNS} columns differ by {off:.0%} where they are read at "
                "once and one by one; see whether a newer driver or ONNX Runtime does better"
            )

    def _read(self, columns: np.ndarray, first: int) -> np.ndarray:
        """The logits after columns [1, K, S], of which the first ones are read at once."""
        decoder, uniform = self.decoder(1, columns.shape[2], None, Sampling()), np.zeros((1, self.codebooks))
        decoder.prefill(columns[:, :, :first], uniform)
        for s in range(first, columns.shape[2]):
            decoder.step(columns[:, :, s : s + 1], uniform)
        return decoder.logits

    def generate_codes(
        self,
        prompt_codes: np.ndarray | None = None,
        text_states: PerRow | None = None,
        self_wav: SelfWav | None = None,
        *,
        callback: Callable[[int, int], None] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> np.ndarray:
        """Continue codes to `frames` or `duration` in all, the prompt included.

        prompt_codes: int [P, K, frames] in 0 .. card - 1, or None for no prompt.
        text_states: per prompt the text encoder's last hidden state [N, E] without padding, or None for null text.
        self_wav: melody and style models only: by the start of a window in seconds, per prompt what lm_melody or
        lm_style made [F, dim], or None.
        callback: called with (columns done, columns in all) after each; an exception in it ends the generation.
        options: see GenerationOptions.
        Returns int64 [P x takes, K, frames]: the takes of the first prompt, those of the second, ... Raises ValueError
        before anything is generated.
        """
        generation = self.begin(prompt_codes, text_states, self_wav, **options)
        for done in generation:
            if callback:
                callback(done, generation.total)
        return generation.codes()

    def begin(
        self,
        prompt_codes: np.ndarray | None = None,
        text_states: PerRow | None = None,
        self_wav: SelfWav | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """What generate_codes iterates over, for callers that want the frames as they come."""
        known(options, GenerationOptions.__annotations__, "generate_codes")
        sampling, negatives = self._sampling(options), options.get("negative_states")
        takes = integer("takes", options.get("takes", 1), 1, MOST_TAKES)
        texts = text_state_arrays("text_states", text_states, self.text_dim)
        negatives = text_state_arrays("negative_states", negatives, self.text_dim)
        codes = None if prompt_codes is None else self.check_codes(prompt_codes)
        prompts = self._prompts(codes, texts, options.get("batch"), negatives)
        prompt = np.zeros((prompts, self.codebooks, 0), np.int64) if codes is None else codes
        windows = self._windows(prompt.shape[2], options)
        self._require_memory(prompts, takes, windows, sampling, texts, negatives, self_wav)
        steps = columns_drawn(windows, self.delays)
        uniform = self._uniform(options.get("uniform"), options.get("seed"), steps, prompts * takes)

        def conditioning(window: Window) -> Conditioning:
            wavs = self_wav(window.start / (self.frame_rate or 1)) if self_wav else None
            return self._first_pass(texts or [None] * prompts, wavs, sampling, negatives)

        first = conditioning(next(iter(windows)))
        again = conditioning if self_wav else lambda _: first
        capacity = longest(windows) + max(self.delays)
        decoder = self._decoder(first, capacity, sampling, takes, negatives, logits=False)
        return Generation(decoder, prompt, windows, self.delays, self.special_token, uniform, again, takes)

    def decoder(
        self,
        batch: int,
        capacity: int,
        text_states: PerRow | None,
        sampling: Sampling,
        self_wav: PerRow | None = None,
        negative_states: PerRow | None = None,
    ) -> Decoder | TwoStep:
        """Empty caches for `capacity` columns of `batch` rows, and their conditions: for a loop of your own.

        Raises ValueError.
        """
        integer("batch", batch, 1, MOST_ROWS)
        windows = [Window(0, 0, integer("capacity", capacity, 1, MOST_FRAMES))]
        sampling = self._sampling({"sampling": sampling})
        texts = text_state_arrays("text_states", text_states, self.text_dim)
        negatives = text_state_arrays("negative_states", negative_states, self.text_dim)
        given = None if self_wav is None else lambda _: self_wav
        self._require_memory(batch, 1, windows, sampling, texts, negatives, given)
        conditioning = self._first_pass(texts or [None] * batch, self_wav, sampling, negatives)
        return self._decoder(conditioning, capacity, sampling, negatives=negatives)

    def _two_step(self, sampling: Sampling) -> bool:
        return sampling.two_step_cfg and sampling.guidance != "double" and self.conditioner.prefixed

    def _first_pass(
        self, texts: PerRow, wavs: PerRow | None, sampling: Sampling, negatives: PerRow | None
    ) -> Conditioning:
        """The conditions of all passes, or of the conditioned one if the unconditional one is apart."""
        guidance = sampling.unguided().guidance if self._two_step(sampling) else sampling.guidance
        return self.conditioner(texts, wavs, guidance, negatives)

    def _decoder(
        self,
        conditioning: Conditioning,
        capacity: int,
        sampling: Sampling,
        takes: int = 1,
        negatives: PerRow | None = None,
        logits: bool = True,
    ) -> Decoder | TwoStep:
        apart = self._two_step(sampling)
        first = Decoder(self.lm, self.in_place, conditioning, capacity, sampling, takes, logits or apart)
        if not apart:
            return first
        unconditional = self.conditioner(negatives or [None] * conditioning.batch, None, "none")
        return TwoStep(first, Decoder(self.lm, self.in_place, unconditional, capacity, sampling, takes), sampling)

    def _prompts(
        self, prompt: np.ndarray | None, texts: PerRow | None, batch: int | None, negatives: PerRow | None
    ) -> int:
        """How many prompts are asked for."""
        given = {"prompt_codes": len(prompt) if prompt is not None else None}
        given["batch"] = None if batch is None else integer("batch", batch, 0, MOST_ROWS)
        given["text_states"] = len(texts) if texts is not None else None
        given["negative_states"] = len(negatives) if negatives is not None else None
        sizes = {name: size for name, size in given.items() if size is not None}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ValueError(f"rows: got {sizes}, expected one number above 0")
        return next(iter(sizes.values()), 1)

    def _sampling(self, options: GenerationOptions) -> Sampling:
        sampling = options.get("sampling") or self.sampling
        if not isinstance(sampling, Sampling):
            raise ValueError(f"sampling: got {shown(sampling)}, expected a Sampling, or None for the bundle's defaults")
        sampling.validate()
        return sampling

    def _require_memory(
        self,
        prompts: int,
        takes: int,
        windows: Iterable[Window],
        sampling: Sampling,
        texts: PerRow | None,
        negatives: PerRow | None,
        self_wav: SelfWav | None,
    ) -> None:
        """Raise ValueError if this machine has not enough memory; the codes alone are counted, not their audio."""
        states = [text for text in (*(texts or ()), *(negatives or ())) if text is not None]
        guidance = sampling.guidance if states or self_wav else "none"
        text = max(map(len, states), default=0)
        need = memory.of_generation(self.manifest, prompts * takes, windows, guidance, text, whole=False)
        name = "takes" if takes > 1 else "batch" if prompts > 1 else "duration"
        memory.require(name, need, f"{prompts} x {takes} rows of up to {longest(windows)} frames a window")

    def check_codes(self, codes: Any) -> np.ndarray:
        """Codes of a prompt as int64 [B, K, P]. Raises ValueError."""
        codes = as_array(codes, "prompt_codes")
        if codes.dtype.kind not in "iu":
            raise ValueError(
                f"prompt_codes: got {codes.dtype}, expected integers: the codes that return_tokens gives, or those of "
                "Codec.encode; audio is a prompt"
            )
        if codes.ndim != 3 or codes.shape[1] != self.codebooks:
            raise ValueError(f"prompt_codes: got shape {list(codes.shape)}, expected [B, {self.codebooks}, P]")
        if codes.size and (codes.min() < 0 or codes.max() >= self.card):
            raise ValueError(f"prompt_codes: got {codes.min()} .. {codes.max()}, expected 0 .. {self.card - 1}")
        return codes.astype(np.int64)

    def _windows(self, prompt: int, options: GenerationOptions) -> Iterable[Window]:
        frames, duration = options.get("frames"), options.get("duration")
        if (frames is None) == (duration is None):
            raise ValueError(f"give frames or duration: got frames {shown(frames)}, duration {shown(duration)}")
        if duration is not None:
            if self.frame_rate is None:
                raise ValueError("duration: this bundle does not know its frame rate (no codec in it); give frames")
            frame = 1 / self.frame_rate
            seconds("duration", duration, frame, f"{frame:g} s (a frame) or more")
            window = options.get("max_duration", self.max_duration)
            seconds("max_duration", window, frame, f"{frame:g} s (a frame) or more", LONGEST_WINDOW)
            stride = number("extend_stride", options.get("extend_stride", self.extend_stride), "seconds")
            return plan(duration, window, stride, self.frame_rate, prompt)
        try:
            frames = integer("frames", frames, 0, MOST_FRAMES)
        except ValueError:
            raise ValueError(f"frames: got {shown(frames)}, expected a whole number, {MOST_FRAMES} at most") from None
        if frames <= prompt:
            raise ValueError(f"frames: requested {frames} frames, but the prompt already has {prompt}")
        return [Window(0, prompt, frames)]

    def _uniform(
        self, uniform: np.ndarray | None, seed: int | Sequence[int] | np.ndarray | None, steps: int, batch: int
    ) -> np.ndarray:
        if uniform is None:
            drawn = secrets.randbits(32) if seed is None else seed
            return np.stack([uniforms(s, steps, self.codebooks) for s in seeds(drawn, batch)], axis=1)
        uniform = as_array(uniform, "uniform")
        if uniform.dtype.kind != "f" or uniform.shape != (steps, batch, self.codebooks):
            found = f"{uniform.dtype} {list(uniform.shape)}"
            raise ValueError(f"uniform: got {found}, expected float32 {[steps, batch, self.codebooks]}")
        if not ((uniform >= 0) & (uniform < 1)).all():
            raise ValueError(f"uniform: got {uniform.min()} .. {uniform.max()}, expected draws in [0, 1)")
        return uniform


def text_state_arrays(name: str, states: Any, width: int) -> list[np.ndarray | None] | None:
    """The text encoder's states as arrays [N, width] or None, one per prompt. Raises ValueError."""
    if states is None:
        return None
    if isinstance(states, np.ndarray) and states.ndim == 3:  # of one length each
        states = list(states)
    if not is_list(states):
        raise ValueError(f"{name}: got {shown(states)}, expected a list, [N, {width}] or None per prompt")
    rows_given(name, len(states))
    arrays = [None if row is None else as_array(row, f"{name}[{i}]") for i, row in enumerate(states)]
    for i, array in enumerate(arrays):
        if array is not None and array.dtype.kind != "f":
            raise ValueError(f"{name}[{i}]: got {array.dtype}, expected floats [N, {width}]")
    return arrays
