"""A T5's tokenizer: its `tokenizer.json`, or one made of its SentencePiece `spiece.model`, which is read here."""

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from clean_lm.models.config import TextConfig
from weights.checkpoint import CheckpointError, read_json, refuse_pointer

EXTRA_IDS = 100  # T5's sentinels, after the pieces, the last one first
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space
UNIGRAM = 1
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # kinds of pieces

# Settings of sentencepiece_model.proto that would make other tokens,
#   (message, number of the field): (its name, the value that is implemented, the value of a field that is left out)
TRAINER, NORMALIZER = 2, 3
IMPLEMENTED = {
    (TRAINER, 3): ("model_type", UNIGRAM, UNIGRAM),
    (TRAINER, 24): ("treat_whitespace_as_suffix", 0, 0),
    (TRAINER, 35): ("byte_fallback", 0, 0),
    (NORMALIZER, 3): ("add_dummy_prefix", 1, 1),
    (NORMALIZER, 4): ("remove_extra_whitespaces", 1, 1),
    (NORMALIZER, 5): ("escape_whitespaces", 1, 1),
}


def open_tokenizer(folder: Path, config: TextConfig) -> Tokenizer:
    """The tokenizer of a T5's folder: whole texts without padding, each followed by `config`'s eos token.

    Raises CheckpointError, FileNotFoundError.
    """
    path, pieces = folder / "tokenizer.json", folder / "spiece.model"
    if path.exists():
        tokenizer = _read(path)
    elif pieces.exists():
        path, tokenizer = pieces, from_sentencepiece(pieces, _extra_ids(folder / "tokenizer_config.json"))
    else:
        raise FileNotFoundError(f"{folder}: no tokenizer.json and no spiece.model; copy one of them from the same T5")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= config.vocab:
        raise CheckpointError(f"{path}: its tokens go up to {highest}, the text encoder knows {config.vocab} of them")
    if (ids := tokenizer.encode("").ids) != [config.eos_token]:
        raise CheckpointError(f"{path}: an empty text is {ids}, expected the eos token alone: [{config.eos_token}]")
    return tokenizer


def from_sentencepiece(path: Path, extra_ids: int = EXTRA_IDS) -> Tokenizer:
    """Read a `spiece.model`: a Unigram model whose spaces stand before words. Raises CheckpointError.

    The tokens are those of transformers' T5Tokenizer, which also runs on the tokenizers library. The sentencepiece
    package itself, of which transformers before 5 could be made, has others for two oddities: an accent that
    follows a character which normalisation changes ("½" and U+0301), and special tokens that are spelled out.
    """
    refuse_pointer(path)
    try:
        pieces, settings = _parse(path.read_bytes())
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: not a SentencePiece model, or truncated ({error}); copy it again") from None
    _check(path, pieces, settings)
    kinds = [kind for _, _, kind in pieces]
    extra = [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
    vocab = [(piece, score) for piece, score, _ in pieces] + [(token, 0.0) for token in extra]
    tokenizer = Tokenizer(Unigram(vocab, unk_id=kinds.index(UNKNOWN), byte_fallback=False))
    special = [piece for piece, _, kind in pieces if kind in (UNKNOWN, CONTROL)] + extra
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    user = [piece for piece, _, kind in pieces if kind == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in user])
    if charsmap := settings.get((NORMALIZER, 2)):
        assert isinstance(charsmap, bytes)
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    spaces = {"replacement": SPACE, "prepend_scheme": "always", "split": True}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**spaces)]
    )
    tokenizer.decoder = decoders.Metaspace(**spaces)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer


def _read(path: Path) -> Tokenizer:
    refuse_pointer(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{path}: not a tokenizer that can be read ({error}); copy it again") from None


def _extra_ids(path: Path) -> int:
    """How many sentinels a T5 has: tokenizer_config.json may say it."""
    count = read_json(path).get("extra_ids", EXTRA_IDS) if path.exists() else EXTRA_IDS
    if not isinstance(count, int) or not 0 <= count < 2**16:
        raise CheckpointError(f"{path}: extra_ids is {count!r}, expected a number of tokens")
    return count


Piece = tuple[str, float, int]  # text, score, kind
Settings = dict[tuple[int, int], int | bytes]  # (message, number of the field): value


def _parse(data: bytes) -> tuple[list[Piece], Settings]:
    """The pieces and settings of a sentencepiece_model.proto. Raises ValueError, struct.error."""
    pieces: list[Piece] = []
    settings: Settings = {}
    for number, value in _fields(data):
        if not isinstance(value, bytes):
            raise ValueError(f"field {number} is a number, expected a message")
        if number == 1:
            piece = {1: b"", 2: b"\0\0\0\0", 3: 1} | dict(_fields(value))
            text, score, kind = piece[1], piece[2], piece[3]
            if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
                raise ValueError(f"piece {len(pieces)} is not a text, a score and a kind")
            pieces.append((text.decode("utf-8"), *struct.unpack("<f", score), kind))
        elif number in (TRAINER, NORMALIZER):
            settings |= {(number, inner): found for inner, found in _fields(value)}
    return pieces, settings


def _check(path: Path, pieces: list[Piece], settings: Settings) -> None:
    """Raise CheckpointError where the model is not T5's kind."""
    if not pieces or not any(message == TRAINER for message, _ in settings):
        raise CheckpointError(f"{path}: not a SentencePiece model, or truncated ({len(pieces)} pieces); copy it again")
    for field, (name, ours, default) in IMPLEMENTED.items():
        if (found := settings.get(field, default)) != ours:
            raise CheckpointError(f"{path}: {name} is {found!r}, supported: {ours} (a Unigram model like T5's)")
    unknown = [piece for piece, _, kind in pieces if kind == UNKNOWN]
    if len(unknown) != 1 or "</s>" not in (piece for piece, _, _ in pieces):
        raise CheckpointError(f"{path}: {len(unknown)} unknown pieces, expected one, and a piece </s>")
    if len({piece for piece, _, _ in pieces}) != len(pieces):
        raise CheckpointError(f"{path}: a piece stands in it twice; copy it again")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """A protobuf message's fields: its number, and its value or, where it is not a varint, its bytes.

    Encoding: https://protobuf.dev/programming-guides/encoding/. Raises ValueError where it is cut off.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > len(data):
            raise ValueError(f"{length} bytes wanted at byte {at} of {len(data)}")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in 7 bits a byte, lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError(f"no number ends at byte {at}")
