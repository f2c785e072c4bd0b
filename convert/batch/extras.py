"""What stands beside the outputs of a model for people: the SHA-256 sums and the model card."""

from collections.abc import Sequence
from importlib.metadata import version

from ggufsmith.container.errors import Failure, OutputConflict
from ggufsmith.container.shards import open_gguf_set
from ggufsmith.convert.batch.jobfile import Model
from ggufsmith.convert.batch.state import Made, write_text
from ggufsmith.naming.modelcard import MARK, CardFile, Publisher, model_card
from ggufsmith.naming.suggest import encoding_of


def check_extras(model: Model) -> None:
    """OutputConflict for a file at the card's place that is no card of ours."""
    path = model.beside("card")
    try:
        if path and path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
            fix = 'Move it away, or name another file with card = "…".'
            raise OutputConflict("is there already, and is no model card of ours", where=path, fix=fix)
    except OSError as error:
        raise Failure(f"cannot read: {error.strerror}", where=path) from error


def write_extras(model: Model, outputs: Sequence[Made]) -> None:
    """Write the sums and the card that the job asks for, of these outputs."""
    if path := model.beside("checksums"):  # the format of sha256sum --check
        write_text(path, "".join(f"{file.sha256}  {file.name}\n" for made in outputs for file in made.files))
    if path := model.beside("card"):
        write_text(path, _card(model, outputs))


def _card(model: Model, outputs: Sequence[Made]) -> str:
    found = []
    metadata = None
    for made in outputs:
        names, hashes = zip(*((file.name, file.sha256) for file in made.files), strict=True)
        with open_gguf_set(model.folder / names[0]) as gguf:
            metadata = metadata or gguf.metadata
            found.append(CardFile(names, made.size, made.bits_per_weight, encoding_of(gguf.metadata), hashes))
    said = model.settings
    publisher = Publisher(said["repo"] or None, said["base_model"] or None, said["author"] or None)
    return model_card(metadata or {}, found, publisher, version=version("ggufsmith"))
