"""Reading parts of stored tensors: any rows, any columns, from any thread, in bounded memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import quantized
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.dequantize import store as module
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.stored import Checkpoint

MATRIX = np.arange(50 * 300, dtype=np.int32).reshape(50, 300)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Checkpoint]:
    others = {f"m{k}": quantized.plain(MATRIX + k) for k in range(8)}
    quantized.save({"x": quantized.plain(MATRIX), **others}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("block", [1, 50 * 4 * 100, 50 * 4 * 128, 1 << 20])
def test_columns_in_blocks_of_any_width(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    store, source = Store(checkpoint), checkpoint.tensors["x"]
    for first, last in ((0, 300), (0, 1), (299, 300), (63, 65), (64, 128), (100, 290), (127, 129), (255, 300)):
        np.testing.assert_array_equal(store.columns(source, first, last), MATRIX[:, first:last])


def test_rows_and_elements(checkpoint: Checkpoint) -> None:
    store, source = Store(checkpoint), checkpoint.tensors["x"]
    np.testing.assert_array_equal(store.rows(source, 7, 9), MATRIX[7:9])
    np.testing.assert_array_equal(store.flat(source, 299, 302), MATRIX.reshape(-1)[299:302])
    np.testing.assert_array_equal(store.whole(source), MATRIX)


def test_a_block_is_read_once_for_all_threads(checkpoint: Checkpoint) -> None:
    reads = []
    store, source = Store(checkpoint), checkpoint.tensors["x"]
    original = checkpoint.read_into
    checkpoint.read_into = lambda *args: (reads.append(args), original(*args))[1]  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: store.columns(source, k, k + 10), range(0, 290, 10)))
    for k, columns in enumerate(found):
        np.testing.assert_array_equal(columns, MATRIX[:, 10 * k : 10 * k + 10])
    assert len(reads) == 1


def test_what_is_kept_is_bounded(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3 * MATRIX.nbytes)
    store = Store(checkpoint)
    for round in range(2):
        for k in range(8):
            np.testing.assert_array_equal(store.whole(checkpoint.tensors[f"m{k}"]), MATRIX + k)
            assert sum(size for size, _ in store._cache.values()) == store._size <= 3 * MATRIX.nbytes, round


def test_a_failing_read_fails_for_everyone(checkpoint: Checkpoint) -> None:
    store = Store(checkpoint)

    def fail() -> None:
        raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            store.kept(("x", 0), 1, fail)  # type: ignore[arg-type]


def test_floats_to_float32() -> None:
    values = np.array([0, 1, -2.5, 65504, 2.0**-24], np.float32)
    np.testing.assert_array_equal(to_f32(values, "F32"), values)
    np.testing.assert_array_equal(to_f32(values.astype(np.float16), "F16"), values)
    np.testing.assert_array_equal(to_f32((values.view(np.uint32) >> 16).astype(np.uint16), "BF16")[:3], values[:3])
    # E4M3: 0x38 is 1, 0x7E is 448, 0x01 is 2^-9, 0x7F is NaN; E5M2: 0x3C is 1, 0x7C infinity; E8M0: 127 is 1.
    np.testing.assert_array_equal(
        to_f32(np.uint8([0x38, 0x7E, 0x01, 0x7F, 0xB8]), "F8_E4M3"), [1, 448, 2.0**-9, np.nan, -1]
    )
    np.testing.assert_array_equal(to_f32(np.uint8([0x3C, 0x7B, 0x7C, 0xFD]), "F8_E5M2"), [1, 57344, np.inf, np.nan])
    np.testing.assert_array_equal(to_f32(np.uint8([0, 127, 254, 255]), "F8_E8M0"), [2.0**-127, 1, 2.0**127, np.nan])
