"""Whether a GGUF file is a model or a projector that llama.cpp could load, before work goes into it.

Adapters and importance matrices are GGUF files too. Quantizing leaves most of their tensors as they are, so that the
run would succeed, and its output be of no use. What llama.cpp finds when it loads a file is found here: the kind of the
file, an architecture's tensors by name, blocks beyond the last.

Source: llama.cpp, src/llama-arch.cpp (names), src/models/*.cpp (which of them each graph reads), src/llama-adapter.cpp,
tools/imatrix, tools/mtmd/clip.cpp; `gguf.constants` for the names of each architecture.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES, GGUFType, Keys

from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.values import Metadata

MAX_LISTED = 8  # tensors that a message names
T, A = MODEL_TENSOR, MODEL_ARCH
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
# The last parts of names; some tensors have none.
SUFFIXES = frozenset("weight bias scale input_scale scales".split())
ACTIVATIONS = "blk.{bid}.ffn.act"  # of MPT models quantized by AWQ; gguf.constants lacks it
SHARED_EXPERT = (T.FFN_GATE_SHEXP, T.FFN_UP_SHEXP, T.FFN_DOWN_SHEXP)
# Architectures of which every tensor is known; what gguf.constants lists only for others, and llama.cpp reads.
EXACT: Mapping[MODEL_ARCH, tuple[MODEL_TENSOR, ...]] = {
    A.LLAMA: (*SHARED_EXPERT, T.ROPE_FACTORS_LONG, T.ROPE_FACTORS_SHORT),
    A.QWEN2: (),
    A.QWEN2MOE: (),
    A.QWEN3: (T.CLS_OUT,),
    A.QWEN3MOE: (),
    A.PHI3: (),
    A.GEMMA2: (),
    A.GEMMA3: (T.DENSE_2_OUT, T.DENSE_3_OUT),
}
# general.type, or an architecture that stands for one -> what the file is, and what to do with it.
OTHER_KINDS: Mapping[str, tuple[str, str]] = {
    GGUFType.ADAPTER: (
        "a LoRA adapter",
        "llama.cpp takes it unchanged, with --lora FILE beside the quantized model. To merge the adapter into its "
        "base: "
        "gguf-convert BASE --lora FOLDER, with the folder of the PEFT adapter that it was made from.",
    ),
    GGUFType.IMATRIX: ("an importance matrix", "Pass the model here, and this file with --imatrix FILE."),
    GGUFType.MMPROJ: (
        "a projector",
        "It turns images or sound into embeddings for a text model and cannot be used alone. Pass the text model.",
    ),
    "controlvector": ("a control vector", "llama.cpp takes it unchanged, with --control-vector FILE."),
}
BY_ARCHITECTURE = {"clip": GGUFType.MMPROJ, "imatrix": GGUFType.IMATRIX, "controlvector": "controlvector"}
BY_ENDING = {".lora_a": GGUFType.ADAPTER, ".lora_b": GGUFType.ADAPTER, ".in_sum2": GGUFType.IMATRIX}


def check_model(metadata: Metadata, names: Sequence[str], where: object) -> None:
    """Raises unless these keys and tensors can be those of a model, or of a projector.

    Unsupported: another kind of file, or tensors that llama.cpp does not know in this architecture. Malformed: no
    architecture, or blocks beyond the model's last. Of an architecture that the gguf package does not know, the names
    are not judged.
    """
    if kind_of(metadata, names) == GGUFType.MMPROJ:
        return
    failure = (
        other_kind(metadata, names, where)
        or _nameless(metadata, where)
        or _unknown(metadata, names, where)
        or _beyond(metadata, names, where)
    )
    if failure is not None:
        raise failure


def _text(metadata: Metadata, key: str) -> str | None:
    value = metadata.get(key)
    return value.data if value is not None and isinstance(value.data, str) else None


def kind_of(metadata: Metadata, names: Iterable[str]) -> str | None:
    """What a file is if it is not a model: its general.type, or what stands for it. None for a model."""
    kind = _text(metadata, Keys.General.TYPE)
    if kind in (None, GGUFType.MODEL):
        kind = BY_ARCHITECTURE.get(_text(metadata, Keys.General.ARCHITECTURE) or "")
    return kind or next((kind for name in names for end, kind in BY_ENDING.items() if name.endswith(end)), None)


def other_kind(metadata: Metadata, names: Iterable[str], where: object) -> Failure | None:
    """What is wrong with a file that is not a model; None for a model."""
    kind = kind_of(metadata, names)
    if kind is None:
        return None
    what, fix = OTHER_KINDS.get(kind, (f"a GGUF file of the type {kind[:40]!r}", "Pass a model."))
    return Unsupported(f"this is {what}, not a model", where=where, fix=fix)


def _nameless(metadata: Metadata, where: object) -> Failure | None:
    if Keys.General.ARCHITECTURE in metadata:
        return None
    return Malformed("general.architecture is missing, so this is not a model", where=where)


def _unknown(metadata: Metadata, names: Sequence[str], where: object) -> Failure | None:
    architecture = _text(metadata, Keys.General.ARCHITECTURE)
    known = _names_of(architecture)
    unknown = [name for name in names if known is not None and not _is_known(name, known)]
    if not unknown:
        return None
    return Unsupported(
        f"llama.cpp does not know {_count(unknown)} in {architecture} models and would not load the file",
        where=where,
        also=_listed(unknown),
        fix="Convert the original model again. If the model is newer than this program: pip install --upgrade gguf.",
    )


def _is_known(name: str, known: frozenset[str]) -> bool:
    base, _, last = name.rpartition(".")
    return any(NUMBER.sub("{bid}", part, count=1) in known for part in ((base, name) if last in SUFFIXES else (name,)))


@cache
def _names_of(architecture: str | None) -> frozenset[str] | None:
    """The names of its tensors, {bid} for the number of the block; None for an architecture that is not known here."""
    arch = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if arch is None:
        return None
    if arch in EXACT:
        return frozenset(TENSOR_NAMES[tensor] for tensor in (*MODEL_TENSORS[arch], *EXACT[arch]))
    # The package lags behind llama.cpp in which architecture has which tensor, and not in how tensors are called.
    every = {tensor for other, tensors in MODEL_TENSORS.items() if other is not A.MMPROJ for tensor in tensors}
    return frozenset(TENSOR_NAMES[tensor] for tensor in every) | {ACTIVATIONS}


def _beyond(metadata: Metadata, names: Sequence[str], where: object) -> Failure | None:
    architecture = _text(metadata, Keys.General.ARCHITECTURE)
    count = metadata.get(Keys.LLM.BLOCK_COUNT.format(arch=architecture))
    if count is None or not isinstance(count.data, int):
        return None
    blocks = {name: int(name.split(".")[1]) for name in names if re.match(r"blk\.\d{1,6}\.", name)}
    beyond = [name for name, block in blocks.items() if block >= count.data]
    if not beyond:
        return None
    return Malformed(
        f"the keys say that the model has {count.data} blocks, but it has {_count(beyond)} beyond them",
        where=where,
        also=_listed(beyond),
        fix="Download the file again, or convert the original model again.",
    )


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} of its tensors" if len(names) > 1 else f"its tensor {names[0]}"


def _listed(names: Sequence[str]) -> list[str]:
    if len(names) == 1:
        return []
    return [*names[:MAX_LISTED], *([f"and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else [])]
