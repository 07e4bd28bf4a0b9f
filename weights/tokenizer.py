"""A T5's tokenizer: its `tokenizer.json`, or one made of its SentencePiece `spiece.model`."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from clean_lm.models.config import TextConfig
from weights.containers import CheckpointError, read_json, refuse_pointer
from weights.sentencepiece_model import (
    CONTROL,
    EOS,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    read_sentencepiece,
)

EXTRA_IDS = 100  # T5's sentinels, which follow the pieces, highest number first
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space


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
