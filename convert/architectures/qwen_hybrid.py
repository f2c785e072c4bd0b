"""Qwen3-Next and Qwen3.5: three blocks of linear attention (gated delta nets) for each of full attention, gated too.

ggml repeats the key heads as a whole, so that the value heads, which the checkpoint has beside each other where they
share a key head, are regrouped; every norm but that of the linear attention is stored as its distance from one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from gguf.constants import MODEL_ARCH, Keys
from numpy.typing import NDArray

from ggufsmith.container.values import booleans, i32s
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule, copy, named
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    EXPERT_LENGTH,
    EXPERTS,
    FEED_FORWARD,
    HEAD_SIZE,
    MOE_SIZES,
    OPTIONAL,
    PACKED_EXPERTS,
    QWEN_EXPERT_COUNTS,
    ROTARY,
    SHARED_EXPERT,
    SHARED_LENGTH,
    SILU,
    SIZES,
    VISION_TOWER,
    T,
    add_one,
    mrope_sections,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Copy, Op
from ggufsmith.convert.reorder import Chain, Gather, NegativeExp, Regroup, RegroupColumns, Squeeze

KEY_HEADS, VALUE_HEADS = "linear_num_key_heads", "linear_num_value_heads"
KEY_SIZE, VALUE_SIZE = "linear_key_head_dim", "linear_value_head_dim"


def number(config: Config, name: str) -> int:
    """A size of the linear attention, or 0."""
    return max(config.integer(name, default=0) or 0, 0)


def keys_of(config: Config) -> int:
    """Rows of all keys of the linear attention."""
    return number(config, KEY_HEADS) * number(config, KEY_SIZE)


def values_of(config: Config) -> int:
    """Rows of all values of the linear attention."""
    return number(config, VALUE_HEADS) * number(config, VALUE_SIZE)


def period(config: Config) -> int:
    """Every so many-th block has full attention, where layer_types does not say."""
    return max(config.integer("full_attention_interval", default=4) or 4, 1)


def kinds(config: Config, blocks: int) -> list[str]:
    """linear or full for every block; the appended ones have full attention."""
    own = min(config.integer("num_hidden_layers", default=blocks) or blocks, blocks)
    given = config.items_of("layer_types", str, own)
    every = period(config)
    usual = ["full" if (block + 1) % every == 0 else "linear" for block in range(own)]
    found = ["linear" if kind == "linear_attention" else "full" for kind in given] or usual
    return [*found, *["full mtp"] * (blocks - own)]


def regrouped(size: str, first: str = "0", columns: bool = False) -> Callable[[Dims], Op]:
    """The op that regroups value heads of so many rows each, from a row on."""

    def op(dims: Dims) -> Op:
        heads, per = dims.size("lk_heads"), dims.size("lv_heads") // max(dims.size("lk_heads"), 1)
        if per <= 1:
            return Copy()
        if columns:
            return RegroupColumns(heads, per, dims.size(size))
        return Regroup(heads, per, dims.size(size), dims.size(first))

    return op


def decay(dims: Dims) -> Op:
    """The op of A_log."""
    return Chain(NegativeExp(), regrouped("1")(dims))


def convolution(dims: Dims) -> Op:
    """The op of the convolution over keys, queries and values."""
    return Chain(Squeeze(), regrouped("lv_dim", "lkk")(dims))


def recurrent(config: Config, dims: Dims) -> list[bool] | None:
    """Which blocks have linear attention, where the config says so."""
    if config.first("layer_types") is None:
        return None
    return ["linear" in kind for kind in dims.kinds]


def appended(config: Config, dims: Dims) -> int | None:
    """How many blocks are appended for multi-token prediction."""
    return sum("mtp" in kind for kind in dims.kinds) or None


LINEAR_SIZES = {
    "lk_heads": lambda config: number(config, KEY_HEADS),
    "lv_heads": lambda config: number(config, VALUE_HEADS),
    "lv_dim": lambda config: number(config, VALUE_SIZE),
    "lkk": lambda config: 2 * keys_of(config),
    "lv": values_of,
    "lqkv": lambda config: 2 * keys_of(config) + values_of(config),
    "kernel": lambda config: number(config, "linear_conv_kernel_dim"),
    "ff": lambda config: number(config, "intermediate_size"),
}
SHARED_TENSORS = (
    *EMBEDDINGS[:1],
    TensorRule(T.OUTPUT_NORM, "embd", add_one),
    EMBEDDINGS[2],
    TensorRule(T.ATTN_NORM, "embd", add_one),
    TensorRule(T.ATTN_POST_NORM, "embd", add_one),
    TensorRule(T.ATTN_Q, "gated_q embd", on="full", bias=True),
    TensorRule(T.ATTN_K, "kv embd", on="full", bias=True),
    TensorRule(T.ATTN_V, "kv embd", on="full", bias=True),
    TensorRule(T.ATTN_OUT, "embd q", on="full", bias=True),
    TensorRule(T.ATTN_Q_NORM, "head_dim", add_one, on="full"),
    TensorRule(T.ATTN_K_NORM, "head_dim", add_one, on="full"),
    TensorRule(T.ATTN_QKV, "lqkv embd", regrouped("lv_dim", "lkk"), on="linear"),
    TensorRule(T.ATTN_GATE, "lv embd", regrouped("lv_dim"), on="linear"),
    TensorRule(T.SSM_CONV1D, "lqkv 1 kernel", convolution, on="linear"),
    TensorRule(T.SSM_DT, "lv_heads", regrouped("1"), on="linear", part="bias"),
    TensorRule(T.SSM_A, "lv_heads", decay, on="linear", part=""),
    TensorRule(T.SSM_NORM, "lv_dim", on="linear"),
    TensorRule(T.SSM_OUT, "embd lv", regrouped("lv_dim", columns=True), on="linear"),
)
BETA_ALPHA = (
    TensorRule(T.SSM_BETA, "lv_heads embd", regrouped("1"), on="linear"),
    TensorRule(T.SSM_ALPHA, "lv_heads embd", regrouped("1"), on="linear"),
)
NEXTN = (
    TensorRule(T.NEXTN_EH_PROJ, "embd embd2", on="mtp"),
    TensorRule(T.NEXTN_ENORM, "embd", add_one, on="mtp"),
    TensorRule(T.NEXTN_HNORM, "embd", add_one, on="mtp"),
    TensorRule(T.NEXTN_SHARED_HEAD_NORM, "embd", add_one, on="mtp", need=OPTIONAL),
)
NAMES = (
    named(".linear_attn.dt_bias", T.SSM_DT, "bias"),
    named(".linear_attn.A_log", T.SSM_A, ""),
    named(".eh_proj", T.NEXTN_EH_PROJ),
    named(".enorm", T.NEXTN_ENORM),
    named(".hnorm", T.NEXTN_HNORM),
    named(".shared_head.norm", T.NEXTN_SHARED_HEAD_NORM),
)
LINEAR_KEYS = (
    ConfigKey(Keys.SSM.CONV_KERNEL, names=("linear_conv_kernel_dim",), of=lambda d: d.size("kernel")),
    ConfigKey(Keys.SSM.STATE_SIZE, names=(KEY_SIZE,)),
    ConfigKey(Keys.SSM.GROUP_COUNT, names=(KEY_HEADS,), of=lambda d: d.size("lk_heads")),
    ConfigKey(Keys.SSM.TIME_STEP_RANK, names=(VALUE_HEADS,), of=lambda d: d.size("lv_heads")),
    ConfigKey(Keys.SSM.INNER_SIZE, of=lambda d: d.size("lv")),
    ConfigKey("{arch}.attention.recurrent_layers", booleans, computed=recurrent),
    ConfigKey(
        Keys.LLM.FULL_ATTENTION_INTERVAL,
        names=("full_attention_interval",),
        computed=lambda config, dims: period(config),
    ),
    ConfigKey(Keys.LLM.NEXTN_PREDICT_LAYERS, computed=appended),
    ROTARY,
)
SECTIONS = ConfigKey(Keys.Rope.DIMENSION_SECTIONS, i32s, computed=mrope_sections((11, 11, 10, 0)))
MTP_NAMES = {
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
}

QWEN35 = Architecture(
    MODEL_ARCH.QWEN35,
    ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    tensors=(*SHARED_TENSORS, *BETA_ALPHA, *(replace(rule, bias=False) for rule in FEED_FORWARD), *NEXTN),
    keys=(*SIZES, *HEAD_SIZE, *LINEAR_KEYS, SECTIONS),
    models="Qwen3.5, Qwen3.6 (dense)",
    rope=Rope(theta=1e7, partial=0.25),
    fused=NAMES,
    require={
        **SILU,
        "attention_bias": (False,),
        "attn_output_gate": (True,),
        "mtp_use_dedicated_embeddings": (False,),
    },
    defaults={"max_position_embeddings": 32768, "head_dim": 256},
    drop=VISION_TOWER,
    sizes={**LINEAR_SIZES, "embd2": lambda config: 2 * number(config, "hidden_size")},
    kinds=kinds,
    head_rows=2,
    mtp=MTP_NAMES,
)
QWEN35_MOE = replace(
    QWEN35,
    arch=MODEL_ARCH.QWEN35MOE,
    classes=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    tensors=(*SHARED_TENSORS, *BETA_ALPHA, *EXPERTS, *SHARED_EXPERT, *NEXTN),
    keys=(*MOE_SIZES, *HEAD_SIZE, *QWEN_EXPERT_COUNTS, *EXPERT_LENGTH, SHARED_LENGTH, *LINEAR_KEYS, SECTIONS),
    models="Qwen3.5-35B-A3B, Qwen3.6 (mixture of experts)",
    fused=(*NAMES, *PACKED_EXPERTS),
)


@dataclass(frozen=True)
class Grouped(Gather):
    """Rows begin..end of each group's `each` rows, of all groups one after the other.

    Qwen3-Next has query, key, values and their gates of one key head beside each other.
    """

    groups: int
    each: int
    parts: tuple[tuple[int, int], ...]

    def order(self, rows: int) -> NDArray[np.int64]:
        if rows != self.groups * self.each:
            raise ValueError(f"{rows} rows are not {self.groups} groups of {self.each}")
        seen = np.arange(rows).reshape(self.groups, self.each)
        return np.concatenate([seen[:, begin:end].ravel() for begin, end in self.parts])


def qkvz(gate: bool) -> Callable[[Dims], Op]:
    """The op that takes queries, keys and values, or the gate, out of in_proj_qkvz."""

    def op(dims: Dims) -> Op:
        groups = max(dims.size("lk_heads"), 1)
        key, values = dims.size("lkk") // 2 // groups, dims.size("lv") // groups
        each = 2 * key + 2 * values
        cuts = ((each - values, each),) if gate else ((0, key), (key, 2 * key), (2 * key, 2 * key + values))
        return Grouped(groups, each, cuts)

    return op


def ungrouped(rule: TensorRule) -> TensorRule:
    """The same tensor of Qwen3-Next, whose graph in llama.cpp repeats the key heads by itself."""
    ops = {T.ATTN_QKV: copy, T.ATTN_GATE: copy, T.SSM_DT: copy, T.SSM_OUT: copy}
    own = {**ops, T.SSM_A: lambda dims: NegativeExp(), T.SSM_CONV1D: lambda dims: Squeeze()}
    return replace(rule, op=own.get(rule.tensor, rule.op))


QWEN3_NEXT = replace(
    QWEN35_MOE,
    arch=MODEL_ARCH.QWEN3NEXT,
    classes=("Qwen3NextForCausalLM",),
    tensors=(
        *(ungrouped(rule) for rule in SHARED_TENSORS),
        TensorRule(T.SSM_BETA_ALPHA, "lv_heads2 embd", on="linear"),
        *EXPERTS,
        *SHARED_EXPERT,
        *NEXTN,
    ),
    keys=(*MOE_SIZES, *HEAD_SIZE, *QWEN_EXPERT_COUNTS, *EXPERT_LENGTH, SHARED_LENGTH, *LINEAR_KEYS),
    models="Qwen3-Next, Qwen3-Coder-Next",
    fused=(
        Fused(
            ".linear_attn.in_proj_qkvz", "lqkvz embd", ((T.ATTN_QKV, qkvz(gate=False)), (T.ATTN_GATE, qkvz(gate=True)))
        ),
        named(".linear_attn.in_proj_ba", T.SSM_BETA_ALPHA),
        *QWEN35_MOE.fused,
    ),
    require={**SILU, "attention_bias": (False,), "norm_topk_prob": (True,)},
    defaults={**QWEN35.defaults, "norm_topk_prob": True, "num_experts_per_tok": 10},
    rope=Rope(partial=0.25),
    sizes={
        **QWEN35.sizes,
        "lqkvz": lambda config: 2 * keys_of(config) + 2 * values_of(config),
        "lv_heads2": lambda config: 2 * number(config, VALUE_HEADS),
    },
)

RECORDS = (QWEN35, QWEN35_MOE, QWEN3_NEXT)
