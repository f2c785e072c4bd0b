"""Dense models with one attention and one feed-forward in every block, and little that is their own."""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import boolean, booleans, f32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule
from ggufsmith.convert.architectures.classic import GEMMA2, LLAMA
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    BASE,
    EMBEDDINGS,
    FEED_FORWARD,
    HEAD_NORMS,
    HEAD_SIZE,
    INVERSE_FREQUENCIES,
    LAYER_NORM,
    LAYER_NORMS,
    NO_SCALING,
    NORMS,
    OPTIONAL,
    OUTPUT_OR_EMBEDDING,
    ROTARY,
    SILU,
    SIZES,
    STATED_HEAD_SIZE,
    VOCAB_SIZE,
    WINDOW,
    T,
    add_one,
    constant,
    permute_k,
    permute_q,
    window_pattern,
)
from ggufsmith.convert.config import Config


def parallel(config: Config, dims: Dims) -> bool:
    """Whether attention and feed-forward of a StableLM work side by side."""
    return bool(config.first("use_parallel_residual"))


POST_NORMS = (TensorRule(T.ATTN_POST_NORM, "embd"), TensorRule(T.FFN_POST_NORM, "embd"))
UNGATED = FEED_FORWARD[1:]
RELU2 = {"hidden_act": ("relu2",)}
LLAMA_ATTENTION = (replace(ATTENTION[0], op=permute_q), replace(ATTENTION[1], op=permute_k), *ATTENTION[2:])

OLMO2 = Architecture(
    MODEL_ARCH.OLMO2,
    ("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *ATTENTION,
        TensorRule(T.ATTN_Q_NORM, "q"),
        TensorRule(T.ATTN_K_NORM, "kv"),
        *POST_NORMS,
        *FEED_FORWARD,
    ),
    keys=(*SIZES, WINDOW, ConfigKey(Keys.Attention.SLIDING_WINDOW_PATTERN, booleans, computed=window_pattern(4))),
    rope=Rope(scaling=("yarn",)),
    require={**SILU, "attention_bias": (False,)},
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    drop=INVERSE_FREQUENCIES,
    models="OLMo 2, OLMo 3",
)
OLMO = Architecture(
    MODEL_ARCH.OLMO,
    ("OlmoForCausalLM", "OLMoForCausalLM"),
    tensors=(EMBEDDINGS[0], EMBEDDINGS[2], *(replace(rule, bias=False) for rule in (*LLAMA_ATTENTION, *FEED_FORWARD))),
    keys=(
        *BASE,
        ConfigKey(Keys.Attention.LAYERNORM_EPS, f32, computed=constant(1e-5)),
        ConfigKey(Keys.Attention.CLAMP_KQV, f32, ("clip_qkv",), None),
    ),
    rope=Rope(scaling=("linear",)),
    require={**SILU, "attention_bias": (False,)},
    defaults={"max_position_embeddings": 2048},
    models="OLMo",
)
SMOLLM3 = replace(
    LLAMA,
    arch=MODEL_ARCH.SMOLLM3,
    classes=("SmolLM3ForCausalLM",),
    keys=(*SIZES, *STATED_HEAD_SIZE, VOCAB_SIZE, ROTARY),
    rope=replace(LLAMA.rope, theta=2e6, scaling=("linear", "yarn", "llama3")),
    require={**LLAMA.require, "no_rope_layer_interval": (4,)},
    warn={"use_sliding_window": ((False,), "llama.cpp attends to the whole context here")},
    check=lambda config, dims: (
        "no_rope_layers is not every fourth layer, as llama.cpp assumes"
        if config.items_of("no_rope_layers", int, dims.blocks)
        not in ([], [int((block + 1) % 4 != 0) for block in range(dims.blocks)])
        else None
    ),
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 4},
    models="SmolLM3",
)
SEED_OSS = Architecture(
    MODEL_ARCH.SEED_OSS,
    ("SeedOssForCausalLM",),
    tensors=(*EMBEDDINGS, TensorRule(T.ATTN_NORM, "embd"), POST_NORMS[0], *ATTENTION, *FEED_FORWARD),
    keys=(*SIZES, *HEAD_SIZE),
    require={**SILU, "mlp_bias": (False,), "attention_out_bias": (False,)},
    defaults={"max_position_embeddings": 524288, "head_dim": 128},
    models="Seed-OSS",
)
GRANITE = replace(
    LLAMA,
    arch=MODEL_ARCH.GRANITE,
    classes=("GraniteForCausalLM",),
    keys=(
        *SIZES,
        VOCAB_SIZE,
        ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.head_dim),
        ConfigKey(Keys.Attention.SCALE, f32, ("attention_multiplier",), 1.0),
        ConfigKey(Keys.LLM.EMBEDDING_SCALE, f32, ("embedding_multiplier",), 1.0),
        ConfigKey(Keys.LLM.RESIDUAL_SCALE, f32, ("residual_multiplier",), 1.0),
        ConfigKey(Keys.LLM.LOGIT_SCALE, f32, ("logits_scaling",), 1.0),
    ),
    defaults={"max_position_embeddings": 2048},
    models="Granite 3 (dense)",
)
ARCEE = replace(
    LLAMA,
    arch=MODEL_ARCH.ARCEE,
    classes=("ArceeForCausalLM",),
    tensors=(*EMBEDDINGS, *NORMS, *LLAMA_ATTENTION, *UNGATED),
    require=RELU2,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    pooling=True,
    models="AFM",
)
STARCODER2 = Architecture(
    MODEL_ARCH.STARCODER2,
    ("Starcoder2ForCausalLM",),
    tensors=(EMBEDDINGS[0], EMBEDDINGS[2], *LAYER_NORMS, *ATTENTION, *UNGATED),
    keys=(*BASE, LAYER_NORM),
    require={"hidden_act": ("gelu_pytorch_tanh",)},
    warn={"sliding_window": ((), "llama.cpp attends to the whole context here")},
    defaults={"max_position_embeddings": 4096, "num_key_value_heads": 2},
    models="StarCoder2",
)
STABLELM = Architecture(
    MODEL_ARCH.STABLELM,
    ("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    tensors=(
        EMBEDDINGS[0],
        OUTPUT_OR_EMBEDDING,
        *LAYER_NORMS[:2],
        replace(LAYER_NORMS[2], need=OPTIONAL),
        *(replace(rule, bias=rule.tensor is not T.ATTN_OUT) for rule in ATTENTION),
        *(replace(rule, bias=False) for rule in FEED_FORWARD),
        TensorRule(T.ATTN_Q_NORM, "heads head_dim", stacked=True, need=OPTIONAL),
        TensorRule(T.ATTN_K_NORM, "kv_heads head_dim", stacked=True, need=OPTIONAL),
    ),
    keys=(
        *BASE,
        LAYER_NORM,
        ROTARY,
        ConfigKey(Keys.LLM.USE_PARALLEL_RESIDUAL, boolean, ("use_parallel_residual",), computed=parallel),
    ),
    rope=Rope(scaling=(), partial=0.25),
    require=SILU,
    defaults={"max_position_embeddings": 4096},
    models="StableLM, StableLM 2",
)
COHERE = Architecture(
    MODEL_ARCH.COMMAND_R,
    ("CohereForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        TensorRule(T.ATTN_NORM, "embd"),
        *ATTENTION,
        *(replace(rule, bias=False) for rule in FEED_FORWARD),
        TensorRule(T.ATTN_Q_NORM, "heads head_dim", need=OPTIONAL),
        TensorRule(T.ATTN_K_NORM, "kv_heads head_dim", need=OPTIONAL),
    ),
    keys=(*BASE, LAYER_NORM, ConfigKey(Keys.LLM.LOGIT_SCALE, f32, ("logit_scale",), 0.0625), NO_SCALING),
    rope=Rope(scaling=(), theta=500000.0),
    require=SILU,
    defaults={"max_position_embeddings": 8192},
    tied={"lm_head.weight": T.TOKEN_EMBD},
    models="Command R, Command R+, Aya 23",
)
COHERE2 = replace(
    COHERE,
    arch=MODEL_ARCH.COHERE2,
    classes=("Cohere2ForCausalLM",),
    tensors=tuple(replace(rule, bias=False) for rule in COHERE.tensors if rule.need is not OPTIONAL),
    keys=(*COHERE.keys, *STATED_HEAD_SIZE, WINDOW, VOCAB_SIZE, ROTARY),
    rope=Rope(scaling=()),
    models="Command R7B, Command A",
)
EXAONE4 = Architecture(
    MODEL_ARCH.EXAONE4,
    ("Exaone4ForCausalLM",),
    tensors=(*EMBEDDINGS, *ATTENTION, *HEAD_NORMS, *POST_NORMS, *FEED_FORWARD),
    keys=(
        *SIZES,
        *STATED_HEAD_SIZE,
        VOCAB_SIZE,
        WINDOW,
        ConfigKey(Keys.Attention.SLIDING_WINDOW_PATTERN, booleans, computed=window_pattern(4)),
    ),
    rope=Rope(scaling=("linear", "yarn", "llama3")),
    require=SILU,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    models="EXAONE 4",
)
ERNIE4_5 = replace(
    LLAMA,
    arch=MODEL_ARCH.ERNIE4_5,
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    tensors=(*EMBEDDINGS, *NORMS, *ATTENTION, *FEED_FORWARD),
    keys=(*SIZES, *HEAD_SIZE),
    rope=Rope(theta=500000.0, scaling=("linear",)),
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 131072},
    models="ERNIE 4.5 (dense)",
)
HUNYUAN_DENSE = Architecture(
    MODEL_ARCH.HUNYUAN_DENSE,
    ("HunYuanDenseV1ForCausalLM",),
    tensors=(*EMBEDDINGS, *NORMS, *ATTENTION, *HEAD_NORMS, *FEED_FORWARD),
    keys=(*SIZES, *STATED_HEAD_SIZE),
    rope=Rope(scaling=("linear", "yarn", "alpha")),
    require=SILU,
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    models="Hunyuan (dense)",
)
JAIS2 = Architecture(
    MODEL_ARCH.JAIS2,
    ("Jais2ForCausalLM",),
    tensors=(EMBEDDINGS[0], EMBEDDINGS[2], *LAYER_NORMS, *ATTENTION, *UNGATED),
    keys=(*BASE, LAYER_NORM, *STATED_HEAD_SIZE, ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.head_dim)),
    require=RELU2,
    defaults={"max_position_embeddings": 8192, "head_dim": 128},
    models="Jais 2",
)
NEMOTRON = Architecture(
    MODEL_ARCH.NEMOTRON,
    ("NemotronForCausalLM",),
    tensors=(
        EMBEDDINGS[0],
        OUTPUT_OR_EMBEDDING,
        *(replace(rule, op=add_one) for rule in LAYER_NORMS),
        *ATTENTION,
        *UNGATED,
    ),
    keys=(*BASE, LAYER_NORM, *STATED_HEAD_SIZE, VOCAB_SIZE, ROTARY, NO_SCALING),
    rope=Rope(scaling=(), partial=0.5),
    require=RELU2,
    defaults={"max_position_embeddings": 4096},
    models="Nemotron, Minitron",
)
GEMMA = replace(
    GEMMA2,
    arch=MODEL_ARCH.GEMMA,
    classes=("GemmaForCausalLM",),
    tensors=(
        EMBEDDINGS[0],
        *(TensorRule(tensor, "embd", add_one) for tensor in (T.OUTPUT_NORM, T.ATTN_NORM, T.FFN_NORM)),
        *(replace(rule, bias=False) for rule in (*ATTENTION, *FEED_FORWARD)),
    ),
    keys=(*SIZES, *HEAD_SIZE),
    defaults={"max_position_embeddings": 8192, "head_dim": 256, "tie_word_embeddings": True},
    check=None,
    models="Gemma, CodeGemma",
)
GLM4 = Architecture(
    MODEL_ARCH.GLM4,
    ("Glm4ForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *POST_NORMS,
        *ATTENTION,
        TensorRule(T.FFN_UP, "gate_up embd"),
        TensorRule(T.FFN_DOWN, "embd ff"),
    ),
    keys=(*SIZES, *STATED_HEAD_SIZE, ROTARY),
    rope=Rope(scaling=("linear", "yarn"), partial=0.5),
    require=SILU,
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 2},
    models="GLM-4 (0414), GLM-Edge",
)
GLM = replace(
    GLM4,
    arch=MODEL_ARCH.CHATGLM,
    classes=("GlmForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *ATTENTION[:3],
        TensorRule(T.ATTN_OUT, "embd embd"),
        *GLM4.tensors[-2:],
    ),
    keys=(*SIZES, ROTARY),
    defaults={**GLM4.defaults, "rms_norm_eps": 1.5625e-07},
    models="GLM-4 9B",
)
PHI2 = Architecture(
    MODEL_ARCH.PHI2,
    ("PhiForCausalLM",),
    tensors=(
        EMBEDDINGS[0],
        TensorRule(T.OUTPUT, "vocab embd", bias=True),
        *LAYER_NORMS[:2],
        *ATTENTION,
        *UNGATED,
    ),
    keys=(*BASE, LAYER_NORM, ROTARY),
    rope=Rope(scaling=("linear",), partial=0.5),
    require={"hidden_act": ("gelu_new",), "qk_layernorm": (False,)},
    defaults={"max_position_embeddings": 2048},
    models="Phi-1, Phi-1.5, Phi-2",
)

RECORDS = (
    OLMO2,
    OLMO,
    SMOLLM3,
    SEED_OSS,
    GRANITE,
    ARCEE,
    STARCODER2,
    STABLELM,
    COHERE,
    COHERE2,
    EXAONE4,
    ERNIE4_5,
    HUNYUAN_DENSE,
    JAIS2,
    NEMOTRON,
    GEMMA,
    GLM,
    GLM4,
    PHI2,
)
