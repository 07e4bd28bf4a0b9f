"""audiocraft's MusicGen over a bundle, in numpy and ONNX Runtime: sound in, sound out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Unpack

import numpy as np
from tqdm import tqdm

from clean_lm.audio import convert_audio
from clean_lm.chunks import Stream, decode_chunks
from clean_lm.runtime import BundleError, Generation, Graph, LanguageModel, Loading, Manifest, Sampling
from clean_lm.texts import TextEncoder

# Frames of a longer sound that are decoded at once. At full size, 30 s take the same time from 150 to 1500 frames, 15 %
# more with 50; the memory for it is 0.2 GB with 150, 1.9 GB with 1500.
PIECE = 150

Progress = Callable[[int, int], None]


class Codec:
    """Sound to codes and back. A stereo model has a mono codec, its codebooks left and right in turn."""

    def __init__(self, manifest: Manifest, encode: Graph, stream: Graph):
        model = manifest.need("model", "sample_rate", "channels", "hop", "frame_rate", "lookahead")
        self.encoder, self.stream = encode, stream
        self.sample_rate: int = model["sample_rate"]
        self.channels: int = model["channels"]
        self.hop: int = model["hop"]
        self.frame_rate: float = model["frame_rate"]
        self.lookahead: int = model["lookahead"]
        self.voices: int = model["channels"] // encode.inputs["audio"]["shape"][1]  # 2: left and right apart

    @classmethod
    def load(cls, bundle: Path | str, **loading: Unpack[Loading]) -> "Codec":
        """Open a bundle's codec, see Loading. Raises FileNotFoundError and BundleError, naming the file."""
        return cls.open(Manifest.read(bundle, **loading))

    @classmethod
    def open(cls, manifest: Manifest) -> "Codec":
        names = ("compression_encode", "compression_stream")
        manifest.need("graphs", *names)
        return cls(manifest, *(manifest.graph(name).open() for name in names))

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """audio float [B, channels, samples] at the codec's rate -> codes int64 [B, K, ceil(samples / hop)]."""
        batch = len(audio)
        sound = audio.astype(np.float32).reshape(batch * self.voices, -1, audio.shape[2])
        codes = np.asarray(self.encoder.session.run(["codes"], {"audio": sound})[0])
        return codes.reshape(batch, self.voices, *codes.shape[1:]).swapaxes(1, 2).reshape(batch, -1, codes.shape[2])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """codes int64 [B, K, T], T > 0 -> audio float32 [B, channels, T x hop]."""
        return np.concatenate(list(self.decode_stream([codes], PIECE)), axis=2)

    def decode_stream(self, parts: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
        """codes int64 [B, K, any] as they come -> audio [B, channels, size x hop] as soon as it is final."""
        audio = decode_chunks(Stream(self.stream), map(self._split, parts), size, self.lookahead, self.hop)
        return (piece.reshape(-1, self.channels, piece.shape[2]) for piece in audio)

    def _split(self, codes: np.ndarray) -> np.ndarray:
        """Voices in turn [B, K, T] -> rows of one voice each [B x voices, K / voices, T]."""
        batch, _, frames = codes.shape
        return codes.reshape(batch, -1, self.voices, frames).swapaxes(1, 2).reshape(batch * self.voices, -1, frames)


def ahead(items: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """What an iterator gives, computed in a thread without waiting for whoever takes it."""
    computed: SimpleQueue[np.ndarray | BaseException | None] = SimpleQueue()
    closed = Event()

    def compute() -> None:
        try:
            for item in items:
                computed.put(item)
                if closed.is_set():
                    return
            computed.put(None)
        except BaseException as error:
            computed.put(error)

    thread = Thread(target=compute, daemon=True)
    thread.start()
    try:
        while (item := computed.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()


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
        A thread generates and decodes in turn, ahead of whoever takes the chunks: it goes on while one is played, calls
        the progress callback, and ends when the iterator is closed.
        """
        size = round(chunk_seconds * self.frame_rate)
        if size < 1:
            raise ValueError(f"chunk_seconds: got {chunk_seconds}, expected {1 / self.frame_rate} (a frame) or more")
        generation = self._continue(prompt, prompt_sample_rate, descriptions, seed)
        return ahead(self.codec.decode_stream(self._parts(generation, size), size))

    def _parts(self, generation: Generation, size: int) -> Iterator[np.ndarray]:
        """A generation's frames, `size` or more at a time, those of the prompt before anything is generated."""
        given = generation.frames
        if given:
            yield generation.codes()
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
