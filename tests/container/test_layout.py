"""The layout: exact bytes by hand, every rule of the format, and what goes in comes out of the reader."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGUFValueType as ValueType
from hypothesis import given
from hypothesis import strategies as st

from ggufsmith.container.errors import Malformed
from ggufsmith.container.formats import FORMATS, Format, format_of
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import DTYPES, Metadata, Value, array, boolean, f32, i32, string, strings, u32, u64

F32, Q4_0 = format_of("F32"), format_of("Q4_0")


def test_bytes_of_a_small_file() -> None:
    """By hand, from the specification."""
    layout = lay_out(
        {"a": u32(7), "b": strings(["x", ""])}, [TensorSpec("t", (2, 32), Q4_0), TensorSpec("u", (3,), F32)]
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 2)
    pairs = struct.pack("<Q1sII", 1, b"a", 4, 7) + struct.pack("<Q1sIIQQ1sQ", 1, b"b", 9, 8, 2, 1, b"x", 0)
    records = struct.pack("<Q1sIQQIQ", 1, b"t", 2, 32, 2, 2, 0) + struct.pack("<Q1sIQIQ", 1, b"u", 1, 3, 0, 64)
    body = head + pairs + records
    assert layout.header == body + bytes(-len(body) % 32)
    start = len(layout.header)
    assert start % 32 == 0
    assert layout.offsets == (start, start + 64)
    assert layout.size == start + 64 + 32  # 2 blocks of 18 bytes padded to 64; 12 bytes padded to 32


def test_alignment_key_only_where_it_is_needed() -> None:
    assert "general.alignment" not in lay_out({}, []).metadata
    wide = lay_out({}, [TensorSpec("t", (1,), F32), TensorSpec("u", (1,), F32)], alignment=4096)
    assert wide.metadata["general.alignment"] == u32(4096)
    assert wide.offsets[0] % 4096 == 0
    assert wide.offsets[1] - wide.offsets[0] == 4096
    kept = {"general.alignment": u32(32), "z": u32(1)}
    assert lay_out(kept, []).metadata == kept
    with pytest.raises(Malformed, match="laid out for 32"):
        lay_out({"general.alignment": u32(64)}, [])


@pytest.mark.parametrize("alignment", [0, -32, 24, 33])
def test_alignment_is_a_power_of_two(alignment: int) -> None:
    with pytest.raises(Malformed, match="power of two"):
        lay_out({}, [], alignment=alignment)


@pytest.mark.parametrize(
    ("name", "shape", "form", "match"),
    [
        ("", (1,), F32, "empty"),
        ("x" * 64, (1,), F32, "64 bytes"),
        ("é" * 32, (1,), F32, "64 bytes"),
        ("a\0b", (1,), F32, "zero byte"),
        ("\ud800", (1,), F32, "Unicode"),
        ("t", (), F32, "0 dimensions"),
        ("t", (1, 1, 1, 1, 1), F32, "5 dimensions"),
        ("t", (4, 0), F32, "below 1"),
        ("t", (-4, 4), F32, "below 1"),
        ("t", (4, 33), Q4_0, "rows of 33"),
    ],
)
def test_tensor_rules(name: str, shape: tuple[int, ...], form: Format, match: str) -> None:
    with pytest.raises(Malformed, match=match):
        lay_out({}, [TensorSpec(name, shape, form)])


def test_longest_name_fits() -> None:
    assert lay_out({}, [TensorSpec("x" * 63, (1, 1, 1, 1), F32)]).tensors[0].nbytes == 4


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(Malformed) as caught:
        lay_out({"": u32(1)}, [TensorSpec("t", (1,), F32), TensorSpec("t", (0,), F32)])
    assert "empty" in str(caught.value)
    assert "two tensors have this name" in str(caught.value)
    assert "below 1" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        u32(-1),
        u32(2**32),
        Value(ValueType.INT8, 128),
        Value(ValueType.FLOAT32, 1e39),
        Value(ValueType.UINT32, "text"),
        Value(ValueType.STRING, 5),
        string("\ud800"),
        strings(["ok", "\ud800"]),
        Value(ValueType.ARRAY, np.zeros(2, "<u2"), ValueType.UINT32),
        Value(ValueType.ARRAY, np.zeros((2, 2), "<u4"), ValueType.UINT32),
        Value(ValueType.ARRAY, ("a",), ValueType.ARRAY),
        Value(ValueType.ARRAY, ("a",), None),
        Value(ValueType.ARRAY, 3, ValueType.UINT8),
    ],
)
def test_values_that_do_not_fit(value: Value) -> None:
    with pytest.raises(Malformed, match="the key"):
        lay_out({"the key": value}, [])


@pytest.mark.parametrize("key", ["", "k" * 65536, "a\0"])
def test_key_rules(key: str) -> None:
    with pytest.raises(Malformed):
        lay_out({key: u32(1)}, [])


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.binary(max_size=9).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)
NUMBERS = {
    kind: st.integers(np.iinfo(dtype).min, np.iinfo(dtype).max) for kind, dtype in DTYPES.items() if dtype.kind in "iu"
}
SCALARS = st.one_of(
    *(numbers.map(lambda number, kind=kind: Value(kind, number)) for kind, numbers in NUMBERS.items()),
    st.floats(width=32, allow_nan=False).map(f32),
    st.floats(allow_nan=False).map(lambda number: Value(ValueType.FLOAT64, number)),
    st.booleans().map(boolean),
    TEXT.map(string),
)
ARRAYS = st.one_of(
    *(
        st.lists(numbers, max_size=5).map(lambda items, dtype=DTYPES[kind]: array(np.array(items, dtype)))
        for kind, numbers in NUMBERS.items()
    ),
    st.lists(st.booleans(), max_size=5).map(lambda items: array(np.array(items, "?"))),
    st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(lambda items: array(np.array(items, ">f4"))),
    st.lists(TEXT, max_size=5).map(strings),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=15)


@st.composite
def _tensors(draw: st.DrawFn) -> list[TensorSpec]:
    specs = []
    for name in draw(st.lists(NAMES, unique=True, max_size=4)):
        form = draw(st.sampled_from(FORMATS))
        rows = draw(st.lists(st.integers(1, 3), max_size=3))
        specs.append(TensorSpec(name, (*rows, form.weights * draw(st.integers(1, 3))), form))
    return specs


@given(st.dictionaries(NAMES, SCALARS | ARRAYS, max_size=6), _tensors(), st.sampled_from([1, 8, 32, 256]))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, metadata: Metadata, tensors: list[TensorSpec], alignment: int
) -> None:
    metadata.pop("general.alignment", None)
    layout = lay_out(metadata, tensors, alignment=alignment)
    path = tmp_path_factory.mktemp("round") / "a.gguf"
    path.write_bytes(layout.header + bytes(layout.size - len(layout.header)))
    with open_gguf(path) as found:
        assert dict(found.metadata) == layout.metadata
        assert list(found.metadata) == list(layout.metadata)
        assert (found.alignment, found.size, found.data_start) == (alignment, layout.size, len(layout.header))
        assert [(t.name, t.shape, t.format, t.offset) for t in found.tensors.values()] == [
            (t.name, t.shape, t.format, offset) for t, offset in zip(tensors, layout.offsets, strict=True)
        ]


def test_invalid_utf8_survives(tmp_path: Path) -> None:
    """Real vocabularies hold tokens cut inside a character."""
    token = b"\xe2\x96".decode("utf-8", "surrogateescape")
    layout = lay_out({"tokens": strings([token, "▁a"]), "n": u64(1), "m": i32(-1)}, [])
    assert b"\x02\x00\x00\x00\x00\x00\x00\x00\xe2\x96" in layout.header
    path = tmp_path / "a.gguf"
    path.write_bytes(layout.header)
    with open_gguf(path) as found:
        assert found.metadata["tokens"].data == (token, "▁a")
        assert lay_out(found.metadata, []).header == layout.header
