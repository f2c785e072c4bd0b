"""The encoder of images of Granite Vision 4: SigLIP, and a Q-Former for each layer of the text model that images reach.

Source: llama.cpp, tools/mtmd/models/granite4-vision.cpp; transformers, modeling_granite4_vision.py.
"""

from collections.abc import Callable, Iterable

from gguf.constants import Keys

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import i32s, string, u32
from ggufsmith.convert.architectures.granite_vision import LAYERWISE, SPATIAL, Reached, reached
from ggufsmith.convert.config import Config
from ggufsmith.convert.projectors.granite_speech import Q_FORMER, former_problem
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    VISION_KEYS,
    VISION_SIZES,
    Size,
    V,
    config_value,
    epsilon,
    positive,
)
from ggufsmith.convert.projectors.record import (
    Copies,
    EncoderRecord,
    Projector,
    ProjectorFacts,
    ProjectorKey,
    ProjectorRule,
    biased,
    fixed,
    sized,
)
from ggufsmith.convert.projectors.siglip import BLOCKS, HALF_PATCHES, POSITIONS, RENAMED, TANH, square

TYPE = "granite4_vision"  # this and the keys below are what the gguf package does not have yet
FEATURE_LAYERS, PINPOINTS = "clip.vision.feature_layer", "clip.vision.image_grid_pinpoints"
QUERY_SIDE, WINDOW_SIDE = "clip.vision.projector.query_side", "clip.vision.projector.window_side"
SPATIAL_OFFSETS = "clip.vision.projector.spatial_offsets"
HEAD = 64  # the length of the Q-Formers' heads, whatever their config says
CORNERS = 4  # of every two by two places, of which each spatial projector takes one


def side(index: int) -> Size:
    """How many places each side of a window has: of queries (0), and of what they stand for (1)."""

    def size(facts: ProjectorFacts) -> int:
        parts = str(facts.text.first("downsample_rate")).split("/")
        if len(parts) != 2 or not all(part.isdecimal() and len(part) < 5 for part in parts):
            raise Malformed(f"downsample_rate must be like 4/8, not {'/'.join(parts)!r:.40}", where=facts.config.path)
        return positive(int(parts[index]), "each part of downsample_rate", facts)

    return size


def copies_of(kind: str) -> Copies:
    """(number of its kind, number in the file) of every projector of a kind."""

    def copies(facts: ProjectorFacts) -> Iterable[tuple[int, int]]:
        found = enumerate(reached(facts.text))
        return ((each.number, place) for place, each in found if each.kind == kind)

    return copies


def pinpoints(facts: ProjectorFacts) -> list[int] | None:
    """Width and height of the sizes to which images may be scaled; config.json has them the other way round."""
    sizes = facts.text.items_of("image_grid_pinpoints", list)
    if not all(len(size) == 2 and all(isinstance(each, int) and each > 0 for each in size) for size in sizes):
        raise Malformed(f"image_grid_pinpoints must be pairs of sizes, not {sizes!r:.80}", where=facts.config.path)
    return [each for height, width in sizes for each in (width, height)] or None


def check(facts: ProjectorFacts) -> str | None:
    """A sentence if something is not what llama.cpp's graph assumes."""
    layers = [each.layer for each in reached(facts.text)]
    query, window = facts.size("query"), facts.size("window")
    strategy = facts.text.first("vision_feature_select_strategy")
    if layers[:1] != [0] or len(set(layers)) < len(layers):
        return "llama.cpp assumes that the first layer of the text model is one that images reach, and each only once"
    if strategy not in (None, "full"):
        return f"vision_feature_select_strategy is {strategy!r:.40}, but llama.cpp assumes 'full'"
    if facts.size("image") // facts.size("patch") % window or window % query:
        return "an image is not divided into whole windows, or these are not into whole queries"
    if facts.text.items_of("spatial_target_layers", int, None) and (window != 2 * query or len(layers) < CORNERS):
        return "projectors of corners need windows of two by two places for each query"
    if facts.size("embd") % HEAD:
        return f"hidden_size is not a multiple of {HEAD}, the length of a head"
    return former_problem(facts, "qformer_config", blocks=1)


def projectors(kind: str) -> tuple[ProjectorRule, ...]:
    """The tensors of the projectors of a kind."""
    copies, source = copies_of(kind), f"{kind}.{{}}"
    before = "v.proj_blk.{}"
    return (
        ProjectorRule(f"{before}.img_pos", f"{source}.image_positions", "1 window*window embd", copies=copies),
        ProjectorRule(f"{before}.query", f"{source}.query", "1 query*query embd", copies=copies),
        *biased(f"{before}.norm", f"{source}.norm", "embd", copies=copies),
        *biased(f"{before}.post_norm", f"{source}.qformer.layernorm", "embd", copies=copies),
        *biased(f"{before}.linear", f"{source}.out_linear", "text embd", copies=copies),
        *(
            rule
            for name, end, shape in Q_FORMER
            for rule in biased(f"{before}.{name}", f"{source}.qformer.encoder.layer.0.{end}", shape, copies=copies)
        ),
    )


def of_reached(value: Callable[[Reached], int]) -> Callable[[ProjectorFacts], list[int]]:
    """A number for every projector."""
    return lambda facts: [value(each) for each in reached(facts.text)]


ENCODER = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_tower.", f"{LAYERWISE}.", f"{SPATIAL}.", "image_newline"),
    sizes={
        **VISION_SIZES,
        "positions": square,
        "query": side(0),
        "window": side(1),
        "former_ff": lambda facts: positive(
            Config(facts.text.mapping("qformer_config"), facts.config.path).integer("intermediate_size", default=3072),
            "intermediate_size of qformer_config",
            facts,
        ),
        "joined": lambda facts: facts.size("embd"),
    },
    tensors=(
        *HALF_PATCHES,
        *POSITIONS,
        *BLOCKS,
        ProjectorRule("v.image_newline", "image_newline", "text"),
        *projectors(LAYERWISE),
        *projectors(SPATIAL),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(TYPE)),
        epsilon(config_value("layer_norm_eps", 1e-6)),
        USE_GELU,
        ProjectorKey(V.PREPROC_IMAGE_SIZE, u32, sized("image")),
        ProjectorKey(QUERY_SIDE, u32, sized("query")),
        ProjectorKey(WINDOW_SIDE, u32, sized("window")),
        ProjectorKey(FEATURE_LAYERS, i32s, of_reached(lambda each: each.block)),
        ProjectorKey(SPATIAL_OFFSETS, i32s, of_reached(lambda each: each.number if each.kind == SPATIAL else -1)),
        ProjectorKey(PINPOINTS, i32s, pinpoints),
    ),
    require=TANH,
    harmless=HARMLESS,
    check=check,
)
GRANITE_VISION = Projector(
    ("Granite4VisionForConditionalGeneration",),
    "Granite Vision 4",
    TYPE,
    (ENCODER,),
    renamed=RENAMED,
    drop={"vision_tower.head.": "a head that Granite does not use"},
)

RECORDS = (GRANITE_VISION,)
