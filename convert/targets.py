"""The larger model that a draft model guesses tokens for: its folder gives keys and the vocabulary of the draft's file.

Source: llama.cpp's converter with --target-model-dir; conversion/llama.py and conversion/qwen.py.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf.constants import Keys
from numpy.typing import NDArray

from ggufsmith.container import encoders
from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.values import Metadata, boolean
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.architectures.groups import TARGET, of_target
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewKeys, NewTensor, base_name
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.ops import PlaceAdded
from ggufsmith.convert.plan import Plan, TensorPlan, find_architecture
from ggufsmith.convert.stored import Checkpoint
from ggufsmith.tokenizer.vocabulary import Vocabulary

MASK = "mask_embedding.pt"
PADDING = 128  # tokens by which vocabularies may differ: SPEC_VOCAB_MAX_SIZE_DIFFERENCE of llama.cpp


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
    if not _writes(larger):
        raise Usage(
            f"{larger.classes[0]} is not a model that writes with attention, so nothing drafts for it",
            where=home,
            fix="Name the model that the draft was trained for with --target.",
        )
    if larger.drafts:
        raise Usage("this is a draft model itself", where=home, fix="Name the model that it drafts for with --target.")
    return Target(home, config.renamed(larger.aliases).with_defaults(larger.defaults), larger)


def check_named(given: Path | None) -> None:
    """Usage if what --target names is not a folder. "" is the folder here, which is meant only if it holds a model."""
    if given is not None and (not given.is_dir() or (given == Path() and not list(Path().glob("*.json")))):
        raise Usage(
            "there is no such folder" if not given.exists() else "this is not the folder of a model",
            where=given,
            fix="Name the folder of the larger model, on this machine, with --target.",
        )


def _writes(record: Architecture) -> bool:
    """Whether a model gives the next token, from hidden states that attention makes: drafts are trained with such."""
    bases = [base_name(tensor) for tensor in record.known]
    attends = any(base.startswith("blk.{bid}.attn_") and "norm" not in base for base in bases)
    return attends and record.name not in encoders.NAMES


def check_fit(plan: Plan, config: Config, target: Target | None) -> None:
    """Whether the sizes of a draft and of the larger model belong together. Usage, with all that do not, if not."""
    if target is None:
        return
    wrong = []
    tokens = of_target(config, "vocab_size") if "vocab_size" in target.config else plan.dims.vocab
    if abs(plan.dims.vocab - tokens) > PADDING:
        wrong.append(f"a vocabulary of {plan.dims.vocab} tokens, but the larger model has {tokens}")
    for key, name in (("target_hidden_size", "hidden_size"), ("num_target_layers", "num_hidden_layers")):
        stated = config.integer(key)
        if stated is not None and stated != of_target(config, name):
            wrong.append(f"{key} {stated}, but {name} of the larger model is {of_target(config, name)}")
    if wrong:
        raise Usage(
            f"this is not the model that the draft was trained for: the draft has {'; and '.join(wrong)}",
            where=target.folder,
            fix="Name the model that it was trained for with --target.",
        )


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


def _as_t2d(checkpoint: Checkpoint, tokens: NDArray[np.int64], size: int) -> bool:
    """Whether these are the tokens that t2d marks, if there is one: a truth for each token of the larger model."""
    marks = next((source for name, source in checkpoint.tensors.items() if f".{name}".endswith(".t2d")), None)
    if marks is None or marks.dtype != "BOOL":
        return True
    marked = np.empty((math.prod(marks.shape), 1), np.uint8)
    with checkpoint:
        checkpoint.read_into(marks, 0, marked.data.cast("B"))
    return np.array_equal(np.flatnonzero(marked), np.sort(tokens))


def check_tokens(checkpoint: Checkpoint, outputs: Sequence[TensorPlan], size: int) -> None:
    """Whether a draft of fewer tokens says of each which one of the target's it is. size: of the target's vocabulary.

    Malformed: one is outside of the vocabulary, or there twice, or t2d says otherwise.
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
        elif not _as_t2d(checkpoint, tokens, size):
            what = "t2d names other tokens that the draft can guess than d2t does"
        else:
            continue
        raise Malformed(
            what,
            where=f"{checkpoint.folder}: {source.name}",
            fix="Download the draft again.",
        )
