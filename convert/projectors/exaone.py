"""The encoder of EXAONE 4.5: that of Qwen2.5-VL, whose keys and values have fewer heads, and all matrices biases.

Source: llama.cpp's conversion/exaone.py and tools/mtmd/models/exaone4_5.cpp.
"""

from gguf.constants import Keys

from ggufsmith.container.values import string, u32
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_SILU,
    VISION_KEYS,
    V,
    config_value,
    epsilon,
    layers,
    limit,
    number,
)
from ggufsmith.convert.projectors.qwen import (
    COMMON,
    FULL_BLOCKS,
    MERGER,
    TWO,
    frames,
    full_attention_period,
    same_width,
)
from ggufsmith.convert.projectors.record import (
    EncoderRecord,
    Projector,
    ProjectorFacts,
    ProjectorKey,
    fixed,
    sized,
    weight,
)

TYPE = "exaone4_5"
BLOCK = "visual.blocks.{}"


def qkv(facts: ProjectorFacts) -> int:
    """Rows of queries, keys and values."""
    return facts.size("embd") // facts.size("heads") * (facts.size("heads") + 2 * facts.size("kv_heads"))


def period(facts: ProjectorFacts) -> int | None:
    """After how many blocks one attends to the whole image; None where all do."""
    return full_attention_period(facts) if facts.config.first(FULL_BLOCKS) else None


def check(facts: ProjectorFacts) -> str | None:
    """A sentence if something is not what llama.cpp's graph assumes."""
    if facts.size("heads") % facts.size("kv_heads") or facts.size("embd") % facts.size("heads"):
        return f"{facts.size('heads')} heads cannot be divided among {facts.size('kv_heads')}, or do not fill a row"
    return same_width(facts)


EXAONE4_5 = EncoderRecord(
    "vision",
    "vision_config",
    ("visual.",),
    sizes={
        **COMMON,
        "embd": number("hidden_size"),
        "ff": number("intermediate_size"),
        "out": number("out_hidden_size"),
        "kv_heads": number("num_key_value_heads"),
        "qkv": qkv,
    },
    tensors=(
        *frames(),
        *weight("v.blk.{}.ln1", f"{BLOCK}.norm1", "embd"),
        *weight("v.blk.{}.ln2", f"{BLOCK}.norm2", "embd"),
        *layers(
            BLOCK,
            ("attn_qkv", "attn.qkv", "qkv embd"),
            ("attn_out", "attn.proj", "embd embd"),
            ("ffn_gate", "mlp.gate_proj", "ff embd"),
            ("ffn_up", "mlp.up_proj", "ff embd"),
            ("ffn_down", "mlp.down_proj", "embd ff"),
        ),
        *weight("v.post_ln", "visual.merger.ln_q", "embd"),
        *MERGER,
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(TYPE)),
        USE_SILU,
        ProjectorKey(V.IMAGE_MIN_PIXELS, u32, limit("min_pixels", "shortest_edge", 56 * 56)),
        ProjectorKey(V.IMAGE_MAX_PIXELS, u32, limit("max_pixels", "longest_edge", 28 * 28 * 1280)),
        ProjectorKey("clip.vision.attention.head_count_kv", u32, sized("kv_heads")),
        epsilon(config_value("rms_norm_eps", 1e-6)),
        ProjectorKey(V.WINDOW_SIZE, u32, number("window_size")),
        ProjectorKey(V.N_WA_PATTERN, u32, period),
    ),
    require={**TWO, "hidden_act": ("silu",), "window_size": (112,)},
    defaults={
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "patch_size": 14,
        "num_key_value_heads": 8,
        "window_size": 112,
    },
    harmless=HARMLESS,
    check=check,
)
EXAONE = Projector(("Exaone4_5_ForConditionalGeneration",), "EXAONE 4.5", TYPE, (EXAONE4_5,))

RECORDS = (EXAONE,)
