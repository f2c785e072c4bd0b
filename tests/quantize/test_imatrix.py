"""Importance matrices: both formats, what is refused, how they fit a model."""

import struct
from pathlib import Path

import numpy as np
import pytest
import small_models as models
from small_models import F16, F32

from ggufsmith.container.errors import Failure, Malformed, Usage
from ggufsmith.quantize.imatrix import Imatrix, match, open_imatrix
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
    assert any("1 experts never ran" in note for note in coverage.notes())


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
    with pytest.raises(Usage, match="leaves nothing"):
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


@pytest.mark.parametrize(("counts", "message"), [([0.0], "never ran"), ([-1.0], "count"), ([np.nan], "count")])
def test_damaged_counts(counts: list[float], message: str, tmp_path: Path) -> None:
    means = {"blk.0.attn_q.weight": np.ones((1, 64), np.float32)}
    with pytest.raises(Malformed, match=message):
        open_imatrix(models.write_imatrix(tmp_path / "i", means, {"blk.0.attn_q.weight": counts}))


def test_sums_without_counts(tmp_path: Path) -> None:
    path = models.write_gguf(tmp_path / "i", {}, {"a.in_sum2": models.plain(np.ones((1, 4), np.float32))})
    with pytest.raises(Malformed, match="without counts"):
        open_imatrix(path)
    with pytest.raises(Usage, match="no importance matrix"):
        open_imatrix(models.write_model(tmp_path / "model.gguf"))
    with pytest.raises(Failure, match="cannot read"):
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
