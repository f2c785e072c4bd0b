"""The file types of llama.cpp: what `general.file_type` can say, and the format most tensors of such a file have.

Numbers: enum llama_ftype (include/llama.h), from the `gguf` package. Names and formats: the table of llama-quantize
(tools/quantize) and llama_ftype_get_default_type (src/llama-quant.cpp). Where a name is also that of a format, that is
its format; a mixture (`_S`, `_M`, `_L`) starts from the format in `MIXTURES`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gguf.constants import LlamaFileType

from ggufsmith.container.errors import Usage
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.text import did_you_mean

NAMES = (
    "F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4_MOE NVFP4 "
    "Q3_K_L Q3_K_M IQ3_M Q3_K_S IQ3_S IQ3_XS IQ3_XXS Q2_K Q2_K_S IQ2_M IQ2_S IQ2_XS Q2_0 IQ2_XXS TQ2_0 TQ1_0 IQ1_M "
    "IQ1_S Q1_0"
).split()
MIXTURES = {
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K",
    "Q2_K_S": "Q2_K",
    "IQ3_M": "IQ3_S",
    "IQ3_XS": "IQ3_S",
    "IQ2_M": "IQ2_S",
    "IQ2_S": "IQ2_XS",  # the name says more than most of its tensors have
    "MXFP4_MOE": "MXFP4",
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
NUMBERS = {member.name.partition("_")[2] or member.name: int(member) for member in LlamaFileType}
NUMBERS.setdefault("Q2_0", 41)  # newer than some releases of gguf


@dataclass(frozen=True)
class FileType:
    """One file type. `base` is what a matrix has that no rule names; None only for COPY, which keeps everything."""

    name: str
    number: int | None
    base: Format | None

    @property
    def shown(self) -> str:
        """The name as users write it: q4_K_M."""
        return shown(self.name)


FILE_TYPES = {
    **{name: FileType(name, NUMBERS[name], BY_NAME[MIXTURES.get(name, name)]) for name in NAMES},
    "COPY": FileType("COPY", None, None),
}


def shown(name: str) -> str:
    """The way the field writes a name: q4_K_M, iq4_xs, q8_0."""
    return name.replace("Q", "q", 1) if re.match(r"Q\d_K", name) else name.lower()


def file_type_of(name: str) -> FileType | None:
    """The file type of this name, in any case, of an alias of it, or of its number; None if there is none."""
    key = name.upper()
    if re.fullmatch("[0-9]{1,9}", key):
        return next((kind for kind in FILE_TYPES.values() if kind.number == int(key)), None)
    return FILE_TYPES.get(ALIASES.get(key, key))


def unknown(name: str, known: Iterable[str]) -> Usage:
    """The error for a recipe that does not exist, with the nearest names."""
    fix = f"{did_you_mean(name, map(shown, known))} `ggufsmith recipes` prints them all."
    return Usage(f"there is no recipe {name!r}", fix=fix.lstrip())
