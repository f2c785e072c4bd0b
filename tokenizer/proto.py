"""A SentencePiece `tokenizer.model`, written: a ModelProto of pieces, scores and types.

Source: sentencepiece_model.proto (field numbers and enums) of the sentencepiece project; the wire format is that of
protocol buffers. The few fields that a BPE model needs are encoded here, so that protobuf is no dependency.
"""

import struct
from collections.abc import Sequence

from gguf.constants import TokenType

BPE = 2  # TrainerSpec.ModelType
VARINT, FIXED32, BYTES = 0, 5, 2  # wire types


def model_proto(
    pieces: Sequence[tuple[str, float, TokenType]], special: dict[str, int], *, add_dummy_prefix: bool
) -> bytes:
    """The serialized model of these pieces (text, score, type), in the order of their ids.

    special: ids of "unk", "bos", "eos" and "pad", as far as there are any. add_dummy_prefix: a space before each text.
    gguf.TokenType has the numbers of SentencePiece.Type.
    """
    parts = [
        _bytes(1, _bytes(1, text.encode()) + _tag(2, FIXED32) + struct.pack("<f", score) + _number(3, kind))
        for text, score, kind in pieces
    ]
    byte_fallback = sum(kind == TokenType.BYTE for _, _, kind in pieces) == 256
    trainer = _number(3, BPE) + _number(4, len(pieces)) + _number(35, byte_fallback)
    for field, role in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad")):
        trainer += _number(field, special.get(role, -1))
    for field, role in ((45, "unk"), (46, "bos"), (47, "eos"), (48, "pad")):
        if role in special:
            trainer += _bytes(field, pieces[special[role]][0].encode())
    normalizer = _bytes(1, b"identity") + _number(3, add_dummy_prefix) + _number(4, 0) + _number(5, 1)
    return b"".join(parts) + _bytes(2, trainer) + _bytes(3, normalizer)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers are written as their two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _number(field: int, value: int) -> bytes:
    return _tag(field, VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _tag(field, BYTES) + _varint(len(value)) + value
