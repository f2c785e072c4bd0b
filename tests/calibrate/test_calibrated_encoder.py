"""The encoder of --calibrate: blocks refined under Hessians, in chunks, for stacks, and checked."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.calibrate import encoder as module
from ggufsmith.calibrate.encoder import CalibratedEncoder, Shelf
from ggufsmith.calibrate.gram import Inputs
from ggufsmith.container.errors import Failure, Malformed
from ggufsmith.container.fingerprint import fingerprint
from ggufsmith.container.formats import BY_NAME
from ggufsmith.pipeline.encoder import RowRange
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.reference import dequantize

F32 = BY_NAME["F32"]
WIDTH, ROWS = 512, 24


def correlated(seed: int, columns: int = WIDTH) -> NDArray[np.float32]:
    """Mean x x^T of inputs of which a few directions have most of the power."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2000, 24)) @ rng.standard_normal((24, columns)) + 0.5 * rng.standard_normal(
        (2000, columns)
    )
    return (x.T @ x / len(x)).astype(np.float32)


def weights(seed: int, rows: int = ROWS) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)


def encoder_with(**inputs: Inputs) -> CalibratedEncoder:
    encoder = CalibratedEncoder("fast", "text")
    encoder.shelf.put(inputs, threads=2)
    return encoder


def encoded(
    encoder: CalibratedEncoder | module.Encoder, type: str, w: NDArray[np.float32], *, first: int = 0, count: int = 0
) -> NDArray[np.uint8]:
    form = BY_NAME[type]
    out = np.empty((len(w), form.nbytes((WIDTH,))), np.uint8)
    place = RowRange("m", "m of the source", first, count or len(w))
    encoder.encode(form, w, out, source=F32, importance=np.ones(WIDTH, np.float32), place=place)
    return out


def loss(type: str, w: NDArray[np.float32], data: NDArray[np.uint8], h: NDArray[np.float32]) -> float:
    error = (w - dequantize(BY_NAME[type], data)).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", error, h.astype(np.float64), error))


@pytest.mark.parametrize("type", ["Q4_K", "Q3_K", "Q6_K", "Q4_0", "IQ4_XS"])
def test_less_is_lost_than_with_ggmls_bytes(type: str) -> None:
    h, w = correlated(1), weights(2)
    encoder = encoder_with(m=Inputs((h,), (2000,)))
    plain = np.empty((ROWS, BY_NAME[type].nbytes((WIDTH,))), np.uint8)
    importance = np.ascontiguousarray(h.diagonal())
    GGML.encode(BY_NAME[type], w, plain, source=F32, importance=importance, place=RowRange("m", "m", 0, ROWS))
    before, after = loss(type, w, plain, h), loss(type, w, encoded(encoder, type, w), h)
    assert after < 0.8 * before
    gain = encoder.shelf.gains["m", type]
    assert gain.start == pytest.approx(before, rel=1e-2) and gain.end == pytest.approx(after, rel=1e-2)


def test_chunks_do_not_matter() -> None:
    w = weights(3)
    encoder = encoder_with(m=Inputs((correlated(1),), (2000,)))
    whole = encoded(encoder, "Q4_K", w)
    parts = [encoded(encoder, "Q4_K", w[a:b], first=a, count=ROWS) for a, b in ((0, 5), (5, 6), (6, ROWS))]
    assert np.array_equal(np.concatenate(parts), whole)


def test_each_matrix_of_a_stack_has_its_own_hessian() -> None:
    one, other, w = correlated(1), correlated(9), weights(4)
    stack = encoder_with(m=Inputs((one, other), (1000, 1000)))
    data = encoded(stack, "Q4_K", w)
    half = ROWS // 2
    for part, h in ((slice(0, half), one), (slice(half, None), other)):
        alone = encoder_with(m=Inputs((h,), (1000,)))
        assert np.array_equal(data[part], encoded(alone, "Q4_K", w[part]))
    again = encoded(stack, "Q4_K", w[half - 2 : half + 3], first=half - 2, count=ROWS)
    assert np.array_equal(again, data[half - 2 : half + 3])


def test_a_tensor_without_inputs_has_the_plain_bytes() -> None:
    encoder, w = encoder_with(), weights(5)
    plain = np.empty((ROWS, BY_NAME["Q4_K"].nbytes((WIDTH,))), np.uint8)
    GGML.encode(BY_NAME["Q4_K"], w, plain, source=F32, importance=None, place=RowRange("m", "m", 0, ROWS))
    assert np.array_equal(encoded(encoder, "Q4_K", w), plain)


def test_inputs_that_cannot_be_used_are_said() -> None:
    h = correlated(1)
    h[3, 3] = np.nan
    encoder = encoder_with(m=Inputs((h,), (2000,)))
    encoded(encoder, "Q4_K", weights(6))
    assert encoder.shelf.gains["m", "Q4_K"].trouble == "the inputs of the layer are not all finite"


def test_weights_that_are_not_finite_are_refused() -> None:
    w = weights(7)
    w[2, 5] = np.inf
    with pytest.raises(Malformed, match="1 weights are NaN or infinite, the first at row 2, column 5"):
        encoded(encoder_with(m=Inputs((correlated(1),), (2000,))), "Q4_K", w)


def test_bytes_that_are_not_what_was_meant_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    refine_block = module.refine_block

    def damaged(*args: Any) -> Any:
        data, start, end = refine_block(*args)
        data[-1, 40] ^= 0x30  # two bits of a code
        return data, start, end

    monkeypatch.setattr(module, "refine_block", damaged)
    with pytest.raises(Failure, match="this should be impossible"):
        encoded(encoder_with(m=Inputs((correlated(1),), (2000,))), "Q4_K", weights(8))


def test_what_decides_the_bytes_is_in_the_fingerprint() -> None:
    made = [
        fingerprint(CalibratedEncoder(effort, text)) for effort, text in (("fast", "a"), ("best", "a"), ("fast", "b"))
    ]
    assert len(set(made)) == 3
    used = encoder_with(m=Inputs((correlated(1),), (2000,)))
    assert fingerprint(used) == fingerprint(CalibratedEncoder("fast", "text", Shelf()))
