"""Importance matrices: both formats, what is refused, how they fit a model."""

import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import small_models as models
from small_models import F16, F32

from ggufsmith.container.errors import Failure, Malformed, Unsupported, Usage
from ggufsmith.container.layout import padded
from ggufsmith.container.reader import open_gguf
from ggufsmith.quantize.imatrix.fit import match
from ggufsmith.quantize.imatrix.read import open_imatrix
from ggufsmith.quantize.imatrix.record import Imatrix
from ggufsmith.quantize.recipes.assign import Stored


@pytest.fixture(params=["gguf", "legacy"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Imatrix:
    means = models.importance(models.arrays())
    path = tmp_path / "imatrix"
    if request.param == "gguf":
        models.write_imatrix(path, means)
    else:
        path.write_bytes(models.legacy_bytes(means))
    return open_imatrix(path)


def stored(blocks: int = 2, width: int = 64) -> list[Stored]:
    return [
        Stored(name, values.shape, F32 if values.ndim == 1 else F16)
        for name, values in models.arrays(blocks, width).items()
    ]


def test_both_formats_give_the_means(opened: Imatrix) -> None:
    means = models.importance(models.arrays())
    weights, coverage = match(opened, stored(), 2, "llama")
    for tensor, found in zip(stored(), weights, strict=True):
        if tensor.name in means:
            wanted = means[tensor.name]
            assert np.array_equal(found, wanted if len(wanted) > 1 else wanted[0])
        else:
            assert found is None
    assert set(coverage.covered) == means.keys()
    assert not coverage.missing and not coverage.partial


def test_only_content_is_recorded(opened: Imatrix) -> None:
    """Neither the file's path nor the folder of its text, on whichever system it was made."""
    assert {key: value.data for key, value in opened.metadata.items()} == {
        "quantize.imatrix.dataset": "calibration.txt",
        "quantize.imatrix.entries_count": 8,
        "quantize.imatrix.chunks_count": 10,
    }


def test_experts_that_never_ran(tmp_path: Path) -> None:
    means = models.importance(models.arrays())
    name = "blk.0.ffn_up_exps.weight"
    path = models.write_imatrix(tmp_path / "i", means, {name: [4, 0, 8]})
    weights, coverage = match(open_imatrix(path), stored(), 2, "llama")
    found = weights[[tensor.name for tensor in stored()].index(name)]
    assert found is not None
    assert (found[1] == 1).all(), "even importance, as llama-quantize gives it"
    assert np.array_equal(found[0], means[name][0]) and np.array_equal(found[2], means[name][2])
    assert coverage.partial == {name: 1}
    assert any("1 expert was never used, so its weights" in note for note in coverage.notes())


def test_filters(tmp_path: Path) -> None:
    path = models.write_imatrix(tmp_path / "i", models.importance(models.arrays()))
    assert set(open_imatrix(path, include=["attn_v", "ffn_down"]).entries) == {
        f"blk.{block}.{part}.weight" for block in (0, 1) for part in ("attn_v", "ffn_down")
    }
    assert not any("attn" in name for name in open_imatrix(path, exclude=["attn"]).entries)
    _, coverage = match(open_imatrix(path, include=["attn_v"]), stored(), 2, "llama")
    assert len(coverage.missing) == 6
    with pytest.raises(Usage, match="together"):
        open_imatrix(path, include=["a"], exclude=["b"])
    with pytest.raises(Usage, match="'attn_k'"):
        open_imatrix(path, exclude=["attn_k"])
    with pytest.raises(Usage, match="excludes every entry"):
        open_imatrix(path, exclude=["blk."])


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (-1e-30, "negative")]
)
def test_damaged_sums(value: float, message: str, tmp_path: Path) -> None:
    means = models.importance(models.arrays())
    means["blk.1.attn_v.weight"][0, 7] = value
    with pytest.raises(Malformed, match=message) as caught:
        open_imatrix(models.write_imatrix(tmp_path / "i", means))
    assert "blk.1.attn_v.weight" in str(caught.value)
    assert open_imatrix(tmp_path / "i", exclude=["blk.1.attn_v"]).entries, "what is left out is not looked at"


@pytest.mark.parametrize(("counts", "message"), [([0.0], "was never used"), ([-1.0], "count"), ([np.nan], "count")])
def test_damaged_counts(counts: list[float], message: str, tmp_path: Path) -> None:
    means = {"blk.0.attn_q.weight": np.ones((1, 64), np.float32)}
    with pytest.raises(Malformed, match=message):
        open_imatrix(models.write_imatrix(tmp_path / "i", means, {"blk.0.attn_q.weight": counts}))


def test_sums_without_counts(tmp_path: Path) -> None:
    path = models.write_gguf(tmp_path / "i", {}, {"a.in_sum2": models.plain(np.ones((1, 4), np.float32))})
    with pytest.raises(Malformed, match="without counts"):
        open_imatrix(path)
    with pytest.raises(Usage, match="not an importance matrix"):
        open_imatrix(models.write_model(tmp_path / "model.gguf"))
    with pytest.raises(Usage, match="there is no such file"):
        open_imatrix(tmp_path / "absent")


@pytest.mark.parametrize("keep", [0, 3, 4, 7, 30, 60, 300])
def test_cut_legacy_files(keep: int, tmp_path: Path) -> None:
    whole = models.legacy_bytes(models.importance(models.arrays()))
    (tmp_path / "i.dat").write_bytes(whole[:keep])
    with pytest.raises(Malformed, match="neither a GGUF file nor a legacy"):
        open_imatrix(tmp_path / "i.dat")


@pytest.mark.parametrize("head", [(-1,), (0,), (1, -5), (1, 2**31 - 1), (2**31 - 1, 1)])
def test_hostile_legacy_files(head: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "i.dat").write_bytes(struct.pack(f"<{len(head)}i", *head) + bytes(40))
    with pytest.raises(Malformed):
        open_imatrix(tmp_path / "i.dat")


@pytest.mark.parametrize("kind", ["legacy", "gguf"])
def test_what_is_left_out_is_not_read(kind: str, tmp_path: Path) -> None:
    """Of a file with a terabyte in one entry, the other entries can be had; and the whole is refused, not allocated."""
    means = {"blk.0.attn_q.weight": np.ones((1, 64), np.float32), "blk.1.attn_q.weight": np.ones((1, 64), np.float32)}
    path, huge = tmp_path / "i", 2**31 - 64
    if kind == "legacy":
        data = models.legacy_bytes(means)
        at = data.index(b"blk.1") + len("blk.1.attn_q.weight") + 4
        with path.open("wb") as file:  # the size, then a hole
            file.write(data[:at] + struct.pack("<i", huge))
            file.truncate(at + 4 + 4 * huge)
    else:
        models.write_imatrix(path, means)
        with open_gguf(path) as gguf:
            sums = gguf.tensors["blk.1.attn_q.weight.in_sum2"]
            data = path.read_bytes()
        record = data.index(b"blk.1.attn_q.weight.in_sum2") + len("blk.1.attn_q.weight.in_sum2")
        changed = data[: record + 4] + struct.pack("<QQIQ", huge, 1, 0, padded(len(data), 32) - gguf.data_start)
        with path.open("wb") as file:
            file.write(changed + data[len(changed) :])
            file.truncate(padded(len(data), 32) + 4 * huge)
        assert sums.nbytes == 256
    tracemalloc.start()
    try:
        assert open_imatrix(path, include=["blk.0"]).entries.keys() == {"blk.0.attn_q.weight"}
        with pytest.raises(Unsupported, match="limit"):
            open_imatrix(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_too_many_entries_and_long_names(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    with path.open("wb") as file:
        file.write(struct.pack("<i", 2**31 - 1))
        file.truncate(2**36)
    with pytest.raises(Malformed, match="entries"):
        open_imatrix(path)
    with path.open("wb") as file:
        file.write(struct.pack("<ii", 1, 2**31 - 1))
        file.truncate(2**36)
    with pytest.raises(Malformed, match="name"):
        open_imatrix(path)


@pytest.mark.parametrize("digits", ["²", "9" * 40])
def test_a_layer_number_that_is_none(digits: str, tmp_path: Path) -> None:
    means = {**models.importance(models.arrays()), f"blk.{digits}.x": np.ones((1, 64), np.float32)}
    (tmp_path / "i.dat").write_bytes(models.legacy_bytes(means))
    _, coverage = match(open_imatrix(tmp_path / "i.dat"), stored(), 2, "llama")
    assert any("does not have" in note for note in coverage.notes())


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is a folder"):
        open_imatrix(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(Failure, match="not a regular file"):
            open_imatrix(tmp_path / "pipe")


def test_another_model(tmp_path: Path) -> None:
    path = models.write_imatrix(tmp_path / "i", models.importance(models.arrays()))
    for other, blocks, message in (
        (stored(width=96), 2, "64 values, but the tensor needs 96"),
        (stored(blocks=1), 1, "the model has 1 layers"),
        ([Stored("blk.0.ssm_in.weight", (64, 64), F16)], 2, "none of its entries"),
    ):
        with pytest.raises(Malformed, match="another model") as caught:
            match(open_imatrix(path), other, blocks, "llama")
        assert message in str(caught.value)


def test_embeddings_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    """As in llama-quantize: their entry counts tokens."""
    means = {**models.importance(models.arrays()), "token_embd.weight": np.ones((1, 48), np.float32)}
    weights, coverage = match(open_imatrix(models.write_imatrix(tmp_path / "i", means)), stored(), 2, "llama")
    assert weights[0] is None
    assert any("token_embd.weight" in note for note in coverage.notes())
