"""Kimi K3: Kimi Linear whose blocks attend to what earlier ones left, with experts in a smaller space.

Feed-forwards have an activation of their own (situ), and attention is gated, by one matrix.

Source: llama.cpp's src/models/kimi-k3.cpp and conversion/kimi_k3.py.
"""

from dataclasses import dataclass, replace

from ggufsmith.container.values import f32, u32
from ggufsmith.convert.architecture import ConfigKey, Dims, Fused, TensorRule, named
from ggufsmith.convert.architectures.groups import OPTIONAL, VISION_TOWER, T
from ggufsmith.convert.architectures.kimi_linear import KIMI_LINEAR
from ggufsmith.convert.architectures.moe import WEIGHTS_NORM, whole
from ggufsmith.convert.config import Config, as_number
from ggufsmith.convert.gguf_names import NewArch, NewKeys, NewTensor, Tensor
from ggufsmith.convert.ops import Array, Op, Read, Shape
from ggufsmith.convert.reorder import NegativeExp

# What scores earlier streams: a norm's factors times a row, which are used as their product alone.
SCORES: dict[str, Tensor] = {
    "self_attention_res": NewTensor.ATTN_RES_SCORE,
    "mlp_res": NewTensor.FFN_RES_SCORE,
    "output_attn_res": NewTensor.OUTPUT_RES_SCORE,
}


@dataclass(frozen=True)
class NormTimesRow(Op):
    """A vector (n,) times a row (1, n), each number by its own, in float32."""

    @property
    def computes(self) -> bool:
        return True

    def shape(self, *sources: Shape) -> Shape:
        if len(sources) != 2 or sources[1] != (1, *sources[0]):
            raise ValueError(f"a vector and a row of as many numbers are needed, not {' and '.join(map(str, sources))}")
        return sources[0]

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        return read(0, start, stop) * read(1, 0, 1)[0, start:stop, None]


def product(dims: Dims) -> Op:
    """The op of a score."""
    return NormTimesRow()


def lower_bound(config: Config, dims: Dims) -> float | None:
    """What the decay of delta attention is bounded by, if it is."""
    found = config.mapping("linear_attn_config").get("gate_lower_bound")
    return None if found is None else as_number(found, "gate_lower_bound", config.path)


def latent(config: Config) -> int:
    """The width of the space that the experts work in; that of the embedding, unless there is a smaller one."""
    return whole(config, "routed_expert_hidden_size") or whole(config, "hidden_size")


def is_latent(dims: Dims) -> bool:
    """Whether that is a space of its own."""
    return dims.size("projected") > 0


def swapped(rule: TensorRule) -> TensorRule:
    """The rule of an expert in its own space."""
    return replace(rule, shape=rule.shape.replace("embd", "latent"))


REPLACED = (T.SSM_G_A, T.SSM_G_B)
STACKED = (T.FFN_GATE_EXP, T.FFN_UP_EXP, T.FFN_DOWN_EXP)
KIMI_K3 = replace(
    KIMI_LINEAR,
    arch=NewArch.KIMI_K3,
    classes=("KimiK3ForConditionalGeneration",),
    tensors=(
        TensorRule(NewTensor.OUTPUT_RES_SCORE, "embd", joined=product),
        TensorRule(NewTensor.ATTN_RES_SCORE, "embd", joined=product),
        TensorRule(NewTensor.FFN_RES_SCORE, "embd", joined=product),
        *(
            replace(rule, shape="heads", op=lambda dims: NegativeExp()) if rule.tensor is T.SSM_A else rule
            for rule in KIMI_LINEAR.tensors
            if rule.tensor not in (*REPLACED, *STACKED)
        ),
        TensorRule(T.ATTN_GATE, "heads_v embd", on="full", need=OPTIONAL),
        TensorRule(NewTensor.SSM_G, "inner embd", on="linear", source=T.ATTN_GATE),
        *(swapped(rule) for rule in KIMI_LINEAR.tensors if rule.tensor in STACKED),
        TensorRule(NewTensor.FFN_ROUTED_DOWN, "latent embd", on="moe", when=is_latent),
        TensorRule(NewTensor.FFN_ROUTED_UP, "embd latent", on="moe", when=is_latent),
        TensorRule(NewTensor.FFN_ROUTED_NORM, "latent", on="moe", when=is_latent, need=OPTIONAL),
    ),
    keys=(
        *KIMI_LINEAR.keys,
        WEIGHTS_NORM,
        ConfigKey(NewKeys.KDA_GATE_LOWER_BOUND, f32, computed=lower_bound),
        ConfigKey(NewKeys.EXPERT_LATENT_LENGTH, u32, ("routed_expert_hidden_size",), None),
        ConfigKey(NewKeys.SITU_BETA, f32, ("activation_situ_beta",)),
        ConfigKey(NewKeys.SITU_LINEAR_BETA, f32, ("activation_situ_linear_beta",)),
        ConfigKey(NewKeys.ATTN_RES_BLOCK_SIZE, u32, ("attn_res_block_size",)),
    ),
    models="Kimi K3 (text)",
    fused=(
        *(
            Fused(f"{name}_{end}", shape, ((tensor, None),), piece=piece)
            for name, tensor in SCORES.items()
            for piece, (end, shape) in enumerate((("norm", "embd"), ("proj", "1 embd")))
        ),
        named(".self_attn.g_proj", T.ATTN_GATE),
        named(".routed_expert_down_proj", NewTensor.FFN_ROUTED_DOWN),
        named(".routed_expert_up_proj", NewTensor.FFN_ROUTED_UP),
        named(".routed_expert_norm", NewTensor.FFN_ROUTED_NORM),
        *KIMI_LINEAR.fused,
    ),
    require={**KIMI_LINEAR.require, "hidden_act": ("situ",), "norm_topk_prob": (True, False)},
    drop={**VISION_TOWER, "mm_projector.": VISION_TOWER["vision_tower."]},
    sizes={
        **KIMI_LINEAR.sizes,
        "latent": latent,
        "projected": lambda config: whole(config, "routed_expert_hidden_size"),
    },
)

RECORDS = (KIMI_K3,)
