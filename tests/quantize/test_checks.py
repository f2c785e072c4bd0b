"""The checks of rows just made: right rows pass, whatever they hold; damaged ones are caught, in a whole run too."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import checkpoints
from ggufsmith.container.errors import Failure
from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import rows as encoding
from ggufsmith.quantize.checks import LARGEST, check_row, check_scales, row_error
from ggufsmith.quantize.plan import MAKEABLE
from ggufsmith.quantize.rows import codec_of, encode
from requesting import request, run

F32 = BY_NAME["F32"]
COARSE = ("IQ1_M", "Q1_0", "TQ1_0", "TQ2_0")  # ordinary rows lose in them as much as by chance


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
    assert row_error(BY_NAME[name], out[2:], x[2], None) is not None
    if name not in COARSE:
        with pytest.raises(Failure, match="this should be impossible"):
            check(name, out[::-1].copy(), x)
        with pytest.raises(Failure, match="this should be impossible"):
            check(name, made(name, np.roll(x, 1, axis=1)), x)
    broken = out.copy()
    broken[:] = 0xFF
    if name not in ("F32", "TQ1_0", "IQ1_M"):
        with pytest.raises(Failure, match="this should be impossible"):
            check(name, broken, x)


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


def test_a_broken_kernel_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.write("llama", tmp_path / "Model")
    real = encoding.codec_of

    def broken(format: object) -> object:
        codec = real(format)  # type: ignore[arg-type]
        fields = {name: getattr(codec, name) for name in ("encode", "decode", "weighted", "alive", "by_row")}

        def encode(x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
            codec.encode(x, out)  # type: ignore[misc]
            out[4::144] ^= 0x1F  # a scale of every block of Q4_K

        return SimpleNamespace(**{**fields, "encode": encode})

    monkeypatch.setattr(encoding, "codec_of", broken)
    with pytest.raises(Failure, match=r"a row as Q4_K has an error of .* this should be impossible") as caught:
        run(request(folder, "q4_K_S", outfile=tmp_path / "x.gguf"))
    assert caught.value.where and ".weight" in caught.value.where
    assert [path.name for path in tmp_path.iterdir()] == ["Model"]
