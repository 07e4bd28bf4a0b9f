"""The loop around the graphs, in numpy and ONNX Runtime: what a port to another language copies.

columns = delay(prompt)                    known, unknown and special places
cross   = lm_condition(texts)              once; no rows for null text
lm_inference(columns of the prompt)        fills the caches, draws the next column
lm_inference(one column), again and again  until no column is left
codes   = undelay(columns)                 and from the start with the last of them, where a window ends

Melody and style models have in place of cross a prefix, [melody or style | text], which the first call reads before
the columns.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypedDict

import numpy as np
import onnxruntime as ort

from clean_lm.conditioning import Conditioning
from clean_lm.delay_pattern import UNKNOWN, delay, prefill_length, undelay
from clean_lm.options import LARGEST, LEAST_TEMPERATURE, flag, integer, number, shown
from clean_lm.session import Graph, run_errors
from clean_lm.windows import Window, end

SETTINGS = ("cfg_coef", "temperature", "top_k", "top_p")


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn; audiocraft's names."""

    use_sampling: bool = True  # False: greedy
    temperature: float = 1.0  # 0: greedy
    top_k: int = 250  # keep the k most probable codes; 0: all
    top_p: float = 0.0  # keep the most probable codes up to this sum; if > 0, top_k is ignored
    cfg_coef: float = 3.0  # classifier-free guidance; changes nothing where there is no condition
    cfg_coef_beta: float | None = None  # double guidance: how much more the text counts than melody or style; None: off
    two_step_cfg: bool = False  # the unconditional pass apart: other logits in melody and style models, see two_step.py

    def validate(self) -> None:
        """Raise ValueError if a value has the wrong type, is out of range, or float32 cannot compute with it."""
        flag("use_sampling", self.use_sampling)
        flag("two_step_cfg", self.two_step_cfg)
        least = f"0 (greedy) or at least {LEAST_TEMPERATURE:g}"
        if number("temperature", self.temperature, least, 0, LARGEST):
            number("temperature", self.temperature, least, LEAST_TEMPERATURE)
        try:
            integer("top_k", self.top_k)
        except ValueError:
            raise ValueError(
                f"top_k: got {shown(self.top_k)}, expected a whole number from 0 (off) to 2^63 - 1"
            ) from None
        number("top_p", self.top_p, "0 (off) to 1", 0, 1)
        number("cfg_coef", self.cfg_coef, f"a finite number, {LARGEST:g} at most", -LARGEST, LARGEST)
        if self.cfg_coef_beta is not None:
            expected = f"a finite number, {LARGEST:g} at most, or None"
            number("cfg_coef_beta", self.cfg_coef_beta, expected, -LARGEST, LARGEST)

    @property
    def guidance(self) -> str:
        """Which passes guidance needs: "none", "single" or "double"."""
        if self.cfg_coef_beta is not None:
            return "double"
        return "none" if self.cfg_coef == 1 else "single"

    def unguided(self) -> "Sampling":
        """The same without guidance: one pass of conditioned rows."""
        return replace(self, cfg_coef=1.0)

    def inputs(self) -> dict[str, float]:
        """By the names of the graph's inputs."""
        named = {name: getattr(self, name) for name in SETTINGS}
        named["temperature"] *= self.use_sampling
        return named | {"cfg_coef_beta": 1.0 if self.cfg_coef_beta is None else self.cfg_coef_beta}


class GenerationOptions(TypedDict, total=False):
    """How to generate: the arguments of LanguageModel.generate_codes by name."""

    frames: int | None  # in all, the prompt included, in one window however many
    duration: float | None  # or seconds, if the bundle knows its frame rate; in windows of max_duration
    max_duration: float  # seconds of a window; default: what the model was trained on
    extend_stride: float  # seconds from one window to the next; default: the bundle's
    batch: int | None  # prompts, if neither prompt_codes nor text_states say how many
    takes: int  # of every prompt, which is read once for all of them; default: 1
    sampling: Sampling | None  # None: the bundle's defaults
    negative_states: Sequence[np.ndarray | None] | None  # a text per prompt for its unconditional row; default: none
    seed: (
        int | Sequence[int] | np.ndarray | None
    )  # row b is drawn with seed + b, or its own of a list; None: a new one each time
    uniform: np.ndarray | None  # float32 [steps, B, K] in [0, 1) in place of a seed


class Steps(Protocol):
    """What a generation drives: a Decoder, or TwoStep, which has two of them."""

    caches: dict[str, np.ndarray]
    logits: np.ndarray

    def fetch_logits(self) -> None: ...
    def restart(self, conditioning: Conditioning) -> None: ...
    def prefill(self, columns: np.ndarray, uniform: np.ndarray) -> np.ndarray: ...
    def step(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Bound:
    """One call's inputs and outputs, bound."""

    binding: ort.IOBinding
    codes: np.ndarray  # int64 [R, K, S], to be filled before each call
    presents: Mapping[str, np.ndarray]  # new columns by the cache that they belong to, where it is not in place
    copied: Mapping[str, ort.OrtValue]  # inputs that a device reads a copy of, made where they are bound: in each call


class Decoder:
    """The KV cache of one generation, and the model called on it: a prefill, then one column a step.

    P prompts of T takes each are B = P x T rows: the takes of the first prompt, those of the second, ...

    Where the model runs on a device, the cache and what it is conditioned on stay in the device's memory:

                       codes, position, uniform
        host   --------------------------------------->   device: caches, cross-attention's keys and values, sampling
               <---------------------------------------
                 next_codes, and logits where asked for
    """

    def __init__(
        self,
        graph: Graph,
        in_place: bool,
        conditioning: Conditioning,
        capacity: int,
        sampling: Sampling,
        takes: int = 1,
        logits: bool = True,
    ):
        """conditioning: of the P prompts. capacity: columns, the prefix not counted. logits: see fetch_logits."""
        self.graph, self.in_place, self.sampling, self.takes = graph, in_place, sampling, takes
        self.prompts, self.capacity = conditioning.batch, capacity
        self.conditioning, self.filled = conditioning, 0  # places of the caches that are taken, the prefix's among them
        every = conditioning.repeat(takes)
        self.batch, self.passes, self.before = every.batch, every.passes, every.places
        rows = self.batch * self.passes
        self.sizes = {"batch": self.batch, "rows": rows, "capacity": self.before + capacity, "columns": 1, "prefix": 0}
        self.position, self.uniform = self._zeros("position"), self._zeros("uniform")
        self.next_codes, self.logits = self._zeros("next_codes"), self._zeros("logits")
        caches = {name: self._zeros(name) for name in graph.inputs if name.startswith("past_key_values.")}
        # Those in numpy's memory. A graph that gives the new columns alone has them there on every device: ONNX Runtime
        # copies no columns into the middle of an array.
        self.caches = {name: array for name, array in caches.items() if not in_place or graph.on_host(name)}
        self.held = {name: graph.value(name, array) for name, array in every.cross.items()}
        for name, array in caches.items():
            at_home = name in self.caches
            self.held[name] = ort.OrtValue.ortvalue_from_numpy(array) if at_home else graph.value(name, array)
        for name, value in sampling.inputs().items():
            if name in graph.inputs:
                array = self._zeros(name)
                array[...] = value
                self.held[name] = graph.value(name, array)
        self.no_prefix = {} if every.prefix is None else {"prefix": self._zeros("prefix")}
        self.fetches_logits = logits or graph.on_host(next(iter(caches)))
        self.bound_step = self._bind({"codes": self._zeros("codes"), **self.no_prefix})

    @property
    def columns(self) -> int:
        """How many columns the caches hold."""
        return max(0, self.filled - self.before)

    def fetch_logits(self) -> None:
        """Fill `logits` in every call from now on; on a device they are not fetched unless someone reads them."""
        if not self.fetches_logits:
            self.fetches_logits = True
            self.bound_step = self._bind({"codes": self._zeros("codes"), **self.no_prefix})

    def restart(self, conditioning: Conditioning) -> None:
        """Forget all columns, for another prefix of the same size."""
        assert (conditioning.batch, conditioning.passes) == (self.prompts, self.passes)
        self.conditioning, self.filled = conditioning, 0

    def prefill(self, columns: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Read all columns that are known and draw the next one with uniform [B, K] -> int64 [B, K].

        columns: int64 [B, K, S], or [P, K, S] if the takes of a prompt have the same: all but the last column are then
        read once for all takes. Raises ValueError if they do not fit.
        """
        assert not self.filled, "prefill comes first, or after restart"
        if self.columns + columns.shape[2] > self.capacity:
            raise ValueError(f"{columns.shape[2]} columns: expected {self.capacity} or fewer, the caches' capacity")
        if len(columns) == self.prompts and not self.caches:  # no cache on a device is copied to other rows
            columns = columns.repeat(self.takes, axis=0)
        if len(columns) == self.batch:
            return self._run(columns, uniform, self.conditioning.repeat(self.takes).prefix)
        assert len(columns) == self.prompts
        if self.before + columns.shape[2] > 1:
            self._read_once(columns[:, :, :-1])
            columns = columns[:, :, -1:]
        return self._run(columns.repeat(self.takes, axis=0), uniform, None)

    def step(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Read one column int64 [B, K, 1] and draw the one after it with uniform [B, K] -> int64 [B, K].

        Raises ValueError if the caches are full.
        """
        if codes.shape[2] != 1:
            raise ValueError(f"{codes.shape[2]} columns after the first {self.columns}: expected one at a time")
        if self.columns + 1 > self.capacity:
            raise ValueError(f"{self.columns} + 1 columns: expected {self.capacity} or fewer, the caches' capacity")
        return self._run(codes, uniform, None)

    def _read_once(self, columns: np.ndarray) -> None:
        """Read the prefix and columns [P, K, S] for all takes.

        A decoder of P rows reads them, and its caches are copied: ONNX Runtime's CPU kernel takes several new columns
        only into an empty cache.
        """
        one = Decoder(self.graph, self.in_place, self.conditioning, columns.shape[2], self.sampling)
        one.prefill(columns, np.zeros((self.prompts, columns.shape[1]), np.float32))
        self.filled = one.filled
        for name, cache in self.caches.items():
            cache[:, :, : self.filled] = one.caches[name].repeat(self.takes, axis=0)

    def _run(self, codes: np.ndarray, uniform: np.ndarray, prefix: np.ndarray | None) -> np.ndarray:
        """Read a prefix [R, M, dim] or none, then columns [B, K, S]."""
        feeds = {"codes": np.tile(codes, (self.passes, 1, 1)), **self.no_prefix}  # conditioned rows come first
        new = codes.shape[2]
        if prefix is not None:
            feeds["prefix"], new = prefix, self.before + new
        bound = self.bound_step if new == 1 else self._bind(feeds)
        bound.codes[...] = feeds["codes"]
        self.position[0], self.uniform[...] = self.filled, uniform
        with run_errors(self.graph.path):
            for name, value in bound.copied.items():
                bound.binding.bind_ortvalue_input(name, value)
            self.graph.session.run_with_iobinding(bound.binding)
        for name, present in bound.presents.items():  # not in place: the new places alone come back
            self.caches[name][:, :, self.filled : self.filled + new] = present
        self.filled += new
        return self.next_codes

    def _bind(self, feeds: Mapping[str, np.ndarray]) -> "Bound":
        """Bind everything to the graph once; it is then read and written where it lies."""
        feeds = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        new = feeds["codes"].shape[2] + (feeds["prefix"].shape[1] if "prefix" in feeds else 0)
        binding = self.graph.session.io_binding()
        arrays = {**feeds, "position": self.position, "uniform": self.uniform}
        inputs = {**self.held, **{name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        outputs, presents = {"next_codes": self.next_codes}, {}
        if self.fetches_logits:
            outputs["logits"] = self.logits
        for name in self.held:
            if not name.startswith("past_key_values."):
                continue
            present = name.replace("past_key_values", "present")
            if self.in_place:
                binding.bind_ortvalue_output(present, self.held[name])
            else:
                cache = self.caches[name]
                outputs[present] = presents[name] = np.empty((*cache.shape[:2], new, cache.shape[3]), cache.dtype)
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        changing = {"codes", "position", "uniform", *presents}
        copied = {name: inputs[name] for name in changing if not self.graph.on_host(name)}
        return Bound(binding, feeds["codes"], presents, copied)

    def _zeros(self, name: str) -> np.ndarray:
        return self.graph.zeros(name, self.sizes)


# Called with each column: logits float32 [B, K, card], codes int64 [B, K], and bool [B, K], which of them are drawn
Observe = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


class Generation:
    """One generation under way. Iterating draws column after column: the loop that a port writes."""

    def __init__(
        self,
        decoder: Steps,
        prompt: np.ndarray,
        windows: Iterable[Window],
        delays: Sequence[int],
        special_token: int,
        uniform: np.ndarray,
        conditioning: Callable[[Window], Conditioning],
        takes: int = 1,
    ):
        """prompt int64 [P, K, frames], uniform [columns in all, B, K]; conditioning: of the prompts in each window.

        windows: iterated over several times.
        """
        self.decoder, self.delays, self.special_token, self.takes = decoder, delays, special_token, takes
        self.windows, self.uniform, self.conditioning = windows, uniform, conditioning
        self.all = np.zeros((len(prompt) * takes, prompt.shape[1], end(windows)), np.int64)
        self.all[:, :, : prompt.shape[2]] = prompt.repeat(takes, axis=0)
        self.known = self.frames = prompt.shape[2]  # the prompt's frames, and those that have all their codes
        self.total = columns_drawn(windows, delays)
        self.observe: Observe | None = None

    def __iter__(self) -> Iterator[int]:
        """Gives how many columns of `total` are drawn, after each."""
        done = 0
        if self.observe is not None:
            self.decoder.fetch_logits()
        for window in self.windows:
            if done:
                self.decoder.restart(self.conditioning(window))
            frames = self.all[:, :, window.start : window.end]
            columns = delay(frames[:, :, : window.known], self.delays, window.frames, self.special_token)
            prefill = prefill_length(window.known, self.delays)
            known = columns[:: 1 if done else self.takes, :, :prefill]  # in the first window takes begin alike
            for s in range(prefill, columns.shape[2]):
                draw = self.decoder.prefill if s == prefill else self.decoder.step
                codes = draw(known, self.uniform[done])
                drawn = columns[:, :, s] == UNKNOWN
                if self.observe is not None:
                    self.observe(self.decoder.logits, codes, drawn)
                columns[:, :, s] = np.where(drawn, codes, columns[:, :, s])
                known = columns[:, :, s : s + 1]
                t = s - max(self.delays) - 1  # the frame that the column completes
                if t >= window.known:
                    frames[:, :, t] = undelay(columns[:, :, t : s + 1], self.delays)[:, :, 0]
                    self.frames = window.start + t + 1
                done += 1
                yield done

    def codes(self) -> np.ndarray:
        """The frames that are complete: int64 [B, K, frames]."""
        return self.all[:, :, : self.frames].copy()


def columns_drawn(windows: Iterable[Window], delays: Sequence[int]) -> int:
    """How many columns all windows draw."""
    return sum(w.frames + max(delays) + 1 - prefill_length(w.known, delays) for w in windows)
