"""The projectors, as data. Adding one is adding a record; the words are explained in `record`."""

from collections.abc import Mapping

from ggufsmith.convert.projectors.gemma import GEMMA
from ggufsmith.convert.projectors.pixtral import PIXTRALS
from ggufsmith.convert.projectors.qwen import QWEN
from ggufsmith.convert.projectors.record import Projector

PROJECTORS = (*QWEN, *GEMMA, *PIXTRALS)
PROJECTOR_OF_CLASS: Mapping[str, Projector] = {name: record for record in PROJECTORS for name in record.classes}
