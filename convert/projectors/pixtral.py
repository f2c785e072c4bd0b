"""The encoder of Pixtral and Mistral 3, which ends every row of an image with the embedding of a token; LightOnOCR's.

Source: llama.cpp, tools/mtmd/models/pixtral.cpp; transformers, modeling_pixtral.py and modeling_lighton_ocr.py.
"""

from dataclasses import replace

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import string, u32
from ggufsmith.convert.ops import Op, RopePermute
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    USE_SILU,
    VISION_KEYS,
    VISION_SIZES,
    V,
    config_value,
    epsilon,
    positive,
    rope_base,
)
from ggufsmith.convert.projectors.ops import RowAsVector
from ggufsmith.convert.projectors.record import (
    CONVOLUTION,
    EncoderRecord,
    Projector,
    ProjectorFacts,
    ProjectorKey,
    ProjectorRule,
    fixed,
    weight,
)

BREAK, BREAK_EMBEDDING = "[IMG_BREAK]", "v.token_embd.img_break"
RENAMED = {
    "language_model.model.embed_tokens.": "language_model.embed_tokens.",
    "embed_tokens.": "language_model.embed_tokens.",
}
BLOCK = "vision_tower.transformer.layers.{}"


def merges(facts: ProjectorFacts) -> bool:
    """Whether patches are merged, as Mistral 3 does, and Pixtral does not."""
    classes = facts.text.first("architectures") or ()
    return facts.text.first("spatial_merge_size") is not None or "Mistral3ForConditionalGeneration" in classes


def merge_size(facts: ProjectorFacts) -> int:
    """How many patches of each side are merged, for which the model's own config has a key."""
    return positive(facts.text.integer("spatial_merge_size", default=2), "spatial_merge_size", facts)


def break_row(facts: ProjectorFacts) -> Op:
    """The op of the token's embedding. Malformed if the vocabulary does not have it."""
    token = facts.token(BREAK)
    if token is None:
        raise Malformed(f"the vocabulary has no {BREAK}, which ends the rows of an image", where=facts.text.path)
    return RowAsVector(token)


def permuted(facts: ProjectorFacts) -> Op:
    """The op of queries and keys, which ggml rotates in pairs."""
    return RopePermute(facts.size("heads"))


def pixtral_check(facts: ProjectorFacts) -> str | None:
    """A sentence if something is not what llama.cpp's graph assumes."""
    whole = facts.text
    for key, wanted in (("projector_hidden_act", ("gelu",)), ("vision_feature_layer", (-1,))):
        if (found := whole.first(key)) is not None and found not in wanted:
            return f"{key} is {found!r:.40}, but llama.cpp assumes {wanted[0]!r}"
    if facts.size("head_dim") * facts.size("heads") != facts.size("embd"):
        return "llama.cpp assumes heads that together are as wide as the encoder"
    base = rope_base(facts)
    return None if base in (None, 10000) else f"rope_theta is {base!r:.40}, but llama.cpp assumes 10000"


def has_bias(facts: ProjectorFacts) -> bool:
    """Whether the matrices of the projector have biases."""
    stated = facts.text.first("multimodal_projector_bias")
    return facts.text.first("model_type") == "llava" if stated is None else bool(stated)


def activation(name: str, key: ProjectorKey) -> ProjectorKey:
    """A key of models with this activation alone."""
    usual = "gelu"
    return ProjectorKey(
        key.name, key.make, lambda facts: True if (facts.config.first("hidden_act") or usual) == name else None
    )


MERGER = (
    *weight("mm.input_norm", "multi_modal_projector.norm", "embd", when=merges),
    *weight(
        "mm.patch_merger",
        "multi_modal_projector.patch_merger.merging_layer",
        "embd merge*merge*embd",
        types=CONVOLUTION,
        when=merges,
    ),
)
PIXTRAL = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_tower.", "multi_modal_projector."),
    sizes={
        **VISION_SIZES,
        "head_dim": lambda facts: facts.config.integer("head_dim") or facts.size("embd") // facts.size("heads"),
        "merge": merge_size,
        "vocab": lambda facts: facts.text.integer("vocab_size") or 0,
    },
    tensors=(
        *weight("v.patch_embd", "vision_tower.patch_conv", "embd 3 patch patch", types=CONVOLUTION),
        *weight("v.pre_ln", "vision_tower.ln_pre", "embd"),
        *weight("v.blk.{}.attn_q", f"{BLOCK}.attention.q_proj", "embd embd", op=permuted),
        *weight("v.blk.{}.attn_k", f"{BLOCK}.attention.k_proj", "embd embd", op=permuted),
        *weight("v.blk.{}.attn_v", f"{BLOCK}.attention.v_proj", "embd embd"),
        *weight("v.blk.{}.attn_out", f"{BLOCK}.attention.o_proj", "embd embd"),
        *weight("v.blk.{}.ln1", f"{BLOCK}.attention_norm", "embd"),
        *weight("v.blk.{}.ln2", f"{BLOCK}.ffn_norm", "embd"),
        *weight("v.blk.{}.ffn_gate", f"{BLOCK}.feed_forward.gate_proj", "ff embd"),
        *weight("v.blk.{}.ffn_up", f"{BLOCK}.feed_forward.up_proj", "ff embd"),
        *weight("v.blk.{}.ffn_down", f"{BLOCK}.feed_forward.down_proj", "embd ff"),
        *MERGER,
        *weight("mm.1", "multi_modal_projector.linear_1", "text embd"),
        *weight("mm.2", "multi_modal_projector.linear_2", "text text"),
        ProjectorRule("mm.1.bias", "multi_modal_projector.linear_1.bias", "text", when=has_bias),
        ProjectorRule("mm.2.bias", "multi_modal_projector.linear_2.bias", "text", when=has_bias),
        ProjectorRule(BREAK_EMBEDDING, "language_model.embed_tokens.weight", "vocab text", op=break_row),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.PIXTRAL)),
        epsilon(config_value("layer_norm_eps", 1e-5)),
        activation("silu", USE_SILU),
        activation("gelu", USE_GELU),
        ProjectorKey(V.SPATIAL_MERGE_SIZE, u32, lambda facts: facts.size("merge") if merges(facts) else None),
    ),
    require={"hidden_act": ("silu", "gelu"), "model_type": ("pixtral",)},  # LLaVA has encoders of other kinds too
    harmless=HARMLESS,
    check=pixtral_check,
)
LIGHTON_OCR = replace(
    PIXTRAL,
    tensors=tuple(rule for rule in PIXTRAL.tensors if rule.name != BREAK_EMBEDDING),
    keys=tuple(
        replace(key, value=fixed(VisionProjectorType.LIGHTONOCR)) if key.name == Keys.Clip.PROJECTOR_TYPE else key
        for key in PIXTRAL.keys
    ),
)

RECORDS = (
    Projector(
        ("Mistral3ForConditionalGeneration", "MistralLarge3ForCausalLM"),
        "Mistral Small 3.1 and 3.2, Devstral, Magistral, Ministral 3, Mistral Large 3",
        VisionProjectorType.PIXTRAL,
        (PIXTRAL,),
        renamed=RENAMED,
    ),
    Projector(("LlavaForConditionalGeneration",), "Pixtral 12B", VisionProjectorType.PIXTRAL, (PIXTRAL,), RENAMED),
    Projector(
        ("LightOnOcrForConditionalGeneration", "LightOnOCRForConditionalGeneration"),
        "LightOnOCR",
        VisionProjectorType.LIGHTONOCR,
        (LIGHTON_OCR,),
        renamed={"vision_encoder.": "vision_tower.", "vision_projection.": "multi_modal_projector."},
    ),
)
