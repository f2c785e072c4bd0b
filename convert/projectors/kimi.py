"""MoonViT, the encoder of Kimi-VL and Kimi-K2.5: learned positions on a grid, and a rotation by height and width.

Kimi-K2.5 rotates pairs of neighbours, by height and by width in turn, llama.cpp the two halves of a head, so that the
rows of its queries and keys are reordered. Source: llama.cpp, conversion/kimivl.py and tools/mtmd/models/kimi*.cpp.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf.constants import Keys, VisionProjectorType
from numpy.typing import NDArray

from ggufsmith.container.values import boolean, string, u32
from ggufsmith.convert.ops import Op, Part
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    VISION_KEYS,
    V,
    config_value,
    epsilon,
    layers,
    number,
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
    sized,
)
from ggufsmith.convert.reorder import Gather, StackJoined

TOWER = "vision_tower"
BLOCK = f"{TOWER}.encoder.blocks.{{}}"
POSITIONS = f"{TOWER}.patch_embed.pos_emb.weight"
FEWEST = 8  # patches of the smallest image, as llama.cpp's converter writes it


@dataclass(frozen=True)
class AxesApart(Gather):
    """Queries and keys of so many heads, whose dimensions turn by height and by width in turn, two by two.

    Of every head, those that turn by the one come first, then those by the other. Values stay.
    """

    heads: int

    def order(self, rows: int) -> NDArray[np.int64]:
        each = rows // 3
        if rows % 3 or each % (4 * self.heads):
            raise ValueError(f"{rows} rows are not queries, keys and values of {self.heads} heads of fours")
        turned = np.arange(each).reshape(self.heads, -1, 2, 2).transpose(0, 2, 1, 3).ravel()
        return np.concatenate([turned, each + turned, np.arange(2 * each, rows)])


def apart(facts: ProjectorFacts) -> Op:
    """The op of queries, keys and values of Kimi-K2.5."""
    return AxesApart(facts.size("heads"))


def third(k: int) -> Callable[[ProjectorFacts], Op]:
    """The op that takes queries (0), keys (1) or values (2)."""
    return lambda facts: Part(k * facts.size("embd"), (k + 1) * facts.size("embd"))


def joined(facts: ProjectorFacts) -> Op:
    """The op of the positions of Kimi-VL."""
    return StackJoined()


def merged(facts: ProjectorFacts) -> int:
    """How many patches of each side become one. Malformed through `check` if the sides differ."""
    found = facts.config.first("merge_kernel_size")
    return found[0] if isinstance(found, list) and found and isinstance(found[0], int) else 2


def check(facts: ProjectorFacts) -> str | None:
    """A sentence if something is not what llama.cpp's graph assumes."""
    if facts.config.first("merge_kernel_size") not in (None, [2, 2]):
        return "llama.cpp merges two by two patches"
    if facts.size("embd") % (4 * facts.size("heads")):
        return "the length of a head must be a multiple of 4"
    return None


def saved(name: str, usual: int) -> Callable[[ProjectorFacts], int]:
    """A size that is called so, with "init_" in front where the model is published."""
    return number(f"init_{name}", name, default=usual)


COMMON = {
    "text": text_size,
    "patch": number("patch_size", default=14),
    "embd": number("vt_hidden_size", "hidden_size"),
    "ff": number("vt_intermediate_size", "intermediate_size"),
    "blocks": number("vt_num_hidden_layers", "num_hidden_layers"),
    "heads": number("vt_num_attention_heads", "num_attention_heads"),
    "height": saved("pos_emb_height", 64),
    "width": saved("pos_emb_width", 64),
    "merge": merged,
}
BLOCKS = (
    *biased("v.patch_embd", f"{TOWER}.patch_embed.proj", "embd 3 patch patch", types=CONVOLUTION),
    *layers(
        BLOCK,
        ("ln1", "norm0", "embd"),
        ("ln2", "norm1", "embd"),
        ("attn_out", "wo", "embd embd"),
        ("ffn_up", "mlp.fc0", "ff embd"),
        ("ffn_down", "mlp.fc1", "embd ff"),
    ),
    *biased("v.post_ln", f"{TOWER}.encoder.final_layernorm", "embd"),
)
SEEN = frozenset(
    """
    mm_hidden_size mm_projector_type text_hidden_size pos_emb_type merge_type video_attn_type _attn_implementation
    init_pos_emb_time pos_emb_time merge_kernel_size hidden_act
    """.split()
)


def projected(before: str, one: str, two: str) -> tuple[ProjectorRule, ...]:
    """The layers behind the encoder."""
    return (
        *biased("mm.input_norm", f"{before}.pre_norm", "embd"),
        *biased("mm.1", f"{before}.{one}", "merge*merge*embd merge*merge*embd"),
        *biased("mm.2", f"{before}.{two}", "text merge*merge*embd"),
    )


def norm_epsilon(facts: ProjectorFacts) -> float | None:
    """What the norm behind the encoder adds; transformers 5 saves it outside of the section."""
    usual = facts.text.number("projection_layer_norm_eps", default=1e-5)
    return facts.config.number("projector_ln_eps", default=usual)


def pixels(count: Callable[[ProjectorFacts], int]) -> Callable[[ProjectorFacts], int]:
    """So many patches in pixels."""
    return lambda facts: count(facts) * facts.size("patch") ** 2


def most(facts: ProjectorFacts) -> int:
    """Patches of the largest image."""
    return facts.processor.integer("in_patch_limit", default=16384) or 16384


KIMI_VL = EncoderRecord(
    "vision",
    "vision_config",
    (f"{TOWER}.", "multi_modal_projector."),
    sizes={**COMMON, "image": lambda facts: 64 * 14},
    tensors=(
        *BLOCKS,
        ProjectorRule("v.position_embd.weight", POSITIONS, "height width embd", joined, types=SINGLE),
        *(
            rule
            for k, name in enumerate(("attn_q", "attn_k", "attn_v"))
            for rule in biased(f"v.blk.{{}}.{name}", f"{BLOCK}.wqkv", "3*embd embd", op=third(k))
        ),
        *projected("multi_modal_projector", "linear_1", "linear_2"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.KIMIVL)),
        USE_GELU,
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, sized("merge")),
        epsilon(config_value("layer_norm_eps", 1e-5)),
    ),
    harmless=HARMLESS | SEEN,
    check=check,
)
KIMI_K25 = EncoderRecord(
    "vision",
    "vision_config",
    (f"{TOWER}.", "mm_projector."),
    sizes={**COMMON, "image": lambda facts: facts.size("height*patch")},
    tensors=(
        *BLOCKS,
        ProjectorRule("v.position_embd.weight", POSITIONS, "height width embd", types=SINGLE),
        *biased("v.blk.{}.attn_qkv", f"{BLOCK}.wqkv", "3*embd embd", op=apart),
        *projected("mm_projector", "proj.0", "proj.2"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.KIMIK25)),
        ProjectorKey("vision.pos_emb_height", u32, sized("height")),
        ProjectorKey("vision.pos_emb_width", u32, sized("width")),
        ProjectorKey("vision.pos_emb_time", u32, saved("pos_emb_time", 4)),
        ProjectorKey(V.USE_GELU, boolean, fixed(True)),
        epsilon(norm_epsilon),
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, sized("merge")),
        ProjectorKey(V.IMAGE_MIN_PIXELS, u32, pixels(lambda facts: FEWEST)),
        ProjectorKey(V.IMAGE_MAX_PIXELS, u32, pixels(most)),
    ),
    require={"projector_hidden_act": ("gelu",)},
    harmless=HARMLESS | SEEN,
    check=check,
)
RECORDS = (
    Projector(("KimiVLForConditionalGeneration",), "Kimi-VL", VisionProjectorType.KIMIVL, (KIMI_VL,)),
    Projector(
        ("Kimi_K25ForConditionalGeneration", "KimiK25ForConditionalGeneration"),
        "Kimi-K2.5",
        VisionProjectorType.KIMIK25,
        (KIMI_K25,),
        renamed={f"{TOWER}.encoder.patch_embed.": f"{TOWER}.patch_embed."},  # as transformers 5.24 saves it
    ),
)
