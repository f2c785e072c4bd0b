"""The searches for scales that ggml's formats share, one block per lane.

Each lane does the float32 operations of the function of ggml-quants.c named in the docstring, in its order. A search
returns what its codes follow from instead of the codes: most callers compute codes anew, from scales rounded to their
stored form.

The numbers that a search is about are x[at] to x[at + n - 1] of the blocks in lanes (see blocks.py); weights and codes
lie at places of their own.
"""

from typing import Any

from ggufsmith.quantize.kernels.blocks import get, put
from ggufsmith.quantize.simd import (
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
    sqrt,
    to_f32,
    to_i8,
    to_i32,
    to_u8,
)

ALL_ZERO = f32(1e-15)  # GROUP_MAX_EPS: blocks below it are taken for zero


@jitable
def extreme(x: Any, at: int, n: int) -> Any:
    """The first of n values that has the largest magnitude, with its sign; and the magnitude."""
    top = broadcast(f32(0))
    size = top
    for i in range(n):
        v = get(x, at + i)
        larger = absolute(v) > size
        size, top = select(larger, absolute(v), size), select(larger, v, top)
    return top, size


@jitable
def symmetric_code(scaled: Any, levels: Any, step: int, finite: bool) -> Any:
    """The code nearest to inverse * x, between -levels and levels - 1.

    Finite x gives |inverse * x| <= levels + step / 10, but for rounding, so that few steps need both limits.
    """
    if finite:
        code = nearest_small(scaled)
        if step > -6:
            code = minimum(code, levels - f32(1))
        if step > 4:
            code = maximum(code, -levels)
    else:
        code = clamp(nearest(scaled), -levels, levels - f32(1))
    return code


@jitable
def symmetric_sums(x: Any, at: int, w: Any, wx: Any, n: int, inverse: Any, levels: Any, step: int, finite: bool) -> Any:
    """Sums of w*x*l and w*l*l over the codes l = inverse * x."""
    xl = broadcast(f32(0))
    ll = xl
    for i in range(n):
        code = symmetric_code(inverse * get(x, at + i), levels, step, finite)
        xl = xl + get(wx, i) * code
        ll = ll + get(w, i) * code * code
    return xl, ll


@jitable
def symmetric_scale(x: Any, at: int, w: Any, wx: Any, n: int, levels: Any, finite: bool, square: Any = None) -> Any:
    """Weighted least-squares scale of codes from -levels to levels - 1 (make_qx_quants, rmse_type 1).

    w: the n weights of each block, from 0; with `square` their importance, which becomes the weights
    importance * sqrt(square + x * x). wx: room for n numbers. finite: whether x is known to be finite.
    Returns the scale, the inverse from which the codes follow, and the mask of lanes that are all zero.
    """
    top, size = extreme(x, at, n)
    inverse = -levels / top
    xl = broadcast(f32(0))
    ll = xl
    for i in range(n):  # one loop, so that the sums run while the roots are being taken
        v, weight = get(x, at + i), get(w, i)
        if square is not None:
            weight = weight * sqrt(square + v * v)
            put(w, i, weight)
        put(wx, i, weight * v)
        code = symmetric_code(inverse * v, levels, 0, finite)
        xl = xl + weight * v * code
        ll = ll + weight * code * code
    scale = select(ll != 0, xl / ll, f32(0))
    best = scale * xl
    candidate = -(levels + f32(0.1) * f32(-9)) / top
    for step in range(-9, 10):
        following = -(levels + f32(0.1) * f32(step + 1)) / top  # early, to overlap the division with the sums
        if step != 0:
            xl, ll = symmetric_sums(x, at, w, wx, n, candidate, levels, step, finite)
            better = (ll > 0) & (xl * xl > best * ll)
            scale = select(better, xl / ll, scale)
            best = select(better, scale * xl, best)
            inverse = select(better, candidate, inverse)
        candidate = following
    zero = size < ALL_ZERO
    return select(zero, f32(0), scale), inverse, zero


@jitable
def put_symmetric_codes(x: Any, at: int, n: int, inverse: Any, zero: Any, levels: Any, codes: Any, to: int) -> None:
    """The codes of a `symmetric_scale` search, from 0, as u8; 0 in lanes that are all zero."""
    for i in range(n):
        code = clamp(nearest(inverse * get(x, at + i)), -levels, levels - f32(1)) + levels
        put(codes, to + i, to_u8(to_i32(select(zero, f32(0), code))))


@jitable
def refined_scale(x: Any, at: int, n: int, levels: Any, codes: Any, to: int) -> Any:
    """Least-squares scale with weights x*x, refined code by code (make_q3_quants); stores the codes, from 0, as u8.

    codes: u8, at `to` and after.
    """
    top, size = extreme(x, at, n)
    zero = size < ALL_ZERO
    inverse = -levels / top
    xl = broadcast(f32(0))
    ll = xl
    for i in range(n):
        v = get(x, at + i)
        code = clamp(nearest(inverse * v), -levels, levels - f32(1))
        put(codes, to + i, to_u8(to_i32(code)))
        xl = xl + v * v * v * code
        ll = ll + v * v * code * code
    for _ in range(5):
        changed = zero & ~zero
        for i in range(n):
            v = get(x, at + i)
            code = to_f32(to_i8(get(codes, to + i)))
            weight = v * v
            rest_xl = xl - weight * v * code
            rest_ll = ll - weight * code * code
            new = clamp(nearest(v * rest_ll / rest_xl), -levels, levels - f32(1))
            new_xl = rest_xl + weight * v * new
            new_ll = rest_ll + weight * new * new
            better = (rest_xl > 0) & (new != code) & (new_ll > 0) & (new_xl * new_xl * ll > xl * xl * new_ll)
            put(codes, to + i, to_u8(to_i32(select(better, new, code))))
            xl, ll = select(better, new_xl, xl), select(better, new_ll, ll)
            changed = changed | better
        if not any_lane(changed & ~zero):
            break
    for i in range(n):
        code = to_i32(to_i8(get(codes, to + i))) + to_i32(broadcast(levels))
        put(codes, to + i, to_u8(select(zero, 0, code)))
    return select((ll > 0) & ~zero, xl / ll, f32(0))


@jitable
def as_byte(code: Any) -> Any:
    """An f32 integer as an unsigned byte keeps it: its low eight bits, as f32."""
    return to_f32(to_i32(code) & 0xFF)


@jitable
def positive_scale(x: Any, at: int, w: Any, w_at: int, codes: Any, to: int, n: int, top: Any) -> Any:
    """Weighted scale of n values with codes from 0 to top, refined code by code (make_qp_quants).

    w: from `w_at` on. codes: f32; those from `to` on receive the codes, as bytes keep them. Returns the scale.
    """
    zero = broadcast(f32(0))
    largest = zero
    for i in range(n):
        largest = maximum(largest, get(x, at + i))
    empty = largest < ALL_ZERO
    inverse = top / largest
    scale, best = f32(1) / inverse, zero
    for i in range(n):
        v = get(x, at + i)
        difference = v - scale * as_byte(nearest(inverse * v))
        best = best + get(w, w_at + i) * difference * difference
    for step in range(-4, 5):
        if step != 0:
            candidate = (f32(0.1) * f32(step) + top) / largest
            scale = f32(1) / candidate
            error = zero
            for i in range(n):
                v = get(x, at + i)
                difference = v - scale * minimum(top, nearest(candidate * v))
                error = error + get(w, w_at + i) * difference * difference
            better = error < best
            best, inverse = select(better, error, best), select(better, candidate, inverse)
    xl, ll = zero, zero
    for i in range(n):
        v, weight = get(x, at + i), get(w, w_at + i)
        code = minimum(top, nearest(inverse * v))
        put(codes, to + i, as_byte(code))
        xl = xl + weight * v * code
        ll = ll + weight * code * code
    for _ in range(5):
        changed = empty & ~empty
        for i in range(n):
            v, weight, code = get(x, at + i), get(w, w_at + i), get(codes, to + i)
            rest_xl = xl - weight * v * code
            rest_ll = ll - weight * code * code
            new = minimum(top, nearest(v * rest_ll / rest_xl))
            new_xl = rest_xl + weight * v * new
            new_ll = rest_ll + weight * new * new
            better = (rest_xl > 0) & (rest_ll > 0) & (new != code) & (new_xl * new_xl * ll > xl * xl * new_ll)
            put(codes, to + i, select(better, as_byte(new), code))
            xl, ll = select(better, new_xl, xl), select(better, new_ll, ll)
            changed = changed | better
        if not any_lane(changed & ~empty):
            break
    for i in range(n):
        put(codes, to + i, select(empty, zero, get(codes, to + i)))
    return select((ll > 0) & ~empty, xl / ll, f32(0))
