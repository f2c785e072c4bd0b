"""GPTQ: AutoGPTQ, GPTQModel and GPTQ-for-LLaMa.

qweight (in * bits / 32, out) int32 holds the codes of one output row in one column, one gapless stream of bits; qzeros
(groups, out * bits / 32) the zero points of a group in one row, likewise; scales (groups, out). Group of input k:
g_idx[k] where stored (act-order), k // group_size otherwise. weight = scale * (code - zero).

Zero points are stored less one (format v1), as they are in v2. v1's zero of 0 is thus stored as the largest code, and
adding one wraps around, as AutoGPTQ and ExLlama do.
Sources: AutoGPTQ 0.7.1 nn_modules/qlinear/qlinear_cuda_old.py, GPTQModel nn_modules/qlinear, GPTQ-for-LLaMa quant.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.convert.dequantize.bitpacking import Codes, scale_codes, unpack, words_for
from ggufsmith.convert.dequantize.lossless_blocks import Q4_0, fill_q4_0
from ggufsmith.convert.dequantize.scheme import Exact, Parts, Scheme, SchemeInputs, Shape, floats
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.stored import StoredTensor

BITS = (2, 3, 4, 8)
FORMATS = {"gptq": 1, "gptq_v2": 0}  # checkpoint_format -> what is taken off a stored zero point
MATRICES = "F16 BF16 F32"


@dataclass(frozen=True)
class Gptq:
    """group_size: columns of a group, for sequential groups; `g_idx` gives them one by one. off: see FORMATS.

    symmetric: the settings say that all zero points are the middle of the codes.
    """

    shape: Shape
    bits: int
    symmetric: bool
    off: int
    group_size: int
    qweight: StoredTensor
    qzeros: StoredTensor
    scales: StoredTensor
    g_idx: StoredTensor | None

    granule = 1

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return floats(self.scales)

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        codes, scales, zeros = self._parts(store, first, last)
        groups: Any = self.group_size if self.g_idx is None else store.whole(self.g_idx)
        scale_codes(codes, scales, zeros.astype(np.float32), groups, out)

    def q4_0(self, store: Store, first: int, last: int, out: NDArray[np.uint8]) -> bool:
        """Fill `out` with the rows as Q4_0. False if they are not that after all."""
        codes, scales, zeros = self._parts(store, first, last)
        return bool((zeros == 8).all()) and fill_q4_0(codes, scales, out)

    def _parts(self, store: Store, first: int, last: int) -> tuple[Codes, NDArray[np.float32], Codes]:
        """Codes (last - first, width), scales and zero points (last - first, groups)."""
        words = store.columns(self.qweight, first, last).T
        codes = unpack(words, self.bits, self.shape[1])
        scales = to_f32(store.columns(self.scales, first, last).T, self.scales.dtype)
        begin, end = first // 32 * 32, min(-(-last // 32) * 32, self.shape[0])  # whole words, whatever the bits
        packed = store.columns(self.qzeros, begin * self.bits // 32, words_for(end, self.bits))
        zeros = unpack(packed, self.bits, end - begin)[:, first - begin : last - begin].T
        return codes, scales, (zeros + np.uint8(self.off)) & np.uint8((1 << self.bits) - 1)


def fits(parts: Parts) -> bool:
    """Whether the shapes are those of this packing."""
    shapes = [parts[role].shape if role in parts else None for role in ("main", "scales")]
    return shapes[1] is None or (len(shapes[0] or ()) == 2 and shapes[0][-1:] == shapes[1][-1:])  # type: ignore[index]


def build(asked: SchemeInputs) -> Gptq:
    """Reads g_idx, to check that its groups exist."""
    qweight, settings = asked.matrix("main"), asked.settings
    form = str(settings.first("checkpoint_format") or "gptq").lower()
    if settings.first("is_marlin_format") or form not in FORMATS:
        raise asked.unsupported(f"checkpoint_format {form!r}", " and ".join(FORMATS))
    out, qzeros, scales = qweight.shape[1], asked.matrix("qzeros"), asked.matrix("scales")
    bits, rest = divmod(32 * qzeros.shape[-1], out)
    claimed = settings.integer("bits", "wbits")
    if rest or bits not in BITS:
        raise asked.wrong(
            f"{qzeros.shape[-1]} words of zero points for {out} rows do not give a number of bits among {BITS}"
        )
    if claimed not in (None, bits) and not settings.first("dynamic"):
        raise asked.wrong(f"it holds {bits} bits, but the config says {claimed}")
    width, rest = divmod(32 * qweight.shape[0], bits)
    if rest or out * bits % 32:
        raise asked.wrong(f"{list(qweight.shape)} words do not hold a matrix of {bits}-bit codes")
    groups = scales.shape[0]
    asked.expect("qzeros", "I32", (groups, words_for(out, bits)))
    asked.expect("scales", MATRICES, (groups, out))
    size, order = _group_size(asked, width, groups), _order(asked, width, groups)
    symmetric = settings.first("sym") is True
    return Gptq((out, width), bits, symmetric, FORMATS[form], size, qweight, qzeros, scales, order)


def exact(weights: Gptq) -> Exact | None:
    """Q4_0 for symmetric codes of 4 bits in order, whose groups are whole blocks; else None."""
    even = weights.g_idx is None and weights.group_size % Q4_0.weights == weights.shape[1] % weights.group_size == 0
    fits = weights.bits == 4 and weights.symmetric and even and weights.scales.dtype == "F16"
    return Exact(Q4_0, weights.q4_0) if fits else None


def _group_size(asked: SchemeInputs, width: int, groups: int) -> int:
    size = asked.settings.integer("group_size", "groupsize")
    size = width if size == -1 else size
    if groups and width % groups == 0 and (size is None or asked.settings.first("dynamic")):
        size = width // groups  # GPTQModel's "dynamic": some modules have other bits and groups
    if not groups or not size or size < 0 or -(-width // size) != groups:
        raise asked.wrong(f"{groups} groups for {width} inputs do not match a group_size of {size}")
    return size


def _order(asked: SchemeInputs, width: int, groups: int) -> StoredTensor | None:
    """g_idx, unless it says what sequential groups say anyway."""
    if "g_idx" not in asked.parts:
        name = asked.main.path.stem.lower()
        if asked.settings.first("desc_act") or ("act-order" in name and "no-act-order" not in name):
            raise asked.wrong("act-order (desc_act) without its g_idx", "Download the complete checkpoint again.")
        return None
    g_idx = asked.expect("g_idx", "I32 I64", (width,))
    index = asked.store.whole(g_idx)
    if index.min() < 0 or index.max() >= groups:
        raise asked.wrong(f"g_idx names groups {index.min()} to {index.max()}, of {groups}")
    size = _group_size(asked, width, groups)
    return None if np.array_equal(index, np.arange(width) // size) else g_idx


GPTQ = Scheme(
    "GPTQ",
    "AutoGPTQ, GPTQModel (v1, v2), GPTQ-for-LLaMa; 2, 3, 4, 8 bits; any group size; act-order; symmetric or not; "
    "symmetric 4-bit without act-order maps exactly to Q4_0",
    methods=("gptq",),
    main=(".qweight",),
    dense=".weight",
    dtypes=("I32",),
    companions={"qzeros": (".qzeros",), "scales": (".scales",), "g_idx": (".g_idx",)},
    required=("qzeros", "scales"),
    fits=fits,
    build=build,
    exact=exact,
)
