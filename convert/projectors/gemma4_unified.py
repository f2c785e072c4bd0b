"""What makes embeddings of pictures and sound for Gemma 4 Unified: a matrix each, and no encoder.

Source: llama.cpp, tools/mtmd/models/gemma4uv.cpp and gemma4ua.cpp; transformers, modeling_gemma4_unified.py.
"""

from ggufsmith.container.values import f32, string, u32
from ggufsmith.convert.projectors.groups import (
    AUDIO_KEYS,
    HARMLESS,
    VISION_KEYS,
    A,
    V,
    config_value,
    epsilon,
    number,
    text_size,
    unless,
)
from ggufsmith.convert.projectors.ops import AxesChanged, ColoursApart
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

SEES, HEARS = "gemma4uv", "gemma4ua"  # which the gguf package does not have yet
FRAME = 640  # samples of sound that become one embedding


def none(facts: ProjectorFacts) -> int:
    """What a model without blocks has of everything that is in blocks."""
    return 0


def colours_apart(facts: ProjectorFacts) -> ColoursApart:
    """The op of what is in the order of pixels."""
    return ColoursApart()


VISION = EncoderRecord(
    "vision",
    "vision_config",
    ("embed_vision.", "vision_embedder."),
    sizes={
        "text": text_size,
        "image": lambda facts: 224,  # as in the reference; images may have any size
        "patch": number("patch_size"),
        "pooled": number("pooling_kernel_size", default=3),
        "side": lambda facts: facts.size("patch") * facts.size("pooled"),
        "embd": number("mm_embed_dim"),
        "positions": number("mm_posemb_size"),
        **dict.fromkeys(("ff", "blocks", "heads"), none),
    },
    tensors=(
        *weight("v.patch_embd", "vision_embedder.patch_dense", "embd 3*side*side", op=colours_apart, types=CONVOLUTION),
        ProjectorRule("v.patch_embd.bias", "vision_embedder.patch_dense.bias", "embd"),
        *biased("v.patch_norm.1", "vision_embedder.patch_ln1", "3*side*side", op=colours_apart),
        *biased("v.patch_norm.2", "vision_embedder.patch_ln2", "embd"),
        *biased("v.patch_norm.3", "vision_embedder.pos_norm", "embd"),
        ProjectorRule(
            "v.position_embd.weight",
            "vision_embedder.pos_embedding",
            "positions 2 embd",
            op=lambda facts: AxesChanged(),
            types=SINGLE,
        ),
        *weight("mm.input_projection", "embed_vision.embedding_projection", "text embd"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(V.PROJECTOR_TYPE, string, fixed(SEES)),
        epsilon(config_value("rms_norm_eps", 1e-6)),
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, unless(3, "pooled")),
    ),
    harmless=HARMLESS | {"output_proj_dims", "model_patch_size"},
)
AUDIO = EncoderRecord(
    "audio",
    "audio_config",
    ("embed_audio.",),
    sizes={
        "text": text_size,
        "embd": number("audio_embed_dim"),
        "mel": lambda facts: 128,  # as in the reference; nothing has bins
        **dict.fromkeys(("ff", "blocks", "heads"), none),
    },
    tensors=weight("mm.a.input_projection", "embed_audio.embedding_projection", "text embd"),
    keys=(
        *AUDIO_KEYS,
        ProjectorKey(A.PROJECTOR_TYPE, string, fixed(HEARS)),
        ProjectorKey(A.Attention.LAYERNORM_EPS, f32, fixed(1e-6)),
    ),
    require={"audio_embed_dim": (FRAME,), "rms_norm_eps": (1e-6,)},
    harmless=HARMLESS | {"hidden_size", "output_proj_dims", "audio_samples_per_token"},
    optional=True,
)
GEMMA4_UNIFIED = Projector(
    ("Gemma4UnifiedForConditionalGeneration",),
    "Gemma 4 Unified",
    f"{SEES}, {HEARS}",
    (VISION, AUDIO),
    renamed={
        "embed_vision.multimodal_embedder.": "embed_vision.",
        **{
            f"embed_vision.{name}": f"vision_embedder.{name}"
            for name in ("patch_ln1", "patch_ln2", "patch_dense", "pos_embedding", "pos_norm")
        },
    },
)

RECORDS = (GEMMA4_UNIFIED,)
