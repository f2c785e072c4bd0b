"""The model card of GGUF files, as they lie in a folder."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from gguf.constants import Keys

from ggufsmith.container.apart import one_of
from ggufsmith.container.errors import OutputConflict
from ggufsmith.container.release import own_version
from ggufsmith.container.replace import replace_text
from ggufsmith.container.shards import GgufSet, open_gguf_set
from ggufsmith.container.text import told_apart
from ggufsmith.container.untrusted import begins, read_text
from ggufsmith.container.values import Metadata
from ggufsmith.naming.cardfacts import CardFacts, CardFile, Publisher, facts_of, imatrix_of, quantized_by, unfit_share
from ggufsmith.naming.modelcard import MARK, card_text
from ggufsmith.naming.suggest import encoding_of

SENSES = {Keys.Clip.HAS_VISION_ENCODER: "images", Keys.Clip.HAS_AUDIO_ENCODER: "sound"}


def card_of(
    files: Sequence[Path],
    publisher: Publisher,
    *,
    digest: Callable[[Path], str] | None,
    template: Path | None = None,
) -> str:
    """The card of these files, read from their headers. Shards of one set, and a file and its links, count once.

    Of files with equal names in different folders, all but the first are named with their folders.

    digest: gives the SHA-256 of a file; None leaves the hashes out. template: see `cardtemplate.render_card`.
    """
    facts = card_facts(files, publisher, digest=digest)
    if template is None:
        return card_text(facts)
    from ggufsmith.naming.cardtemplate import render_card

    return render_card(template, facts)


def card_facts(
    files: Sequence[Path], publisher: Publisher, *, digest: Callable[[Path], str] | None = None
) -> CardFacts:
    """What there is to say of these files (see `card_of`)."""
    found: dict[str, CardFile] = {}
    firsts: list[Path] = []
    metadata, seeing = None, False
    for path in files:
        with open_gguf_set(path) as model:
            if (kind := model.metadata.get(Keys.General.TYPE)) is not None and kind.data == "imatrix":
                continue  # it lies beside the models, and is none
            senses = senses_of(model.metadata)
            if metadata is None or (seeing and not senses):  # what the card says of a model is not in a projector
                metadata, seeing = model.metadata, bool(senses)
            if one_of(model.paths[0], firsts):
                continue
            firsts.append(model.paths[0])
            folder, slash, _ = told_apart(firsts)[-1].rpartition("/")  # of a name that another folder has as well
            names = tuple(f"{folder}{slash}{each.name}" for each in model.paths)
            found[names[0]] = _card_file(model, names, tuple(map(digest, model.paths)) if digest else ())
    return facts_of(metadata or {}, list(found.values()), publisher, version=own_version())


def _card_file(model: GgufSet, names: tuple[str, ...], digests: tuple[str, ...]) -> CardFile:
    tensors = list(model.tensors.values())
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.format.name] += math.prod(tensor.shape)
    encoding = encoding_of(model.metadata)
    return CardFile(
        names,
        model.size,
        8 * sum(tensor.nbytes for tensor in tensors) / max(weights.total(), 1),
        encoding,
        digests,
        main=weights.most_common(1)[0][0] if weights else None,
        unfit=unfit_share(encoding, [tensor.shape for tensor in tensors]),
        imatrix=imatrix_of(model.metadata),
        by=quantized_by(model.metadata),
        senses=senses_of(model.metadata),
    )


def senses_of(metadata: Metadata) -> tuple[str, ...]:
    """What a projector is for; nothing for a model."""
    return tuple(sense for key, sense in SENSES.items() if (value := metadata.get(key)) is not None and value.data)


def check_card(path: Path, fix: str) -> None:
    """OutputConflict for a file at the card's place that is not a card of ours. See `begins` for what cannot
    be read."""
    if path.exists() and MARK not in begins(path):
        raise OutputConflict("a README.md that ggufsmith did not write already exists", where=path, fix=fix)


def card_text_at(path: Path) -> str:
    """The card that is there, its line ends as they are; empty if there is none. Raises what `read_text` raises."""
    return read_text(path) if path.exists() else ""


def write_card(path: Path, text: str, *, fix: str) -> None:
    """Write the card (see `replace_text`). OutputConflict, with `fix`, for a file that this program did not write."""
    check_card(path, fix=fix)
    replace_text(path, text)
