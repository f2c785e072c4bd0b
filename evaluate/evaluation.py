"""Runs a model and what was made of it over the same windows, and judges what was made by what it changed."""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from gguf.constants import GGUFType, Keys

from ggufsmith.container.apart import one_of
from ggufsmith.container.errors import Failure, Malformed, Usage
from ggufsmith.container.shards import open_gguf_set
from ggufsmith.container.text import counted, told_apart
from ggufsmith.convert.open import open_pass
from ggufsmith.evaluate.engine import check_llama_cpp, run_apart
from ggufsmith.evaluate.judged import Candidate, Evaluation, TokenSpeed, judged, labels_of
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
SHORTEST = 4  # tokens of a window, of whose second half one is scored
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

    When all have run: Malformed for a source, files or recipes with whose weights NaN or infinity is computed.
    """
    started = time.perf_counter()
    check_task(task)
    task, left_out = _models_once(task)
    documents = documents_of(task.reading)
    with ExitStack() as stack:
        model = stack.enter_context(opened_by(opener, task.request))
        files = [stack.enter_context(opened_file(path)) for path in task.files]
        variants = [*files, *model.variants[1:]]
        candidates = _candidates(variants, task.files)
        device = find_device(task.reading.device) if task.engine == "torch" else None
        places = [_places(candidates, task.files, pair) for pair in task.pairs]
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
    _check_finite([model.source, *variants], scores)
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


def _models_once(task: EvalTask) -> tuple[EvalTask, list[str]]:
    """Every model once, without what lies beside models in a folder, and sentences on it. Usage if nothing is left.

    Several shards of a model are one, and so are a file and its links.
    """
    kept: dict[Path, Path] = {}  # the first file of each model, and what named it first
    named, beside = Counter[Path](), []
    for path in task.files:
        first, kind = path, None
        with suppress(Failure), open_gguf_set(path) as file:  # what cannot be opened is reported with the others
            first, kind = file.paths[0], BESIDE.get(kind_of(file.metadata, ()) or "")
        if kind:
            beside.append(f"{path.name} is {kind}, so it is left out")
            continue
        first = one_of(first, kept) or first
        kept.setdefault(first, path)
        named[first] += 1
    if beside and not kept and not task.request.make.recipes:
        raise Usage("none of the files is a language model", also=beside, fix="Name GGUF files of the model.")
    again = [
        f"{first.name} was named {count} times, by its shards or by other names, and is judged once"
        for first, count in named.items()
        if count > 1
    ]
    return replace(task, files=tuple(kept.values())), [*beside, *again]


def check_task(task: EvalTask) -> None:
    """What can be known to be wrong without opening anything."""
    recipes = task.request.make.recipes
    if not task.files and not recipes:
        raise Usage(
            "there is nothing to judge", fix="Name GGUF files, or recipes with --recipe, which need not be written."
        )
    if task.engine not in ENGINES:
        raise Usage(f"there is no engine {task.engine!r}", where="--engine", fix=f"Choose one of {', '.join(ENGINES)}.")
    if task.reading.context < SHORTEST:
        raise Usage(
            f"a window of {counted(task.reading.context, 'token')} has too few to score",
            where="--context",
            fix=f"Choose {SHORTEST} or more.",
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
    """Which candidate a name means: a path, the name or label of a file or recipe, or a part of its name.

    Usage for none or several.
    """
    paths = [{str(path), os.path.abspath(path), os.path.realpath(path)} for path in files]
    names = [each.name for each in candidates]
    bare = [name.removesuffix(".gguf") for name in names]
    last = [name.rpartition("/")[2] for name in names]
    ways = (
        [k for k, known in enumerate(paths) if known & {wanted, str(Path(wanted)), os.path.realpath(wanted)}],
        *([k for k, name in enumerate(each) if name == wanted] for each in (names, labels_of(names), bare, last)),
        [k for k, name in enumerate(names) if wanted.lower() in name.lower()],
    )
    found = next((each for each in ways if each), [])
    if len(found) == 1:
        return found[0]
    what = "is not one of those that are judged" if not found else f"fits {len(found)} of those that are judged"
    fix = f"Choose two of {', '.join(names)}." if len(names) > 1 else "Name a second file or recipe to compare with."
    raise Usage(f"{wanted!r} {what}", where="--compare", fix=fix)


def _places(candidates: Sequence[Candidate], files: Sequence[Path], pair: tuple[str, str]) -> tuple[int, int]:
    first, second = (find_place(candidates, files, name) for name in pair)
    if first == second:
        what = f"{pair[0]!r} and {pair[1]!r} are both {candidates[first].name}"
        raise Usage(what, where="--compare", fix="Name two different files or recipes.")
    return first, second


def _candidates(variants: Sequence[ModelVariant], files: Sequence[Path]) -> list[Candidate]:
    """files: those of the first variants; the others are recipes."""
    folders = [path.resolve().parent for path in files]
    called = dict(zip(folders, told_apart(folders), strict=True))
    names = [*told_apart(files), *(each.label for each in variants[len(files) :])]
    groups = [*(called[folder] for folder in folders), *[RECIPES] * (len(variants) - len(files))]
    return [
        Candidate(name, f"{group}{_method(each)}", each.size, each.bits_per_weight)
        for each, name, group in zip(variants, names, groups, strict=True)
    ]


def _method(variant: ModelVariant) -> str:
    method = variant.metadata.get(METHOD[0])
    return ", calibrated" if method is not None and method.data == CALIBRATED else ""


def _check_finite(variants: Sequence[ModelVariant], scores: Sequence[TokenScores]) -> None:
    """Malformed where what a model computes is no number. variants: the source first, of which all divergences are."""
    wrong = [
        (variant, int(count), found.nll.size)
        for variant, found in zip(variants, scores, strict=True)
        if (count := np.count_nonzero(~(np.isfinite(found.nll) & np.isfinite(found.divergence))))
    ]
    if not wrong:
        return
    source, recipes = wrong[0][0] is variants[0], any(not each.paths for each, *_ in wrong)
    if source:
        fix = "Nothing can be compared with this source: measure against the model that it was made from."
    else:
        fix = "Leave it out to measure the others" + ("." if recipes else ", and make it again from its source.")
    first, *others = [
        (
            each.paths[0] if each.paths else f"the {'source' if each is variants[0] else 'recipe'} {each.label}",
            count,
            of,
        )
        for each, count, of in (wrong[:1] if source else wrong)
    ]
    what = f"{'the source' if source else 'the model'} computes NaN or infinity at {{}} of {{}} scored tokens"
    raise Malformed(
        what.format(*first[1:]),
        where=first[0],
        fix=fix,
        also=[f"{where}: {what.format(*numbers)}" for where, *numbers in others],
    )


def _windows(model: SourceModel, documents: Sequence[TextDocument], reading: TextOptions) -> Windows:
    metadata = model.source.metadata
    name = metadata.get(Keys.General.NAME)
    tokenize = tokenizer_of(vocabulary_of(metadata, model.where), str(name.data) if name else "")
    return make_windows(
        documents,
        tokenize,
        context=reading.context,
        chunks=reading.chunks,
        longest=model.source.context_length,
        shortest=SHORTEST,
    )


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
