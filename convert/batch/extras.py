"""What stands beside the outputs of a model for people: the SHA-256 sums and the model card."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ggufsmith.container.provenance import file_sha256, sum_line
from ggufsmith.container.replace import replace_text
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.state import FinishedOutput
from ggufsmith.naming.cardfacts import Publisher
from ggufsmith.naming.cardtemplate import check_template
from ggufsmith.naming.filecard import card_of, check_card
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request
from ggufsmith.quantize.measured import Progress, silently


class Measures(Protocol):
    """Measures what outputs have lost (`evaluate`), which needs what this package does not."""

    def check(self, request: Request, open_pass: Callable[[Request], Pass]) -> None:
        """Raises if the model cannot be run."""

    def with_table(
        self, card: str, model: JobModel, files: Sequence[Path], check: Callable[[], None], progress: Progress
    ) -> str:
        """The card with the table of these outputs of a model. check: called now and then. progress: shows how far it
        is.
        """


def check_extras(model: JobModel) -> None:
    """OutputConflict for a file at the card's place that is no card of ours. Usage: see `Publisher`."""
    if path := model.beside("card"):
        _publisher(model)
        if template := _template(model):
            check_template(template)
        check_card(path, fix='Move it away, or choose another file with card = "…".')


def write_extras(
    model: JobModel,
    outputs: Sequence[FinishedOutput],
    measures: Measures | None,
    check: Callable[[], None],
    progress: Progress = silently,
) -> None:
    """Write the sums and the card that the job asks for, of these outputs.

    The sums have the importance matrix that is kept beside them too. check: called now and then. progress: shows how
    far a measurement of the quality is.
    """
    if path := model.beside("checksums"):  # the format of sha256sum --check
        sums = {file.name: file.sha256 for made in outputs for file in made.files}
        if (kept := model.kept_imatrix) and kept.is_file():
            sums[kept.name] = file_sha256(kept, lambda size: check())
        lines = (f"{sum_line(digest, name)}\n" for name, digest in sums.items())
        replace_text(path, "".join(lines), alone=True)
    if path := model.beside("card"):
        digests = {file.name: file.sha256 for made in outputs for file in made.files}
        files = [model.folder / made.files[0].name for made in outputs]
        card = card_of(files, _publisher(model), digest=lambda file: digests[file.name], template=_template(model))
        if model.settings["quality"] and measures:
            projectors = {each.label for each in model.wanted if each.projector}
            models = [file for file, made in zip(files, outputs, strict=True) if made.label not in projectors]
            card = measures.with_table(card, model, models, check, progress)
        replace_text(path, card, alone=True)


def _template(model: JobModel) -> Path | None:
    text = model.settings["card_template"]
    return Path(text) if text else None


def _publisher(model: JobModel) -> Publisher:
    said = model.settings
    return Publisher(said["repo"] or None, said["base_model"] or None, said["author"] or None)
