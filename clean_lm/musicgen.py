"""audiocraft's MusicGen over a bundle, in numpy and ONNX Runtime: sound in, sound out."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from tqdm import tqdm

from clean_lm.audio import convert_audio
from clean_lm.chunks import decode_chunks
from clean_lm.runtime import BundleError, Generation, Graph, LanguageModel, Loading, Manifest, Sampling
from clean_lm.texts import TextEncoder

# Frames of context on both sides of a piece that is decoded alone: what the LSTM remembers, and what the convolutions
# see; clean_lm/chunks.py says more. How long an LSTM remembers depends on its weights: with random ones, 25 frames
# before a piece leave a difference of up to 2e-2 on tiny codecs and 6e-6 on a full-size one, 200 up to 3e-4, 300 1e-5.
LEFT, RIGHT = 300, 5
PIECE = 1500  # frames that are decoded at once: longer sound is decoded piece by piece, in the memory of one

Progress = Callable[[int, int], None]


class Codec:
    """Sound to codes and back. A stereo model has a mono codec, its codebooks left and right in turn."""

    def __init__(self, manifest: Manifest, encode: Graph, decode: Graph):
        model = manifest.need("model", "sample_rate", "channels", "hop", "frame_rate", "codebooks")
        self.graphs = encode, decode
        self.sample_rate: int = model["sample_rate"]
        self.channels: int = model["channels"]
        self.hop: int = model["hop"]
        self.frame_rate: float = model["frame_rate"]
        self.voices: int = model["channels"] // encode.inputs["audio"]["shape"][1]  # 2: left and right apart

    @classmethod
    def load(cls, bundle: Path | str, **loading: Unpack[Loading]) -> "Codec":
        """Open a bundle's codec, see Loading. Raises FileNotFoundError and BundleError, naming the file."""
        return cls.open(Manifest.read(bundle, **loading))

    @classmethod
    def open(cls, manifest: Manifest) -> "Codec":
        return cls(manifest, *(manifest.graph(name).open() for name in ("compression_encode", "compression_decode")))

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """audio float [B, channels, samples] at the codec's rate -> codes int64 [B, K, ceil(samples / hop)]."""
        batch = len(audio)
        sound = audio.astype(np.float32).reshape(batch * self.voices, -1, audio.shape[2])
        codes = self._run(0, "codes", audio=sound)
        return codes.reshape(batch, self.voices, *codes.shape[1:]).swapaxes(1, 2).reshape(batch, -1, codes.shape[2])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """codes int64 [B, K, T] -> audio float32 [B, channels, T x hop]."""
        batch, _, frames = codes.shape
        split = codes.reshape(batch, -1, self.voices, frames).swapaxes(1, 2).reshape(batch * self.voices, -1, frames)
        if frames <= PIECE:
            audio = self._run(1, "audio", codes=split)
        else:
            audio = np.concatenate(list(decode_chunks(self._decode, split, PIECE, LEFT, RIGHT)), axis=2)
        return audio.reshape(batch, self.channels, -1)

    def decode_stream(self, parts: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
        """codes int64 [B, K, any] as they come -> audio [B, channels, size x hop] as soon as its context is there."""
        return decode_chunks(self.decode, parts, size, LEFT, RIGHT)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return self._run(1, "audio", codes=codes)

    def _run(self, graph: int, output: str, **feed: np.ndarray) -> np.ndarray:
        return np.asarray(self.graphs[graph].session.run([output], feed)[0])


class MusicGen:
    """audiocraft's interface: numpy arrays in place of tensors, and a seed.

    Safe to call from several threads, but for set_generation_params.
    """

    def __init__(self, lm: LanguageModel, codec: Codec, text: TextEncoder | None):
        self.lm, self.codec, self.text = lm, codec, text
        model = lm.manifest.need("model", "max_duration")
        self.max_duration: float = model["max_duration"]
        self.duration: float = lm.manifest.need("defaults", "duration")["duration"]
        self.sampling = lm.sampling
        self._progress: Progress | None = None

    @classmethod
    def load(cls, bundle: Path | str, **loading: Unpack[Loading]) -> "MusicGen":
        """Open a bundle, see Loading. Raises FileNotFoundError and BundleError, naming the file."""
        manifest = Manifest.read(bundle, **loading)
        text = TextEncoder.open(manifest) if "text_encoder" in manifest.need("graphs") else None
        return cls(LanguageModel.open(manifest), Codec.open(manifest), text)

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def frame_rate(self) -> float:
        return self.codec.frame_rate

    @property
    def audio_channels(self) -> int:
        return self.codec.channels

    def set_generation_params(
        self,
        use_sampling: bool = True,
        top_k: int = 250,
        top_p: float = 0.0,
        temperature: float = 1.0,
        duration: float = 30.0,
        cfg_coef: float = 3.0,
    ) -> None:
        """What the following generations use; audiocraft's names and defaults. Raises ValueError."""
        sampling = Sampling(use_sampling, temperature, top_k, top_p, cfg_coef)
        sampling.check()
        self._frames(duration)
        self.sampling, self.duration = sampling, duration

    def set_custom_progress_callback(self, progress_callback: Progress | None = None) -> None:
        """Called with (columns done, columns in all) as they are drawn; what it raises ends the generation."""
        self._progress = progress_callback

    def generate(
        self,
        descriptions: Sequence[str | None],
        progress: bool = False,
        return_tokens: bool = False,
        seed: int | Sequence[int] | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Music for each description: float32 [B, channels, samples], with return_tokens (audio, codes [B, K, T])."""
        return self._finish(self._begin(None, descriptions, seed), progress, return_tokens)

    def generate_unconditional(
        self,
        num_samples: int,
        progress: bool = False,
        return_tokens: bool = False,
        seed: int | Sequence[int] | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Music without a description: float32 [num_samples, channels, samples]."""
        return self.generate([None] * num_samples, progress, return_tokens, seed)

    def generate_continuation(
        self,
        prompt: np.ndarray,
        prompt_sample_rate: int,
        descriptions: Sequence[str | None] | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        seed: int | Sequence[int] | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Continue sound to `duration` seconds in all, the prompt included, as the codec renders it.

        prompt: float [B, channels, samples] or [channels, samples], any rate and channels. Take b is drawn with
        seed + b. Returns float32 [B, channels, samples], with return_tokens (audio, codes [B, K, T]).
        Raises ValueError before anything is generated.
        """
        return self._finish(self._continue(prompt, prompt_sample_rate, descriptions, seed), progress, return_tokens)

    def stream_continuation(
        self,
        prompt: np.ndarray,
        prompt_sample_rate: int,
        descriptions: Sequence[str | None] | None = None,
        chunk_seconds: float = 1.0,
        seed: int | Sequence[int] | None = None,
    ) -> Iterator[np.ndarray]:
        """generate_continuation's sound in chunks, while it is still being generated.

        Yields float32 [B, channels, chunk_seconds x rate], the last one shorter. The prompt's own chunks come at once.
        """
        size = round(chunk_seconds * self.frame_rate)
        if size < 1:
            raise ValueError(f"chunk_seconds: got {chunk_seconds}, expected {1 / self.frame_rate} (a frame) or more")
        generation = self._continue(prompt, prompt_sample_rate, descriptions, seed)
        return self.codec.decode_stream(self._parts(generation, size), size)

    def _parts(self, generation: Generation, size: int) -> Iterator[np.ndarray]:
        """A generation's frames, `size` or more at a time."""
        given = 0
        for done in generation:
            if self._progress:
                self._progress(done, generation.total)
            if generation.frames >= given + size or done == generation.total:
                yield generation.codes()[:, :, given:]
                given = generation.frames

    def _continue(
        self,
        prompt: np.ndarray,
        prompt_sample_rate: int,
        descriptions: Sequence[str | None] | None,
        seed: int | Sequence[int] | None,
    ) -> Generation:
        prompt = np.asarray(prompt)
        prompt = prompt[None] if prompt.ndim == 2 else prompt
        if prompt.ndim != 3 or 0 in prompt.shape or prompt.dtype.kind != "f":
            raise ValueError(
                f"prompt: got {prompt.dtype} {list(prompt.shape)}, expected floats [B, channels, samples], not empty"
            )
        if not np.isfinite(prompt).all():
            raise ValueError("prompt: got NaN or infinity, expected finite samples")
        if prompt_sample_rate < 1:
            raise ValueError(f"prompt_sample_rate: got {prompt_sample_rate}, expected samples a second")
        seconds = prompt.shape[2] / prompt_sample_rate
        if np.ceil(seconds * self.frame_rate) >= self._frames(self.duration):
            raise ValueError(f"prompt: got {seconds:.2f} s, expected less than the duration of {self.duration:g} s")
        audio = convert_audio(prompt.astype(np.float32), prompt_sample_rate, self.sample_rate, self.audio_channels)
        return self._begin(self.codec.encode(audio), descriptions, seed)

    def _begin(
        self,
        codes: np.ndarray | None,
        descriptions: Sequence[str | None] | None,
        seed: int | Sequence[int] | None,
    ) -> Generation:
        states = None
        if descriptions is not None and any(descriptions):
            if self.text is None:
                folder = self.lm.manifest.folder
                raise BundleError(f"{folder}: has no text encoder for a description; export it with --text")
            states = self.text.encode(descriptions)
        batch = None if descriptions is None else len(descriptions)
        if codes is not None and batch not in (None, len(codes)):
            raise ValueError(f"descriptions: got {batch} for {len(codes)} prompts, expected one each")
        frames = self._frames(self.duration)
        return self.lm.begin(codes, states, frames=frames, batch=batch, sampling=self.sampling, seed=seed)

    def _frames(self, duration: float) -> int:
        if not 0 < duration <= self.max_duration:
            raise ValueError(
                f"duration: got {duration} s, expected more than 0 and at most {self.max_duration:g} s, "
                "the longest that this model was trained on"
            )
        return int(duration * self.frame_rate)

    def _finish(
        self, generation: Generation, progress: bool, return_tokens: bool
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        with tqdm(total=generation.total, unit="column", disable=not progress) as bar:
            for done in generation:
                bar.update()
                if self._progress:
                    self._progress(done, generation.total)
        codes = generation.codes()
        audio = self.codec.decode(codes)
        return (audio, codes) if return_tokens else audio
