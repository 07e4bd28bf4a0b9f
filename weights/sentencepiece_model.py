"""SentencePiece's `spiece.model`: a protobuf message, of which a Unigram model like T5's is read.

The message types below are the fields of sentencepiece_model.proto (https://github.com/google/sentencepiece) that
matter here, with the proto's own numbers and defaults; protobuf skips the others.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from weights.errors import CheckpointError, one_line, show
from weights.torch_files import first_bytes

UNIGRAM = 1
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of pieces
EOS = "</s>"
LARGEST = 2**26  # bytes; that of T5 has 800 thousand

FieldType = descriptor_pb2.FieldDescriptorProto
STRING, BYTES, FLOAT, BOOL = FieldType.TYPE_STRING, FieldType.TYPE_BYTES, FieldType.TYPE_FLOAT, FieldType.TYPE_BOOL
INT = FieldType.TYPE_INT32  # in the proto an enum, on the wire the same: a value that is not in it is kept

# message: its fields as (number, name, type, the value where it is left out)
MESSAGES = {
    "SentencePiece": [(1, "piece", STRING, ""), (2, "score", FLOAT, "0"), (3, "type", INT, f"{NORMAL}")],
    "TrainerSpec": [
        (3, "model_type", INT, f"{UNIGRAM}"),
        (24, "treat_whitespace_as_suffix", BOOL, "false"),
        (35, "byte_fallback", BOOL, "false"),
    ],
    "NormalizerSpec": [
        (2, "precompiled_charsmap", BYTES, ""),
        (3, "add_dummy_prefix", BOOL, "true"),
        (4, "remove_extra_whitespaces", BOOL, "true"),
        (5, "escape_whitespaces", BOOL, "true"),
    ],
}
PARTS = [(1, "pieces", "SentencePiece"), (2, "trainer_spec", "TrainerSpec"), (3, "normalizer_spec", "NormalizerSpec")]

# Settings that would make other tokens: (message, field, the value that is supported)
SUPPORTED = [
    ("trainer_spec", "model_type", UNIGRAM),
    ("trainer_spec", "treat_whitespace_as_suffix", 0),
    ("trainer_spec", "byte_fallback", 0),
    ("normalizer_spec", "add_dummy_prefix", 1),
    ("normalizer_spec", "remove_extra_whitespaces", 1),
    ("normalizer_spec", "escape_whitespaces", 1),
]


@dataclass(frozen=True)
class SentencePiece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    pieces: tuple[SentencePiece, ...]
    charsmap: bytes  # of the normaliser; empty: texts are not normalised

    def of_kind(self, *kinds: int) -> list[str]:
        """The pieces of some kinds."""
        return [piece.text for piece in self.pieces if piece.kind in kinds]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read and check a `spiece.model`. Raises CheckpointError where it is damaged, or not a Unigram model like T5's."""
    first_bytes(path)
    if (size := path.stat().st_size) > LARGEST:
        raise CheckpointError(f"{path}: {size} bytes, expected a SentencePiece model of at most {LARGEST}")
    proto = _model_proto()()
    try:
        proto.ParseFromString(path.read_bytes())
        pieces = tuple(SentencePiece(piece.piece, piece.score, piece.type) for piece in proto.pieces)
    except (DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: not a SentencePiece model, or truncated ({one_line(error)}); copy it again"
        ) from None
    if not pieces or not proto.HasField("trainer_spec"):
        raise CheckpointError(f"{path}: not a SentencePiece model, or truncated ({len(pieces)} pieces); copy it again")
    _check_settings(path, proto)
    model = SentencePieceModel(pieces, proto.normalizer_spec.precompiled_charsmap)
    _check_pieces(path, model)
    return model


def _check_settings(path: Path, proto: Any) -> None:
    for message, name, ours in SUPPORTED:
        found = getattr(getattr(proto, message), name)
        if found != ours:
            raise CheckpointError(f"{path}: {name} is {int(found)}, supported: {ours} (a Unigram model like T5's)")


def _check_pieces(path: Path, model: SentencePieceModel) -> None:
    texts, unknown = [piece.text for piece in model.pieces], model.of_kind(UNKNOWN)
    if len(unknown) != 1 or EOS not in texts:
        raise CheckpointError(f"{path}: {len(unknown)} unknown pieces, expected one, and a piece {EOS}")
    if len(set(texts)) != len(texts):
        raise CheckpointError(f"{path}: a piece is in it twice; copy it again")
    if odd := next((piece for piece in model.pieces if not math.isfinite(piece.score)), None):
        raise CheckpointError(f"{path}: the score of the piece {show(odd.text)} is {odd.score}; copy it again")


def _model_proto() -> Any:
    """The class of sentencepiece's ModelProto, in a pool of its own: other libraries register it by the same name."""
    file = descriptor_pb2.FileDescriptorProto(name="spiece.proto", package="spiece", syntax="proto2")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind, default in fields:
            message.field.add(
                number=number, name=field, type=kind, label=FieldType.LABEL_OPTIONAL, default_value=default
            )
    whole = file.message_type.add(name="ModelProto")
    for number, field, part in PARTS:
        label = FieldType.LABEL_REPEATED if field == "pieces" else FieldType.LABEL_OPTIONAL
        whole.field.add(
            number=number, name=field, type=FieldType.TYPE_MESSAGE, type_name=f".spiece.{part}", label=label
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("spiece.ModelProto"))
