"""The larger model that a draft model guesses tokens for: its folder gives keys and the vocabulary of the draft's file.

Source: llama.cpp's converter with --target-model-dir; conversion/llama.py and conversion/qwen.py.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf.constants import Keys

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.values import Metadata, boolean
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.architectures.groups import TARGET
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewKeys, NewTensor, base_name
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.ops import PlaceAdded
from ggufsmith.convert.plan import Plan, TensorPlan, find_architecture
from ggufsmith.convert.stored import Checkpoint
from ggufsmith.tokenizer.vocabulary import Vocabulary

MASK = "mask_embedding.pt"


@dataclass(frozen=True)
class Target:
    """The larger model. config: its own, in the words that most models have."""

    folder: Path
    config: Config
    record: Architecture


def find_target(record: Architecture, folder: Path, given: Path | None) -> Target | None:
    """What the model in `folder` drafts for, if it is such a draft.

    Usage: a target is missing, or was given for another model. Malformed or Unsupported: its folder is no model's.
    """
    if not record.drafts and given is not None:
        raise Usage(
            "--target names the model that a draft model guesses tokens for, but this is not a draft model that needs "
            "one",
            where=folder,
            fix="Leave out --target.",
        )
    if not record.drafts:
        return None
    if given is None:
        raise Usage(
            "this model guesses tokens for a larger one, and its file needs the configuration and the vocabulary of "
            "that one",
            where=folder,
            fix="Convert it with --target, which names the folder of the larger model.",
        )
    if (folder / MASK).is_file():
        raise Unsupported("a draft with an embedding of its own for the mask is not supported", where=folder / MASK)
    home = Path(os.path.abspath(given))
    config = open_config(home)
    larger = find_architecture(config)
    if larger.drafts:
        raise Usage("this is a draft model itself", where=home, fix="Name the model that it drafts for with --target.")
    return Target(home, config.renamed(larger.aliases).with_defaults(larger.defaults), larger)


def with_target(config: Config, target: Target | None) -> Config:
    """The draft's config, in which the target's stands as an object."""
    return config.replaced({TARGET: dict(target.config)}) if target else config


def with_heads(plan: Plan) -> Plan:
    """The plan, with the key that says whether a DSpark draft judges its guesses, which only its tensors show."""
    anchored = NewKeys.SAMPLE_FROM_ANCHOR.format(arch=plan.architecture.name)
    if anchored not in plan.metadata:
        return plan
    judges = any(output.name.startswith(base_name(NewTensor.DSPARK_CONF_PROJ)) for output in plan.outputs)
    key = NewKeys.HAS_CONFIDENCE_HEAD.format(arch=plan.architecture.name)
    return replace(plan, metadata={**plan.metadata, key: boolean(judges)})


def with_mask(vocabulary: Vocabulary, metadata: Metadata) -> Vocabulary:
    """The vocabulary, with the mask that a draft says it was trained with."""
    stated = metadata.get(Keys.Tokenizer.MASK_ID)
    if stated is None or not isinstance(stated.data, int):
        return vocabulary
    return replace(vocabulary, special={**vocabulary.special, "mask": stated.data})


def check_tokens(checkpoint: Checkpoint, outputs: Sequence[TensorPlan], size: int) -> None:
    """Whether a draft of fewer tokens says of each which one of the target's it is. size: of the target's vocabulary.

    Malformed: one is outside of the vocabulary, or there twice.
    """
    for output in outputs:
        if not isinstance(output.op, PlaceAdded):
            continue
        (source,) = output.sources
        distances = np.empty((source.shape[0], 1), np.int64)
        with checkpoint:
            checkpoint.read_into(source, 0, distances.data.cast("B"))
        tokens = distances[:, 0] + np.arange(len(distances))
        wrong = (tokens < 0) | (tokens >= size)
        if wrong.any():
            what = f"token {tokens[wrong][0]} is outside of the vocabulary of {size}"
        elif len(np.unique(tokens)) < len(tokens):
            what = "a token is there twice"
        else:
            continue
        raise Malformed(
            what,
            where=f"{checkpoint.folder}: {source.name}",
            fix="Download the draft again.",
        )
