"""IQ3_XXS and IQ3_S: four weights are signs times a point of a lattice of eight levels, of 256 or 512 points."""

from typing import Any

from ggufsmith.quantize.cache import kernel
from ggufsmith.quantize.kernels.iq_lattice import encoder
from ggufsmith.quantize.kernels.iq_types import (
    ALL_IF_ANY,
    OFF_GRID,
    Lattice,
    LatticeType,
    Layout,
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

LAYOUTS = {
    "IQ3_XXS": Layout(
        low=positions(64, 0, 8),
        high=positions(64, 0, 0),
        sign=positions(32, 64, 7, run=4, skip=4),
        scale=positions(8, 64, 32) + 28,
        width=8,
        above=0,
        words=24,
        factor=f32(0.5),
    ),
    "IQ3_S": Layout(
        low=positions(64, 0, 8),
        high=positions(64, 64, 1),
        sign=positions(32, 72, 8),
        scale=positions(8, 104, 4),
        width=8,
        above=1,
        words=27,
        factor=f32(2),
    ),
}

encode_octal = encoder(4, 8)
decode_blocks = decoder(4)
ENCODE, DECODE = signatures(IQ3_XXS, LAYOUTS["IQ3_XXS"])


@kernel(*ENCODE)
def iq3(x: Any, out: Any, importance: Any, first: int, spec: Any, layout: Any, grid: Any) -> None:
    encode_octal(x, out, importance, first, spec, layout, grid)


@kernel(*DECODE)
def iq3_decode(blocks: Any, out: Any, spec: Any, layout: Any, values: Any, signs: Any) -> None:
    decode_blocks(blocks, out, spec, layout, values, signs)


TYPES = {
    name: LatticeType(name, spec, LAYOUTS[name], iq3, iq3_decode)
    for name, spec in (("IQ3_XXS", IQ3_XXS), ("IQ3_S", IQ3_S))
}
KERNELS = {name: kind.codec() for name, kind in TYPES.items()}
