"""Makes an importance matrix: runs the windows of a text through a model, and sums."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ggufsmith.calibrate.collect import OUTPUT, Collector
from ggufsmith.calibrate.finite import NotFinite, explained
from ggufsmith.calibrate.ready import readied
from ggufsmith.container.text import some
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request, TextOptions
from ggufsmith.quantize.imatrix.record import Imatrix
from ggufsmith.quantize.measured import Progress, silently

SHIPPED = TextOptions()


@dataclass(frozen=True)
class Calibration:
    """An importance matrix, and how it came about.

    device, dtype: where the model ran, and in which numbers. notes: for the report.
    """

    imatrix: Imatrix
    device: str
    dtype: str
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

    process_output: sum the inputs of output.weight too. progress: shows how many weights the windows went through.

    Raises what `readied` raises, before the first block is run. Malformed if the model computes what is not finite.
    """
    with readied(request, open_pass, reading) as ready:
        from ggufsmith.evaluate.forward import run_model, work

        source = ready.model.variants[:1]
        shapes = {name: tensor.shape for name, tensor in ready.model.source.tensors.items()}
        collector = Collector(shapes, process_output=process_output)
        try:
            with progress(work(ready.skeleton, source, scored=False)) as advance:
                run_model(
                    ready.skeleton,
                    source,
                    ready.windows.tokens,
                    device=ready.device,
                    observe=collector,
                    entering=lambda block, variant, states: collector.check(),
                    threads=threads,
                    progress=advance,
                )
            imatrix = collector.imatrix(ready.windows.names, len(ready.windows.tokens), reading.context)
        except NotFinite as error:
            raise explained(error, ready.skeleton, source[0], threads) from error
        notes = [*ready.notes]
        if process_output and OUTPUT not in imatrix.entries:
            notes.append(f"the model has no {OUTPUT} of its own, so that nothing was summed for it")
        if zero := [name for name, entry in imatrix.entries.items() if not entry.sums.any()]:
            notes.append(f"all inputs were 0, or too large for the norm before them: {some(zero)}")
        return Calibration(imatrix, ready.device, ready.dtype, tuple(notes))


def shipped_imatrix(
    request: Request,
    open_pass: Callable[[Request], Pass],
    progress: Progress,
    chunks: int | None = None,
    *,
    threads: int | None,
    reading: TextOptions = SHIPPED,
) -> Imatrix:
    """The importance matrix alone; by default that of the text that ships with the package.

    chunks: of how many windows at most, if `reading` is not to say it.
    """
    reading = replace(reading, chunks=chunks or reading.chunks)
    return make_imatrix(request, open_pass, reading, threads=threads, progress=progress).imatrix
