"""The model card of GGUF files, as they lie in a folder."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from ggufsmith.container.errors import Failure, OutputConflict
from ggufsmith.container.release import own_version
from ggufsmith.container.shards import open_gguf_set
from ggufsmith.naming.modelcard import MARK, CardFile, Publisher, model_card
from ggufsmith.naming.suggest import encoding_of


def card_of(files: Sequence[Path], publisher: Publisher, *, digest: Callable[[Path], str] | None) -> str:
    """The card of these files, read from their headers. Several shards of one set count once.

    digest: gives the SHA-256 of a file; None leaves the hashes out.
    """
    found: dict[str, CardFile] = {}
    metadata = None
    for path in files:
        with open_gguf_set(path) as model:
            metadata = metadata or model.metadata
            names = tuple(each.name for each in model.paths)
            if names[0] in found:
                continue
            weights = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
            size = sum(tensor.nbytes for tensor in model.tensors.values())
            digests = tuple(map(digest, model.paths)) if digest else ()
            bits = 8 * size / max(weights, 1)
            found[names[0]] = CardFile(names, model.size, bits, encoding_of(model.metadata), digests)
    return model_card(metadata or {}, list(found.values()), publisher, version=own_version())


def check_card(path: Path, fix: str) -> None:
    """OutputConflict for a file at the card's place that is not a card of ours. Failure if it cannot be read."""
    try:
        ours = not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise Failure(f"the file cannot be read: {error.strerror}", where=path) from error
    if not ours:
        raise OutputConflict("a README.md that ggufsmith did not write already exists", where=path, fix=fix)
