"""Every kernel shows that it works before its first weight of a model: code that was compiled wrongly, or kept in a
cache that is damaged or mixed up, would else write a model that is wrong everywhere.

An encoder must give ggml's bytes for known rows (`ANSWERS`); a decoder must give the numbers of `reference`, which is
plain NumPy. Each is asked once in a process, which takes about a millisecond.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure
from ggufsmith.container.formats import Format
from ggufsmith.quantize import reference, rows

ROWS, WIDTH = 9, 1024  # more super-blocks than any CPU has lanes, and a rest
NEIGHBOURS = 32  # the smallest block
CLOSE = 1e-5  # of the largest of its neighbours: how far a number may be off that was rounded in another order
ASKED: set[object] = set()  # what has shown that it works

# Format -> the start of the SHA-256 of ggml's bytes for `known_rows`, without and with `known_importance`; None where
# ggml has no such search. tests/conformance/test_kernels.py makes them again.
ANSWERS: Mapping[str, tuple[str | None, str | None]] = MappingProxyType(
    {
        "Q4_0": ("dd9122ede031c793", "3d14f45258606ee2"),
        "Q4_1": ("5baea0ba1beb744a", "27d194948dff5150"),
        "Q5_0": ("2a3ab57d61fe3796", "b8bae1668d5e0204"),
        "Q5_1": ("0dc800eee09914fd", "9665be85cc9905e8"),
        "Q8_0": ("b95b370f401057a6", None),
        "Q2_K": ("76f06d8f320a5f4d", "710020aa9a931b7d"),
        "Q3_K": ("21861b6c4727fe29", "19b049841c4505b8"),
        "Q4_K": ("35d30c634f3dfbd8", "840314316157127c"),
        "Q5_K": ("f91b1564074f9fd2", "746c4a34a8d898fe"),
        "Q6_K": ("18622bc7c3334ef7", "94f9b2a6f70ddf4e"),
        "Q8_K": ("681c26cc260dbea8", None),
        "IQ2_XXS": (None, "2fb9cd6aa6aebe49"),
        "IQ2_XS": (None, "1a940df282bee6f9"),
        "IQ3_XXS": ("10803b5f9ed92b4c", "ccff21548d984240"),
        "IQ1_S": (None, "a7850b405768776d"),
        "IQ4_NL": ("d7a4e9c3b7861208", "84e273891e7d1fd6"),
        "IQ3_S": ("e165af6c9a42f931", "133de4f655d79a82"),
        "IQ2_S": ("bcabf9ac385a4587", "16c05d046d9be3ce"),
        "IQ4_XS": ("c069650de3196087", "29b5595fb834f5a6"),
        "IQ1_M": ("f23a6fa49414153e", "3df6df8bd34eeae1"),
        "TQ1_0": ("b81531b94725e6e7", None),
        "TQ2_0": ("f7d6feba58aab963", None),
        "MXFP4": ("3e5432e1fe2e84b5", None),
        "NVFP4": ("ae029ea2b2bd91bb", None),
        "Q1_0": ("b983d5181ac1cde9", None),
        "Q2_0": ("4717a5e1e70df668", None),
    }
)


def check_encoder(format: Format, weighted: bool) -> None:
    """Failure if the known rows get other bytes than ggml gives them. Nothing for formats that ggml cannot encode."""
    codec = rows.codec_of(format)
    weighted = codec.weighted is not None and (weighted or codec.encode is None)
    run, answer = codec.weighted if weighted else codec.encode, ANSWERS.get(format.name, (None, None))[weighted]
    if answer is None or run is None or run in ASKED:
        return
    x, out = known_rows(), np.empty((ROWS, format.nbytes((WIDTH,))), np.uint8)
    steering = rows.steer(format, known_importance()) if weighted else None
    if steering is not None and codec.by_row:
        steering = steering._replace(row_squares=rows.floats().mean_squares(x)[0])
    rows.encode_chunk(codec, format, x, out, steering)
    if digest(out) != answer:
        raise _broken(f"encodes rows as {format.name}")
    ASKED.add(run)


def check_decoder(format: Format) -> None:
    """Failure if arbitrary blocks are read as other numbers than `reference` reads."""
    run = rows.codec_of(format).decode
    if run in ASKED:
        return
    blocks = known_bytes(ROWS * format.nbytes((WIDTH,))).reshape(ROWS, -1)
    found, wanted = np.empty((ROWS, WIDTH), np.float32), reference.dequantize(format, blocks)
    rows.decode(format, blocks, found)
    if not agree(found, wanted):
        raise _broken(f"reads {format.name}")
    ASKED.add(run)


def check_conversion(source: Format, target: Format) -> None:
    """Failure if the known rows are converted otherwise than `reference` does, between F32, F16 and BF16."""
    floats = rows.floats()
    if (asked := floats.kernel_for(source.name, target.name)) in ASKED:
        return
    given = reference.narrow(known_rows().reshape(-1), source)
    wanted = reference.narrow(reference.widen(given, source), target)
    found = np.empty_like(wanted)
    floats.convert(given, source.name, found, target.name)
    if not np.array_equal(found, wanted):
        raise _broken(f"makes {target.name} of {source.name}")
    ASKED.add(asked)


def agree(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> bool:
    """Whether two readings of whole blocks, (n, width) each, are the same but for rounding."""
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(found)):
        return False
    found, wanted = (np.where(finite, numbers, 0).reshape(-1, NEIGHBOURS) for numbers in (found, wanted))
    return bool((np.abs(found - wanted) <= CLOSE * np.abs(wanted).max(1, keepdims=True)).all())


def digest(data: NDArray[Any]) -> str:
    """What ANSWERS keeps of bytes."""
    return hashlib.sha256(data.tobytes()).hexdigest()[:16]


@cache
def known_rows() -> NDArray[np.float32]:
    """float32 [ROWS, WIDTH], the same everywhere: of both signs, few of them large, each row of another size."""
    uniform = _noise(ROWS * WIDTH, 1).reshape(ROWS, WIDTH) - np.float32(0.5)
    known: NDArray[np.float32] = uniform * uniform * uniform * np.exp2(-np.arange(ROWS, dtype=np.float32))[:, None]
    return known


@cache
def known_importance() -> NDArray[np.float32]:
    """float32 [WIDTH], from 1/4 to 5/4."""
    return _noise(WIDTH, 2) + np.float32(0.25)


def known_bytes(size: int) -> NDArray[np.uint8]:
    """uint8 [size], of any value."""
    return (_noise(size, 3) * np.float32(256)).astype(np.uint8)


def _noise(size: int, seed: int) -> NDArray[np.float32]:
    """float32 in [0, 1), multiples of 2**-24: Knuth's multiplicative hash of the place, twice."""
    mixed = (np.arange(size, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)) * np.uint32(2654435761)
    mixed = (mixed ^ mixed >> np.uint32(15)) * np.uint32(2246822519)
    return ((mixed ^ mixed >> np.uint32(13)) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _broken(what: str) -> Failure:
    from ggufsmith.quantize.machine_code import folder, packaged

    place = packaged() if packaged().is_dir() else folder()
    return Failure(
        f"the compiled code that {what} gives wrong results",
        where=str(place or "this machine"),
        fix="Remove this folder, so that the code is compiled again. If that does not help, please report it.",
    )
