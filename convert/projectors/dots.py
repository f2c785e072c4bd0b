"""The encoder of dots.ocr: a ViT with RMS norms, rotary positions and gates, whose patches are merged two by two.

Source: llama.cpp's conversion/dotsocr.py and tools/mtmd/models/dotsocr.cpp.
"""

from gguf.constants import Keys

from ggufsmith.container.values import string, u32
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_SILU,
    VISION_KEYS,
    VISION_SIZES,
    V,
    config_value,
    epsilon,
    limit,
    number,
)
from ggufsmith.convert.projectors.record import (
    CONVOLUTION,
    EncoderRecord,
    Projector,
    ProjectorFacts,
    ProjectorKey,
    ProjectorRule,
    biased,
    fixed,
    sized,
    weight,
)

TYPE = "dots_ocr"
TOWER = "vision_tower"
BLOCK = f"{TOWER}.blocks.{{}}"
MATRICES = (
    ("attn_qkv", "attn.qkv", "3*embd embd"),
    ("attn_out", "attn.proj", "embd embd"),
    ("ffn_gate", "mlp.fc1", "ff embd"),
    ("ffn_down", "mlp.fc2", "embd ff"),
    ("ffn_up", "mlp.fc3", "ff embd"),
)


def has_biases(facts: ProjectorFacts) -> bool:
    """Whether the matrices of the blocks have biases."""
    return facts.config.first("use_bias") is True


def check(facts: ProjectorFacts) -> str | None:
    """A sentence if the merger does not make embeddings of the text model."""
    out, text = facts.size("out"), facts.size("text")
    return None if out == text else f"the encoder makes embeddings of {out} numbers, and the text model has {text}"


DOTS = EncoderRecord(
    "vision",
    "vision_config",
    (f"{TOWER}.",),
    sizes={
        **VISION_SIZES,
        "image": lambda facts: 0,  # images may have any size
        "embd": number("embed_dim"),
        "out": number("hidden_size"),
        "merge": number("spatial_merge_size"),
    },
    tensors=(
        *biased("v.patch_embd", f"{TOWER}.patch_embed.patchifier.proj", "embd 3 patch patch", types=CONVOLUTION),
        *weight("v.pre_ln", f"{TOWER}.patch_embed.patchifier.norm", "embd"),
        *(rule for name, end, shape in MATRICES for rule in weight(f"v.blk.{{}}.{name}", f"{BLOCK}.{end}", shape)),
        *(
            ProjectorRule(f"v.blk.{{}}.{name}.bias", f"{BLOCK}.{end}.bias", shape.split()[0], when=has_biases)
            for name, end, shape in MATRICES
        ),
        *weight("v.blk.{}.ln1", f"{BLOCK}.norm1", "embd"),
        *weight("v.blk.{}.ln2", f"{BLOCK}.norm2", "embd"),
        *weight("mm.post_norm", f"{TOWER}.post_trunk_norm", "embd"),
        *biased("mm.input_norm", f"{TOWER}.merger.ln_q", "embd"),
        *biased("mm.0", f"{TOWER}.merger.mlp.0", "merge*merge*embd merge*merge*embd"),
        *biased("mm.2", f"{TOWER}.merger.mlp.2", "out merge*merge*embd"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(TYPE)),
        ProjectorKey(V.IMAGE_MIN_PIXELS, u32, limit("min_pixels", "shortest_edge", 3136)),
        ProjectorKey(V.IMAGE_MAX_PIXELS, u32, limit("max_pixels", "longest_edge", 11289600)),
        epsilon(config_value("rms_norm_eps", 1e-5)),
        ProjectorKey(V.Projector.SCALE_FACTOR, u32, sized("merge")),
        USE_SILU,
    ),
    require={"post_norm": (True,), "is_causal": (False,), "temporal_patch_size": (1,), "spatial_merge_size": (2,)},
    defaults={
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "post_norm": True,
        "use_bias": False,
    },
    harmless=HARMLESS | {"attn_implementation", "init_merger_std", "gradient_checkpointing", "initializer_range"},
    check=check,
)
DOTS_OCR = Projector(("DotsOCRForCausalLM",), "dots.ocr", TYPE, (DOTS,))

RECORDS = (DOTS_OCR,)
