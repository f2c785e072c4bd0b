"""BitNet b1.58 with SiLU: weights that become ternary when they are used, and norms inside attention and feed-forward.

The one that Microsoft published (2B4T) has a squared ReLU instead, for which llama.cpp has no graph.
"""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import f32, string
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    INVERSE_FREQUENCIES,
    NORMS,
    SIZES,
    STATED_HEAD_SIZE,
    T,
    constant,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op
from ggufsmith.convert.scale import RoundedToTernary


def ternary(dims: Dims) -> Op:
    """The op of matrices inside blocks."""
    return RoundedToTernary()


def silu(config: Config, dims: Dims) -> str | None:
    """A sentence about another activation; the class of transformers has a squared ReLU where the config is silent."""
    usual = "relu2" if "BitNetForCausalLM" in (config.first("architectures") or ()) else "silu"
    found = config.first("hidden_act") or usual
    return None if found == "silu" else f"hidden_act is {found!r:.40}, but llama.cpp computes SiLU for every BitNet"


BITNET = Architecture(
    MODEL_ARCH.BITNET,
    ("BitnetForCausalLM", "BitNetForCausalLM"),
    tensors=(
        *EMBEDDINGS[:2],
        *NORMS,
        TensorRule(T.ATTN_SUB_NORM, "q"),
        TensorRule(T.FFN_SUB_NORM, "ff"),
        *(replace(rule, op=ternary, bias=False) for rule in (*ATTENTION, *FEED_FORWARD)),
    ),
    keys=(
        *SIZES,
        *STATED_HEAD_SIZE,
        ConfigKey(Keys.Rope.SCALING_TYPE, string, computed=constant("linear")),
        ConfigKey(Keys.Rope.SCALING_FACTOR, f32, computed=constant(1.0)),
    ),
    rope=Rope(scaling=()),
    require={"attention_bias": (False,), "weight_bits": (1,), "quantization_config": ()},
    drop=INVERSE_FREQUENCIES,
    tied={"lm_head.weight": T.TOKEN_EMBD},
    check=silu,
    models="BitNet b1.58 of 1bitLLM",
)

RECORDS = (BITNET,)
