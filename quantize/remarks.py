"""What users should know of planned outputs, although nothing is wrong with them. Pure functions, before any work."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from gguf.constants import Keys
from numpy.typing import NDArray

from ggufsmith.container.drafts import drafting_kind, is_draft
from ggufsmith.container.encoders import embeds, ranks, server_flag
from ggufsmith.container.shards import SUFFIX
from ggufsmith.container.text import shell_command
from ggufsmith.container.values import Metadata
from ggufsmith.pipeline.outputs import OutputFile

# Types that llama.cpp got after most programs that embed it were last built.
RECENT = ("Q1_0", "Q2_0", "NVFP4")


def remarks(outputs: Sequence[OutputFile]) -> tuple[str, ...]:
    """All remarks on the outputs of one pass, as sentences for the report."""
    return (
        *same_files(outputs),
        *recent_types(outputs),
        *other_endings(outputs),
        *no_template(outputs),
        *how_it_is_served(outputs),
    )


def same_files(outputs: Sequence[OutputFile]) -> Iterator[str]:
    """Outputs whose tensors are made in the same way from the same source: types and importance are equal."""
    for one, other in combinations(outputs, 2):
        first, second = one.shards.whole, other.shards.whole
        if not first.tensors or first.tensors != second.tensors or not _same_importance(one, other):
            continue
        if first.header == second.header:
            what = "will be byte-identical: one of them is enough"
        else:
            what = "will hold byte-identical tensors and differ only in their metadata"
        yield f"{one.path.name} and {other.path.name} {what}"


def _same_importance(one: OutputFile, other: OutputFile) -> bool:
    """Whether the same importance, or none, has a part in the bytes of every quantized tensor."""
    tensors = one.shards.whole.tensors
    nothing = [None] * len(tensors)
    pairs = zip(tensors, one.importance or nothing, other.importance or nothing, strict=True)
    return all(spec.format.plain or _equal(a, b) for spec, a, b in pairs)


def _equal(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def recent_types(outputs: Sequence[OutputFile]) -> Iterator[str]:
    """Types that only new runtimes know."""
    for output in outputs:
        found = [name for name in RECENT if name in output.types]
        if found:
            types = " and ".join(found)
            yield (
                f"{output.path.name} has tensors of type {types}, which needs a recent llama.cpp; older versions, "
                f"and programs built on them, refuse the file"
            )


def other_endings(outputs: Sequence[OutputFile]) -> Iterator[str]:
    """Names by which few programs find a model."""
    for output in outputs:
        if not output.path.name.lower().endswith(SUFFIX):
            yield (
                f"the name {output.path.name} does not end in {SUFFIX}: llama.cpp loads the file, but many programs "
                "find models only by that ending"
            )


def no_template(outputs: Sequence[OutputFile]) -> Iterator[str]:
    """Models for text that say nothing of the form of a chat."""
    for output in outputs[:1]:
        if not _chats(output.shards.whole.metadata):
            yield (
                "the model has no chat template, as is usual for base models: chat programs will guess the prompt "
                "format"
            )


def _chats(metadata: Metadata) -> bool:
    """Whether a chat template is there, or would not make sense: for adapters, and for models that embed or rank."""
    kind = metadata.get(Keys.General.TYPE)
    return (
        Keys.Tokenizer.CHAT_TEMPLATE in metadata
        or Keys.Tokenizer.CHAT_TEMPLATES in metadata
        or Keys.Tokenizer.MODEL not in metadata
        or (kind is not None and kind.data == "adapter")
        or embeds(metadata)
    )


BESIDE = ("-m", "MODEL.gguf", "-md")


def how_it_is_served(outputs: Sequence[OutputFile]) -> Iterator[str]:
    """How to run a model that writes nothing, which few programs do by themselves."""
    for output in outputs[:1]:
        metadata = output.shards.whole.metadata
        kind = metadata.get(Keys.General.TYPE)
        if is_draft(metadata, {spec.name for spec in output.shards.whole.tensors}):
            yield (
                "this model guesses tokens for a larger one: "
                + shell_command("llama-server", *BESIDE, output.path.name, "--spec-type", drafting_kind(metadata))
            )
            continue
        flag = server_flag(metadata) if output.shards.whole.tensors else ""
        if flag and (kind is None or kind.data != "adapter"):
            made = "scores texts" if ranks(metadata) else "turns texts into vectors"
            yield f"this model {made}: {shell_command('llama-server', '-m', output.path.name, flag)}"
