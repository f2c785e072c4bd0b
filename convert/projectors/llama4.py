"""The encoder of Llama 4."""

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.values import string, u32
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    VISION_KEYS,
    VISION_SIZES,
    V,
    config_value,
    epsilon,
    layers,
    number,
    positive,
    rope_base,
)
from ggufsmith.convert.projectors.record import (
    CONVOLUTION,
    SINGLE,
    EncoderRecord,
    Projector,
    ProjectorFacts,
    ProjectorKey,
    ProjectorRule,
    biased,
    fixed,
    sized,
    weight,
)


def merged(facts: ProjectorFacts) -> int:
    """How many patches of each side become one."""
    ratio = facts.config.number("pixel_shuffle_ratio", default=0.5) or 0
    return positive(round(1 / ratio) if 1 / 64 <= ratio <= 1 else None, "pixel_shuffle_ratio", facts)


def llama4_check(facts: ProjectorFacts) -> str | None:
    """A sentence if sizes do not meet, or the rotary embedding has another base than llama.cpp's graph."""
    if facts.size("factor*factor*embd") != facts.size("ff") or facts.size("inner") != facts.size("middle"):
        return "the patches that are merged do not have the width of the adapter behind them"
    base = rope_base(facts)
    return None if base in (None, 10000) else f"rope_theta is {base!r:.40}, but llama.cpp assumes 10000"


ENCODER = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_model.", "multi_modal_projector."),
    sizes={
        **VISION_SIZES,
        "positions": lambda facts: (facts.size("image") // facts.size("patch")) ** 2 + 1,
        "factor": merged,
        "inner": number("projector_input_dim"),
        "middle": number("projector_output_dim"),
        "out": number("vision_output_dim"),
    },
    tensors=(
        ProjectorRule("v.class_embd", "vision_model.class_embedding", "embd"),
        *weight("v.patch_embd", "vision_model.patch_embedding.linear", "embd 3*patch*patch", types=CONVOLUTION),
        ProjectorRule(
            "v.position_embd.weight", "vision_model.positional_embedding_vlm", "positions embd", types=SINGLE
        ),
        *biased("v.pre_ln", "vision_model.layernorm_pre", "embd"),
        *biased("v.post_ln", "vision_model.layernorm_post", "embd"),
        *layers(
            "vision_model.model.layers.{}",
            ("ln1", "input_layernorm", "embd"),
            ("ln2", "post_attention_layernorm", "embd"),
            ("attn_q", "self_attn.q_proj", "embd embd"),
            ("attn_k", "self_attn.k_proj", "embd embd"),
            ("attn_v", "self_attn.v_proj", "embd embd"),
            ("attn_out", "self_attn.o_proj", "embd embd"),
            ("ffn_up", "mlp.fc1", "ff embd"),
            ("ffn_down", "mlp.fc2", "embd ff"),
        ),
        *weight("mm.model.mlp.1", "vision_model.vision_adapter.mlp.fc1", "inner ff"),
        *weight("mm.model.mlp.2", "vision_model.vision_adapter.mlp.fc2", "middle middle"),
        *weight("mm.model.fc", "multi_modal_projector.linear_1", "text out"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.LLAMA4)),
        epsilon(config_value("norm_eps", 1e-5)),
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, sized("factor")),
        USE_GELU,
    ),
    require={"hidden_act": ("gelu",), "multi_modal_projector_bias": (False,)},
    harmless=HARMLESS | {"projector_dropout", "vision_feature_select_strategy"},
    check=llama4_check,
)

LLAMA4 = Projector(("Llama4ForConditionalGeneration",), "Llama 4", VisionProjectorType.LLAMA4, (ENCODER,))

RECORDS = (LLAMA4,)
