"""Graphs that a bundle takes from another one: their files stay there, the manifest names them by relative paths."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clean_lm.manifest import Manifest
from export.commands import ExportError

Entries = dict[str, dict[str, Any]]  # of a manifest's `graphs` or `files`


@dataclass(frozen=True)
class Shared:
    """One part of another bundle: its codec, its text encoder or its MERT."""

    manifest: Manifest
    graphs: tuple[str, ...]

    @classmethod
    def read(cls, bundle: Path, graphs: Sequence[str], more_files: Sequence[str] = ()) -> "Shared":
        """Raises ExportError where the bundle lacks a graph, FileNotFoundError or BundleError where a file is not
        what its manifest says."""
        shared = cls(Manifest.read(bundle), tuple(graphs))
        missing = [name for name in graphs if name not in shared.manifest.graphs]
        if missing:
            raise ExportError(f"{bundle}: this bundle has no {' and no '.join(missing)} to share")
        shared.manifest.check_files([*shared.files, *more_files])
        return shared

    @property
    def files(self) -> list[str]:
        """The graphs' files as their manifest names them, which may itself share those of a third bundle."""
        own = {file for graph in self.graphs for file in self.manifest.files_of(graph)}
        return [name for name in self.manifest.files if name in own]

    @property
    def model(self) -> dict[str, Any]:
        """The manifest's `model`; for a codec, with its own channels and codebooks: a stereo model counts both of
        its sides."""
        model = dict(self.manifest.document["model"])
        if "compression_encode" in self.graphs:
            graph = self.manifest.graphs["compression_encode"]
            model["channels"], model["codebooks"] = graph.inputs["audio"].shape[1], graph.outputs["codes"].shape[1]
        return model

    def entries(self, folder: Path) -> tuple[Entries, Entries]:
        """What the manifest of a bundle in `folder` says of these graphs and files, by paths relative to it."""
        document = self.manifest.document
        moved = {name: self._relative(name, folder.resolve()) for name in self.files}
        graphs = {name: dict(document["graphs"][name]) for name in self.graphs}
        for graph in graphs.values():
            graph.update({key: moved[graph[key]] for key in ("file", "data") if key in graph})
        return graphs, {moved[name]: document["files"][name] for name in self.files}

    def _relative(self, name: str, folder: Path) -> str:
        """The way from where `folder` really is to where the file really is."""
        path = self.manifest.folder / name
        return Path(os.path.relpath(path.parent.resolve() / path.name, folder)).as_posix()
