"""File names out of a header: what the naming convention makes of the `general.*` keys and the tensors.

GGUF specification (ggml, docs/gguf.md), "GGUF Naming Convention"; the encoding is named after general.file_type.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from gguf.constants import GGUFType, Keys, LlamaFileType

from ggufsmith.container.values import Metadata
from ggufsmith.naming.filename import FileName
from ggufsmith.naming.identity import Identity, Parameters, identify

General = Keys.General
ENCODINGS = {  # those that general.file_type can say; recipes of one's own have other names
    kind: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
    for kind in LlamaFileType
    if kind is not LlamaFileType.GUESSED
}
FIRST_VERSION = "v1.0"  # "If model is missing a version number then assume v1.0 (First Public Release)"


def encoding_of(metadata: Metadata) -> str | None:
    """`Q4_K_M` for general.file_type 15; None if the header does not say, or says what nobody knows."""
    value = metadata.get(General.FILE_TYPE)
    try:
        return ENCODINGS.get(LlamaFileType(value.data)) if value else None
    except ValueError:
        return None


def name_of(
    metadata: Metadata,
    tensors: Mapping[str, Sequence[int]],
    *,
    encoding: str | None = None,
    shard: tuple[int, int] | None = None,
    strict: bool = False,
) -> FileName:
    """The name of a file with this header.

    tensors:  name -> shape (slowest axis first), for the size where no key says it.
    encoding: instead of that of general.file_type.
    strict:   the letter of the convention: a version even if none is known.
    """

    def said(key: str) -> str | None:
        value = metadata.get(key)
        text = re.sub(r"[^\w.]+", "-", str(value.data), flags=re.ASCII).strip("-") if value else ""
        return text or None

    parameters = Parameters.of(tensors.items())
    name = said(General.NAME)
    guess = identify(name, parameters.total) if name else Identity()
    version = said(General.VERSION) or guess.version
    if version and version[0].isdecimal():
        version = f"v{version}"
    kind = said(General.TYPE)
    vocabulary = not tensors and Keys.Split.LLM_KV_SPLIT_COUNT not in metadata  # the first shard may have none
    return FileName(
        base=said(General.BASENAME) or guess.basename or name or "model",
        size_label=said(General.SIZE_LABEL) or guess.size_label or (parameters.size_label if tensors else None),
        fine_tune=said(General.FINETUNE) or guess.finetune,
        version=version or (FIRST_VERSION if strict else None),
        encoding=None if vocabulary else encoding or encoding_of(metadata),
        type="LoRA" if kind == GGUFType.ADAPTER else "vocab" if vocabulary else None,
        shard=shard,
        sidecar="mmproj" if kind == GGUFType.MMPROJ else None,
    )


def disagreements(name: FileName, header: FileName) -> Iterator[str]:
    """Where a name says something else than the header of its file."""
    for field in fields(FileName):
        said, known = getattr(name, field.name), getattr(header, field.name)
        if field.name == "encoding" and str(said).upper() not in ENCODINGS.values():
            continue
        if said is not None and known is not None and str(said).casefold() != str(known).casefold():
            yield f"{field.name.replace('_', ' ')}: the name says {said}, the header {known}"
