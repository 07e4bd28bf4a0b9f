"""A T5's tokenizer: its `tokenizer.json`, or one made of its SentencePiece `spiece.model`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from clean_lm.models.config import TextConfig
from weights.errors import CheckpointError, one_line, show
from weights.sentencepiece_model import (
    CONTROL,
    EOS,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    read_sentencepiece,
)
from weights.torch_files import first_bytes
from weights.trees import read_json

EXTRA_IDS = 100  # T5's sentinels, which follow the pieces, highest number first
LARGEST = 2**26  # bytes; that of T5 has 1.4 million
# A text whose encoding reaches most of a tokenizer.
SAMPLE = "A slow, warm house track: 120 bpm; piano & strings (caf\N{LATIN SMALL LETTER E WITH ACUTE})"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space


def open_tokenizer(folder: Path, config: TextConfig) -> Tokenizer:
    """The tokenizer of a T5's folder: whole texts without padding, each followed by `config`'s eos token.

    Raises CheckpointError, FileNotFoundError.
    """
    path, pieces = folder / "tokenizer.json", folder / "spiece.model"
    if path.exists():
        tokenizer = _read(path)
    elif pieces.exists():
        path, extra_ids = pieces, _extra_ids(folder / "tokenizer_config.json")
        with _readable(path):
            tokenizer = from_sentencepiece(pieces, extra_ids)
    else:
        raise FileNotFoundError(f"{folder}: no tokenizer.json and no spiece.model; copy one of them from the same T5")
    with _readable(path):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        highest, ids = max(tokenizer.get_vocab().values(), default=0), tokenizer.encode("").ids
        with contextlib.suppress(Exception):  # a tokenizer may know a few words only: here it must not panic
            tokenizer.encode(SAMPLE)
    if highest >= config.vocab:
        raise CheckpointError(f"{path}: its tokens go up to {highest}, the text encoder knows {config.vocab} of them")
    if ids != [config.eos_token]:
        raise CheckpointError(
            f"{path}: an empty text is {show(ids)}, expected the eos token alone: [{config.eos_token}]"
        )
    return tokenizer


def from_sentencepiece(path: Path, extra_ids: int = EXTRA_IDS) -> Tokenizer:
    """Read a `spiece.model`: a Unigram model that marks the space before a word. Raises CheckpointError.

    The tokens are those of transformers' T5Tokenizer, which also runs on the tokenizers library. The sentencepiece
    package, which transformers before 5 could use, gives others in two rare cases: an accent that follows a character
    which normalisation changes ("½" and U+0301), and special tokens that are spelled out.
    """
    model = read_sentencepiece(path)
    tokenizer = _unigram(model, [f"<extra_id_{i}>" for i in reversed(range(extra_ids))])
    if model.charsmap:
        tokenizer.normalizer = normalizers.Precompiled(model.charsmap)
    spaces = {"replacement": SPACE, "prepend_scheme": "always", "split": True}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**spaces)]
    )
    tokenizer.decoder = decoders.Metaspace(**spaces)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return tokenizer


def _unigram(model: SentencePieceModel, extra: list[str]) -> Tokenizer:
    """Pieces and sentinels with their scores; special and user-defined ones are found before the text is split."""
    vocab = [(piece.text, piece.score) for piece in model.pieces] + [(token, 0.0) for token in extra]
    unknown = [piece.kind for piece in model.pieces].index(UNKNOWN)
    tokenizer = Tokenizer(Unigram(vocab, unk_id=unknown, byte_fallback=False))
    special = model.of_kind(UNKNOWN, CONTROL) + extra
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in model.of_kind(USER_DEFINED)])
    return tokenizer


def _read(path: Path) -> Tokenizer:
    first_bytes(path)
    if (size := path.stat().st_size) > LARGEST:
        raise CheckpointError(f"{path}: {size} bytes, expected a tokenizer of at most {LARGEST}")
    with _readable(path):
        return Tokenizer.from_file(str(path))


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise CheckpointError for all that the tokenizers library says of a file.

    It raises nothing narrower than Exception; and where it panics, on some damaged files, PanicException, which is a
    BaseException and has no module to import it from.
    """
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{path}: not a tokenizer that can be read ({one_line(error)}); copy it again") from None


def _extra_ids(path: Path) -> int:
    """How many sentinels a T5 has: tokenizer_config.json may say it."""
    count = read_json(path).get("extra_ids", EXTRA_IDS) if path.exists() else EXTRA_IDS
    if type(count) is not int or not 0 <= count < 2**16:
        raise CheckpointError(f"{path}: extra_ids is {show(count)}, expected a number of tokens")
    return count
