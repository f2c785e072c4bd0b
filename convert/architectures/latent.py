"""Multi-head latent attention: DeepSeek-V2 and V3, GLM-4.7-Flash, Mistral 4, Youtu.

llama.cpp multiplies queries with what makes keys, so that all heads share one small key: kv_b_proj is cut in two.
"""

from dataclasses import dataclass, replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import f32, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Need, Rope, TensorRule
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    FEED_FORWARD,
    INVERSE_FREQUENCIES,
    NORMS,
    OPTIONAL,
    PACKED_EXPERTS,
    SILU,
    SIZES,
    VISION_TOWER,
    VOCAB_SIZE,
    T,
    rope_field,
    without,
)
from ggufsmith.convert.architectures.moe import (
    BEYOND,
    BIAS,
    DENSE_BLOCKS,
    DOUBLE,
    GROUPS,
    LEAD,
    NEXTN,
    NEXTN_IF_ANY,
    PROBS_BIAS,
    ROUTED,
    SHARED_BLOCKS,
    SHARED_COUNT,
    SIGMOID,
    SOFTMAX,
    SPARSE_BLOCKS,
    WEIGHTS_NORM,
    WEIGHTS_SCALE,
    dense_lead,
    gating,
    shared,
    whole,
    with_mtp,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Array, Op, Part, Shape
from ggufsmith.convert.reorder import Chain, Turn


@dataclass(frozen=True)
class Heads(Op):
    """Rows seen as those of so many heads: (heads * n, width) becomes (heads, n, width). No number moves."""

    heads: int

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if len(source) != 2 or source[0] % max(self.heads, 1):
            raise ValueError(f"{list(source)} cannot be divided into {self.heads} heads")
        return (self.heads, source[0] // self.heads, source[1])

    @property
    def selects(self) -> bool:
        return True

    def view(self, source: Array) -> Array:
        return source.reshape(self.heads, -1, source.shape[1])


def per_head(config: Config, *names: str) -> int:
    """Rows of all heads that have so many each."""
    return whole(config, "num_attention_heads") * sum(whole(config, name) for name in names)


def key_part(dims: Dims) -> Op:
    """The op that takes what makes keys out of kv_b_proj; llama.cpp multiplies queries with it."""
    return Chain(Chain(Heads(dims.heads), Part(0, dims.size("nope"))), Turn())


def value_part(dims: Dims) -> Op:
    """The op that takes what makes values out of kv_b_proj."""
    return Chain(Heads(dims.heads), Part(dims.size("nope"), dims.size("nope") + dims.size("v_dim")))


def log_multiplier(config: Config, dims: Dims) -> float | None:
    """A tenth of mscale_all_dim, as llama.cpp expects it of this architecture alone."""
    found = rope_field("mscale_all_dim")(config, dims)
    return None if found is None else 0.1 * found


def scaled_from(config: Config, dims: Dims) -> int | None:
    """The position from which attention is scaled on, of models that scale it."""
    scale, first = rope_field("llama_4_scaling_beta"), rope_field("original_max_position_embeddings")
    return None if scale(config, dims) is None else int(first(config, dims) or 0) or None


BY_POSITION = (
    ConfigKey(Keys.Attention.TEMPERATURE_SCALE, f32, computed=rope_field("llama_4_scaling_beta")),
    ConfigKey(Keys.Attention.TEMPERATURE_LENGTH, u32, computed=scaled_from),
)
OF_EXPERTS = frozenset(
    key.name
    for key in (
        *(*EXPERT_COUNTS, *GROUPS, *EXPERT_LENGTH, SHARED_COUNT, LEAD, gating(SOFTMAX)),
        *(WEIGHTS_SCALE, WEIGHTS_NORM),
    )
)
DEEPSEEK2 = Architecture(
    MODEL_ARCH.DEEPSEEK2,
    ("DeepseekV2ForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        TensorRule(T.ATTN_Q, "heads_key embd", need=OPTIONAL),
        TensorRule(T.ATTN_Q_A, "q_rank embd", need=OPTIONAL),
        TensorRule(T.ATTN_Q_A_NORM, "q_rank", need=OPTIONAL),
        TensorRule(T.ATTN_Q_B, "heads_key q_rank", need=OPTIONAL),
        TensorRule(T.ATTN_KV_A_MQA, "kv_rope embd"),
        TensorRule(T.ATTN_KV_A_NORM, "kv_rank"),
        TensorRule(T.ATTN_K_B, "heads nope kv_rank"),
        TensorRule(T.ATTN_V_B, "heads v_dim kv_rank"),
        TensorRule(T.ATTN_OUT, "embd heads_v"),
        *DENSE_BLOCKS,
        *SPARSE_BLOCKS,
        replace(PROBS_BIAS, on="moe", need=OPTIONAL),
        *SHARED_BLOCKS,
    ),
    keys=(
        *(replace(key, of=lambda d: 1) if key.name == Keys.Attention.HEAD_COUNT_KV else key for key in SIZES),
        *(VOCAB_SIZE, *EXPERT_COUNTS, *GROUPS, *EXPERT_LENGTH, SHARED_COUNT, LEAD, gating(SOFTMAX)),
        WEIGHTS_SCALE,
        replace(WEIGHTS_NORM, computed=lambda config, dims: bool(config.first("norm_topk_prob")) or None),
        ConfigKey(Keys.Attention.Q_LORA_RANK, u32, ("q_lora_rank",), None),
        ConfigKey(Keys.Attention.KV_LORA_RANK, names=("kv_lora_rank",), of=lambda d: d.size("kv_rank")),
        ConfigKey(Keys.Attention.KEY_LENGTH, of=lambda d: d.size("kv_rope")),
        ConfigKey(Keys.Attention.VALUE_LENGTH, of=lambda d: d.size("kv_rank")),
        ConfigKey(Keys.Attention.KEY_LENGTH_MLA, of=lambda d: d.size("nope") + d.size("rope_dim")),
        ConfigKey(Keys.Attention.VALUE_LENGTH_MLA, names=("v_head_dim",), of=lambda d: d.size("v_dim")),
        ConfigKey(Keys.Rope.DIMENSION_COUNT, names=("qk_rope_head_dim",), of=lambda d: d.size("rope_dim")),
        ConfigKey(Keys.Rope.SCALING_YARN_LOG_MUL, f32, computed=log_multiplier),
    ),
    models="DeepSeek-V2, DeepSeek-Coder-V2",
    rope=Rope(scaling=("yarn",)),
    fused=(
        BIAS,
        Fused(".self_attn.kv_b_proj", "heads_kv kv_rank", ((T.ATTN_K_B, key_part), (T.ATTN_V_B, value_part))),
        *PACKED_EXPERTS,
    ),
    require={**SILU, "attention_bias": (False,), "rope_interleave": (True,)},
    defaults={"max_position_embeddings": 2048, "first_k_dense_replace": 0},
    drop=INVERSE_FREQUENCIES,
    aliases=ROUTED,
    sizes={
        "shared_ff": shared("n_shared_experts"),
        "nope": lambda config: whole(config, "qk_nope_head_dim"),
        "rope_dim": lambda config: whole(config, "qk_rope_head_dim"),
        "v_dim": lambda config: whole(config, "v_head_dim"),
        "q_rank": lambda config: whole(config, "q_lora_rank"),
        "kv_rank": lambda config: whole(config, "kv_lora_rank"),
        "kv_rope": lambda config: whole(config, "kv_lora_rank") + whole(config, "qk_rope_head_dim"),
        "heads_key": lambda config: per_head(config, "qk_nope_head_dim", "qk_rope_head_dim"),
        "heads_v": lambda config: per_head(config, "v_head_dim"),
        "heads_kv": lambda config: per_head(config, "qk_nope_head_dim", "v_head_dim"),
    },
    kinds=dense_lead("first_k_dense_replace"),
    head_rows=0,
    beyond=BEYOND,
)
DEEPSEEK3 = replace(
    DEEPSEEK2,
    classes=("DeepseekV3ForCausalLM",),
    keys=tuple(gating(SIGMOID) if key.name == Keys.LLM.EXPERT_GATING_FUNC else key for key in DEEPSEEK2.keys),
    models="DeepSeek-V3, DeepSeek-R1, Kimi-K2 (text), Moonlight",
    defaults={"max_position_embeddings": 4096, "first_k_dense_replace": 3, "norm_topk_prob": True},
)


def of_projector(config: Config, dims: Dims) -> str | None:
    """Nothing that llama.cpp's graph does otherwise; these keys are the projector's."""
    config.first("projection_hidden_size", "projection_layer_norm_eps")
    return None


KIMI = replace(
    DEEPSEEK3,
    classes=(
        *("Kimi_K25ForConditionalGeneration", "KimiK25ForConditionalGeneration"),  # as transformers 5 calls it, too
        "KimiVLForConditionalGeneration",
    ),
    models="Kimi-K2.5, Kimi-VL (text)",
    spellings={r"^model\.blocks\.": "model.layers."},  # as transformers 5.24 saves it
    drop={**DEEPSEEK3.drop, **VISION_TOWER, "mm_projector.": VISION_TOWER["vision_tower."]},
    check=of_projector,
)
GLM4_MOE_LITE = replace(
    DEEPSEEK3,
    classes=("Glm4MoeLiteForCausalLM",),
    tensors=(*DEEPSEEK3.tensors, *NEXTN),
    keys=(*DEEPSEEK3.keys, NEXTN_IF_ANY),
    models="GLM-4.7-Flash",
    defaults={"max_position_embeddings": 202752, "first_k_dense_replace": 1, "norm_topk_prob": True},
    sizes={**DEEPSEEK3.sizes, **DOUBLE},
    kinds=with_mtp(dense_lead("first_k_dense_replace")),
    beyond="",
    appended=True,
)
MISTRAL4 = replace(
    DEEPSEEK2,
    arch=MODEL_ARCH.MISTRAL4,
    classes=("Mistral4ForCausalLM",),
    tensors=(
        *(rule for rule in DEEPSEEK2.tensors if rule.tensor not in (T.FFN_GATE_EXP, T.FFN_UP_EXP, T.FFN_EXP_PROBS_B)),
        TensorRule(T.FFN_GATE_UP_EXP, "experts expert_gate_up embd", on="moe"),
    ),
    keys=(*without(DEEPSEEK2.keys, Keys.LLM.EXPERT_GATING_FUNC), *BY_POSITION),
    models="Mistral Small 4 (text)",
    fused=DEEPSEEK2.fused[:-1],
    drop={**DEEPSEEK2.drop, **VISION_TOWER},
    beyond="",
)

MISTRAL_LARGE3 = replace(
    DEEPSEEK2,
    classes=("MistralLarge3ForCausalLM",),
    keys=(*DEEPSEEK2.keys, *BY_POSITION),
    models="Mistral Large 3, Mistral Small 4 (Mistral's own layout)",
    drop=MISTRAL4.drop,
    beyond="",
)
# It has no experts; llama.cpp's graph is told so by the number of dense blocks, and wants to know a length of experts.
YOUTU = replace(
    DEEPSEEK2,
    classes=("YoutuForCausalLM",),
    tensors=(
        *(
            replace(rule, need=Need.REQUIRED) if rule.tensor is not T.OUTPUT else rule
            for rule in DEEPSEEK2.tensors
            if not rule.on and rule.tensor is not T.ATTN_Q
        ),
        *FEED_FORWARD,
    ),
    keys=(
        *without(DEEPSEEK2.keys, *OF_EXPERTS),
        ConfigKey(Keys.LLM.LEADING_DENSE_BLOCK_COUNT, of=lambda d: d.blocks),
        ConfigKey(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, of=lambda d: d.ff),
        ConfigKey(Keys.LLM.EXPERT_SHARED_COUNT, of=lambda d: 0),
    ),
    models="Youtu-LLM",
    fused=DEEPSEEK2.fused[1:2],
    defaults={
        "max_position_embeddings": 131072,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "tie_word_embeddings": True,
    },
    aliases={},
    sizes={name: size for name, size in DEEPSEEK2.sizes.items() if name != "shared_ff"},
    kinds=None,
    beyond="",
)

RECORDS = (DEEPSEEK2, DEEPSEEK3, KIMI, GLM4_MOE_LITE, MISTRAL4, MISTRAL_LARGE3, YOUTU)
