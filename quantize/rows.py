"""Rows of weights to the bytes of a ggml type, and back.

The bytes are those of `ggml_quantize_chunk` and the numbers those of ggml's `to_float`, as llama.cpp ships them for
x86-64: float32 operations in the order of ggml-quants.c, never contracted to FMA. They do not depend on the CPU, on how
a tensor is cut into calls, or on threads. Where ggml silently loses weights, we do not follow:

- **Importance that says nothing.** ggml erases weights (writes a scale of zero) where all the importance that the
  search of their scale sees is zero: 16 weights of Q3_K and Q6_K, 32 of Q4_0 and Q5_0, 256 of Q2_K, Q4_K and Q5_K, the
  blocks of the IQ types (`Codec.alive`); and gives nonsense where some is negative or not finite. Such a group gets the
  mean importance of the row instead, and so does one whose importance vanishes in float32 sums (below 2**-100);
  `Report.unweighted` counts the weights concerned.
- **Values that the type cannot hold.** A weight whose scale overflows float16, or whose square overflows float32,
  becomes infinite, NaN or zero and takes its neighbours with it. The bytes are as ggml's, and `Report.overflow` counts
  the weights, for the caller to refuse.
- **Zeros in IQ3_S.** Behind 32 zeros that begin at a multiple of 32, ggml writes the rest of the 256 weights one place
  too early, and other weights are read than were meant. Ours stand in their place.
- **The least scale of MXFP4.** Where the largest of 32 weights lies between 2**-126 and 2**-125, ggml writes the scale
  that stands for NaN, and llama-quantize then refuses its own block. Ours has the scale of 2**-127.
- **NaN and infinity** have no quantized form: `Report.nonfinite` counts them, and a chunk of rows with any is not
  quantized (its bytes are zeros). Conversions between F32, F16 and BF16 keep them.

This module does not import kernels; the first use of a format does.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME, FLOATS, Format
from ggufsmith.pipeline.findings import Finding, Report
from ggufsmith.quantize.kernels import Call, Codec, Steering

if TYPE_CHECKING:
    from ggufsmith.quantize.cache import Kernel

F32 = BY_NAME["F32"]

MODULES: Mapping[str, str] = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q1_0", "Q2_0"), "legacy"),
    **dict.fromkeys(("Q2_K", "Q4_K", "Q5_K"), "kquants_min"),
    **dict.fromkeys(("Q3_K", "Q6_K", "Q8_K"), "kquants_symmetric"),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S"), "iq2"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S"), "iq3"),
    **dict.fromkeys(("IQ1_S", "IQ1_M"), "iq1"),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), "iq4"),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), "ternary"),
    **dict.fromkeys(("MXFP4", "NVFP4"), "fp4"),
}
CHUNK = 1 << 18  # weights per call of a kernel: their float32 form stays in the cache between reading and quantizing
INFINITE = 0x7F800000  # float32 bits of infinity; NaN lies above
LARGEST_HALF = 0x477FE000  # float32 bits of 65504, the largest float16
ROUNDS_TO_INFINITY = 65520.0  # the smallest magnitude that float16 cannot hold
LOCAL = threading.local()  # per thread: `room`, a float32 chunk
FAINTEST = np.float32(2.0**-100)  # importance below this vanishes in the float32 sums of the searches


def encode(
    target: Format,
    rows: NDArray[Any],
    out: NDArray[np.uint8],
    *,
    source: Format = F32,
    importance: NDArray[np.float32] | None = None,
) -> Report:
    """Write `rows` into `out` as `target`. One thread, which lets go of the GIL; the caller spreads rows over threads.

    rows:       (n, width), C-contiguous: float32, or uint16 with the bits of float16 or bfloat16 as `source` says.
    out:        (n, bytes per row of target) uint8, C-contiguous.
    importance: (width,) float32, the importance matrix's weights of the columns; formats without a weighted search
                ignore it.

    ValueError for arguments that do not fit each other, or a target that cannot be encoded (without importance).
    """
    check(target, rows, source, out)
    width = rows.shape[1]
    if target.plain:
        return convert_rows(target, rows, source, out)
    codec = codec_of(target)
    weights, unweighted = None, Finding()
    if codec.weighted is not None and importance is not None:
        weights, columns = usable(importance, width, codec.alive or target.weights, codec.alive > 0)
        if columns.size:
            unweighted = Finding(len(rows) * columns.size, (0, int(columns[0])))
    elif codec.encode is None:
        raise ValueError(f"{target.name} cannot be encoded without an importance matrix")
    steering = None if weights is None else steer(target, weights)
    parts = []
    for start, stop in chunks(len(rows), width):
        x, peak = as_f32(rows[start:stop], source)
        if codec.by_row and steering is not None:
            squares, peak = floats().mean_squares(x)
            steering = steering._replace(row_squares=squares)
        elif peak is None:
            peak = floats().peak(flat(x))
        if peak >= INFINITE:
            out[start:stop] = 0
            parts.append((start, Report(nonfinite=find(~np.isfinite(x)))))
            continue
        encode_chunk(codec, target, x, out[start:stop], steering)
        if peak > LARGEST_HALF:
            parts.append((start, Report(overflow=find(lost(target, x, out[start:stop])))))
    return Report.merge([*parts, (0, Report(unweighted=unweighted))])


def decode(source: Format, blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Write the weights of `blocks` into `out`, bit for bit as ggml does. One thread, which lets go of the GIL.

    blocks: (n, bytes per row) uint8, C-contiguous. out: (n, width) float32, C-contiguous.
    """
    check(source, out, F32, blocks)
    if source.plain:
        floats().convert(flat(blocks).view(source.dtype["x"]), source.name, flat(out), "F32")
        return
    codec, lanes = codec_of(source), vector_lanes()
    for start, stop in chunks(*out.shape):
        x, y = flat(blocks[start:stop]), flat(out[start:stop])
        whole, rest = divide(y.size // source.weights, lanes)
        if whole:
            codec.decode(x[: whole * source.size], y[: whole * source.weights])
        if rest:
            room = np.empty(lanes * source.weights, np.float32)
            codec.decode(padded(x[whole * source.size :], lanes * source.size), room)
            y[whole * source.weights :] = room[: rest * source.weights]


def needed(target: Format, source: Format = F32, weighted: bool = False) -> list["Kernel"]:
    """The kernels that `encode` runs on ordinary rows, and `decode` before it where `source` has blocks.

    weighted: with importance. A format that cannot be encoded without it is taken to have it.
    """
    calls: list[Call | None] = []
    found: list[Kernel] = []
    if not source.plain:
        calls.append(codec_of(source).decode)
        source = F32
    if target.plain or source is not F32:
        found.append(floats().kernel_for(source.name, target.name if target.plain else "F32")[0])
    if not target.plain:
        codec = codec_of(target)
        search = codec.weighted if weighted or codec.encode is None else None
        calls.append(search or codec.encode)
        if search is not None and codec.by_row:
            found.append(floats().square_sums)
        elif source is F32:
            found.append(floats().peak_of)
    return [*found, *(call.kernel for call in calls if isinstance(call, Call))]


def prepare(
    conversions: Iterable[tuple[Format, Format, bool]],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """Compile, or load from the cache, what these conversions need, and have each kernel show that it works.

    conversions: the arguments of `needed`.
    advance:     told of kernels as they are compiled; see `cache.compile_all`.

    Returns the seconds that compiling took. Failure if a kernel gives other bytes or numbers than it must.
    """
    listed = list(dict.fromkeys(conversions))
    cache = import_module("ggufsmith.quantize.cache")
    kernels = [kernel for conversion in listed for kernel in needed(*conversion)]
    seconds: float = cache.compile_all(kernels, advance)
    selftest = import_module("ggufsmith.quantize.selftest")
    for target, source, weighted in listed:
        if not source.plain:
            selftest.check_decoder(source)
        if not target.plain:
            selftest.check_encoder(target, weighted)
        if target.plain or (source.plain and source is not F32):
            selftest.check_conversion(source if source.plain else F32, target if target.plain else F32)
    return seconds


def warm_up(target: Format, source: Format = F32, weighted: bool = False) -> None:
    """`prepare` for one conversion."""
    prepare([(target, source, weighted)])


# ---- arguments ----


def check(target: Format, rows: NDArray[Any], source: Format, out: NDArray[np.uint8]) -> None:
    """ValueError if the rows and the bytes of `target` do not fit each other."""
    if source.name not in FLOATS or rows.dtype != source.dtype["x"] or rows.ndim != 2:
        raise ValueError(
            f"rows of {rows.dtype} in {rows.ndim} dimensions as {source.name}; wanted two, F32, F16 or BF16"
        )
    if target.plain and target.name not in FLOATS:
        raise ValueError(f"{target.name} is not a type that weights are encoded in")
    wanted = (len(rows), target.nbytes((rows.shape[1],)))
    if out.dtype != np.uint8 or out.shape != wanted:
        raise ValueError(f"{target.name} bytes of {out.dtype} {out.shape}; wanted uint8 {wanted}")
    if not (rows.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError("rows and bytes must be C-contiguous")


def chunks(n: int, width: int) -> Iterator[tuple[int, int]]:
    """Runs of whole rows, of about CHUNK weights."""
    step = max(1, CHUNK // max(1, width))
    return ((start, min(n, start + step)) for start in range(0, n, step))


def usable(
    importance: NDArray[np.float32], width: int, group: int, needed: bool = True
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Importance, with the mean of the row in groups with an invalid one or, if `needed`, without any; and which."""
    if importance.shape != (width,):
        raise ValueError(f"importance of shape {importance.shape} for rows of {width}")
    weights = np.ascontiguousarray(importance, np.float32)
    valid = (weights >= 0) & np.isfinite(weights)
    faint = weights.reshape(-1, group).max(1) < FAINTEST
    alive = (valid.reshape(-1, group).all(1) & ~(faint & needed)).repeat(group)
    if alive.all():
        return weights, np.empty(0, np.intp)
    mean = weights[alive].mean(dtype=np.float64) if alive.any() else 1.0
    return np.where(alive, weights, np.float32(mean)), np.flatnonzero(~alive)


# ---- the work on one chunk ----


def steer(target: Format, importance: NDArray[np.float32]) -> Steering:
    """The importance of a row, (width,), as kernels take it, from the first block of the first row on."""
    repeated = np.resize(importance, importance.size + vector_lanes() * target.weights)
    return Steering(repeated, 0, importance.size // target.weights, np.empty(0, np.float32))


def encode_chunk(
    codec: Codec,
    target: Format,
    x: NDArray[np.float32],
    out: NDArray[np.uint8],
    steering: Steering | None,
) -> None:
    """Whole groups of blocks straight from `x` into `out`, the rest through padded copies.

    steering: for `Codec.weighted`, from the first block of x on; None for `Codec.encode`.
    """
    lanes = vector_lanes()
    x, out = flat(x), flat(out)
    whole, rest = divide(x.size // target.weights, lanes)
    if whole:
        run(codec, x[: whole * target.weights], out[: whole * target.size], steering)
    if rest:
        room = np.empty(lanes * target.size, np.uint8)
        following = None if steering is None else steering._replace(first=whole)
        run(codec, padded(x[whole * target.weights :], lanes * target.weights), room, following)
        out[whole * target.size :] = room[: rest * target.size]


def run(codec: Codec, x: NDArray[np.float32], out: NDArray[np.uint8], steering: Steering | None) -> None:
    """One call of a kernel."""
    if steering is None:
        codec.encode(x, out)  # type: ignore[misc]
    else:
        codec.weighted(x, out, *steering)  # type: ignore[misc]


def convert_rows(target: Format, rows: NDArray[Any], source: Format, out: NDArray[np.uint8]) -> Report:
    """Between the plain formats; the closer look happens only in a chunk where something was found."""
    parts = []
    limit = LARGEST_HALF if target.name == "F16" else INFINITE - 1
    for start, stop in chunks(*rows.shape):
        x, y = rows[start:stop], out[start:stop].view(target.dtype["x"])
        peak = floats().convert(flat(x), source.name, flat(y), target.name)
        if peak > limit:
            wide = as_f32(x, source)[0]
            finite = np.isfinite(wide)
            over = finite & (np.abs(wide) >= ROUNDS_TO_INFINITY) & (target.name == "F16")
            parts.append((start, Report(nonfinite=find(~finite), overflow=find(over))))
    return Report.merge(parts)


def lost(target: Format, x: NDArray[np.float32], out: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which weights became infinite or NaN, and which too large for float16 became zero."""
    y = np.empty(x.shape, np.float32)
    decode(target, out, y)
    gone: NDArray[np.bool_] = ~np.isfinite(y) | ((y == 0) & (np.abs(x) > np.float32(65504)))
    return gone


def as_f32(rows: NDArray[Any], source: Format) -> tuple[NDArray[np.float32], int | None]:
    """A chunk as float32, valid until this thread's next call; and its peak, if it had to be converted."""
    if source.name == "F32":
        return rows, None
    if getattr(LOCAL, "room", np.empty(0)).size < rows.size:
        LOCAL.room = np.empty(max(rows.size, CHUNK), np.float32)
    x = LOCAL.room[: rows.size]
    peak = floats().convert(flat(rows), source.name, x, "F32")
    return x.reshape(rows.shape), peak


def find(mask: NDArray[np.bool_]) -> Finding:
    """The places where a mask over rows is set."""
    if not mask.any():
        return Finding()
    row, column = divmod(int(mask.argmax()), mask.shape[1])
    return Finding(int(mask.sum()), (row, column))


def flat(array: NDArray[Any]) -> NDArray[Any]:
    """The same elements in one dimension, not copied."""
    return array.reshape(-1)


def padded(array: NDArray[Any], size: int) -> NDArray[Any]:
    """`size` elements: those of `array`, then zeros."""
    room = np.zeros(size, array.dtype)
    room[: array.size] = array
    return room


def divide(blocks: int, lanes: int) -> tuple[int, int]:
    """How many blocks fill whole groups of lanes, and how many are left."""
    return blocks - blocks % lanes, blocks % lanes


# ---- kernels, loaded on first use ----


@cache
def codec_of(form: Format) -> Codec:
    """The kernels of a block format. ValueError if there are none."""
    module = MODULES.get(form.name)
    if module is None:
        raise ValueError(f"no kernels for {form.name}")
    found: Codec = import_module(f"ggufsmith.quantize.kernels.{module}").KERNELS[form.name]
    return found


@cache
def floats() -> Any:
    """The module of conversions between plain formats."""
    return import_module("ggufsmith.quantize.kernels.floats")


@cache
def vector_lanes() -> int:
    """W of simd.py, without importing it before it is needed."""
    lanes: int = import_module("ggufsmith.quantize.simd").W
    return lanes
