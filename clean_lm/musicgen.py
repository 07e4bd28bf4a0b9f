"""audiocraft's MusicGen over a bundle, in numpy and ONNX Runtime: sound in, sound out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Unpack

import numpy as np
from tqdm import tqdm

from clean_lm.audio import convert_audio
from clean_lm.audio_codec import Stream, decode_chunks
from clean_lm.conditioning import Excerpt, melody, style
from clean_lm.manifest import BundleError, Graph, LoadOptions, Manifest
from clean_lm.runtime import Generation, LanguageModel, Rows, Sampling, SelfWav
from clean_lm.text_encoder import TextEncoder

# Frames of a longer sound that are decoded at once. At full size, 30 s take the same time from 150 to 1500 frames, 15 %
# more with 50; the memory for it is 0.2 GB with 150, 1.9 GB with 1500.
PIECE = 150

Progress = Callable[[int, int], None]
Descriptions = Sequence[str | None]
Seed = int | Sequence[int] | None  # take b is drawn with seed + b, or its own of a list; None: a new one each time
Sound = np.ndarray | tuple[np.ndarray, np.ndarray]  # audio, or audio and codes


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
    def load(cls, bundle: Path | str, **loading: Unpack[LoadOptions]) -> "Codec":
        """Open a bundle's codec, see LoadOptions. Raises FileNotFoundError and BundleError, naming the file."""
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
    """audiocraft's interface, AudioGen's too: numpy arrays in place of tensors, and a seed.

    Longer than max_duration is generated in windows: each begins with the last one's frames from extend_stride on.
    Safe to call from several threads, but for the set_ methods.
    """

    def __init__(self, lm: LanguageModel, codec: Codec, text: TextEncoder | None, mert: Graph | None = None):
        self.lm, self.codec, self.text, self.mert = lm, codec, text, mert
        self.max_duration: float = lm.max_duration
        self.duration: float = lm.manifest.need("defaults", "duration")["duration"]
        self.extend_stride: float = lm.extend_stride
        self.sampling = lm.sampling
        self.excerpt = Excerpt()
        self._progress: Progress | None = None

    @classmethod
    def load(cls, bundle: Path | str, **loading: Unpack[LoadOptions]) -> "MusicGen":
        """Open a bundle, see LoadOptions. Raises FileNotFoundError and BundleError, naming the file."""
        manifest = Manifest.read(bundle, **loading)
        graphs = manifest.need("graphs")
        text = TextEncoder.open(manifest) if "text_encoder" in graphs else None
        mert = manifest.graph("style_features") if "style_features" in graphs else None
        return cls(LanguageModel.open(manifest), Codec.open(manifest), text, mert)

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
        duration: float | None = None,
        cfg_coef: float = 3.0,
        cfg_coef_beta: float | None = None,
        two_step_cfg: bool = False,
        extend_stride: float | None = None,
    ) -> None:
        """What the following generations use; audiocraft's names and defaults. Raises ValueError.

        duration, extend_stride: seconds; None: the model's, which are 30 and 18 for MusicGen, 10 and 2 for AudioGen.
        """
        sampling = Sampling(use_sampling, temperature, top_k, top_p, cfg_coef, cfg_coef_beta, two_step_cfg)
        sampling.check()
        defaults = self.lm.manifest.need("defaults")
        duration = float(defaults["duration"]) if duration is None else duration
        extend_stride = float(defaults["extend_stride"]) if extend_stride is None else extend_stride
        if not 0 < duration < np.inf:
            raise ValueError(f"duration: got {duration} s, expected more than 0")
        if not 0 < extend_stride < self.max_duration:
            raise ValueError(
                f"extend_stride: got {extend_stride} s, expected more than 0 and less than a window of "
                f"{self.max_duration:g} s"
            )
        self.sampling, self.duration, self.extend_stride = sampling, duration, extend_stride

    def set_style_conditioner_params(
        self, eval_q: int = 3, excerpt_length: float = 3.0, excerpt_start: float | None = None
    ) -> None:
        """How style models hear what they are told; audiocraft's names and defaults. Raises ValueError.

        eval_q: how many levels of quantisation are kept: the fewer, the freer. excerpt_length: seconds that are heard,
        from excerpt_start on; None: from anywhere, drawn by the seed.
        """
        levels = self.lm.manifest.need("model").get("style_levels", 0)
        if not 1 <= eval_q <= levels:
            raise ValueError(f"eval_q: got {eval_q}, this model has {levels} levels of style")
        if not excerpt_length > 0 or (excerpt_start is not None and not excerpt_start >= 0):
            raise ValueError(f"excerpt: got {excerpt_length} s from {excerpt_start} s, expected seconds from 0 up")
        self.excerpt = Excerpt(eval_q, excerpt_length, excerpt_start)

    def set_custom_progress_callback(self, progress_callback: Progress | None = None) -> None:
        """Called with (columns done, columns in all) as they are drawn; what it raises ends the generation."""
        self._progress = progress_callback

    def generate(
        self,
        descriptions: Descriptions,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
    ) -> Sound:
        """Music for each description: float32 [B, channels, samples], with return_tokens (audio, codes [B, K, T])."""
        return self._finish(self._begin(descriptions, seed), progress, return_tokens)

    def generate_unconditional(
        self, num_samples: int, progress: bool = False, return_tokens: bool = False, seed: Seed = None
    ) -> Sound:
        """Music without a description: float32 [num_samples, channels, samples]."""
        return self.generate([None] * num_samples, progress, return_tokens, seed)

    def generate_with_chroma(
        self,
        descriptions: Descriptions,
        melody_wavs: np.ndarray | Sequence[np.ndarray | None],
        melody_sample_rate: int,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
    ) -> Sound:
        """Music for descriptions that follows melodies, or in style models sounds like them.

        melody_wavs: float [B, channels, samples], [channels, samples], or a list of the latter with None for no melody;
        any rate and channels. They are heard as they are: audiocraft keeps but the vocals and other stems that demucs
        finds in them, so pass the sum of those where drums or bass would drown the melody.
        """
        wavs = self._wavs(descriptions, melody_wavs, melody_sample_rate, seed)
        return self._finish(self._begin(descriptions, seed, self_wav=wavs), progress, return_tokens)

    def generate_with_style(
        self,
        descriptions: Descriptions,
        style_features: Rows,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
    ) -> Sound:
        """Music for descriptions in the style of MERT's features [F, width] of some sound, or None, one per row."""
        wavs = self._features(descriptions, style_features)
        return self._finish(self._begin(descriptions, seed, self_wav=wavs), progress, return_tokens)

    def generate_continuation(
        self,
        prompt: np.ndarray,
        prompt_sample_rate: int,
        descriptions: Descriptions | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
        melody_wavs: np.ndarray | Sequence[np.ndarray | None] | None = None,
        melody_sample_rate: int | None = None,
    ) -> Sound:
        """Continue sound to `duration` seconds in all, the prompt included, as the codec renders it.

        prompt: float [B, channels, samples] or [channels, samples], any rate and channels. Take b is drawn with
        seed + b. melody_wavs: as in generate_with_chroma. Returns float32 [B, channels, samples], with return_tokens
        (audio, codes [B, K, T]). Raises ValueError before anything is generated.
        """
        melodies = melody_wavs, melody_sample_rate
        generation = self._continue(prompt, prompt_sample_rate, descriptions, seed, *melodies)
        return self._finish(generation, progress, return_tokens)

    def stream(self, descriptions: Descriptions, chunk_seconds: float = 1.0, seed: Seed = None) -> Iterator[np.ndarray]:
        """generate's sound in chunks, as stream_continuation gives them."""
        return self._stream(self._begin(descriptions, seed), chunk_seconds)

    def stream_with_chroma(
        self,
        descriptions: Descriptions,
        melody_wavs: np.ndarray | Sequence[np.ndarray | None],
        melody_sample_rate: int,
        chunk_seconds: float = 1.0,
        seed: Seed = None,
    ) -> Iterator[np.ndarray]:
        """generate_with_chroma's sound in chunks, as stream_continuation gives them."""
        wavs = self._wavs(descriptions, melody_wavs, melody_sample_rate, seed)
        return self._stream(self._begin(descriptions, seed, self_wav=wavs), chunk_seconds)

    def stream_continuation(
        self,
        prompt: np.ndarray,
        prompt_sample_rate: int,
        descriptions: Descriptions | None = None,
        chunk_seconds: float = 1.0,
        seed: Seed = None,
        melody_wavs: np.ndarray | Sequence[np.ndarray | None] | None = None,
        melody_sample_rate: int | None = None,
    ) -> Iterator[np.ndarray]:
        """generate_continuation's sound in chunks, while it is still being generated.

        Yields float32 [B, channels, chunk_seconds x rate], the last one shorter. The prompt's own chunks come at once.
        A thread generates and decodes in turn, ahead of whoever takes the chunks: it goes on while one is played, calls
        the progress callback, and ends when the iterator is closed.
        """
        melodies = melody_wavs, melody_sample_rate
        return self._stream(self._continue(prompt, prompt_sample_rate, descriptions, seed, *melodies), chunk_seconds)

    def _stream(self, generation: Generation, chunk_seconds: float) -> Iterator[np.ndarray]:
        size = round(chunk_seconds * self.frame_rate)
        if size < 1:
            raise ValueError(f"chunk_seconds: got {chunk_seconds}, expected {1 / self.frame_rate} (a frame) or more")
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
        descriptions: Descriptions | None,
        seed: Seed,
        melody_wavs: np.ndarray | Sequence[np.ndarray | None] | None,
        melody_sample_rate: int | None,
    ) -> Generation:
        prompt = np.asarray(prompt)
        prompt = prompt[None] if prompt.ndim == 2 else prompt
        checked("prompt", prompt, prompt_sample_rate, "[B, channels, samples]")
        seconds, longest = prompt.shape[2] / prompt_sample_rate, min(self.duration, self.max_duration)
        if np.ceil(seconds * self.frame_rate) >= int(longest * self.frame_rate):
            what = "the duration of" if self.duration <= self.max_duration else "a window of"
            raise ValueError(f"prompt: got {seconds:.2f} s, expected less than {what} {longest:g} s")
        descriptions = [None] * len(prompt) if descriptions is None else descriptions
        if len(descriptions) != len(prompt):
            raise ValueError(f"descriptions: got {len(descriptions)} for {len(prompt)} prompts, expected one each")
        wavs = None
        if melody_wavs is not None:
            wavs = self._wavs(descriptions, melody_wavs, melody_sample_rate or 0, seed)
        audio = convert_audio(prompt.astype(np.float32), prompt_sample_rate, self.sample_rate, self.audio_channels)
        return self._begin(descriptions, seed, self.codec.encode(audio), wavs)

    def _begin(
        self, descriptions: Descriptions, seed: Seed, codes: np.ndarray | None = None, self_wav: SelfWav | None = None
    ) -> Generation:
        states = None
        if any(descriptions):
            if self.text is None:
                folder = self.lm.manifest.folder
                raise BundleError(f"{folder}: has no text encoder for a description; export it with --text")
            states = self.text.encode(descriptions)
        return self.lm.begin(
            codes,
            states,
            self_wav,
            duration=self.duration,
            max_duration=self.max_duration,
            extend_stride=self.extend_stride,
            batch=len(descriptions),
            sampling=self.sampling,
            seed=seed,
        )

    def _wavs(
        self,
        descriptions: Descriptions,
        wavs: np.ndarray | Sequence[np.ndarray | None],
        rate: int,
        seed: Seed,
    ) -> SelfWav | None:
        """Melodies as the model takes them; None where there are none."""
        if self.lm.wav is None:
            raise ValueError("melody_wavs: this model takes no melody: it has no conditioners.self_wav")
        if isinstance(wavs, np.ndarray):
            wavs = [wavs] if wavs.ndim == 2 else list(wavs)
        if len(wavs) != len(descriptions):
            raise ValueError(f"melody_wavs: got {len(wavs)} for {len(descriptions)} descriptions, expected one each")
        for wav in (wav for wav in wavs if wav is not None):
            checked("melody", wav, rate, "[channels, samples]", axes=2)
        if self.lm.kind == "style":
            return self._features(descriptions, [None if w is None else self._excerpt(w, rate, seed) for w in wavs])
        heard = [None if w is None else self._mono(w, rate) for w in wavs]
        window = self.max_duration if self.duration > self.max_duration else None
        return None if all(w is None for w in heard) else melody(self.lm.wav, heard, self.sample_rate, window)

    def _excerpt(self, wav: np.ndarray, rate: int, seed: Seed) -> np.ndarray:
        """MERT's features [F, width] of an excerpt of sound [channels, samples]."""
        if self.mert is None:
            folder = self.lm.manifest.folder
            raise BundleError(
                f"{folder}: has no MERT to hear a style with; export it with --mert, or use generate_with_style"
            )
        drawn = seed if isinstance(seed, int) or seed is None else seed[0]
        heard = self.excerpt.of(self._mono(wav, rate), self.sample_rate, drawn)
        model = self.lm.manifest.need("model", "style_sample_rate", "style_receptive_field")
        audio = convert_audio(heard[None, None], self.sample_rate, model["style_sample_rate"], 1)[0]
        if audio.shape[1] < model["style_receptive_field"]:
            raise ValueError(f"excerpt_length: got {self.excerpt.length:g} s, too short for one of MERT's features")
        (features,) = self.mert.session.run(["features"], {"audio": audio})
        return np.asarray(features)[0]

    def _mono(self, wav: np.ndarray, rate: int) -> np.ndarray:
        """Sound [channels, samples] at the model's rate, [samples]; by way of its channels, as audiocraft does."""
        return convert_audio(wav[None].astype(np.float32), rate, self.sample_rate, self.audio_channels)[0].mean(axis=0)

    def _features(self, descriptions: Descriptions, features: Rows) -> SelfWav | None:
        """A style as the model takes it; None where there is none."""
        if self.lm.wav is None or self.lm.kind != "style":
            raise ValueError("style_features: this model takes no style: it has no conditioners.self_wav.style")
        if len(features) != len(descriptions):
            raise ValueError(f"style_features: got {len(features)} for {len(descriptions)} descriptions")
        width = self.lm.wav.inputs["features"]["shape"][2]
        for row in (row for row in features if row is not None):
            if row.ndim != 2 or row.shape[1] != width or not len(row) or not np.isfinite(row).all():
                raise ValueError(f"style_features: got {list(row.shape)}, expected finite numbers [F, {width}], F > 0")
        return None if all(row is None for row in features) else style(self.lm.wav, features, self.excerpt.eval_q)

    def _finish(self, generation: Generation, progress: bool, return_tokens: bool) -> Sound:
        with tqdm(total=generation.total, unit="column", disable=not progress) as bar:
            for done in generation:
                bar.update()
                if self._progress:
                    self._progress(done, generation.total)
        codes = generation.codes()
        audio = self.codec.decode(codes)
        return (audio, codes) if return_tokens else audio


def checked(name: str, wav: np.ndarray, rate: int, shape: str, axes: int = 3) -> None:
    """Raise ValueError where this is no sound."""
    if wav.ndim != axes or 0 in wav.shape or wav.dtype.kind != "f":
        raise ValueError(f"{name}: got {wav.dtype} {list(wav.shape)}, expected floats {shape}, not empty")
    if not np.isfinite(wav).all():
        raise ValueError(f"{name}: got NaN or infinity, expected finite samples")
    if rate < 1:
        raise ValueError(f"{name}_sample_rate: got {rate}, expected samples a second")
