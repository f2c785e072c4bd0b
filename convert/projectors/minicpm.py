"""The encoder of MiniCPM-V 4.6: SigLIP, with a merger of two by two patches between its blocks, and one behind them."""

from gguf.constants import Keys

from ggufsmith.container.values import i32s, string, u32
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    VISION_KEYS,
    VISION_SIZES,
    V,
    config_value,
    epsilon,
    number,
    positive,
)
from ggufsmith.convert.projectors.record import (
    EncoderRecord,
    Projector,
    ProjectorFacts,
    ProjectorKey,
    ProjectorRule,
    biased,
    fixed,
)
from ggufsmith.convert.projectors.siglip import BLOCKS, HALF_PATCHES, POSITIONS, RENAMED, TANH

TYPE = "minicpmv4_6"
MERGER = "vision_tower.vit_merger"
GRID = 70  # positions of a side that llama.cpp's graph has built in
MODES = ("4x", "16x")


def mode(facts: ProjectorFacts) -> object:
    """By how much tokens are merged."""
    return facts.processor.first("downsample_mode") or facts.text.first("downsample_mode") or "16x"


def merges_inside(facts: ProjectorFacts) -> bool:
    """Whether patches are merged between the blocks too."""
    return mode(facts) != "4x"


def slice_size(facts: ProjectorFacts) -> int:
    """The side of the squares that images are cut into."""
    usual = facts.config.integer("image_size")
    return positive(facts.processor.integer("scale_resolution", default=usual), "scale_resolution", facts)


def merging_block(facts: ProjectorFacts) -> int:
    """The block behind which patches are merged."""
    inside = facts.config.integer("insert_layer_id", default=6)
    found = facts.text.integer("insert_layer_id", default=inside)
    return inside or 0 if found is None else found


def check(facts: ProjectorFacts) -> str | None:
    """A sentence if something is not what llama.cpp's graph assumes."""
    if mode(facts) not in MODES:
        return f"downsample_mode is {mode(facts)!r:.40}, but llama.cpp knows {' and '.join(MODES)}"
    if facts.size("grid") // facts.size("patch") != GRID:
        return f"llama.cpp assumes {GRID} learned positions for each side"
    if not 0 <= merging_block(facts) < facts.size("blocks"):
        return f"insert_layer_id is {merging_block(facts)}, and there is no such block"
    for key, wanted in (("merge_kernel_size", [2, 2]), ("merger_times", 1), ("drop_vision_last_layer", False)):
        if (found := facts.text.first(key)) is not None and found != wanted:
            return f"{key} is {found!r:.40}, but llama.cpp assumes {wanted!r}"
    return None


def inside(name: str, source: str, shape: str) -> tuple[ProjectorRule, ProjectorRule]:
    """The rules of a matrix of the merger between the blocks, and of its bias."""
    return biased(f"v.vit_merger.{name}", f"{MERGER}.{source}", shape, when=merges_inside)


ENCODER = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_tower.", "merger."),
    sizes={
        **VISION_SIZES,
        "image": slice_size,
        "grid": number("image_size"),
        "positions": lambda facts: (facts.size("grid") // facts.size("patch")) ** 2,
    },
    tensors=(
        *HALF_PATCHES,
        *POSITIONS,
        *BLOCKS,
        *inside("ln1", "layer_norm1", "embd"),
        *inside("attn_q", "self_attn.q_proj", "embd embd"),
        *inside("attn_k", "self_attn.k_proj", "embd embd"),
        *inside("attn_v", "self_attn.v_proj", "embd embd"),
        *inside("attn_out", "self_attn.out_proj", "embd embd"),
        *inside("ds_ln", "pre_norm", "4*embd"),
        *inside("ds_ffn_up", "linear_1", "4*ff 4*embd"),
        *inside("ds_ffn_down", "linear_2", "embd 4*ff"),
        *biased("mm.input_norm", "merger.mlp.0.pre_norm", "4*embd"),
        *biased("mm.up", "merger.mlp.0.linear_1", "4*embd 4*embd"),
        *biased("mm.down", "merger.mlp.0.linear_2", "text 4*embd"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(TYPE)),
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, lambda facts: 4 if merges_inside(facts) else 2),
        ProjectorKey(V.WA_LAYER_INDEXES, i32s, lambda facts: [merging_block(facts)]),
        USE_GELU,
        epsilon(config_value("layer_norm_eps", 1e-6)),
    ),
    require={**TANH, "window_kernel_size": ([2, 2],)},
    harmless=HARMLESS,
    check=check,
)
MINICPM_V = Projector(
    ("MiniCPMV4_6ForConditionalGeneration",),
    "MiniCPM-V 4.6",
    TYPE,
    (ENCODER,),
    renamed=RENAMED,
    drop={"vision_tower.vit_merger.": "the merger between blocks, which is not used where tokens are merged by four"},
)

RECORDS = (MINICPM_V,)
