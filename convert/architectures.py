"""The architectures, as data. Adding one is adding a record here; the words are explained in `convert/architecture.py`.

Which tensors and keys each graph reads: src/models/*.cpp of llama.cpp. Defaults: the configuration classes of
transformers. Tensor and key names: `gguf.constants`; Hugging Face names: `gguf.tensor_mapping`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gguf.constants import MODEL_ARCH, MODEL_TENSOR, Keys

from ggufsmith.container.values import f32, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Need, Rope, TensorRule
from ggufsmith.convert.ops import AddOne, Op, Part, RopePermute

T = MODEL_TENSOR
OPTIONAL = Need.OPTIONAL


def dense(dims: Dims) -> bool:
    """Whether every block has one feed-forward."""
    return dims.experts == 0


def sparse(dims: Dims) -> bool:
    """Whether its blocks have experts."""
    return dims.experts > 0


def add_one(dims: Dims) -> Op:
    """The op of Gemma's norms."""
    return AddOne()


def permute_q(dims: Dims) -> Op:
    """The op of query rows for llama.cpp's llama graph."""
    return RopePermute(dims.heads)


def permute_k(dims: Dims) -> Op:
    """The op of key rows for the same graph."""
    return RopePermute(dims.kv_heads)


def expert_half(k: int) -> Callable[[Dims], Op]:
    """The op that cuts gate (k = 0) or up (1) out of packed experts, (experts, 2 * expert_ff, embd)."""
    return lambda dims: Part(k * dims.expert_ff, (k + 1) * dims.expert_ff)


def gemma_attention_scalar(blocks: int, embd: int, heads: int, head_dim: int) -> int:
    """llama.cpp divides scores by sqrt(head_dim), and by sqrt(embd / heads) in the 27B models, known by their depth."""
    return embd // heads if blocks in (46, 62) else head_dim


def gemma_attention_scale(config: Mapping[str, Any], dims: Dims) -> str | None:
    """A sentence if the config scales attention scores otherwise than llama.cpp does, else None."""
    scalar = config["query_pre_attn_scalar"]
    assumed = gemma_attention_scalar(dims.blocks, dims.embd, dims.heads, dims.head_dim)
    return None if scalar == assumed else f"query_pre_attn_scalar is {scalar!r}, but llama.cpp assumes {assumed}"


# -- groups of tensors ------------------------------------------------------------------------------------------------

EMBEDDINGS = (
    TensorRule(T.TOKEN_EMBD, "vocab embd"),
    TensorRule(T.OUTPUT_NORM, "embd"),
    TensorRule(T.OUTPUT, "vocab embd", need=OPTIONAL),  # absent: llama.cpp takes the embedding
)
NORMS = (TensorRule(T.ATTN_NORM, "embd"), TensorRule(T.FFN_NORM, "embd"))
ATTENTION = (
    TensorRule(T.ATTN_Q, "q embd", bias=True),
    TensorRule(T.ATTN_K, "kv embd", bias=True),
    TensorRule(T.ATTN_V, "kv embd", bias=True),
    TensorRule(T.ATTN_OUT, "embd q", bias=True),
)
HEAD_NORMS = (TensorRule(T.ATTN_Q_NORM, "head_dim"), TensorRule(T.ATTN_K_NORM, "head_dim"))
FEED_FORWARD = (
    TensorRule(T.FFN_GATE, "ff embd", bias=True, when=dense),
    TensorRule(T.FFN_UP, "ff embd", bias=True, when=dense),
    TensorRule(T.FFN_DOWN, "embd ff", bias=True, when=dense),
)
EXPERTS = (
    TensorRule(T.FFN_GATE_INP, "experts embd", when=sparse),
    TensorRule(T.FFN_GATE_EXP, "experts expert_ff embd", stacked=True, when=sparse),
    TensorRule(T.FFN_UP_EXP, "experts expert_ff embd", stacked=True, when=sparse),
    TensorRule(T.FFN_DOWN_EXP, "experts embd expert_ff", stacked=True, when=sparse),
)
SHARED_EXPERT = (
    TensorRule(T.FFN_GATE_INP_SHEXP, "one embd"),
    TensorRule(T.FFN_GATE_SHEXP, "shared_ff embd"),
    TensorRule(T.FFN_UP_SHEXP, "shared_ff embd"),
    TensorRule(T.FFN_DOWN_SHEXP, "embd shared_ff"),
)
# transformers 5 can write all experts of a layer as one tensor, gate above up.
PACKED_EXPERTS = (
    Fused(
        "mlp.experts.gate_up_proj",
        "experts expert_gate_up embd",
        ((T.FFN_GATE_EXP, expert_half(0)), (T.FFN_UP_EXP, expert_half(1))),
    ),
)

# -- groups of keys ---------------------------------------------------------------------------------------------------

SIZES = (
    ConfigKey(Keys.LLM.BLOCK_COUNT, u32, ("num_hidden_layers",), of=lambda d: d.blocks),
    ConfigKey(Keys.LLM.CONTEXT_LENGTH, u32, ("max_position_embeddings", "max_sequence_length")),
    ConfigKey(Keys.LLM.EMBEDDING_LENGTH, u32, ("hidden_size",), of=lambda d: d.embd),
    ConfigKey(Keys.LLM.FEED_FORWARD_LENGTH, u32, ("intermediate_size",), of=lambda d: d.ff),
    ConfigKey(Keys.Attention.HEAD_COUNT, u32, ("num_attention_heads",), of=lambda d: d.heads),
    ConfigKey(Keys.Attention.HEAD_COUNT_KV, u32, ("num_key_value_heads",), of=lambda d: d.kv_heads),
    ConfigKey(Keys.Attention.LAYERNORM_RMS_EPS, f32, ("rms_norm_eps",), 1e-6),
)
HEAD_SIZE = (
    ConfigKey(Keys.Attention.KEY_LENGTH, u32, ("head_dim",), of=lambda d: d.head_dim),
    ConfigKey(Keys.Attention.VALUE_LENGTH, of=lambda d: d.head_dim),
)
EXPERT_COUNTS = (
    ConfigKey(Keys.LLM.EXPERT_COUNT, u32, ("num_local_experts", "num_experts"), None),
    ConfigKey(Keys.LLM.EXPERT_USED_COUNT, u32, ("num_experts_per_tok",), None),
)
QWEN_EXPERT_COUNTS = (replace(EXPERT_COUNTS[0], names=("num_experts", "num_local_experts")), EXPERT_COUNTS[1])
EXPERT_LENGTH = (
    ConfigKey(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, u32, ("moe_intermediate_size",), of=lambda d: d.expert_ff),
)

SILU = {"hidden_act": ("silu",)}
GELU = {"hidden_activation": ("gelu_pytorch_tanh",), "hidden_act": ("gelu_pytorch_tanh", "gelu")}
NO_WINDOW = "llama.cpp attends to the whole context here; the source model uses a sliding window"
INVERSE_FREQUENCIES = {".rotary_emb.inv_freq": "recomputed from rope_theta"}
MTP_HEAD = {"mtp.": "the multi-token prediction head, which llama.cpp does not run for this architecture"}

# -- the records ------------------------------------------------------------------------------------------------------

LLAMA = Architecture(
    MODEL_ARCH.LLAMA,
    ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"),
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
)
MISTRAL = replace(
    LLAMA,
    classes=("MistralForCausalLM", "MistralModel"),
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072},
    warn={"sliding_window": ((), NO_WINDOW)},
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
)
QWEN2_MOE = replace(
    QWEN2,
    arch=MODEL_ARCH.QWEN2MOE,
    classes=("Qwen2MoeForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        TensorRule(T.OUTPUT, "vocab embd", fallback=T.TOKEN_EMBD),
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
)
QWEN3 = replace(
    QWEN2,
    arch=MODEL_ARCH.QWEN3,
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    tensors=(*EMBEDDINGS, *NORMS, *ATTENTION, *HEAD_NORMS, *FEED_FORWARD),
    keys=(*SIZES, *HEAD_SIZE),
)
QWEN3_MOE = replace(
    QWEN2_MOE,
    arch=MODEL_ARCH.QWEN3MOE,
    classes=("Qwen3MoeForCausalLM",),
    tensors=(*EMBEDDINGS, *NORMS, *ATTENTION, *HEAD_NORMS, *EXPERTS),
    keys=(*SIZES, *HEAD_SIZE, *QWEN_EXPERT_COUNTS, *EXPERT_LENGTH),
    require={**SILU, "norm_topk_prob": (True,)},
    defaults={"norm_topk_prob": False, "num_experts_per_tok": 8, "max_position_embeddings": 32768},
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
)

ARCHITECTURES = (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, PHI3, GEMMA2, GEMMA3)
BY_CLASS: Mapping[str, Architecture] = {name: record for record in ARCHITECTURES for name in record.classes}

# Config keys that say nothing about the converted model: training, generation defaults, bookkeeping. Special token ids
# are read by the tokenizer, the rope keys by convert/rope.py.
IGNORED = frozenset(
    """
    _name_or_path architectures attention_bias attention_dropout attn_implementation auto_map bos_token_id
    cache_implementation chunk_size_feed_forward compression_config decoder_sparse_step dtype embd_pdrop
    eos_token_id hidden_dropout id2label initializer_range is_decoder is_encoder_decoder label2id layer_types
    max_window_layers mlp_bias mlp_only_layers model_type num_experts num_labels num_local_experts output_attentions
    output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type qkv_bias quantization
    quantization_config resid_pdrop return_dict router_aux_loss_coef router_jitter_noise sep_token_id sliding_window
    task_specific_params tie_word_embeddings tokenizer_class torch_dtype transformers_version unk_token_id
    unsloth_fixed unsloth_version use_cache use_sliding_window vocab_size rope_interleaved boi_token_index
    eoi_token_index image_token_index mm_tokens_per_image text_config vision_config _sliding_window_pattern
    sliding_window_pattern
    """.split()
)
