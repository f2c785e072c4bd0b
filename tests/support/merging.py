"""Reads whole checkpoints and GGUF tensors, for tests of adapters."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.layout import rows_of
from ggufsmith.container.reader import Gguf
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.dequantize.detect import detect
from ggufsmith.convert.dequantize.scheme import DequantizedTensor
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.lora.merge import merge
from ggufsmith.convert.lora.peft import open_adapter
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.stored import Checkpoint

Q, K, V = (f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def dense(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """Every tensor, read in uneven pieces."""
    found = {}
    with checkpoint:
        store = Store(checkpoint)
        for name, source in checkpoint.tensors.items():
            rows, width = rows_of(source.shape)
            out = np.full((rows, width), np.nan, np.float32)
            for first in range(0, rows, 67):
                last = min(first + 67, rows)
                if isinstance(source, DequantizedTensor):
                    source.weights.rows(store, first, last, out[first:last])
                else:
                    out[first:last] = to_f32(store.rows(source, first, last), source.dtype)
            found[name] = out.reshape(source.shape)
    return found


def opened(folder: Path) -> Checkpoint:
    return detect(open_checkpoint(folder), open_config(folder))


def merged(base: Path, *folders: tuple[Path, float]) -> dict[str, NDArray[np.float32]]:
    return dense(merge(opened(base), [(open_adapter(folder), factor) for folder, factor in folders])[0])


def stored(gguf: Gguf, name: str) -> NDArray[np.uint8]:
    out = np.empty(gguf.tensors[name].nbytes, np.uint8)
    gguf.read_into(gguf.tensors[name], 0, out)
    return out


def wide(array: Any) -> NDArray[np.float64]:
    return np.asarray(array, np.float64)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-7)
