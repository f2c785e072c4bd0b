"""Models as far as recipes see them: metadata, names, and shapes whose widths are what matters."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import TensorSpec
from ggufsmith.container.values import Metadata, f32, string, u32

VOCAB = 64


@dataclass(frozen=True)
class Model:
    """`matrices`: per layer, name without "blk.N." and ".weight" -> (rows, width) or (experts, rows, width)."""

    architecture: str
    blocks: int
    heads: int
    kv_heads: int
    matrices: Mapping[str, tuple[int, ...]]
    experts: int = 0
    tied: bool = False
    width: int = 256
    keys: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def metadata(self) -> Metadata:
        numbers: dict[str, int | float] = {
            "block_count": self.blocks,
            "context_length": 64,
            "embedding_length": self.width,
            "feed_forward_length": self.width,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.layer_norm_epsilon": 1e-5,
            **self.keys,
        }
        if self.experts:
            numbers |= {"expert_count": self.experts, "expert_used_count": 2}
        own = {f"{self.architecture}.{key}": f32(n) if isinstance(n, float) else u32(n) for key, n in numbers.items()}
        return {"general.architecture": string(self.architecture), "general.file_type": u32(1), **own}

    def specs(self, format: str = "F16") -> list[TensorSpec]:
        """In an order that is not llama.cpp's, as converters write them."""
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, self.width)}
        if not self.tied:
            shapes["output.weight"] = (VOCAB, self.width)
        for block in range(self.blocks):
            shapes[f"blk.{block}.attn_norm.weight"] = (self.width,)
            shapes |= {f"blk.{block}.{name}.weight": shape for name, shape in self.matrices.items()}
        shapes["output_norm.weight"] = (self.width,)
        return [
            TensorSpec(name, shape, format_of("F32" if len(shape) == 1 else format)) for name, shape in shapes.items()
        ]


def attention(width: int = 256) -> dict[str, tuple[int, ...]]:
    return {f"attn_{part}": (width, width) for part in ("q", "k", "v", "output")}


def dense(width: int = 256, inner: int = 256) -> dict[str, tuple[int, ...]]:
    return {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}


def stacked(experts: int, width: int = 256, inner: int = 256) -> dict[str, tuple[int, ...]]:
    return {
        "ffn_gate_inp": (experts, width),
        "ffn_gate_exps": (experts, inner, width),
        "ffn_up_exps": (experts, inner, width),
        "ffn_down_exps": (experts, width, inner),
    }


SHARED_EXPERT: dict[str, tuple[int, ...]] = {
    "ffn_gate_shexp": (256, 256),
    "ffn_up_shexp": (256, 256),
    "ffn_down_shexp": (256, 256),
}
SINGLE = attention() | dense()
MODELS: Mapping[str, Model] = {
    "llama 7B": Model("llama", 32, 32, 32, SINGLE),
    "llama 8B, grouped queries": Model("llama", 32, 32, 8, SINGLE),
    "llama 1B, tied": Model("llama", 16, 32, 8, SINGLE, tied=True),
    "llama 22 layers": Model("llama", 22, 32, 4, SINGLE),
    "llama 65B": Model("llama", 80, 64, 64, SINGLE),
    "llama 70B": Model("llama", 80, 64, 8, SINGLE),
    "two layers": Model("llama", 2, 4, 2, SINGLE),
    "qwen2 7B": Model("qwen2", 28, 28, 4, SINGLE),
    "qwen2 72B": Model("qwen2", 80, 64, 8, SINGLE),
    "qwen2 0.5B, tied": Model("qwen2", 24, 14, 2, attention(896) | dense(896, 4864), tied=True, width=896),
    "qwen3 0.6B, tied": Model("qwen3", 28, 16, 8, SINGLE, tied=True, keys={"attention.key_length": 128}),
    "mixtral 8x7B": Model("llama", 32, 32, 8, attention() | stacked(8), experts=8),
    "mixtral 8x22B": Model("llama", 56, 48, 8, attention() | stacked(8), experts=8),
    "four experts": Model("llama", 16, 32, 32, attention() | stacked(4), experts=4),
    "qwen2-moe, shared expert": Model("qwen2moe", 24, 16, 16, attention() | stacked(60) | SHARED_EXPERT, experts=60),
    "qwen3-moe": Model("qwen3moe", 48, 32, 4, attention() | stacked(128), experts=128),
    "fused qkv": Model(
        "phi3",
        32,
        32,
        32,
        {"attn_qkv": (768, 256), "attn_output": (256, 256), "ffn_up": (512, 256), "ffn_down": (256, 256)},
        keys={"rope.dimension_count": 8},
    ),
    "falcon": Model(
        "falcon",
        32,
        71,
        1,
        {"attn_qkv": (768, 256), "attn_output": (256, 256), "ffn_up": (512, 256), "ffn_down": (256, 256)},
    ),
    "widths of 32s": Model("llama", 24, 16, 16, attention(288) | dense(288, 160), width=288),
    "widths of 16s": Model("llama", 24, 16, 4, attention(272) | dense(272, 80), width=272),
    "narrow ffn_down": Model("llama", 24, 16, 4, attention() | dense(256, 144)),
}
