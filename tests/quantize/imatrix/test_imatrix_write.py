"""Importance matrices: what is written is what is read, in both formats; and merging."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_models as models

from ggufsmith.container.errors import Failure, Malformed, OutputConflict
from ggufsmith.container.reader import open_gguf
from ggufsmith.quantize.imatrix import write
from ggufsmith.quantize.imatrix.read import open_imatrix
from ggufsmith.quantize.imatrix.record import Entry, Imatrix, merged
from ggufsmith.quantize.imatrix.write import ImatrixFormat, legacy_bytes, write_imatrix

DENSE, STACK = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"


def entry(counts: list[int], width: int = 4, seed: int = 0) -> Entry:
    """Sums as they come about: of whole squares, so that they are exact."""
    rng = np.random.default_rng(seed)
    sums = rng.integers(1, 100, (len(counts), width)).astype(np.float32) * np.array(counts, np.float32)[:, None]
    return Entry(sums, np.array(counts, np.int64))


def made(counts: int = 1024, texts: tuple[str, ...] = ("a.txt",), seed: int = 0) -> Imatrix:
    entries = {DENSE: entry([counts], seed=seed), STACK: entry([counts, 0, 3], seed=seed)}
    return Imatrix(entries, texts, counts // 512, 512)


def test_the_gguf_file_is_llama_imatrix_s(tmp_path: Path) -> None:
    write_imatrix(made(texts=("a.txt", "b.txt")), tmp_path / "i.gguf", sync=False)
    with open_gguf(tmp_path / "i.gguf") as gguf:
        assert {key: value.data for key, value in gguf.metadata.items()} == {
            "general.type": "imatrix",
            "imatrix.datasets": ("a.txt", "b.txt"),
            "imatrix.chunk_count": 2,
            "imatrix.chunk_size": 512,
        }
        assert {name: (tensor.format.name, tensor.shape) for name, tensor in gguf.tensors.items()} == {
            f"{DENSE}.in_sum2": ("F32", (1, 4)),
            f"{DENSE}.counts": ("F32", (1, 1)),
            f"{STACK}.in_sum2": ("F32", (3, 4)),
            f"{STACK}.counts": ("F32", (3, 1)),
        }


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write_imatrix(made(), tmp_path / "i.gguf", sync=False)
    found = open_imatrix(tmp_path / "i.gguf")
    assert (found.datasets, found.chunks, found.chunk_size) == (("a.txt",), 2, 512)
    for name, wanted in made().entries.items():
        assert np.array_equal(found.entries[name].sums, wanted.sums)
        assert np.array_equal(found.entries[name].counts, wanted.counts)
    assert found.entries[STACK].unused == (1,)


def test_the_legacy_file_has_means_times_calls(tmp_path: Path) -> None:
    """By hand: 3 tokens are one call, not none; the expert without tokens has ones."""
    only = Imatrix({"x": Entry(np.array([[3, 6], [0, 0]], np.float32), np.array([3, 0]))}, ("a.txt", "ü.txt"), 7, 2)
    wanted = struct.pack("<ii", 1, 1) + b"x" + struct.pack("<ii4f", 2, 4, 2, 4, 2, 2)
    assert legacy_bytes(only) == wanted + struct.pack("<ii", 7, 6) + "ü.txt".encode()
    write_imatrix(only, tmp_path / "i.dat", "dat")
    found = open_imatrix(tmp_path / "i.dat")
    assert found.entries["x"].weights.tolist() == [1, 2, 1, 1]
    assert (found.datasets, found.chunks) == (("ü.txt",), 7)


@pytest.mark.parametrize("format", write.FORMATS)
def test_both_formats_steer_alike(format: ImatrixFormat, tmp_path: Path) -> None:
    write_imatrix(made(), tmp_path / "i", format, sync=False)
    for name, found in open_imatrix(tmp_path / "i").entries.items():
        np.testing.assert_allclose(found.weights, made().entries[name].weights, rtol=1e-6)


@pytest.mark.parametrize("format", write.FORMATS)
def test_an_output_that_is_an_input_or_exists(format: ImatrixFormat, tmp_path: Path) -> None:
    path = tmp_path / "i"
    path.write_text("kept", encoding="utf-8")
    with pytest.raises(OutputConflict, match="input"):
        write_imatrix(made(), path, format, inputs=[path])
    with pytest.raises(OutputConflict, match="exists"):
        write_imatrix(made(), path, format, overwrite=False)
    with pytest.raises(Failure):
        write_imatrix(made(), tmp_path / "no" / "i", format)
    assert path.read_text(encoding="utf-8") == "kept" and [each.name for each in tmp_path.iterdir()] == ["i"]


def test_a_legacy_file_that_does_not_verify_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses bytes."""
    monkeypatch.setattr(write, "legacy_bytes", lambda imatrix: legacy_bytes(imatrix)[:-30])
    with pytest.raises(Failure):
        write_imatrix(made(), tmp_path / "i.dat", "dat")
    assert not list(tmp_path.iterdir())


def test_merging_adds_sums_counts_and_texts() -> None:
    one, two = made(1024, ("a.txt",)), made(512, ("b.txt",), seed=1)
    both = merged([one, two])
    assert (both.datasets, both.chunks, both.chunk_size) == (("a.txt", "b.txt"), 3, 512)
    for name in (DENSE, STACK):
        assert np.array_equal(both.entries[name].sums, one.entries[name].sums + two.entries[name].sums)
    assert both.entries[STACK].counts.tolist() == [1536, 0, 6]


def test_merging_a_legacy_file_counts_its_chunks(tmp_path: Path) -> None:
    """As llama-imatrix takes them: calls are chunks of the size that the result has."""
    legacy = replace(made(), entries={DENSE: made().entries[DENSE]})
    write_imatrix(legacy, tmp_path / "i.dat", "dat")
    both = merged([open_imatrix(tmp_path / "i.dat"), made()])
    assert both.entries[DENSE].counts.tolist() == [2048] and both.chunks == 4
    np.testing.assert_allclose(both.entries[DENSE].sums, 2 * made().entries[DENSE].sums, rtol=1e-6)


def test_merging_one_count_for_a_stack_counts_for_each() -> None:
    old = Imatrix({STACK: Entry(made().entries[STACK].sums.reshape(1, -1), np.array([512]))}, (), 1, 512)
    for parts in ([old, made()], [made(), old]):
        assert merged(parts).entries[STACK].counts.tolist() == [1536, 512, 515]


def test_merging_other_models_and_other_chunks() -> None:
    other = replace(made(), entries={DENSE: entry([512], width=8)})
    with pytest.raises(Malformed, match="different models") as caught:
        merged([made(), other])
    assert DENSE in str(caught.value)
    stacks = replace(made(), entries={STACK: Entry(np.ones((2, 6), np.float32), np.array([1, 1]))})
    with pytest.raises(Malformed, match="different models"):
        merged([made(), stacks])
    assert merged([replace(made(), chunk_size=2048), made()], 256).chunks == 8
    assert merged([replace(made(), chunk_size=1024)] * 2, 256).chunks == 2, "they agree"


def test_files_of_llama_imatrix_can_be_merged(tmp_path: Path) -> None:
    path = models.write_imatrix(tmp_path / "i", models.importance(models.arrays()))
    both = merged([open_imatrix(path), open_imatrix(path)])
    assert both.datasets == ("calibration.txt", "calibration.txt"), "names without folders"
    for name, wanted in open_imatrix(path).entries.items():
        assert np.array_equal(both.entries[name].weights, wanted.weights)
