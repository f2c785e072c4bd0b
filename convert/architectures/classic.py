"""Llama and its kin, Qwen 2 and 3, Phi 3, Gemma 2 and 3."""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import f32, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule
from ggufsmith.convert.architectures.eagle3 import EAGLE3, is_eagle3
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    EXPERTS,
    FEED_FORWARD,
    GELU,
    HEAD_NORMS,
    HEAD_SIZE,
    INVERSE_FREQUENCIES,
    MTP_HEAD,
    NO_WINDOW,
    NORMS,
    OUTPUT_OR_EMBEDDING,
    PACKED_EXPERTS,
    QWEN_EXPERT_COUNTS,
    SHARED_EXPERT,
    SILU,
    SIZES,
    T,
    add_one,
    permute_k,
    permute_q,
)
from ggufsmith.convert.config import Config


def gemma_attention_scalar(blocks: int, embd: int, heads: int, head_dim: int) -> int:
    """llama.cpp divides scores by sqrt(head_dim), and by sqrt(embd / heads) in the 27B models, known by their depth."""
    return embd // heads if blocks in (46, 62) else head_dim


def gemma_attention_scale(config: Config, dims: Dims) -> str | None:
    """A sentence if the config scales attention scores otherwise than llama.cpp does, else None."""
    scalar = config["query_pre_attn_scalar"]
    assumed = gemma_attention_scalar(dims.blocks, dims.embd, dims.heads, dims.head_dim)
    return None if scalar == assumed else f"query_pre_attn_scalar is {scalar!r}, but llama.cpp assumes {assumed}"


LLAMA = Architecture(
    MODEL_ARCH.LLAMA,
    ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel", "InternLM3ForCausalLM"),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        replace(ATTENTION[0], op=permute_q),
        replace(ATTENTION[1], op=permute_k),
        *ATTENTION[2:],
        *FEED_FORWARD,
        *EXPERTS,
    ),
    keys=(
        *SIZES,
        *HEAD_SIZE,
        *EXPERT_COUNTS,
        ConfigKey(Keys.LLM.VOCAB_SIZE, of=lambda d: d.vocab),
        ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.head_dim),
    ),
    rope=Rope(scaling=("linear", "yarn", "dynamic", "llama3")),
    require={**SILU, "partial_rotary_factor": (1.0,)},
    drop=INVERSE_FREQUENCIES,
    models="Llama 1 to 3.3, TinyLlama, SmolLM, DeepSeek-R1-Distill-Llama, InternLM 3",
)
MISTRAL = replace(
    LLAMA,
    classes=("MistralForCausalLM", "MistralModel"),
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072},
    warn={"sliding_window": ((), NO_WINDOW)},
    models="Mistral 7B, Mistral Nemo",
)
MIXTRAL = replace(
    LLAMA,
    classes=("MixtralForCausalLM",),
    keys=tuple(key for key in LLAMA.keys if key not in HEAD_SIZE),
    rope=replace(LLAMA.rope, theta=1e6),
    fused=PACKED_EXPERTS,
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    warn={"sliding_window": ((), NO_WINDOW)},
    models="Mixtral",
)
QWEN2 = Architecture(
    MODEL_ARCH.QWEN2,
    ("Qwen2ForCausalLM", "Qwen2Model"),
    tensors=(*EMBEDDINGS, *NORMS, *ATTENTION, *FEED_FORWARD),
    keys=SIZES,
    rope=Rope(),
    require=SILU,
    drop={**INVERSE_FREQUENCIES, **MTP_HEAD},
    defaults={"max_position_embeddings": 32768},
    warn={"use_sliding_window": ((False,), NO_WINDOW)},
    pooling=True,
    models="Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen",
)
QWEN2_MOE = replace(
    QWEN2,
    arch=MODEL_ARCH.QWEN2MOE,
    classes=("Qwen2MoeForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        *ATTENTION,
        *EXPERTS,
        *SHARED_EXPERT,
    ),
    keys=(
        *SIZES,
        *QWEN_EXPERT_COUNTS,
        *EXPERT_LENGTH,
        ConfigKey(
            Keys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH,
            u32,
            ("shared_expert_intermediate_size",),
            of=lambda d: d.shared_ff,
        ),
    ),
    fused=PACKED_EXPERTS,
    require={**SILU, "norm_topk_prob": (False,)},
    defaults={"norm_topk_prob": False, "num_experts_per_tok": 4, "max_position_embeddings": 32768},
    pooling=False,
    models="Qwen1.5-MoE, Qwen2-57B-A14B",
)
QWEN3 = replace(
    QWEN2,
    arch=MODEL_ARCH.QWEN3,
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    tensors=(*EMBEDDINGS, *NORMS, *ATTENTION, *HEAD_NORMS, *FEED_FORWARD),
    keys=(*SIZES, *HEAD_SIZE),
    models="Qwen3, Qwen3-Embedding",
)
QWEN3_MOE = replace(
    QWEN2_MOE,
    arch=MODEL_ARCH.QWEN3MOE,
    classes=("Qwen3MoeForCausalLM",),
    tensors=(*EMBEDDINGS, *NORMS, *ATTENTION, *HEAD_NORMS, *EXPERTS),
    keys=(*SIZES, *HEAD_SIZE, *QWEN_EXPERT_COUNTS, *EXPERT_LENGTH),
    require={**SILU, "norm_topk_prob": (True,)},
    defaults={"norm_topk_prob": False, "num_experts_per_tok": 8, "max_position_embeddings": 32768},
    models="Qwen3-30B-A3B, Qwen3-235B-A22B",
)
PHI3 = Architecture(
    MODEL_ARCH.PHI3,
    ("Phi3ForCausalLM",),
    # llama.cpp's graph takes both fused tensors as they are: query, key and value; gate above up.
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        TensorRule(T.ATTN_QKV, "qkv embd"),
        TensorRule(T.ATTN_OUT, "embd q"),
        TensorRule(T.FFN_UP, "gate_up embd"),
        TensorRule(T.FFN_DOWN, "embd ff"),
    ),
    keys=(
        *SIZES,
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("sliding_window",), 0),
        ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.rotary),
    ),
    rope=Rope(scaling=("longrope", "su", "yarn"), original_context=True),
    require=SILU,
    defaults={"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    drop=INVERSE_FREQUENCIES,
    models="Phi-3, Phi-3.5-mini, Phi-4, Phi-4-mini",
)
GEMMA2 = Architecture(
    MODEL_ARCH.GEMMA2,
    ("Gemma2ForCausalLM",),
    tensors=(
        EMBEDDINGS[0],
        *(
            TensorRule(tensor, "embd", add_one)
            for tensor in (T.OUTPUT_NORM, T.ATTN_NORM, T.ATTN_POST_NORM, T.FFN_PRE_NORM, T.FFN_POST_NORM)
        ),
        *(replace(rule, bias=False) for rule in (*ATTENTION, *FEED_FORWARD)),
    ),
    keys=(
        *SIZES,
        *HEAD_SIZE,
        ConfigKey(Keys.LLM.ATTN_LOGIT_SOFTCAPPING, f32, ("attn_logit_softcapping",)),
        ConfigKey(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, f32, ("final_logit_softcapping",)),
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("sliding_window",)),
    ),
    rope=Rope(scaling=(), write_theta=False),
    require={**GELU, "use_bidirectional_attention": (False,)},
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    },
    drop=INVERSE_FREQUENCIES,
    tied={"lm_head.weight": T.TOKEN_EMBD},
    check=gemma_attention_scale,
    models="Gemma 2",
)
GEMMA3 = replace(
    GEMMA2,
    arch=MODEL_ARCH.GEMMA3,
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    tensors=(
        *GEMMA2.tensors,
        EMBEDDINGS[2],
        *(replace(rule, op=add_one) for rule in HEAD_NORMS),
    ),
    keys=(
        *SIZES,
        *HEAD_SIZE,
        ConfigKey(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, f32, ("final_logit_softcapping",), None),
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("sliding_window",)),
    ),
    rope=Rope(theta=1e6, local_theta=10000.0, scaling=("linear",)),
    require={**GELU, "attn_logit_softcapping": (), "use_bidirectional_attention": (False,)},
    defaults={
        "tie_word_embeddings": True,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "head_dim": 256,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    },
    tied={},
    drop={
        "vision_tower.": "the vision encoder; this converts the text model",
        "multi_modal_projector.": "the vision projector; this converts the text model",
        **INVERSE_FREQUENCIES,
    },
    models="Gemma 3 (text)",
)
# Of EAGLE-3, which drafts, many are published under this class.
LLAMA_OR_EAGLE3 = replace(
    LLAMA, variant=lambda config: "eagle3" if is_eagle3(config) else "", variants={"eagle3": EAGLE3}
)

RECORDS = (LLAMA_OR_EAGLE3, MISTRAL, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, PHI3, GEMMA2, GEMMA3)
