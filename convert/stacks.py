"""Models whose blocks are in several stacks of one length, each of which a checkpoint counts from 0: HRM-Text.

GGUF counts them through, one stack after the other (conversion/hrm_text.py of llama.cpp).
"""

import re

from ggufsmith.convert.architecture import Architecture


def counted_through(record: Architecture, name: str, blocks: int) -> str:
    """The name of a tensor among all blocks. blocks: of all stacks together."""
    each = blocks // max(len(record.stacks), 1)
    for number, stack in enumerate(record.stacks):
        match = re.fullmatch(rf"(.*\.)?{re.escape(stack)}\.layers\.([0-9]{{1,4}})\.(.+)", name)
        if match and int(match[2]) < each:
            return f"{match[1] or ''}layers.{number * each + int(match[2])}.{match[3]}"
    return name


def counted_anew(record: Architecture, name: str, blocks: int) -> str:
    """The opposite: the name that the checkpoint has."""
    each = blocks // max(len(record.stacks), 1)
    match = re.fullmatch(r"(.*\.)?layers\.([0-9]{1,4})\.(.+)", name)
    if not record.stacks or not match or int(match[2]) >= blocks:
        return name
    return f"{match[1] or ''}{record.stacks[int(match[2]) // each]}.layers.{int(match[2]) % each}.{match[3]}"
