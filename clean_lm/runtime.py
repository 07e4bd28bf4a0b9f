"""The loop around the graphs, in numpy and ONNX Runtime: what a port to another language copies.

columns = delay(prompt)                    known, unknown and special places
cross   = lm_condition(texts)              once; no rows for null text
lm_inference(columns of the prompt)        fills the caches, draws the next column
lm_inference(one column), again and again  until no column is left
codes   = undelay(columns)                 and from the start with the last of them, where a window ends

Melody and style models have in place of cross a prefix, [melody or style | text], which the first call reads before
the columns.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import onnxruntime as ort

from clean_lm.delay_pattern import UNKNOWN, delay, prefill_length, undelay
from clean_lm.manifest import BundleError, Graph, LoadOptions, Manifest
from clean_lm.philox import uniforms
from clean_lm.two_step import TwoStep
from clean_lm.windows import Window, windows

CACHE_UPDATES = ("in_place", "new_columns")
SETTINGS = ("cfg_coef", "temperature", "top_k", "top_p")
SELF_WAV = {"melody": "lm_melody", "style": "lm_style"}  # what a model may be told beside a text, and its graph


Rows = Sequence[np.ndarray | None]  # what each row of a batch is told; None: nothing
SelfWav = Callable[[float], Rows]  # by the start of a window in seconds


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn; audiocraft's names."""

    use_sampling: bool = True  # False: greedy
    temperature: float = 1.0  # 0: greedy
    top_k: int = 250  # keep the k most probable codes; 0: all
    top_p: float = 0.0  # keep the most probable codes up to this sum; > 0 goes before top_k
    cfg_coef: float = 3.0  # classifier-free guidance; where nothing is told it changes nothing
    cfg_coef_beta: float | None = None  # double guidance: how much more the text counts than melody or style; None: off
    two_step_cfg: bool = (
        False  # nulls apart from what is told; melody and style models are others then, see two_step.py
    )

    def check(self) -> None:
        """Raise ValueError where a value is out of range."""
        if not self.temperature >= 0:
            raise ValueError(f"temperature: got {self.temperature}, expected 0 or more")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise ValueError(f"top_k: got {self.top_k}, expected a whole number from 0 (off) up")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, expected 0 (off) to 1")
        if not np.isfinite(self.cfg_coef):
            raise ValueError(f"cfg_coef: got {self.cfg_coef}, expected a finite number")
        if self.cfg_coef_beta is not None and not np.isfinite(self.cfg_coef_beta):
            raise ValueError(f"cfg_coef_beta: got {self.cfg_coef_beta}, expected a finite number or None")

    def apart(self) -> "Sampling":
        """Of what is told alone, without guidance."""
        return replace(self, cfg_coef=1.0)

    def inputs(self) -> dict[str, float]:
        """By the names of the graph's inputs."""
        named = {name: getattr(self, name) for name in SETTINGS}
        named["temperature"] *= self.use_sampling
        return named | {"cfg_coef_beta": 1.0 if self.cfg_coef_beta is None else self.cfg_coef_beta}


Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Conditioning:
    """What a generation is told, as lm_inference takes it."""

    rows: int  # B without guidance, 2B with it, 3B with double guidance: nulls last
    alike: bool  # every row of the batch is told the same
    cross: Mapping[str, np.ndarray]  # every layer's keys and values of the texts
    prefix: np.ndarray | None  # [R, M, dim], read before the first column in melody and style models


class Decoder:
    """The caches of one generation, and the model called on it column by column."""

    def __init__(
        self, graph: Graph, in_place: bool, batch: int, capacity: int, conditions: Conditioning, sampling: Sampling
    ):
        """capacity: of columns, the prefix not counted."""
        self.graph, self.in_place, self.conditions, self.sampling = graph, in_place, conditions, sampling
        self.rows, self.filled = conditions.rows, 0  # places of the caches that are taken, the prefix's among them
        self.before = 0 if conditions.prefix is None else conditions.prefix.shape[1]
        self.capacity = capacity
        sizes = {"batch": batch, "rows": self.rows, "capacity": self.before + capacity, "columns": 1, "prefix": 0}
        self.caches = {name: graph.zeros(name, sizes) for name in graph.inputs if name.startswith("past_key_values.")}
        self.position, self.uniform = graph.zeros("position", sizes), graph.zeros("uniform", sizes)
        self.next_codes, self.logits = graph.zeros("next_codes", sizes), graph.zeros("logits", sizes)
        self.inputs = {**self.caches, **conditions.cross, "position": self.position, "uniform": self.uniform}
        for name, value in sampling.inputs().items():
            if name in graph.inputs:
                self.inputs[name] = graph.zeros(name, sizes)
                self.inputs[name][...] = value
        self.no_prefix = {} if conditions.prefix is None else {"prefix": graph.zeros("prefix", sizes)}
        self.step = self._bind({"codes": graph.zeros("codes", sizes), **self.no_prefix})

    @property
    def columns(self) -> int:
        """How many columns the caches hold."""
        return max(0, self.filled - self.before)

    def restart(self, conditions: Conditioning) -> None:
        """Forget all columns, for another prefix of the same size."""
        assert conditions.rows == self.rows
        self.conditions, self.filled = conditions, 0

    def __call__(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Read columns int64 [B, K, S] and draw the one after the last with uniform [B, K] -> int64 [B, K].

        The first call takes any number of columns, those after it one. Raises ValueError where they do not fit.
        """
        new, prefix = codes.shape[2], self.conditions.prefix
        if self.filled and new != 1:
            raise ValueError(f"{new} columns after the first {self.columns}: expected one at a time")
        if self.columns + new > self.capacity:
            raise ValueError(f"{self.columns} + {new} columns do not fit the caches' capacity of {self.capacity}")
        if not self.filled and self._once(codes):
            self._read_once(codes[:1, :, :-1])
            codes, new = codes[:, :, -1:], 1
        guidance = self.rows // len(codes)
        feeds = {"codes": np.tile(codes, (guidance, 1, 1)), **self.no_prefix}
        if prefix is not None and not self.filled:
            feeds["prefix"], new = prefix, self.before + new
        binding, arrays, presents = self.step if new == 1 else self._bind(feeds)
        arrays["codes"][...] = feeds["codes"]  # conditioned rows, then unconditioned
        self.position[0], self.uniform[...] = self.filled, uniform
        self.graph.session.run_with_iobinding(binding)
        for name, present in presents.items():  # not in place: the new places alone come back
            self.caches[name][:, :, self.filled : self.filled + new] = present
        self.filled += new
        return self.next_codes

    def _once(self, codes: np.ndarray) -> bool:
        """Whether several takes of one prompt begin, with something that they can share."""
        return self.conditions.alike and len(codes) > 1 and self.before + codes.shape[2] > 1 and _same(codes)

    def _read_once(self, codes: np.ndarray) -> None:
        """Read the prefix and columns [1, K, S] for all takes."""
        batch, told = len(self.uniform), self.conditions
        prefix = None if told.prefix is None else told.prefix[::batch]
        cross = {name: array[:1] for name, array in told.cross.items()}
        once = Conditioning(self.rows // batch, True, cross, prefix)
        one = Decoder(self.graph, self.in_place, 1, codes.shape[2], once, self.sampling)
        one(codes, np.zeros((1, codes.shape[1]), np.float32))
        self.filled = one.filled
        for name, cache in self.caches.items():
            cache[:, :, : self.filled] = one.caches[name].repeat(batch, axis=0)

    def _bind(
        self, feeds: Mapping[str, np.ndarray]
    ) -> tuple[ort.IOBinding, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Bind arrays to the graph once; they are then read and written where they lie."""
        feeds = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        new = feeds["codes"].shape[2] + (feeds["prefix"].shape[1] if "prefix" in feeds else 0)
        binding = self.graph.session.io_binding()
        for name, array in {**self.inputs, **feeds}.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        outputs, presents = {"next_codes": self.next_codes, "logits": self.logits}, {}
        for name, cache in self.caches.items():
            present = cache
            if not self.in_place:
                present = np.empty((*cache.shape[:2], new, cache.shape[3]), cache.dtype)
                presents[name] = present
            outputs[name.replace("past_key_values", "present")] = present
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding, feeds, presents


def _same(rows: np.ndarray) -> bool:
    """Whether the rows of an array are all the same."""
    return bool((rows == rows[:1]).all())


def _alike(rows: Rows) -> bool:
    """Whether all rows are told the same."""
    first = rows[0]
    return all(x is first or (x is not None and first is not None and np.array_equal(x, first)) for x in rows)


def _padded(rows: Rows, zeros: np.ndarray) -> np.ndarray:
    """rows [N, ...] written into zeros [R, longest, ...]; None leaves them."""
    for row, array in zip(zeros, rows, strict=True):
        if array is not None:
            row[: len(array)] = array
    return zeros


class Generation:
    """One generation under way. Iterating draws column after column: the loop that a port writes."""

    def __init__(
        self,
        decoder: Decoder | TwoStep,
        prompt: np.ndarray,
        cut: Sequence[Window],
        delays: Sequence[int],
        special_token: int,
        uniform: np.ndarray,
        conditions: Callable[[Window], Conditioning],
    ):
        """prompt int64 [B, K, P], uniform [columns in all, B, K]; conditions: what each window is told."""
        self.decoder, self.delays, self.special_token = decoder, delays, special_token
        self.windows, self.uniform, self.conditions = cut, uniform, conditions
        self.all = np.zeros((*prompt.shape[:2], cut[-1].end), np.int64)
        self.all[:, :, : prompt.shape[2]] = prompt
        self.frames = prompt.shape[2]  # that have all their codes
        self.total = columns_drawn(cut, delays)

    def __iter__(self) -> Iterator[int]:
        """Gives how many columns of `total` are drawn, after each."""
        done = 0
        for window in self.windows:
            if done:
                self.decoder.restart(self.conditions(window))
            frames = self.all[:, :, window.start : window.end]
            columns = delay(frames[:, :, : window.known], self.delays, window.frames, self.special_token)
            prefill = prefill_length(window.known, self.delays)
            new = columns[:, :, :prefill]
            for s in range(prefill, columns.shape[2]):
                codes = self.decoder(new, self.uniform[done])
                columns[:, :, s] = np.where(columns[:, :, s] == UNKNOWN, codes, columns[:, :, s])
                new = columns[:, :, s : s + 1]
                t = s - max(self.delays) - 1  # the frame that the column completes
                if t >= window.known:
                    frames[:, :, t] = undelay(columns[:, :, t : s + 1], self.delays)[:, :, 0]
                    self.frames = window.start + t + 1
                done += 1
                yield done

    def codes(self) -> np.ndarray:
        """The frames that are complete: int64 [B, K, frames]."""
        return self.all[:, :, : self.frames].copy()


def columns_drawn(cut: Sequence[Window], delays: Sequence[int]) -> int:
    """How many columns all windows draw."""
    return sum(w.frames + max(delays) + 1 - prefill_length(w.known, delays) for w in cut)


class How(TypedDict, total=False):
    """How to generate: the arguments of LanguageModel.generate_codes by name."""

    frames: int | None  # in all, the prompt included: more than the prompt has; in one window, however long
    duration: float | None  # or seconds, where the bundle knows its frame rate; in windows of max_duration
    max_duration: float  # seconds of a window: what the model was trained on, where not given
    extend_stride: float  # seconds from one window to the next: the bundle's default, where not given
    batch: int | None  # rows, where neither a prompt nor texts say it
    sampling: Sampling | None  # None: the bundle's defaults
    seed: int | Sequence[int] | None  # take b is drawn with seed + b, or its own of a list; None: a new one each time
    uniform: np.ndarray | None  # float32 [steps, B, K] in [0, 1) in place of a seed


class LanguageModel:
    """lm_inference, lm_condition and lm_melody or lm_style of a bundle. Safe to call from several threads."""

    def __init__(self, manifest: Manifest, lm: Graph, condition: Graph, self_wav: Graph | None = None):
        self.manifest, self.lm, self.condition, self.wav = manifest, lm, condition, self_wav
        model = manifest.need("model", "delays", "codebooks", "card", "special_token", "text_dim", "frame_rate")
        self.delays: list[int] = model["delays"]
        self.codebooks: int = model["codebooks"]
        self.card: int = model["card"]
        self.special_token: int = model["special_token"]
        self.text_dim: int = model["text_dim"]
        self.frame_rate: float | None = model["frame_rate"]
        self.max_duration: float = manifest.need("model", "max_duration")["max_duration"]
        self.kind: str | None = model.get("self_wav")  # "melody", "style" or None
        update = manifest.tree.get("cache_update")
        if update not in CACHE_UPDATES:
            raise BundleError(f"{manifest.folder}: cache_update is {update!r}, expected one of {CACHE_UPDATES}")
        self.in_place = update == "in_place"
        defaults = manifest.need("defaults", "extend_stride", *SETTINGS)
        self.sampling = Sampling(use_sampling=True, **{name: defaults[name] for name in SETTINGS})
        self.extend_stride: float = defaults["extend_stride"]

    @classmethod
    def load(cls, bundle: Path | str, **loading: Unpack[LoadOptions]) -> "LanguageModel":
        """Open a bundle, see LoadOptions. Raises FileNotFoundError and BundleError, naming the file."""
        return cls.open(Manifest.read(bundle, **loading))

    @classmethod
    def open(cls, manifest: Manifest) -> "LanguageModel":
        kind = manifest.need("model").get("self_wav")
        wav = manifest.graph(SELF_WAV[kind]) if kind else None
        return cls(manifest, manifest.graph("lm_inference").open(), manifest.graph("lm_condition"), wav)

    def generate_codes(
        self,
        prompt_codes: np.ndarray | None = None,
        text_states: Rows | None = None,
        self_wav: SelfWav | None = None,
        *,
        callback: Callable[[int, int], None] | None = None,
        **how: Unpack[How],
    ) -> np.ndarray:
        """Continue codes to `frames` in all, the prompt included.

        prompt_codes: int [B, K, P] in 0 .. card - 1, or None for no prompt.
        text_states: per row the text encoder's last hidden state [N, E] without padding, or None for null text.
        self_wav: in melody and style models, what stands before the text: by the start of a window in seconds, per row
        what lm_melody or lm_style made [F, dim], or None for nothing.
        callback: called with (columns done, columns in all) after each; what it raises ends the generation.
        how: see How. Returns int64 [B, K, frames]. Raises ValueError before anything is generated.
        """
        generation = self.begin(prompt_codes, text_states, self_wav, **how)
        for done in generation:
            if callback:
                callback(done, generation.total)
        return generation.codes()

    def begin(
        self,
        prompt_codes: np.ndarray | None = None,
        text_states: Rows | None = None,
        self_wav: SelfWav | None = None,
        **how: Unpack[How],
    ) -> Generation:
        """What generate_codes iterates over, for whoever wants the frames as they come."""
        sampling = how.get("sampling") or self.sampling
        sampling.check()
        batch = self._batch(prompt_codes, text_states, how.get("batch"))
        prompt = self._prompt(prompt_codes, batch)
        cut = self._windows(prompt.shape[2], how)
        uniform = self._uniform(how.get("uniform"), how.get("seed"), columns_drawn(cut, self.delays), batch)
        told = sampling.apart() if self._two_step(sampling) else sampling

        def conditions(window: Window) -> Conditioning:
            wavs = self_wav(window.start / (self.frame_rate or 1)) if self_wav else None
            return self.conditions(text_states or [None] * batch, wavs, told)

        first = conditions(cut[0])
        capacity = max(w.frames for w in cut) + max(self.delays)
        again = conditions if self_wav else lambda _: first
        decoder = self._decoder(batch, capacity, first, sampling)
        return Generation(decoder, prompt, cut, self.delays, self.special_token, uniform, again)

    def decoder(
        self, batch: int, capacity: int, text_states: Rows | None, sampling: Sampling, self_wav: Rows | None = None
    ) -> Decoder | TwoStep:
        """Empty caches for `capacity` columns, and what is told. Raises ValueError."""
        told = sampling.apart() if self._two_step(sampling) else sampling
        first = self.conditions(text_states or [None] * batch, self_wav, told)
        return self._decoder(batch, capacity, first, sampling)

    def _two_step(self, sampling: Sampling) -> bool:
        return sampling.two_step_cfg and sampling.cfg_coef_beta is None and "prefix" in self.lm.inputs

    def _decoder(self, batch: int, capacity: int, told: Conditioning, sampling: Sampling) -> Decoder | TwoStep:
        if not self._two_step(sampling):
            return Decoder(self.lm, self.in_place, batch, capacity, told, sampling)
        nulls = self.conditions([None] * batch, None, sampling)
        first, second = (Decoder(self.lm, self.in_place, batch, capacity, one, sampling) for one in (told, nulls))
        return TwoStep(first, second, sampling)

    def conditions(self, texts: Rows, wavs: Rows | None, sampling: Sampling) -> Conditioning:
        """Texts [N, E] and what lm_melody or lm_style made [F, dim], per row, as lm_inference takes them.

        Raises ValueError.
        """
        batch, prefixed = len(texts), "prefix" in self.lm.inputs
        if wavs is not None and self.wav is None:
            raise ValueError("this model takes no melody and no style: its fuser has no self_wav")
        if sampling.cfg_coef_beta is not None and self.wav is None:
            raise ValueError("cfg_coef_beta: this model has no melody or style beside which a text could count more")
        wavs = wavs or [None] * batch
        if len(wavs) != batch:
            raise ValueError(f"rows: got {len(wavs)} melodies or styles for {batch} rows, expected one each")
        self._check_texts(texts)
        nulls: Rows = [None] * batch
        told = [(texts, wavs)]
        if sampling.cfg_coef_beta is not None and any(text is not None for text in texts):
            told += [(nulls, wavs), (nulls, nulls)]
        # Where nothing is told, both guidance rows would be the same, so one is exact; so is coefficient 1.
        elif sampling.cfg_coef != 1 and any(row is not None for row in (*texts, *wavs)):
            told += [(nulls, nulls)]
        rows, alike = len(told) * batch, _alike(texts) and _alike(wavs)
        if prefixed:
            every = [[row for group in told for row in group[part]] for part in (0, 1)]
            prefix = np.concatenate([self._self_wav(every[1]), self._description(every[0])], axis=1)
            return Conditioning(rows, alike, {}, prefix)
        if all(text is None for text in texts):  # nulls have no text to attend to
            sizes = {"texts": 0, "text": 1}
            cross = {n: self.lm.zeros(n, sizes) for n in self.lm.inputs if n.startswith("cross_key_values.")}
            return Conditioning(rows, alike, cross, None)
        return Conditioning(rows, alike, self._condition(texts), None)

    @cached_property
    def null_wav(self) -> np.ndarray | None:
        """What stands for no melody [F, dim]: silence is one, and not zeros. None in style models: zeros."""
        if self.wav is None or "audio" not in self.wav.inputs:
            return None
        (row,) = self.wav.session.run(["self_wav"], {"audio": np.zeros((1, 1), np.float32)})
        return np.asarray(row)[0]

    def _self_wav(self, rows: Rows) -> np.ndarray:
        """[R, F, dim], the shorter ones padded with zeros."""
        rows = [self.null_wav if row is None else row for row in rows]
        dim = self.lm.inputs["prefix"]["shape"][2]
        for row in rows:
            if row is not None and (row.ndim != 2 or row.shape[1] != dim or not np.isfinite(row).all()):
                raise ValueError(f"self_wav: got {list(row.shape)}, expected finite numbers [F, {dim}]")
        # Where no row has any, audiocraft leaves one place of zeros.
        longest = max((len(row) for row in rows if row is not None), default=int(self.wav is not None))
        return _padded(rows, self.lm.zeros("prefix", {"rows": len(rows), "prefix": longest}))

    def _description(self, rows: Rows) -> np.ndarray:
        """Texts [N, E] -> [R, N, dim], padded with zeros to the longest; zeros for null text."""
        texts = [row for row in rows if row is not None]
        longest = max((len(text) for text in texts), default=1)
        found = iter(self._condition(texts)["description"]) if texts else iter(())
        projected = [None if row is None else next(found)[: len(row)] for row in rows]
        return _padded(projected, self.lm.zeros("prefix", {"rows": len(rows), "prefix": longest}))

    def _check_texts(self, texts: Rows) -> None:
        for row, text in enumerate(texts):
            if text is not None and (text.ndim != 2 or text.shape[1] != self.text_dim or not len(text)):
                raise ValueError(f"text_states[{row}]: got {list(text.shape)}, expected [N, {self.text_dim}], N > 0")
            if text is not None and not np.isfinite(text).all():
                raise ValueError(f"text_states[{row}]: got NaN or infinity, expected finite numbers")

    def _condition(self, texts: Rows) -> dict[str, np.ndarray]:
        """lm_condition of texts (None: null text): every layer's keys and values, or the text's part of a prefix.

        Texts are padded with zeros to the longest: nothing masks them later, so padding is part of the model.
        """
        sizes = {"texts": len(texts), "text": max((len(text) for text in texts if text is not None), default=1)}
        states = _padded(texts, self.condition.zeros("text_states", sizes))
        mask = self.condition.zeros("text_mask", sizes)
        for row, text in enumerate(texts):
            mask[row, : 0 if text is None else len(text)] = 1
        names = list(self.condition.outputs)
        found = self.condition.session.run(names, {"text_states": states, "text_mask": mask})
        return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}

    def _batch(self, prompt: np.ndarray | None, texts: Sequence[np.ndarray | None] | None, batch: int | None) -> int:
        said = {"prompt_codes": len(prompt) if prompt is not None else None, "batch": batch}
        said["text_states"] = len(texts) if texts is not None else None
        sizes = {name: size for name, size in said.items() if size is not None}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ValueError(f"rows: got {sizes}, expected one number above 0")
        return next(iter(sizes.values()), 1)

    def _prompt(self, codes: np.ndarray | None, batch: int) -> np.ndarray:
        if codes is None:
            return np.zeros((batch, self.codebooks, 0), dtype=np.int64)
        codes = np.asarray(codes)
        if codes.dtype.kind not in "iu":
            raise ValueError(f"prompt_codes: got {codes.dtype}, expected integers")
        if codes.ndim != 3 or codes.shape[1] != self.codebooks:
            raise ValueError(f"prompt_codes: got shape {list(codes.shape)}, expected [B, {self.codebooks}, P]")
        if codes.size and (codes.min() < 0 or codes.max() >= self.card):
            raise ValueError(f"prompt_codes: got {codes.min()} .. {codes.max()}, expected 0 .. {self.card - 1}")
        return codes.astype(np.int64)

    def _windows(self, prompt: int, how: How) -> list[Window]:
        frames, duration = how.get("frames"), how.get("duration")
        if (frames is None) == (duration is None):
            raise ValueError(f"give frames or duration: got frames {frames}, duration {duration}")
        if duration is None:
            if frames is None or frames != int(frames):
                raise ValueError(f"frames: got {frames}, expected a whole number")
            cut = [Window(0, prompt, int(frames))]
        else:
            if self.frame_rate is None:
                raise ValueError("duration: this bundle does not know its frame rate (no codec in it); give frames")
            longest, stride = how.get("max_duration", self.max_duration), how.get("extend_stride", self.extend_stride)
            cut = windows(duration, longest, stride, self.frame_rate, prompt)
        if not cut or cut[-1].end <= prompt:
            all_of_it = cut[-1].end if cut else prompt
            raise ValueError(f"{all_of_it} frames in all, the prompt has {prompt}: expected more than the prompt")
        return cut

    def _uniform(
        self, uniform: np.ndarray | None, seed: int | Sequence[int] | None, steps: int, batch: int
    ) -> np.ndarray:
        if uniform is None:
            seed = secrets.randbits(32) if seed is None else seed
            seeds = [seed + b for b in range(batch)] if isinstance(seed, int) else list(seed)
            if len(seeds) != batch or not all(0 <= s < 2**64 for s in seeds):
                raise ValueError(f"seed: got {seed}, expected a number from 0 to 2^64 - {batch}, or {batch} of them")
            return np.stack([uniforms(s, steps, self.codebooks) for s in seeds], axis=1)
        if uniform.shape != (steps, batch, self.codebooks):
            raise ValueError(f"uniform: got {list(uniform.shape)}, expected {[steps, batch, self.codebooks]}")
        if not ((uniform >= 0) & (uniform < 1)).all():
            raise ValueError(f"uniform: got {uniform.min()} .. {uniform.max()}, expected draws in [0, 1)")
        return uniform
