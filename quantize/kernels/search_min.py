"""The search of ggml's formats that store a scale and a minimum, one block per lane: x = scale * code + minimum.

Each lane does the float32 operations of make_qkx2_quants or make_qkx3_quants of ggml-quants.c, in their order. Every
step tries an inverse of the scale on the best minimum so far, fits scale and minimum to the codes, and keeps them where
the error is smaller. So a step waits for the one before it, twice for a whole sum; two searches in turn fill the gaps.

The numbers that a search is about are x[x_at] to x[x_at + n - 1] of the blocks in lanes (see blocks.py); their weights
and codes are w[at] and codes[at] and those after.
"""

from typing import Any, NamedTuple

from ggufsmith.quantize.kernels.blocks import get, put
from ggufsmith.quantize.simd import (
    MAGIC,
    absolute,
    any_lane,
    broadcast,
    clamp,
    f32,
    jitable,
    maximum,
    minimum,
    nearest,
    nearest_small,
    select,
    to_i32,
    to_u8,
)

SMALL = f32(2**21)  # magnitudes below it are rounded by adding MAGIC
WITHIN, NEAR, ANYWHERE = 0, 1, 2  # what is known of values: all round to codes; all magnitudes are SMALL; nothing


class Steps(NamedTuple):
    """What a format has tried: the inverses (top + start + k * step) / range, for k from 0 to `last`.

    top: the greatest code; the least is 0. mad: errors are absolute differences instead of squares.
    """

    top: Any
    start: Any
    step: Any
    last: int
    mad: bool


class Whole(NamedTuple):
    """What a search knows of its numbers: the least of 0 and all of them, the greatest, the sums of w and of w*x."""

    low: Any
    high: Any
    sum_w: Any
    sum_x: Any


class Codes(NamedTuple):
    """Sums over the codes l that were tried: of w*l, w*l*l and w*x*l."""

    sum_l: Any
    sum_l2: Any
    sum_xl: Any


class Fit(NamedTuple):
    """The least-squares scale and minimum for codes, and the mask of lanes that have one."""

    scale: Any
    low: Any
    some: Any


class Best(NamedTuple):
    """The state of a search: scale, minimum and error of the best codes so far, the inverse and the minimum that those
    codes follow from, and the inverse to be tried next.
    """

    scale: Any
    low: Any
    error: Any
    code_inverse: Any
    code_low: Any
    inverse: Any


class SubBlocks(NamedTuple):
    """What the searches of a super-block found: one number of each block per sub-block.

    The weights of sub-block j are scales[j] * code - mins[j]; codes follow from inverses[j] * (x - lows[j]).
    """

    scales: Any
    mins: Any
    inverses: Any
    lows: Any


@jitable
def scale_and_min(x: Any, x_at: int, w: Any, codes: Any, n: int, steps: Steps) -> Any:
    """Weighted least-squares scale and minimum of n numbers (make_qkx2_quants, make_qkx3_quants).

    w: their weights, from 0. codes: room for n numbers.
    Returns the scale, the (subtracted) minimum, and the inverse and offset from which the codes follow.
    """
    whole = whole_sums(x, x_at, w, 0, n)
    best = first_fit(x, x_at, w, 0, n, steps, whole)
    for k in range(steps.last + 1):
        fit = next_fit(x, x_at, w, codes, 0, n, steps.top, whole, best)
        best = better_fit(x, x_at, w, codes, 0, n, steps, k + 1, whole, best, fit)
    return result(whole, best)


@jitable
def two_scales_and_mins(x: Any, j: int, w: Any, codes: Any, n: int, steps: Steps, found: SubBlocks) -> None:
    """`scale_and_min` of the sub-blocks j and j + 1 of x, of n weights, their steps in turn; into `found`.

    w: the weights of both, from 0. codes: room for 2 * n numbers.
    """
    at, there = j * n, (j + 1) * n
    whole, other_whole = whole_sums(x, at, w, 0, n), whole_sums(x, there, w, n, n)
    best = first_fit(x, at, w, 0, n, steps, whole)
    other = first_fit(x, there, w, n, n, steps, other_whole)
    for k in range(steps.last + 1):
        fit = next_fit(x, at, w, codes, 0, n, steps.top, whole, best)
        other_fit = next_fit(x, there, w, codes, n, n, steps.top, other_whole, other)
        best = better_fit(x, at, w, codes, 0, n, steps, k + 1, whole, best, fit)
        other = better_fit(x, there, w, codes, n, n, steps, k + 1, other_whole, other, other_fit)
    put_result(found, j, result(whole, best))
    put_result(found, j + 1, result(other_whole, other))


@jitable
def put_result(found: SubBlocks, j: int, one: Any) -> None:
    """What `result` gave, as that of sub-block j."""
    scale, low, inverse, offset = one
    put(found.scales, j, scale)
    put(found.mins, j, low)
    put(found.inverses, j, inverse)
    put(found.lows, j, offset)


@jitable
def inverse_of_step(steps: Steps, k: int, whole: Whole, low: Any) -> Any:
    """The inverse of the scale that step k tries with this minimum."""
    return (steps.start + steps.step * f32(k) + steps.top) / (whole.high - low)


@jitable
def error_of(difference: Any, mad: bool) -> Any:
    """Of one number: the absolute difference or its square."""
    return absolute(difference) if mad else difference * difference


@jitable
def first_fit(x: Any, x_at: int, w: Any, at: int, n: int, steps: Steps, whole: Whole) -> Best:
    """The start of a search: the codes that take the least value to 0 and the greatest to top."""
    inverse = steps.top / (whole.high - whole.low)
    scale, error = f32(1) / inverse, broadcast(f32(0))
    for i in range(n):
        v = get(x, x_at + i)
        code = clamp(nearest(inverse * (v - whole.low)), f32(0), steps.top)
        error = error + get(w, at + i) * error_of(scale * code + whole.low - v, steps.mad)
    following = (steps.start + steps.top) / (whole.high - whole.low)
    return Best(scale, whole.low, error, inverse, whole.low, following)


@jitable
def next_fit(x: Any, x_at: int, w: Any, codes: Any, at: int, n: int, top: Any, whole: Whole, best: Best) -> Fit:
    """Stores the codes that follow from the next inverse, and fits to them."""
    low, inverse = best.low, best.inverse
    one, other = inverse * (whole.low - low), inverse * (whole.high - low)
    least, most = minimum(one, other), maximum(one, other)
    if not any_lane(~((least > -f32(0.5)) & (most < top + f32(0.5)))):
        sums = code_sums(x, x_at, w, codes, at, n, top, inverse, low, WITHIN)
    elif not any_lane(~((least > -SMALL) & (most < SMALL))):
        sums = code_sums(x, x_at, w, codes, at, n, top, inverse, low, NEAR)
    else:
        sums = code_sums(x, x_at, w, codes, at, n, top, inverse, low, ANYWHERE)
    return fitted(whole, sums)


@jitable
def better_fit(
    x: Any, x_at: int, w: Any, codes: Any, at: int, n: int, steps: Steps, k: int, whole: Whole, best: Best, fit: Fit
) -> Best:
    """The state after a fit: changed in the lanes where the fit is better. k: the step that comes next."""
    error = broadcast(f32(0))
    for i in range(n):
        difference = fit.scale * get(codes, at + i) + fit.low - get(x, x_at + i)
        error = error + get(w, at + i) * error_of(difference, steps.mad)
    better = fit.some & (error < best.error)
    low = select(better, fit.low, best.low)
    return Best(
        select(better, fit.scale, best.scale),
        low,
        select(better, error, best.error),
        select(better, best.inverse, best.code_inverse),
        select(better, best.low, best.code_low),
        inverse_of_step(steps, k, whole, low),
    )


@jitable
def result(whole: Whole, best: Best) -> Any:
    """What a search gives: see `scale_and_min`."""
    zero, flat = broadcast(f32(0)), whole.high <= whole.low
    scale, low = select(flat, zero, best.scale), -select(flat, whole.low, best.low)
    return scale, low, select(flat, zero, best.code_inverse), best.code_low


@jitable
def whole_sums(x: Any, x_at: int, w: Any, at: int, n: int) -> Whole:
    """What is known before the first step."""
    low = get(x, x_at)
    high = low
    sum_w = get(w, at)
    sum_x = sum_w * low
    for i in range(1, n):
        v, weight = get(x, x_at + i), get(w, at + i)
        low, high = select(v < low, v, low), select(v > high, v, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * v
    return Whole(select(low > 0, broadcast(f32(0)), low), high, sum_w, sum_x)


@jitable
def code_sums(
    x: Any, x_at: int, w: Any, codes: Any, at: int, n: int, top: Any, inverse: Any, low: Any, where: int
) -> Codes:
    """Stores the codes of an inverse and a minimum. where: what is known of inverse * (x - low) in all lanes."""
    sum_l = broadcast(f32(0))
    sum_l2, sum_xl = sum_l, sum_l
    for i in range(n):
        v, weight = get(x, x_at + i), get(w, at + i)
        scaled = inverse * (v - low)
        if where == WITHIN:
            code = nearest_small(scaled)
        elif where == NEAR:
            code = clamp(scaled + MAGIC, MAGIC, top + MAGIC) - MAGIC
        else:
            code = clamp(nearest(scaled), f32(0), top)
        put(codes, at + i, code)
        weighted = weight * code
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * code
        sum_xl = sum_xl + weighted * v
    return Codes(sum_l, sum_l2, sum_xl)


@jitable
def fitted(whole: Whole, sums: Codes) -> Fit:
    """The least-squares scale and minimum; a minimum above 0 becomes 0, with a scale of its own."""
    det = whole.sum_w * sums.sum_l2 - sums.sum_l * sums.sum_l
    scale = (whole.sum_w * sums.sum_xl - whole.sum_x * sums.sum_l) / det
    low = (sums.sum_l2 * whole.sum_x - sums.sum_l * sums.sum_xl) / det
    above = low > 0
    if any_lane(above):
        scale, low = select(above, sums.sum_xl / sums.sum_l2, scale), select(above, f32(0), low)
    return Fit(scale, low, det > 0)


@jitable
def put_min_codes(x: Any, at: int, n: int, inverse: Any, offset: Any, top: Any, codes: Any) -> None:
    """The codes of a `scale_and_min` search, as u8, at the places of the weights."""
    for i in range(n):
        code = clamp(nearest(inverse * (get(x, at + i) - offset)), f32(0), top)
        put(codes, at + i, to_u8(to_i32(code)))
