"""Export everything that continues music into one folder: language model, codec and text encoder.

  python export/bundle.py --lm state_dict.bin --codec compression_state_dict.bin --text t5-base --out bundle
  python export/bundle.py --lm other.bin --codec bundle --text bundle --out other      shares the first one's files
  python export/bundle.py --lm state_dict.bin --text t5-base --variant int4 fp32 --clip loop.wav
  python export/bundle.py --hub facebook/musicgen-small --text t5-base --out bundle

--lm is audiocraft's state_dict.bin, or a Hugging Face folder: of a MusicGen, or of a LoRA adapter that --base names the
model of; --hub is a repository that holds either. --codec is audiocraft's compression_state_dict.bin, a Hugging Face
EnCodec folder, or a bundle that has one; without it, what lies beside --lm.
--text is a Hugging Face T5 folder or a bundle that has one; without it, the bundle takes no descriptions.
--mert is a Hugging Face MERT folder or a bundle that has one; it lets style models take audio.
A new bundle names shared files by their paths relative to itself: move both bundles together.

Each graph is then run beside the PyTorch modules; a bundle that disagrees is not kept. --variant names one or more ways
to store weights, which export/quantize.py --help lists; what each costs is measured, on --clip's audio files if there
are any, and kept in manifest.json.
"""

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from clean_lm.audio import AudioError
from clean_lm.console import Parser
from clean_lm.manifest import TOKENIZER, BundleError
from clean_lm.models.config import ConfigError, LMConfig, StyleConfig
from export import codec, conditioner, hub, lm, lm_parity, mert, needs, quantize, text
from export.bundle_writer import FP32, draft, merged_model, new_folder, publish
from export.commands import ExportError, errors_as_one_line, print_files, progress, require_new, tell
from export.opened import Bundle
from export.parity import Comparison, Verdict, calls_verdict, require_agreement, table
from export.sharing import Shared
from export.variants import (
    DEFAULT_STORING,
    Storing,
    add_clip_option,
    storing_of,
    validate_attention,
    validate_clips,
)
from weights.checkpoint import CheckpointError
from weights.lm import load
from weights.lora import adapts, is_adapter
from weights.mapping import MappingError, Model, require_finite
from weights.text import FINETUNE, holds_text_encoder, is_finetuned, load_finetuned
from weights.tokenizer import open_tokenizer


class Exporter(Protocol):
    """What export/codec.py, text.py and mert.py have in common."""

    @property
    def GRAPHS(self) -> Sequence[str]: ...

    def load(self, path: Path, base: Path | None = None, /) -> Model[Any]: ...

    def describe(self, c: Any, /) -> dict[str, Any]: ...

    def write_graphs(self, model: Model[Any], folder: Path, /) -> None: ...

    def parity(self, bundle: Bundle, model: Model[Any], /) -> Verdict: ...


Part = Model[Any] | Shared  # a checkpoint that is exported, or the graphs of another bundle
CODEC, TEXT, MERT = "codec", "text encoder", "MERT"
EXPORTERS: dict[str, Exporter] = {CODEC: codec, TEXT: text, MERT: mert}
CODEC_FILE = "compression_state_dict.bin"
ERRORS = (AudioError, BundleError, CheckpointError, ConfigError, MappingError)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lm", type=Path, help="state_dict.bin, or a Hugging Face MusicGen folder")
    source.add_argument("--hub", metavar="REPO", help="a repository of the Hugging Face hub, in place of --lm")
    parser.add_argument("--revision", help="of --hub: a branch, a tag or a commit (default: main)")
    parser.add_argument("--codec", type=Path, help=f"{CODEC_FILE}, a Hugging Face EnCodec folder, or a bundle")
    parser.add_argument("--text", type=Path, help="a Hugging Face T5 folder, or a bundle")
    parser.add_argument(
        "--stock-text",
        action="store_true",
        help="take --text as it is, although the checkpoint says that its text encoder was fine-tuned",
    )
    parser.add_argument("--mert", type=Path, help="a Hugging Face MERT folder, or a bundle; for style models")
    parser.add_argument("--out", type=Path, default=Path("bundle"), help="folder to create (default: bundle)")
    lm.add_options(parser)
    add_clip_option(parser)
    args = parser.parse_args()
    with errors_as_one_line(*ERRORS):
        if args.revision and not args.hub:
            raise ExportError(f"--revision {args.revision} belongs to --hub, which is not given")
        checkpoint = hub.download(args.hub, args.revision) if args.hub else args.lm
        source = hub.source_of(checkpoint, args.hub) if args.hub else None
        parts = checkpoint, args.codec, args.text
        export(
            *parts,
            args.out,
            args.attention,
            args.variant,
            args.clip,
            storing_of(args),
            args.mert,
            source,
            base=args.base,
            max_duration=args.max_duration,
            stock_text=args.stock_text,
        )


def beside(checkpoint: Path, base: Path | None = None) -> Path:
    """The codec in the language model's folder: audiocraft's file, or that folder if it is a Hugging Face MusicGen.

    A decoder alone has its codec in `base`; an adapter, which may change the codec, is one with its base model.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if is_adapter(folder):
        return folder
    if base and not (folder / CODEC_FILE).exists():
        return beside(base)
    if (folder / CODEC_FILE).exists():
        return folder / CODEC_FILE
    if (folder / "config.json").exists() and not (folder / "state_dict.bin").exists():
        return folder
    raise ExportError(f"{folder}: no {CODEC_FILE} beside the language model; give --codec")


def export(
    checkpoint: Path,
    codec_path: Path | None,
    text_path: Path | None,
    out: Path,
    attention: str = "ort",
    variants: Sequence[str] = (FP32,),
    clips: Sequence[Path] = (),
    storing: Storing = DEFAULT_STORING,
    mert_path: Path | None = None,
    source: Mapping[str, str] | None = None,
    *,
    base: Path | None = None,
    max_duration: float | None = None,
    stock_text: bool = False,
) -> None:
    """Write the bundle; print its files and how far each graph is from PyTorch. codec_path: None for that beside."""
    start = time.perf_counter()
    require_new(out)
    lm.validate_max_duration(max_duration)
    validate_clips(clips)
    storing.validate(clips)
    model = load(checkpoint, base, max_duration)
    lm.validate(model.config)
    tell(model.checkpoint.notes)
    validate_attention(variants, attention)
    parts = open_parts({CODEC: codec_path or beside(checkpoint, base), MERT: mert_path}, base)
    if text_path:
        parts[TEXT] = open_text(model, text_path, base, stock_text)
    described = {name: describe(name, part) for name, part in parts.items()}
    validate_parts(model.config, described[CODEC], described.get(TEXT), described.get(MERT))
    tokenizer = tokenizer_of(parts.get(TEXT))
    own = {name: part for name, part in parts.items() if isinstance(part, Model)}
    others = sum(part.parameters for part in own.values())
    needed = needs.of_export(model.config, model.parameters, variants, others)
    needs.require(out, needed)
    for part in (model, *own.values()):
        require_finite(part)

    with new_folder(out, needed.disk) as folder:
        names = lm.write_all(model, folder, attention)
        for name, part in own.items():
            EXPORTERS[name].write_graphs(part, folder)
            names += EXPORTERS[name].GRAPHS
        save_tokenizer(tokenizer, folder)
        document = merged_model(
            lm.describe(model.config), described[CODEC], described.get(TEXT, {}), described.get(MERT, {})
        )
        shared = [part for part in parts.values() if isinstance(part, Shared)]
        settings = lm.defaults(model.config), lm.CACHE_UPDATE[attention]
        bundle = draft(folder, document, *settings, names, shared, source)
        calls, verdicts = compare(bundle, model, own)
        lines = require_agreement(verdicts)
        bundle, measured = quantize.make_variants(bundle, variants, clips, storing)
        publish(bundle)
    print("\n".join(table(calls)), end="\n\n")
    print_files(out, model.parameters + others, time.perf_counter() - start)
    print("\n".join(lines + measured))


def open_parts(paths: Mapping[str, Path | None], base: Path | None = None) -> dict[str, Part]:
    """The parts beside the language model, by name; a path of None is left out. `base`: the model of an adapter."""
    return {name: open_part(path, name, base) for name, path in paths.items() if path}


def open_part(path: Path, name: str, base: Path | None = None) -> Part:
    """A checkpoint, or the same part of a bundle."""
    if (path / "manifest.json").exists():
        return Shared.read(path, EXPORTERS[name].GRAPHS, [TOKENIZER] if name == TEXT else [])
    model = EXPORTERS[name].load(path, base)
    tell(model.checkpoint.notes)
    return model


def open_text(model: Model[LMConfig], path: Path, base: Path | None, stock: bool) -> Part:
    """The text encoder: the fine-tuned one of the checkpoint where it has one, else the one at `path`.

    `stock`: the one at `path`, whatever the checkpoint says. Raises ExportError where that has to be said.
    """
    checkpoint = model.checkpoint
    if stock:
        return open_part(path, TEXT, base)
    if holds_text_encoder(checkpoint):
        if (path / "manifest.json").exists():
            raise ExportError(
                f"{checkpoint.path}: holds a fine-tuned text encoder; give --text the folder of the T5 that it began "
                "as, whose config.json and tokenizer are needed, or --stock-text to take this bundle's T5"
            )
        text_encoder = load_finetuned(checkpoint, path)
        tell(text_encoder.checkpoint.notes)
        return text_encoder
    if is_finetuned(checkpoint):
        raise ExportError(
            f"{checkpoint.path}: xp.cfg {FINETUNE} is true, and its text encoder is not in the file; export it with "
            "those tensors, or give --stock-text to take the T5 of --text, which is not the one it was trained with"
        )
    if is_adapter(checkpoint.path) and path != checkpoint.path and adapts(checkpoint.path, "text_encoder."):
        raise ExportError(
            f"{checkpoint.path}: the adapter changes the text encoder, too; give it as --text {checkpoint.path}, or "
            "--stock-text to take the T5 of --text as it is"
        )
    return open_part(path, TEXT, base)


def describe(name: str, part: Part) -> dict[str, Any]:
    """What the manifest's `model` says of a part."""
    return part.model if isinstance(part, Shared) else EXPORTERS[name].describe(part.config)


def validate_parts(
    config: LMConfig, codec: Mapping[str, Any], text: Mapping[str, Any] | None, mert: Mapping[str, Any] | None = None
) -> None:
    """Raise ExportError where the parts do not belong together; each by what the manifest's `model` says of it."""
    if mert and not isinstance(config.self_wav, StyleConfig):
        raise ExportError("--mert is for style models: this one's xp.cfg has no conditioners.self_wav.style")
    sides = max(1, config.channels // codec["channels"])  # a stereo model has a mono codec for each side
    found: dict[str, tuple[Any, Any]] = {
        "sample rate {} in the codec": (codec["sample_rate"], config.sample_rate),
        "channels {} in the codec": (codec["channels"] * sides, config.channels),
        "codes {} in the codec": (codec["card"], config.card),
        "codebooks {} in the codec": (codec["codebooks"] * sides, config.codebooks),
    }
    if text:
        found["states {} wide in the text encoder"] = (text["text_dim"], config.text_dim)
    if mert:
        found["features {} wide in MERT"] = (mert["style_feature_dim"], getattr(config.self_wav, "features", None))
    wrong = [f"{name.format(got)}, {expected} in the language model" for name, (got, expected) in found.items()
             if got != expected]  # fmt: skip
    if wrong:
        raise ExportError(f"these parts do not belong together: {'; '.join(wrong)} (its text: {config.text_encoder})")


def tokenizer_of(text: Part | None) -> Tokenizer | Path | None:
    """A checkpoint's tokenizer, or the file of another bundle's, which is small and is copied."""
    if text is None:
        return None
    if isinstance(text, Shared):
        return text.manifest.folder / TOKENIZER
    return open_tokenizer(text.checkpoint.tokenizer or text.checkpoint.path, text.config)


def save_tokenizer(tokenizer: Tokenizer | Path | None, folder: Path) -> None:
    if isinstance(tokenizer, Path):
        shutil.copyfile(tokenizer, folder / TOKENIZER)
    elif tokenizer:
        tokenizer.save(str(folder / TOKENIZER))


def compare(
    bundle: Bundle, model: Model[LMConfig], parts: Mapping[str, Model[Any]]
) -> tuple[list[Comparison], dict[str, Verdict]]:
    """All graphs that were exported beside the PyTorch modules: the language model's calls, a verdict on each part."""
    progress("comparing with the PyTorch modules")
    calls = lm_parity.parity(bundle, model)
    verdicts = {"language model": calls_verdict(calls), **conditioner.verdicts(bundle, model)}
    return calls, verdicts | {name: EXPORTERS[name].parity(bundle, part) for name, part in parts.items()}


if __name__ == "__main__":
    main()
