"""Runs a model and what was made of it over the same windows, and judges what was made by what it changed."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gguf.constants import GGUFType, Keys

from ggufsmith.container.errors import Failure, Malformed, Usage
from ggufsmith.container.shards import open_gguf_set
from ggufsmith.convert.open import open_pass
from ggufsmith.evaluate.engine import check_llama_cpp, run_apart
from ggufsmith.evaluate.judged import Candidate, Evaluation, TokenSpeed, judged
from ggufsmith.evaluate.needed import find_device
from ggufsmith.evaluate.quality import compare, qualities
from ggufsmith.evaluate.texts import TextDocument, read_texts, shipped
from ggufsmith.evaluate.token_scores import TokenScores, scored_positions
from ggufsmith.evaluate.tokenize import tokenizer_of
from ggufsmith.evaluate.variants import ModelVariant, SourceModel, opened_by, opened_file
from ggufsmith.evaluate.windows import Windows, make_windows
from ggufsmith.pipeline.parallel import available_cores
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import MakeOptions, Request, TextOptions
from ggufsmith.quantize.model_check import kind_of
from ggufsmith.quantize.plan import CALIBRATED, METHOD
from ggufsmith.tokenizer.restore import vocabulary_of

Engine = Literal["torch", "llama.cpp"]
ENGINES: tuple[Engine, ...] = ("torch", "llama.cpp")
SCHEMA = 1
# What lies beside models in a folder, by general.type.
BESIDE = {GGUFType.MMPROJ: "a projector", GGUFType.IMATRIX: "an importance matrix"}
RECIPES = "recipes"  # the group of what has no file yet
Opener = Callable[[Request], Pass]
# What the work is, and how much of it there is -> within, how much of it has been done.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class EvalTask:
    """What to evaluate.

    request: the source, and the recipes that are judged without a file. files: of which the first shard of each counts.
    pairs:   names, labels or paths of what to compare, two at a time.
    """

    request: Request
    files: tuple[Path, ...]
    reading: TextOptions
    engine: Engine = "torch"
    pairs: tuple[tuple[str, str], ...] = ()


def silent(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Progress that nobody sees."""
    return nullcontext(lambda done: None)


def evaluate(task: EvalTask, *, opener: Opener = open_pass, progress: Progress = silent) -> Evaluation:
    """Run the task. opener: opens requests; of a model on a hub, one that knows how its files are read.

    What is wrong with it is raised before the first block is run:

    Usage for nothing to judge, a text shorter than a window, an unknown device, a comparison of what is not judged;
    Unsupported where the engine is not installed or cannot run the model; Malformed for a file of another model.
    """
    started = time.perf_counter()
    check_task(task)
    task, left_out = _models_only(task)
    documents = documents_of(task.reading)
    with ExitStack() as stack:
        model = stack.enter_context(opened_by(opener, task.request))
        files = [stack.enter_context(opened_file(path)) for path in task.files]
        variants = [*files, *model.variants[1:]]
        candidates = [_candidate(each) for each in variants]
        device = find_device(task.reading.device) if task.engine == "torch" else None
        places = [tuple(find_place(candidates, task.files, name) for name in pair) for pair in task.pairs]
        windows = _windows(model, documents, task.reading)
        notes = [*left_out, *model.notes, *windows.notes]
        speeds: Sequence[TokenSpeed | None] = [None] * len(variants)
        if task.engine == "torch":
            scores = _run_torch(model, variants, windows, str(device), progress)
        else:
            for variant in files:
                _check_vocabulary(model.source, variant)
            source, note = stack.enter_context(_source_file(task.request, model, opener))
            notes += note
            cpu = task.reading.device == "cpu"
            with progress("evaluating in llama.cpp", len(files) * len(windows.tokens)) as advance:
                paths = [each.paths[0] for each in files]
                threads = available_cores()
                scores, speeds = run_apart(source, paths, windows.tokens, cpu=cpu, threads=threads, advance=advance)
    base, own = scores[0], scores[1:]
    rows = judged(candidates, [qualities(each, base, windows.domains) for each in own], speeds)
    pairs = [compare((candidates[a].name, candidates[b].name), own[a], own[b]) for a, b in places]
    return Evaluation(
        schema=SCHEMA,
        source=model.source.label,
        source_quality=qualities(base, base, windows.domains),
        engine=task.engine,
        device=device or ("cpu" if task.reading.device == "cpu" else "llama.cpp's choice"),
        dtype="float32" if task.engine == "torch" else "llama.cpp's choice",
        texts=list(windows.names),
        text_sha256=windows.digest,
        context=task.reading.context,
        windows=len(windows.tokens),
        scored_tokens=int(base.nll.size),
        files=rows,
        comparisons=pairs,
        notes=notes,
        seconds=time.perf_counter() - started,
    )


def _models_only(task: EvalTask) -> tuple[EvalTask, list[str]]:
    """Without what lies beside models in a folder, and sentences on it. Usage if nothing is left."""
    kinds = {}
    for path in task.files:
        with suppress(Failure), open_gguf_set(path) as file:  # what cannot be opened is reported with the others
            kinds[path] = BESIDE.get(kind_of(file.metadata, ()) or "")
    left_out = [f"{path.name} is {kinds[path]}, so it is left out" for path in task.files if kinds.get(path)]
    kept = replace(task, files=tuple(path for path in task.files if not kinds.get(path)))
    if left_out and not kept.files and not kept.request.make.recipes:
        raise Usage("none of the files is a language model", also=left_out, fix="Name GGUF files of the model.")
    return kept, left_out


def check_task(task: EvalTask) -> None:
    """What can be known to be wrong without opening anything."""
    recipes = task.request.make.recipes
    if not task.files and not recipes:
        raise Usage(
            "there is nothing to judge", fix="Name GGUF files, or recipes with --recipe, which need not be written."
        )
    if task.engine not in ENGINES:
        raise Usage(f"there is no engine {task.engine!r}", where="--engine", fix=f"Choose one of {', '.join(ENGINES)}.")
    if task.reading.context < 4:
        raise Usage(
            f"a window of {task.reading.context} tokens has too few to score",
            where="--context",
            fix="Choose 4 or more.",
        )
    if task.request.make.imatrix and not recipes:
        raise Usage("an importance matrix has a meaning for recipes only", fix="Add --recipe, or leave out --imatrix.")
    if task.engine == "llama.cpp":
        if recipes:
            raise Usage(
                "llama.cpp runs files, and a recipe has none yet",
                fix="Write the files first, or leave out --engine llama.cpp.",
            )
        check_llama_cpp()


def documents_of(reading: TextOptions) -> list[TextDocument]:
    """The texts that are asked for; by default the test text that ships with the package."""
    return read_texts(reading.text) if reading.text else shipped("test")


def find_place(candidates: Sequence[Candidate], files: Sequence[Path], wanted: str) -> int:
    """Which candidate a name means: the name of a file or recipe, a label, or a path. Usage for none or several."""
    names = [{each.name, each.name.removesuffix(".gguf")} for each in candidates]
    for number, path in enumerate(files):
        names[number] |= {str(path), str(path.resolve())}
    exact = [k for k, known in enumerate(names) if wanted in known or str(Path(wanted)) in known]
    found = exact or [k for k, each in enumerate(candidates) if wanted.lower() in each.name.lower()]
    if len(found) == 1:
        return found[0]
    what = "is not one of those that are judged" if not found else f"fits {len(found)} of those that are judged"
    names_there = ", ".join(each.name for each in candidates)
    fix = f"Choose two of {names_there}." if len(candidates) > 1 else "Name a second file or recipe to compare with."
    raise Usage(f"{wanted!r} {what}", where="--compare", fix=fix)


def _candidate(variant: ModelVariant) -> Candidate:
    group = variant.paths[0].resolve().parent.name if variant.paths else RECIPES
    method = variant.metadata.get(METHOD[0])
    if method is not None and method.data == CALIBRATED:
        group += ", calibrated"
    return Candidate(variant.label, group, variant.size, variant.bits_per_weight)


def _windows(model: SourceModel, documents: Sequence[TextDocument], reading: TextOptions) -> Windows:
    metadata = model.source.metadata
    name = metadata.get(Keys.General.NAME)
    tokenize = tokenizer_of(vocabulary_of(metadata, model.where), str(name.data) if name else "")
    return make_windows(documents, tokenize, context=reading.context, chunks=reading.chunks)


def _check_vocabulary(source: ModelVariant, variant: ModelVariant) -> None:
    """Malformed if the tokens of the windows mean something else to the file. The other engine checks more."""
    for key in (Keys.General.ARCHITECTURE, Keys.Tokenizer.LIST):
        if source.metadata.get(key) != variant.metadata.get(key):
            raise Malformed(
                f"this is not the same model as {source.label}: {key} differs",
                where=variant.paths[0],
                fix="Compare files with the model that they were made from.",
            )


def _run_torch(
    model: SourceModel, variants: Sequence[ModelVariant], windows: Windows, device: str, progress: Progress
) -> list[TokenScores]:
    from ggufsmith.evaluate.forward import run_model, work
    from ggufsmith.evaluate.skeleton import build_skeleton, check_variants

    skeleton = build_skeleton(model)
    every = [model.source, *variants]
    check_variants(skeleton, model.source, every)
    with progress("evaluating", work(skeleton, every, scored=True)) as advance:
        scores = run_model(
            skeleton,
            every,
            windows.tokens,
            device=device,
            scored=scored_positions(windows.tokens.shape[1]),
            progress=advance,
        )
    return scores or []


@contextmanager
def _source_file(request: Request, model: SourceModel, opener: Opener) -> Iterator[tuple[Path, list[str]]]:
    """The source as a file that llama.cpp can open: its own, or a temporary one in the checkpoint's type."""
    if request.path.is_file():
        yield model.source.paths[0], []
        return
    with tempfile.TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "source.gguf"
        write = replace(request.write, outfile=file, outdir=None)
        with opener(Request(request.path, request.source, MakeOptions(outtypes=("auto",)), write)) as made:
            made.run(write)
            label = made.outputs[0].label
        yield file, [f"the source ran as a temporary GGUF file in {label}, into which it was converted"]
