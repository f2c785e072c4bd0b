"""The encoder of HunYuan-VL, which ends every row of an image with a newline, and puts a begin and an end around it."""

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.values import string, u32
from ggufsmith.convert.ops import Part
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    VISION_KEYS,
    VISION_SIZES,
    V,
    config_value,
    epsilon,
    layers,
    limit,
    number,
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


def check(facts: ProjectorFacts) -> str | None:
    """A sentence if sizes do not meet, or the keys and values of heads are shared."""
    out, text = facts.size("out"), facts.size("text")
    if out != text:
        return f"the embeddings of the encoder have {out} numbers, those of the text model {text}"
    shared = facts.config.integer("num_key_value_heads") not in (None, facts.size("heads"))
    return "llama.cpp assumes as many key-value heads as heads" if shared else None


ENCODER = EncoderRecord(
    "vision",
    "vision_config",
    ("vit.",),
    sizes={
        **VISION_SIZES,
        "image": number("image_size", "max_image_size", default=2048),
        "grid": number("max_image_size", default=2048),
        "positions": lambda facts: (facts.size("grid") // facts.size("patch")) ** 2 + 1,
        "merge": number("spatial_merge_size", default=2),
        "out": number("text_hidden_size", default=3072),
        "least": limit("min_pixels", "shortest_edge", 512 * 512),
        "most": limit("max_pixels", "longest_edge", 2048 * 2048),
    },
    tensors=(
        *biased("v.patch_embd", "vit.embeddings.patch_embedding", "embd 3 patch patch", types=CONVOLUTION),
        *weight(  # without that of a class token
            "v.position_embd",
            "vit.embeddings.position_embedding",
            "positions embd",
            op=lambda facts: Part(1, facts.size("positions")),
            types=SINGLE,
        ),
        *layers(
            "vit.layers.{}",
            ("ln1", "input_layernorm", "embd"),
            ("ln2", "post_attention_layernorm", "embd"),
            ("attn_q", "self_attn.q_proj", "embd embd"),
            ("attn_k", "self_attn.k_proj", "embd embd"),
            ("attn_v", "self_attn.v_proj", "embd embd"),
            ("attn_out", "self_attn.o_proj", "embd embd"),
            ("ffn_up", "mlp.dense_h_to_4h", "ff embd"),
            ("ffn_down", "mlp.dense_4h_to_h", "embd ff"),
        ),
        *weight("mm.pre_norm", "vit.perceive.before_rms", "embd"),
        *biased("mm.0", "vit.perceive.proj.0", "2*embd embd merge merge", types=CONVOLUTION),
        *biased("mm.2", "vit.perceive.proj.2", "4*embd 2*embd 1 1", types=CONVOLUTION),
        *biased("mm.model.fc", "vit.perceive.mlp", "out 4*embd"),
        *weight("mm.post_norm", "vit.perceive.after_rms", "out"),
        ProjectorRule("v.image_newline", "vit.perceive.image_newline", "4*embd"),
        ProjectorRule("v.view_seperator", "vit.perceive.image_sep", "out"),
        ProjectorRule("mm.image_begin", "vit.perceive.image_begin", "out"),
        ProjectorRule("mm.image_end", "vit.perceive.image_end", "out"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.HUNYUANVL)),
        USE_GELU,
        epsilon(config_value("rms_norm_eps", 1e-5)),
        ProjectorKey(V.SPATIAL_MERGE_SIZE, u32, sized("merge")),
        ProjectorKey(V.IMAGE_MIN_PIXELS, u32, sized("least")),
        ProjectorKey(V.IMAGE_MAX_PIXELS, u32, sized("most")),
    ),
    require={
        "hidden_act": ("gelu",),
        "interpolate_mode": ("bilinear",),
        "temporal_patch_size": (1,),
        "spatial_merge_size": (2,),  # of tokens, llama.cpp counts those of two by two
    },
    defaults={"patch_size": 16},
    harmless=HARMLESS
    | {"out_hidden_size", "img_max_token_num", "min_image_size", "max_vit_seq_len", "anyres_vit_max_image_size"},
    check=check,
)
HUNYUAN_VL = Projector(
    ("HunYuanVLForConditionalGeneration",), "HunyuanOCR, HunYuan-VL", VisionProjectorType.HUNYUANVL, (ENCODER,)
)

RECORDS = (HUNYUAN_VL,)
