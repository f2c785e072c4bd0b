"""Muse Glimmer: sliding windows that rotate, full attention that does not, gates behind attention, norms of the heads.

Queries are scaled behind their norm, which has no weights; llama.cpp wants the scale as the weights of that norm.

Source: llama.cpp's src/models/muse-glimmer.cpp and conversion/muse_glimmer.py.
"""

from collections.abc import Callable
from dataclasses import replace

from gguf.constants import Keys

from ggufsmith.container.values import booleans, f32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule
from ggufsmith.convert.architectures.dense import LLAMA_ATTENTION
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    FEED_FORWARD,
    HEAD_NORMS,
    HEAD_SIZE,
    OUTPUT_OR_EMBEDDING,
    SIZES,
    VISION_TOWER,
    WINDOW,
    T,
    add_one,
)
from ggufsmith.convert.architectures.windows import one_base, thetas
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch
from ggufsmith.convert.ops import Constant, Op


def narrow(config: Config, dims: Dims) -> list[bool]:
    """Which blocks have a window; of a silent config all but every fourth, counted from the last one back."""
    given = config.items_of("layer_types", str, dims.blocks)
    return [kind == "sliding_attention" for kind in given] or [
        (dims.blocks - 1 - block) % 4 != 0 for block in range(dims.blocks)
    ]


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    rotated = [theta > 0 for theta in thetas(config, dims)]
    if rotated and rotated != narrow(config, dims):
        return "llama.cpp rotates in the blocks that have a window, and in no others, but layer_rope_theta says another"
    return one_base(config, dims)


def ones(factor: str | None) -> Callable[[Dims], Op]:
    """The op of a norm that no checkpoint has, whose weights are all this factor; 1 if there is none."""
    return lambda dims: Constant((dims.factors[factor] if factor else 1.0,) * dims.head_dim)


MUSE_GLIMMER = Architecture(
    NewArch.MUSE_GLIMMER,
    ("MuseGlimmerForConditionalGeneration",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *(
            TensorRule(tensor, "embd", add_one)
            for tensor in (T.ATTN_NORM, T.ATTN_POST_NORM, T.FFN_PRE_NORM, T.FFN_POST_NORM)
        ),
        *(replace(rule, bias=False) for rule in (*LLAMA_ATTENTION, *FEED_FORWARD)),
        TensorRule(T.ATTN_GATE, "q embd"),
        replace(HEAD_NORMS[0], made=ones("qk_scale_factor")),
        replace(HEAD_NORMS[1], made=ones(None)),
    ),
    keys=(
        *SIZES,
        *HEAD_SIZE,
        WINDOW,
        ConfigKey(Keys.Attention.SLIDING_WINDOW_PATTERN, booleans, computed=narrow),
        ConfigKey(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, f32, ("final_logit_softcapping",)),
        ConfigKey(Keys.LLM.LOGIT_SCALE, f32, ("output_multiplier",)),
    ),
    models="Muse Glimmer (text)",
    rope=Rope(scaling=()),
    require={"hidden_activation": ("silu",), "attention_bias": (False,), "post_norm_eps": (1e-8,)},
    defaults={
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "head_dim": 128,
        "sliding_window": 2048,
        "num_key_value_heads": 2,
        "final_logit_softcapping": 20.0,
        "output_multiplier": 0.19611613513818404,
        "qk_scale_factor": 3.87,
    },
    drop={**VISION_TOWER, **dict.fromkeys(("vision_adapter.", "vision_projection."), VISION_TOWER["vision_tower."])},
    factors={"qk_scale_factor": lambda config: config.number("qk_scale_factor") or 0.0},
    check=problem,
)

RECORDS = (MUSE_GLIMMER,)
