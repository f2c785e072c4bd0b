"""The encoder of Janus by which it sees; what it draws with has no place in llama.cpp."""

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.values import string
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    USE_SILU,
    VISION_KEYS,
    VISION_SIZES,
    config_value,
    epsilon,
    layers,
    number,
    positive,
)
from ggufsmith.convert.projectors.pixtral import activation
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
from ggufsmith.convert.projectors.siglip import square

TOWER = "vision_model"
BLOCK = f"{TOWER}.encoder.layers.{{}}"


def feed_forward(facts: ProjectorFacts) -> int:
    """The length of the feed-forward, a multiple of that of the embeddings."""
    ratio = facts.config.number("mlp_ratio", default=4) or 0
    length = int(facts.size("embd") * ratio) if 0 < ratio < 1 << 10 else None
    return positive(facts.config.integer("intermediate_size", default=length), "mlp_ratio", facts)


def has_biases(facts: ProjectorFacts) -> bool:
    """Whether queries, keys and values have biases."""
    return facts.config.first("attention_bias") is not False


def same_width(facts: ProjectorFacts) -> str | None:
    """A sentence if the aligner does not make embeddings of the text model."""
    out, text = facts.size("out"), facts.size("text")
    return None if out == text else f"the aligner makes embeddings of {out} numbers, the text model has {text}"


JANUS_VISION = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_model.", "aligner."),
    sizes={**VISION_SIZES, "ff": feed_forward, "positions": square, "out": number("projection_dim", default=2048)},
    tensors=(
        *biased("v.patch_embd", f"{TOWER}.embeddings.patch_embedding", "embd 3 patch patch", types=CONVOLUTION),
        *weight("v.position_embd", f"{TOWER}.embeddings.position_embedding", "positions embd", types=SINGLE),
        *layers(
            BLOCK,
            ("ln1", "layer_norm1", "embd"),
            ("ln2", "layer_norm2", "embd"),
            ("attn_out", "self_attn.projection_layer", "embd embd"),
            ("ffn_up", "mlp.fc1", "ff embd"),
            ("ffn_down", "mlp.fc2", "embd ff"),
        ),
        *(
            rule
            for name, end in (("attn_q", "q_proj"), ("attn_k", "k_proj"), ("attn_v", "v_proj"))
            for rule in (
                *weight(f"v.blk.{{}}.{name}", f"{BLOCK}.self_attn.{end}", "embd embd"),
                ProjectorRule(f"v.blk.{{}}.{name}.bias", f"{BLOCK}.self_attn.{end}.bias", "embd", when=has_biases),
            )
        ),
        *biased("v.post_ln", f"{TOWER}.post_layernorm", "embd"),
        *biased("mm.0", "aligner.fc1", "out embd"),
        *biased("mm.1", "aligner.hidden_layers.0", "out out"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.JANUS_PRO)),
        epsilon(config_value("layer_norm_eps", 1e-6)),
        activation("gelu", USE_GELU),
        activation("silu", USE_SILU),
    ),
    require={"hidden_act": ("gelu", "silu"), "use_qk_norm": (False,), "depth": (2,)},
    defaults={
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 16,
    },
    harmless=HARMLESS
    | {"hidden_dropout_rate", "projection_dropout", "num_image_tokens", "depth", "use_qk_norm", "mlp_ratio"},
    check=same_width,
)
JANUS = Projector(
    ("JanusForConditionalGeneration",), "Janus, Janus-Pro", VisionProjectorType.JANUS_PRO, (JANUS_VISION,)
)

RECORDS = (JANUS,)
