"""Check a MusicGen checkpoint before export: what each of its tensors becomes, what is dropped and why.

    python weights/check.py --ckpt path/to/state_dict.bin      audiocraft's file, or the folder it is in
    python weights/check.py --ckpt path/to/folder              Hugging Face's: config.json and model.safetensors
    python weights/check.py --ckpt adapter --base folder       a LoRA adapter and its base model
    python weights/check.py --layout list.json --config cfg    names and shapes alone: {name: [shape, dtype]} with
                                                               the model's xp.cfg, or Hugging Face's config.json

Prints a table of the tensors, the model's sizes, and OK; or every tensor that is missing, unexpected, misshapen or not
finite. Exit status 0 if the checkpoint can be exported, else 1.
"""

import argparse
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from clean_lm.models.config import ConfigError, LMConfig
from weights.checkpoint import Checkpoint, CheckpointError, Spec, open_layout, open_lm
from weights.lm import describe, dropped, window_note
from weights.mapping import Dropped, Source, differences, not_finite, reason, shortened

WIDTH = 120


def main() -> int:
    """Check what the command line names. Returns the exit status."""
    args = parse_args()
    try:
        checkpoint = open_layout(args.layout, args.config) if args.layout else open_lm(args.ckpt, args.base)
        config, rows = describe(checkpoint)
        checkpoint.verify()
    except (CheckpointError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    drop = dropped(checkpoint)
    print(checkpoint.path)
    print("\n".join(tensor_table(rows, checkpoint.specs) + dropped_lines(drop, checkpoint.specs)))
    problems = differences(rows, drop, checkpoint.specs)
    problems += [] if args.layout else every_not_finite(checkpoint)
    print("\n" + model_lines(config))
    notes = [*checkpoint.notes, *filter(None, [window_note(checkpoint)])]
    print("".join(f"note: {note}\n" for note in notes), end="")
    fine = "OK, names and shapes (values were not read)" if args.layout else "OK, and every value is finite"
    print("\n  ".join([f"{len(problems)} problems:", *shortened(problems)]) if problems else fine)
    return 1 if problems else 0


def parse_args() -> argparse.Namespace:
    """The command line: --ckpt, or --layout and --config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--ckpt", type=Path, help="a checkpoint: a file or a folder")
    source.add_argument("--layout", type=Path, help="a list of tensors, as JSON")
    parser.add_argument("--base", type=Path, help="the model that the checkpoint is a fine-tune of, if it is not whole")
    parser.add_argument("--config", type=Path, help="the configuration that --layout belongs to")
    args = parser.parse_args()
    if (args.layout is None) != (args.config is None):
        parser.error("--layout and --config go together")
    return args


@dataclass
class Row:
    """One line of the table: the checkpoint's tensors of one component, and the names of ours that they become."""

    specs: dict[str, Spec] = field(default_factory=dict)
    ours: dict[str, None] = field(default_factory=dict)  # a set that keeps its order


def tensor_table(rows: Mapping[str, Source], specs: Mapping[str, Spec]) -> list[str]:
    """A line for every component of the model."""
    table: dict[str, Row] = {}
    for ours, source in rows.items():
        row = table.setdefault(source.component, Row())
        row.ours[pattern(ours)] = None
        row.specs |= {piece.name: specs[piece.name] for piece in source.pieces if piece.name in specs}
    lines = [f"{'component':16} {'tensors':>7} {'parameters':>14}  {'dtype':16} becomes"]
    for component, row in table.items():
        start = (
            f"{component:16} {len(row.specs):7} {parameters(row.specs.values()):14,}  {dtypes(row.specs.values()):16} "
        )
        indent = " " * len(start)
        lines += textwrap.wrap(", ".join(row.ours), WIDTH, initial_indent=start, subsequent_indent=indent)
    return lines


def dropped_lines(drop: list[Dropped], specs: Mapping[str, Spec]) -> list[str]:
    """What is dropped and why: two lines for every pattern that matches tensors of the checkpoint."""
    lines = []
    for item in drop:
        found = [spec for name, spec in specs.items() if reason(name, [item])]
        if found:
            lines.append(f"{'dropped':16} {len(found):7} {parameters(found):14,}  {dtypes(found):16} {item.reason}:")
            lines.append(f"  {item.pattern}")
    return lines or ["dropped: nothing"]


def every_not_finite(checkpoint: Checkpoint) -> list[str]:
    """A line for every tensor that holds NaN or infinity; reads them all, one at a time."""
    read = checkpoint.open()
    names = tqdm(checkpoint.specs, desc="reading", unit="tensor", leave=False, disable=None)
    return [line for name in names if (line := not_finite(name, read(name)))]


def model_lines(config: LMConfig) -> str:
    """The model's sizes and conditioners."""
    hidden, sound = config.hidden_scale * config.dim, "stereo" if config.channels == 2 else "mono"
    return (
        f"{config.layers} layers x {config.dim}, {config.heads} heads, feed-forward {hidden}, "
        f"{config.codebooks} codebooks of {config.card}, delays {' '.join(map(str, config.delays))}\n"
        f"{config.sample_rate} Hz {sound}, windows of {config.max_duration:g} s, "
        f"text from {config.text_encoder} ({config.text_dim}); attended to: {', '.join(config.cross) or 'nothing'}; "
        f"prepended: {', '.join(config.prepend) or 'nothing'}"
    )


def pattern(name: str) -> str:
    """ "lm.layers.3.norm1.weight" -> "lm.layers.*.norm1": what differs by number, or by weight and bias, is one."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", re.sub(r"\.(weight|bias)$", "", name))


def parameters(specs: Iterable[Spec]) -> int:
    """How many numbers they hold."""
    return sum(math.prod(spec.shape) for spec in specs)


def dtypes(specs: Iterable[Spec]) -> str:
    """Their dtypes, each once."""
    return " ".join(sorted({str(spec.dtype).removeprefix("torch.") for spec in specs}))


if __name__ == "__main__":
    sys.exit(main())
