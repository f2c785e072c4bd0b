"""The projectors, as data. Adding one is adding a record; the words are explained in `record`."""

from collections.abc import Mapping

from ggufsmith.convert.projectors.gemma4 import GEMMA4
from ggufsmith.convert.projectors.gemma4_unified import GEMMA4_UNIFIED
from ggufsmith.convert.projectors.llama4 import LLAMA4
from ggufsmith.convert.projectors.pixtral import PIXTRALS
from ggufsmith.convert.projectors.qwen import QWEN
from ggufsmith.convert.projectors.record import Projector
from ggufsmith.convert.projectors.siglip import SIGLIP
from ggufsmith.convert.projectors.whisper import WHISPERS

PROJECTORS = (*QWEN, *SIGLIP, GEMMA4, GEMMA4_UNIFIED, *PIXTRALS, LLAMA4, *WHISPERS)
PROJECTOR_OF_CLASS: Mapping[str, Projector] = {name: record for record in PROJECTORS for name in record.classes}
