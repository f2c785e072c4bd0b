"""What the classes of `hf.further` call their tensors: transformers' modeling files, and published checkpoints."""

from gguf.constants import MODEL_TENSOR

from ggufsmith.convert.hf.classes import BLOCK, GEMMA_NAMES, MIXTRAL_NAMES, T, in_blocks

POST_NORMS = in_blocks({T.ATTN_POST_NORM: "post_attention_layernorm", T.FFN_POST_NORM: "post_feedforward_layernorm"})
APERTUS_NAMES = in_blocks({T.ATTN_NORM: "attention_layernorm", T.FFN_NORM: "feedforward_layernorm"})
STARCODER2_NAMES = in_blocks({T.FFN_UP: "mlp.c_fc", T.FFN_DOWN: "mlp.c_proj"})
HUNYUAN_NAMES = in_blocks({T.ATTN_Q_NORM: "self_attn.query_layernorm", T.ATTN_K_NORM: "self_attn.key_layernorm"})
GLM4_NAMES = in_blocks(
    {
        T.ATTN_POST_NORM: "post_self_attn_layernorm",
        T.FFN_POST_NORM: "post_mlp_layernorm",
        T.FFN_UP: "mlp.gate_up_proj",
    }
)
PHI2_NAMES = {
    T.OUTPUT_NORM: "model.final_layernorm",
    **in_blocks({T.ATTN_OUT: "self_attn.dense", T.FFN_UP: "mlp.fc1", T.FFN_DOWN: "mlp.fc2"}),
}
LINEAR_NAMES = in_blocks(
    {
        T.ATTN_POST_NORM: "post_attention_layernorm",
        T.ATTN_QKV: "linear_attn.in_proj_qkv",
        T.ATTN_GATE: "linear_attn.in_proj_z",
        T.SSM_CONV1D: "linear_attn.conv1d",
        T.SSM_NORM: "linear_attn.norm",
        T.SSM_OUT: "linear_attn.out_proj",
        T.SSM_BETA: "linear_attn.in_proj_b",
        T.SSM_ALPHA: "linear_attn.in_proj_a",
        T.SSM_BETA_ALPHA: "linear_attn.in_proj_ba",
    }
)
LINEAR_SOURCES = {
    f"{BLOCK}linear_attn.dt_bias": ("blk.{bid}.ssm_dt.bias",),
    f"{BLOCK}linear_attn.A_log": ("blk.{bid}.ssm_a",),
}
NEXT_SOURCES = {
    **LINEAR_SOURCES,
    f"{BLOCK}linear_attn.in_proj_qkvz.weight": ("blk.{bid}.attn_qkv.weight", "blk.{bid}.attn_gate.weight"),
}
# The query, key and value of blocks with full attention are matrices of their own, under the usual names.
LFM2_NAMES = {
    T.TOKEN_EMBD_NORM: "model.embedding_norm",
    **in_blocks(
        {
            T.ATTN_NORM: "operator_norm",
            T.FFN_NORM: "ffn_norm",
            T.SHORTCONV_CONV: "conv.conv",
            T.SHORTCONV_INPROJ: "conv.in_proj",
            T.SHORTCONV_OUTPROJ: "conv.out_proj",
            T.FFN_GATE: "feed_forward.w1",
            T.FFN_UP: "feed_forward.w3",
            T.FFN_DOWN: "feed_forward.w2",
            T.ATTN_OUT: "self_attn.out_proj",
            T.ATTN_Q_NORM: "self_attn.q_layernorm",
            T.ATTN_K_NORM: "self_attn.k_layernorm",
            T.FFN_GATE_INP: "feed_forward.gate",
            T.FFN_GATE_EXP: "feed_forward.experts.{xid}.w1",
            T.FFN_UP_EXP: "feed_forward.experts.{xid}.w3",
            T.FFN_DOWN_EXP: "feed_forward.experts.{xid}.w2",
        }
    ),
}
GEMMA4_NAMES = GEMMA_NAMES | {
    T.PER_LAYER_TOKEN_EMBD: "model.embed_tokens_per_layer",
    T.PER_LAYER_MODEL_PROJ: "model.per_layer_model_projection",
    T.PER_LAYER_PROJ_NORM: "model.per_layer_projection_norm",
    **in_blocks(
        {
            T.PER_LAYER_INP_GATE: "per_layer_input_gate",
            T.PER_LAYER_PROJ: "per_layer_projection",
            T.PER_LAYER_POST_NORM: "post_per_layer_input_norm",
            T.FFN_GATE_INP: "router.proj",
            T.FFN_PRE_NORM_2: "pre_feedforward_layernorm_2",
            T.FFN_POST_NORM_1: "post_feedforward_layernorm_1",
            T.FFN_POST_NORM_2: "post_feedforward_layernorm_2",
        }
    ),
}
GEMMA4_SOURCES = {
    f"{BLOCK}layer_scalar": ("blk.{bid}.layer_output_scale.weight",),
    f"{BLOCK}router.scale": ("blk.{bid}.ffn_gate_inp.scale",),
    f"{BLOCK}router.per_expert_scale": ("blk.{bid}.ffn_down_exps.scale",),
    f"{BLOCK}experts.gate_up_proj": ("blk.{bid}.ffn_gate_up_exps.weight",),
    f"{BLOCK}experts.down_proj": ("blk.{bid}.ffn_down_exps.weight",),
}
GEMMA3N_NAMES = GEMMA4_NAMES | {
    T.ALTUP_PROJ: "model.altup_projections.{xid}",
    T.ALTUP_UNEMBD_PROJ: "model.altup_unembed_projections.{xid}",
    **in_blocks(
        {
            T.ALTUP_CORRECT_COEF: "altup.correction_coefs",
            T.ALTUP_PREDICT_COEF: "altup.prediction_coefs",
            T.ALTUP_ROUTER: "altup.modality_router",
            T.ALTUP_ROUTER_NORM: "altup.router_norm",
            T.LAUREL_L: "laurel.linear_left",
            T.LAUREL_R: "laurel.linear_right",
            T.LAUREL_POST_NORM: "laurel.post_laurel_norm",
        }
    ),
}
GEMMA3N_SOURCES = {f"{BLOCK}altup.correct_output_scale": ("blk.{bid}.altup_correct_scale.weight",)}
GPT_OSS_NAMES = in_blocks({T.ATTN_POST_NORM: "post_attention_layernorm", T.FFN_GATE_INP: "mlp.router"})
GPT_OSS_SOURCES = {
    f"{BLOCK}self_attn.sinks": ("blk.{bid}.attn_sinks.weight",),
    f"{BLOCK}mlp.experts.gate_up_proj": ("blk.{bid}.ffn_gate_exps.weight", "blk.{bid}.ffn_up_exps.weight"),
    f"{BLOCK}mlp.experts.gate_up_proj_bias": ("blk.{bid}.ffn_gate_exps.bias", "blk.{bid}.ffn_up_exps.bias"),
    f"{BLOCK}mlp.experts.down_proj": ("blk.{bid}.ffn_down_exps.weight",),
    f"{BLOCK}mlp.experts.down_proj_bias": ("blk.{bid}.ffn_down_exps.bias",),
}
SHARED_EXPERTS = in_blocks(
    {
        T.FFN_GATE_SHEXP: "mlp.shared_experts.gate_proj",
        T.FFN_UP_SHEXP: "mlp.shared_experts.up_proj",
        T.FFN_DOWN_SHEXP: "mlp.shared_experts.down_proj",
    }
)
GLM4_MOE_NAMES = SHARED_EXPERTS | in_blocks({T.ATTN_POST_NORM: "post_attention_layernorm"})


def correction(name: str) -> dict[str, tuple[str, ...]]:
    """What corrects the scores of experts, under this name in a block."""
    return {BLOCK + name: ("blk.{bid}.exp_probs_b.bias",)}


GATE_CORRECTION = correction("mlp.gate.e_score_correction_bias")
GRANITE_NAMES = in_blocks(
    {T.FFN_GATE_INP: "block_sparse_moe.router.layer", T.FFN_DOWN_EXP: "block_sparse_moe.output_linear"}
)
GRANITE_SOURCES = {
    f"{BLOCK}block_sparse_moe.input_linear.weight": ("blk.{bid}.ffn_gate_exps.weight", "blk.{bid}.ffn_up_exps.weight"),
    f"{BLOCK}block_sparse_moe.output_linear.weight": ("blk.{bid}.ffn_down_exps.weight",),
}
LLAMA4_NAMES = in_blocks(
    {
        T.FFN_GATE: "feed_forward.gate_proj",
        T.FFN_UP: "feed_forward.up_proj",
        T.FFN_DOWN: "feed_forward.down_proj",
        T.FFN_GATE_INP: "feed_forward.router",
        T.FFN_GATE_SHEXP: "feed_forward.shared_expert.gate_proj",
        T.FFN_UP_SHEXP: "feed_forward.shared_expert.up_proj",
        T.FFN_DOWN_SHEXP: "feed_forward.shared_expert.down_proj",
    }
)
LLAMA4_SOURCES = {
    f"{BLOCK}feed_forward.experts.gate_up_proj": ("blk.{bid}.ffn_gate_exps.weight", "blk.{bid}.ffn_up_exps.weight"),
    f"{BLOCK}feed_forward.experts.down_proj": ("blk.{bid}.ffn_down_exps.weight",),
}
LATENT_NAMES = SHARED_EXPERTS | in_blocks(
    {
        T.ATTN_Q_A: "self_attn.q_a_proj",
        T.ATTN_Q_A_NORM: "self_attn.q_a_layernorm",
        T.ATTN_Q_B: "self_attn.q_b_proj",
        T.ATTN_KV_A_MQA: "self_attn.kv_a_proj_with_mqa",
        T.ATTN_KV_A_NORM: "self_attn.kv_a_layernorm",
    }
)
LATENT_SOURCES = {
    **GATE_CORRECTION,
    f"{BLOCK}self_attn.kv_b_proj.weight": ("blk.{bid}.attn_k_b.weight", "blk.{bid}.attn_v_b.weight"),
}
MISTRAL4_SOURCES = {
    **LATENT_SOURCES,
    f"{BLOCK}mlp.experts.gate_up_proj": ("blk.{bid}.ffn_gate_up_exps.weight",),
    f"{BLOCK}mlp.experts.down_proj": ("blk.{bid}.ffn_down_exps.weight",),
}
GPT2_NAMES = {
    T.TOKEN_EMBD: "transformer.wte",
    T.POS_EMBD: "transformer.wpe",
    T.OUTPUT_NORM: "transformer.ln_f",
    T.ATTN_NORM: "transformer.h.{bid}.ln_1",
    T.FFN_NORM: "transformer.h.{bid}.ln_2",
    T.ATTN_QKV: "transformer.h.{bid}.attn.c_attn",
    T.ATTN_OUT: "transformer.h.{bid}.attn.c_proj",
    T.FFN_UP: "transformer.h.{bid}.mlp.c_fc",
    T.FFN_DOWN: "transformer.h.{bid}.mlp.c_proj",
}


def mamba_names(module: str) -> dict[MODEL_TENSOR, str]:
    """The matrices of a state space, inside this module of a block."""
    names = {T.SSM_IN: "in_proj", T.SSM_CONV1D: "conv1d", T.SSM_NORM: "norm", T.SSM_OUT: "out_proj"}
    first = {T.SSM_X: "x_proj", T.SSM_DT: "dt_proj"}  # of Mamba 1
    return {tensor: f"{module}.{name}" for tensor, name in (names | first).items()}


def mamba_sources(module: str, *, first: bool = False) -> dict[str, tuple[str, ...]]:
    """The vectors of a state space, whose names follow no rule. first: of Mamba 1."""
    found: dict[str, tuple[str, ...]] = {f"{module}.A_log": ("blk.{bid}.ssm_a",), f"{module}.D": ("blk.{bid}.ssm_d",)}
    return found if first else found | {f"{module}.dt_bias": ("blk.{bid}.ssm_dt.bias",)}


BACKBONE = {T.TOKEN_EMBD: "backbone.embeddings", T.OUTPUT_NORM: "backbone.norm_f", T.OUTPUT: "lm_head"}
MIXER = "backbone.layers.{bid}.mixer"
MAMBA_NAMES = BACKBONE | mamba_names(MIXER) | {T.ATTN_NORM: "backbone.layers.{bid}.norm"}
GRANITE_SHARED_SOURCES = GRANITE_SOURCES | {
    f"{BLOCK}shared_mlp.input_linear.weight": ("blk.{bid}.ffn_gate_shexp.weight", "blk.{bid}.ffn_up_shexp.weight")
}
GRANITE_SHARED_NAMES = GRANITE_NAMES | in_blocks({T.FFN_DOWN_SHEXP: "shared_mlp.output_linear"})
GRANITE_DENSE_NAMES = in_blocks({T.FFN_DOWN: "shared_mlp.output_linear"})
GRANITE_DENSE_SOURCES = {
    f"{BLOCK}shared_mlp.input_linear.weight": ("blk.{bid}.ffn_gate.weight", "blk.{bid}.ffn_up.weight")
}
INSIDE = f"{BLOCK}mamba"
HYBRID_NAMES = mamba_names(INSIDE)
HYBRID_SOURCES = mamba_sources(INSIDE)
NEMOTRON_NAMES = MAMBA_NAMES | {
    T.ATTN_Q: f"{MIXER}.q_proj",
    T.ATTN_K: f"{MIXER}.k_proj",
    T.ATTN_V: f"{MIXER}.v_proj",
    T.ATTN_OUT: f"{MIXER}.o_proj",
    T.FFN_UP: f"{MIXER}.up_proj",
    T.FFN_DOWN: f"{MIXER}.down_proj",
    T.FFN_GATE_INP: f"{MIXER}.gate",
    T.FFN_UP_EXP: f"{MIXER}.experts.{{xid}}.up_proj",
    T.FFN_DOWN_EXP: f"{MIXER}.experts.{{xid}}.down_proj",
    T.FFN_UP_SHEXP: f"{MIXER}.shared_experts.up_proj",
    T.FFN_DOWN_SHEXP: f"{MIXER}.shared_experts.down_proj",
    T.MOE_LATENT_DOWN: f"{MIXER}.fc1_latent_proj",
    T.MOE_LATENT_UP: f"{MIXER}.fc2_latent_proj",
}
NEMOTRON_MOE_SOURCES = mamba_sources(MIXER) | {
    f"{MIXER}.gate.e_score_correction_bias": ("blk.{bid}.exp_probs_b.bias",),
}
JAMBA_NAMES = (
    {T.OUTPUT_NORM: "model.final_layernorm"}
    | mamba_names(INSIDE)
    | in_blocks(
        {
            T.FFN_NORM: "pre_ff_layernorm",
            T.SSM_DT_NORM: "mamba.dt_layernorm",
            T.SSM_B_NORM: "mamba.b_layernorm",
            T.SSM_C_NORM: "mamba.c_layernorm",
            T.FFN_GATE: "feed_forward.gate_proj",
            T.FFN_UP: "feed_forward.up_proj",
            T.FFN_DOWN: "feed_forward.down_proj",
            T.FFN_GATE_INP: "feed_forward.router",
            T.FFN_GATE_EXP: "feed_forward.experts.{xid}.gate_proj",
            T.FFN_UP_EXP: "feed_forward.experts.{xid}.up_proj",
            T.FFN_DOWN_EXP: "feed_forward.experts.{xid}.down_proj",
        }
    )
)
JAMBA_SOURCES = mamba_sources(INSIDE, first=True)
FALCON_H1_NAMES = (
    {T.OUTPUT_NORM: "model.final_layernorm"}
    | HYBRID_NAMES
    | in_blocks(
        {
            T.FFN_GATE: "feed_forward.gate_proj",
            T.FFN_UP: "feed_forward.up_proj",
            T.FFN_DOWN: "feed_forward.down_proj",
        }
    )
)
BAMBA_NAMES = FALCON_H1_NAMES | in_blocks({T.FFN_NORM: "pre_ff_layernorm"})
FALCON_H1_SOURCES = HYBRID_SOURCES | {f"{BLOCK}pre_ff_layernorm.weight": ("blk.{bid}.ffn_norm",)}
KIMI_NAMES = (
    LATENT_NAMES
    | MIXTRAL_NAMES
    | in_blocks(
        {
            T.FFN_GATE_SHEXP: "block_sparse_moe.shared_experts.gate_proj",
            T.FFN_UP_SHEXP: "block_sparse_moe.shared_experts.up_proj",
            T.FFN_DOWN_SHEXP: "block_sparse_moe.shared_experts.down_proj",
            T.SSM_F_A: "self_attn.f_a_proj",
            T.SSM_F_B: "self_attn.f_b_proj",
            T.SSM_BETA: "self_attn.b_proj",
            T.SSM_G_A: "self_attn.g_a_proj",
            T.SSM_G_B: "self_attn.g_b_proj",
            T.SSM_NORM: "self_attn.o_norm",
        }
    )
)
KIMI_SOURCES = {
    **correction("block_sparse_moe.gate.e_score_correction_bias"),
    f"{BLOCK}self_attn.kv_b_proj.weight": ("blk.{bid}.attn_k_b.weight", "blk.{bid}.attn_v_b.weight"),
    f"{BLOCK}self_attn.A_log": ("blk.{bid}.ssm_a",),
    f"{BLOCK}self_attn.dt_bias": ("blk.{bid}.ssm_dt.bias",),
    **{f"{BLOCK}self_attn.{part}_conv1d.weight": (f"blk.{{bid}}.ssm_conv1d_{part}.weight",) for part in "qkv"},
}
