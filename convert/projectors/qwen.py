"""The encoders of Qwen-VL, whose patches are merged two by two, and of Qwen3-VL, which also feeds earlier layers."""

import math
from collections.abc import Iterable

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import booleans, string, u32
from ggufsmith.convert.ops import Part
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    USE_SILU,
    VISION_KEYS,
    V,
    epsilon,
    layers,
    number,
    positive,
    rope_base,
    text_size,
)
from ggufsmith.convert.projectors.ops import Slice
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

DEEPSTACK = "deepstack_visual_indexes"
FULL_BLOCKS = "fullatt_block_indexes"
MERGE = ProjectorKey(V.SPATIAL_MERGE_SIZE, u32, lambda facts: facts.size("merge"))


def frames() -> tuple[ProjectorRule, ...]:
    """The convolution over two frames, as one for each."""
    return tuple(
        ProjectorRule(
            f"v.patch_embd.weight{end}",
            "visual.patch_embed.proj.weight",
            "embd 3 2 patch patch",
            op=lambda facts, index=index: Slice(2, index),  # type: ignore[misc]
            types=CONVOLUTION,
        )
        for index, end in enumerate(("", ".1"))
    )


def split_attention() -> tuple[ProjectorRule, ...]:
    """Queries, keys and values out of one matrix, and its bias."""
    return tuple(
        ProjectorRule(
            f"v.blk.{{}}.attn_{name}.{end}",
            f"visual.blocks.{{}}.attn.qkv.{end}",
            shape,
            op=lambda facts, k=k: Part(k * facts.size("embd"), (k + 1) * facts.size("embd")),  # type: ignore[misc]
        )
        for k, name in enumerate("qkv")
        for end, shape in (("weight", "3*embd embd"), ("bias", "3*embd"))
    )


def same_width(facts: ProjectorFacts) -> str | None:
    """A sentence if the merger does not make embeddings of the text model, or the rotary embedding has another base."""
    out, text = facts.size("out"), facts.size("text")
    if out != text:
        return f"the embeddings of the encoder have {out} numbers, those of the text model {text}"
    return other_base(facts)


def other_base(facts: ProjectorFacts) -> str | None:
    """A sentence if the rotary embedding has another base than llama.cpp's graph."""
    base = rope_base(facts)
    return None if base in (None, 10000) else f"rope_theta is {base!r:.40}, but llama.cpp assumes 10000"


# -- Qwen2-VL and Qwen2.5-VL ------------------------------------------------------------------------------------------


def full_attention_period(facts: ProjectorFacts) -> int:
    """After how many blocks one attends to the whole image. Malformed if they do not stand at equal distances."""
    found = facts.config.items_of(FULL_BLOCKS, int)
    period = found[0] + 1 if found else 0
    if (
        not found
        or not 0 < period <= facts.size("blocks")
        or found != list(range(period - 1, period * len(found), period))
    ):
        raise Malformed(f"{FULL_BLOCKS} must be blocks at equal distances, not {found!r:.80}", where=facts.config.path)
    return period


MERGER = (
    *biased("mm.0", "visual.merger.mlp.0", "merge*merge*embd merge*merge*embd"),
    *biased("mm.2", "visual.merger.mlp.2", "out merge*merge*embd"),
)
ATTENTION_OUT = layers("visual.blocks.{}", ("attn_out", "attn.proj", "embd embd"))
TWO = {"temporal_patch_size": (2,), "spatial_merge_size": (2,)}
QWEN2 = {
    "defaults": {"spatial_merge_size": 2, "temporal_patch_size": 2, "patch_size": 14},
    "harmless": HARMLESS,
    "check": same_width,
}
COMMON = {
    "text": text_size,
    "image": number("image_size", default=560),  # as in the reference; images may have any size
    "patch": number("patch_size"),
    "merge": number("spatial_merge_size"),
    "blocks": number("depth"),
    "heads": number("num_heads"),
}
QWEN2VL = EncoderRecord(
    "vision",
    "vision_config",
    ("visual.",),
    sizes={
        **COMMON,
        "embd": number("embed_dim"),
        "out": number("hidden_size"),
        "ff": number("hidden_size"),  # what llama.cpp's converter writes, and nobody reads
        "hidden": lambda facts: math.floor(facts.size("embd") * (facts.config.number("mlp_ratio", default=4) or 4)),
    },
    tensors=(
        *frames(),
        *split_attention(),
        *ATTENTION_OUT,
        *layers(
            "visual.blocks.{}",
            ("ln1", "norm1", "embd"),
            ("ln2", "norm2", "embd"),
            ("ffn_up", "mlp.fc1", "hidden embd"),
            ("ffn_down", "mlp.fc2", "embd hidden"),
        ),
        *biased("v.post_ln", "visual.merger.ln_q", "embd"),
        *MERGER,
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.QWEN2VL)),
        epsilon(fixed(1e-6)),
    ),
    require={**TWO, "hidden_act": ("quick_gelu",)},
    **QWEN2,  # type: ignore[arg-type]
)
QWEN25VL = EncoderRecord(
    "vision",
    "vision_config",
    ("visual.",),
    sizes={
        **COMMON,
        "embd": number("hidden_size"),
        "ff": number("intermediate_size"),
        "out": number("out_hidden_size"),
    },
    tensors=(
        *frames(),
        *split_attention(),
        *ATTENTION_OUT,
        *weight("v.blk.{}.ln1", "visual.blocks.{}.norm1", "embd"),
        *weight("v.blk.{}.ln2", "visual.blocks.{}.norm2", "embd"),
        *layers(
            "visual.blocks.{}",
            ("ffn_gate", "mlp.gate_proj", "ff embd"),
            ("ffn_up", "mlp.up_proj", "ff embd"),
            ("ffn_down", "mlp.down_proj", "embd ff"),
        ),
        *weight("v.post_ln", "visual.merger.ln_q", "embd"),
        *MERGER,
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.QWEN25VL)),
        USE_SILU,
        ProjectorKey(V.N_WA_PATTERN, u32, full_attention_period),
        epsilon(fixed(1e-6)),
    ),
    require={**TWO, "hidden_act": ("silu",), "window_size": (112,)},
    **QWEN2,  # type: ignore[arg-type]
)

# -- Qwen3-VL and later -----------------------------------------------------------------------------------------------


def deepstack_layers(facts: ProjectorFacts) -> list[int]:
    """The blocks whose output also reaches a layer of the text model. Malformed for a block that there is not."""
    found = facts.config.items_of(DEEPSTACK, int)
    if not all(0 <= layer < facts.size("blocks") for layer in found) or len(set(found)) < len(found):
        raise Malformed(
            f"{DEEPSTACK} names blocks that there are not, or one twice: {found!r:.80}", where=facts.config.path
        )
    return found


def deepstack_copies(facts: ProjectorFacts) -> Iterable[tuple[int, int]]:
    """The number of each merger, and that of its block."""
    return enumerate(deepstack_layers(facts))


def image_size(facts: ProjectorFacts) -> int:
    """The side of the square image that has as many patches as there are learned positions."""
    side = math.isqrt(facts.size("positions")) * facts.size("patch")
    return positive(facts.config.integer("image_size", default=side), "image_size", facts)


def qwen3_check(facts: ProjectorFacts) -> str | None:
    """As `same_width`; and positions must make a square."""
    if math.isqrt(facts.size("positions")) ** 2 != facts.size("positions"):
        return f"num_position_embeddings is {facts.size('positions')}, which is not a square"
    return same_width(facts)


QWEN3VL = EncoderRecord(
    "vision",
    "vision_config",
    ("visual.",),
    sizes={
        **{name: size for name, size in COMMON.items() if name != "image"},
        "embd": number("hidden_size"),
        "ff": number("intermediate_size"),
        "out": number("out_hidden_size"),
        "positions": number("num_position_embeddings"),
        "image": image_size,
    },
    tensors=(
        *frames(),
        ProjectorRule("v.patch_embd.bias", "visual.patch_embed.proj.bias", "embd"),
        *weight("v.position_embd", "visual.pos_embed", "positions embd", types=SINGLE),
        *ATTENTION_OUT,
        *layers(
            "visual.blocks.{}",
            ("attn_qkv", "attn.qkv", "3*embd embd"),
            ("ln1", "norm1", "embd"),
            ("ln2", "norm2", "embd"),
            ("ffn_up", "mlp.linear_fc1", "ff embd"),
            ("ffn_down", "mlp.linear_fc2", "embd ff"),
        ),
        *(
            rule
            for name, end, shape in (
                ("norm", "norm", "merge*merge*embd"),
                ("fc1", "linear_fc1", "merge*merge*embd merge*merge*embd"),
                ("fc2", "linear_fc2", "out merge*merge*embd"),
            )
            for rule in biased(
                f"v.deepstack.{{}}.{name}", f"visual.deepstack_merger_list.{{}}.{end}", shape, copies=deepstack_copies
            )
        ),
        *biased("v.post_ln", "visual.merger.norm", "embd"),
        *biased("mm.0", "visual.merger.linear_fc1", "merge*merge*embd merge*merge*embd"),
        *biased("mm.2", "visual.merger.linear_fc2", "out merge*merge*embd"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.QWEN3VL)),
        USE_GELU,
        MERGE,
        epsilon(fixed(1e-6)),
        ProjectorKey(
            V.IS_DEEPSTACK_LAYERS,
            booleans,
            lambda facts: [block in deepstack_layers(facts) for block in range(facts.size("blocks"))],
        ),
    ),
    require={**TWO, "hidden_act": ("gelu_pytorch_tanh",)},
    defaults={"spatial_merge_size": 2, "temporal_patch_size": 2, "patch_size": 16, "num_position_embeddings": 2304},
    harmless=HARMLESS,
    check=qwen3_check,
)

RECORDS = (
    Projector(("Qwen2VLForConditionalGeneration",), "Qwen2-VL", VisionProjectorType.QWEN2VL, (QWEN2VL,)),
    Projector(("Qwen2_5_VLForConditionalGeneration",), "Qwen2.5-VL", VisionProjectorType.QWEN25VL, (QWEN25VL,)),
    Projector(
        (
            "Qwen3VLForConditionalGeneration",
            "Qwen3VLMoeForConditionalGeneration",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForConditionalGeneration",
            "Qwen4ExpForConditionalGeneration",
        ),
        "Qwen3-VL, Qwen3.5, Qwen3.6, Qwen3.8-Flash-Next",
        VisionProjectorType.QWEN3VL,
        (QWEN3VL,),
    ),
)
