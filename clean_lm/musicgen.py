"""audiocraft's MusicGen over a bundle, in numpy and ONNX Runtime: audio in, audio out."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from tqdm import tqdm

from clean_lm.audio import check, convert_audio
from clean_lm.audio_codec import Codec
from clean_lm.conditioning import Excerpt, PerRow, SelfWav, melody, style
from clean_lm.generation import Generation, Sampling
from clean_lm.hub import bundle_folder
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError, LoadOptions, Manifest
from clean_lm.prefetch import prefetch
from clean_lm.session import Graph, open_graph
from clean_lm.text_encoder import TextEncoder
from clean_lm.windows import plan

Progress = Callable[[int, int], None]
Descriptions = Sequence[str | None]
Seed = int | Sequence[int] | None  # row b is drawn with seed + b, or its own of a list; None: a new one each time
Wavs = np.ndarray | Sequence[np.ndarray | None]  # [B, channels, samples], [channels, samples], or a list of the latter
Result = np.ndarray | tuple[np.ndarray, np.ndarray]  # audio, or audio and codes


class MusicGen:
    """audiocraft's interface, AudioGen's too: numpy arrays in place of tensors, a seed, and takes.

    With `takes`, every prompt or description gives that many rows, one after the other, and is read once for all of
    them. What is longer than max_duration is generated in windows: each begins with the frames of the one before from
    extend_stride on. Safe to call from several threads, except for the set_ methods.
    """

    def __init__(self, lm: LanguageModel, codec: Codec, text: TextEncoder | None, mert: Graph | None = None):
        self.lm, self.codec, self.text, self.mert = lm, codec, text, mert
        self.max_duration = lm.max_duration
        self.duration, self.extend_stride = lm.manifest.defaults.duration, lm.extend_stride
        self.sampling = lm.sampling
        self.excerpt = Excerpt()
        self._progress: Progress | None = None

    @classmethod
    def load(cls, bundle: Path | str, **options: Unpack[LoadOptions]) -> "MusicGen":
        """Open a bundle, see LoadOptions. Raises FileNotFoundError and BundleError, naming the file."""
        manifest = Manifest.read(bundle, **options)
        text = TextEncoder.open(manifest) if "text_encoder" in manifest.graphs else None
        mert = open_graph(manifest, "style_features") if "style_features" in manifest.graphs else None
        return cls(LanguageModel.open(manifest), Codec.open(manifest), text, mert)

    @classmethod
    def get_pretrained(
        cls, name: Path | str, revision: str | None = None, token: str | None = None, **options: Unpack[LoadOptions]
    ) -> "MusicGen":
        """Open a bundle of the Hugging Face hub, "user/repo", or a folder, see LoadOptions. Needs huggingface_hub.

        Only the files of the chosen variant are downloaded, to huggingface_hub's cache. token: default: the one that
        huggingface_hub has. Raises BundleError.
        """
        return cls.load(bundle_folder(name, revision, token, options), **options)

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
        sampling.validate()
        defaults = self.lm.manifest.defaults
        duration = defaults.duration if duration is None else duration
        extend_stride = defaults.extend_stride if extend_stride is None else extend_stride
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
        """How closely style models follow their audio; audiocraft's names and defaults. Raises ValueError.

        eval_q: how many levels of quantisation are kept: the fewer, the freer. excerpt_length: seconds of the audio
        that the model is given, from excerpt_start on; None: from anywhere, drawn by the seed.
        """
        levels = self.lm.manifest.style.style_levels if self.lm.info.self_wav == "style" else 0
        if not 1 <= eval_q <= levels:
            raise ValueError(f"eval_q: got {eval_q}, this model has {levels} levels of style")
        if not excerpt_length > 0 or (excerpt_start is not None and not excerpt_start >= 0):
            raise ValueError(f"excerpt: got {excerpt_length} s from {excerpt_start} s, expected seconds from 0 up")
        self.excerpt = Excerpt(eval_q, excerpt_length, excerpt_start)

    def set_custom_progress_callback(self, progress_callback: Progress | None = None) -> None:
        """Called with (columns done, columns in all) as they are drawn; an exception in it ends the generation."""
        self._progress = progress_callback

    def generate(
        self,
        descriptions: Descriptions,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
        takes: int = 1,
    ) -> Result:
        """Music for each description: float32 [B, channels, samples], with return_tokens (audio, codes [B, K, T])."""
        return self._finish(self._begin(descriptions, seed, takes), progress, return_tokens)

    def generate_unconditional(
        self, num_samples: int, progress: bool = False, return_tokens: bool = False, seed: Seed = None
    ) -> Result:
        """Music without a description: float32 [num_samples, channels, samples]."""
        return self.generate([None], progress, return_tokens, seed, takes=num_samples)

    def generate_with_chroma(
        self,
        descriptions: Descriptions,
        melody_wavs: Wavs,
        melody_sample_rate: int,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
        takes: int = 1,
    ) -> Result:
        """Music for descriptions that follows melodies, or in style models has the style of audio.

        melody_wavs: float [B, channels, samples], [channels, samples], or a list of the latter with None for no melody;
        any rate and channels. The audio is taken as it is, where audiocraft keeps only the vocals and other stems that
        demucs separates: pass the sum of those if drums or bass would drown the melody.
        """
        wavs = self._wavs(descriptions, melody_wavs, melody_sample_rate, seed)
        return self._finish(self._begin(descriptions, seed, takes, self_wav=wavs), progress, return_tokens)

    def generate_with_style(
        self,
        descriptions: Descriptions,
        style_features: PerRow,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
        takes: int = 1,
    ) -> Result:
        """Music for descriptions in the style of some audio: its MERT features [F, width], or None, per description."""
        wavs = self._features(descriptions, style_features)
        return self._finish(self._begin(descriptions, seed, takes, self_wav=wavs), progress, return_tokens)

    def generate_continuation(
        self,
        prompt: np.ndarray,
        prompt_sample_rate: int,
        descriptions: Descriptions | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
        melody_wavs: Wavs | None = None,
        melody_sample_rate: int | None = None,
        takes: int = 1,
    ) -> Result:
        """Continue audio to `duration` seconds in all, the prompt included, as the codec renders it.

        prompt: float [P, channels, samples] or [channels, samples], any rate and channels. Row b of the result is drawn
        with seed + b. melody_wavs: as in generate_with_chroma. Returns float32 [P x takes, channels, samples], with
        return_tokens (audio, codes [P x takes, K, T]). Raises ValueError before anything is generated.
        """
        melodies = melody_wavs, melody_sample_rate
        generation = self._continue(prompt, prompt_sample_rate, descriptions, seed, *melodies, takes)
        return self._finish(generation, progress, return_tokens)

    def stream(
        self, descriptions: Descriptions, chunk_seconds: float = 1.0, seed: Seed = None, takes: int = 1
    ) -> Iterator[np.ndarray]:
        """generate's audio in chunks, as stream_continuation gives them."""
        return self._stream(self._begin(descriptions, seed, takes), chunk_seconds)

    def stream_with_chroma(
        self,
        descriptions: Descriptions,
        melody_wavs: Wavs,
        melody_sample_rate: int,
        chunk_seconds: float = 1.0,
        seed: Seed = None,
        takes: int = 1,
    ) -> Iterator[np.ndarray]:
        """generate_with_chroma's audio in chunks, as stream_continuation gives them."""
        wavs = self._wavs(descriptions, melody_wavs, melody_sample_rate, seed)
        return self._stream(self._begin(descriptions, seed, takes, self_wav=wavs), chunk_seconds)

    def stream_continuation(
        self,
        prompt: np.ndarray,
        prompt_sample_rate: int,
        descriptions: Descriptions | None = None,
        chunk_seconds: float = 1.0,
        seed: Seed = None,
        melody_wavs: Wavs | None = None,
        melody_sample_rate: int | None = None,
        takes: int = 1,
    ) -> Iterator[np.ndarray]:
        """generate_continuation's audio in chunks, while it is still being generated.

        Yields float32 [P x takes, channels, chunk_seconds x rate], the last one shorter. The prompt's own chunks come
        at once. A thread generates and decodes ahead of the consumer: it goes on while a chunk is played, calls the
        progress callback, and ends when the iterator is closed.
        """
        melodies = melody_wavs, melody_sample_rate
        generation = self._continue(prompt, prompt_sample_rate, descriptions, seed, *melodies, takes)
        return self._stream(generation, chunk_seconds)

    def _stream(self, generation: Generation, chunk_seconds: float) -> Iterator[np.ndarray]:
        size = round(chunk_seconds * self.frame_rate)
        if size < 1:
            raise ValueError(f"chunk_seconds: got {chunk_seconds}, expected {1 / self.frame_rate} (a frame) or more")
        return prefetch(self.codec.decode_stream(self._parts(generation, size), size))

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

    def _finish(self, generation: Generation, progress: bool, return_tokens: bool) -> Result:
        with tqdm(total=generation.total, unit="column", disable=not progress) as bar:
            for done in generation:
                bar.update()
                if self._progress:
                    self._progress(done, generation.total)
        codes = generation.codes()
        audio = self.codec.decode(codes)
        return (audio, codes) if return_tokens else audio

    def _continue(
        self,
        prompt: np.ndarray,
        prompt_sample_rate: int,
        descriptions: Descriptions | None,
        seed: Seed,
        melody_wavs: Wavs | None,
        melody_sample_rate: int | None,
        takes: int,
    ) -> Generation:
        prompt = np.asarray(prompt)
        prompt = check(prompt[None] if prompt.ndim == 2 else prompt, "prompt", "[B, channels, samples]")
        check_rate(prompt_sample_rate, "prompt_sample_rate")
        known = math.ceil(prompt.shape[2] / prompt_sample_rate * self.frame_rate)
        plan(self.duration, self.max_duration, self.extend_stride, self.frame_rate, known)
        descriptions = [None] * len(prompt) if descriptions is None else descriptions
        if len(descriptions) != len(prompt):
            raise ValueError(f"descriptions: got {len(descriptions)} for {len(prompt)} prompts, expected one each")
        wavs = None
        if melody_wavs is not None:
            wavs = self._wavs(descriptions, melody_wavs, melody_sample_rate or 0, seed)
        audio = convert_audio(prompt, prompt_sample_rate, self.sample_rate, self.audio_channels)
        return self._begin(descriptions, seed, takes, self.codec.encode(audio), wavs)

    def _begin(
        self,
        descriptions: Descriptions,
        seed: Seed,
        takes: int,
        codes: np.ndarray | None = None,
        self_wav: SelfWav | None = None,
    ) -> Generation:
        states = None
        if any(descriptions):
            if self.text is None:
                folder = self.lm.manifest.folder
                raise BundleError(f"{folder}: contains no text encoder for a description; export it again with --text")
            states = self.text.encode(descriptions)
        return self.lm.begin(
            codes,
            states,
            self_wav,
            duration=self.duration,
            max_duration=self.max_duration,
            extend_stride=self.extend_stride,
            batch=len(descriptions),
            takes=takes,
            sampling=self.sampling,
            seed=seed,
        )

    def _wavs(self, descriptions: Descriptions, wavs: Wavs, rate: int, seed: Seed) -> SelfWav | None:
        """Melodies, or audio of a style, as the model takes them; None if there are none."""
        if self.lm.self_wav is None:
            raise ValueError("melody_wavs: this model takes no melody: it has no conditioners.self_wav")
        if isinstance(wavs, np.ndarray):
            wavs = [wavs] if wavs.ndim == 2 else list(wavs)
        if len(wavs) != len(descriptions):
            raise ValueError(f"melody_wavs: got {len(wavs)} for {len(descriptions)} descriptions, expected one each")
        wavs = [None if wav is None else check(wav, "melody", "[channels, samples]") for wav in wavs]
        check_rate(rate, "melody_sample_rate")
        if self.lm.info.self_wav == "style":
            return self._features(descriptions, [None if w is None else self._excerpt(w, rate, seed) for w in wavs])
        mono = [None if wav is None else self._mono(wav, rate) for wav in wavs]
        window = self.max_duration if self.duration > self.max_duration else None
        return None if all(wav is None for wav in mono) else melody(self.lm.self_wav, mono, self.sample_rate, window)

    def _excerpt(self, wav: np.ndarray, rate: int, seed: Seed) -> np.ndarray:
        """MERT's features [F, width] of an excerpt of audio [channels, samples]."""
        info = self.lm.manifest.style
        if self.mert is None or info.style_receptive_field is None:
            raise BundleError(
                f"{self.lm.manifest.folder}: contains no MERT; export it again with --mert, or pass MERT's features to "
                "generate_with_style"
            )
        drawn = seed if isinstance(seed, int) or seed is None else seed[0]
        excerpt = self.excerpt.of(self._mono(wav, rate), self.sample_rate, drawn)
        audio = convert_audio(excerpt[None, None], self.sample_rate, info.style_sample_rate, 1)[0]
        if audio.shape[1] < info.style_receptive_field:
            raise ValueError(f"excerpt_length: got {self.excerpt.length:g} s, too short for one of MERT's features")
        return self.mert.run({"audio": audio})["features"][0]

    def _mono(self, wav: np.ndarray, rate: int) -> np.ndarray:
        """Audio [channels, samples] at the model's rate, [samples]; by way of its channels, as audiocraft does."""
        return convert_audio(wav[None], rate, self.sample_rate, self.audio_channels)[0].mean(axis=0)

    def _features(self, descriptions: Descriptions, features: PerRow) -> SelfWav | None:
        """A style as the model takes it; None if there is none."""
        if self.lm.self_wav is None or self.lm.info.self_wav != "style":
            raise ValueError("style_features: this model takes no style: it has no conditioners.self_wav.style")
        if len(features) != len(descriptions):
            raise ValueError(f"style_features: got {len(features)} for {len(descriptions)} descriptions")
        width = self.lm.self_wav.inputs["features"].shape[2]
        for row in (row for row in features if row is not None):
            if row.ndim != 2 or row.shape[1] != width or not len(row) or not np.isfinite(row).all():
                raise ValueError(f"style_features: got {list(row.shape)}, expected finite numbers [F, {width}], F > 0")
        return None if all(row is None for row in features) else style(self.lm.self_wav, features, self.excerpt.eval_q)


def check_rate(rate: int, name: str) -> None:
    """Raise ValueError unless this is a sample rate."""
    if rate < 1:
        raise ValueError(f"{name}: got {rate}, expected samples a second")
