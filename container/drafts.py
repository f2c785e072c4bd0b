"""Files of draft models, which guess tokens for a larger model and cannot be run without it."""

from collections.abc import Collection

from gguf.constants import Keys

from ggufsmith.container.values import Metadata

# Architectures of llama.cpp that have no other use, and what its option --spec-type calls their way of drafting.
KINDS = {"gemma4-assistant": "draft-mtp", "eagle3": "draft-eagle3", "dflash": "draft-dflash"}
NAMES = frozenset(KINDS)
BLOCKS = "draft-mtp"  # the kind of files with the blocks for multi-token prediction alone
CORRECTS = "dflash.sample_from_anchor"  # of DFlash drafts whose guesses a further head corrects
FIRST = "blk.0."  # llama.cpp looks for a norm in front of attention there, which EXAONE 4.5 lacks


def is_draft(metadata: Metadata, tensors: Collection[str]) -> bool:
    """Whether a model with these keys and tensors drafts: by its architecture, or because it has only the blocks for
    multi-token prediction (llama.cpp, src/models, mtp_only). A file without tensors does not.
    """
    named = metadata.get(Keys.General.ARCHITECTURE)
    architecture = named.data if named is not None else ""
    predicts = metadata.get(Keys.LLM.NEXTN_PREDICT_LAYERS.format(arch=architecture))
    whole = any(name.startswith(FIRST) for name in tensors) or predicts is None or not predicts.data
    return bool(tensors) and (architecture in NAMES or not whole)


def drafting_kind(metadata: Metadata) -> str:
    """What llama-server's option --spec-type calls the way in which a draft model with these keys drafts."""
    if CORRECTS in metadata:
        return "draft-dspark"
    named = metadata.get(Keys.General.ARCHITECTURE)
    return KINDS.get(str(named.data), BLOCKS) if named is not None else BLOCKS
