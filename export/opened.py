"""Bundles that are opened while they are written: their manifest.json appears last, a part of one is no bundle.

What is opened here to be measured leaves its weights where they are: in memory-mapped files, whose pages the system
takes back when it needs room. A runtime's session copies every matrix into an order that is faster to multiply with,
which takes as much memory again.
"""

from pathlib import Path
from typing import Unpack

import onnxruntime as ort

from clean_lm.language_model import SELF_WAV, LanguageModel
from clean_lm.manifest import LoadOptions, Manifest
from clean_lm.session import Graph, open_graph

MANIFEST = "manifest.json"
Bundle = Path | Manifest  # a folder, or the manifest of one whose manifest.json is not written yet


def opened(bundle: Bundle, **options: Unpack[LoadOptions]) -> Manifest:
    """A bundle's manifest. Raises FileNotFoundError, BundleError."""
    if isinstance(bundle, Manifest):
        return Manifest.parse(bundle.folder, bundle.document, {**bundle.options, **options})
    return Manifest.read(bundle, **options)


class MappedGraph(Graph):
    """A graph whose weights stay in their memory-mapped file."""

    def session_options(self) -> ort.SessionOptions:
        options = super().session_options()
        options.add_session_config_entry("session.disable_prepacking", "1")
        return options


def mapped_graph(manifest: Manifest, name: str) -> Graph:
    """One graph of a bundle. Raises FileNotFoundError, BundleError."""
    graph = open_graph(manifest, name)
    return MappedGraph(graph.path, graph.info, graph.options)


def mapped_language_model(manifest: Manifest) -> LanguageModel:
    """A bundle's language model. Raises FileNotFoundError, BundleError."""
    kind = manifest.language_model.self_wav
    inference, condition = (mapped_graph(manifest, name) for name in ("lm_inference", "lm_condition"))
    return LanguageModel(manifest, inference, condition, mapped_graph(manifest, SELF_WAV[kind]) if kind else None)
