"""ggml itself, through ctypes: the reference for every kernel's bytes.

libggml-base lies in the `lib` folder of the llama_cpp package. Import this module only from conformance tests and from
golden_make.py: a failed GGML_ASSERT ends the process, so rows that could fail one go through `quantize_or_abort`.
"""

import ctypes
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import format_of

PACKAGE = "llama-cpp-python"
NAMES = {"linux": "libggml-base.so", "darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}
NEEDS_IMPORTANCE = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})  # ggml_quantize_requires_imatrix


class TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h, up to the field used here."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def library() -> ctypes.CDLL:
    """libggml-base with the signatures used here."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{PACKAGE} is not installed; run `make conformance`")
    lib = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / NAMES[sys.platform]))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *(ctypes.c_int64,) * 3,
        ctypes.c_void_p,
    ]
    lib.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
    lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
    for name in ("quantize_row_q8_K_ref", "dequantize_row_q8_K"):
        getattr(lib, name).restype = None
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return lib


def provenance() -> str:
    return f"{PACKAGE} {version(PACKAGE)}"


def sizes(name: str) -> tuple[int, int]:
    """Weights and bytes per block, as ggml has them."""
    traits = library().ggml_get_type_traits(format_of(name).id).contents
    return traits.blck_size, traits.type_size


def quantize(name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """ggml_quantize_chunk: rows float32 [n, k], importance float32 [k] -> bytes uint8 [n, bytes per row]."""
    if importance is None and name in NEEDS_IMPORTANCE:
        raise ValueError(f"{name}: ggml aborts without an importance matrix")
    rows = np.ascontiguousarray(rows, np.float32)
    n, k = rows.shape
    out = np.zeros((n, format_of(name).nbytes((k,))), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if weights is not None and weights.shape != (k,):
        raise ValueError(f"importance of shape {weights.shape} for rows of {k}")
    if name == "Q8_K":  # ggml's own intermediate: ggml_quantize_chunk does not know it
        library().quantize_row_q8_K_ref(rows.ctypes.data, out.ctypes.data, rows.size)
        return out
    pointer = None if weights is None else weights.ctypes.data
    library().ggml_quantize_chunk(format_of(name).id, rows.ctypes.data, out.ctypes.data, 0, n, k, pointer)
    return out


def dequantize(name: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """ggml's to_float: bytes uint8 [n, bytes per row] -> float32 [n, k]."""
    data = np.ascontiguousarray(data)
    fmt = format_of(name)
    out = np.empty((data.shape[0], data.shape[1] // fmt.size * fmt.weights), np.float32)
    if name == "F32":  # ggml has no conversion from float32 to itself
        return data.view(np.float32).reshape(out.shape)
    known = library().ggml_get_type_traits(fmt.id).contents.to_float
    to_float = library().dequantize_row_q8_K if name == "Q8_K" else known
    to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out


def quantize_or_abort(
    name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8] | None:
    """Like `quantize`, in a process of its own; None where ggml aborts (it asserts on some finite rows)."""
    n, k = rows.shape
    weights = b"" if importance is None else np.ascontiguousarray(importance, np.float32).tobytes()
    payload = np.ascontiguousarray(rows, np.float32).tobytes() + weights
    command: list[Any] = [sys.executable, __file__, name, str(n), str(k)]
    done = subprocess.run(command, input=payload, capture_output=True, check=False)
    if done.returncode:
        return None
    return np.frombuffer(done.stdout, np.uint8).reshape(n, -1)


def main() -> None:
    name, n, k = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    values = np.frombuffer(sys.stdin.buffer.read(), np.float32)
    importance = values[n * k :] if values.size > n * k else None
    sys.stdout.buffer.write(quantize(name, values[: n * k].reshape(n, k), importance).tobytes())


if __name__ == "__main__":
    main()
