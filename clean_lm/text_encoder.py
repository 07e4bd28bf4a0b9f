"""Descriptions to text states, in ONNX Runtime: what `LanguageModel.generate_codes` takes for `text_states`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from tokenizers import Tokenizer

from clean_lm.manifest import BundleError, LoadOptions, Manifest
from clean_lm.session import Graph, open_graph

TOKENIZER = "tokenizer.json"


class TextEncoder:
    """text_encoder and tokenizer.json of a bundle. Safe to call from several threads."""

    def __init__(self, graph: Graph, tokenizer: Tokenizer):
        self.graph, self.tokenizer = graph, tokenizer

    @classmethod
    def load(cls, bundle: Path | str, **options: Unpack[LoadOptions]) -> "TextEncoder":
        """Open a bundle, see LoadOptions. Raises FileNotFoundError and BundleError, naming the file."""
        return cls.open(Manifest.read(bundle, **options))

    @classmethod
    def open(cls, manifest: Manifest) -> "TextEncoder":
        """The text encoder of a manifest that is already read."""
        if "text_encoder" not in manifest.graphs:
            raise BundleError(
                f"{manifest.folder}: contains no text encoder; export it again with --text FOLDER of a T5"
            )
        graph = open_graph(manifest, "text_encoder")
        if TOKENIZER not in manifest.files:
            raise BundleError(f"{manifest.folder}: contains no {TOKENIZER}; export the text encoder again")
        manifest.check_files([TOKENIZER])
        try:
            tokenizer = Tokenizer.from_file(str(manifest.folder / TOKENIZER))
        except Exception as error:  # tokenizers raises nothing narrower
            raise BundleError(f"{manifest.folder / TOKENIZER}: not readable: {error}") from None
        return cls(graph, tokenizer)

    def encode(self, descriptions: Sequence[str | None]) -> list[np.ndarray | None]:
        """The text encoder's last hidden state float [N, E] of each description, without padding.

        None and "" are null text and give None; " " is a text like any other. Long texts are not truncated, as in
        audiocraft, though T5 was trained on 512 tokens; time and memory grow with N^2. Characters that the tokenizer
        does not know, such as emoji, become the unknown token. Raises ValueError.
        """
        if isinstance(descriptions, str):
            raise ValueError(f"descriptions: got {descriptions!r}, expected a list, one per row")
        texts = [text or None for text in descriptions]
        states = {text: self.states(self.tokens(text)) for text in set(texts) if text is not None}
        return [None if text is None else states[text] for text in texts]

    def tokens(self, text: str) -> list[int]:
        """A text's tokens, the eos token last. Raises ValueError."""
        try:
            return self.tokenizer.encode(text).ids
        except (TypeError, UnicodeEncodeError):  # a surrogate without its other half is not Unicode
            raise ValueError(f"descriptions: got {text!r}, expected Unicode text or None") from None

    def states(self, tokens: Sequence[int]) -> np.ndarray:
        """tokens [N] -> float [N, E]. One text at a time: nothing is padded, and so nothing needs a mask."""
        input_ids = np.array([tokens], dtype=np.int64)
        inputs = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        return self.graph.run(inputs)["last_hidden_state"][0]
