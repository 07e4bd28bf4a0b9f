"""Bundles of the Hugging Face hub, by way of huggingface_hub and its cache."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clean_lm.manifest import TOKENIZER, BundleError, LoadOptions, Manifest
from clean_lm.placement import expected

MANIFEST = "manifest.json"
INSTALL = "pip install huggingface_hub"
COMMIT = re.compile(r"[0-9a-f]{40}")
FILE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # no "..", no leading slash or dot, no drive


def find_bundle(
    name: str | Path, revision: str | None, token: str | None, options: LoadOptions
) -> tuple[Path, LoadOptions]:
    """The folder of a bundle, and how to open it: `name` itself if it is one, else that of a repository of the hub in
    the local cache, confined to the repository's part of it.

    manifest.json is fetched first, then what is missing of the chosen variant's files, all of one commit. Without a
    connection, what is in the cache is used. Raises BundleError, in one line.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise BundleError(f"revision: got {revision!r} for the folder {name}, expected None: folders have none")
        return Path(name), options
    download = _downloader(str(name), token)
    path = download(MANIFEST, revision)
    commit = path.parent.name if COMMIT.fullmatch(path.parent.name) else revision
    options = {**options, "confine": path.parents[2]}  # .../models--user--repo, with its snapshots/COMMIT and blobs
    manifest = expected(Manifest.read(path.parent, **options))
    if options.get("device") is not None:  # the files of one variant are there, no other can be tried
        options = {**options, "device": manifest.options.get("device"), "variant": manifest.variant}
    require_own_files(str(name), manifest)
    for file in files_needed(manifest):
        download(file, commit)
    return path.parent, options


def files_needed(manifest: Manifest) -> list[str]:
    """The files that a bundle's chosen variant is opened from."""
    named = {file for graph in manifest.graphs.values() for file in (graph.file, graph.data)}
    return [file for file in manifest.files if file in named or file == TOKENIZER]


def require_own_files(name: str, manifest: Manifest) -> None:
    """Raise BundleError if a manifest names a file outside of its own folder: its `files` has those of all graphs."""
    for file in manifest.files:
        if not FILE.fullmatch(file):
            raise BundleError(f"{name}: {MANIFEST} names {file!r}, expected files of the repository alone")


def _downloader(repository: str, token: str | None) -> Callable[[str, str | None], Path]:
    """A function of a file's name and revision, which gives its path in the local cache."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise BundleError(f"{repository}: no such folder, and a repository of the hub needs {INSTALL}") from None

    def download(file: str, revision: str | None) -> Path:
        with hub_errors(repository, file, revision):
            return Path(hf_hub_download(repository, file, revision=revision, token=token))

    return download


@contextmanager
def hub_errors(repository: str, file: str, revision: str | None) -> Iterator[None]:
    """Raise BundleError for what huggingface_hub raises: what failed, and what to do."""
    from huggingface_hub import errors

    what = f"{repository}/{file}"
    try:
        yield
    except errors.GatedRepoError:
        raise BundleError(
            f"{what}: access is gated; accept the terms on the repository's page, and give a token"
        ) from None
    except errors.RepositoryNotFoundError:
        raise BundleError(
            f"{what}: the repository does not exist or is private; check its name, or give a token that may read it"
        ) from None
    except errors.RevisionNotFoundError:
        raise BundleError(f"{what}: the repository has no revision {revision}") from None
    except errors.LocalEntryNotFoundError as error:  # before the next, which it is a kind of
        raise BundleError(f"{what}: not in the local cache, and the hub cannot be reached: {one_line(error)}") from None
    except errors.EntryNotFoundError:
        raise BundleError(
            f"{what}: not in the repository; expected a bundle that export/hub.py --push uploaded"
        ) from None
    except errors.HFValidationError as error:
        raise BundleError(f"{repository}: no such folder, and no name of a repository: {one_line(error)}") from None
    except Exception as error:  # those of whichever HTTP library huggingface_hub is built on, too
        raise BundleError(f"{what}: cannot be downloaded: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())
