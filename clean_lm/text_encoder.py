"""Descriptions to text states, in ONNX Runtime: what `LanguageModel.generate_codes` takes for `text_states`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

import numpy as np
from tokenizers import Tokenizer

from clean_lm.manifest import TOKENIZER, BundleError, LoadOptions, Manifest
from clean_lm.options import MOST_TOKENS, shown, texts
from clean_lm.placement import place
from clean_lm.session import Graph, open_graph
from clean_lm.tokenizer_bounds import LONGEST, check_growth


class TextEncoder:
    """text_encoder and tokenizer.json of a bundle. Safe to call from several threads."""

    def __init__(self, graph: Graph, tokenizer: Tokenizer, path: Path = Path(TOKENIZER), vocab: int | None = None):
        """path: the tokenizer's, for errors. vocab: how many tokens the text encoder knows, None where nothing says."""
        self.graph, self.tokenizer, self.path, self.vocab = graph, tokenizer, path, vocab

    @classmethod
    def load(cls, bundle: Path | str, **options: Unpack[LoadOptions]) -> "TextEncoder":
        """Open a bundle, see LoadOptions. Raises FileNotFoundError, BundleError, DeviceError."""
        return place(Manifest.read(bundle, **options), cls.open)

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
        path = manifest.folder / TOKENIZER
        with tokenizer_errors(path, "not readable"):
            check_growth(path)
            tokenizer = Tokenizer.from_file(str(path))
            padding, multiple = ((tokenizer.padding or {}).get(key) or 0 for key in ("length", "pad_to_multiple_of"))
        if max(padding, multiple) > MOST_TOKENS:
            raise BundleError(f"{path}: pads texts to {max(padding, multiple)} tokens, expected {MOST_TOKENS} at most")
        return cls(graph, tokenizer, path, manifest.text.text_vocab)

    def encode(self, descriptions: Sequence[str | None]) -> list[np.ndarray | None]:
        """The text encoder's last hidden state float [N, E] of each description, without padding.

        None and "" are null text and give None; " " is a text like any other. Long texts are not truncated, as in
        audiocraft, though T5 was trained on 512 tokens; time and memory grow with N^2, and more than 2048 tokens or
        10000 characters are refused. Characters that the tokenizer
        does not know, such as emoji, become the unknown token. Raises ValueError, BundleError for a tokenizer that does
        not belong to the text encoder.
        """
        rows = [text or None for text in texts("descriptions", descriptions)]
        tokens = {text: self.tokens(text) for text in set(rows) if text is not None}
        states = {text: self.states(found) for text, found in tokens.items()}
        return [None if text is None else states[text] for text in rows]

    def tokens(self, text: str) -> list[int]:
        """A text's tokens, the eos token last. Raises ValueError, BundleError."""
        try:
            with tokenizer_errors(self.path, "cannot read a text"):
                self._require_short(text)
                tokens = self.tokenizer.encode(text).ids
        except (TypeError, UnicodeEncodeError):  # a surrogate without its other half is not Unicode
            raise ValueError(f"descriptions: got {shown(text)}, expected Unicode text or None") from None
        if len(tokens) > MOST_TOKENS:
            raise ValueError(
                f"descriptions: got a text of {len(tokens)} tokens, expected {MOST_TOKENS} at most: shorten it"
            )
        if not tokens or (self.vocab and max(tokens) >= self.vocab):
            found = f"token {max(tokens)}" if tokens else "no tokens"
            raise BundleError(
                f"{self.path}: makes {found} of a text, expected some below {self.vocab}, the text encoder's; export "
                "the text encoder again"
            )
        return tokens

    def _require_short(self, text: str) -> None:
        """Raise ValueError where the normalizer makes too much of a text: a table of its may have any length."""
        if self.tokenizer.normalizer is not None:
            normalized = sum(len(self.tokenizer.normalizer.normalize_str(c)) * n for c, n in Counter(text).items())
            if normalized > LONGEST:
                raise ValueError(f"makes {normalized} characters of {len(text)}, expected {LONGEST} at most")

    def states(self, tokens: Sequence[int]) -> np.ndarray:
        """tokens [N] -> float [N, E]. One text at a time: nothing is padded, and so nothing needs a mask."""
        input_ids = np.array([tokens], dtype=np.int64)
        inputs = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        return self.graph.run(inputs)["last_hidden_state"][0]


@contextmanager
def tokenizer_errors(path: Path, what: str) -> Iterator[None]:
    """Raise BundleError in one line for what the tokenizers library raises.

    It raises nothing narrower than Exception, and where its Rust code panics, a PanicException, which is no Exception.
    """
    try:
        yield
    except (TypeError, UnicodeEncodeError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # a signal, or the end of the process
        raise BundleError(f"{path}: {what}: {' '.join(str(error).split())}; export the text encoder again") from None
