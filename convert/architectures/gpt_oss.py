"""gpt-oss: experts with gate and up in turn, row by row; sinks of the attention; a window in every second block."""

from collections.abc import Callable
from dataclasses import replace

from gguf.constants import MODEL_ARCH

from ggufsmith.convert.architecture import Architecture, Dims, Fused, Rope, TensorRule, copy
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    EXPERT_COUNTS,
    EXPERT_LENGTH,
    EXPERTS,
    HEAD_SIZE,
    OUTPUT_OR_EMBEDDING,
    SIZES,
    WINDOW,
    T,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op
from ggufsmith.convert.reorder import Strided, StridedColumns, Turn


def every_second(begin: int, turned: bool) -> Callable[[Dims], Op]:
    """The op that takes every second row; the 16-bit checkpoints have them as columns."""
    return lambda dims: Turn(begin, 2) if turned else Strided(begin, 2)


def turn(dims: Dims) -> Op:
    """The op of matrices that are stored with their columns as rows."""
    return Turn()


def window_check(config: Config, dims: Dims) -> str | None:
    """A sentence if the blocks with a window are not those that llama.cpp takes."""
    given = config.items_of("layer_types", str, dims.blocks)
    usual = ["full_attention" if block % 2 else "sliding_attention" for block in range(dims.blocks)]
    return None if given in ([], usual) else "layer_types is not every second layer, as llama.cpp assumes"


GATE_UP, DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"
GPT_OSS = Architecture(
    MODEL_ARCH.GPT_OSS,
    ("GptOssForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        TensorRule(T.ATTN_NORM, "embd"),
        TensorRule(T.ATTN_POST_NORM, "embd"),
        *ATTENTION,
        TensorRule(T.ATTN_SINKS, "heads"),
        replace(EXPERTS[0], bias=True),
        *(replace(rule, bias=True) for rule in EXPERTS[1:]),
    ),
    keys=(*SIZES, *HEAD_SIZE, *EXPERT_COUNTS, *EXPERT_LENGTH, WINDOW),
    models="gpt-oss",
    rope=Rope(theta=150000.0, scaling=("yarn",)),
    fused=(
        # The names in MXFP4 end in .weight here, and their rows are the outputs; in 16 bits their rows are the inputs.
        Fused(
            f"{GATE_UP}.weight",
            "experts expert_gate_up embd",
            ((T.FFN_GATE_EXP, every_second(0, turned=False)), (T.FFN_UP_EXP, every_second(1, turned=False))),
        ),
        Fused(f"{DOWN}.weight", "experts embd expert_ff", ((T.FFN_DOWN_EXP, copy),)),
        Fused(
            GATE_UP,
            "experts embd expert_gate_up",
            ((T.FFN_GATE_EXP, every_second(0, turned=True)), (T.FFN_UP_EXP, every_second(1, turned=True))),
        ),
        Fused(DOWN, "experts expert_ff embd", ((T.FFN_DOWN_EXP, turn),)),
        Fused(
            f"{GATE_UP}_bias",
            "experts expert_gate_up",
            (
                (T.FFN_GATE_EXP, lambda dims: StridedColumns(0, 2)),
                (T.FFN_UP_EXP, lambda dims: StridedColumns(1, 2)),
            ),
            "bias",
        ),
        Fused(f"{DOWN}_bias", "experts embd", ((T.FFN_DOWN_EXP, copy),), "bias"),
    ),
    require={"hidden_act": ("silu",), "swiglu_alpha": (1.702,), "swiglu_limit": (7.0,)},
    defaults={
        "max_position_embeddings": 131072,
        "head_dim": 64,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "num_experts_per_tok": 4,
    },
    check=window_check,
)

RECORDS = (GPT_OSS,)
