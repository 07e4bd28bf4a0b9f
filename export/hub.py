"""Upload a bundle to the Hugging Face hub, with a model card.

  python export/hub.py --push user/repo --bundle bundle --dry-run       write bundle/README.md, and say what is uploaded
  python export/hub.py --push user/repo --bundle bundle --private
  python export/hub.py --push user/repo --bundle bundle --base-model facebook/musicgen-small --license cc-by-nc-4.0

The card has the licence and the base model of the checkpoint's repository where the bundle was exported with --hub, and
what was measured of each variant. A README.md that is already in the bundle is uploaded as it is: edit it after a dry
run. The token is the one that `hf auth login` stored, or HF_TOKEN. Others then open the bundle by its name:
MusicGen.get_pretrained("user/repo") in Python, MusicGen.load("hf:user/repo", ...) in JavaScript.
"""

import argparse
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from clean_lm.console import Parser
from clean_lm.hub import FILE, MANIFEST, one_line
from clean_lm.manifest import BundleError, Manifest
from export.commands import ExportError, errors_as_one_line
from export.model_card import Source, front_matter, model_card

CARD = "README.md"
INSTALL = "pip install -c constraints.txt --group hub"
# What a checkpoint's folder needs beside its weights: small files, wanted where they are there.
SETTINGS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "spiece.model", "special_tokens_map.json", "adapter_config.json", CARD,
)  # fmt: skip
# Weights by how they are stored: the first kind that a repository has is downloaded, and no other.
WEIGHTS = (
    ("state_dict.bin", "compression_state_dict.bin"),
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
    ("adapter_model.safetensors",),
    ("adapter_model.bin",),
)
ERRORS = (BundleError, ExportError, OSError)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--push", metavar="REPO", required=True, help="user/repo; created where it does not exist")
    parser.add_argument("--bundle", type=Path, default=Path("bundle"), help="folder to upload (default: bundle)")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--base-model", metavar="REPO", help="where the weights come from, for the model card")
    parser.add_argument(
        "--license", metavar="ID", help="the hub's identifier, such as cc-by-nc-4.0, for the model card"
    )
    parser.add_argument("--dry-run", action="store_true", help=f"write {CARD} and list the files; upload nothing")
    args = parser.parse_args()
    with errors_as_one_line(*ERRORS, interrupted="files that were uploaded stay invisible until all are"):
        push(args.push, args.bundle, args.private, args.base_model, args.license, args.dry_run)


def push(
    repository: str,
    bundle: Path,
    private: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    dry_run: bool = False,
) -> None:
    """Write the model card, and upload the bundle in one commit. Raises ExportError, BundleError."""
    manifest = Manifest.read(bundle)
    names = uploaded(manifest)
    write_card(manifest, repository, Source.of(manifest, base_model, license))
    for name in names:
        print(f"{(bundle / name).stat().st_size / 1e6:10.2f} MB  {bundle / name}")
    if dry_run:
        print(f"not uploaded to {repository}: --dry-run")
        return
    with hub_library(repository):
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=bundle, allow_patterns=names, commit_message="Upload a clean_lm bundle"
        )
    print(commit.commit_url)


def uploaded(manifest: Manifest) -> list[str]:
    """The files of a bundle that is complete and stands alone. Raises ExportError, BundleError, FileNotFoundError."""
    if outside := sorted(name for name in manifest.files if not FILE.fullmatch(name)):
        raise ExportError(
            f"{manifest.folder}: shares files with another bundle ({outside[0]}, ...), which cannot be uploaded; "
            "export it again with --codec, --text and --mert from checkpoints"
        )
    manifest.check_files(list(manifest.files))
    return [MANIFEST, CARD, *(name for name in manifest.files if name not in (MANIFEST, CARD))]


def write_card(manifest: Manifest, repository: str, source: Source) -> None:
    """Write README.md, or leave that which is there. Raises ExportError where no licence is known."""
    path = manifest.folder / CARD
    if path.exists():
        if not front_matter(path.read_text(encoding="utf-8")).get("license"):
            raise ExportError(f"{path}: its front matter has no license; add one, or remove the file")
        print(f"{path}: kept as it is")
        return
    if source.license is None:
        raise ExportError(
            f"{manifest.folder}: the licence of its weights is unknown; give --license, for example cc-by-nc-4.0, "
            "which is that of Meta's MusicGen and of every fine-tune of it, or --base-model facebook/musicgen-..."
        )
    path.write_text(model_card(manifest, repository, source), encoding="utf-8")


# Checkpoints of the hub, for export/bundle.py --hub


def download(repository: str, revision: str | None = None) -> Path:
    """The local folder of a repository's checkpoint, fetched where it is not in the cache. Raises ExportError."""
    with hub_library(repository, "neither in the local cache nor to be fetched"):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            files = HfApi().list_repo_files(repository, revision=revision)
        except HfHubHTTPError:
            raise
        except Exception:  # no connection: each HTTP library that huggingface_hub was built on has its own error
            # no file is asked for: which of them the repository has is not known
            return Path(snapshot_download(repository, revision=revision, allow_patterns=["-"], local_files_only=True))
        return Path(snapshot_download(repository, revision=revision, allow_patterns=needed(files, repository)))


def needed(files: Collection[str], repository: str) -> list[str]:
    """The patterns of the files that an export reads, of those at the top of a repository. Raises ExportError."""
    for kind in WEIGHTS:
        if any(Path(file).match(pattern) for file in files if "/" not in file for pattern in kind):
            return [*kind, *SETTINGS]
    raise ExportError(
        f"{repository}: holds no checkpoint: expected state_dict.bin, model*.safetensors or pytorch_model*.bin; "
        f"got {', '.join(sorted(files)[:8]) or 'no files'}"
    )


def source_of(folder: Path, repository: str) -> dict[str, str]:
    """What a bundle's manifest says of where its weights come from: the repository, its commit, its licence."""
    card = folder / CARD
    license = front_matter(card.read_text(encoding="utf-8")).get("license") if card.exists() else None
    found = {"repository": repository, "revision": folder.name}
    return found | ({"license": license} if isinstance(license, str) else {})


@contextmanager
def hub_library(repository: str, failed: str = "the hub refused") -> Iterator[None]:
    """Raise ExportError in one line for what huggingface_hub raises, and where it is not installed."""
    if find_spec("huggingface_hub") is None:
        raise ExportError(f"the hub needs huggingface_hub: {INSTALL}")
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # the hub's, and those of whichever HTTP library huggingface_hub is built on
        raise ExportError(f"{repository}: {failed}: {one_line(error)}") from None


if __name__ == "__main__":
    main()
