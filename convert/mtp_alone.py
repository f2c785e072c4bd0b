"""Files of the blocks for multi-token prediction alone: draft models for the model they were trained with."""

import re
from dataclasses import replace

from ggufsmith.container.errors import Unsupported
from ggufsmith.convert.plan import Plan


def apart(plan: Plan) -> Plan:
    """What a file of these blocks alone holds: they, and what stands around all blocks, under the keys of the whole.

    llama.cpp takes such a file as the draft model of the whole one. Unsupported if the model has no such blocks.
    Source: llama.cpp's converter with --mtp; src/models (mtp_only).
    """
    if not plan.appended:
        raise Unsupported(
            "this checkpoint holds no blocks for multi-token prediction, which --mtp only asks for",
            fix="Convert it without --mtp.",
        )
    own = re.compile(r"blk\.([0-9]+)\.")
    first = plan.dims.blocks - plan.appended
    kept = [each for each in plan.outputs if not (match := own.match(each.name)) or int(match[1]) >= first]
    said = f"the blocks for multi-token prediction alone ({plan.appended}): a draft model for the whole one"
    return replace(plan, outputs=tuple(kept), notes=(said, *plan.notes))
