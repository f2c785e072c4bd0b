"""Bamba: Granite's hybrid graph without its scales, and with a rotary embedding of half of every head.

Source: llama.cpp's src/models/granite-hybrid.cpp.
"""

from dataclasses import replace

from gguf.constants import Keys

from ggufsmith.container.values import boolean
from ggufsmith.convert.architecture import ConfigKey, Dims, Rope
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    NORMS,
    ROTARY,
    SILU,
    SIZES,
    VOCAB_SIZE,
    constant,
    without,
)
from ggufsmith.convert.architectures.hybrid import (
    GRANITE_HYBRID_DENSE,
    HEADS_OF_BLOCKS,
    MAMBA2_SIZES,
    MAMBA_LAYOUT,
    on,
    twice,
)
from ggufsmith.convert.architectures.state_space import MAMBA2_KEYS, SSM_NAMES, mamba2_tensors
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import RopePermute


def kinds(config: Config, blocks: int) -> list[str]:
    """full for the blocks that are listed, mamba for the others."""
    listed = config.items_of("attn_layer_indices", int)
    return ["full" if block in listed else "mamba" for block in range(blocks)]


def unlike(config: Config, dims: Dims) -> str | None:
    """What transformers or llama.cpp does otherwise than the config says."""
    stated = config.integer("attn_rotary_emb", default=dims.rotary)
    if stated != dims.rotary:
        return f"attn_rotary_emb is {stated}, but {dims.rotary} numbers of a head rotate"
    return twice(config, dims)


BAMBA = replace(
    GRANITE_HYBRID_DENSE,
    classes=("BambaForCausalLM",),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *on("full", ATTENTION[:1], op=lambda dims: RopePermute(dims.heads, rotary=dims.rotary)),
        *on("full", ATTENTION[1:2], op=lambda dims: RopePermute(dims.kv_heads, rotary=dims.rotary)),
        *on("full", ATTENTION[2:]),
        *mamba2_tensors("mamba"),
        *FEED_FORWARD,
    ),
    keys=(
        *without(SIZES, Keys.Attention.HEAD_COUNT_KV),
        *(VOCAB_SIZE, ROTARY, HEADS_OF_BLOCKS, *MAMBA2_KEYS),
        ConfigKey(Keys.Rope.SCALING_FINETUNED, boolean, computed=constant(True)),
    ),
    models="Bamba",
    rope=Rope(partial=0.5),
    fused=SSM_NAMES,
    require={**SILU, **MAMBA_LAYOUT, "partial_rotary_factor": (0.5,)},
    defaults={"max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "num_key_value_heads": 8},
    sizes=MAMBA2_SIZES,
    kinds=kinds,
    check=unlike,
)

RECORDS = (BAMBA,)
