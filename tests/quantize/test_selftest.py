"""Broken kernels, of any format, are found before they write anything."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure
from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import reference, rows, selftest
from ggufsmith.quantize.kernels import floats
from ggufsmith.quantize.rows import FLOATS, MODULES, prepare

F32 = BY_NAME["F32"]
Change = Callable[[NDArray[Any]], None]


def one_bit(result: NDArray[Any]) -> None:
    """The least that can be wrong: the lowest bit of one byte, and a sixteenth of one number."""
    if result.dtype == np.uint8:
        result[result.size // 2] ^= 1
    else:
        result[np.nanargmax(np.where(np.isfinite(result), np.abs(result), np.nan))] *= np.float32(17 / 16)


def moved(result: NDArray[Any]) -> None:
    """Another lane's work."""
    result[:] = np.roll(result, 1)


def nothing(result: NDArray[Any]) -> None:
    result[:] = 0


CHANGES = (one_bit, moved, nothing)


def broken(run: Any, change: Change) -> Any:
    """As a role of a codec, but for what it leaves in its second argument."""

    def call(x: Any, out: Any, *others: Any) -> None:
        run(x, out, *others)
        change(out)

    return call


@pytest.fixture(autouse=True)
def nothing_was_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(selftest, "ASKED", set())
    yield


def with_broken(monkeypatch: pytest.MonkeyPatch, name: str, role: str, change: Change) -> None:
    codec = rows.codec_of(BY_NAME[name])
    changed = replace(codec, **{role: broken(getattr(codec, role), change)})
    monkeypatch.setattr(rows, "codec_of", lambda format: changed)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("role", ["encode", "weighted"])
@pytest.mark.parametrize("name", MODULES)
def test_a_broken_encoder(name: str, role: str, change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = (BY_NAME[name], F32, role == "weighted")
    if getattr(rows.codec_of(BY_NAME[name]), role) is None:
        return
    prepare([conversion])
    with_broken(monkeypatch, name, role, change)
    with pytest.raises(Failure, match=f"encodes rows as {name} gives wrong results"):
        prepare([conversion])


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MODULES)
def test_a_broken_decoder(name: str, change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = (F32, BY_NAME[name], False)
    prepare([conversion])
    with_broken(monkeypatch, name, "decode", change)
    with pytest.raises(Failure, match=f"reads {name} gives wrong results"):
        prepare([conversion])


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_a_broken_conversion(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = (BY_NAME[target], BY_NAME[source], False)
    prepare([conversion])
    selftest.ASKED.clear()
    real = floats.convert

    def convert(x: Any, source: str, y: Any, target: str) -> int:
        peak = real(x, source, y, target)
        y.view(np.uint8)[y.nbytes // 2] ^= 1
        return peak

    monkeypatch.setattr(floats, "convert", convert)
    with pytest.raises(Failure, match=f"makes {target} of {source} gives wrong results"):
        prepare([conversion])


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_reads_as_the_kernels_do(name: str) -> None:
    """Bit for bit where a block's numbers are finite, for any bytes; that of a NaN is free."""
    form = BY_NAME[name]
    blocks = np.random.default_rng(5).integers(0, 256, (7, form.nbytes((512,))), np.uint8)
    found, wanted = np.empty((7, 512), np.float32), reference.dequantize(form, blocks)
    rows.decode(form, blocks, found)
    np.testing.assert_array_equal(np.where(np.isnan(found), 0, found), np.where(np.isnan(wanted), 0, wanted))


def test_an_error_names_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with_broken(monkeypatch, "Q8_0", "encode", nothing)
    with pytest.raises(Failure) as caught:
        prepare([(BY_NAME["Q8_0"], F32, False)])
    assert caught.value.where and "kernels" in caught.value.where
    assert caught.value.fix and caught.value.fix.startswith("Remove this folder")


def test_each_kernel_is_asked_once() -> None:
    conversion = (BY_NAME["Q8_0"], F32, False)
    prepare([conversion])
    asked = len(selftest.ASKED)
    prepare([conversion, conversion])
    assert asked == len(selftest.ASKED) == 1  # float32 rows are not converted before
