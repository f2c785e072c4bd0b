"""MiniCPM 3: latent attention whose keys and values stay one matrix, and scales that llama.cpp has built in."""

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    FEED_FORWARD,
    INVERSE_FREQUENCIES,
    NORMS,
    SILU,
    SIZES,
    VOCAB_SIZE,
    T,
)
from ggufsmith.convert.architectures.latent import DEEPSEEK2
from ggufsmith.convert.architectures.moe import whole
from ggufsmith.convert.config import Config


def value_size(config: Config, dims: Dims) -> str | None:
    """A sentence if values are not as long as llama.cpp takes them to be, else None."""
    usual = dims.embd // max(dims.heads, 1)
    return None if dims.size("v_dim") == usual else f"v_head_dim is {dims.size('v_dim')}, but llama.cpp assumes {usual}"


def value_dim(config: Config) -> int:
    """v_head_dim, where the config is silent as transformers has it."""
    usual = (config.integer("hidden_size") or 0) // max(config.integer("num_attention_heads") or 0, 1)
    return config.integer("v_head_dim", default=usual) or usual


MINICPM3 = Architecture(
    MODEL_ARCH.MINICPM3,
    ("MiniCPM3ForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        TensorRule(T.ATTN_Q_A, "q_rank embd"),
        TensorRule(T.ATTN_Q_A_NORM, "q_rank"),
        TensorRule(T.ATTN_Q_B, "heads_key q_rank"),
        TensorRule(T.ATTN_KV_A_MQA, "kv_rope embd"),
        TensorRule(T.ATTN_KV_A_NORM, "kv_rank"),
        TensorRule(T.ATTN_KV_B, "heads_kv kv_rank"),
        TensorRule(T.ATTN_OUT, "embd heads_v"),
        *FEED_FORWARD,
    ),
    keys=(
        *SIZES,
        VOCAB_SIZE,
        ConfigKey(Keys.Attention.Q_LORA_RANK, u32, ("q_lora_rank",)),
        ConfigKey(Keys.Attention.KV_LORA_RANK, u32, ("kv_lora_rank",)),
        ConfigKey(Keys.Attention.KEY_LENGTH, of=lambda d: d.size("nope") + d.rotary),
        ConfigKey(Keys.Rope.DIMENSION_COUNT, names=("qk_rope_head_dim",), of=lambda d: d.rotary),
    ),
    rope=Rope(scaling=("longrope", "su"), original_context=True),
    require={
        **SILU,
        "scale_emb": (12,),
        "scale_depth": (1.4,),
        "dim_model_base": (256,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
    },
    defaults={
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "q_lora_rank": 768,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "tie_word_embeddings": True,
    },
    drop=INVERSE_FREQUENCIES,
    sizes={
        **{name: DEEPSEEK2.sizes[name] for name in ("nope", "q_rank", "kv_rank", "kv_rope", "heads_key")},
        "rotary": DEEPSEEK2.sizes["rope_dim"],
        "v_dim": value_dim,
        "heads_v": lambda config: whole(config, "num_attention_heads") * value_dim(config),
        "heads_kv": lambda config: (
            whole(config, "num_attention_heads") * (whole(config, "qk_nope_head_dim") + value_dim(config))
        ),
    },
    head_rows=0,
    check=value_size,
    models="MiniCPM3",
)

RECORDS = (MINICPM3,)
