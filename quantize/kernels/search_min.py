"""The search of ggml's formats that store a scale and a minimum, one block per lane: x = scale * code + minimum.

Each lane does the float32 operations of make_qkx2_quants or make_qkx3_quants of ggml-quants.c, in their order. Every
step tries an inverse of the scale on the best minimum so far, fits scale and minimum to the codes, and keeps them where
the error is smaller. So a step waits for the one before it, twice for a whole sum; two searches in turn fill the gaps.
"""

from typing import Any

from ggufsmith.quantize.simd import (
    MAGIC,
    W,
    absolute,
    any_lane,
    broadcast,
    clamp,
    f32,
    jitable,
    load,
    maximum,
    minimum,
    nearest,
    nearest_small,
    select,
    store,
    to_i32,
    to_u8,
)

SMALL = f32(2**21)  # magnitudes below it are rounded by adding MAGIC
WITHIN, NEAR, ANYWHERE = 0, 1, 2  # what is known of values: all round to codes; all magnitudes are SMALL; nothing


@jitable
def error_of(difference: Any, mad: bool) -> Any:
    return absolute(difference) if mad else difference * difference


@jitable
def scale_and_min(
    x: Any, at: int, w: Any, codes: Any, n: int, top: Any, start: Any, step: Any, steps: int, mad: bool
) -> Any:
    """Weighted least-squares scale and minimum of codes from 0 to top (make_qkx2_quants, make_qkx3_quants).

    w: the n weights of each lane, from 0. codes: room for n vectors.
    start, step, steps: the inverses tried are (top + start + k * step) / range, for k to `steps` inclusive.
    mad: measure absolute differences instead of squares.
    Returns the scale, the (subtracted) minimum, and the inverse and offset from which the codes follow.
    """
    whole = whole_sums(x, at, w, 0, n)
    state = first_fit(x, at, w, 0, n, top, start, mad, whole)
    for k in range(steps + 1):
        fit = next_fit(x, at, w, codes, 0, n, top, whole, state)
        state = better_fit(x, at, w, codes, 0, n, start + step * f32(k + 1) + top, mad, whole, state, fit)
    return result(whole, state)


@jitable
def two_scales_and_mins(
    x: Any, j: int, w: Any, codes: Any, n: int, top: Any, start: Any, step: Any, steps: int, mad: bool, found: Any
) -> None:
    """`scale_and_min` of the sub-blocks j and j + 1 of x, of n weights, their steps in turn.

    w: the weights of both, from 0. codes: room for 2 * n vectors. found: 4 * subs vectors, the scales, minima, inverses
    and offsets of all sub-blocks, of which those of these two are stored.
    """
    at, there, behind = j * n * W, (j + 1) * n * W, n * W
    whole, other_whole = whole_sums(x, at, w, 0, n), whole_sums(x, there, w, behind, n)
    state = first_fit(x, at, w, 0, n, top, start, mad, whole)
    other = first_fit(x, there, w, behind, n, top, start, mad, other_whole)
    for k in range(steps + 1):
        following = start + step * f32(k + 1) + top
        fit = next_fit(x, at, w, codes, 0, n, top, whole, state)
        other_fit = next_fit(x, there, w, codes, behind, n, top, other_whole, other)
        state = better_fit(x, at, w, codes, 0, n, following, mad, whole, state, fit)
        other = better_fit(x, there, w, codes, behind, n, following, mad, other_whole, other, other_fit)
    one, two = result(whole, state), result(other_whole, other)
    for part in range(4):
        to = part * (found.size // 4) + j * W
        store(found, to, one[part])
        store(found, to + W, two[part])


@jitable
def first_fit(x: Any, at: int, w: Any, w_at: int, n: int, top: Any, start: Any, mad: bool, whole: Any) -> Any:
    """The state of a search: scale, minimum and error of the best codes so far, the inverse and the minimum that they
    follow from, and the inverse to be tried next. Here the codes that take the least value to 0, the greatest to top.
    """
    low, high = whole[0], whole[1]
    inverse = top / (high - low)
    scale, best = f32(1) / inverse, broadcast(f32(0))
    for i in range(n):
        v = load(x, at + i * W)
        code = clamp(nearest(inverse * (v - low)), f32(0), top)
        best = best + load(w, w_at + i * W) * error_of(scale * code + low - v, mad)
    return scale, low, best, inverse, low, (start + top) / (high - low)


@jitable
def next_fit(x: Any, x_at: int, w: Any, codes: Any, at: int, n: int, top: Any, whole: Any, state: Any) -> Any:
    """Stores the codes that follow from the state's next inverse; returns what `fitted` gives for them.

    at: where the n weights and the n codes of each lane are.
    """
    lowest, high, sum_w, sum_x = whole
    low, inverse = state[1], state[5]
    one, other = inverse * (lowest - low), inverse * (high - low)
    least, most = minimum(one, other), maximum(one, other)
    if not any_lane(~((least > -f32(0.5)) & (most < top + f32(0.5)))):
        sums = code_sums(x, x_at, w, codes, at, n, top, inverse, low, WITHIN)
    elif not any_lane(~((least > -SMALL) & (most < SMALL))):
        sums = code_sums(x, x_at, w, codes, at, n, top, inverse, low, NEAR)
    else:
        sums = code_sums(x, x_at, w, codes, at, n, top, inverse, low, ANYWHERE)
    return fitted(sum_w, sum_x, sums)


@jitable
def better_fit(
    x: Any, x_at: int, w: Any, codes: Any, at: int, n: int, following: Any, mad: bool, whole: Any, state: Any, fit: Any
) -> Any:
    """The state after a fit: changed in the lanes where it is better. following: the next inverse, times its range."""
    scale, low, best, code_inverse, code_low, inverse = state
    new_scale, new_low, some = fit
    error = broadcast(f32(0))
    for i in range(n):
        difference = new_scale * load(codes, at + i * W) + new_low - load(x, x_at + i * W)
        error = error + load(w, at + i * W) * error_of(difference, mad)
    better = some & (error < best)
    code_inverse, code_low = select(better, inverse, code_inverse), select(better, low, code_low)
    best, scale, low = select(better, error, best), select(better, new_scale, scale), select(better, new_low, low)
    return scale, low, best, code_inverse, code_low, following / (whole[1] - low)


@jitable
def result(whole: Any, state: Any) -> Any:
    """What a search gives: see `scale_and_min`."""
    lowest, high = whole[0], whole[1]
    scale, low, _, inverse, code_low, _ = state
    zero, flat = broadcast(f32(0)), high <= lowest
    return select(flat, zero, scale), -select(flat, lowest, low), select(flat, zero, inverse), code_low


@jitable
def whole_sums(x: Any, at: int, w: Any, w_at: int, n: int) -> Any:
    """The least of 0 and all values, the greatest value, and the sums of w and w*x."""
    low = load(x, at)
    high = low
    sum_w = load(w, w_at)
    sum_x = sum_w * low
    for i in range(1, n):
        v, weight = load(x, at + i * W), load(w, w_at + i * W)
        low, high = select(v < low, v, low), select(v > high, v, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * v
    return select(low > 0, broadcast(f32(0)), low), high, sum_w, sum_x


@jitable
def code_sums(
    x: Any, x_at: int, w: Any, codes: Any, at: int, n: int, top: Any, inverse: Any, low: Any, where: int
) -> Any:
    """Stores the codes l of an inverse and a minimum; returns the sums of w*l, w*l*l and w*x*l.

    where: what is known of inverse * (x - low) in all lanes.
    """
    sum_l = broadcast(f32(0))
    sum_l2, sum_xl = sum_l, sum_l
    for i in range(n):
        v, weight = load(x, x_at + i * W), load(w, at + i * W)
        scaled = inverse * (v - low)
        if where == WITHIN:
            code = nearest_small(scaled)
        elif where == NEAR:
            code = clamp(scaled + MAGIC, MAGIC, top + MAGIC) - MAGIC
        else:
            code = clamp(nearest(scaled), f32(0), top)
        store(codes, at + i * W, code)
        weighted = weight * code
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * code
        sum_xl = sum_xl + weighted * v
    return sum_l, sum_l2, sum_xl


@jitable
def fitted(sum_w: Any, sum_x: Any, sums: Any) -> Any:
    """The least-squares scale and minimum for codes with these sums, and the mask of lanes that have one."""
    sum_l, sum_l2, sum_xl = sums
    det = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / det
    low = (sum_l2 * sum_x - sum_l * sum_xl) / det
    above = low > 0
    if any_lane(above):
        scale, low = select(above, sum_xl / sum_l2, scale), select(above, f32(0), low)
    return scale, low, det > 0


@jitable
def store_min_codes(x: Any, at: int, n: int, inverse: Any, offset: Any, top: Any, codes: Any, to: int) -> None:
    """The codes of a `scale_and_min` search, as u8."""
    for i in range(n):
        code = clamp(nearest(inverse * (load(x, at + i * W) - offset)), f32(0), top)
        store(codes, to + i * W, to_u8(to_i32(code)))
