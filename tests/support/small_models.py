"""Small GGUF files and importance matrices, made in code."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.values import Metadata, string, strings, u32
from ggufsmith.container.writer import Writer

F32, F16 = BY_NAME["F32"], BY_NAME["F16"]
Arrays = Mapping[str, NDArray[np.float32]]


def write_gguf(path: Path, metadata: Metadata, arrays: Mapping[str, tuple[Format, NDArray[np.uint8]]]) -> Path:
    """Arrays: format, and bytes of shape (..., bytes per row) or, for plain formats, of the numbers themselves."""
    specs = []
    for name, (format, data) in arrays.items():
        width = data.shape[-1] // format.size * format.weights
        specs.append(TensorSpec(name, (*data.shape[:-1], width), format))
    layout = lay_out(metadata, specs)
    with Writer(path, layout, sync=False) as writer:
        for offset, (_, data) in zip(layout.offsets, arrays.values(), strict=True):
            writer.write(offset, data)
        writer.commit()
    return path


def plain(values: NDArray[np.float32], format: Format = F32) -> tuple[Format, NDArray[np.uint8]]:
    data = values.astype(np.float16) if format is F16 else values.astype(np.float32)
    return format, np.ascontiguousarray(data).view(np.uint8)


def arrays(blocks: int = 2, width: int = 64, seed: int = 1) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * 0.02).astype(np.float32)

    found = {"token_embd.weight": matrix(48, width), "output_norm.weight": matrix(width)}
    for block in range(blocks):
        for name in ("attn_q", "attn_v", "ffn_down"):
            found[f"blk.{block}.{name}.weight"] = matrix(width, width)
        found[f"blk.{block}.ffn_up_exps.weight"] = matrix(3, width, width)
        found[f"blk.{block}.attn_norm.weight"] = matrix(width)
    return found


def metadata(blocks: int = 2) -> Metadata:
    return {
        "general.architecture": string("llama"),
        "llama.block_count": u32(blocks),
        "llama.attention.head_count": u32(4),
        "general.file_type": u32(1),
    }


def write_model(path: Path, blocks: int = 2, width: int = 64, format: Format = F16, **changes: object) -> Path:
    """Matrices in `format` (F16 or F32), vectors in F32."""
    tensors = {
        name: plain(values, format if values.ndim > 1 else F32) for name, values in arrays(blocks, width).items()
    }
    return write_gguf(path, metadata(blocks), {**tensors, **changes})  # type: ignore[dict-item]


def importance(model: Arrays, seed: int = 2) -> dict[str, NDArray[np.float32]]:
    """(slices, width) for every matrix in a block."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0.1, 4, (len(values) if values.ndim > 2 else 1, values.shape[-1])).astype(np.float32)
        for name, values in model.items()
        if name.startswith("blk.") and values.ndim > 1
    }


def write_imatrix(path: Path, means: Arrays, counts: Mapping[str, list[float]] | None = None) -> Path:
    """As llama-imatrix writes them; counts per matrix, 4 unless told."""
    data: dict[str, tuple[Format, NDArray[np.uint8]]] = {}
    for name, values in means.items():
        each = np.array((counts or {}).get(name, [4.0] * len(values)), np.float32)[:, None]
        data[f"{name}.in_sum2"] = plain(values * each)
        data[f"{name}.counts"] = plain(each)
    keys = {
        "general.type": string("imatrix"),
        "imatrix.datasets": strings(["/home/somebody/calibration.txt"]),
        "imatrix.chunk_count": u32(10),
        "imatrix.chunk_size": u32(512),
    }
    return write_gguf(path, keys, data)


def legacy_bytes(means: Arrays, calls: int = 8) -> bytes:
    """The .dat format."""
    parts = [struct.pack("<i", len(means))]
    for name, values in means.items():
        flat = (values * calls).astype("<f4").tobytes()
        parts += [struct.pack("<i", len(name.encode())), name.encode(), struct.pack("<ii", calls, len(flat) // 4), flat]
    dataset = b"C:\\texts\\calibration.txt"
    return b"".join([*parts, struct.pack("<ii", 10, len(dataset)), dataset])
