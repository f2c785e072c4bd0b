"""Models on a hub as models on the disk: their headers to plan with, all of them, or a stream to make outputs from."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

from ggufsmith.container.errors import Unsupported
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.jobfile import named_as_adapter
from ggufsmith.convert.lora.peft import lists_adapter
from ggufsmith.convert.open import open_pass
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request


def pinned(model: JobModel) -> JobModel:
    """A model on a hub at the commit that its revision is now, its outputs named as what it is; any other as it is."""
    if model.hub is None:
        return model
    from ggufsmith.convert.hub.download import hub_of

    listing = hub_of(model.hub).listing(model.hub)
    wanted = named_as_adapter(model.wanted) if lists_adapter(listing.files) else model.wanted
    return replace(model, hub=replace(model.hub, revision=listing.commit), wanted=wanted)


@contextmanager
def located(
    model: JobModel, *, plan: bool, told: Callable[[int], None] = lambda size: None
) -> Iterator[tuple[JobModel, Callable[[Request], Pass]]]:
    """The model with its folder, and what opens it.

    plan: for the plan alone the headers of the weights are enough; pickled ones are downloaded all the same.
    told: of bytes as they come.
    """
    if model.hub is None:
        yield model, open_pass
        return
    from ggufsmith.convert.hub.download import download, hub_of, streamed

    def progress(size: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(told)

    hub = hub_of(model.hub)
    with ExitStack() as stack:
        found = None
        if plan or model.settings["stream"]:
            try:
                found = stack.enter_context(streamed(model.hub, hub, progress))
            except Unsupported:
                if model.settings["stream"]:
                    raise
        found = found or download(model.hub, hub, progress=progress)
        there = replace(model, request=replace(model.request, path=found.folder))
        yield there, partial(open_pass, open_files=found.open_files, notes=found.notes)
