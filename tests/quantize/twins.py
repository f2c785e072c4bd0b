"""Kernels against their twins: the same source run on NumPy arrays. And ours as ggml would have it."""

import numpy as np
import strategies
from numpy.typing import NDArray

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import rows
from ggufsmith.quantize.kernels import Steering, floats
from ggufsmith.quantize.simd import W

SCALES = [-30, -12, -5, -2, 0, 3]


def slip(data: NDArray[np.uint8], x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Our IQ3_S as ggml writes it: points and signs of what follows a sub-block of zeros move up (see rows.py)."""
    form = format_of("IQ3_S")
    out = data.copy()
    for block, kept in zip(out.reshape(-1, form.size).view(form.dtype)[:, 0], x.reshape(-1, 8, 32).any(2), strict=True):
        for field in ("qs", "signs"):
            parts = block[field].reshape(8, -1)
            block[field] = np.concatenate([parts[kept], np.zeros_like(parts[~kept])]).ravel()
    return out


def group(name: str, seed: int) -> NDArray[np.float32]:
    """One group of W blocks, every kind of content and magnitude among them: float32 (W * weights,)."""
    weights = format_of(name).weights
    return strategies.mosaic(seed, W, weights, sorted(strategies.KINDS), SCALES).reshape(-1)


def steering(name: str, x: NDArray[np.float32], seed: int) -> Steering:
    """The last arguments of a weighted kernel: rows of three blocks, of which the group starts in the second."""
    weights = format_of(name).weights
    importance = strategies.squares(np.random.default_rng(seed), 3 * weights)
    importance[::7] = 0
    squares, _ = floats.mean_squares(np.resize(x, (W // 3 + 2, 3 * weights)))
    return Steering(np.resize(importance, (3 + W) * weights), 1, 3, squares)


def assert_encodes_as_twin(name: str, weighted: bool, seed: int = 0) -> None:
    form, codec = format_of(name), rows.codec_of(format_of(name))
    x = group(name, seed)
    run, extra = (codec.weighted, steering(name, x, seed)) if weighted else (codec.encode, ())
    compiled, plain = np.zeros(W * form.size, np.uint8), np.zeros(W * form.size, np.uint8)
    assert run is not None
    run(x, compiled, *extra)
    with np.errstate(all="ignore"):
        run.py_func(x, plain, *extra)
    assert np.array_equal(compiled, plain)
    assert len(np.unique(compiled)) > 16  # something was encoded


def assert_decodes_as_twin(name: str, seed: int = 0) -> None:
    """Any bytes, infinite and NaN scales included."""
    form, codec = format_of(name), rows.codec_of(format_of(name))
    blocks = np.random.default_rng(seed).integers(0, 256, W * form.size, np.uint8)
    compiled, plain = np.zeros(W * form.weights, np.float32), np.zeros(W * form.weights, np.float32)
    codec.decode(blocks, compiled)
    with np.errstate(all="ignore"):
        codec.decode.py_func(blocks, plain)
    same = compiled.view(np.uint32) == plain.view(np.uint32)
    assert np.all(same | (np.isnan(compiled) & np.isnan(plain)))
