"""Makes an importance matrix: opens a model, cuts the text into windows, runs them through it, and sums."""

from collections.abc import Callable
from dataclasses import dataclass

from gguf.constants import Keys

from ggufsmith.calibrate.collect import Collector
from ggufsmith.evaluate.needed import find_device
from ggufsmith.evaluate.texts import TextDocument, read_texts, shipped
from ggufsmith.evaluate.tokenize import tokenizer_of
from ggufsmith.evaluate.windows import make_windows
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request, TextOptions
from ggufsmith.quantize.imatrix.record import Imatrix
from ggufsmith.quantize.measured import Progress, silently
from ggufsmith.tokenizer.restore import vocabulary_of


@dataclass(frozen=True)
class Calibration:
    """An importance matrix, and how it came about. device: where the model ran. notes: for the report."""

    imatrix: Imatrix
    device: str
    notes: tuple[str, ...]


def make_imatrix(
    request: Request,
    open_pass: Callable[[Request], Pass],
    reading: TextOptions,
    *,
    process_output: bool = False,
    threads: int | None = None,
    progress: Progress = silently,
) -> Calibration:
    """The importance matrix of the model of a request. It runs block by block, in float32.

    process_output: sum the inputs of output.weight too. progress: shows how many weights the
    windows went through.

    Raises what is wrong with the text, the model or the device, before the first block is run: Usage without torch, for
    a device that is not there, and for a text shorter than a window; Unsupported for an architecture that transformers
    lacks, or a vocabulary that cannot be used here. Malformed if the model computes what is not finite.
    """
    device = find_device(reading.device)
    documents = documents_of(reading)
    from ggufsmith.evaluate.forward import run_model, work
    from ggufsmith.evaluate.skeleton import build_skeleton
    from ggufsmith.evaluate.variants import opened_by

    with opened_by(open_pass, request) as model:
        metadata = model.source.metadata
        name = metadata.get(Keys.General.NAME)
        tokenize = tokenizer_of(vocabulary_of(metadata, request.path), str(name.data) if name else "")
        windows = make_windows(documents, tokenize, context=reading.context, chunks=reading.chunks, by_domain=False)
        shapes = {name: tensor.shape for name, tensor in model.source.tensors.items()}
        collector = Collector(shapes, process_output=process_output)
        skeleton, variants = build_skeleton(model), model.variants[:1]
        with progress(work(skeleton, variants, scored=False)) as advance:
            run_model(
                skeleton,
                variants,
                windows.tokens,
                device=device,
                observe=collector,
                threads=threads,
                progress=advance,
            )
        notes = (*model.notes, *windows.notes)
    return Calibration(collector.imatrix(windows.names, len(windows.tokens), reading.context), device, notes)


def shipped_imatrix(
    request: Request, open_pass: Callable[[Request], Pass], progress: Progress, *, threads: int | None
) -> Imatrix:
    """That of the text that ships with the package, with all defaults."""
    return make_imatrix(request, open_pass, TextOptions(), threads=threads, progress=progress).imatrix


def documents_of(reading: TextOptions) -> list[TextDocument]:
    """The texts that are asked for; by default the calibration text that ships with the package."""
    return read_texts(reading.text) if reading.text else shipped("calibration")


def text_names() -> tuple[str, ...]:
    """What the importance matrix of the shipped text names as its texts."""
    return tuple(dict.fromkeys(document.name for document in shipped("calibration")))
