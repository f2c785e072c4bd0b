"""The original Llama release: params.json and consolidated.NN.pth, one file for each of the GPUs it was trained on.

Attention and feed-forward matrices are split among the files by rows (column-parallel) or by columns (row-parallel),
the embedding by columns (Llama 1 and 2) or by rows (Llama 3); norms are the same in all. Query and key rows lie in
pairs, as ggml wants them, unlike Hugging Face's halves: they are given as halves, so that one plan serves both.
Source: llama/model.py of the release (Attention, FeedForward, Transformer).
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import read_object
from ggufsmith.convert.config import Config
from ggufsmith.convert.dequantize.scheme import DequantizedTensor, Shape, read_f32
from ggufsmith.convert.dequantize.store import Store
from ggufsmith.convert.ops import RopePermute
from ggufsmith.convert.stored import StoredTensor

BY_ROWS = ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight")
BY_COLUMNS = ("wo.weight", "w2.weight")
EMBEDDING = "tok_embeddings.weight"
# The ends of names of tensors whose rows lie in pairs -> the config key that says of how many heads.
HEADS: Mapping[str, str] = {
    "attention.wq.weight": "num_attention_heads",
    "attention.wk.weight": "num_key_value_heads",
}
# What Hugging Face calls the modules. Mistral's own layout has the same ones, and experts.
MODULES: Mapping[str, str] = {
    "tok_embeddings": "embed_tokens",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.gate": "block_sparse_moe.gate",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "norm": "norm",
}
NAME = re.compile(r"(layers\.\d+\.)?(.+)\.(weight|bias)")
EXPERT = re.compile(r"feed_forward\.(experts\.\d+\.w[123])")


def hf_name(name: str) -> str:
    """The name of the same tensor in a Hugging Face checkpoint; one that is not known stays."""
    found = NAME.fullmatch(name)
    if found is None:
        return name
    block, module, part = found.groups(default="")
    if name == "output.weight":
        return "lm_head.weight"
    if expert := EXPERT.fullmatch(module):
        return f"model.{block}block_sparse_moe.{expert[1]}.{part}"
    return f"model.{block}{MODULES[module]}.{part}" if module in MODULES else name


@dataclass(frozen=True)
class Joined:
    """One matrix from its parts, side by side along `axis`. heads: rows are put from pairs into halves of each head."""

    parts: tuple[StoredTensor, ...]
    axis: int
    heads: int = 0

    granule = 1

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return self.parts[0].nominal

    @property
    def shape(self) -> Shape:
        """See `Weights.shape`."""
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""

        def read(_: int, begin: int, end: int) -> NDArray[Any]:
            return self._straight(store, begin, end)

        if self.heads:
            out[:] = RopePermute(self.heads, undo=True).rows(read, (self.shape,), first, last)
        else:
            out[:] = read(0, first, last)

    def _straight(self, store: Store, first: int, last: int) -> NDArray[np.float32]:
        if self.axis == 1:
            return np.concatenate([_floats(store, part, first, last) for part in self.parts], axis=1)
        each = self.parts[0].shape[0]
        return np.concatenate(
            [
                _floats(store, self.parts[k], max(first - k * each, 0), min(last - k * each, each))
                for k in range(first // each, -(-last // each))
            ]
        )


def _floats(store: Store, part: StoredTensor, first: int, last: int) -> NDArray[np.float32]:
    found = np.empty((last - first, part.shape[1]), np.float32)
    read_f32(store, part, first, last, found)
    return found


def check_heads(part: StoredTensor, count: int, heads: int) -> None:
    """Malformed unless `count` parts of this shape are that many heads, each of an even number of rows."""
    rows = part.shape[0] * count if len(part.shape) == 2 else 0
    if not rows or rows % (2 * heads):
        raise Malformed(f"{part.name}: {list(part.shape)}, times {count}, is not {heads} heads", where=part.path)


def original_config(path: Path) -> Config:
    """Meta's params.json in the words of config.json. Malformed if it is not the release's."""
    params = Config(read_object(path, inside=path.parent), path)
    dim, heads = params.integer("dim"), params.integer("n_heads")
    multiple = params.integer("multiple_of", default=256)
    if dim is None or heads is None or min(dim, heads, multiple or 0) <= 0:
        raise Malformed("dim, n_heads and multiple_of must be positive numbers", where=path)
    ff = int(2 * 4 * dim / 3)
    ff = int((params.number("ffn_dim_multiplier") or 1) * ff)
    theta = params.number("rope_theta") or 10000.0
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": dim,
        "num_hidden_layers": params.integer("n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": params.integer("n_kv_heads", default=heads),
        "intermediate_size": math.ceil(ff / (multiple or 1)) * (multiple or 1),
        "rms_norm_eps": params.number("norm_eps"),
        "rope_theta": theta,
        "hidden_act": "silu",
    }
    if params.first("use_scaled_rope"):
        values["max_position_embeddings"] = 131072
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": params.number("rope_scaling_factor", default=8.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    else:
        values["max_position_embeddings"] = _context(theta, params)
    return Config(values, path)


def _context(theta: float, params: Config) -> int:
    """The context length of the release with these numbers; params.json does not say it."""
    if theta >= 1e6:
        return 16384  # Code Llama
    if theta >= 5e5:
        return 8192  # Llama 3
    first = params.number("norm_eps") == 1e-6 or (params.first("dim") == 8192 and not params.first("n_kv_heads"))
    return 2048 if first else 4096  # Llama 1 (its 65B has another norm_eps), Llama 2


def join(files: Iterable[Iterable[StoredTensor]], config: Config) -> dict[str, StoredTensor]:
    """The model's tensors from those of its files. Malformed if the files do not fit each other."""
    listed = [list(file) for file in files]
    parts: dict[str, list[StoredTensor]] = {}
    for source in itertools.chain(*listed):
        parts.setdefault(source.name, []).append(source)
    joined = (
        _joined(name, found, len(listed), config)
        for name, found in parts.items()
        if not name.startswith("rope.")  # rope.freqs: recomputed from rope_theta
    )
    return {hf_name(source.name): replace(source, name=hf_name(source.name)) for source in joined}


def _joined(name: str, found: list[StoredTensor], count: int, config: Mapping[str, Any]) -> StoredTensor:
    first = found[0]
    if len(found) != count or len({(part.shape, part.dtype) for part in found}) != 1:
        raise Malformed(
            f"{name} is in {len(found)} of {count} files, or its parts differ in shape",
            where=first.path.parent,
            fix="Keep all consolidated.*.pth files of the model together in one folder.",
        )
    heads = next((config[key] for end, key in HEADS.items() if name.endswith(end)), 0)
    if name.endswith(BY_ROWS) or (name == EMBEDDING and first.shape[-1] == config["hidden_size"]):
        axis = 0
    elif name.endswith(BY_COLUMNS) or name == EMBEDDING:
        axis = 1
    else:
        return first
    if len(first.shape) != 2 or first.dtype not in ("F16", "BF16", "F32"):
        raise Malformed(f"{name} is {first.dtype} {list(first.shape)}, not a matrix of floats", where=first.path)
    if heads:
        check_heads(first, count, heads)
    weights = Joined(tuple(found), axis, heads)
    size = sum(part.nbytes for part in found)
    return DequantizedTensor(name, weights.shape, "F32", first.path, 0, size, weights, tuple(found))
