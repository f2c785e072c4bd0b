"""A SentencePiece `tokenizer.model`: a ModelProto of pieces, scores and types, written, and its types read.

Source: sentencepiece_model.proto (field numbers and enums) of the sentencepiece project; the wire format is that of
protocol buffers. The few fields that a BPE model needs are encoded here, so that protobuf is no dependency.
"""

import struct
from collections.abc import Iterator, Sequence

from gguf.constants import TokenType

BPE = 2  # TrainerSpec.ModelType
VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)  # wire types
MAX_GROUPS = 100  # inside each other, as the library of protocol buffers has it
NORMAL, USER_DEFINED = 1, 4  # SentencePiece.Type


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


def piece_types(raw: bytes) -> list[int]:
    """The SentencePiece.Type of every piece, in order. ValueError for anything but a ModelProto."""
    return [
        next((kind for field, kind in _fields(piece) if field == 3 and isinstance(kind, int)), NORMAL)
        for field, piece in _fields(raw)
        if field == 1 and isinstance(piece, bytes)
    ]


def charsmap(raw: bytes) -> bytes:
    """NormalizerSpec.precompiled_charsmap of a ModelProto; empty if it has none. ValueError as `piece_types`."""
    specs = [spec for field, spec in _fields(raw) if field == 3 and isinstance(spec, bytes)]
    return next(
        (value for spec in specs for field, value in _fields(spec) if field == 2 and isinstance(value, bytes)), b""
    )


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message by number: numbers of variable length as such, all else as bytes; groups are skipped."""
    at, groups = 0, list[int]()
    while at < len(raw):
        tag, at = _read_varint(raw, at)
        field, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _read_varint(raw, at)
            if not groups:
                yield field, value
            continue
        if wire == GROUP and len(groups) < MAX_GROUPS:
            groups.append(field)
            continue
        if wire == END_GROUP and groups and groups.pop() == field:
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(wire, 0)
        if wire == BYTES:
            size, at = _read_varint(raw, at)
        if (not size and wire != BYTES) or size > len(raw) - at:
            raise ValueError(f"not a protocol buffer at byte {at}")
        if not groups:
            yield field, raw[at : at + size]
        at += size
    if groups:
        raise ValueError(f"not a protocol buffer: group {groups[-1]} does not end")


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(raw) or shift > 63:
            raise ValueError(f"not a protocol buffer at byte {at}")
        byte = raw[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at


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
