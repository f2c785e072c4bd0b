"""The encoder of PaddleOCR-VL: SigLIP with a rotary embedding besides its positions, for images of any size."""

import math

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.values import string, u32
from ggufsmith.convert.projectors.groups import (
    HARMLESS,
    USE_GELU,
    VISION_KEYS,
    VISION_SIZES,
    V,
    config_value,
    epsilon,
    limit,
    number,
)
from ggufsmith.convert.projectors.qwen import other_base
from ggufsmith.convert.projectors.record import (
    EncoderRecord,
    Projector,
    ProjectorKey,
    biased,
    fixed,
    sized,
)
from ggufsmith.convert.projectors.siglip import BLOCKS, HALF_PATCHES, POSITIONS, TANH

PADDLE = EncoderRecord(
    "vision",
    "vision_config",
    ("vision_tower.", "mlp_AR."),
    sizes={
        "least": limit("min_pixels", "shortest_edge", 384 * 384),
        "most": limit("max_pixels", "longest_edge", 1536 * 1536),
        "grid": number("image_size"),
        **VISION_SIZES,
        "image": lambda facts: math.isqrt(facts.size("most")),  # as in the reference; images may have any size
        "positions": lambda facts: (facts.size("grid") // facts.size("patch")) ** 2,
        "merge": number("spatial_merge_size"),
    },
    tensors=(
        *HALF_PATCHES,
        *POSITIONS,
        *BLOCKS,
        *biased("mm.input_norm", "mlp_AR.pre_norm", "embd"),
        *biased("mm.1", "mlp_AR.linear_1", "merge*merge*embd merge*merge*embd"),
        *biased("mm.2", "mlp_AR.linear_2", "text merge*merge*embd"),
    ),
    keys=(
        *VISION_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.PADDLEOCR)),
        ProjectorKey(V.IMAGE_MAX_PIXELS, u32, sized("most")),
        ProjectorKey(V.IMAGE_MIN_PIXELS, u32, sized("least")),
        USE_GELU,
        epsilon(config_value("layer_norm_eps", 1e-6)),
    ),
    require={**TANH, "spatial_merge_size": (2,), "temporal_patch_size": (1, 2)},
    defaults={"spatial_merge_size": 2},
    harmless=HARMLESS | {"temporal_patch_size", "pad_token_id", "tokens_per_second", "tie_word_embeddings"},
    check=other_base,
)
PADDLE_OCR = Projector(
    ("PaddleOCRVLForConditionalGeneration",),
    "PaddleOCR-VL",
    VisionProjectorType.PADDLEOCR,
    (PADDLE,),
    renamed={"visual.vision_model.": "vision_tower.", "visual.": "vision_tower.", "projector.": "mlp_AR."},
    drop={
        "vision_tower.head.": "a head that PaddleOCR-VL does not use",
        "vision_tower.embeddings.packing_position_embedding.": "positions that PaddleOCR-VL does not use",
    },
)

RECORDS = (PADDLE_OCR,)
