"""AWQ, four bits, in the two layouts of AutoAWQ. weight = scale * (code - zero); zero points are stored as they are.

GEMM: qweight (in, out / 8) int32 and qzeros (groups, out / 8), eight output rows in a word, in the order of ORDER;
scales (groups, out). GEMV: qweight (out, in / 8), eight inputs in a word, in order; qzeros (out, words) and scales
(out, 8 * words), padded beyond the groups that there are.
Source: AutoAWQ 0.2.9, awq/modules/linear/gemm.py and gemv.py.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.dequantize.bitpacking import Codes, scale_codes, unpack
from ggufsmith.convert.dequantize.scheme import Parts, Scheme, SchemeInputs, Shape, floats
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.stored import StoredTensor

BITS = 4
PER_WORD = 32 // BITS
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output row, of the eight of a word, that its k-th code belongs to


@dataclass(frozen=True)
class Gemm:
    """Packed along the output dimension: (in, out / 8) words, eight columns of a row in each."""

    shape: Shape
    group_size: int
    qweight: StoredTensor
    qzeros: StoredTensor
    scales: StoredTensor

    granule = PER_WORD

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return floats(self.scales)

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        begin, end = first // PER_WORD, -(-last // PER_WORD)
        wanted = slice(first - begin * PER_WORD, last - begin * PER_WORD)
        codes = spread(store.columns(self.qweight, begin, end))[wanted]
        zeros = spread(store.columns(self.qzeros, begin, end))[wanted].astype(np.float32)
        scales = to_f32(store.columns(self.scales, first, last).T, self.scales.dtype)
        scale_codes(codes, scales, zeros, self.group_size, out)


@dataclass(frozen=True)
class Gemv:
    """Packed along the input dimension: (out, in / 8) words."""

    shape: Shape
    group_size: int
    qweight: StoredTensor
    qzeros: StoredTensor
    scales: StoredTensor

    granule = 1

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return floats(self.scales)

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        groups = self.shape[1] // self.group_size
        codes = unpack(store.rows(self.qweight, first, last), BITS, self.shape[1])
        zeros = unpack(store.rows(self.qzeros, first, last), BITS, groups).astype(np.float32)
        scales = to_f32(store.rows(self.scales, first, last)[:, :groups], self.scales.dtype)
        scale_codes(codes, scales, zeros, self.group_size, out)


def spread(words: NDArray[Any]) -> Codes:
    """Words (k, n) of eight rows each, to codes (8 n, k)."""
    stream = np.ascontiguousarray(words.T).view(np.uint8).reshape(words.shape[1], words.shape[0], 4)
    codes = np.empty((words.shape[1], PER_WORD, words.shape[0]), np.uint8)
    for k in range(4):
        np.bitwise_and(stream[:, :, k], np.uint8(15), out=codes[:, ORDER[2 * k]])
        np.right_shift(stream[:, :, k], 4, out=codes[:, ORDER[2 * k + 1]])
    return codes.reshape(-1, words.shape[0])


def _common(asked: SchemeInputs, version: str) -> int | None:
    """The group size that the config gives. Malformed or Unsupported if the config does not fit the layout."""
    settings = asked.settings
    bits = settings.integer("bits", "w_bit", default=BITS)
    if bits != BITS:
        raise asked.unsupported(f"AWQ of {bits} bits", "4 bits")
    claimed = str(settings.first("version", "format") or version).lower()
    if claimed in ("gemm", "gemv") and claimed != version:
        raise asked.wrong(f"it is stored in the layout {version.upper()}, but the config says {claimed.upper()}")
    for role in ("main", "qzeros", "scales"):
        asked.matrix(role)
    return settings.integer("group_size", "q_group_size")


def build_gemm(asked: SchemeInputs) -> Gemm:
    """Malformed or Unsupported if the tensors are not those of one such weight."""
    claimed = _common(asked, "gemm")
    width, out = asked.main.shape[0], asked.main.shape[1] * PER_WORD
    groups = asked.part("scales").shape[0]
    size = width if claimed == -1 else claimed or width // max(groups, 1)
    if size <= 0 or groups * size != width:
        raise asked.wrong(f"{groups} groups for {width} inputs do not match a group_size of {size}")
    zeros = asked.expect("qzeros", "I32", (groups, out // PER_WORD))
    scales = asked.expect("scales", "F16 BF16 F32", (groups, out))
    return Gemm((out, width), size, asked.main, zeros, scales)


def build_gemv(asked: SchemeInputs) -> Gemv:
    """Malformed or Unsupported if the tensors are not those of one such weight."""
    size = _common(asked, "gemv")
    out, width = asked.main.shape[0], asked.main.shape[1] * PER_WORD
    size = width if size == -1 else size
    if not size or size < 0 or width % size:
        raise asked.wrong(f"a group_size of {size} does not divide {width} inputs (GEMV needs it from the config)")
    words = asked.part("qzeros").shape[-1]
    if words * PER_WORD < width // size:
        raise asked.wrong(f"zero points of {words * PER_WORD} groups for {width // size}")
    zeros = asked.expect("qzeros", "I32", (out, words))
    scales = asked.expect("scales", "F16 BF16 F32", (out, words * PER_WORD))
    return Gemv((out, width), size, asked.main, zeros, scales)


def fits_gemm(parts: Parts) -> bool:
    """Whether the shapes are those of this packing."""
    scales = parts.get("scales")
    return scales is not None and scales.shape[1:] == tuple(n * PER_WORD for n in parts["main"].shape[1:])


def fits_gemv(parts: Parts) -> bool:
    """Whether the shapes are those of this packing."""
    scales = parts.get("scales")
    return scales is not None and scales.shape[:1] == parts["main"].shape[:1]


AWQ_GEMM = Scheme(
    "AWQ (GEMM)",
    "AutoAWQ; 4 bits; any group size",
    methods=("awq",),
    main=(".qweight",),
    dense=".weight",
    dtypes=("I32",),
    companions={"qzeros": (".qzeros",), "scales": (".scales",)},
    required=("qzeros", "scales"),
    fits=fits_gemm,
    build=build_gemm,
)
AWQ_GEMV = replace(AWQ_GEMM, name="AWQ (GEMV)", fits=fits_gemv, build=build_gemv)
