"""Models that are named instead of given as a folder: options, download, progress."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.convert.hub.listing import Advance
    from ggufsmith.convert.hub.names import Located


@dataclass(frozen=True)
class HubRequest:
    """A model as it is asked for. weights: False leaves them out, for the vocabulary alone."""

    name: str
    revision: str | None
    token: str | None
    stream: bool
    weights: bool


@contextmanager
def located(wanted: HubRequest, display: Display, *, before: Callable[[], None] = lambda: None) -> Iterator["Located"]:
    """The folder that is named, or the model on a hub, downloaded, or opened where it is.

    before: checks what else will be needed, before anything is downloaded.
    """
    from ggufsmith.container.errors import Failure
    from ggufsmith.convert.hub.names import Located, hub_model

    model = hub_model(wanted.name, wanted.revision)
    if model is None:
        yield Located(Path(wanted.name))
        return
    before()
    from ggufsmith.convert.hub.download import download, hub_of, streamed

    def progress(size: int) -> AbstractContextManager["Advance"]:
        return display.progress(f"downloading {model.id}", size, "bytes")

    with ExitStack() as stack:
        try:
            hub = hub_of(model, wanted.token)
            if wanted.stream and wanted.weights:
                found = stack.enter_context(streamed(model, hub, progress))
            else:
                found = download(model, hub, weights=wanted.weights, progress=progress)
        except Failure as error:
            if "://" not in wanted.name:
                error.add_note(
                    f"There is no folder or file {wanted.name!r} here, so the model was looked up on the hub."
                )
            raise
        yield found
