"""audiocraft's MusicGen over a bundle, in numpy and ONNX Runtime: audio in, audio out."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np
from tqdm import tqdm

from clean_lm import memory
from clean_lm.audio import as_batch, convert_audio
from clean_lm.audio_codec import Codec
from clean_lm.conditioning import Excerpt, PerRow, SelfWav
from clean_lm.generation import Generation, Sampling
from clean_lm.hub import find_bundle
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import BundleError, LoadOptions, Manifest
from clean_lm.musical_time import Frames, MusicalTime, seconds_of
from clean_lm.options import LONGEST, LONGEST_WINDOW, MOST_TAKES, integer, number, seconds, seeds, shown, texts, threads
from clean_lm.options import rate as sample_rate
from clean_lm.placement import place
from clean_lm.prefetch import prefetch
from clean_lm.reference import Reference, Wavs
from clean_lm.session import Graph, names, open_graph, providers_of
from clean_lm.text_encoder import TextEncoder
from clean_lm.windows import Windows, plan

Progress = Callable[[int, int], None]
Descriptions = Sequence[str | None]
Seed = (
    int | Sequence[int] | np.ndarray | None
)  # row b is drawn with seed + b, or its own of a list; None: a new one each time
Prompt = np.ndarray | Sequence[np.ndarray]  # [B, channels, samples], [channels, samples], or a list of the latter
Result = np.ndarray | tuple[np.ndarray, np.ndarray]  # audio, or audio and codes


@dataclass(frozen=True)
class Prepared:
    """A prompt that is checked and not yet encoded."""

    rows: int
    frames: int
    codes: Callable[[], np.ndarray]  # int64 [rows, K, frames]


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
        """Open a bundle, see LoadOptions. Raises FileNotFoundError, BundleError, DeviceError."""
        threads("threads", options.get("threads"))
        return place(Manifest.read(bundle, **options), cls.open)

    @classmethod
    def open(cls, manifest: Manifest) -> "MusicGen":
        """The whole bundle of a manifest that is already read."""
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
        folder, confined = find_bundle(name, revision, token, options)
        return cls.load(folder, **confined)

    def view(self) -> "MusicGen":
        """The same model with parameters of its own, the bundle's: for generations that run at the same time."""
        return MusicGen(self.lm, self.codec, self.text, self.mert)

    @property
    def device(self) -> str:
        """Where it runs, and the variant that was chosen for it: "webgpu, variant fp16"."""
        manifest, device = self.lm.manifest, self.lm.lm.device
        name = device.name if device else ", ".join(names(providers_of(manifest.options)))
        return name if manifest.variant is None else f"{name}, variant {manifest.variant}"

    @property
    def passed(self) -> tuple[str, ...]:
        """The devices and variants that were tried before, and why they were not taken."""
        return self.lm.manifest.passed

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
        frame = 1 / self.frame_rate
        duration = seconds("duration", duration, frame, f"more than 0: {frame:g} s (a frame) at least")
        number("extend_stride", extend_stride, "seconds")
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
        if not levels or not 1 <= integer("eval_q", eval_q, 0) <= levels:
            raise ValueError(f"eval_q: got {eval_q}, this model has {levels} levels of style")
        number("excerpt_length", excerpt_length, f"seconds, {LONGEST:g} at most", high=LONGEST)
        if excerpt_start is not None:
            number("excerpt_start", excerpt_start, f"seconds, {LONGEST:g} at most, or None", high=LONGEST)
        if not excerpt_length > 0 or (excerpt_start is not None and not excerpt_start >= 0):
            raise ValueError(f"excerpt: got {excerpt_length} s from {excerpt_start} s, expected seconds from 0 up")
        self.excerpt = Excerpt(eval_q, excerpt_length, excerpt_start)

    def set_custom_progress_callback(self, progress_callback: Progress | None = None) -> None:
        """Called with (columns done, columns in all) as they are drawn; an exception in it ends the generation."""
        if progress_callback is not None and not callable(progress_callback):
            raise ValueError(f"progress_callback: got {shown(progress_callback)}, expected a function, or None")
        self._progress = progress_callback

    def generate(
        self,
        descriptions: Descriptions,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
        takes: int = 1,
        negative_descriptions: Descriptions | None = None,
        musical_time: MusicalTime | None = None,
    ) -> Result:
        """Music for each description: float32 [B, channels, samples], with return_tokens (audio, codes [B, K, T]).

        negative_descriptions: per description a text that guidance leads away from, or None: what the unconditional row
        is conditioned on. Counts for nothing with cfg_coef 1. musical_time: whole bars in place of `duration`.
        """
        if musical_time is not None:
            if musical_time.prompt_bars is not None:
                raise ValueError(f"prompt_bars: got {musical_time.prompt_bars}, expected None: there is no prompt")
            model, frames = self._of_bars(musical_time, None)
            found = model.generate(descriptions, progress, return_tokens, seed, takes, negative_descriptions)
            return _part(found, frames)
        return self._finish(
            self._begin(descriptions, seed, takes, negatives=negative_descriptions), progress, return_tokens
        )

    def generate_unconditional(
        self, num_samples: int, progress: bool = False, return_tokens: bool = False, seed: Seed = None
    ) -> Result:
        """Music without a description: float32 [num_samples, channels, samples]."""
        return self.generate(
            [None], progress, return_tokens, seed, takes=integer("num_samples", num_samples, 1, MOST_TAKES)
        )

    def generate_with_chroma(
        self,
        descriptions: Descriptions,
        melody_wavs: Wavs,
        melody_sample_rate: int,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
        takes: int = 1,
        negative_descriptions: Descriptions | None = None,
    ) -> Result:
        """Music for descriptions that follows melodies, or in style models has the style of audio.

        melody_wavs: float [B, channels, samples], [channels, samples], or a list of the latter with None for no melody;
        any rate and channels. The audio is taken as it is, where audiocraft keeps only the vocals and other stems that
        demucs separates: pass the sum of those if drums or bass would drown the melody.
        """
        wavs = self._wavs(descriptions, melody_wavs, melody_sample_rate, seed)
        generation = self._begin(descriptions, seed, takes, self_wav=wavs, negatives=negative_descriptions)
        return self._finish(generation, progress, return_tokens)

    def generate_with_style(
        self,
        descriptions: Descriptions,
        style_features: PerRow,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
        takes: int = 1,
        negative_descriptions: Descriptions | None = None,
    ) -> Result:
        """Music for descriptions in the style of some audio: its MERT features [F, width], or None, per description."""
        wavs = self._reference().of_features(descriptions, style_features)
        generation = self._begin(descriptions, seed, takes, self_wav=wavs, negatives=negative_descriptions)
        return self._finish(generation, progress, return_tokens)

    def generate_continuation(
        self,
        prompt: Prompt | None = None,
        prompt_sample_rate: int | None = None,
        descriptions: Descriptions | None = None,
        progress: bool = False,
        return_tokens: bool = False,
        seed: Seed = None,
        melody_wavs: Wavs | None = None,
        melody_sample_rate: int | None = None,
        takes: int = 1,
        negative_descriptions: Descriptions | None = None,
        prompt_codes: np.ndarray | None = None,
        musical_time: MusicalTime | None = None,
    ) -> Result:
        """Continue audio to `duration` seconds in all, the prompt included, as the codec renders it.

        prompt: float [P, channels, samples], [channels, samples], or a list of the latter of one length; any rate and
        channels; torch tensors too. prompt_codes: in place of it int [P, K, frames], such as the codes of return_tokens
        or the first frames of them: continued as they are, without another way through the codec.
        Row b of the result is drawn with seed + b. melody_wavs: as in generate_with_chroma. negative_descriptions: as
        in generate. Returns float32 [P x takes, channels, samples], with return_tokens beside it the codes
        [P x takes, K, T]. Raises ValueError before anything is generated.

        musical_time: whole bars in place of `duration`: the prompt is cut to prompt_bars (None: all that it has) up to
        its last bar line, and the audio has exactly `bars` (None: those in `duration`) from the prompt's first bar line
        on. The codes are of whole frames: they may begin before the audio, and end after it.
        """
        if musical_time is not None:
            if prompt is None or prompt_codes is not None:
                raise ValueError("musical_time: cuts a prompt to bars, which codes cannot be: give a prompt")
            model, wav, frames = self._prompt_of_bars(musical_time, prompt, prompt_sample_rate)
            options = (seed, melody_wavs, melody_sample_rate, takes, negative_descriptions)
            found = model.generate_continuation(wav, self.sample_rate, descriptions, progress, return_tokens, *options)
            return _part(found, frames)
        given, melodies = (prompt, prompt_sample_rate, prompt_codes), (melody_wavs, melody_sample_rate)
        generation = self._continue(*given, descriptions, seed, *melodies, takes, negative_descriptions)
        return self._finish(generation, progress, return_tokens)

    def begin(
        self,
        descriptions: Descriptions | None = None,
        prompt: Prompt | None = None,
        prompt_sample_rate: int | None = None,
        seed: Seed = None,
        melody_wavs: Wavs | None = None,
        melody_sample_rate: int | None = None,
        takes: int = 1,
        negative_descriptions: Descriptions | None = None,
        prompt_codes: np.ndarray | None = None,
    ) -> Generation:
        """A generation to drive yourself: each step of iterating over it draws a column, and codes() are the frames
        that are complete, for codec.decode. Arguments: as of generate_continuation, or without a prompt of generate.
        """
        if prompt is not None or prompt_codes is not None:
            given, melodies = (prompt, prompt_sample_rate, prompt_codes), (melody_wavs, melody_sample_rate)
            return self._continue(*given, descriptions, seed, *melodies, takes, negative_descriptions)
        descriptions = [None] if descriptions is None else descriptions
        wavs = None if melody_wavs is None else self._wavs(descriptions, melody_wavs, melody_sample_rate, seed)
        return self._begin(descriptions, seed, takes, self_wav=wavs, negatives=negative_descriptions)

    def stream(
        self,
        descriptions: Descriptions,
        chunk_seconds: float = 1.0,
        seed: Seed = None,
        takes: int = 1,
        negative_descriptions: Descriptions | None = None,
    ) -> Iterator[np.ndarray]:
        """generate's audio in chunks, as stream_continuation gives them."""
        size = self._chunk(chunk_seconds)
        return self._stream(self._begin(descriptions, seed, takes, negatives=negative_descriptions, whole=False), size)

    def stream_with_chroma(
        self,
        descriptions: Descriptions,
        melody_wavs: Wavs,
        melody_sample_rate: int,
        chunk_seconds: float = 1.0,
        seed: Seed = None,
        takes: int = 1,
        negative_descriptions: Descriptions | None = None,
    ) -> Iterator[np.ndarray]:
        """generate_with_chroma's audio in chunks, as stream_continuation gives them."""
        size = self._chunk(chunk_seconds)
        wavs = self._wavs(descriptions, melody_wavs, melody_sample_rate, seed)
        generation = self._begin(descriptions, seed, takes, self_wav=wavs, negatives=negative_descriptions, whole=False)
        return self._stream(generation, size)

    def stream_continuation(
        self,
        prompt: Prompt | None = None,
        prompt_sample_rate: int | None = None,
        descriptions: Descriptions | None = None,
        chunk_seconds: float = 1.0,
        seed: Seed = None,
        melody_wavs: Wavs | None = None,
        melody_sample_rate: int | None = None,
        takes: int = 1,
        negative_descriptions: Descriptions | None = None,
        prompt_codes: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """generate_continuation's audio in chunks, while it is still being generated.

        Yields float32 [P x takes, channels, chunk_seconds x rate], the last one shorter. The prompt's own chunks come
        at once. A thread generates and decodes ahead of the consumer: it goes on while a chunk is played, calls the
        progress callback, and ends when the iterator is closed.
        """
        size = self._chunk(chunk_seconds)
        given, melodies = (prompt, prompt_sample_rate, prompt_codes), (melody_wavs, melody_sample_rate)
        generation = self._continue(*given, descriptions, seed, *melodies, takes, negative_descriptions, whole=False)
        return self._stream(generation, size)

    def _chunk(self, chunk_seconds: float) -> int:
        """The frames of a chunk. Raises ValueError."""
        size = round(
            number("chunk_seconds", chunk_seconds, f"seconds, {LONGEST:g} at most", high=LONGEST) * self.frame_rate
        )
        if size < 1:
            raise ValueError(f"chunk_seconds: got {chunk_seconds}, expected {1 / self.frame_rate} (a frame) or more")
        return size

    def _stream(self, generation: Generation, size: int) -> Iterator[np.ndarray]:
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

    def _of_bars(self, time: MusicalTime, prompt_seconds: float | None) -> tuple["MusicGen", Frames]:
        """The same model with the duration of whole bars. prompt_seconds: what a prompt has; None: no prompt."""
        time.validate()
        if prompt_seconds is None:
            time = replace(time, bars=time.bars or max(1, int(self.duration / time.bar + 1e-9)))
        else:
            time = time.resolved(prompt_seconds, self.duration)
            time.validate()
        frames = Frames.of(time, self.sample_rate, self.codec.hop)
        model = copy.copy(self)
        model.duration = seconds_of(frames.total, self.frame_rate)
        if model.duration > self.max_duration:  # windows round once more: half a frame keeps them from losing one
            model.duration = (frames.total + 0.5) / self.frame_rate
        return model, frames

    def _prompt_of_bars(
        self, time: MusicalTime, prompt: Prompt, rate: int | None
    ) -> tuple["MusicGen", np.ndarray, Frames]:
        """The model for whole bars, and the prompt's at the codec's rate. They end on a bar line and are whole frames:
        before the first bar line is more of the prompt, or silence where it has not begun."""
        time.validate()
        wav, from_rate = as_batch(prompt, "prompt"), sample_rate("prompt_sample_rate", rate)
        whole = max(0, time.whole_bars(wav.shape[2], from_rate))
        model, frames = self._of_bars(time, whole * time.bar)
        time = replace(time, prompt_bars=time.prompt_bars or max(1, whole))
        _, end = time.prompt(wav.shape[2], from_rate, at_end=True)
        wanted = frames.prompt * self.codec.hop
        needed = math.ceil(wanted * from_rate / self.sample_rate)  # the same time, or a sample more
        last = np.pad(wav[:, :, max(0, end - needed) : end], ((0, 0), (0, 0), (max(0, needed - end), 0)))
        return model, convert_audio(last, from_rate, self.sample_rate, self.audio_channels)[:, :, -wanted:], frames

    def _prompt(self, prompt: Prompt | None, rate: int | None, codes: np.ndarray | None) -> Prepared:
        """A prompt, checked: its frames, its rows, and how to get its codes. Raises ValueError."""
        if (prompt is None) == (codes is None):
            raise ValueError(f"give prompt or prompt_codes: got {'neither' if prompt is None else 'both'}")
        if prompt is None:
            found = self.lm.check_codes(codes)
            return Prepared(len(found), found.shape[2], lambda: found)
        wav, from_rate = as_batch(prompt, "prompt"), sample_rate("prompt_sample_rate", rate)
        convert = lambda: convert_audio(wav, from_rate, self.sample_rate, self.audio_channels)  # noqa: E731
        known = math.ceil(wav.shape[2] / from_rate * self.frame_rate)
        return Prepared(len(wav), known, lambda: self.codec.encode(convert()))

    def _continue(
        self,
        wav: Prompt | None,
        rate: int | None,
        codes: np.ndarray | None,
        descriptions: Descriptions | None,
        seed: Seed,
        melody_wavs: Wavs | None,
        melody_sample_rate: int | None,
        takes: int,
        negatives: Descriptions | None,
        whole: bool = True,
    ) -> Generation:
        prompt = self._prompt(wav, rate, codes)
        self._plan(prompt.frames)
        descriptions = texts(
            "descriptions", [None] * prompt.rows if descriptions is None else descriptions, prompt.rows
        )
        if negatives is not None:
            negatives = texts("negative_descriptions", negatives, prompt.rows)
        takes = integer("takes", takes, 1, MOST_TAKES)
        if seed is not None:
            seeds(seed, prompt.rows * takes)
        wavs = None
        if melody_wavs is not None:
            wavs = self._wavs(descriptions, melody_wavs, melody_sample_rate, seed)
        self._require_memory(prompt, descriptions, takes, whole)
        return self._begin(descriptions, seed, takes, prompt.codes(), wavs, negatives, whole)

    def _begin(
        self,
        descriptions: Descriptions,
        seed: Seed,
        takes: int,
        codes: np.ndarray | None = None,
        self_wav: SelfWav | None = None,
        negatives: Descriptions | None = None,
        whole: bool = True,
    ) -> Generation:
        """whole: all of the audio is kept at the same time."""
        descriptions = texts("descriptions", descriptions)
        negatives = None if negatives is None else texts("negative_descriptions", negatives, len(descriptions))
        takes = integer("takes", takes, 1, MOST_TAKES)
        if codes is None:
            self._require_memory(
                Prepared(max(1, len(descriptions)), 0, lambda: np.zeros(0)), descriptions, takes, whole
            )
        if seed is not None:
            seeds(seed, len(descriptions) * takes)
        return self.lm.begin(
            codes,
            self._states(descriptions),
            self_wav,
            negative_states=None if negatives is None else self._states(negatives),
            duration=self.duration,
            max_duration=self.max_duration,
            extend_stride=self.extend_stride,
            batch=len(descriptions),
            takes=takes,
            sampling=self.sampling,
            seed=seed,
        )

    def _plan(self, prompt: int) -> Windows:
        """The windows after a prompt of so many frames, with the settings of now. Raises ValueError."""
        frame = f"{1 / self.frame_rate:g} s (a frame) or more"
        seconds("duration", self.duration, 1 / self.frame_rate, frame)
        seconds("max_duration", self.max_duration, 1 / self.frame_rate, frame, LONGEST_WINDOW)
        number("extend_stride", self.extend_stride, "seconds")
        return plan(self.duration, self.max_duration, self.extend_stride, self.frame_rate, prompt)

    def _require_memory(self, prompt: Prepared, descriptions: Descriptions, takes: int, whole: bool) -> None:
        """Raise ValueError if this machine has not enough memory, before a prompt or a text is encoded."""
        guidance = self.sampling.guidance if any(descriptions) else "none"
        windows, rows = self._plan(prompt.frames), prompt.rows * takes
        need = memory.of_generation(self.lm.manifest, rows, windows, guidance, whole=whole)
        name = "takes" if takes > 1 else "descriptions" if prompt.rows > 1 else "duration"
        memory.require(name, need, f"{rows} takes of {self.duration:g} s")

    def _states(self, descriptions: Descriptions) -> PerRow | None:
        """What the text encoder makes of descriptions; None if there are none. Raises BundleError without one."""
        if not any(descriptions):
            return None
        if self.text is None:
            folder = self.lm.manifest.folder
            raise BundleError(f"{folder}: contains no text encoder for a description; export it again with --text")
        return self.text.encode(descriptions)

    def _wavs(self, descriptions: Descriptions, wavs: Wavs, rate: int | None, seed: Seed) -> SelfWav | None:
        return self._reference().of_audio(descriptions, wavs, rate, seed)

    def _reference(self) -> Reference:
        """How melodies and styles are read, with the settings of now."""
        window = self.max_duration if self.duration > self.max_duration else None
        return Reference(self.lm, self.mert, self.sample_rate, self.audio_channels, window, self.excerpt)


def _part(found: Result, frames: Frames) -> Result:
    """A result whose audio is the bars alone."""
    bars = slice(frames.first, frames.first + frames.length)
    return (found[0][:, :, bars], found[1]) if isinstance(found, tuple) else found[:, :, bars]
