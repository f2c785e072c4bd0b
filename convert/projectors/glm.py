"""The encoders of GLM-V, whose patches a convolution merges, and of GLM-OCR, which has no learned positions."""

from typing import Any

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.values import string
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_SILU,
    VISION_KEYS,
    config_value,
    epsilon,
    layers,
    number,
)
from ggufsmith.convert.projectors.qwen import COMMON, TWO, frames, same_width
from ggufsmith.convert.projectors.record import (
    CONVOLUTION,
    SINGLE,
    EncoderRecord,
    Projector,
    ProjectorKey,
    ProjectorRule,
    biased,
    fixed,
    weight,
)

BLOCK = "visual.blocks.{}"
SIZES = {
    **COMMON,
    "image": number("image_size", default=336),
    "embd": number("hidden_size"),
    "ff": number("intermediate_size"),
    "out": number("out_hidden_size"),
}
KEYS = (
    *VISION_KEYS,
    ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.GLM4V)),
    USE_SILU,
    epsilon(config_value("rms_norm_eps", 1e-5)),
)
NORMS = (*weight("v.blk.{}.ln1", f"{BLOCK}.norm1", "embd"), *weight("v.blk.{}.ln2", f"{BLOCK}.norm2", "embd"))
MERGER = (
    *weight("v.post_ln", "visual.post_layernorm", "embd"),
    *biased("mm.patch_merger", "visual.downsample", "out embd merge merge", types=CONVOLUTION),
    *weight("mm.model.fc", "visual.merger.proj", "out out"),
    *biased("mm.post_norm", "visual.merger.post_projection_norm", "out"),
    *weight("mm.gate", "visual.merger.gate_proj", "inner out"),
    *weight("mm.up", "visual.merger.up_proj", "inner out"),
    *weight("mm.down", "visual.merger.down_proj", "out inner"),
)
COMMON_PARTS: dict[str, Any] = {
    "defaults": {"spatial_merge_size": 2, "temporal_patch_size": 2, "patch_size": 14},
    "harmless": HARMLESS,
    "check": same_width,
}
GLM4V = EncoderRecord(
    "vision",
    "vision_config",
    ("visual.",),
    sizes={
        **SIZES,
        "positions": lambda facts: (facts.size("image") // facts.size("patch")) ** 2,
        "inner": lambda facts: facts.size("ff"),
    },
    tensors=(
        *frames(),
        ProjectorRule("v.patch_embd.bias", "visual.patch_embed.proj.bias", "embd"),
        *weight("v.norm_embd", "visual.post_conv_layernorm", "embd"),
        *weight("v.position_embd", "visual.embeddings.position_embedding", "positions embd", types=SINGLE),
        *NORMS,
        *weight("v.blk.{}.attn_qkv", f"{BLOCK}.attn.qkv", "3*embd embd"),
        *weight("v.blk.{}.attn_out", f"{BLOCK}.attn.proj", "embd embd"),
        *weight("v.blk.{}.ffn_gate", f"{BLOCK}.mlp.gate_proj", "out embd"),
        *weight("v.blk.{}.ffn_up", f"{BLOCK}.mlp.up_proj", "out embd"),
        *weight("v.blk.{}.ffn_down", f"{BLOCK}.mlp.down_proj", "embd out"),
        *MERGER,
    ),
    keys=KEYS,
    require={**TWO, "hidden_act": ("silu",), "attention_bias": (False,)},
    **COMMON_PARTS,
)
GLM_OCR = EncoderRecord(
    "vision",
    "vision_config",
    ("visual.",),
    sizes={
        **SIZES,
        "head_dim": lambda facts: facts.size("embd") // facts.size("heads"),
        "inner": lambda facts: facts.size("3*out"),
    },
    tensors=(
        *frames(),
        ProjectorRule("v.patch_embd.bias", "visual.patch_embed.proj.bias", "embd"),
        *NORMS,
        *layers(
            BLOCK,
            ("attn_qkv", "attn.qkv", "3*embd embd"),
            ("attn_out", "attn.proj", "embd embd"),
            ("ffn_gate", "mlp.gate_proj", "ff embd"),
            ("ffn_up", "mlp.up_proj", "ff embd"),
            ("ffn_down", "mlp.down_proj", "embd ff"),
        ),
        *weight("v.blk.{}.attn_q_norm", f"{BLOCK}.attn.q_norm", "head_dim"),
        *weight("v.blk.{}.attn_k_norm", f"{BLOCK}.attn.k_norm", "head_dim"),
        *MERGER,
    ),
    keys=KEYS,
    require={**TWO, "hidden_act": ("silu",), "attention_bias": (True,)},
    **COMMON_PARTS,
)

RECORDS = (
    Projector(
        ("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration"),
        "GLM-4.1V, GLM-4.5V, GLM-4.6V",
        VisionProjectorType.GLM4V,
        (GLM4V,),
    ),
    Projector(("GlmOcrForConditionalGeneration",), "GLM-OCR", VisionProjectorType.GLM4V, (GLM_OCR,)),
)
