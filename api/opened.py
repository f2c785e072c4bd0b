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
    copied:    specs of the tensors in a file whose types are those of the source, as far as GGUF has them.
    """

    tensors: "Sequence[RowSource]"
    specs: "Sequence[TensorSpec]"
    metadata: "Metadata"
    alignment: int
    copied: "Sequence[TensorSpec]" = ()


@contextmanager
def opened_source(
    name: str, options: "SourceOptions", outtype: str, display: Display, *, projector: bool = False
) -> Iterator[OpenedSource]:
    """Open a model folder, an adapter, a GGUF or old GGML file, or a model on a hub, whose weights are not stored.

    outtype: what the matrices of a folder are converted to (see `MakeOptions.outtypes`); those of files stay.
    projector: open the projector of a folder, in place of its text model.
    Raises what is wrong with the source; Usage for options that mean nothing for it.
    """
    from ggufsmith.container.layout import TensorSpec
    from ggufsmith.convert.lora.peft import is_adapter
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
            yield OpenedSource(tensors, specs, files.metadata, files.alignment, specs)
        return
    wanted = HubRequest(name, options.revision, options.token, stream=True, weights=True)
    with located(wanted, display) as found:
        copies = ("copy",) if outtype and not is_adapter(found.folder) else ()
        make = MakeOptions(outtypes=(outtype,) if outtype else (), recipes=copies, mmproj=projector)
        with open_pass(Request(found.folder, options, make), found.open_files) as planned:
            output = planned.outputs[-1 if projector else 0]
            layout = output.shards.whole
            metadata = layout.metadata if projector else planned.info.metadata
            copied = planned.outputs[1].shards.whole.tensors if copies else ()
            yield OpenedSource(planned.tensors_of(output), layout.tensors, metadata, layout.alignment, copied)
