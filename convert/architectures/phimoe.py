"""Phi-3.5-MoE: the attention of Phi-3 with biases, and experts."""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Rope, TensorRule
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERTS,
    INVERSE_FREQUENCIES,
    LAYER_NORMS,
    PACKED_EXPERTS,
    ROTARY,
    SILU,
    SIZES,
    T,
)

OTHERWISE = (
    "llama.cpp runs PhiMoE otherwise than it was trained: it takes RMS norms for layer norms, and lets the weights of "
    "the experts add up to one"
)

PHIMOE = Architecture(
    MODEL_ARCH.PHIMOE,
    ("PhimoeForCausalLM", "PhiMoEForCausalLM"),
    tensors=(
        EMBEDDINGS[0],
        TensorRule(T.OUTPUT, "vocab embd"),
        TensorRule(T.OUTPUT, "vocab", part="bias"),
        *(replace(rule, bias=False) for rule in LAYER_NORMS),
        *(replace(rule, shape="embd", part="bias", bias=False) for rule in LAYER_NORMS),
        *(replace(rule, bias=True) for rule in ATTENTION[:3]),
        replace(ATTENTION[3], bias=False),
        TensorRule(T.ATTN_OUT, "embd", part="bias"),
        *EXPERTS,
    ),
    keys=(
        *SIZES,
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("sliding_window",), 0),
        ROTARY,
        *EXPERT_COUNTS,
    ),
    rope=Rope(theta=1e6, scaling=("longrope", "su"), original_context=True, stated_attention=True),
    fused=PACKED_EXPERTS,
    require={**SILU, "num_experts_per_tok": (2,)},
    warn={"router_jitter_noise": ((), OTHERWISE)},
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 16,
        "num_experts_per_tok": 2,
        "router_jitter_noise": 0.01,
    },
    drop=INVERSE_FREQUENCIES,
    models="Phi-3.5-MoE",
)

RECORDS = (PHIMOE,)
