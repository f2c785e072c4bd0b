"""Falcon-H1: a state space and attention side by side in every block, and scales that are folded into the weights.

Source: llama.cpp's src/models/falcon-h1.cpp, and conversion/falcon_h1.py, for the order of the products.
"""

from collections.abc import Callable

from gguf.constants import MODEL_ARCH

from ggufsmith.container.errors import Malformed
from ggufsmith.convert.architecture import Architecture, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.groups import (
    EMBEDDINGS,
    HEAD_SIZE,
    NORMS,
    OPTIONAL,
    SILU,
    SIZES,
    VOCAB_SIZE,
    T,
)
from ggufsmith.convert.architectures.hybrid import MAMBA2_SIZES, MAMBA_LAYOUT
from ggufsmith.convert.architectures.state_space import MAMBA2_KEYS, SSM_NAMES, group_rows, mamba2_tensors
from ggufsmith.convert.config import Config, as_number
from ggufsmith.convert.ops import Copy, Op
from ggufsmith.convert.reorder import Chain
from ggufsmith.convert.scale import Multiplied, MultipliedRows


def factor(name: str) -> Callable[[Config], float]:
    """A number of the config; 1 if there is none."""

    def found(config: Config) -> float:
        value = config.number(name, default=1.0)
        return 1.0 if value is None else value

    return found


def factor_in(name: str, k: int, count: int) -> Callable[[Config], float]:
    """A number of a list of so many; 1 if there is none."""

    def found(config: Config) -> float:
        values = config.first(name)
        if values is None:
            return 1.0
        if not isinstance(values, list) or len(values) != count:
            raise Malformed(f"{name} must be a list of {count} numbers, not {values!r:.80}", where=config.path)
        return as_number(values[k], name, config.path)

    return found


WHOLE = ("embedding", "lm_head", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")
FACTORS = {
    **{name: factor(f"{name}_multiplier") for name in WHOLE},
    "gate": factor_in("mlp_multipliers", 0, 2),
    "down": factor_in("mlp_multipliers", 1, 2),
    **{f"ssm_{part}": factor_in("ssm_multipliers", k, 5) for k, part in enumerate(("z", "x", "b", "c", "dt"))},
}


def scaled(*names: str) -> Callable[[Dims], Op]:
    """The op of weights that are multiplied by these factors in turn."""

    def op(dims: Dims) -> Op:
        factors = tuple(dims.factors[name] for name in names)
        return Copy() if set(factors) == {1.0} else Multiplied(factors)

    return op


def state_inputs(dims: Dims) -> Op:
    """The op of the matrix that makes gate, inputs, B, C and time steps, each with a factor of its own."""
    inner, states = dims.size("inner"), dims.size("groups") * dims.size("state")
    counts = {"z": inner, "x": inner, "b": states, "c": states, "dt": dims.size("ssm_heads")}
    parts = tuple((count, dims.factors[f"ssm_{part}"]) for part, count in counts.items())
    whole = scaled("ssm_in")(dims)
    return whole if {each for _, each in parts} == {1.0} else Chain(whole, MultipliedRows(parts))


def one_scale(dims: Dims) -> bool:
    """Whether embedding and head can be one tensor."""
    return dims.factors["embedding"] == dims.factors["lm_head"]


def gate_first(config: Config, dims: Dims) -> str | None:
    """llama.cpp's graph has the norm behind the gate."""
    config.first("mamba_expand", "mamba_d_ssm")
    before = config.first("mamba_norm_before_gate")
    wrong = bool(config.first("mamba_rms_norm")) and before is not False
    return "mamba_norm_before_gate is true, but llama.cpp has the norm behind the gate" if wrong else None


FALCON_H1 = Architecture(
    MODEL_ARCH.FALCON_H1,
    ("FalconH1ForCausalLM",),
    tensors=(
        TensorRule(T.TOKEN_EMBD, "vocab embd", scaled("embedding")),
        EMBEDDINGS[1],
        TensorRule(T.OUTPUT, "vocab embd", scaled("lm_head"), need=OPTIONAL, when=one_scale),
        TensorRule(
            T.OUTPUT, "vocab embd", scaled("lm_head"), fallback=T.TOKEN_EMBD, when=lambda dims: not one_scale(dims)
        ),
        NORMS[0],
        TensorRule(T.FFN_PRE_NORM, "embd", part=""),  # llama.cpp reads it without .weight
        TensorRule(T.ATTN_Q, "q embd", scaled("attention_in")),
        TensorRule(T.ATTN_K, "kv embd", scaled("key", "attention_in")),
        TensorRule(T.ATTN_V, "kv embd", scaled("attention_in")),
        TensorRule(T.ATTN_OUT, "embd q", scaled("attention_out")),
        TensorRule(T.FFN_GATE, "ff embd", scaled("gate")),
        TensorRule(T.FFN_UP, "ff embd"),
        TensorRule(T.FFN_DOWN, "embd ff", scaled("down")),
        *(rule for rule in mamba2_tensors() if rule.tensor not in (T.SSM_IN, T.SSM_NORM, T.SSM_OUT)),
        TensorRule(T.SSM_IN, "ssm_proj embd", state_inputs),
        TensorRule(T.SSM_NORM, "inner", group_rows, need=OPTIONAL),
        TensorRule(T.SSM_OUT, "embd inner", scaled("ssm_out")),
    ),
    keys=(*(*SIZES, *HEAD_SIZE, VOCAB_SIZE, *MAMBA2_KEYS),),
    models="Falcon-H1",
    rope=Rope(scaling=("linear", "yarn")),
    fused=(*SSM_NAMES, named(".pre_ff_layernorm", T.FFN_PRE_NORM, "")),
    require={
        **SILU,
        **MAMBA_LAYOUT,
        "projectors_bias": (False,),
        "mlp_bias": (False,),
        "attention_bias": (False,),
    },
    defaults={"max_position_embeddings": 8192, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "mamba_d_ssm": 1024},
    sizes=MAMBA2_SIZES,
    factors=FACTORS,
    folded=(*(f"{name}_multiplier" for name in WHOLE), "mlp_multipliers", "ssm_multipliers"),
    check=gate_first,
)

RECORDS = (FALCON_H1,)
