"""The encoder of --calibrate: blocks refined under Hessians, in chunks, for stacks, and checked."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.calibrate import encoder as module
from ggufsmith.calibrate.encoder import CalibratedEncoder, Shelf
from ggufsmith.calibrate.gram import Inputs
from ggufsmith.calibrate.run import learned
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
    encoder: CalibratedEncoder | module.Encoder,
    type: str,
    w: NDArray[np.float32],
    *,
    first: int = 0,
    count: int = 0,
    tensor: str = "m",
    importance: bool = True,
) -> NDArray[np.uint8]:
    form = BY_NAME[type]
    out = np.empty((len(w), form.nbytes((WIDTH,))), np.uint8)
    place = RowRange(tensor, f"{tensor} of the source", first, count or len(w))
    given = np.ones(WIDTH, np.float32) if importance else None
    encoder.encode(form, w, out, source=F32, importance=given, place=place)
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


@pytest.mark.parametrize("type", ["Q4_K", "IQ2_XS"])
def test_a_tensor_without_inputs_has_the_plain_bytes(type: str) -> None:
    encoder, w = encoder_with(), weights(5)
    assert np.array_equal(encoded(encoder, type, w), plain(type, w))


def plain(type: str, w: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bytes without any importance; all the same importance, for a type that cannot do without."""
    return encoded(GGML, type, w, importance=type == "IQ2_XS")


def not_definite() -> NDArray[np.float32]:
    """Any two of four columns could be like this, but not all four."""
    h = correlated(1)
    for i, j in combinations(range(10, 14), 2):
        h[i, j] = h[j, i] = -0.9 * np.sqrt(h[i, i] * h[j, j])
    return h


@pytest.mark.parametrize("type", ["Q4_K", "Q8_0", "IQ2_XS"])
@pytest.mark.parametrize(
    ("h", "words"),
    [
        (correlated(1) * np.float32(np.nan), "the inputs of the layer are not all finite"),
        (np.zeros((WIDTH, WIDTH), np.float32), "the layer had no inputs, or they were all zero"),
        (not_definite(), "H is not positive definite, even with damping"),
    ],
    ids=["NaN", "unused", "not definite"],
)
def test_inputs_that_cannot_be_used_are_said(h: NDArray[np.float32], words: str, type: str) -> None:
    """The matrix has plain bytes, and is named; in a stack, only the one."""
    w = weights(6)
    encoder = encoder_with(m=Inputs((h,), (2000,)))
    assert np.array_equal(encoded(encoder, type, w), plain(type, w))
    assert encoder.shelf.plain == {words: {"m": set()}} and not encoder.shelf.gains
    stack = encoder_with(m=Inputs((correlated(1), h), (2000, 2000)))
    data, half = encoded(stack, type, w), ROWS // 2
    assert np.array_equal(data[half:], plain(type, w)[half:])
    assert stack.shelf.plain == {words: {"m": {1}}}
    alone = encoder_with(m=Inputs((correlated(1),), (2000 + WIDTH // 4,)))
    assert np.array_equal(data[:half], encoded(alone, type, w[:half]))
    (said,) = (line for line in learned(stack.shelf) if "because" in line)
    assert said == f"quantized as without calibration, because {words}: m (expert 1)"


def test_what_has_no_refinement_is_said() -> None:
    encoder, w = encoder_with(m=Inputs((correlated(1),), (2000,))), weights(5)
    encoded(encoder, "TQ2_0", w)
    encoded(encoder, "TQ2_0", w, tensor="other")
    assert list(learned(encoder.shelf)) == [
        "quantized as without calibration, because the text did not reach them: other",
        "quantized as without calibration, because there is no refinement for TQ2_0: m",
    ]


def test_a_text_that_is_too_short_raises_the_damping_and_is_said() -> None:
    """Fewer tokens than columns cannot tell all directions from one another: what they say counts for less."""
    rng, w = np.random.default_rng(2), weights(8, 100)
    x = (
        rng.standard_normal((2000, 24)) @ rng.standard_normal((24, WIDTH)) + rng.standard_normal((2000, WIDTH))
    ).astype(np.float32)
    few, truth = x[:128], x.T @ x / len(x)
    h = few.T @ few / len(few)
    short, blind = (encoder_with(m=Inputs((h,), (tokens,))) for tokens in (128, 10**6))
    assert short.shelf.short == {"m": (128, WIDTH)} and not blind.shelf.short
    assert np.allclose(short.shelf.hessians["m"][0].damping, 2 * blind.shelf.hessians["m"][0].damping)
    assert loss("Q4_K", w, encoded(short, "Q4_K", w), truth) < 0.8 * loss("Q4_K", w, plain("Q4_K", w), truth)
    assert any("the text is short: 128 tokens for matrices of 512 columns" in line for line in learned(short.shelf))


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
