"""IQ3_XXS and IQ3_S: four weights are signs times a point of a lattice of eight levels, of 256 or 512 points.

quantize_row_iq3_xxs_impl and quantize_row_iq3_s_impl of ggml-quants.c, as data.
"""

from typing import Any

from ggufsmith.quantize.cache import kernel
from ggufsmith.quantize.kernels import Steering
from ggufsmith.quantize.kernels.iq_lattice import encoder
from ggufsmith.quantize.kernels.iq_types import (
    ALL_IF_ANY,
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

IQ3_XXS = Lattice(
    size=32,
    tries=31,
    step=f32(0.2),
    spread=f32(2),
    floor=f32(0),
    least=f32(1e-8),
    even=True,
    fit=False,
    again=OFF_GRID,
    nudge=f32(1.0125),
    clear=True,
)
IQ3_S = IQ3_XXS._replace(tries=19, least=f32(2.0**-149), even=False, again=ALL_IF_ANY, nudge=f32(1.033), clear=False)

S = behind_scale("IQ3_S")
LAYOUTS = {
    # The numbers of 64 points; then per sub-block four bytes, four times seven signs, and the scale.
    "IQ3_XXS": BitLayout(
        low=positions(64, 0, 8),
        high=positions(64, 0, 0),
        sign=positions(32, 64, 7, run=4, skip=4),
        scale=positions(8, 64, 32) + 28,
        width=8,
        above=0,
        words=behind_scale("IQ3_XXS")["words"],
        factor=f32(0.5),
    ),
    "IQ3_S": BitLayout(
        low=positions(64, S["qs"], 8),
        high=positions(64, S["qh"], 1),
        sign=positions(32, S["signs"], 8),
        scale=positions(8, S["scales"], 4),
        width=8,
        above=1,
        words=S["words"],
        factor=f32(2),
    ),
}

search = encoder(4, 8)
decode = decoder(4)
SIGNATURE, DECODER_SIGNATURE = signatures(IQ3_XXS, LAYOUTS["IQ3_XXS"])


@kernel(*SIGNATURE)
def encode_iq3(
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
    """Both types, with importance or without."""
    search(x, out, Steering(weights, first, blocks_per_row, row_squares), spec, layout, grid)


@kernel(*DECODER_SIGNATURE)
def decode_iq3(blocks: Any, out: Any, spec: Any, layout: Any, values: Any, signs: Any) -> None:
    """Both types."""
    decode(blocks, out, spec, layout, values, signs)


SPECS = {"IQ3_XXS": IQ3_XXS, "IQ3_S": IQ3_S}
TYPES = {name: LatticeType(name, spec, LAYOUTS[name], encode_iq3, decode_iq3) for name, spec in SPECS.items()}
KERNELS = {name: kind.codec() for name, kind in TYPES.items()}
