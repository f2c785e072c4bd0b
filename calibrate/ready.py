"""What has to be there before a model is run: the model itself, its text in windows, a device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf.constants import Keys

from ggufsmith.evaluate.needed import find_device
from ggufsmith.evaluate.texts import TextDocument, read_texts, shipped
from ggufsmith.evaluate.tokenize import tokenizer_of
from ggufsmith.evaluate.windows import Windows, make_windows
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request, TextOptions
from ggufsmith.tokenizer.restore import vocabulary_of

if TYPE_CHECKING:
    from ggufsmith.evaluate.skeleton import Skeleton
    from ggufsmith.evaluate.variants import SourceModel


@dataclass(frozen=True)
class Readied:
    """A model that is open, and what it is to be run on. device: where. dtype: the numbers that it computes in."""

    model: "SourceModel"
    skeleton: "Skeleton"
    windows: Windows
    device: str
    dtype: str = "float32"

    @property
    def notes(self) -> tuple[str, ...]:
        """For the report."""
        return (*self.model.notes, *self.windows.notes)


@contextmanager
def readied(request: Request, open_pass: Callable[[Request], Pass], reading: TextOptions) -> Iterator[Readied]:
    """Open the model of a request, and cut the text into windows.

    Usage for a device that is not there, and for a text shorter than a window; Unsupported without torch, for an
    architecture that transformers lacks, or a vocabulary that cannot be used here.
    """
    documents = documents_of(reading)
    from ggufsmith.evaluate.variants import opened_by

    with opened_by(open_pass, request) as model:
        device = find_device(reading.device)
        from ggufsmith.evaluate.skeleton import build_skeleton

        metadata = model.source.metadata
        name = metadata.get(Keys.General.NAME)
        tokenize = tokenizer_of(vocabulary_of(metadata, request.path), str(name.data) if name else "")
        windows = make_windows(
            documents,
            tokenize,
            context=reading.context,
            chunks=reading.chunks,
            by_domain=False,
            longest=model.source.context_length,
        )
        yield Readied(model, build_skeleton(model), windows, device)


def documents_of(reading: TextOptions) -> list[TextDocument]:
    """The texts that are asked for; by default the calibration text that ships with the package."""
    return read_texts(reading.text) if reading.text else shipped("calibration")


def text_names() -> tuple[str, ...]:
    """What the importance matrix of the shipped text names as its texts."""
    return tuple(dict.fromkeys(document.name for document in shipped("calibration")))
