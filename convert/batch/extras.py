"""What stands beside the outputs of a model for people: the SHA-256 sums and the model card."""

from collections.abc import Sequence
from pathlib import Path

from ggufsmith.container.replace import replace_text
from ggufsmith.convert.batch.jobfile import JobModel
from ggufsmith.convert.batch.state import FinishedOutput
from ggufsmith.naming.cardfacts import Publisher
from ggufsmith.naming.cardtemplate import check_template
from ggufsmith.naming.filecard import card_of, check_card


def check_extras(model: JobModel) -> None:
    """OutputConflict for a file at the card's place that is no card of ours. Usage: see `Publisher`."""
    if path := model.beside("card"):
        _publisher(model)
        if template := _template(model):
            check_template(template)
        check_card(path, fix='Move it away, or choose another file with card = "…".')


def write_extras(model: JobModel, outputs: Sequence[FinishedOutput]) -> None:
    """Write the sums and the card that the job asks for, of these outputs."""
    if path := model.beside("checksums"):  # the format of sha256sum --check
        sums = "".join(f"{file.sha256}  {file.name}\n" for made in outputs for file in made.files)
        replace_text(path, sums, alone=True)
    if path := model.beside("card"):
        digests = {file.name: file.sha256 for made in outputs for file in made.files}
        files = [model.folder / made.files[0].name for made in outputs]
        text = card_of(files, _publisher(model), digest=lambda file: digests[file.name], template=_template(model))
        replace_text(path, text, alone=True)


def _template(model: JobModel) -> Path | None:
    text = model.settings["card_template"]
    return Path(text) if text else None


def _publisher(model: JobModel) -> Publisher:
    said = model.settings
    return Publisher(said["repo"] or None, said["base_model"] or None, said["author"] or None)
