"""Export everything that continues music into one folder: language model, codec and text encoder.

  python export/bundle.py --lm state_dict.bin --codec compression_state_dict.bin --text t5-base --out bundle
  python export/bundle.py --lm other.bin --codec bundle --text bundle --out other      shares the first one's files
  python export/bundle.py --lm state_dict.bin --text t5-base --variant int4 fp32 --clip loop.wav
  python export/bundle.py --hub facebook/musicgen-small --text t5-base --out bundle

--lm is audiocraft's state_dict.bin or a Hugging Face MusicGen folder. --codec is audiocraft's
compression_state_dict.bin, a Hugging Face EnCodec folder, or a bundle that has one; without it, what lies beside --lm.
--text is a Hugging Face T5 folder or a bundle that has one; without it, the bundle takes no descriptions.
--mert is a Hugging Face MERT folder or a bundle that has one: what style models hear a sound with.
A shared file is found by its path from the new bundle: move both together.
Each graph is then run beside the PyTorch modules; a bundle that disagrees is not kept. --variant names how weights are
stored, one or more of those that export/quantize.py lists; what they cost is measured and kept in manifest.json.
"""

import argparse
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import weights.codec
import weights.mert
import weights.text
from clean_lm.audio import AudioError
from clean_lm.manifest import BundleError, Manifest
from clean_lm.models.config import CodecConfig, ConfigError, LMConfig, MertConfig, StyleConfig, TextConfig
from clean_lm.text_encoder import TOKENIZER
from export import codec, conditioner, lm, mert, quantize, text, verify
from export.bundle_writer import ExportError, new_folder, print_files, reported, write_manifest
from export.onnx_graph import say
from weights.checkpoint import CheckpointError
from weights.lm import load
from weights.mapping import MappingError, Model
from weights.tokenizer import open_tokenizer

CODEC, TEXT, MERT = tuple(codec.GRAPHS), ("text_encoder",), ("style_features",)
CODEC_FILE = "compression_state_dict.bin"
ERRORS = (AudioError, BundleError, CheckpointError, ConfigError, MappingError, ExportError, OSError)


@dataclass(frozen=True)
class Shared:
    """Graphs of another bundle, which stay where they are."""

    manifest: Manifest
    graphs: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        """Their files by the names that their manifest has, which may itself name those of a third bundle."""
        graphs = tuple(self.manifest.tree["graphs"][name]["file"] for name in self.graphs)
        return [name for name in self.manifest.tree["files"] if name.startswith(graphs)]

    def entries(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Their part of the manifest of a bundle in `folder`: graphs and files, by paths relative to it."""
        tree, here = self.manifest.tree, folder.resolve()
        there = {name: self.manifest.folder / name for name in self.files}
        there = {name: path.parent.resolve() / path.name for name, path in there.items()}
        moved = {name: Path(os.path.relpath(path, here)).as_posix() for name, path in there.items()}
        graphs = {name: tree["graphs"][name] for name in self.graphs}
        graphs = {
            name: graph | {key: moved[graph[key]] for key in ("file", "data") if key in graph}
            for name, graph in graphs.items()
        }
        return graphs, {moved[name]: tree["files"][name] for name in self.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lm", type=Path, help="state_dict.bin, or a Hugging Face MusicGen folder")
    source.add_argument("--hub", help="a repository of the Hugging Face hub that holds both checkpoints")
    parser.add_argument("--codec", type=Path, help=f"{CODEC_FILE}, a Hugging Face EnCodec folder, or a bundle")
    parser.add_argument("--text", type=Path, help="a Hugging Face T5 folder, or a bundle")
    parser.add_argument("--mert", type=Path, help="a Hugging Face MERT folder, or a bundle: for style models")
    parser.add_argument("--out", type=Path, default=Path("bundle"), help="folder to create (default: bundle)")
    lm.add_options(parser)
    args = parser.parse_args()
    with reported(*ERRORS):
        checkpoint = download(args.hub) if args.hub else args.lm
        parts = checkpoint, args.codec, args.text
        export(*parts, args.out, args.attention, args.variant, args.clip, args.cache, args.mert)


def beside(checkpoint: Path) -> Path:
    """The codec that lies where the language model does: audiocraft's, or Hugging Face's MusicGen's own."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if (folder / CODEC_FILE).exists():
        return folder / CODEC_FILE
    if (folder / "config.json").exists() and not (folder / "state_dict.bin").exists():
        return folder
    raise ExportError(f"{folder}: no {CODEC_FILE} beside the language model; give --codec")


def download(repository: str) -> Path:
    """The folder of a hub repository's checkpoints in the local cache, fetched where they are not there."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ExportError("--hub needs huggingface_hub: pip install 'clean_lm[hub]'") from None
    try:
        return Path(snapshot_download(repository, allow_patterns=["*state_dict.bin"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        why = " ".join(str(error).split())
        raise ExportError(f"{repository}: not in the local cache and not to be fetched: {why}") from None


def export(
    checkpoint: Path,
    codec_path: Path | None,
    text_path: Path | None,
    out: Path,
    attention: str = "ort",
    variants: Sequence[str] = (quantize.FP32,),
    clips: Sequence[Path] = (),
    cache: str | None = None,
    mert_path: Path | None = None,
) -> None:
    """Write the bundle; print its files and how far each graph is from PyTorch. codec_path: None for that beside."""
    start = time.perf_counter()
    model = load(checkpoint)
    lm.refuse(model.config)
    quantize.refuse(variants, attention == "ort")
    sound = open_part(codec_path or beside(checkpoint), CODEC, weights.codec.load)
    texts = open_part(text_path, TEXT, weights.text.load) if text_path else None
    tokenizer = open_tokenizer(texts.checkpoint.path, texts.config) if isinstance(texts, Model) else None
    hearing = open_part(mert_path, MERT, weights.mert.load) if mert_path else None
    check(model.config, describe(sound), describe(texts) if texts else None, describe(hearing) if hearing else None)

    parts = [part for part in (model, sound, texts, hearing) if isinstance(part, Model)]
    rest = sum(part.parameters * 4 for part in parts[1:])
    with new_folder(out, quantize.needed(model.parameters, variants) + rest) as folder:
        names = lm.write_all(model, folder, attention)
        if isinstance(sound, Model):
            codec.write_graphs(sound, folder)
        if isinstance(texts, Model):
            text.write_graphs(texts, folder)
        if isinstance(hearing, Model):
            mert.write_graphs(hearing, folder)
        if tokenizer:
            tokenizer.save(str(folder / TOKENIZER))
        elif isinstance(texts, Shared):  # small, and looked for in the bundle itself: copied
            shutil.copyfile(texts.manifest.folder / TOKENIZER, folder / TOKENIZER)
        manifest(folder, model.config, names, {CODEC: sound, TEXT: texts, MERT: hearing}, attention)
        say("comparing with the PyTorch modules")
        steps = verify.parity(folder, model)
        verdicts = [f"language model {verify.summary(steps, 'the PyTorch modules')}"]
        if model.config.self_wav:
            verdicts.append(f"{names[-1]} {conditioner.parity(folder, model)}")
        if isinstance(sound, Model):
            verdicts.append(f"codec {codec.parity(folder, sound)}")
        if isinstance(texts, Model):
            verdicts.append(f"text encoder {text.parity(folder, texts)}")
        if isinstance(hearing, Model):
            verdicts.append(f"MERT {mert.parity(folder, hearing)}")
        if any(verify.DISAGREES in verdict for verdict in verdicts):
            raise ExportError("nothing was written: the graphs are not what PyTorch computes.\n" + "\n".join(verdicts))
        verdicts += quantize.add(folder, variants, clips, cache, keep=False)
    print("\n".join(verify.table(steps)), end="\n\n")
    print_files(out, sum(part.parameters for part in parts), time.perf_counter() - start)
    print("\n".join(verdicts))


def open_part(path: Path, graphs: tuple[str, ...], load: Any) -> Model[Any] | Shared:
    """A checkpoint, or the same part of a bundle, whose files must be there as its manifest has them."""
    if not (path / "manifest.json").exists():
        return load(path)
    shared = Shared(Manifest.read(path), graphs)
    missing = [name for name in graphs if name not in shared.manifest.need("graphs")]
    if missing:
        raise ExportError(f"{path}: this bundle has no {' and no '.join(missing)} to share")
    shared.manifest.check_files([*shared.files, *([TOKENIZER] if graphs == TEXT else [])])
    return shared


def describe(part: Model[Any] | Shared) -> dict[str, Any]:
    """What the manifest's `model` says of the codec, the text encoder or MERT."""
    if isinstance(part, Model):
        return DESCRIBE[type(part.config)](part.config)
    said = dict(part.manifest.need("model"))
    if part.graphs == CODEC:  # a stereo model's bundle counts both voices of its codec
        said["channels"] = part.manifest.tensor("compression_encode", "audio")["shape"][1]
        said["codebooks"] = part.manifest.tensor("compression_encode", "codes")["shape"][1]
    return said


DESCRIBE: dict[type, Any] = {CodecConfig: codec.describe, TextConfig: text.describe, MertConfig: mert.describe}


def check(
    config: LMConfig, sound: dict[str, Any], texts: dict[str, Any] | None, hearing: dict[str, Any] | None = None
) -> None:
    """Raise ExportError where the parts do not belong together."""
    if hearing and not isinstance(config.self_wav, StyleConfig):
        raise ExportError("--mert is for style models: this one's xp.cfg has no conditioners.self_wav.style")
    voices = max(1, config.channels // sound["channels"])  # a stereo model has a mono codec for each side
    pairs = {
        "sample rate": (sound["sample_rate"], config.sample_rate),
        "channels": (sound["channels"] * voices, config.channels),
        "codes": (sound["card"], config.card),
        "codebooks": (sound["codebooks"] * voices, config.codebooks),
    }
    wrong = [
        f"{name} {codec} in the codec, {lm} in the language model" for name, (codec, lm) in pairs.items() if codec != lm
    ]
    if texts and texts["text_dim"] != config.text_dim:
        wrong.append(f"states {texts['text_dim']} wide in the text encoder, {config.text_dim} in the language model")
    width = getattr(config.self_wav, "features", None)
    if hearing and hearing["style_feature_dim"] != width:
        wrong.append(f"features {hearing['style_feature_dim']} wide of MERT, {width} in the language model")
    if wrong:
        raise ExportError(f"these parts do not belong together: {'; '.join(wrong)} (its text: {config.text_encoder})")


def manifest(
    folder: Path,
    config: LMConfig,
    names: list[str],
    parts: Mapping[tuple[str, ...], Model[Any] | Shared | None],
    attention: str,
) -> None:
    """Write manifest.json over all parts. names: the graphs that the language model's checkpoint became."""
    said = {graphs: describe(part) for graphs, part in parts.items() if part}
    model = lm.describe(config)
    model |= {name: said[CODEC][name] for name in ("sample_rate", "hop", "frame_rate", "lookahead")}
    for graphs, prefix in ((TEXT, "text_"), (MERT, "style_")):
        model = {name: value for name, value in said.get(graphs, {}).items() if name.startswith(prefix)} | model
    model["text_encoder"] = config.text_encoder
    graphs, files = {}, {}
    for own, part in parts.items():
        if isinstance(part, Model):
            names = [*names, *own]
        elif part:
            theirs = part.entries(folder)
            graphs, files = graphs | theirs[0], files | theirs[1]
    update = lm.CACHE_UPDATE[attention]
    write_manifest(folder, model, lm.defaults(config), update, names, graphs, files)


if __name__ == "__main__":
    main()
