"""`--calibrate`: one pass over the blocks, in which the model runs and every block is quantized as soon as it is known.

The source model goes through the text block by block. When all windows are through a block, the inputs of its layers
have been summed to Hessians; its tensors are encoded under them, and both are forgotten before the next block comes.

Where a budget chooses the types, they are measured before, in a pass of their own (see `measure`). With no effort, that
is all: the bytes are ggml's.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

from ggufsmith.calibrate.auto import AutoImatrix, Opener, unquantized
from ggufsmith.calibrate.encoder import CalibratedEncoder, Shelf
from ggufsmith.calibrate.gram import GramCollector
from ggufsmith.calibrate.head import inputs_of
from ggufsmith.calibrate.make import shipped_imatrix
from ggufsmith.calibrate.measure import measure_sensitivity
from ggufsmith.calibrate.ready import Readied, readied
from ggufsmith.calibrate.refine import Effort
from ggufsmith.container.errors import Usage
from ggufsmith.container.formats import FLOATS
from ggufsmith.container.text import counted, some
from ggufsmith.container.values import Metadata, string, u32
from ggufsmith.evaluate.head import head_among
from ggufsmith.pipeline.option import INPUTS
from ggufsmith.pipeline.outputs import Conductor, Make, Needed, OutputFile
from ggufsmith.pipeline.parallel import available_cores
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import AUTO, MakeOptions, Request, TextOptions
from ggufsmith.quantize.measured import Progress, silently, stand_for_sizes
from ggufsmith.quantize.plan import CALIBRATED
from ggufsmith.quantize.resolve import resolved
from ggufsmith.quantize.sensitivity import write_sensitivity

if TYPE_CHECKING:
    from ggufsmith.evaluate.hidden import HiddenStates

MEASURED = 10  # windows of the test text


@contextmanager
def calibrated(
    request: Request,
    open_pass: Opener,
    *,
    progress: Progress = silently,
    weighs: bool | None = None,
) -> Iterator[tuple[Request, Opener]]:
    """Ready the model for a request with `make.calibrate`, and keep it open.

    Yields a request that leaves nothing to be made any more, and what opens it as a pass with the calibrated encoder;
    without effort, as a plain pass with an importance matrix of the same text.

    progress: shows a run of the model before that: one that weighs the types for a budget, or makes the matrix.
    weighs:   whether there is such a budget, for those who keep what is made apart from the request.

    Usage for options that do not go together, and what `readied` raises.
    """
    make = request.make
    check(request)
    if weighs is None:
        making = resolved(request, *INPUTS)[0]  # which needs a recipe
        weighs = bool(making.budgets or stand_for_sizes(making, AUTO))
    reading = reading_of(make)
    with (
        readied(unquantized(request), open_pass, reading) as ready,
        AutoImatrix(
            lambda plain, opener, told, chunks: shipped_imatrix(
                plain, opener, told, chunks, threads=request.write.threads, reading=reading
            ),
            ready.windows.names,
            len(ready.windows.tokens),
            reading.context,
        ) as auto,
        TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True) as folder,
    ):
        effort = effort_of(make)
        plain = replace(request, make=settled(make))
        if weighs and make.sensitivity is None:
            table = measure_sensitivity(ready, effort, threads=request.write.threads, progress=progress)
            write_sensitivity(table, path := Path(folder) / "sensitivity.json")
            plain = replace(plain, make=replace(plain.make, sensitivity=path))
        if effort is None:
            yield auto.made(plain, open_pass, progress=progress), open_pass
            return
        plain = replace(plain, make=replace(plain.make, method=method_of(ready, effort)))
        weighed = auto.promised(plain, open_pass, head=True)
        encoder = CalibratedEncoder(effort, ready.windows.digest)

        def opened(wanted: Request) -> Pass:
            planned = open_pass(wanted)
            conduct = conductor(planned, ready, encoder, threads=wanted.write.threads)
            return replace(
                planned,
                encoder=encoder,
                conduct=conduct,
                learned=lambda outputs: [
                    *learned(encoder.shelf),
                    *(divergences(unquantized(request), open_pass, outputs, ready.device) if effort == "best" else ()),
                ],
                notes=(*planned.notes, *ready.windows.notes),
            )

        yield weighed, opened


def check(request: Request) -> None:
    """Usage for options that do not go together with `--calibrate`."""
    make = request.make
    for given, flag, why in (
        (make.imatrix is not None, "--imatrix", "which makes an importance matrix of its own"),
        (bool(request.source.prune_layers), "--prune-layers", "which runs the whole model"),
        (request.write.scheduler is not None, "--scheduler", "which runs the model on this machine"),
    ):
        if given:
            raise Usage(f"{flag} cannot be combined with --calibrate, {why}", fix=f"Leave out {flag}.")


def settled(make: MakeOptions) -> MakeOptions:
    """The same without what is about calibrating."""
    return replace(make, calibrate=(), calibrate_chunks=None, effort=None, calibrate_device=None)


def effort_of(make: MakeOptions) -> Effort | None:
    """How long a request wants to search; None if not at all."""
    if make.effort == "none":
        return None
    return next((each for each in get_args(Effort) if each == make.effort), "normal")


def reading_of(make: MakeOptions) -> TextOptions:
    """The texts that a request calibrates on."""
    text = tuple(path for path in make.calibrate if path != AUTO)
    return TextOptions(text=text, chunks=make.calibrate_chunks, device=make.calibrate_device)


def method_of(ready: Readied, effort: Effort) -> Metadata:
    """The keys that say that the bytes are not those of ggml's quantizer, and what decided them."""
    windows, context = ready.windows.tokens.shape
    return {
        "quantize.method": string(CALIBRATED),
        "quantize.calibration.effort": string(effort),
        "quantize.calibration.tokens": u32(windows * context),
        "quantize.calibration.sha256": string(ready.windows.digest),
    }


def conductor(planned: Pass, ready: Readied, encoder: CalibratedEncoder, *, threads: int | None) -> Conductor:
    """Makes the tensors of a pass in the order in which their Hessians become known (see `pipeline.outputs`)."""
    threads = threads or available_cores()
    shapes = refined_shapes(planned)
    skeleton, shelf = ready.skeleton, encoder.shelf
    blocks = [[each.name for each in skeleton.outputs(block)] for block in range(len(skeleton.blocks))]
    head = head_among([tensor.name for tensor in planned.tensors])

    def conduct(make: Make, needed: Needed) -> None:
        from ggufsmith.evaluate.forward import run_model

        wanted = needed(shapes)  # an interrupted run is resumed at its block: of those before, nothing is summed
        collector = GramCollector({name: shape for name, shape in shapes.items() if name in wanted})

        def finish(names: Collection[str]) -> None:
            inputs = collector.take(names)
            shelf.put({name: inputs_of(name, given) for name, given in inputs.items()}, threads)
            make(names)
            shelf.clear()

        def entering(block: int, variant: int, states: "HiddenStates") -> None:
            if block:
                finish(blocks[block - 1])

        inside = {name for names in blocks for name in names} | {head}
        make([tensor.name for tensor in planned.tensors if tensor.name not in inside])
        run_model(
            skeleton,
            ready.model.variants[:1],
            ready.windows.tokens,
            device=ready.device,
            observe=collector,
            entering=entering,
            threads=threads,
        )
        finish([head])

    return conduct


def learned(shelf: Shelf) -> Iterator[str]:
    """What the refinement gained in every type, and where it could not be done."""
    gains = shelf.gains
    for type in sorted({type for _, type in gains}):
        found = [gain for (_, each), gain in gains.items() if each == type]
        better = [gain.end / gain.start for gain in found if gain.start > 0]
        if better:
            mean = 100 * (1 - math.exp(sum(math.log(max(ratio, 1e-9)) for ratio in better) / len(better)))
            matrices = counted(len(better), "matrix", "matrices")
            yield f"{type}: calibration took {mean:.0f} % off what the outputs of {matrices} lose (geometric mean)"
        if unchanged := [name for (name, each), gain in gains.items() if each == type and gain.end >= gain.start > 0]:
            yield f"{type}: nothing was gained for {some(unchanged)}"
    for why, tensors in sorted(shelf.plain.items()):
        names = [
            f"{name} (expert{'s' * (len(which) > 1)} {some(list(map(str, sorted(which))))})" if which else name
            for name, which in sorted(tensors.items())
        ]
        yield f"quantized as without calibration, because {why}: {some(names)}"
    if shelf.short:
        fewest = min(tokens for tokens, _ in shelf.short.values())
        most = max(columns for _, columns in shelf.short.values())
        yield (
            f"the text is short: {fewest} tokens for matrices of {most} columns; the damping was raised for "
            f"{some(sorted(shelf.short))}; a longer text refines them better"
        )


def divergences(source: Request, open_pass: Opener, outputs: Sequence[OutputFile], device: str) -> Iterator[str]:
    """What outputs, which are written, have lost on text that they were not calibrated on."""
    from ggufsmith.evaluate.evaluation import EvalTask, evaluate

    files = tuple(output.paths[0] for output in outputs)
    reading = TextOptions(chunks=MEASURED, device=device)
    found = evaluate(EvalTask(source, files, reading), opener=open_pass)
    for row in found.files:
        whole = row.whole
        error = "" if whole.divergence_error is None else f" ± {whole.divergence_error:.1g}"
        yield (
            f"{row.name}: measured KL divergence {whole.divergence:.3g}{error}, on {found.scored_tokens} tokens of the "
            "test text that ships with ggufsmith"
        )


def refined_shapes(planned: Pass) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that an output quantizes with importance, by name."""
    return {
        spec.name: tensor.shape
        for output in planned.outputs
        if output.importance is not None
        for tensor, spec, weights in zip(
            planned.tensors_of(output), output.shards.whole.tensors, output.importance, strict=True
        )
        if weights is not None and spec.format.name not in FLOATS
    }
