"""Every ggml type as one frozen record: how the weights of a block lie in its bytes.

Names, ids, block lengths, byte sizes and NumPy dtypes derive from these records and are written nowhere else. They
stand at the bottom of the house because the reader needs sizes to check extents; the kernels that fill the blocks are
in `quantize/`. Layouts: ggml/src/ggml-common.h of llama.cpp; ids: enum ggml_type in ggml/include/ggml.h.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ggufsmith.container.errors import Unsupported

F16, BF16, F32, F64 = "<u2", "<u2", "<f4", "<f8"  # halves are handled as their bits
U8, I8, U16, I16, I32, I64 = "u1", "i1", "<u2", "<i2", "<i4", "<i8"
Field = tuple[str, str] | tuple[str, str, int]


@dataclass(frozen=True)
class Format:
    """One ggml type.

    name:    as ggml prints it in capitals.
    id:      the number stored in a GGUF tensor record.
    weights: weights per block (1 for plain types).
    fields:  (name, dtype[, count]) in the order of the bytes of one block.
    """

    name: str
    id: int
    weights: int
    fields: tuple[Field, ...]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """One block as a packed NumPy structured dtype."""
        return np.dtype([f if len(f) == 2 else (f[0], f[1], (f[2],)) for f in self.fields])

    @property
    def size(self) -> int:
        """Bytes per block."""
        return self.dtype.itemsize

    @property
    def bits_per_weight(self) -> float:
        """Bits of a block, scales included, for each of its weights."""
        return self.size * 8 / self.weights

    @property
    def plain(self) -> bool:
        """True for types without blocks: one number per weight."""
        return self.weights == 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its name: in every process there is one object per format."""
        return format_of, (self.name,)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape (slowest axis first). ValueError if a row is no whole number of blocks."""
        row = shape[-1] if shape else 1
        if row % self.weights:
            raise ValueError(f"rows of {row} are not a multiple of {self.weights}, the block of {self.name}")
        return math.prod(shape) // self.weights * self.size


FORMATS = (
    Format("F32", 0, 1, (("x", F32),)),
    Format("F16", 1, 1, (("x", F16),)),
    Format("Q4_0", 2, 32, (("d", F16), ("qs", U8, 16))),
    Format("Q4_1", 3, 32, (("d", F16), ("m", F16), ("qs", U8, 16))),
    Format("Q5_0", 6, 32, (("d", F16), ("qh", U8, 4), ("qs", U8, 16))),
    Format("Q5_1", 7, 32, (("d", F16), ("m", F16), ("qh", U8, 4), ("qs", U8, 16))),
    Format("Q8_0", 8, 32, (("d", F16), ("qs", I8, 32))),
    Format("Q8_1", 9, 32, (("d", F16), ("s", F16), ("qs", I8, 32))),
    Format("Q2_K", 10, 256, (("scales", U8, 16), ("qs", U8, 64), ("d", F16), ("dmin", F16))),
    Format("Q3_K", 11, 256, (("hmask", U8, 32), ("qs", U8, 64), ("scales", U8, 12), ("d", F16))),
    Format("Q4_K", 12, 256, (("d", F16), ("dmin", F16), ("scales", U8, 12), ("qs", U8, 128))),
    Format("Q5_K", 13, 256, (("d", F16), ("dmin", F16), ("scales", U8, 12), ("qh", U8, 32), ("qs", U8, 128))),
    Format("Q6_K", 14, 256, (("ql", U8, 128), ("qh", U8, 64), ("scales", I8, 16), ("d", F16))),
    Format("Q8_K", 15, 256, (("d", F32), ("qs", I8, 256), ("bsums", I16, 16))),
    Format("IQ2_XXS", 16, 256, (("d", F16), ("qs", U16, 32))),
    Format("IQ2_XS", 17, 256, (("d", F16), ("qs", U16, 32), ("scales", U8, 8))),
    Format("IQ3_XXS", 18, 256, (("d", F16), ("qs", U8, 96))),
    Format("IQ1_S", 19, 256, (("d", F16), ("qs", U8, 32), ("qh", U16, 8))),
    Format("IQ4_NL", 20, 32, (("d", F16), ("qs", U8, 16))),
    Format("IQ3_S", 21, 256, (("d", F16), ("qs", U8, 64), ("qh", U8, 8), ("signs", U8, 32), ("scales", U8, 4))),
    Format("IQ2_S", 22, 256, (("d", F16), ("qs", U8, 64), ("qh", U8, 8), ("scales", U8, 8))),
    Format("IQ4_XS", 23, 256, (("d", F16), ("scales_h", U16), ("scales_l", U8, 4), ("qs", U8, 128))),
    Format("I8", 24, 1, (("x", I8),)),
    Format("I16", 25, 1, (("x", I16),)),
    Format("I32", 26, 1, (("x", I32),)),
    Format("I64", 27, 1, (("x", I64),)),
    Format("F64", 28, 1, (("x", F64),)),
    Format("IQ1_M", 29, 256, (("qs", U8, 32), ("qh", U8, 16), ("scales", U8, 8))),
    Format("BF16", 30, 1, (("x", BF16),)),
    Format("TQ1_0", 34, 256, (("qs", U8, 48), ("qh", U8, 4), ("d", F16))),
    Format("TQ2_0", 35, 256, (("qs", U8, 64), ("d", F16))),
    Format("MXFP4", 39, 32, (("e", U8), ("qs", U8, 16))),
    Format("NVFP4", 40, 64, (("d", U8, 4), ("qs", U8, 32))),
    Format("Q1_0", 41, 128, (("d", F16), ("qs", U8, 16))),
    Format("Q2_0", 42, 64, (("d", F16), ("qs", U8, 16))),
)

BY_ID = {f.id: f for f in FORMATS}
BY_NAME = {f.name: f for f in FORMATS}
FLOATS = ("F32", "F16", "BF16")  # the plain formats that weights are read from
INTEGERS = ("I8", "I16", "I32", "I64")
if len(BY_ID) != len(FORMATS) or len(BY_NAME) != len(FORMATS):
    raise RuntimeError("container/formats.py: two formats share an id or a name")


def format_of(name: str) -> Format:
    """The format called `name`, in any case. Unsupported if there is none."""
    found = BY_NAME.get(name.upper())
    if found is None:
        raise Unsupported(f"unknown type {name!r}", fix=f"Known types: {', '.join(BY_NAME)}.")
    return found
