"""A trained model whose weights lie on no grid and whose rows fit every type, made of the one that `fetch.py` brings.

    python tests/support/real_model.py SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M-noised-F32.gguf

SmolLM2-135M-Instruct is published in a Python package as Q4_1 only, with the embedding in Q8_0, so that some types
would reproduce it exactly. Uniform noise, as wide as the step between two levels of its block, is added to every
weight: that is the model of which the Q4_1 file could be the quantization. It predicts worse than the original, which
does not matter for measuring what quantization changes.

The width of 576 is not a multiple of 256, as K- and I-quants need it. It becomes 768 without changing the function: 64
channels of zeros follow every 192, three heads of zeros and their key-value head follow the nine, and the norms are
scaled, because their mean is over more channels.
"""

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

SEED = 135
WIDTH, PADDED = 576, 768
HEADS, KV_HEADS, HEAD = (9, 12), (3, 4), 64
BLOCK = {"Q4_1": (20, 32), "Q8_0": (34, 32)}  # bytes and weights of a block, which begins with its step in float16
# The widths of a matrix: rows, columns. Of the residual stream, of queries, of keys and values.
STREAM, QUERIES, KEYS = "stream", "queries", "keys"
SIDES = {
    "token_embd": ("", STREAM),
    "attn_q": (QUERIES, STREAM),
    "attn_k": (KEYS, STREAM),
    "attn_v": (KEYS, STREAM),
    "attn_output": (STREAM, QUERIES),
    "ffn_gate": ("", STREAM),
    "ffn_up": ("", STREAM),
    "ffn_down": (STREAM, ""),
}
CHANGED = {
    "llama.embedding_length": PADDED,
    "llama.attention.head_count": HEADS[1],
    "llama.attention.head_count_kv": KV_HEADS[1],
    "general.file_type": 0,
}
EPSILON = "llama.attention.layer_norm_rms_epsilon"
KEPT = ("general.", "llama.", "tokenizer.")


def noised(source: Path, output: Path) -> Path:
    """Write the model in float32. source: the published file."""
    reader, writer = GGUFReader(source), GGUFWriter(output, "llama")
    for name, field in reader.fields.items():
        if name.startswith(KEPT) and name != "general.architecture":
            kind = field.types[0]
            value = CHANGED.get(name, field.contents())
            if name == EPSILON:
                value = float(value) * WIDTH / PADDED
            writer.add_key_value(name, value, kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, padded(tensor.name, weights(tensor)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def weights(tensor: Any) -> NDArray[np.float32]:
    """The dequantized weights, with noise if they were quantized."""
    plain = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    kind = tensor.tensor_type.name
    if kind not in BLOCK:
        return plain
    nbytes, count = BLOCK[kind]
    steps = tensor.data.reshape(-1, nbytes)[:, :2].copy().view(np.float16).astype(np.float32)
    generator = np.random.default_rng([SEED, zlib.crc32(tensor.name.encode())])
    noise = generator.uniform(-0.5, 0.5, (len(steps), count)).astype(np.float32) * np.abs(steps)
    return plain + noise.reshape(plain.shape)


def padded(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tensor with zeros where channels and heads were added."""
    if values.ndim == 1:
        return spread(values * np.float32(np.sqrt(WIDTH / PADDED)), STREAM)
    rows, columns = SIDES[name.split(".")[-2]]
    return np.ascontiguousarray(spread(spread(values.T, columns).T, rows))


def spread(values: NDArray[np.float32], side: str) -> NDArray[np.float32]:
    """With zeros among the first axis."""
    if not side:
        return values
    rest = values.shape[1:]
    if side == STREAM:
        out = np.zeros((3, PADDED // 3, *rest), np.float32)
        out[:, : WIDTH // 3] = values.reshape(3, WIDTH // 3, *rest)
        return out.reshape(PADDED, *rest)
    heads = HEADS if side == QUERIES else KV_HEADS
    out = np.zeros((heads[1] * HEAD, *rest), np.float32)
    out[: heads[0] * HEAD] = values
    return out


if __name__ == "__main__":
    noised(Path(sys.argv[1]), Path(sys.argv[2]))
