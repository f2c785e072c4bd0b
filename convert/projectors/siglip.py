"""Encoders that are SigLIP: Gemma 3, LFM2-VL, Idefics 3 and SmolVLM; they differ in what follows."""

import math
from collections.abc import Mapping

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.values import string, u32
from ggufsmith.convert.ops import AddOne
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    VISION_KEYS,
    VISION_SIZES,
    Size,
    V,
    config_value,
    epsilon,
    layers,
    number,
    positive,
    unless,
)
from ggufsmith.convert.projectors.ops import PixelsToPlanes
from ggufsmith.convert.projectors.record import (
    CONVOLUTION,
    HALF,
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

TOWER = "vision_tower"
RENAMED = {"vision_tower.vision_model.": "vision_tower.", "vision_model.": "vision_tower."}
BLOCKS = (
    *layers(
        f"{TOWER}.encoder.layers.{{}}",
        ("ln1", "layer_norm1", "embd"),
        ("ln2", "layer_norm2", "embd"),
        ("attn_q", "self_attn.q_proj", "embd embd"),
        ("attn_k", "self_attn.k_proj", "embd embd"),
        ("attn_v", "self_attn.v_proj", "embd embd"),
        ("attn_out", "self_attn.out_proj", "embd embd"),
        ("ffn_up", "mlp.fc1", "ff embd"),
        ("ffn_down", "mlp.fc2", "embd ff"),
    ),
    *biased("v.post_ln", f"{TOWER}.post_layernorm", "embd"),
)
POSITIONS = weight("v.position_embd", f"{TOWER}.embeddings.position_embedding", "positions embd", types=SINGLE)
PATCH = ("v.patch_embd", f"{TOWER}.embeddings.patch_embedding", "embd 3 patch patch")
PATCHES = biased(*PATCH, types=SINGLE)
HALF_PATCHES = biased(*PATCH, types=CONVOLUTION)  # in half precision where matrices are
TANH = {"hidden_act": ("gelu_pytorch_tanh",)}


def square(facts: ProjectorFacts) -> int:
    """The patches of a square image."""
    return (facts.size("image") // facts.size("patch")) ** 2


def of_model(name: str, default: int) -> Size:
    """A size that the model's own config has, not that of its encoder."""
    return lambda facts: positive(facts.text.integer(name, default=default), name, facts)


# -- Gemma 3 ----------------------------------------------------------------------------------------------------------


def pooled(facts: ProjectorFacts) -> int:
    """How many patches each side of an image's token stands for."""
    tokens = facts.text.integer("mm_tokens_per_image") or facts.processor.integer("image_seq_length") or 256
    side = facts.size("image") // facts.size("patch") // math.isqrt(max(tokens, 1))
    return positive(side, "image_size divided by patch_size and the tokens of a side", facts)


GEMMA3 = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_tower.", "multi_modal_projector."),
    sizes={**VISION_SIZES, "positions": square, "pooled": pooled},
    tensors=(
        *PATCHES,
        *POSITIONS,
        *BLOCKS,
        # llama.cpp multiplies by it turned, in half precision (ggml-org/llama.cpp#13025).
        ProjectorRule(
            "mm.input_projection.weight", "multi_modal_projector.mm_input_projection_weight", "embd text", types=HALF
        ),
        *weight("mm.soft_emb_norm", "multi_modal_projector.mm_soft_emb_norm", "embd", op=lambda facts: AddOne()),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.GEMMA3)),
        epsilon(config_value("layer_norm_eps", 1e-6)),
        USE_GELU,
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, unless(4, "pooled")),
    ),
    require=TANH,
    harmless=HARMLESS,
)

# -- LFM2-VL ----------------------------------------------------------------------------------------------------------


def has_norm(facts: ProjectorFacts) -> bool:
    """Whether the projector begins with a norm."""
    return facts.text.first("projector_use_layernorm") is not False


def lfm2_check(facts: ProjectorFacts) -> str | None:
    """A sentence if something is not what llama.cpp's graph assumes."""
    for key, wanted in (("projector_hidden_act", "gelu"), ("vision_feature_layer", -1), ("projector_bias", True)):
        if (found := facts.text.first(key)) is not None and found != wanted:
            return f"{key} is {found!r:.40}, but llama.cpp assumes {wanted!r}"
    return None


LFM2 = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_tower.", "multi_modal_projector."),
    sizes={
        **VISION_SIZES,
        "image": lambda facts: 256,  # as in the reference; images may have any size
        "positions": number("num_patches", default=256),
        "factor": of_model("downsample_factor", 2),
        "inner": of_model("projector_hidden_size", 2560),
    },
    tensors=(
        *weight(
            "v.patch_embd",
            f"{TOWER}.embeddings.patch_embedding",
            "embd 3*patch*patch",
            op=lambda facts: PixelsToPlanes(facts.size("patch")),
            types=CONVOLUTION,
        ),
        ProjectorRule("v.patch_embd.bias", f"{TOWER}.embeddings.patch_embedding.bias", "embd"),
        *POSITIONS,
        *BLOCKS,
        *biased("mm.input_norm", "multi_modal_projector.layer_norm", "factor*factor*embd", when=has_norm),
        *biased("mm.1", "multi_modal_projector.linear_1", "inner factor*factor*embd"),
        *biased("mm.2", "multi_modal_projector.linear_2", "text inner"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.LFM2)),
        epsilon(config_value("layer_norm_eps", 1e-6)),
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, sized("factor")),
        USE_GELU,
    ),
    require={**TANH, "patch_size": (16,)},
    harmless=HARMLESS | {"image_size", "vision_feature_layer"},
    check=lfm2_check,
)

# -- Idefics 3 and SmolVLM --------------------------------------------------------------------------------------------


def longest_edge(facts: ProjectorFacts) -> int:
    """To which the longer side of an image is scaled before it is cut."""
    size = facts.processor.first("size")
    edge = size.get("longest_edge") if isinstance(size, Mapping) else None
    return facts.size("image") if edge is None else positive(edge if isinstance(edge, int) else None, "size", facts)


IDEFICS3 = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_tower.", "connector."),
    sizes={**VISION_SIZES, "positions": square, "factor": of_model("scale_factor", 2)},
    tensors=(
        *PATCHES,
        *POSITIONS,
        *BLOCKS,
        *weight("mm.model.fc", "connector.modality_projection.proj", "text factor*factor*embd"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.IDEFICS3)),
        epsilon(config_value("layer_norm_eps", 1e-6)),
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, sized("factor")),
        USE_GELU,
        ProjectorKey(V.PREPROC_IMAGE_SIZE, u32, longest_edge),
    ),
    require=TANH,
    defaults={
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 32,
    },
    harmless=HARMLESS | {"max_image_size", "use_base_siglip", "size", "tie_word_embeddings"},
)

RECORDS = (
    Projector(
        ("Gemma3ForConditionalGeneration",),
        "Gemma 3",
        VisionProjectorType.GEMMA3,
        (GEMMA3,),
        renamed=RENAMED,
        drop={"vision_tower.head.": "a head that Gemma does not use"},
    ),
    Projector(("Lfm2VlForConditionalGeneration",), "LFM2-VL", VisionProjectorType.LFM2, (LFM2,), renamed=RENAMED),
    Projector(
        ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
        "Idefics 3, SmolVLM",
        VisionProjectorType.IDEFICS3,
        (IDEFICS3,),
        renamed=RENAMED,
    ),
)
