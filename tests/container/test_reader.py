"""The reader: one hostile file per check, truncation everywhere, bounded memory; and reading tensor bytes.

The kinds of damage are those of llama.cpp's tests/test-gguf.cpp and of published vulnerabilities, built field by field.
"""

import os
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGUFValueType as T

from ggufsmith.container import reader
from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import array, boolean, string, strings, u32

U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
F32, I8, I64, Q4_0 = 0, 24, 27, 2


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return U64(len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + U32(kind) + value


def record(name: str | bytes, dims: tuple[int, ...] = (8,), kind: int = F32, offset: int = 0) -> bytes:
    """Dimensions as stored: fastest first."""
    return text(name) + U32(len(dims)) + b"".join(U64(dim % 2**64) for dim in dims) + U32(kind) + U64(offset)


@dataclass
class Raw:
    """A file as fields that a test may get wrong."""

    pairs: list[bytes] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    pair_count: int | None = None
    record_count: int | None = None
    alignment: int = 32

    def build(self) -> bytes:
        pairs = len(self.pairs) if self.pair_count is None else self.pair_count
        records = len(self.records) if self.record_count is None else self.record_count
        head = self.magic + U32(self.version) + U64(records) + U64(pairs) + b"".join(self.pairs + self.records)
        return head + bytes(-len(head) % self.alignment) + self.data


HUGE = 2**64 - 1
ROW = bytes(32)  # eight float32
ONE_U32 = pair("k", T.UINT32, U32(1))

HOSTILE: dict[str, tuple[Raw, str]] = {
    # the file header
    "magic": (Raw(magic=b"FUGG"), "not a GGUF file"),
    "version 0": (Raw(version=0), "version 0"),
    "negative tensor count": (Raw(record_count=HUGE), "the limit"),
    "negative pair count": (Raw(pair_count=HUGE), "the limit"),
    "tensor count past the file": (Raw(record_count=1000), "cannot fit"),
    "pair count past the file": (Raw(pair_count=1000), "cannot fit"),
    "one pair missing": (Raw(pairs=[ONE_U32], pair_count=2, data=ROW * 4), "0 bytes long"),
    # keys and values
    "empty key": (Raw(pairs=[pair("", T.UINT8, b"\1")]), "0 bytes long"),
    "key length -1": (Raw(pairs=[U64(HUGE) + ROW]), "bytes long"),
    "key length past the file": (Raw(pairs=[U64(5000) + ROW]), "but the file has"),
    "key of 65536 bytes": (Raw(pairs=[pair("k" * 65536, T.UINT8, b"\1")]), "65536 bytes long"),
    "key not UTF-8": (Raw(pairs=[pair(b"\xff", T.UINT32, U32(1))]), "not valid UTF-8"),
    "key with a zero byte": (Raw(pairs=[pair("a\0b", T.UINT32, U32(1))]), "zero byte"),
    "key twice": (Raw(pairs=[ONE_U32, ONE_U32]), "occurs twice"),
    "value type 13": (Raw(pairs=[pair("k", 13, ROW)]), "value type 13"),
    "value type -1": (Raw(pairs=[pair("k", 2**32 - 1, ROW)]), "does not exist"),
    "array of type 13": (Raw(pairs=[pair("k", T.ARRAY, U32(13) + U64(1) + ROW)]), "value type 13"),
    "array of arrays": (Raw(pairs=[pair("k", T.ARRAY, U32(T.ARRAY) + U64(1) + ROW)]), "array of arrays"),
    "array length -1": (Raw(pairs=[pair("k", T.ARRAY, U32(T.UINT8) + U64(HUGE) + ROW)]), "but the file has"),
    "array length times size wraps": (Raw(pairs=[pair("k", T.ARRAY, U32(T.UINT64) + U64(2**61) + ROW)]), "file has"),
    "array past the file": (Raw(pairs=[pair("k", T.ARRAY, U32(T.FLOAT64) + U64(100) + ROW)]), "but the file has"),
    "strings past the file": (Raw(pairs=[pair("k", T.ARRAY, U32(T.STRING) + U64(100) + ROW)]), "but the file has"),
    "strings -1": (Raw(pairs=[pair("k", T.ARRAY, U32(T.STRING) + U64(HUGE) + ROW)]), "more strings"),
    "string in an array too long": (
        Raw(pairs=[pair("k", T.ARRAY, U32(T.STRING) + U64(2) + text("a") + U64(5000))], data=ROW),
        "but the file has",
    ),
    "string length -1": (Raw(pairs=[pair("k", T.STRING, U64(HUGE) + ROW)]), "but the file has"),
    "string past the file": (Raw(pairs=[pair("k", T.STRING, U64(5000) + ROW)]), "but the file has"),
    "boolean 2": (Raw(pairs=[pair("k", T.BOOL, b"\2")]), "boolean"),
    "boolean 2 in an array": (Raw(pairs=[pair("k", T.ARRAY, U32(T.BOOL) + U64(3) + b"\0\1\2")]), "boolean"),
    "alignment 13": (Raw(pairs=[pair("general.alignment", T.UINT32, U32(13))]), "power of two"),
    "alignment 0": (Raw(pairs=[pair("general.alignment", T.UINT32, U32(0))]), "power of two"),
    "alignment as int32": (Raw(pairs=[pair("general.alignment", T.INT32, U32(32))]), "not UINT32"),
    "alignment 2^31": (
        Raw(pairs=[pair("general.alignment", T.UINT32, U32(2**31))], records=[record("t")], data=ROW),
        "ends at byte",
    ),
    # tensor records
    "empty name": (Raw(records=[record("")], data=ROW), "0 bytes long"),
    "name of 64 bytes": (Raw(records=[record("x" * 64)], data=ROW), "64 bytes long"),
    "name length -1": (Raw(records=[U64(HUGE) + bytes(40)], data=ROW), "bytes long"),
    "name not UTF-8": (Raw(records=[record(b"\xc3")], data=ROW), "not valid UTF-8"),
    "name twice": (Raw(records=[record("t"), record("t", offset=32)], data=ROW * 2), "two tensors"),
    "0 dimensions": (Raw(records=[record("t", ())], data=ROW * 2), "0 dimensions"),
    "5 dimensions": (Raw(records=[record("t", (1,) * 5)], data=ROW), "5 dimensions"),
    "2^32 - 1 dimensions": (Raw(records=[text("t") + U32(2**32 - 1) + bytes(40)], data=ROW), "4294967295 dimensions"),
    "dimension 0": (Raw(records=[record("t", (8, 0))], data=ROW), "dimension of 0"),
    "dimension -1": (Raw(records=[record("t", (-1,))], data=ROW), "dimension of 18446744073709551615"),
    "weights overflow": (Raw(records=[record("t", (4 * (2**31 - 1),) * 2)], data=ROW), "more than 2\\^63"),
    "bytes overflow": (Raw(records=[record("t", (2**31, 2**31), I64)], data=ROW), "ends at byte"),
    "padding wraps": (Raw(records=[record("t", (4, 2**30 - 1, 2**30 + 1))], data=ROW), "ends at byte"),
    "sum overflows": (
        Raw(records=[record("a", (2**63 - 64,), I8), record("b", (2**63 - 64,), I8, 2**63 - 64)], data=ROW),
        "ends at byte",
    ),
    "type past the last": (Raw(records=[record("t", kind=99)], data=ROW), "type 99"),
    "type -1": (Raw(records=[record("t", kind=2**32 - 1)], data=ROW), "is not known"),
    "type removed from ggml": (Raw(records=[record("t", (32,), 4)], data=ROW), "type 4"),
    "rows no whole blocks": (Raw(records=[record("t", (33,), Q4_0)], data=ROW * 2), "rows of 33"),
    # extents
    "misaligned": (Raw(records=[record("t", offset=4)], data=ROW * 2), "not a multiple"),
    "offset -1": (Raw(records=[record("t", offset=HUGE)], data=ROW), "not a multiple"),
    "offset near 2^64": (Raw(records=[record("t", offset=2**64 - 32)], data=ROW), "ends at byte"),
    "overlap": (Raw(records=[record("a", (16,)), record("b", offset=32)], data=ROW * 2), "inside tensor 'a'"),
    "the same bytes twice": (Raw(records=[record("a"), record("b")], data=ROW), "inside tensor"),
    "one byte short": (Raw(records=[record("t")], data=ROW[1:]), "cut short"),
    "no data at all": (Raw(records=[record("t")]), "cut short"),
    "laid out for another alignment": (
        Raw(records=[record("a", (1,), I8), record("b", (1,), I8, 1)], data=ROW * 2),
        "not a multiple",
    ),
}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[bytes], Path]:
    def save(data: bytes) -> Path:
        path = tmp_path / "x.gguf"
        path.write_bytes(data)
        return path

    return save


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile(kind: str, saved: Callable[[bytes], Path]) -> None:
    raw, match = HOSTILE[kind]
    path = saved(raw.build())
    tracemalloc.start()
    try:
        with pytest.raises(Malformed, match=match) as caught:
            open_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_the_builder_makes_good_files(saved: Callable[[bytes], Path]) -> None:
    """Otherwise the hostile ones might be refused for another reason."""
    raw = Raw(
        pairs=[ONE_U32, pair("general.alignment", T.UINT32, U32(64)), pair("s", T.STRING, text("é"))],
        records=[record("../a", (8, 2)), record("x" * 63, (64,), Q4_0, offset=64)],
        data=ROW * 2 + bytes(36),
        alignment=64,
    )
    with open_gguf(saved(raw.build())) as found:
        assert found.metadata["s"] == string("é")
        assert [(t.name, t.shape, t.nbytes) for t in found.tensors.values()] == [
            ("../a", (2, 8), 64),
            ("x" * 63, (64,), 36),
        ]
        assert found.alignment == 64


@pytest.mark.parametrize(
    ("version", "match"),
    [(1, "version 1"), (4, "version 4"), (0x03000000, r"big-endian GGUF file \(version 3\)")],
)
def test_other_versions_are_unsupported(version: int, match: str, saved: Callable[[bytes], Path]) -> None:
    with pytest.raises(Unsupported, match=match):
        open_gguf(saved(Raw(version=version).build()))


def test_version_2_gaps_and_order_are_accepted(saved: Callable[[bytes], Path]) -> None:
    raw = Raw(version=2, records=[record("b", offset=96), record("a", offset=32)], data=ROW * 4)
    with open_gguf(saved(raw.build())) as found:
        assert found.version == 2
        assert list(found.tensors) == ["b", "a"]


@pytest.mark.parametrize(
    ("cap", "value", "raw"),
    [
        ("MAX_STRINGS", 3, Raw(pairs=[pair(k, T.ARRAY, U32(T.STRING) + U64(2) + text("a") * 2) for k in "ab"])),
        ("MAX_KEYS", 1, Raw(pairs=[pair("a", T.UINT32, U32(1)), pair("b", T.UINT32, U32(1))])),
        ("MAX_TENSORS", 1, Raw(records=[record("a"), record("b", offset=32)], data=ROW * 2)),
        ("MAX_HEADER", 64, Raw(pairs=[pair("k", T.STRING, text("x" * 100))])),
    ],
)
def test_caps(cap: str, value: int, raw: Raw, saved: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(raw.build())
    open_gguf(path).close()
    monkeypatch.setattr(reader, cap, value)
    monkeypatch.setattr(reader, "CHUNK", 32)
    with pytest.raises(Malformed, match=r"limit|a file may have"):
        open_gguf(path)


def _small() -> bytes:
    layout = lay_out(
        {"a": string("text"), "b": strings(["x", "yz"]), "c": array(np.arange(3.0)), "d": boolean(True), "e": u32(5)},
        [TensorSpec("t", (2, 32), format_of("Q4_0")), TensorSpec("u", (3,), format_of("F32"))],
    )
    return layout.header + bytes(range(36)) + bytes(28) + bytes(12)  # without the final padding


def test_truncated_at_every_byte(saved: Callable[[bytes], Path]) -> None:
    whole = _small()
    open_gguf(saved(whole)).close()
    for size in range(len(whole)):
        with pytest.raises(Malformed):
            open_gguf(saved(whole[:size]))


def test_every_byte_damaged(saved: Callable[[bytes], Path]) -> None:
    """A changed byte gives a file or one of our errors, never another exception."""
    whole = _small()
    for at in range(len(whole) - 76):
        for value in (0, 1, 0x7F, 0xFF):
            damaged = bytearray(whole)
            damaged[at] = value
            with suppress(Malformed, Unsupported):
                open_gguf(saved(bytes(damaged))).close()


def test_header_read_in_small_steps(saved: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A string array that crosses the end of what has been read, at every position."""
    items = ["", "ab", "é" * 20, "c"] * 9
    layout = lay_out({"k": strings(items), "n": u32(9)}, [TensorSpec("t", (8,), format_of("F32"))])
    path = saved(layout.header + ROW)
    for chunk in range(1, 120):
        monkeypatch.setattr(reader, "CHUNK", chunk)
        with open_gguf(path) as found:
            assert found.metadata == layout.metadata
            assert list(found.tensors) == ["t"]


def test_read_into(saved: Callable[[bytes], Path]) -> None:
    path = saved(_small())
    with open_gguf(path) as found:
        tensor = found.tensors["t"]
        blocks = np.zeros(2, tensor.format.dtype)
        found.read_into(tensor, 0, blocks)
        assert blocks.tobytes() == bytes(range(36))
        part = bytearray(5)
        found.read_into(tensor, 10, part)
        assert part == bytes(range(10, 15))
        for start in (-1, 32):
            with pytest.raises(Failure, match="of 36"):
                found.read_into(tensor, start, part)
        os.truncate(path, found.data_start + 20)
        with pytest.raises(Malformed, match="16 too early"):
            found.read_into(tensor, 0, blocks)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(Failure):
            open_gguf(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(Failure, match="regular file"):
            open_gguf(tmp_path / "pipe")
