"""Bundles that are opened while they are written: their manifest.json appears last, a part of one is no bundle."""

import json
from pathlib import Path
from typing import Unpack

from clean_lm import atomic
from clean_lm.manifest import LoadOptions, Manifest

MANIFEST = "manifest.json"
Bundle = Path | Manifest  # a folder, or the manifest of one whose manifest.json is held back


def opened(bundle: Bundle, **options: Unpack[LoadOptions]) -> Manifest:
    """A bundle's manifest. Raises FileNotFoundError, BundleError."""
    if isinstance(bundle, Manifest):
        return Manifest.parse(bundle.folder, bundle.document, {**bundle.options, **options})
    return Manifest.read(bundle, **options)


def held_back(folder: Path) -> Manifest:
    """Take a new bundle's manifest.json away until everything is compared: whatever ends the process before `put`, what
    it leaves is opened by nothing."""
    manifest = Manifest.read(folder)
    (folder / MANIFEST).unlink()
    return manifest


def put(manifest: Manifest) -> None:
    """Write the manifest.json that was held back, unless another one was written since."""
    path = manifest.folder / MANIFEST
    if not path.exists():
        with atomic.file(path) as file:
            file.write((json.dumps(manifest.document, indent=1) + "\n").encode())
