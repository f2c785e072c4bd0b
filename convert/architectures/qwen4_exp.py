"""Qwen3.8-Flash-Next: Qwen3.5's blocks between several streams of hidden states, with sparse attention.

Every block mixes the streams into one and adds to all of them; there is no other norm. One block is also given what a
table holds of the last tokens, whose rows are found by hashes.

Source: llama.cpp's src/models/qwen4exp.cpp and conversion/qwen4exp.py; transformers' models/qwen4_exp.
"""

from dataclasses import dataclass, replace

import numpy as np
from gguf.constants import Keys

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import i32s, u32
from ggufsmith.convert.architecture import ConfigKey, Dims, Fused, Listed, TensorRule, copy, named
from ggufsmith.convert.architectures.groups import EXPERTS, MTP_HEAD, SHARED_EXPERT, T, add_one
from ggufsmith.convert.architectures.moe import whole
from ggufsmith.convert.architectures.qwen_hybrid import BETA_ALPHA, QWEN35_MOE, SHARED_TENSORS, kinds
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch, NewKeys, NewTensor, Tensor
from ggufsmith.convert.ops import Array, Op, Part, Read, Shape
from ggufsmith.convert.reorder import Squeeze

# Ends of names of what mixes the streams -> tensors before attention, before the experts and before the head.
MIXED: dict[str, tuple[Tensor, ...]] = {
    "hc_norm": (NewTensor.HC_ATTN_NORM, NewTensor.HC_FFN_NORM, NewTensor.HC_HEAD_NORM),
    "input_mix_weight_down": (NewTensor.HC_ATTN_DOWN, NewTensor.HC_FFN_DOWN, NewTensor.HC_HEAD_DOWN),
    "input_mix_weight_up": (NewTensor.HC_ATTN_UP, NewTensor.HC_FFN_UP, NewTensor.HC_HEAD_UP),
    "block_inject_weight": (NewTensor.HC_ATTN_INJECT, NewTensor.HC_FFN_INJECT),
}
PLACES = (".attn_hyper_connection.", ".mlp_hyper_connection.", "hyper_connection_mixer.")
SHAPES = {"hc_norm": "hc_embd", "input_mix_weight_down": "hc_rank hc_embd", "input_mix_weight_up": "hc_embd hc_rank"}
LOOKED_UP = {
    "key_proj": NewTensor.PLE_KEY,
    "value_proj": NewTensor.PLE_VALUE,
    "norm_key": NewTensor.PLE_NORM_KEY,
    "norm_query": NewTensor.PLE_NORM_QUERY,
    "norm_conv": NewTensor.PLE_NORM_CONV,
    "conv1d": NewTensor.PLE_CONV1D,
}
# Of the hashes, whose constants are tensors of the checkpoint, and of how it is cut into files.
SEEN = ("ngram_vocab_size_base", "make_ngram_vocab_size_divisible_by", "seed", "number_of_conv_states")


@dataclass(frozen=True)
class JoinedRows(Op):
    """So many matrices of one width, one below the other."""

    parts: int

    def shape(self, *sources: Shape) -> Shape:
        widths = {source[-1] for source in sources}
        if len(sources) != self.parts or len(widths) != 1 or any(len(source) != 2 for source in sources):
            raise ValueError(f"{self.parts} matrices of one width are needed, not {len(sources)} of {sorted(widths)}")
        return (sum(source[0] for source in sources), widths.pop())

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        found, first = [], 0
        for k, (rows, _) in enumerate(sources):
            low, high = max(start - first, 0), min(stop - first, rows)
            if low < high:
                found.append(read(k, low, high).copy())
            first += rows
        return found[0] if len(found) == 1 else np.concatenate(found)


def table(dims: Dims) -> Op:
    """The op of the table of the last tokens."""
    return JoinedRows(dims.size("ple_parts"))


def queries(dims: Dims) -> Op:
    """The op that takes the indexer's queries out of both."""
    return Part(0, dims.size("index_q"))


def keys(dims: Dims) -> Op:
    """The op that takes its key."""
    return Part(dims.size("index_q"), dims.size("index_qk"))


def squeezed(dims: Dims) -> Op:
    """The op of a convolution of every stream."""
    return Squeeze()


def layers(config: Config) -> list[int]:
    """The blocks that look the last tokens up; the config counts them from 1."""
    return [number - 1 for number in config.items_of("ple_layer_ids", int)]


def looking_up(config: Config, blocks: int) -> list[str]:
    """linear or full for every block, and ple for one that looks the last tokens up."""
    chosen = layers(config)
    return [f"{kind}{' ple' * (block in chosen)}" for block, kind in enumerate(kinds(config, blocks))]


def looks_up(dims: Dims) -> bool:
    """Whether any block does."""
    return any("ple" in kind for kind in dims.kinds)


def only_then(name: str, key: str, usual: int | None = None) -> ConfigKey:
    """A number that only such models have."""

    def number(config: Config, dims: Dims) -> int | None:
        found = config.integer(name, default=usual)
        return found if looks_up(dims) else None

    return ConfigKey(key, u32, (name,), computed=number)


def end_of_text(config: Config, dims: Dims) -> int | None:
    """The token behind which the last tokens are forgotten."""
    found = config.first("eos_token_id")
    found = found[-1] if isinstance(found, list) and found else found
    if not looks_up(dims):
        return None
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise Malformed(f"eos_token_id must be a token, not {found!r:.40}", where=config.path)
    return found


def row(config: Config) -> int:
    """The width of a row of the table."""
    heads = max((whole(config, "ngram_size", 3) - 1) * whole(config, "heads_per_ngram", 8), 1)
    return (whole(config, "ple_embed_dim") or whole(config, "hidden_size")) // heads


def ratios(config: Config, dims: Dims) -> list[int]:
    """How many tokens the indexer of a block takes together; 0 for blocks without one."""
    return [whole(config, "indexer_compress_ratio") * ("full" in kind) for kind in dims.kinds]


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    config.first(*SEEN)
    gate = config.first("output_gate_type") or config.first("hidden_act")
    if gate != "sigmoid":
        return f"the gate of linear attention is {gate!r}, but llama.cpp assumes 'sigmoid' (output_gate_type)"
    if len(layers(config)) > 1:
        return "llama.cpp has one table of the last tokens, so that no more than one block can look them up"
    return None


TAKEN = (T.OUTPUT_NORM, T.ATTN_NORM, T.ATTN_POST_NORM)
QWEN4_EXP = replace(
    QWEN35_MOE,
    arch=NewArch.QWEN4EXP,
    classes=("Qwen4ExpForCausalLM", "Qwen4ExpForConditionalGeneration"),
    tensors=(
        *(replace(rule, bias=False) for rule in SHARED_TENSORS if rule.tensor not in TAKEN),
        TensorRule(T.PER_LAYER_TOKEN_EMBD, "ple_row", joined=table, when=looks_up),
        *(
            TensorRule(tensor, SHAPES.get(name, "hc hc_embd"), add_one if name == "hc_norm" else copy)
            for name, tensors in MIXED.items()
            for tensor in tensors
        ),
        *BETA_ALPHA,
        TensorRule(NewTensor.INDEXER_Q_PROJ, "index_q embd", on="full", typed=True),
        TensorRule(NewTensor.INDEXER_K_PROJ, "index_dim embd", on="full", typed=True),
        TensorRule(NewTensor.INDEXER_Q_NORM, "index_dim", add_one, on="full"),
        TensorRule(T.INDEXER_K_NORM, "index_dim", add_one, on="full"),
        TensorRule(NewTensor.PLE_KEY, "hc_embd ple_dim", on="ple"),
        TensorRule(NewTensor.PLE_VALUE, "embd ple_dim", on="ple"),
        TensorRule(NewTensor.PLE_NORM_KEY, "hc_embd", add_one, on="ple"),
        TensorRule(NewTensor.PLE_NORM_QUERY, "hc_embd", add_one, on="ple"),
        TensorRule(NewTensor.PLE_NORM_CONV, "hc_embd", add_one, on="ple"),
        TensorRule(NewTensor.PLE_CONV1D, "hc_embd 1 ple_kernel", squeezed, on="ple"),
        *EXPERTS,
        *SHARED_EXPERT,
    ),
    keys=(
        *QWEN35_MOE.keys,
        ConfigKey(NewKeys.HYPER_CONNECTION_COUNT, u32, ("hc_count",)),
        ConfigKey(NewKeys.HYPER_CONNECTION_LOW_RANK, u32, ("hc_lowrank",)),
        ConfigKey(Keys.Attention.Indexer.HEAD_COUNT, u32, ("indexer_n_heads",)),
        ConfigKey(Keys.Attention.Indexer.KEY_LENGTH, u32, ("indexer_head_dim",)),
        ConfigKey(Keys.Attention.Indexer.TOP_K, u32, ("indexer_budget",)),
        ConfigKey(NewKeys.COMPRESS_RATIOS, i32s, ("indexer_compress_ratio",), computed=ratios),
        ConfigKey(NewKeys.PLE_LAYERS, i32s, ("ple_layer_ids",), computed=lambda config, dims: layers(config) or None),
        only_then("ngram_size", NewKeys.PLE_NGRAM_SIZE, 3),
        only_then("heads_per_ngram", NewKeys.PLE_HEADS_PER_NGRAM, 8),
        only_then("ple_conv_kernel_size", NewKeys.PLE_CONV_KERNEL, 4),
        ConfigKey(NewKeys.PLE_EOS_TOKEN_ID, u32, computed=end_of_text),
        only_then("image_token_id", NewKeys.PLE_IMAGE_TOKEN_ID),
        ConfigKey(
            Keys.LLM.EMBD_LENGTH_PER_LAYER_INP,
            computed=lambda config, dims: row(config) if looks_up(dims) else None,
        ),
    ),
    models="Qwen3.8-Flash-Next (text)",
    fused=(
        *(
            named(f"{place}{name}", tensor)
            for name, tensors in MIXED.items()
            for place, tensor in zip(PLACES, tensors, strict=False)
        ),
        Fused(
            ".indexer.index_qk_proj",
            "index_qk embd",
            ((NewTensor.INDEXER_Q_PROJ, queries), (NewTensor.INDEXER_K_PROJ, keys)),
        ),
        named(".indexer.q_layernorm", NewTensor.INDEXER_Q_NORM),
        named(".indexer.k_layernorm", T.INDEXER_K_NORM),
        *(named(f".ple.{name}", tensor) for name, tensor in LOOKED_UP.items()),
        Fused(".ngram_embedding.experts.shard", None, ((T.PER_LAYER_TOKEN_EMBD, None),)),
        *QWEN35_MOE.fused,
    ),
    spellings={r"\.ngram_embedding\.shard_([0-9]{1,9})\.": r".ngram_embedding.experts.\1.shard."},  # counted as these
    listed=(
        Listed(".ple.ple_embedding.layer_multipliers", NewKeys.PLE_LAYER_MULTIPLIERS),
        Listed(".ple.ple_embedding.ngram_heads_offsets", NewKeys.PLE_HEAD_OFFSETS),
        Listed(".ple.ple_embedding.ngram_heads_vocab_sizes", NewKeys.PLE_HEAD_VOCAB_SIZES),
    ),
    require={"attention_bias": (False,), "norm_topk_prob": (True,), "indexer_kv_heads": (1,), "hidden_act": ("silu",)},
    defaults={**QWEN35_MOE.defaults, "hidden_act": "silu", "hc_count": 4, "hc_lowrank": 320},
    drop={**QWEN35_MOE.drop, **MTP_HEAD},
    sizes={
        **QWEN35_MOE.sizes,
        "hc": lambda config: whole(config, "hc_count"),
        "hc_embd": lambda config: whole(config, "hc_count") * whole(config, "hidden_size"),
        "hc_rank": lambda config: whole(config, "hc_lowrank"),
        "index_dim": lambda config: whole(config, "indexer_head_dim"),
        "index_q": lambda config: whole(config, "indexer_n_heads") * whole(config, "indexer_head_dim"),
        "index_qk": lambda config: (whole(config, "indexer_n_heads") + 1) * whole(config, "indexer_head_dim"),
        "ple_row": row,
        "ple_dim": lambda config: whole(config, "ple_embed_dim") or whole(config, "hidden_size"),
        "ple_kernel": lambda config: whole(config, "ple_conv_kernel_size", 4),
        "ple_parts": lambda config: whole(config, "split_ngram_parts", 512),
    },
    kinds=looking_up,
    check=problem,
    mtp=None,
)

RECORDS = (QWEN4_EXP,)
