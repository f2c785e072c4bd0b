"""Files from before GGUF: what is read, and that nothing in them is believed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import old_ggml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from old_ggml import Tensor

from ggufsmith.container.errors import Failure, Malformed, Unsupported, Usage
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.ggml import GgmlFile, is_ggml, open_ggml
from ggufsmith.container.reader import Gguf

SIZES = (3, 32, 256, 4, 1, 8, 0)
TOKENS = [(b" a", -1.5), (b"", 0.0), (b"\xff", 2.0)]
TENSORS = [
    Tensor("norm.weight", (32,), 0, np.arange(32, dtype="<f4").tobytes()),
    Tensor("output.weight", (3, 32), 1, np.arange(96, dtype="<f2").tobytes()),
]


def saved(path: Path, kind: str = "ggjt v3", **changes: Any) -> Path:
    parts = {"sizes": SIZES, "tokens": TOKENS, "tensors": TENSORS, **changes}
    path.write_bytes(old_ggml.content(kind, **parts))
    return path


def data_of(file: GgmlFile, name: str) -> bytes:
    tensor = file.tensors[name]
    out = bytearray(tensor.nbytes)
    with Gguf(file.path, 3, 32, {}, file.tensors, 0, file.size, file.fd) as gguf:
        gguf.read_into(tensor, 0, memoryview(out))
    return bytes(out)


@pytest.mark.parametrize("kind", old_ggml.VERSIONS)
def test_every_kind_is_read(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.bin", kind)
    assert is_ggml(path)
    file = open_ggml(path)
    assert file.variant.name == kind
    assert file.sizes.vocab == 3 and file.sizes.rotary == 8
    assert [text for text, _ in file.tokens] == [text for text, _ in TOKENS]
    assert [score for _, score in file.tokens] == ([0.0] * 3 if kind == "ggml" else [-1.5, 0.0, 2.0])
    assert [(t.name, t.shape, t.format.id) for t in file.tensors.values()] == [t[:3] for t in TENSORS]
    if kind.startswith("ggjt"):
        assert not any(tensor.offset % 32 for tensor in file.tensors.values())
    assert data_of(file, "output.weight") == TENSORS[1].data


BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SAME = {"ggjt v2": {"Q5_0", "Q5_1"}, "ggjt v3": set(BLOCKS)}


@pytest.mark.parametrize("kind", old_ggml.VERSIONS)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_that_meant_something_else_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    form = BY_NAME[name]
    tensor = Tensor("output.weight", (3, form.weights), form.id, bytes(3 * form.size))
    path = saved(tmp_path / "m.bin", kind, tensors=[tensor])
    if name in SAME.get(kind, set()):
        assert data_of(open_ggml(path), "output.weight") == tensor.data
        return
    with pytest.raises(
        Unsupported, match=rf"output\.weight is {name}; in {kind} that does not mean what it means today"
    ):
        open_ggml(path)


HOSTILE: dict[str, tuple[bytes, type[Failure], str]] = {
    "empty": (b"", Malformed, "the magic needs 4 bytes"),
    "another magic": (b"lmggx"[::-1] + bytes(40), Malformed, "which no GGML file does"),
    "another version": (
        old_ggml.content("ggjt v3", SIZES, [], [])[:4] + b"\4\0\0\0" + bytes(99),
        Unsupported,
        "version 4",
    ),
    "no tokens": (old_ggml.content("ggjt v3", (0, *SIZES[1:]), [], []), Malformed, "0 tokens"),
    "tokens past the end": (
        old_ggml.content("ggjt v3", (2**32 - 1, *SIZES[1:]), TOKENS, []),
        Malformed,
        "4294967295 tokens",
    ),
    "long token": (old_ggml.content("ggml", (1, *SIZES[1:]), [(bytes(5000), 0)], []), Malformed, "5000 bytes long"),
    "trailing bytes": (old_ggml.content("ggml", SIZES, TOKENS, TENSORS) + b"\0", Malformed, "a tensor needs 12 bytes"),
}
ODD_TENSORS: dict[str, tuple[Tensor, type[Failure], str]] = {
    "no axes": (Tensor("x", (), 0, b""), Malformed, "gives 0 dimensions"),
    "three axes": (Tensor("x", (1, 1, 1), 0, bytes(4)), Malformed, "gives 3 dimensions"),
    "no name": (Tensor("", (1,), 0, bytes(4)), Malformed, "name before byte .* is 0 bytes long"),
    "long name": (Tensor("x" * 256, (1,), 0, bytes(4)), Malformed, "256 bytes long"),
    "unknown type": (Tensor("x", (1,), 99, bytes(4)), Malformed, "has the type 99"),
    "type of another time": (Tensor("x", (256,), 16, bytes(66)), Malformed, "has the type 16"),
    "removed type": (Tensor("x", (32,), 4, bytes(20)), Unsupported, "x is Q4_2"),
    "no weights": (Tensor("x", (0,), 0, b""), Malformed, "cannot have the shape"),
    "part of a block": (Tensor("x", (33,), 8, bytes(34)), Malformed, "Q8_0 cannot have the shape"),
    "huge": (Tensor("x", (2**32 - 1, 2**32 - 1), 0, b""), Malformed, "cannot have the shape|needs"),
    "past the end": (Tensor("x", (2**31, 2**31), 0, bytes(4)), Malformed, "the data of x needs"),
    "twice": (TENSORS[0], Malformed, "two tensors have the name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_headers_are_refused(name: str, tmp_path: Path) -> None:
    raw, kind, text = HOSTILE[name]
    (tmp_path / "m.bin").write_bytes(raw)
    with pytest.raises(kind, match=text):
        open_ggml(tmp_path / "m.bin")


@pytest.mark.parametrize("name", ODD_TENSORS)
def test_damaged_tensors_are_refused(name: str, tmp_path: Path) -> None:
    tensor, kind, text = ODD_TENSORS[name]
    with pytest.raises(kind, match=text):
        open_ggml(saved(tmp_path / "m.bin", tensors=[TENSORS[0], tensor]))


@pytest.mark.parametrize("kind", old_ggml.VERSIONS)
def test_a_file_cut_anywhere_is_refused_or_lacks_tensors(kind: str, tmp_path: Path) -> None:
    raw = old_ggml.content(kind, SIZES, TOKENS, TENSORS)
    path = tmp_path / "m.bin"
    whole = 0
    for end in range(len(raw)):
        path.write_bytes(raw[:end])
        try:
            file = open_ggml(path)
        except Malformed:
            continue
        whole += 1
        os.close(file.fd)
        assert len(file.tensors) < len(TENSORS)
    assert whole == 2  # behind the tokens, and behind the first tensor: what is missing, `source` sees


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_of_a_byte_gives_a_file_or_one_of_our_errors(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(old_ggml.content("ggjt v3", SIZES, TOKENS, TENSORS))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    path.write_bytes(raw)
    try:
        file = open_ggml(path)
    except Failure:
        return
    os.close(file.fd)
    assert all(tensor.offset + tensor.nbytes <= len(raw) for tensor in file.tensors.values())


def test_what_is_no_file_is_no_old_file(tmp_path: Path) -> None:
    assert not is_ggml(tmp_path)
    assert not is_ggml(tmp_path / "nothing")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert not is_ggml(tmp_path / "pipe")
    with pytest.raises(Usage, match="there is no such file"):
        open_ggml(tmp_path / "nothing")
