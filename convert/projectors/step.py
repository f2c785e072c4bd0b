"""The encoder of Step 3.7: a ViT with rotary and learned positions, and two convolutions that each halve the sides.

Source: llama.cpp's conversion/step3.py and tools/mtmd/models/step3vl.cpp.
"""

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.values import string, u32
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    VISION_KEYS,
    V,
    config_value,
    epsilon,
    layers,
    number,
    positive,
    text_size,
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
    weight,
)

TOWER = "vision_model"
BLOCK = f"{TOWER}.transformer.resblocks.{{}}"
STRIDE = 2
LONGEST_EDGE = 3024  # of an image; a constant of the published code


def feed_forward(facts: ProjectorFacts) -> int:
    """The length of a feed-forward, which most configs state as a multiple."""
    ratio = facts.config.number("mlp_ratio", default=8960 / 1536) or 0
    stated = facts.config.integer("intermediate_size", default=round(facts.size("embd") * ratio))
    return positive(stated, "intermediate_size", facts)


def check(facts: ProjectorFacts) -> str | None:
    """A sentence if something is not what llama.cpp's graph assumes."""
    for key, wanted in (("understand_projector_stride", STRIDE), ("projector_bias", False)):
        if (found := facts.text.first(key)) is not None and found != wanted:
            return f"{key} is {found!r:.40}, but llama.cpp assumes {wanted!r}"
    theta = facts.config.mapping("rope_parameters").get("rope_theta", 10000)
    return None if theta == 10000 else f"rope_theta is {theta!r:.40}, but llama.cpp assumes 10000"


STEP3VL = EncoderRecord(
    "vision",
    "vision_config",
    (f"{TOWER}.", "vit_large_projector."),
    sizes={
        "text": text_size,
        "image": number("image_size"),
        "patch": number("patch_size"),
        "embd": number("hidden_size", "width", default=1536),
        "ff": feed_forward,
        "blocks": number("num_hidden_layers", "layers", default=47),
        "heads": number("num_attention_heads", "heads", default=16),
        "positions": lambda facts: (facts.size("image") // facts.size("patch")) ** 2,
    },
    tensors=(
        *weight("v.patch_embd", f"{TOWER}.conv1", "embd 3 patch patch", types=CONVOLUTION),
        ProjectorRule("v.position_embd.weight", f"{TOWER}.positional_embedding", "positions embd", types=SINGLE),
        *biased("v.pre_ln", f"{TOWER}.ln_pre", "embd"),
        ProjectorRule("v.blk.{}.attn_qkv.weight", f"{BLOCK}.attn.in_proj_weight", "3*embd embd"),
        ProjectorRule("v.blk.{}.attn_qkv.bias", f"{BLOCK}.attn.in_proj_bias", "3*embd"),
        *layers(
            BLOCK,
            ("attn_out", "attn.out_proj", "embd embd"),
            ("ln1", "ln_1", "embd"),
            ("ln2", "ln_2", "embd"),
            ("ffn_up", "mlp.c_fc", "ff embd"),
            ("ffn_down", "mlp.c_proj", "embd ff"),
        ),
        ProjectorRule("v.blk.{}.ls1.weight", f"{BLOCK}.ls_1.gamma", "embd"),
        ProjectorRule("v.blk.{}.ls2.weight", f"{BLOCK}.ls_2.gamma", "embd"),
        *biased("mm.0", f"{TOWER}.vit_downsampler1", "2*embd embd 3 3", types=CONVOLUTION),
        *biased("mm.1", f"{TOWER}.vit_downsampler2", "4*embd 2*embd 3 3", types=CONVOLUTION),
        *weight("mm.model.fc", "vit_large_projector", "text 4*embd"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.STEP3VL)),
        epsilon(config_value("layer_norm_eps", 1e-5)),
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, fixed(STRIDE**2)),
        ProjectorKey(V.PREPROC_IMAGE_SIZE, u32, fixed(LONGEST_EDGE)),
    ),
    require={"hidden_act": ("quick_gelu",), "use_cls_token": (False,), "use_ln_post": (False,)},
    defaults={
        "image_size": 728,
        "patch_size": 14,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    harmless=HARMLESS | {"layer_scale_init_value", "ls_init_value", "use_ln_pre", "use_abs_posemb", "use_rope2d"},
    check=check,
)
STEP = Projector(
    ("Step3p7ForConditionalGeneration", "StepVLForConditionalGeneration"),
    "Step 3.7 Flash, Step3-VL",
    VisionProjectorType.STEP3VL,
    (STEP3VL,),
)

RECORDS = (STEP,)
