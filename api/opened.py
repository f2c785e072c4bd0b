"""Models that a command only looks at: whatever gguf-convert takes, opened without planning an output for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.container.layout import TensorSpec
    from ggufsmith.container.values import Metadata
    from ggufsmith.pipeline.request import SourceOptions
    from ggufsmith.pipeline.stream import RowSource


@dataclass(frozen=True)
class OpenedSource:
    """A model that can be read.

    tensors:   rows of its tensors. specs: names, shapes and types of the same tensors in a GGUF file made of it.
    alignment: of that file.
    """

    tensors: "Sequence[RowSource]"
    specs: "Sequence[TensorSpec]"
    metadata: "Metadata"
    alignment: int


@contextmanager
def opened_source(name: str, options: "SourceOptions", outtype: str, display: Display) -> Iterator[OpenedSource]:
    """Open a model folder, an adapter, a GGUF or old GGML file, or a model on a hub, whose weights are not stored.

    outtype: what the matrices of a folder are converted to (see `MakeOptions.outtypes`); those of files stay.
    Raises what is wrong with the source; Usage for options that mean nothing for it.
    """
    from ggufsmith.container.layout import TensorSpec
    from ggufsmith.convert.open import file_of, open_pass
    from ggufsmith.located import HubRequest, located
    from ggufsmith.pipeline.request import MakeOptions, Request
    from ggufsmith.quantize.resolve import refuse_unfit
    from ggufsmith.quantize.source import open_model
    from ggufsmith.quantize.tensors import GgufTensor

    file = file_of(name)
    if file is not None:
        refuse_unfit(Request(file, options), "file")
        with open_model(file).files as files:
            tensors = [GgufTensor(files, info, info.name) for info in files.tensors.values()]
            specs = [TensorSpec(info.name, info.shape, info.format) for info in files.tensors.values()]
            yield OpenedSource(tensors, specs, files.metadata, files.alignment)
        return
    wanted = HubRequest(name, options.revision, options.token, stream=True, weights=True)
    with located(wanted, display) as found:
        request = Request(found.folder, options, MakeOptions(outtypes=(outtype,) if outtype else ()))
        with open_pass(request, found.open_files) as planned:
            layout = planned.outputs[0].shards.whole
            yield OpenedSource(planned.tensors, layout.tensors, planned.info.metadata, layout.alignment)
