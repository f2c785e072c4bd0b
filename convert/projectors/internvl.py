"""The encoder of InternVL, which is a ViT with a class token and scaled blocks; in both layouts that are published.

Source: llama.cpp's conversion/internvl.py and tools/mtmd/models/internvl.cpp.
"""

from collections.abc import Callable
from dataclasses import replace

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.values import string, u32
from ggufsmith.convert.ops import Op, Part
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    USE_SILU,
    VISION_KEYS,
    VISION_SIZES,
    Size,
    V,
    config_value,
    epsilon,
    layers,
    positive,
)
from ggufsmith.convert.projectors.pixtral import activation
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

TOWER = "vision_tower"
BLOCK = f"{TOWER}.encoder.layer.{{}}"
RMS_SIZES = (3200, 45)  # of the encoder that llama.cpp knows by them to have RMS norms


def side(name: str) -> Size:
    """A size of the section that may be given for both sides. Malformed if they differ."""

    def size(facts: ProjectorFacts) -> int:
        found = facts.config.first(name)
        if isinstance(found, list):
            one = found[0] if len(found) == 2 and found[0] == found[1] else None
            return positive(one if isinstance(one, int) else None, name, facts)
        return positive(facts.config.integer(name), name, facts)

    return size


def shuffled(facts: ProjectorFacts) -> int:
    """How many patches of each side become one."""
    ratio = facts.text.number("downsample_ratio", default=0.5) or 0
    return positive(int(1 / ratio) if 1 / 64 <= ratio <= 1 else None, "downsample_ratio", facts)


def has_biases(facts: ProjectorFacts) -> bool:
    """Whether queries, keys and values have biases."""
    return bool(facts.config.first("attention_bias", "qkv_bias"))


def has_head_norms(facts: ProjectorFacts) -> bool:
    """Whether queries and keys have norms."""
    return bool(facts.config.first("use_qk_norm", "qk_normalization"))


def rms(facts: ProjectorFacts) -> bool:
    """Whether the norms of the blocks are RMS norms."""
    return bool(facts.config.first("norm_type") == "rms_norm")


def layer_norm(facts: ProjectorFacts) -> bool:
    """Whether the norms of the blocks are layer norms."""
    return not rms(facts)


def check(facts: ProjectorFacts) -> str | None:
    """A sentence if something is not what llama.cpp's graph assumes."""
    for key, wanted in (
        ("projector_hidden_act", "gelu"),
        ("vision_feature_layer", -1),
        ("vision_feature_select_strategy", "default"),
    ):
        if (found := facts.text.first(key)) is not None and found != wanted:
            return f"{key} is {found!r:.40}, but llama.cpp assumes {wanted!r}"
    if rms(facts) != ((facts.size("embd"), facts.size("blocks")) == RMS_SIZES):
        return "llama.cpp assumes RMS norms for the encoder of 6 billion weights, and layer norms for others"
    if (facts.size("image") // facts.size("patch")) % facts.size("factor"):
        return "the patches of a side cannot be divided by those that become one"
    return None


INTERNVL = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_tower.", "multi_modal_projector."),
    sizes={
        **VISION_SIZES,
        "image": side("image_size"),
        "patch": side("patch_size"),
        "positions": lambda facts: (facts.size("image") // facts.size("patch")) ** 2 + 1,
        "factor": shuffled,
    },
    tensors=(
        ProjectorRule("v.class_embd", f"{TOWER}.embeddings.cls_token", "1 1 embd"),
        *biased(
            "v.patch_embd", f"{TOWER}.embeddings.patch_embeddings.projection", "embd 3 patch patch", types=CONVOLUTION
        ),
        ProjectorRule(
            "v.position_embd.weight", f"{TOWER}.embeddings.position_embeddings", "1 positions embd", types=SINGLE
        ),
        *layers(
            BLOCK,
            ("attn_out", "attention.projection_layer", "embd embd"),
            ("ffn_up", "mlp.fc1", "ff embd"),
            ("ffn_down", "mlp.fc2", "embd ff"),
        ),
        *(
            rule
            for name, end in (("attn_q", "q_proj"), ("attn_k", "k_proj"), ("attn_v", "v_proj"))
            for rule in (
                *weight(f"v.blk.{{}}.{name}", f"{BLOCK}.attention.{end}", "embd embd"),
                ProjectorRule(f"v.blk.{{}}.{name}.bias", f"{BLOCK}.attention.{end}.bias", "embd", when=has_biases),
            )
        ),
        *weight("v.blk.{}.attn_q_norm", f"{BLOCK}.attention.q_norm", "embd", when=has_head_norms),
        *weight("v.blk.{}.attn_k_norm", f"{BLOCK}.attention.k_norm", "embd", when=has_head_norms),
        *weight("v.blk.{}.ln1", f"{BLOCK}.layernorm_before", "embd"),
        *weight("v.blk.{}.ln2", f"{BLOCK}.layernorm_after", "embd"),
        ProjectorRule("v.blk.{}.ln1.bias", f"{BLOCK}.layernorm_before.bias", "embd", when=layer_norm),
        ProjectorRule("v.blk.{}.ln2.bias", f"{BLOCK}.layernorm_after.bias", "embd", when=layer_norm),
        ProjectorRule("v.blk.{}.ls1.weight", f"{BLOCK}.lambda_1", "embd"),
        ProjectorRule("v.blk.{}.ls2.weight", f"{BLOCK}.lambda_2", "embd"),
        *biased("mm.model.mlp.0", "multi_modal_projector.layer_norm", "factor*factor*embd"),
        *biased("mm.model.mlp.1", "multi_modal_projector.linear_1", "text factor*factor*embd"),
        *biased("mm.model.mlp.3", "multi_modal_projector.linear_2", "text text"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.INTERNVL)),
        epsilon(config_value("layer_norm_eps", 1e-6)),
        activation("silu", USE_SILU),
        activation("gelu", USE_GELU),
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, sized("factor")),
    ),
    require={
        "hidden_act": ("silu", "gelu"),
        "use_mean_pooling": (True,),
        "use_mask_token": (False,),
        "use_absolute_position_embeddings": (True,),
    },
    harmless=HARMLESS
    | {"hidden_dropout_prob", "projection_dropout", "layer_scale_init_value", "norm_type", "chunk_size_feed_forward"},
    check=check,
)

# -- the layout that they were published in first, with code of their own --------------------------------------------

# What stands in the names above -> in those of this layout.
CHAT_NAMES = {
    f"{TOWER}.": "vision_model.",
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "encoder.layer.": "encoder.layers.",
    "attention.projection_layer": "attn.proj",
    "attention.": "attn.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_": "ls",
    "multi_modal_projector.layer_norm": "mlp1.0",
    "multi_modal_projector.linear_1": "mlp1.1",
    "multi_modal_projector.linear_2": "mlp1.3",
}
FUSED = {f"attn.{end}_proj.": k for k, end in enumerate("qkv")}  # parts of one matrix


def in_chat_layout(rule: ProjectorRule) -> ProjectorRule:
    """The rule of a tensor for a checkpoint in this layout."""
    source = rule.source
    for before, after in CHAT_NAMES.items():
        source = source.replace(before, after)
    for part, k in FUSED.items():
        if part in source:
            shape = f"3*{rule.shape}"
            return replace(rule, source=source.replace(part, "attn.qkv."), shape=shape, op=third(k))
    return replace(rule, source=source)


def third(k: int) -> Callable[[ProjectorFacts], Op]:
    """The op that cuts queries (0), keys (1) or values (2) out of all."""
    return lambda facts: Part(k * facts.size("embd"), (k + 1) * facts.size("embd"))


def tiles(name: str) -> Callable[[ProjectorFacts], int | None]:
    """How many parts an image is cut into, at least or at most, if the config says so."""
    return lambda facts: facts.text.integer(name) or None


def chat_check(facts: ProjectorFacts) -> str | None:
    """As `check`, in the words of this layout."""
    for key, wanted in (("select_layer", -1), ("ps_version", "v2")):
        if (found := facts.text.first(key)) is not None and found != wanted:
            return f"{key} is {found!r:.40}, but llama.cpp assumes {wanted!r}"
    return check(facts)


CHAT = replace(
    INTERNVL,
    prefixes=("vision_model.", "mlp1."),
    tensors=tuple(map(in_chat_layout, INTERNVL.tensors)),
    keys=(
        *INTERNVL.keys,
        ProjectorKey(V.PREPROC_MIN_TILES, u32, tiles("min_dynamic_patch")),
        ProjectorKey(V.PREPROC_MAX_TILES, u32, tiles("max_dynamic_patch")),
    ),
    harmless=INTERNVL.harmless | {"drop_path_rate", "initializer_factor", "use_flash_attn", "use_bfloat16", "auto_map"},
    defaults={"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False},
    check=chat_check,
)
RECORDS = (
    Projector(
        ("InternVLForConditionalGeneration",), "InternVL 3, InternVL 3.5", VisionProjectorType.INTERNVL, (INTERNVL,)
    ),
    Projector(("InternVLChatModel",), "InternVL 2 to 3.5", VisionProjectorType.INTERNVL, (CHAT,)),
)
