"""Baichuan and Baichuan 2 of 7B: Llama with queries, keys and values behind each other in one matrix."""

from collections.abc import Callable
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import string
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Fused, Rope, TensorRule
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    INVERSE_FREQUENCIES,
    NORMS,
    OUTPUT_OR_EMBEDDING,
    SILU,
    SIZES,
    T,
    constant,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op, Part, RopePermute
from ggufsmith.convert.reorder import Chain
from ggufsmith.convert.scale import UnitRows

ROTATING = 32  # blocks: llama.cpp knows by their number that a model has a rotary embedding


def third(k: int) -> Callable[[Dims], Op]:
    """The op that cuts queries (0), keys (1) or values (2) out of the matrix of all three."""

    def cut(dims: Dims) -> Op:
        own = Part(k * dims.q, (k + 1) * dims.q)
        return own if k == 2 else Chain(own, RopePermute(dims.heads))

    return cut


def unit_rows(dims: Dims) -> Op:
    """The op of Baichuan 2's head, whose rows its own class divides by their lengths before it uses them."""
    return UnitRows()


def of_7b(config: Config, dims: Dims) -> str | None:
    """A sentence for the models of 13B, whose attention has linear biases: nothing here says what they compute."""
    return None if dims.blocks == ROTATING else f"only models of 7B are supported, with {ROTATING} blocks"


BAICHUAN = Architecture(
    MODEL_ARCH.BAICHUAN,
    ("BaiChuanForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        *(replace(rule, bias=False) for rule in (*ATTENTION, *FEED_FORWARD)),
    ),
    keys=(
        *SIZES,
        ConfigKey(Keys.Rope.DIMENSION_COUNT, of=lambda d: d.head_dim),
        ConfigKey(Keys.LLM.TENSOR_DATA_LAYOUT, string, computed=constant("Meta AI original pth")),
    ),
    rope=Rope(scaling=()),
    fused=(Fused("self_attn.W_pack", "qkv embd", tuple((ATTENTION[k].tensor, third(k)) for k in range(3))),),
    require=SILU,
    drop=INVERSE_FREQUENCIES,
    check=of_7b,
    models="Baichuan 7B",
    aliases={"model_max_length": "max_position_embeddings"},
    head_rows=0,
)
BAICHUAN2 = replace(
    BAICHUAN,
    classes=("BaichuanForCausalLM",),
    tensors=(
        *BAICHUAN.tensors[:2],
        TensorRule(T.OUTPUT, "vocab embd", unit_rows),
        *BAICHUAN.tensors[3:],
    ),
    models="Baichuan 2 7B",
)

RECORDS = (BAICHUAN, BAICHUAN2)
