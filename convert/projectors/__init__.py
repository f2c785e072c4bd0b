"""The projectors, as data. Adding one is adding a record; the words are explained in `record`."""

from collections.abc import Mapping

from ggufsmith.convert.projectors.gemma4 import GEMMA4
from ggufsmith.convert.projectors.gemma4_unified import GEMMA4_UNIFIED
from ggufsmith.convert.projectors.glm import GLMS
from ggufsmith.convert.projectors.hunyuan import HUNYUAN_VL
from ggufsmith.convert.projectors.internvl import INTERN
from ggufsmith.convert.projectors.janus import JANUS
from ggufsmith.convert.projectors.kimi import KIMIS
from ggufsmith.convert.projectors.llama4 import LLAMA4
from ggufsmith.convert.projectors.minicpm import MINICPM_V
from ggufsmith.convert.projectors.paddle import PADDLE_OCR
from ggufsmith.convert.projectors.pixtral import PIXTRALS
from ggufsmith.convert.projectors.qwen import QWEN
from ggufsmith.convert.projectors.record import Projector
from ggufsmith.convert.projectors.siglip import SIGLIP
from ggufsmith.convert.projectors.whisper import WHISPERS

PROJECTORS = (
    *QWEN,
    *GLMS,
    *SIGLIP,
    GEMMA4,
    GEMMA4_UNIFIED,
    *PIXTRALS,
    INTERN,
    PADDLE_OCR,
    HUNYUAN_VL,
    JANUS,
    MINICPM_V,
    LLAMA4,
    *KIMIS,
    *WHISPERS,
)
PROJECTOR_OF_CLASS: Mapping[str, Projector] = {name: record for record in PROJECTORS for name in record.classes}
