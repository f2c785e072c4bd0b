"""The checks of rows just made: right rows pass, whatever they hold; damaged ones are caught, in a whole run too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import checkpoints
from ggufsmith.container.errors import Failure
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.quantize import rows as encoding
from ggufsmith.quantize.checks import LARGEST, check_decoded, check_row, check_scales, row_fit
from ggufsmith.quantize.kernels import Codec
from ggufsmith.quantize.plan import MAKEABLE
from ggufsmith.quantize.rows import MODULES, codec_of, decode, encode
from requesting import request, run

F32 = BY_NAME["F32"]


def weights(seed: int, width: int = 1024) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((3, width)) * 0.02).astype(np.float32)


def made(name: str, x: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    format = BY_NAME[name]
    out = np.empty((len(x), format.nbytes((x.shape[1],))), np.uint8)
    if importance is None and not format.plain and codec_of(format).encode is None:
        importance = np.ones(x.shape[1], np.float32)
    encode(format, x, out, importance=importance)
    return out


def check(name: str, out: NDArray[np.uint8], x: NDArray[np.float32], importance: object = None) -> None:
    check_scales(BY_NAME[name], out, "t")
    check_row(BY_NAME[name], out, x, F32, lambda row: importance, "t")  # type: ignore[arg-type, return-value]


def test_every_type_that_can_be_made_has_a_bound() -> None:
    assert set(LARGEST) == set(MAKEABLE)


@pytest.mark.parametrize("name", ("F32", "F16", "BF16"))
def test_plain_types_have_no_use_for_importance(name: str) -> None:
    x = weights(1)
    check(name, made(name, x), x, np.ones(x.shape[1], np.float32))


@pytest.mark.parametrize("name", MAKEABLE)
def test_right_and_damaged_rows(name: str) -> None:
    """Damage: another row's bytes, the bytes of a shifted row, scales that are infinite."""
    x = weights(1)
    out = made(name, x)
    check(name, out, x)
    assert row_fit(BY_NAME[name], out[2:], x[2], None) is not None
    for wrong in (out[::-1].copy(), made(name, np.roll(x, 1, axis=1)), np.full_like(out, 0xFF), np.zeros_like(out)):
        with pytest.raises(Failure, match="this should be impossible"):
            check(name, wrong, x)


@pytest.mark.parametrize("name", MODULES)
def test_rows_that_were_read_wrongly(name: str) -> None:
    """By one number in a hundred, from another row, or not at all."""
    form, x = BY_NAME[name], weights(1, 8192)
    blocks, wide = np.empty((3, form.nbytes((8192,))), np.uint8), np.empty_like(x)
    encode(form, x, blocks, importance=np.ones(8192, np.float32))
    decode(form, blocks, wide)
    check_decoded(form, blocks, wide, "t")
    changed = wide.copy()
    changed[:, ::100] *= np.float32(1.01)
    changed[:, ::100] += np.float32(1e-3)
    for wrong in (changed, wide[::-1].copy(), np.zeros_like(wide), np.full_like(wide, np.nan)):
        with pytest.raises(Failure, match=f"a row of {name} was read as other numbers"):
            check_decoded(form, blocks, wrong, "t")


def test_every_part_of_wide_rows_is_looked_at_in_some_tensor() -> None:
    x = weights(1, 3 * 4096 + 32)
    out = made("Q8_0", x)
    seen = set()
    for tensor in range(64):
        for part in range(0, x.shape[1], 1024):
            broken = out.copy()
            broken[:, part // 32 * 34 : (part + 1024) // 32 * 34] = 0
            try:
                check_row(BY_NAME["Q8_0"], broken, x, F32, lambda row: None, f"blk.{tensor}.weight")
            except Failure:
                seen.add(part)
    assert len(seen) >= 12


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=strategies.rows(256, scales=(-30, -12, -7, -5, -2, 0, 4)), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_no_right_row_is_refused(rows: strategies.Rows, seed: int, data: st.DataObject) -> None:
    x = np.ascontiguousarray(rows)
    name = data.draw(st.sampled_from([name for name in MAKEABLE if not BY_NAME[name].plain]))
    rng = np.random.default_rng(seed)
    importance = np.exp(rng.standard_normal(x.shape[1]) * rng.uniform(0, 4)).astype(np.float32)
    steered = data.draw(st.booleans()) or codec_of(BY_NAME[name]).encode is None
    if np.abs(x).max() < 1e4:
        check(name, made(name, x, importance if steered else None), x, importance if steered else None)


def with_broken(
    monkeypatch: pytest.MonkeyPatch, name: str, role: str, good_calls: int, change: Callable[[Any], None]
) -> None:
    """One codec, one of whose roles goes wrong after some calls, as when memory fails."""
    real, calls = encoding.codec_of, iter(range(10**9))

    def broken(format: Format) -> Codec:
        codec = real(format)
        if format.name != name:
            return codec

        def run(x: NDArray[Any], out: NDArray[Any], *others: Any) -> None:
            getattr(codec, role)(x, out, *others)
            if next(calls) >= good_calls:
                change(out)

        return replace(codec, **{role: run})

    monkeypatch.setattr(encoding, "codec_of", broken)


def scale_of_q4_k(out: NDArray[np.uint8]) -> None:
    """A scale of every block."""
    out[4::144] ^= 0x1F


@pytest.mark.parametrize(
    ("good_calls", "says"),
    [(0, "the compiled code that encodes rows as Q4_K gives wrong results"), (2, "a row as Q4_K has an error of")],
)
def test_a_broken_encoder_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_calls: int, says: str
) -> None:
    """In the known answers, which take two calls, and after them."""
    folder = checkpoints.write("llama", tmp_path / "Model")
    with_broken(monkeypatch, "Q4_K", "encode", good_calls, scale_of_q4_k)
    with pytest.raises(Failure, match=says) as caught:
        run(request(folder, "q4_K_S", outfile=tmp_path / "x.gguf"))
    assert caught.value.where and (good_calls == 0 or ".weight" in caught.value.where)
    assert [path.name for path in tmp_path.iterdir()] == ["Model"]
