"""What is finished already: a record beside the outputs, and whether it still holds.

The record of a model, `.NAME.batch.json` in its folder, has for each output the fingerprint of its plan (a hash of
all that decides its bytes) and its files with sizes and SHA-256. It is written last, after everything that it speaks
of, and once before, without hashes, while those are computed. It holds no times: an output that changed since then is
newer than the record, and is hashed again. The same work gives the same record.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Failure
from ggufsmith.container.provenance import file_sha256
from ggufsmith.container.release import own_version
from ggufsmith.container.replace import replace_text
from ggufsmith.container.shards import SHARD, SUFFIX
from ggufsmith.container.untrusted import read_object
from ggufsmith.convert.batch.job import JobModel, WantedOutput
from ggufsmith.convert.batch.schema import SETTINGS
from ggufsmith.convert.inputs import companions
from ggufsmith.convert.model import adapters_of
from ggufsmith.naming.identity import hub_id, model_folder_name
from ggufsmith.pipeline.request import AUTO
from ggufsmith.quantize.budget import Budget
from ggufsmith.quantize.recipes.assign import Override, Recipe

WHOLE = 1 << 20  # bytes; smaller inputs are known by their content, larger ones by size and time
CARD_KEYS = ("card", "checksums", "quality", "repo", "base_model", "author", "quantized_by")


@dataclass(frozen=True)
class FinishedFile:
    """name: in the model's folder. sha256: empty as long as it is not known."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class FinishedOutput:
    """One finished output, for the record and for reports.

    label:  as the job file has it. plan: the fingerprint.
    types:  format -> tensors that have it.
    fallbacks: tensors that could not have the type of their rule. requantized: those that were quantized before.
    """

    label: str
    plan: str
    files: tuple[FinishedFile, ...]
    bits_per_weight: float
    types: Mapping[str, int]
    fallbacks: tuple[str, ...] = ()
    requantized: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Record:
    """What is finished of a model. extras: the fingerprint of card and sums; empty if any of this is to be renewed."""

    outputs: tuple[FinishedOutput, ...] = ()
    extras: str = ""


def finished(model: JobModel, plans: Mapping[str, str], *, verify: bool = False) -> Record:
    """What of the record still holds for what is wanted now.

    plans: see `fingerprints`. verify: hash every file again.
    """
    record, written = _read(model.state_path)
    by_label = {made.label: made for made in record.outputs}
    kept, in_time = [], True
    for wanted in model.wanted:
        made = by_label.get(wanted.label)
        if made is None or made.plan != plans[wanted.label]:
            continue
        newer = [file for file in made.files if not _untouched(model.folder / file.name, file, written)]
        if all(_same(model.folder / file.name, file) for file in (made.files if verify else newer)):
            kept.append(made)
            in_time &= not newer
    complete = in_time and tuple(kept) == record.outputs and _extras_there(model)
    return Record(tuple(kept), record.extras if complete else "")


def write_record(model: JobModel, record: Record) -> None:
    """Put the record beside the outputs, at once or not at all."""
    content = {"made_by": f"ggufsmith {own_version()}", **asdict(record)}
    replace_text(model.state_path, json.dumps(content, ensure_ascii=False, indent=1) + "\n", alone=True)


def _read(path: Path) -> tuple[Record, int]:
    """The record and its time in ns; an empty one if it is missing or damaged: then everything is made again."""
    try:
        written = path.stat().st_mtime_ns
        content = read_object(path)
        return Record(tuple(map(_made, content["outputs"])), str(content["extras"])), written
    except (OSError, Failure, KeyError, TypeError):
        return Record(), 0


def _made(entry: Mapping[str, Any]) -> FinishedOutput:
    lists = {key: tuple(entry.get(key, ())) for key in ("fallbacks", "requantized", "notes")}
    return FinishedOutput(**{**entry, **lists, "files": tuple(FinishedFile(**file) for file in entry["files"])})


def _untouched(path: Path, file: FinishedFile, written: int) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_size == file.bytes and found.st_mtime_ns <= written


def _same(path: Path, file: FinishedFile) -> bool:
    try:
        return path.stat().st_size == file.bytes and file_sha256(path) == file.sha256
    except (OSError, Failure):
        return False


def _extras_there(model: JobModel) -> bool:
    return all(path is None or path.is_file() for path in map(model.beside, ("card", "checksums")))


# ---- what decides the bytes ----


def fingerprints(model: JobModel, *, by_content: bool = False) -> dict[str, str]:
    """label -> SHA-256 of all that decides the bytes and the name of that output.

    by_content: large inputs are hashed too, instead of being known by size and time.
    """
    options = model.request.source
    common = {
        "version": own_version(),
        "name": model_folder_name(model.source) if model.is_checkpoint and not model.hub else "",
        "inputs": list(_inputs(model, by_content)),
        "base": [hub_id(options.base), model_folder_name(options.base)] if options.base else [],
        "lora": [[model_folder_name(folder), factor] for folder, factor in adapters_of(options).values()],
        "settings": {key: model.settings[key] for key, record in SETTINGS.items() if record.decides},
    }
    return {wanted.label: _digest({**common, **_wanted(wanted)}) for wanted in model.wanted}


def extras_fingerprint(model: JobModel) -> str:
    """What decides the card and the sums, besides the outputs."""
    template = model.settings["card_template"]
    content = {"card_template": file_sha256(Path(template))} if template else {}
    return _digest({key: model.settings[key] for key in CARD_KEYS} | content)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _wanted(wanted: WantedOutput) -> dict[str, Any]:
    return {
        "file": wanted.path.name,
        "outtype": None if wanted.recipe or wanted.budget else wanted.label,
        "budget": _budget(wanted.budget) if wanted.budget else None,
        "recipe": _recipe(wanted.recipe) if wanted.recipe else None,
    }


def _budget(budget: Budget) -> dict[str, Any]:
    match = {"match": _recipe(budget.match)} if budget.match else {}
    return {"size": budget.size, "bits_per_weight": budget.bits_per_weight, **match}


def _recipe(recipe: Recipe) -> list[Any]:
    return [recipe.file_type.name, *map(_override, recipe.overrides), *([recipe.addition] if recipe.addition else [])]


def _override(rule: Override) -> list[Any]:
    layers = rule.layers and [sorted(rule.layers.listed), rule.layers.first, rule.layers.last]
    match = rule.match and rule.match.pattern
    return [rule.format.name, match, sorted(rule.roles), sorted(rule.names), layers]


def _inputs(model: JobModel, by_content: bool) -> Iterator[list[Any]]:
    """Name and identity of every file that is read."""
    sources: Iterator[tuple[Path, Path]] = iter(())
    if model.hub:
        yield [str(model.hub)]  # with the commit
    else:
        sources = _model_files(model.source) if model.is_checkpoint else _shards(model.source)
    options, make = model.request.source, model.request.make
    imatrix = make.imatrix
    if imatrix == AUTO:
        yield [str(AUTO)]  # what it is follows from the model and from our version
    texts = [path for path in model.request.make.calibrate if path != AUTO]
    if len(texts) < len(model.request.make.calibrate):
        yield [f"{AUTO} text"]
    folders = [
        *(path for path in texts if path.is_dir()),
        *(folder for folder, _ in adapters_of(options).values()),
        *([options.tokenizer] if options.tokenizer else []),
    ]
    others = (each for folder in folders for each in _model_files(folder))
    for root, path in [
        *sources,
        *others,
        *(
            (path.parent, path)
            for path in (imatrix if imatrix != AUTO else None, make.sensitivity, options.metadata)
            if path
        ),
        *((path.parent, path) for path in texts if not path.is_dir()),
    ]:
        found = path.stat()
        identity = file_sha256(path) if by_content or found.st_size <= WHOLE else found.st_mtime_ns
        yield [path.relative_to(root).as_posix(), found.st_size, identity]
    for name, path in companions(options.target) if options.target else ():  # its weights are not read
        yield [name, path.stat().st_size, file_sha256(path)]
    for root, path in _model_files(options.base) if options.base else ():  # weights: only which there are is looked at
        content = file_sha256(path) if path.suffix == ".json" else None
        yield [path.relative_to(root).as_posix(), path.stat().st_size, content]


def _model_files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """All files of a model folder but hidden ones and GGUF files, which are nobody's input there."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and not name.endswith(SUFFIX):
                yield folder, Path(parent, name)


def _shards(path: Path) -> Iterator[tuple[Path, Path]]:
    """A GGUF file, or every shard of its set."""
    stem = path.name.removesuffix(SUFFIX)
    match = SHARD.search(stem)
    for name in sorted(each.name for each in path.parent.iterdir()) if match else [path.name]:
        other = SHARD.search(name.removesuffix(SUFFIX))
        if not match or (other and other[2] == match[2] and name.startswith(stem[: match.start()] + "-")):
            yield path.parent, path.with_name(name)
