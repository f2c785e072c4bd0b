"""IQ2_XXS, IQ2_XS and IQ2_S: eight weights are signs times a point of a ternary lattice of 256, 512 or 1024 points.

quantize_row_iq2_xxs_impl, quantize_row_iq2_xs_impl and quantize_row_iq2_s_impl of ggml-quants.c, as data.
"""

from typing import Any

from ggufsmith.quantize.cache import kernel
from ggufsmith.quantize.kernels import Steering
from ggufsmith.quantize.kernels.iq_lattice import encoder
from ggufsmith.quantize.kernels.iq_types import (
    ALWAYS,
    OFF_GRID,
    BitLayout,
    Lattice,
    LatticeType,
    behind_scale,
    decoder,
    positions,
    signatures,
)
from ggufsmith.quantize.simd import f32

IQ2_XXS = Lattice(
    size=32,
    tries=13,
    step=f32(0.1),
    spread=f32(1),
    floor=f32(0),
    least=f32(1e-15),
    even=True,
    fit=True,
    again=ALWAYS,
    nudge=f32(1),
    clear=True,
)
IQ2_XS = IQ2_XXS._replace(size=16, tries=19, fit=False, again=OFF_GRID)
IQ2_S = IQ2_XS._replace(spread=f32(2), floor=f32(0.25), least=f32(1e-8), even=False, nudge=f32(0.9875), clear=False)

XS, S = behind_scale("IQ2_XS"), behind_scale("IQ2_S")
LAYOUTS = {
    # Per sub-block eight bytes: the numbers of four points, four times seven signs, and the scale.
    "IQ2_XXS": BitLayout(
        low=positions(32, 0, 8, run=4, skip=32),
        high=positions(32, 0, 0),
        sign=positions(32, 4, 7, run=4, skip=36),
        scale=positions(8, 4, 64) + 28,
        width=8,
        above=0,
        words=behind_scale("IQ2_XXS")["words"],
        factor=f32(0.25),
    ),
    # Words of two bytes: the number of a point in nine bits, and seven signs.
    "IQ2_XS": BitLayout(
        low=positions(32, XS["qs"], 16),
        high=positions(32, XS["qs"], 0),
        sign=positions(32, XS["qs"], 16) + 9,
        scale=positions(16, XS["scales"], 4),
        width=9,
        above=0,
        words=XS["words"],
        factor=f32(0.25),
    ),
    # The signs are the second half of qs.
    "IQ2_S": BitLayout(
        low=positions(32, S["qs"], 8),
        high=positions(32, S["qh"], 2),
        sign=positions(32, S["qs"] + 32, 8),
        scale=positions(16, S["scales"], 4),
        width=8,
        above=2,
        words=S["words"],
        factor=f32(0.25),
    ),
}

search = encoder(8, 3)
decode = decoder(8)
SIGNATURE, DECODER_SIGNATURE = signatures(IQ2_XXS, LAYOUTS["IQ2_XXS"])


@kernel(*SIGNATURE)
def encode_iq2(
    x: Any,
    out: Any,
    weights: Any,
    first: int,
    blocks_per_row: int,
    row_squares: Any,
    spec: Any,
    layout: Any,
    grid: Any,
) -> None:
    """All three types, with importance or without."""
    search(x, out, Steering(weights, first, blocks_per_row, row_squares), spec, layout, grid)


@kernel(*DECODER_SIGNATURE)
def decode_iq2(blocks: Any, out: Any, spec: Any, layout: Any, values: Any, signs: Any) -> None:
    """All three types."""
    decode(blocks, out, spec, layout, values, signs)


SPECS = {"IQ2_XXS": IQ2_XXS, "IQ2_XS": IQ2_XS, "IQ2_S": IQ2_S}
TYPES = {name: LatticeType(name, spec, LAYOUTS[name], encode_iq2, decode_iq2) for name, spec in SPECS.items()}
KERNELS = {name: kind.codec(needs_importance=name != "IQ2_S") for name, kind in TYPES.items()}
