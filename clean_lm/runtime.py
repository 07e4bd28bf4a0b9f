"""The loop around the graphs, in numpy and ONNX Runtime: what a port to another language copies.

columns = delay(prompt)                    known, unknown and special places
cross   = lm_condition(texts)              once; no rows for null text
lm_inference(columns of the prompt)        fills the caches, draws the next column
lm_inference(one column), again and again  until no column is left
codes   = undelay(columns)
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import onnxruntime as ort

from clean_lm.pattern import UNKNOWN, delay, prefill_length, undelay
from clean_lm.philox import uniforms

FORMAT, VERSION = "clean_lm", 1
CACHE_UPDATES = ("in_place", "new_columns")
SETTINGS = ("cfg_coef", "temperature", "top_k", "top_p")
DTYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int8": np.int8}


class BundleError(ValueError):
    """A bundle that cannot be used: says which file, what was found and what was expected."""


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn; audiocraft's names."""

    use_sampling: bool = True  # False: greedy
    temperature: float = 1.0  # 0: greedy
    top_k: int = 250  # keep the k most probable codes; 0: all
    top_p: float = 0.0  # keep the most probable codes up to this sum; > 0 goes before top_k
    cfg_coef: float = 3.0  # classifier-free guidance; without a text it changes nothing

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


class Loading(TypedDict, total=False):
    """How to open a bundle: the arguments of every `load` by name."""

    variant: str | None  # of those that the bundle holds ("fp32", "int4", ...); None: its default
    threads: int | None  # None: one per physical core
    providers: Sequence[str]  # ONNX Runtime's execution providers; the CPU where not given
    hashes: bool  # compare every file's SHA-256 before it is opened; True where not given


@dataclass(frozen=True)
class Manifest:
    """manifest.json: what a bundle holds, and how to open it."""

    folder: Path
    tree: Mapping[str, Any]
    loading: Loading

    @classmethod
    def read(cls, folder: Path | str, **loading: Unpack[Loading]) -> "Manifest":
        """The bundle with the graphs of one variant. Raises FileNotFoundError, BundleError."""
        path = Path(folder) / "manifest.json"
        if not path.exists():
            raise FileNotFoundError(f"{path}: not found; a bundle is the folder that export/bundle.py writes")
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"{path}: not readable JSON: {error}") from None
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            found = tree.get("format") if isinstance(tree, dict) else type(tree).__name__
            raise BundleError(f"{path}: format is {found!r}, expected {FORMAT!r}")
        if tree.get("version") != VERSION:
            raise BundleError(f"{path}: version is {tree.get('version')!r}, this clean_lm reads {VERSION}")
        variants, variant = tree.get("variants", {}), loading.get("variant")
        if variant is not None and variant not in variants:
            raise BundleError(f"{path}: holds no variant {variant!r}, only {', '.join(variants) or 'one unnamed'}")
        chosen = {} if variant is None else variants[variant]["graphs"]
        return cls(Path(folder), {**tree, "graphs": {**tree.get("graphs", {}), **chosen}}, loading)

    def need(self, entry: str, *fields: str) -> Mapping[str, Any]:
        """One entry, which must have these fields. Raises BundleError."""
        found = self.tree.get(entry, {})
        missing = [field for field in fields if field not in found]
        if missing:
            raise BundleError(f"{self.folder}/manifest.json: {entry} lacks {', '.join(missing)}; export it again")
        return found

    def check_files(self, names: Sequence[str]) -> None:
        """Raise FileNotFoundError or BundleError where a file is missing, of another size or of another content."""
        hashes = self.loading.get("hashes", True)
        for name in names:
            path, entry = self.folder / name, self.tree["files"][name]
            if not path.exists():
                raise FileNotFoundError(f"{path}: listed in manifest.json, but not there; copy the bundle again")
            if path.stat().st_size != entry["bytes"]:
                raise BundleError(f"{path}: {path.stat().st_size} bytes, manifest.json says {entry['bytes']}")
            if hashes and (found := sha256(path)) != entry["sha256"]:
                raise BundleError(f"{path}: sha256 is {found}, manifest.json says {entry['sha256']}")

    def tensor(self, graph: str, name: str) -> Mapping[str, Any]:
        """What the manifest says of one input or output: name, dtype, shape."""
        entry = self.tree["graphs"][graph]
        return next(tensor for tensor in entry["inputs"] + entry["outputs"] if tensor["name"] == name)

    def graph(self, name: str) -> "Graph":
        """One graph, its files checked, its session not yet open. Raises FileNotFoundError, BundleError."""
        if name not in self.need("graphs"):
            raise BundleError(f"{self.folder}: holds no {name}, only {', '.join(self.tree['graphs'])}")
        entry = self.tree["graphs"][name]
        parts = entry["file"], entry.get("data", entry["file"])
        self.check_files([file for file in self.tree["files"] if file.startswith(parts)])
        inputs, outputs = ({tensor["name"]: tensor for tensor in entry[half]} for half in ("inputs", "outputs"))
        return Graph(self.folder / entry["file"], inputs, outputs, self.loading)


@dataclass(frozen=True)
class Graph:
    """A graph and its tensors: {name: {dtype, shape}} with symbolic sizes as strings."""

    path: Path
    inputs: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, Mapping[str, Any]]
    loading: Loading

    def open(self) -> "Graph":
        """Open its session now: what is asked for at every step. Raises BundleError."""
        assert self.session
        return self

    @cached_property
    def session(self) -> ort.InferenceSession:
        """Opened when first asked for: whoever gives no texts never loads what reads them. Raises BundleError."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.loading.get("threads") or 0
        options.log_severity_level = 3
        providers = list(self.loading.get("providers", ("CPUExecutionProvider",)))
        try:
            session = ort.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime has no common base class for its own
            raise BundleError(f"{self.path}: ONNX Runtime does not load it: {error}") from None
        differ = {tensor.name for tensor in session.get_inputs()} ^ self.inputs.keys()
        if differ:
            raise BundleError(f"{self.path}: its inputs are not those of manifest.json: {sorted(differ)}")
        return session

    def zeros(self, name: str, sizes: Mapping[str, int]) -> np.ndarray:
        """An array for one tensor, its symbolic sizes taken from `sizes`."""
        tensor = self.inputs.get(name) or self.outputs[name]
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor["shape"]]
        return np.zeros(shape, dtype=DTYPES[tensor["dtype"]])


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Decoder:
    """The caches of one generation, and the model called on it column by column."""

    def __init__(
        self,
        graph: Graph,
        in_place: bool,
        batch: int,
        rows: int,
        capacity: int,
        cross: Mapping[str, np.ndarray],
        sampling: Sampling,
        takes: bool = False,
    ):
        """takes: every row of the batch is told the same, so that columns which are the same too are read once."""
        self.graph, self.in_place, self.rows, self.capacity = graph, in_place, rows, capacity
        self.cross, self.sampling, self.takes = cross, sampling, takes
        self.columns = 0  # already in the caches
        sizes = {"batch": batch, "rows": rows, "capacity": capacity, "columns": 1}
        self.caches = {name: graph.zeros(name, sizes) for name in graph.inputs if name.startswith("past_key_values.")}
        self.position, self.uniform = graph.zeros("position", sizes), graph.zeros("uniform", sizes)
        self.next_codes, self.logits = graph.zeros("next_codes", sizes), graph.zeros("logits", sizes)
        self.inputs = {**self.caches, **cross, "position": self.position, "uniform": self.uniform}
        for name in SETTINGS:
            self.inputs[name] = graph.zeros(name, sizes)
            self.inputs[name][...] = getattr(sampling, name)
        self.inputs["temperature"] *= sampling.use_sampling
        self.step = self._bind(graph.zeros("codes", sizes))

    def __call__(self, codes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Read columns int64 [B, K, S] and draw the one after the last with uniform [B, K] -> int64 [B, K].

        The first call takes any number of columns, those after it one. Raises ValueError where they do not fit.
        """
        new = codes.shape[2]
        if self.columns and new != 1:
            raise ValueError(f"{new} columns after the first {self.columns}: expected one at a time")
        if self.columns + new > self.capacity:
            raise ValueError(f"{self.columns} + {new} columns do not fit the caches' capacity of {self.capacity}")
        if self.takes and new > 1 and (codes == codes[:1]).all():
            self._read_once(codes[:1, :, :-1])
            codes, new = codes[:, :, -1:], 1
        guidance = self.rows // len(codes)
        binding, array, presents = self.step if new == 1 else self._bind(np.tile(codes, (guidance, 1, 1)))
        array.reshape(guidance, *codes.shape)[...] = codes  # conditioned rows, then unconditioned
        self.position[0], self.uniform[...] = self.columns, uniform
        self.graph.session.run_with_iobinding(binding)
        for name, present in presents.items():  # not in place: the new columns alone come back
            self.caches[name][:, :, self.columns : self.columns + new] = present
        self.columns += new
        return self.next_codes

    def _read_once(self, codes: np.ndarray) -> None:
        """Read columns [1, K, S] for all takes."""
        guidance, new = self.rows // len(self.uniform), codes.shape[2]
        cross = {name: array[:1] for name, array in self.cross.items()}
        one = Decoder(self.graph, self.in_place, 1, guidance, new, cross, self.sampling)
        one(codes, np.zeros((1, codes.shape[1]), np.float32))
        for name, cache in self.caches.items():
            cache[:, :, :new] = one.caches[name].repeat(self.rows // guidance, axis=0)
        self.columns = new

    def _bind(self, codes: np.ndarray) -> tuple[ort.IOBinding, np.ndarray, dict[str, np.ndarray]]:
        """Bind arrays to the graph once; they are then read and written where they lie."""
        codes = np.ascontiguousarray(codes)
        binding = self.graph.session.io_binding()
        for name, array in {**self.inputs, "codes": codes}.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        outputs, presents = {"next_codes": self.next_codes, "logits": self.logits}, {}
        for name, cache in self.caches.items():
            present = cache
            if not self.in_place:
                present = np.empty((*cache.shape[:2], codes.shape[2], cache.shape[3]), cache.dtype)
                presents[name] = present
            outputs[name.replace("past_key_values", "present")] = present
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding, codes, presents


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


class Generation:
    """One generation under way. Iterating draws column after column: the loop that a port writes."""

    def __init__(self, decoder: Decoder, columns: np.ndarray, delays: Sequence[int], prefill: int, uniform: np.ndarray):
        self.decoder, self.columns, self.delays, self.uniform = decoder, columns, delays, uniform
        self.known, self.total = prefill, columns.shape[2] - prefill

    def __iter__(self) -> Iterator[int]:
        """Gives how many columns of `total` are drawn, after each."""
        columns, new = self.columns, self.columns[:, :, : self.known]
        for step, s in enumerate(range(self.known, columns.shape[2])):
            codes = self.decoder(new, self.uniform[step])
            columns[:, :, s] = np.where(columns[:, :, s] == UNKNOWN, codes, columns[:, :, s])
            new = columns[:, :, s : s + 1]
            self.known = s + 1
            yield step + 1

    @property
    def frames(self) -> int:
        """How many frames have all their codes."""
        return max(0, self.known - max(self.delays) - 1)

    def codes(self) -> np.ndarray:
        """Those frames: int64 [B, K, frames]."""
        return undelay(self.columns[:, :, : max(self.known, max(self.delays) + 1)], self.delays)


class How(TypedDict, total=False):
    """How to generate: the arguments of LanguageModel.generate_codes by name."""

    frames: int | None  # in all, the prompt included: more than the prompt has
    duration: float | None  # or seconds, where the bundle knows its frame rate
    batch: int | None  # rows, where neither a prompt nor texts say it
    sampling: Sampling | None  # None: the bundle's defaults
    seed: int | Sequence[int] | None  # take b is drawn with seed + b, or its own of a list; None: a new one each time
    uniform: np.ndarray | None  # float32 [steps, B, K] in [0, 1) in place of a seed


class LanguageModel:
    """lm_inference and lm_condition of a bundle. Safe to call from several threads."""

    def __init__(self, manifest: Manifest, lm: Graph, condition: Graph):
        self.manifest, self.lm, self.condition = manifest, lm, condition
        model = manifest.need("model", "delays", "codebooks", "card", "special_token", "text_dim", "frame_rate")
        self.delays: list[int] = model["delays"]
        self.codebooks: int = model["codebooks"]
        self.card: int = model["card"]
        self.special_token: int = model["special_token"]
        self.text_dim: int = model["text_dim"]
        self.frame_rate: float | None = model["frame_rate"]
        update = manifest.tree.get("cache_update")
        if update not in CACHE_UPDATES:
            raise BundleError(f"{manifest.folder}: cache_update is {update!r}, expected one of {CACHE_UPDATES}")
        self.in_place = update == "in_place"
        defaults = manifest.need("defaults", *SETTINGS)
        self.sampling = Sampling(use_sampling=True, **{name: defaults[name] for name in SETTINGS})

    @classmethod
    def load(cls, bundle: Path | str, **loading: Unpack[Loading]) -> "LanguageModel":
        """Open a bundle, see Loading. Raises FileNotFoundError and BundleError, naming the file."""
        return cls.open(Manifest.read(bundle, **loading))

    @classmethod
    def open(cls, manifest: Manifest) -> "LanguageModel":
        return cls(manifest, manifest.graph("lm_inference").open(), manifest.graph("lm_condition"))

    def generate_codes(
        self,
        prompt_codes: np.ndarray | None = None,
        text_states: Sequence[np.ndarray | None] | None = None,
        *,
        callback: Callable[[int, int], None] | None = None,
        **how: Unpack[How],
    ) -> np.ndarray:
        """Continue codes to `frames` in all, the prompt included.

        prompt_codes: int [B, K, P] in 0 .. card - 1, or None for no prompt.
        text_states: per row the text encoder's last hidden state [N, E] without padding, or None for null text.
        callback: called with (columns done, columns in all) after each; what it raises ends the generation.
        how: see How. Returns int64 [B, K, frames]. Raises ValueError before anything is generated.
        """
        generation = self.begin(prompt_codes, text_states, **how)
        for done in generation:
            if callback:
                callback(done, generation.total)
        return generation.codes()

    def begin(
        self,
        prompt_codes: np.ndarray | None = None,
        text_states: Sequence[np.ndarray | None] | None = None,
        **how: Unpack[How],
    ) -> Generation:
        """What generate_codes iterates over, for whoever wants the frames as they come."""
        sampling = how.get("sampling") or self.sampling
        sampling.check()
        batch = self._batch(prompt_codes, text_states, how.get("batch"))
        prompt = self._prompt(prompt_codes, batch)
        frames = self._frames(how.get("frames"), how.get("duration"), prompt.shape[2])
        columns = delay(prompt, self.delays, frames, self.special_token)
        prefill = prefill_length(prompt.shape[2], self.delays)
        uniform = self._uniform(how.get("uniform"), how.get("seed"), columns.shape[2] - prefill, batch)
        decoder = self.decoder(batch, columns.shape[2] - 1, text_states, sampling)
        return Generation(decoder, columns, self.delays, prefill, uniform)

    def decoder(
        self, batch: int, capacity: int, text_states: Sequence[np.ndarray | None] | None, sampling: Sampling
    ) -> Decoder:
        """Empty caches for `capacity` columns, and the cross-attention of the texts. Raises ValueError."""
        if text_states is None or all(states is None for states in text_states):
            # Null text: both guidance rows would be the same, so one is exact, and it has no text to attend to.
            sizes = {"texts": 0, "text": 1}
            cross = {n: self.lm.zeros(n, sizes) for n in self.lm.inputs if n.startswith("cross_key_values.")}
            rows, alike = batch, True
        else:
            alike = all(_same(text, text_states[0]) for text in text_states)
            cross = self.cross_key_values(text_states)
            rows = batch if sampling.cfg_coef == 1 else 2 * batch  # coefficient 1 is the conditioned row itself
        return Decoder(self.lm, self.in_place, batch, rows, capacity, cross, sampling, takes=alike and batch > 1)

    def cross_key_values(self, text_states: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
        """Every layer's keys and values for texts (None: null text).

        Texts are padded with zeros to the longest: nothing masks them later, so padding is part of the model.
        """
        for row, text in enumerate(text_states):
            if text is not None and (text.ndim != 2 or text.shape[1] != self.text_dim or not len(text)):
                raise ValueError(f"text_states[{row}]: got {list(text.shape)}, expected [N, {self.text_dim}], N > 0")
            if text is not None and not np.isfinite(text).all():
                raise ValueError(f"text_states[{row}]: got NaN or infinity, expected finite numbers")
        longest = max((len(text) for text in text_states if text is not None), default=1)
        sizes = {"texts": len(text_states), "text": longest}
        states, mask = self.condition.zeros("text_states", sizes), self.condition.zeros("text_mask", sizes)
        for row, text in enumerate(text_states):
            if text is not None:
                states[row, : len(text)], mask[row, : len(text)] = text, 1
        names = list(self.condition.outputs)
        caches = self.condition.session.run(names, {"text_states": states, "text_mask": mask})
        return {name: np.asarray(cache) for name, cache in zip(names, caches, strict=True)}

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

    def _frames(self, frames: int | None, duration: float | None, prompt: int) -> int:
        if (frames is None) == (duration is None):
            raise ValueError(f"give frames or duration: got frames {frames}, duration {duration}")
        if duration is not None:
            if self.frame_rate is None:
                raise ValueError("duration: this bundle does not know its frame rate (no codec in it); give frames")
            frames = int(duration * self.frame_rate)
        if frames is None or frames != int(frames):
            raise ValueError(f"frames: got {frames}, expected a whole number")
        if frames <= prompt:
            raise ValueError(f"{frames} frames in all, the prompt has {prompt}: expected more than the prompt")
        return int(frames)

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
