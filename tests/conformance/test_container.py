"""The container against two others: gguf-py reads what we write and the reverse; ggml opens our files, and refuses no
damaged file that we accept."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.constants import GGUFValueType as ValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.formats import FORMATS, Format, format_of
from ggufsmith.container.layout import Layout, TensorSpec, lay_out
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import Metadata, Value, array, boolean, f32, i32, string, strings, u32, u64
from ggufsmith.container.writer import Writer

pytestmark = pytest.mark.conformance

METADATA: Metadata = {
    "general.architecture": string("llama"),
    "u8": Value(ValueType.UINT8, 255),
    "i8": Value(ValueType.INT8, -128),
    "u16": Value(ValueType.UINT16, 65535),
    "i16": Value(ValueType.INT16, -32768),
    "u32": u32(2**32 - 1),
    "i32": i32(-(2**31)),
    "u64": u64(2**64 - 1),
    "i64": Value(ValueType.INT64, -(2**63)),
    "f32": f32(0.1),
    "f64": Value(ValueType.FLOAT64, 0.1),
    "yes": boolean(True),
    "no": boolean(False),
    "text": string("naïve 龙 🦙"),
    "tokens": strings(["<s>", "▁a", "", "\n"]),
    "scores": array(np.array([0.5, -1e30, 0], "<f4")),
    "types": array(np.array([3, 1, 1], "<i4")),
    "flags": array(np.array([True, False])),
    "bytes": array(np.array([0, 255], "u1")),
}
# gguf-py 0.19 does not know the newest types, and believes that a block of Q8_1 has 40 bytes where ggml has 36.
SIZES = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
WRITABLE = [form for form in FORMATS if SIZES.get(form.id) == (form.weights, form.size)]


def _specs() -> list[TensorSpec]:
    shapes = [(3, 1), (1, 2, 3), (2,), (1, 2, 2)]
    return [
        TensorSpec(f"t.{form.name}", (*rest, form.weights * 2), form)
        for form, rest in zip(WRITABLE, shapes * len(WRITABLE), strict=False)
    ]


def _contents(layout: Layout) -> list[bytes]:
    generator = np.random.default_rng(7)
    return [generator.bytes(tensor.nbytes) for tensor in layout.tensors]


def _write(path: Path, layout: Layout) -> list[bytes]:
    contents = _contents(layout)
    with Writer(path, layout, sync=False) as writer:
        for offset, content in zip(layout.offsets, contents, strict=True):
            writer.write(offset, content)
        writer.commit()
    return contents


def test_gguf_py_knows_nearly_all_types() -> None:
    assert {form.name for form in FORMATS} - {form.name for form in WRITABLE} <= {"Q8_1", "Q1_0", "Q2_0"}


@pytest.mark.parametrize("alignment", [32, 256])
def test_gguf_py_reads_our_file(tmp_path: Path, alignment: int) -> None:
    layout = lay_out(METADATA, _specs(), alignment=alignment)
    contents = _write(tmp_path / "x.gguf", layout)
    reader = GGUFReader(tmp_path / "x.gguf")
    for key, value in layout.metadata.items():
        field = reader.fields[key]
        kinds = [value.type] if value.element is None else [value.type, value.element]
        assert field.types[: len(kinds)] == kinds, key
        data = value.data.tolist() if isinstance(value.data, np.ndarray) else value.data
        assert field.contents() == (list(data) if isinstance(data, tuple) else data), key
    assert len(reader.tensors) == len(layout.tensors)
    for found, spec, offset, content in zip(reader.tensors, layout.tensors, layout.offsets, contents, strict=True):
        assert (found.name, tuple(found.shape.tolist())) == (spec.name, spec.shape[::-1])
        assert (int(found.tensor_type), found.data_offset, found.n_bytes) == (spec.format.id, offset, spec.nbytes)
        assert found.data.tobytes() == content


def _gguf_py_file(path: Path, specs: list[TensorSpec]) -> list[bytes]:
    writer = GGUFWriter(path, "llama")
    for key, value in METADATA.items():
        if key != "general.architecture":
            data = value.data.tolist() if isinstance(value.data, np.ndarray) else value.data
            writer.add_key_value(key, list(data) if isinstance(data, tuple) else data, value.type, value.element)
    generator = np.random.default_rng(7)
    contents = []
    for spec in specs:
        contents.append(generator.bytes(spec.nbytes))
        rows = spec.shape[:-1]
        stored = np.frombuffer(contents[-1], "u1").reshape(*rows, spec.nbytes // int(np.prod(rows)))
        writer.add_tensor(spec.name, stored, raw_dtype=GGMLQuantizationType(spec.format.id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return contents


def test_we_read_what_gguf_py_writes_and_write_the_same(tmp_path: Path) -> None:
    # gguf-py takes the last axis of a byte array for whole blocks; types without blocks are left to the other test.
    specs = [spec for spec in _specs() if not spec.format.plain]
    contents = _gguf_py_file(tmp_path / "x.gguf", specs)
    with open_gguf(tmp_path / "x.gguf") as found:
        assert dict(found.metadata) == METADATA
        assert [(t.name, t.shape, t.format) for t in found.tensors.values()] == [
            (t.name, t.shape, t.format) for t in specs
        ]
        for tensor, content in zip(found.tensors.values(), contents, strict=True):
            buffer = bytearray(tensor.nbytes)
            found.read_into(tensor, 0, buffer)
            assert buffer == content
    layout = lay_out(METADATA, specs)
    assert _write(tmp_path / "y.gguf", layout) == contents
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


class _Params(ctypes.Structure):
    """struct gguf_init_params of ggml/include/gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


@pytest.fixture(scope="module")
def ggml() -> Iterator[ctypes.CDLL]:
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        pytest.fail("llama-cpp-python is not installed; run `make conformance`")
    name = {"linux": "libggml-base.so", "darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}[sys.platform]
    lib = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / name))
    lib.gguf_init_from_file.restype = ctypes.c_void_p
    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, _Params]
    lib.gguf_free.argtypes = lib.ggml_free.argtypes = [ctypes.c_void_p]
    lib.gguf_get_n_tensors.restype = lib.gguf_get_n_kv.restype = ctypes.c_int64
    lib.gguf_get_n_tensors.argtypes = lib.gguf_get_n_kv.argtypes = lib.gguf_get_data_offset.argtypes = [ctypes.c_void_p]
    for function, result in (
        ("gguf_get_tensor_name", ctypes.c_char_p),
        ("gguf_get_tensor_offset", ctypes.c_size_t),
        ("gguf_get_tensor_size", ctypes.c_size_t),
        ("gguf_get_tensor_type", ctypes.c_int),
        ("gguf_get_key", ctypes.c_char_p),
        ("gguf_get_kv_type", ctypes.c_int),
    ):
        getattr(lib, function).restype = result
        getattr(lib, function).argtypes = [ctypes.c_void_p, ctypes.c_int64]
    lib.gguf_get_data_offset.restype = ctypes.c_size_t
    lib.ggml_log_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    lib.ggml_log_set(silent, None)
    yield lib
    lib.ggml_log_set(None, None)


@contextmanager
def opened(ggml: ctypes.CDLL, path: Path) -> Iterator[int | None]:
    """ggml's handle, with all data loaded; None if it refuses the file."""
    context = ctypes.c_void_p()
    handle = ggml.gguf_init_from_file(str(path).encode(), _Params(False, ctypes.pointer(context)))
    try:
        yield handle
    finally:
        if handle:
            ggml.gguf_free(handle)
        if context:
            ggml.ggml_free(context)


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_ggml_reads_our_file(tmp_path: Path, ggml: ctypes.CDLL, alignment: int) -> None:
    specs = [TensorSpec(form.name, (2, 3, form.weights), form) for form in FORMATS]
    layout = lay_out(METADATA, specs, alignment=alignment)
    _write(tmp_path / "x.gguf", layout)
    with opened(ggml, tmp_path / "x.gguf") as handle:
        assert handle
        assert ggml.gguf_get_data_offset(handle) == len(layout.header)
        assert [
            (ggml.gguf_get_key(handle, i).decode(), ggml.gguf_get_kv_type(handle, i))
            for i in range(ggml.gguf_get_n_kv(handle))
        ] == [(key, int(value.type)) for key, value in layout.metadata.items()]
        assert [
            (
                ggml.gguf_get_tensor_name(handle, i).decode(),
                ggml.gguf_get_tensor_type(handle, i),
                ggml.gguf_get_tensor_offset(handle, i) + len(layout.header),
                ggml.gguf_get_tensor_size(handle, i),
            )
            for i in range(ggml.gguf_get_n_tensors(handle))
        ] == [(t.name, t.format.id, at, t.nbytes) for t, at in zip(specs, layout.offsets, strict=True)]


def _damaged() -> tuple[bytes, int]:
    form: Format = format_of("Q4_0")
    layout = lay_out(
        {"a": string("text"), "b": strings(["x", "yz"]), "c": array(np.arange(3.0)), "d": boolean(True)},
        [TensorSpec("t", (2, 32), form), TensorSpec("u", (3,), format_of("F32"))],
    )
    return layout.header + bytes(layout.size - len(layout.header)), len(layout.header)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(4, _damaged()[1] - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_we_accept_no_file_that_ggml_refuses(tmp_path: Path, ggml: ctypes.CDLL, changes: list[tuple[int, int]]) -> None:
    whole = bytearray(_damaged()[0])
    for at, value in changes:
        whole[at] = value
    path = tmp_path / "x.gguf"
    path.write_bytes(whole)
    try:
        with open_gguf(path) as found:
            ends = [tensor.offset + tensor.nbytes for tensor in found.tensors.values()]
            starts = [tensor.offset for tensor in found.tensors.values()]
            packed = [found.data_start, *(-(-end // found.alignment) * found.alignment for end in ends)]
    except (Malformed, Unsupported):
        return
    if starts == packed[:-1] and packed[-1] <= len(whole):  # ggml allows no gaps, and wants the final padding
        with opened(ggml, path) as handle:
            assert handle
