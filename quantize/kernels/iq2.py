"""IQ2_XXS, IQ2_XS and IQ2_S: eight weights are signs times a point of a ternary lattice of 256, 512 or 1024 points."""

from typing import Any

from ggufsmith.quantize.cache import kernel
from ggufsmith.quantize.kernels.iq_lattice import encoder
from ggufsmith.quantize.kernels.iq_types import (
    ALWAYS,
    OFF_GRID,
    Lattice,
    LatticeType,
    Layout,
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

LAYOUTS = {
    "IQ2_XXS": Layout(
        low=positions(32, 0, 8, run=4, skip=32),
        high=positions(32, 0, 0),
        sign=positions(32, 4, 7, run=4, skip=36),
        scale=positions(8, 4, 64) + 28,
        width=8,
        above=0,
        words=16,
        factor=f32(0.25),
    ),
    "IQ2_XS": Layout(
        low=positions(32, 0, 16),
        high=positions(32, 0, 0),
        sign=positions(32, 0, 16) + 9,
        scale=positions(16, 64, 4),
        width=9,
        above=0,
        words=18,
        factor=f32(0.25),
    ),
    "IQ2_S": Layout(
        low=positions(32, 0, 8),
        high=positions(32, 64, 2),
        sign=positions(32, 32, 8),
        scale=positions(16, 72, 4),
        width=8,
        above=2,
        words=20,
        factor=f32(0.25),
    ),
}

encode_ternary = encoder(8, 3)
decode_blocks = decoder(8)
ENCODE, DECODE = signatures(IQ2_XXS, LAYOUTS["IQ2_XXS"])


@kernel(*ENCODE)
def iq2(x: Any, out: Any, importance: Any, first: int, spec: Any, layout: Any, grid: Any) -> None:
    encode_ternary(x, out, importance, first, spec, layout, grid)


@kernel(*DECODE)
def iq2_decode(blocks: Any, out: Any, spec: Any, layout: Any, values: Any, signs: Any) -> None:
    decode_blocks(blocks, out, spec, layout, values, signs)


TYPES = {
    name: LatticeType(name, spec, LAYOUTS[name], iq2, iq2_decode)
    for name, spec in (("IQ2_XXS", IQ2_XXS), ("IQ2_XS", IQ2_XS), ("IQ2_S", IQ2_S))
}
KERNELS = {name: kind.codec(needs_importance=name != "IQ2_S") for name, kind in TYPES.items()}
