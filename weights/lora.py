"""LoRA adapters as PEFT saves them, merged into the tensors of their base model.

    linear     W + s B A                 W [out, in], A [r, in], B [out, r]
    embedding  W + s (B A)^T             W [count, dim], A [r, count], B [dim, r]
    DoRA       m (W + s B A) / |W + s B A|, the norm of every row (of every column, in an embedding)

s is alpha / r, with rsLoRA alpha / sqrt(r). Sources: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA), Liu et al.
2024 (DoRA), and PEFT's `merge_and_unload` for what they leave open.
"""

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weights.containers import Read, Spec, open_pytorch, open_safetensors, verify_pytorch
from weights.errors import CheckpointError, is_plain, show, show_name
from weights.trees import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model"
MERGE = "merge it where it was trained: save_pretrained of what peft's merge_and_unload() returns"

# Fields of LoraConfig that change nothing in a merge, or that `Adapter` reads.
READ = {"r", "lora_alpha", "use_rslora", "alpha_pattern", "use_dora", "init_lora_weights", "peft_type"}
WITHOUT_EFFECT = {
    *("task_type", "inference_mode", "revision", "base_model_name_or_path", "auto_mapping", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"),
    *("lora_bias", "rank_pattern", "lora_dropout", "fan_in_fan_out", "ensure_weight_tying", "runtime_config"),
    *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("qalora_group_size",),
}
INIT = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base model's weights, too
PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?P<bias>\.weight|\.bias)?"
)
# A pattern of alpha_pattern: names, with a wildcard or two. More could take forever to compare.
PATTERN = re.compile(r"(?:[\w\-^$|\\()]|\.(?![*+?])|\[[\w\-]+\]|\.[*+?]|\\d[*+?])+")
MOST_PATTERNS, LONGEST_PATTERN, WILDCARDS, MOST_WILDCARDS, CHOICES = 1000, 200, 2, 20, 8
LARGEST_ALPHA = 1e9
LONGEST_BASE = 200  # characters of the base model's name
UNMERGED = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B", ".base_layer.", ".modules_to_save.")


@dataclass
class Change:
    """What becomes of one of the base model's tensors: the adapter's tensors that make it."""

    module: str  # the module's name in the adapter, which alpha_pattern is compared with
    parts: dict[str, str] = field(default_factory=dict)  # "lora_A", "replaced", ...: the name in the adapter's file


@dataclass(frozen=True)
class Adapter:
    """An adapter's file beside its adapter_config.json."""

    folder: Path
    config: Mapping[str, Any]
    specs: Mapping[str, Spec]
    read: Read
    verify: Callable[[], None]  # reads its file once, raises CheckpointError where a checksum is wrong

    @property
    def dtype(self) -> torch.dtype:
        """Of what is merged."""
        return torch.float32

    def changes(self, base: Mapping[str, Spec]) -> dict[str, Change]:
        """By the names of the base model's tensors. Raises CheckpointError where there are others, or other shapes."""
        changes: dict[str, Change] = {}
        for name in self.specs:
            inner = _inner_name(name)
            match = PART.fullmatch(inner)
            module, part = (match["module"], match["part"]) if match else (inner.rpartition(".")[0], "replaced")
            bias = match is not None and match["bias"] == ".bias"
            target = inner if match is None else f"{module}.bias" if bias else f"{module}.weight"
            at = target if target in base else f"decoder.{target}"  # an adapter of the decoder alone
            changes.setdefault(at, Change(module)).parts["lora_bias" if bias else part] = name
        self._check(changes, base)
        return changes

    def merged(self, change: Change, weight: Tensor) -> Tensor:
        """A tensor of the base model with its change, in float32."""
        part = {name: self.read(theirs).float() for name, theirs in change.parts.items()}
        weight = part.get("replaced", weight.float())
        if "lora_bias" in part:
            return weight + self.scaling(change.module, self._rank(change.module)) * part["lora_bias"]
        for a, b, axis in (("lora_A", "lora_B", 1), ("lora_embedding_A", "lora_embedding_B", 0)):
            if a in part:
                product = part[b] @ part[a]
                scaling = self.scaling(change.module, len(part[a]))
                weight = weight + scaling * (product if axis else product.T)
                if "lora_magnitude_vector" in part:
                    size = torch.linalg.vector_norm(weight, dim=axis)
                    weight = weight * (part["lora_magnitude_vector"] / size).unsqueeze(axis)
        return weight

    def scaling(self, module: str, rank: int) -> float:
        """What B A is multiplied by in a module."""
        alpha = self.config.get("lora_alpha", 8)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _rank(self, module: str) -> int:
        found = [spec.shape[0] for name, spec in self.specs.items()
                 if (match := PART.fullmatch(_inner_name(name))) and match["module"] == module
                 and match["part"] == "lora_A"]  # fmt: skip
        return found[0]

    def _check(self, changes: Mapping[str, Change], base: Mapping[str, Spec]) -> None:
        unknown = [_inner_name(next(iter(change.parts.values()))) for at, change in changes.items() if at not in base]
        if unknown:
            raise CheckpointError(
                f"{self.folder}: {len(unknown)} of its tensors are for modules that the base model has not, such as "
                f"{unknown[0]}; give the model that it was trained on with --base"
            )
        for name, change in changes.items():
            found = self._shape(change, name)
            if found != base[name].shape:
                raise CheckpointError(
                    f"{self.folder}: makes {name} {list(found or ())}, which is {list(base[name].shape)} in the base "
                    "model; give the model that it was trained on with --base"
                )

    def _shape(self, change: Change, name: str) -> tuple[int, ...] | None:
        """The shape that a change asks of its tensor; None where its parts do not go together."""
        shapes = {part: self.specs[theirs].shape for part, theirs in change.parts.items()}
        magnitude = shapes.pop("lora_magnitude_vector", None)
        replaced = shapes.pop("replaced", None)
        if not shapes:
            return replaced if magnitude is None else None
        if set(shapes) == {"lora_bias"}:
            return shapes["lora_bias"]
        a, b = ("lora_A", "lora_B") if "lora_A" in shapes else ("lora_embedding_A", "lora_embedding_B")
        pairs = set(shapes) == {a, b} and {len(shapes[a]), len(shapes[b])} == {2}
        if not pairs or shapes[a][0] != shapes[b][1] or shapes[a][0] < 1:
            raise CheckpointError(
                f"{self.folder}: {name} has {', '.join(f'{part} {list(s)}' for part, s in shapes.items())}, expected "
                f"an A [r, in] and a B [out, r] of a linear layer or an embedding; {MERGE}"
            )
        pair = shapes[b][0], shapes[a][1]
        if magnitude not in (None, pair[:1]):
            return None
        return pair if a == "lora_A" else pair[::-1]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, by its two files."""
    return (folder / CONFIG).exists() and (any(folder.glob(f"{TENSORS}.*")) or not (folder / "config.json").exists())


def open_adapter(folder: Path) -> Adapter:
    """Open an adapter. Raises CheckpointError, naming what is in it that cannot be merged here, FileNotFoundError."""
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{folder}: a {show_name(kind)} adapter, expected LoRA; {MERGE}")
    init = config.get("init_lora_weights", True)
    if init not in INIT:
        raise CheckpointError(
            f"{folder}: init_lora_weights is {show(init)}, which changes the base model's weights, too; {MERGE}"
        )
    other = [name for name, value in config.items() if value and name not in READ | WITHOUT_EFFECT]
    if other:
        raise CheckpointError(
            f"{folder}: uses {', '.join(map(show_name, sorted(other)[:12]))} of LoRA, which is not merged here; {MERGE}"
        )
    _check_alphas(folder / CONFIG, config)
    read = open_safetensors if (folder / f"{TENSORS}.safetensors").exists() else open_pytorch
    whole = f"{TENSORS}.safetensors" if read is open_safetensors else f"{TENSORS}.bin"
    if not (folder / whole).exists():
        raise FileNotFoundError(f"{folder}: {TENSORS}.safetensors not found; fetch or copy the whole folder")
    verify = (lambda: None) if read is open_safetensors else (lambda: verify_pytorch(folder, whole))
    return Adapter(folder, config, *read(folder, whole), verify)


def _check_alphas(path: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless lora_alpha and those of alpha_pattern are numbers, by names or simple patterns."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or len(patterns) > MOST_PATTERNS:
        raise CheckpointError(f"{path}: alpha_pattern is {show(patterns)}, expected {{module: alpha}}")
    wildcards = 0
    for pattern in patterns:
        wildcards += _wildcards(pattern)
        if wildcards > MOST_WILDCARDS or not _is_simple(pattern):
            raise CheckpointError(
                f"{path}: alpha_pattern {show(pattern)}, expected the name of a module with at most {WILDCARDS} "
                f"wildcards (.*), {MOST_WILDCARDS} in all; {MERGE}"
            )
    for name, alpha in {"lora_alpha": config.get("lora_alpha", 8), **patterns}.items():
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < LARGEST_ALPHA:
            raise CheckpointError(f"{path}: {show_name(name)} is {show(alpha)}, expected a number")


def _wildcards(pattern: str) -> int:
    return sum(map(pattern.count, "*+?"))


def _is_simple(pattern: str) -> bool:
    """Whether a pattern is quick to compare with any name."""
    if len(pattern) > LONGEST_PATTERN or _wildcards(pattern) > WILDCARDS or pattern.count("|") > CHOICES:
        return False
    if not PATTERN.fullmatch(pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def adapts(folder: Path, at: str) -> bool:
    """Whether an adapter changes the part of its base model whose tensors begin with `at`."""
    return any(_inner_name(name).startswith(at) for name in open_adapter(folder).specs)


def base_of(folder: Path, base: Path | None) -> Path:
    """The folder of an adapter's base model: `base`, or the local one that it names. Raises CheckpointError."""
    if base is not None:
        return base
    named = read_json(folder / CONFIG).get("base_model_name_or_path")
    fetch = ""
    if isinstance(named, str) and named != "" and is_plain(named, LONGEST_BASE) and not named.startswith("-"):
        if (Path(named) / "config.json").exists() and not is_adapter(Path(named)):
            return Path(named)
        fetch = f" (`hf download {shlex.quote(named)} --local-dir FOLDER`)"
    what = show(named) if named else "a model that it does not name"
    raise CheckpointError(
        f"{folder}: a LoRA adapter, not a model; its base is {what}: give that{fetch} with --base FOLDER, or {MERGE}"
    )


def refuse_unmerged(path: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError where a model was saved with its adapters beside its weights."""
    unmerged = [name for name in names if any(part in name for part in UNMERGED)]
    if unmerged:
        raise CheckpointError(
            f"{path}: {len(unmerged)} tensors of adapters that are not merged, such as {unmerged[0]}; their scale is "
            f"not in the file: {MERGE}"
        )


def _inner_name(name: str) -> str:
    """The name within the base model of what an adapter's tensor belongs to."""
    for left in (".base_layer", ".original_module", ".modules_to_save.default", ".modules_to_save"):
        name = name.replace(f"{left}.", ".")
    return name.removeprefix("base_model.model.")
