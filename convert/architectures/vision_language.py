"""The language models of those that see: Qwen-VL, Mistral 3, SmolVLM, LFM2-VL, GLM-V, InternVL; see `hearing` too.

Their encoders are left out.
"""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import booleans, f32, i32s
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, copy
from ggufsmith.convert.architectures.classic import LLAMA, PHI3, QWEN2, QWEN3, QWEN3_MOE
from ggufsmith.convert.architectures.dense import ERNIE4_5, EXAONE4, GLM4, HUNYUAN_DENSE
from ggufsmith.convert.architectures.fused_heads import INTERNLM2
from ggufsmith.convert.architectures.groups import (
    MTP_HEAD,
    PACKED_EXPERTS,
    VISION_TOWER,
    T,
    mrope_sections,
    rope_field,
    rope_fields,
    window_pattern,
    without,
)
from ggufsmith.convert.architectures.latent import MISTRAL4
from ggufsmith.convert.architectures.lfm2 import LFM2
from ggufsmith.convert.architectures.moe import DOUBLE, GLM4_MOE, NEXTN, NEXTN_IF_ANY, whole, with_mtp
from ggufsmith.convert.architectures.qwen_hybrid import MTP_NAMES, QWEN35
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op, RopePermute


def deepstack(config: Config, dims: Dims) -> int:
    """How many layers of the encoder reach into the language model."""
    layers = config.mapping("vision_config").get("deepstack_visual_indexes", [])
    return len(layers) if isinstance(layers, list) else 0


def mistral3_check(config: Config, dims: Dims) -> str | None:
    """A sentence if the rotary embedding is not what llama.cpp's graph assumes, else None."""
    kind = rope_kind(config)
    if config.first("model_type") == "ministral3" and kind != "yarn":
        return f"the rope type of ministral3 is {kind!r}, but llama.cpp assumes 'yarn'"
    return None


def rope_kind(config: Config) -> object:
    """The rope type that the config names."""
    return {**config.mapping("rope_scaling"), **config.mapping("rope_parameters")}.get("rope_type")


SECTIONS = ConfigKey(Keys.Rope.DIMENSION_SECTIONS, i32s, computed=mrope_sections())
DEEPSTACK = ConfigKey(Keys.LLM.NUM_DEEPSTACK_LAYERS, computed=deepstack)

QWEN2VL = replace(
    QWEN2,
    arch=MODEL_ARCH.QWEN2VL,
    classes=("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen2VLModel"),
    keys=(*QWEN2.keys, SECTIONS),
    models="Qwen2-VL, Qwen2.5-VL (text)",
    rope=replace(QWEN2.rope, theta=1e6),
    defaults={"max_position_embeddings": 32768, "rms_norm_eps": 1e-5},
    drop={**QWEN2.drop, **VISION_TOWER},
    pooling=False,
)
QWEN3VL = replace(
    QWEN3,
    arch=MODEL_ARCH.QWEN3VL,
    classes=("Qwen3VLForConditionalGeneration",),
    keys=(*QWEN3.keys, SECTIONS, DEEPSTACK),
    models="Qwen3-VL (text)",
    rope=replace(QWEN3.rope, theta=5e6),
    drop={**QWEN3.drop, **VISION_TOWER},
    defaults={"max_position_embeddings": 128000, "head_dim": 128},
    pooling=False,
)
QWEN3VL_MOE = replace(
    QWEN3_MOE,
    arch=MODEL_ARCH.QWEN3VLMOE,
    classes=("Qwen3VLMoeForConditionalGeneration",),
    keys=(*QWEN3_MOE.keys, SECTIONS, DEEPSTACK),
    models="Qwen3-VL (mixture of experts, text)",
    rope=QWEN3VL.rope,
    fused=(
        replace(PACKED_EXPERTS[0], either=True),
        Fused("mlp.experts.down_proj", "experts embd expert_ff", ((T.FFN_DOWN_EXP, copy),), either=True),
    ),
    drop=QWEN3VL.drop,
    require={**QWEN3_MOE.require, "norm_topk_prob": (True,)},
    defaults={**QWEN3VL.defaults, "norm_topk_prob": True, "num_experts_per_tok": 8},
)
MISTRAL3 = replace(
    LLAMA,
    arch=MODEL_ARCH.MISTRAL3,
    classes=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
    keys=(
        *LLAMA.keys,
        ConfigKey(Keys.Rope.SCALING_YARN_LOG_MUL, f32, computed=rope_field("mscale_all_dim")),
        ConfigKey(Keys.Attention.TEMPERATURE_SCALE, f32, computed=rope_field("llama_4_scaling_beta")),
    ),
    models="Mistral Small 3.1 and 3.2, Devstral, Magistral, Ministral 3 (text)",
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
    drop={**LLAMA.drop, **VISION_TOWER},
    check=mistral3_check,
    variants={"mistral4": MISTRAL4},
)

SMOLVLM = replace(
    LLAMA,
    classes=("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"),
    models="SmolVLM, Idefics 3 (text)",
    defaults={**LLAMA.defaults, "num_attention_heads": 32},  # which SmolVLM 2.2B leaves out
    drop={**LLAMA.drop, **VISION_TOWER, "connector.": next(iter(VISION_TOWER.values()))},
    pooling=False,
)
LLAVA = replace(
    LLAMA,
    classes=("LlavaForConditionalGeneration",),
    models="Pixtral 12B, LLaVA 1.5 (text)",
    drop={**LLAMA.drop, **VISION_TOWER},
    pooling=False,
)


def own_windows(config: Config, dims: Dims) -> list[bool] | None:
    """Which blocks have a sliding window, without those that are appended."""
    return window_pattern(4)(config, replace(dims, blocks=whole(config, "num_hidden_layers")))


def shared_blocks(config: Config, dims: Dims) -> str | None:
    """A sentence if one appended block stands for several, else None."""
    shares = config.first("mtp_share_layers") and whole(config, "num_nextn_predict_layers") > 1
    return "one block for multi-token prediction stands for several" if shares else None


EXAONE4_5 = replace(
    EXAONE4,
    classes=("Exaone4_5_ForConditionalGeneration",),
    tensors=(
        *EXAONE4.tensors,
        *(rule for rule in NEXTN if rule.tensor not in (T.NEXTN_EMBED_TOKENS, T.NEXTN_SHARED_HEAD_HEAD)),
    ),
    keys=(
        *without(EXAONE4.keys, Keys.Attention.SLIDING_WINDOW_PATTERN),
        ConfigKey(Keys.Attention.SLIDING_WINDOW_PATTERN, booleans, computed=own_windows),
        NEXTN_IF_ANY,
    ),
    models="EXAONE 4.5 (text)",
    drop=VISION_TOWER,
    sizes=DOUBLE,
    kinds=with_mtp(lambda config, blocks: [""] * blocks),
    check=shared_blocks,
    mtp=MTP_NAMES,
)
LFM2VL = replace(
    LFM2,
    classes=("Lfm2VlForConditionalGeneration",),
    models="LFM2-VL (text)",
    drop={**LFM2.drop, **VISION_TOWER},
    pooling=False,
)


def pairs_to_halves(dims: Dims, heads: int) -> Op:
    """The op of queries and keys whose dimensions rotate in pairs: ggml's rotation by sections knows halves alone."""
    return RopePermute(heads, undo=True, rotary=dims.rotary)


GLM_SECTIONS = ConfigKey(Keys.Rope.DIMENSION_SECTIONS, i32s, computed=mrope_sections((8, 12, 12)))
TURNED = {
    T.ATTN_Q: lambda dims: pairs_to_halves(dims, dims.heads),
    T.ATTN_K: lambda dims: pairs_to_halves(dims, dims.kv_heads),
}
GLM4V = replace(
    GLM4,
    classes=("Glm4vForConditionalGeneration",),
    tensors=tuple(replace(rule, op=TURNED.get(rule.tensor, rule.op)) for rule in GLM4.tensors),
    keys=(*GLM4.keys, GLM_SECTIONS),
    models="GLM-4.1V, GLM-4.6V Flash (text)",
    drop=VISION_TOWER,
    defaults={**GLM4.defaults, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5},
)
GLM_OCR = replace(
    GLM4V,
    classes=("GlmOcrForConditionalGeneration",),
    tensors=(*GLM4V.tensors, *NEXTN),
    keys=(*GLM4V.keys, NEXTN_IF_ANY),
    models="GLM-OCR (text)",
    defaults={**GLM4V.defaults, "max_position_embeddings": 131072, "num_key_value_heads": 8},
    sizes=DOUBLE,
    kinds=with_mtp(lambda config, blocks: [""] * blocks),
    appended=True,
)
GLM4V_MOE = replace(
    GLM4_MOE,
    classes=("Glm4vMoeForConditionalGeneration",),
    keys=(*GLM4_MOE.keys, GLM_SECTIONS),
    models="GLM-4.5V, GLM-4.6V (text)",
    drop=VISION_TOWER,
    defaults={
        **GLM4_MOE.defaults,
        "max_position_embeddings": 65536,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "first_k_dense_replace": 1,
    },
)
GLMS = (GLM4V, GLM_OCR, GLM4V_MOE)


def seeing(record: Architecture) -> Architecture:
    """The record of a text model inside InternVL."""
    return replace(
        record,
        classes=INTERN,
        models="InternVL 3 and 3.5 (text)",
        drop={**record.drop, **VISION_TOWER},
        pooling=False,
    )


INTERN = ("InternVLForConditionalGeneration",)
INTERNVL = replace(
    seeing(QWEN2),
    check=lambda config, dims: (
        None
        if config.first("model_type") in ("qwen2", "internvl", None)
        else f"the text model of InternVL is {config.first('model_type')!r:.40}, which is not supported"
    ),
    variants={"qwen3": seeing(QWEN3), "qwen3_moe": seeing(QWEN3_MOE), "llama": seeing(LLAMA)},
)


def chatting(record: Architecture) -> Architecture:
    """The record of a text model inside InternVL in the layout that was published first, with code of its own."""
    scaling = tuple(dict.fromkeys((*record.rope.scaling, "dynamic")))
    inside = seeing(record)
    return replace(
        inside,
        classes=("InternVLChatModel",),
        models="InternVL 2 to 3.5 (text)",
        rope=replace(record.rope, scaling=scaling),
        drop={**inside.drop, "mlp1.": next(iter(VISION_TOWER.values()))},
        variants={},
    )


INTERNVL_CHAT = replace(
    chatting(QWEN2),
    check=lambda config, dims: (
        None
        if config.first("model_type") == "qwen2"
        else f"the text model of InternVL is {config.first('model_type')!r:.40}, which is not supported"
    ),
    variants={
        "qwen3": chatting(QWEN3),
        "qwen3_moe": chatting(QWEN3_MOE),
        "llama": chatting(LLAMA),
        "internlm2": chatting(INTERNLM2),
        "phi3": chatting(PHI3),
    },
)
PADDLE_OCR = replace(
    ERNIE4_5,
    arch=MODEL_ARCH.PADDLEOCR,
    classes=("PaddleOCRVLForConditionalGeneration",),
    keys=(*ERNIE4_5.keys, SECTIONS),
    models="PaddleOCR-VL (text)",
    rope=replace(ERNIE4_5.rope, theta=5e5),
    drop={
        **ERNIE4_5.drop,
        **VISION_TOWER,
        **dict.fromkeys(("mlp_AR.", "projector."), next(iter(VISION_TOWER.values()))),
    },
    defaults={
        **ERNIE4_5.defaults,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
    },
)


def xd_sections(config: Config, dims: Dims) -> list[int] | None:
    """How the dimensions of a head are divided among position, width, height and the number of an image."""
    fields = rope_fields(config)
    found = fields.get("xdrope_section", fields.get("mrope_section"))
    if found is None:
        return None
    if (
        not isinstance(found, list)
        or len(found) != 4
        or not all(isinstance(n, int) and 0 <= n < 1 << 31 for n in found)
    ):
        raise Malformed(
            f"the sections of the rotary embedding must be four sizes, not {found!r:.80}", where=config.path
        )
    return found


HUNYUAN_VL = replace(
    HUNYUAN_DENSE,
    arch=MODEL_ARCH.HUNYUAN_VL,
    classes=("HunYuanVLForConditionalGeneration",),
    keys=(*HUNYUAN_DENSE.keys, ConfigKey(Keys.Rope.DIMENSION_SECTIONS, i32s, computed=xd_sections)),
    models="HunyuanOCR, HunYuan-VL (text)",
    rope=replace(HUNYUAN_DENSE.rope, scaling=("xdrope",)),
    drop={**HUNYUAN_DENSE.drop, **VISION_TOWER, "vit.": next(iter(VISION_TOWER.values()))},
)
DRAWS = "what makes images; this converts the text model"
JANUS = replace(
    LLAMA,
    classes=("JanusForConditionalGeneration",),
    models="Janus, Janus-Pro (text)",
    drop={
        **LLAMA.drop,
        **VISION_TOWER,
        **dict.fromkeys(("vqmodel.", "generation_embeddings.", "generation_aligner.", "generation_head."), DRAWS),
        "aligner.": next(iter(VISION_TOWER.values())),
    },
    pooling=False,
)
MINICPM_V = replace(
    QWEN35,
    classes=("MiniCPMV4_6ForConditionalGeneration",),
    models="MiniCPM-V 4.6 (text)",
    drop={**QWEN35.drop, **MTP_HEAD, "merger.": next(iter(VISION_TOWER.values()))},
    mtp=None,
)
LIGHTON_OCR = replace(
    QWEN3,
    classes=("LightOnOcrForConditionalGeneration", "LightOnOCRForConditionalGeneration"),
    models="LightOnOCR (text)",
    drop={**QWEN3.drop, **VISION_TOWER, "vision_projection.": next(iter(VISION_TOWER.values()))},
    pooling=False,
)

DOTS_OCR = replace(
    QWEN2,
    classes=("DotsOCRForCausalLM",),
    models="dots.ocr (text)",
    drop={**QWEN2.drop, **VISION_TOWER},
    pooling=False,
)
STEP_VL = replace(
    QWEN3,
    classes=("StepVLForConditionalGeneration",),
    models="Step3-VL (text)",
    drop={**QWEN3.drop, **VISION_TOWER, "vit_large_projector.": next(iter(VISION_TOWER.values()))},
    pooling=False,
)

RECORDS = (
    QWEN2VL,
    QWEN3VL,
    QWEN3VL_MOE,
    MISTRAL3,
    SMOLVLM,
    LLAVA,
    EXAONE4_5,
    LFM2VL,
    *GLMS,
    INTERNVL,
    INTERNVL_CHAT,
    PADDLE_OCR,
    HUNYUAN_VL,
    JANUS,
    MINICPM_V,
    DOTS_OCR,
    STEP_VL,
    LIGHTON_OCR,
)
