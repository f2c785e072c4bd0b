"""Chameleon: Llama with norms of every head's queries and keys, and pictures as tokens, of which llama.cpp writes none.

Source: llama.cpp's src/models/chameleon.cpp and conversion/chameleon.py.
"""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, MODEL_TENSOR, Keys

from ggufsmith.container.values import boolean
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, TensorRule
from ggufsmith.convert.architectures.dense import LLAMA_ATTENTION
from ggufsmith.convert.architectures.groups import EMBEDDINGS, FEED_FORWARD, NORMS, SILU, SIZES, VISION_TOWER, T
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op
from ggufsmith.convert.reorder import RegroupColumns

PICTURES = (4, 8196)  # the tokens that llama.cpp leaves out of its predictions


def pairs(dims: Dims) -> Op:
    """The op of the norms of heads, whose numbers lie as those of queries and keys do: halves become pairs."""
    return RegroupColumns(2, dims.head_dim // 2, 1)


def head_norms(tensor: MODEL_TENSOR, heads: str) -> tuple[TensorRule, ...]:
    """Weights and biases for each head."""
    rule = TensorRule(tensor, f"{heads} head_dim", pairs)
    return rule, replace(rule, part="bias")


def problem(config: Config, dims: Dims) -> str | None:
    """What llama.cpp's graph does otherwise than the config says."""
    config.first("vq_config", "model_parallel_size", "image_token_id")
    listed = config.mapping("vocabulary_map")
    tokens = {str(token) for name, token in listed.items() if name.startswith("IMGIMG")}
    if tokens and tokens != {str(token) for token in range(*PICTURES)}:
        return f"llama.cpp assumes that the tokens of pictures are those from {PICTURES[0]} to {PICTURES[1] - 1}"
    if dims.vocab < PICTURES[1]:
        return f"llama.cpp assumes a vocabulary of at least {PICTURES[1]} tokens"
    return None


CHAMELEON = Architecture(
    MODEL_ARCH.CHAMELEON,
    ("ChameleonForConditionalGeneration", "ChameleonForCausalLM"),
    tensors=(
        *EMBEDDINGS,
        *NORMS,
        *(replace(rule, bias=False) for rule in (*LLAMA_ATTENTION, *FEED_FORWARD)),
        *head_norms(T.ATTN_Q_NORM, "heads"),
        *head_norms(T.ATTN_K_NORM, "kv_heads"),
    ),
    keys=(
        *SIZES,
        ConfigKey(Keys.LLM.SWIN_NORM, boolean, ("swin_norm",), computed=lambda c, d: bool(c.first("swin_norm"))),
    ),
    models="Chameleon (text)",
    require={**SILU, "attention_bias": (False,), "mlp_bias": (False,)},
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    drop={"vqmodel.": VISION_TOWER["vision_tower."]},
    check=problem,
)

RECORDS = (CHAMELEON,)
