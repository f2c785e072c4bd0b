"""The encoders of Gemma 4, which sees and hears."""

from gguf.constants import VisionProjectorType

from ggufsmith.container.values import f32, string, u32
from ggufsmith.convert.projectors.groups import (
    AUDIO_KEYS,
    HARMLESS,
    USE_GELU,
    VISION_KEYS,
    A,
    Size,
    V,
    config_value,
    epsilon,
    number,
    positive,
    rope_base,
    text_size,
    unless,
)
from ggufsmith.convert.projectors.ops import Bound, PixelsToPlanes, Softplus
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
    weight,
)
from ggufsmith.convert.reorder import Squeeze

CLIPPED = ("input_min", "input_max", "output_min", "output_max")


def clipped(facts: ProjectorFacts) -> bool:
    """Whether what goes into matrices, and comes out of them, is kept within bounds."""
    return bool(facts.config.first("use_clipped_linears"))


def bounded(name: str, source: str, shape: str) -> tuple[ProjectorRule, ...]:
    """A matrix of every block, and the bounds of what goes into it and comes out."""
    bounds = (
        ProjectorRule(f"{name}.{end}", f"{source}.{end}", "", op=lambda facts: Bound(), when=clipped) for end in CLIPPED
    )
    return (ProjectorRule(f"{name}.weight", f"{source}.linear.weight", shape), *bounds)


def standardized(facts: ProjectorFacts) -> bool:
    """Whether what comes out of the encoder is shifted and scaled."""
    return bool(facts.config.first("standardize"))


def vision_check(facts: ProjectorFacts) -> str | None:
    """A sentence if heads or the rotary embedding are not what llama.cpp's graph assumes."""
    heads = facts.size("heads")
    if facts.size("head_dim") * heads != facts.size("embd") or facts.config.integer("num_key_value_heads") not in (
        None,
        heads,
    ):
        return "llama.cpp assumes as many key-value heads as heads, which together are as wide as the encoder"
    base = rope_base(facts)
    return None if base in (None, 100) else f"rope_theta is {base!r:.40}, but llama.cpp assumes 100"


VISION_BLOCK = "vision_tower.encoder.layers.{}"
GEMMA4_VISION = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_tower.", "embed_vision."),
    sizes={
        "text": text_size,
        "image": lambda facts: 224,  # as in the reference; images may have any size
        "patch": number("patch_size"),
        "embd": number("hidden_size"),
        "ff": number("intermediate_size"),
        "blocks": number("num_hidden_layers"),
        "heads": number("num_attention_heads"),
        "head_dim": number("head_dim"),
        "positions": number("position_embedding_size"),
        "pooled": number("pooling_kernel_size", default=3),
    },
    tensors=(
        *weight(
            "v.patch_embd",
            "vision_tower.patch_embedder.input_proj",
            "embd 3*patch*patch",
            op=lambda facts: PixelsToPlanes(facts.size("patch")),
            types=CONVOLUTION,
        ),
        ProjectorRule(
            "v.position_embd.weight",
            "vision_tower.patch_embedder.position_embedding_table",
            "2 positions embd",
            types=SINGLE,
        ),
        *(
            rule
            for name, source in (
                ("ln1", "input_layernorm"),
                ("attn_post_norm", "post_attention_layernorm"),
                ("ln2", "pre_feedforward_layernorm"),
                ("ffn_post_norm", "post_feedforward_layernorm"),
            )
            for rule in weight(f"v.blk.{{}}.{name}", f"{VISION_BLOCK}.{source}", "embd")
        ),
        *weight("v.blk.{}.attn_q_norm", f"{VISION_BLOCK}.self_attn.q_norm", "head_dim"),
        *weight("v.blk.{}.attn_k_norm", f"{VISION_BLOCK}.self_attn.k_norm", "head_dim"),
        *(
            rule
            for name, source, shape in (
                ("attn_q", "self_attn.q_proj", "embd embd"),
                ("attn_k", "self_attn.k_proj", "embd embd"),
                ("attn_v", "self_attn.v_proj", "embd embd"),
                ("attn_out", "self_attn.o_proj", "embd embd"),
                ("ffn_gate", "mlp.gate_proj", "ff embd"),
                ("ffn_up", "mlp.up_proj", "ff embd"),
                ("ffn_down", "mlp.down_proj", "embd ff"),
            )
            for rule in bounded(f"v.blk.{{}}.{name}", f"{VISION_BLOCK}.{source}", shape)
        ),
        ProjectorRule("v.std_bias", "vision_tower.std_bias", "embd", when=standardized),
        ProjectorRule("v.std_scale", "vision_tower.std_scale", "embd", when=standardized),
        *weight("mm.input_projection", "embed_vision.embedding_projection", "text embd"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(V.PROJECTOR_TYPE, string, fixed(VisionProjectorType.GEMMA4V)),
        epsilon(config_value("rms_norm_eps", 1e-6)),
        USE_GELU,  # llama.cpp's converter leaves it out, and its graph then takes a rougher approximation
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, unless(3, "pooled")),
    ),
    require={"hidden_activation": ("gelu_pytorch_tanh",)},
    harmless=HARMLESS,
    check=vision_check,
)
AUDIO_BLOCK = "audio_tower.layers.{}"
CONVOLVED = "audio_tower.subsample_conv_projection"


def channel(index: int) -> Size:
    """The number of channels behind one of the two convolutions."""

    def size(facts: ProjectorFacts) -> int:
        found = facts.config.items_of("subsampling_conv_channels", int)
        return positive(found[index] if len(found) == 2 else None, "each of two subsampling_conv_channels", facts)

    return size


GEMMA4_AUDIO = EncoderRecord(
    "audio",
    "audio_config",
    ("audio_tower.", "embed_audio."),
    sizes={
        "text": text_size,
        "embd": number("hidden_size"),
        "ff": lambda facts: 4 * facts.size("embd"),
        "blocks": number("num_hidden_layers"),
        "heads": number("num_attention_heads"),
        "head_dim": lambda facts: facts.size("embd") // facts.size("heads"),
        "mel": number("input_feat_size", default=128),
        "out": number("output_proj_dims"),
        "kernel": number("conv_kernel_size"),
        "first": channel(0),
        "second": channel(1),
        "flat": lambda facts: facts.size("second") * -(-facts.size("mel") // 4),
    },
    tensors=(
        *weight("a.conv1d.0", f"{CONVOLVED}.layer0.conv", "first 1 3 3", types=SINGLE),
        *weight("a.conv1d.0.norm", f"{CONVOLVED}.layer0.norm", "first"),
        *weight("a.conv1d.1", f"{CONVOLVED}.layer1.conv", "second first 3 3", types=SINGLE),
        *weight("a.conv1d.1.norm", f"{CONVOLVED}.layer1.norm", "second"),
        *weight("a.input_projection", f"{CONVOLVED}.input_proj_linear", "embd flat", types=SINGLE),
        *(
            rule
            for name, source in (
                ("ffn_norm", "feed_forward1.pre_layer_norm"),
                ("ffn_post_norm", "feed_forward1.post_layer_norm"),
                ("ffn_norm_1", "feed_forward2.pre_layer_norm"),
                ("ffn_post_norm_1", "feed_forward2.post_layer_norm"),
                ("norm_conv", "lconv1d.conv_norm"),
                ("conv_norm", "lconv1d.pre_layer_norm"),
                ("ln2", "norm_out"),
                ("attn_pre_norm", "norm_pre_attn"),
                ("attn_post_norm", "norm_post_attn"),
            )
            for rule in weight(f"a.blk.{{}}.{name}", f"{AUDIO_BLOCK}.{source}", "embd")
        ),
        *(
            rule
            for name, source, shape in (
                ("ffn_up", "feed_forward1.ffw_layer_1", "ff embd"),
                ("ffn_down", "feed_forward1.ffw_layer_2", "embd ff"),
                ("ffn_up_1", "feed_forward2.ffw_layer_1", "ff embd"),
                ("ffn_down_1", "feed_forward2.ffw_layer_2", "embd ff"),
                ("conv_pw1", "lconv1d.linear_start", "2*embd embd"),
                ("conv_pw2", "lconv1d.linear_end", "embd embd"),
                ("attn_q", "self_attn.q_proj", "embd embd"),
                ("attn_k", "self_attn.k_proj", "embd embd"),
                ("attn_v", "self_attn.v_proj", "embd embd"),
                ("attn_out", "self_attn.post", "embd embd"),
            )
            for rule in bounded(f"a.blk.{{}}.{name}", f"{AUDIO_BLOCK}.{source}", shape)
        ),
        *weight(
            "a.blk.{}.conv_dw",
            f"{AUDIO_BLOCK}.lconv1d.depthwise_conv1d",
            "embd 1 kernel",
            op=lambda facts: Squeeze(),
            types=SINGLE,
        ),
        ProjectorRule(
            "a.blk.{}.per_dim_scale.weight",
            f"{AUDIO_BLOCK}.self_attn.per_dim_scale",
            "head_dim",
            op=lambda facts: Softplus(),
        ),
        *weight("a.blk.{}.attn_k_rel", f"{AUDIO_BLOCK}.self_attn.relative_k_proj", "embd embd"),
        *biased("a.pre_encode.out", "audio_tower.output_proj", "out embd"),
        *weight("mm.a.input_projection", "embed_audio.embedding_projection", "text out"),
    ),
    keys=(
        *AUDIO_KEYS,
        ProjectorKey(A.PROJECTOR_TYPE, string, fixed(VisionProjectorType.GEMMA4A)),
        ProjectorKey(A.Attention.LAYERNORM_EPS, f32, config_value("rms_norm_eps", 1e-6)),
    ),
    require={
        "hidden_act": ("silu",),
        "rms_norm_eps": (1e-6,),
        "attention_chunk_size": (12,),
        "attention_context_left": (13,),
        "attention_context_right": (0,),
        "attention_logit_cap": (50,),
        "residual_weight": (0.5,),
    },
    harmless=HARMLESS | {"attention_invalid_logits_value", "gradient_clipping"},
    optional=True,
)

GEMMA4 = Projector(
    ("Gemma4ForConditionalGeneration",),
    "Gemma 4",
    f"{VisionProjectorType.GEMMA4V}, {VisionProjectorType.GEMMA4A}",
    (GEMMA4_VISION, GEMMA4_AUDIO),
)

RECORDS = (GEMMA4,)
