"""DeepSeek-MoE, the first DeepSeek with experts: Llama's attention, and shared experts beside those that are chosen."""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import f32, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Rope
from ggufsmith.convert.architectures.dense import LLAMA_ATTENTION
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    INVERSE_FREQUENCIES,
    NO_SCALING,
    NORMS,
    ROTARY,
    SILU,
    SIZES,
    VOCAB_SIZE,
    constant,
)
from ggufsmith.convert.architectures.moe import (
    DENSE_BLOCKS,
    LEAD,
    ROUTED,
    SHARED_BLOCKS,
    SOFTMAX,
    SPARSE_BLOCKS,
    dense_lead,
    gating,
    shared,
)

DEEPSEEK = Architecture(
    MODEL_ARCH.DEEPSEEK,
    ("DeepseekForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *(replace(rule, bias=False) for rule in LLAMA_ATTENTION),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        *SHARED_BLOCKS,
    ),
    keys=(
        *(*SIZES, ROTARY, NO_SCALING, VOCAB_SIZE, LEAD, *EXPERT_COUNTS, *EXPERT_LENGTH, gating(SOFTMAX)),
        ConfigKey(Keys.LLM.EXPERT_SHARED_COUNT, u32, ("n_shared_experts",)),
        ConfigKey(Keys.LLM.EXPERT_WEIGHTS_SCALE, f32, computed=constant(1.0)),
    ),
    rope=Rope(scaling=()),
    require={
        **SILU,
        "attention_bias": (False,),
        "moe_layer_freq": (1,),
        "norm_topk_prob": (False,),
        "scoring_func": ("softmax",),
    },
    defaults={"max_position_embeddings": 2048},
    drop=INVERSE_FREQUENCIES,
    kinds=dense_lead("first_k_dense_replace"),
    aliases=ROUTED,
    sizes={"shared_ff": shared("n_shared_experts")},
    models="DeepSeek-MoE 16B",
)

RECORDS = (DEEPSEEK,)
