"""Job files: which models become which files. TOML or YAML, validated as a whole before anything is done.

    output = "${PUBLISH_ROOT:-gguf}"    # everything is written under this folder; paths are relative to the job file

    [defaults]                          # for every model; the keys stand in schema.py
    recipes = ["q4_K_M", "q6_K"]
    imatrix = "imatrix/{model}.gguf"

    [sets.large]                        # settings to extend
    recipes = ["iq2_xs"]
    shard_size = "40G"

    [[model]]
    source = "models/Qwen3-0.6B"        # a model folder, a GGUF file, or a model on a hub

    [[model]]
    source = "hf://meta-llama/Llama-3.1-405B"
    extends = "large"

A model's own settings come before those of its set, those of a set before what it extends, the defaults last.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from ggufsmith.container.documents import Document, Keys, read_document
from ggufsmith.container.errors import Failure, Malformed
from ggufsmith.container.shards import SUFFIX, parse_size
from ggufsmith.convert.batch.schema import ENCODING, MODEL, MODELS, OUTPUT, SETTINGS, TABLES, Key, Kind
from ggufsmith.convert.hub.names import ID, HubModel, hub_model
from ggufsmith.convert.lora.base import parse_adapter
from ggufsmith.convert.lora.peft import is_adapter
from ggufsmith.naming.filename import parse
from ggufsmith.naming.identity import model_folder_name
from ggufsmith.quantize.recipes.assign import Recipe
from ggufsmith.quantize.recipes.files import recipe_of

CONFIGS = ("config.json", "params.json", "adapter_config.json")  # of a model, of Meta's own release, of an adapter
OUTTYPES = ("f32", "f16", "bf16")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}", re.ASCII)
_FIELD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Wanted:
    """One output. label: as the job file has it; recipe: None for an unquantized output.

    path: the name that the model would have in one file.
    """

    label: str
    recipe: Recipe | None
    path: Path


@dataclass(frozen=True)
class Model:
    """One model of a job.

    place:     FILE:LINE.
    source:    on the disk; of a model on a hub not before it is opened (see `located`).
    folder:    where its files go; it lies in the output folder.
    settings:  key -> value, of every key of SETTINGS.
    lora:      folders of adapters, and their factors.
    """

    name: str
    place: str
    source: Path
    folder: Path
    wanted: tuple[Wanted, ...]
    settings: Mapping[str, Any]
    imatrix: Path | None = None
    metadata: Path | None = None
    shard_size: int | None = None
    lora: tuple[tuple[Path, float], ...] = ()
    hub: HubModel | None = None

    @property
    def is_checkpoint(self) -> bool:
        return self.hub is not None or self.source.is_dir()

    @property
    def key(self) -> Path:
        """What tells it from the other models of the job."""
        return self.folder / self.name

    def beside(self, key: str) -> Path | None:
        """The file that the setting `key` names, in the model's folder."""
        name = self.settings[key]
        return self.folder / name if name else None


@dataclass(frozen=True)
class JobFile:
    """A valid job. models: those of this runner."""

    path: Path
    output: Path
    models: tuple[Model, ...]


def read_job(path: Path, environment: Mapping[str, str], shard: tuple[int, int] = (1, 1)) -> JobFile:
    """Read and check a job file.

    environment: what ${NAME} and ${NAME:-default} stand for.
    shard:       (i, n): of n runners the i-th takes every n-th model, from the i-th on.

    Malformed, with all problems and their lines, for anything that is wrong in it or does not exist.
    """
    document = read_document(path)
    reader = _Reader(document, environment)
    job = reader.job(shard)
    if reader.problems or job is None:
        problems = list(dict.fromkeys(reader.problems))
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise Malformed(f"{count}; nothing was done", where=path, also=problems)
    return job


@dataclass(frozen=True)
class _Said:
    value: Any
    place: str


@dataclass
class _Reader:
    """Collects what is wrong, and goes on."""

    document: Document
    environment: Mapping[str, str]
    problems: list[str] = field(default_factory=list)

    def wrong(self, place: str, what: str, fix: str | None = None) -> None:
        self.problems.append(f"{place}: {what}" + (f". {fix}" if fix else ""))

    def job(self, shard: tuple[int, int]) -> JobFile | None:
        data, place = self.document.data, self.document.place
        for key in data.keys() - TABLES.keys() - {"output"}:
            self.wrong(place(key), *_unknown("key", key, ["output", *TABLES]))
        root = self.text("output", OUTPUT)
        defaults = self.table(("defaults",), data.get("defaults", {}), SETTINGS)
        sets = data.get("sets", {})
        if not isinstance(sets, dict):
            self.wrong(place("sets"), "sets are tables: [sets.NAME]")
            sets = {}
        named = {name: self.table(("sets", name), value, SETTINGS) for name, value in sets.items()}
        self.check_circles(named, defaults)
        entries = data.get("model")
        if not isinstance(entries, list) or not entries:
            self.wrong(place("model"), "there is no model: write one [[model]] or more")
            return None
        output = self.beside(root.value) if root else self.document.path.parent
        mine, others = [], []
        for index, entry in enumerate(entries):
            said = self.table(("model", index), entry, MODELS)
            settings = self.merged(said, named, defaults)
            known = len(self.problems)
            model = self.model(place("model", index), settings, output) if isinstance(entry, dict) else None
            if index % shard[1] == shard[0] - 1:
                mine += [model] if model else []
            else:  # its files may be on another machine, which reports what is wrong with it
                del self.problems[known:]
                others += [model] if model else []
        self.check_conflicts([*mine, *others])
        return JobFile(self.document.path, output, tuple(mine))

    # ---- values ----

    def text(self, name: str, key: Key) -> _Said | None:
        """A string that must be there, outside all tables."""
        if name not in self.document.data:
            self.wrong(self.document.place(), f"{name} is missing: {key.about}")
            return None
        return self.table((), {name: self.document.data[name]}, {name: key}).get(name)

    def table(self, at: Keys, table: Any, keys: Mapping[str, Key]) -> dict[str, _Said]:
        """The values of a table that are right, their environment variables expanded."""
        found: dict[str, _Said] = {}
        if not isinstance(table, dict):
            self.wrong(self.document.place(*at), f"{at[-1]} is a table, not {table!r}")
            return found
        for name, value in table.items():
            place = self.document.place(*at, name)
            if name not in keys:
                self.wrong(place, *_unknown("key", name, keys))
            elif not _fits(value, keys[name].kind):
                self.wrong(place, f"{name} cannot be {value!r}")
            elif keys[name].kind == "flag":
                found[name] = _Said(value, place)
            elif keys[name].kind == "texts":
                texts = value if isinstance(value, list) else [value]
                found[name] = _Said(tuple(self.expanded(each, place) for each in texts), place)
            else:
                text = self.expanded(value, place)
                self.check_fields(text, keys[name], place)
                found[name] = _Said(text, place)
        return found

    def expanded(self, text: str, place: str) -> str:
        def value(match: re.Match[str]) -> str:
            found: str | None = self.environment.get(match[1], match[2])
            if found is None:
                self.wrong(place, f"the environment has no variable {match[1]}", f"${{{match[1]}:-…}} gives a default.")
            return found or ""

        if "\0" in text:
            self.wrong(place, "no text here can hold a zero character")
        return _VARIABLE.sub(value, text.replace("\0", ""))

    def check_fields(self, text: str, key: Key, place: str) -> None:
        """Braces hold what the key knows; in a key without fields they are text."""
        for name in _FIELD.findall(text) if key.fields else ():
            if name not in key.fields:
                self.wrong(place, f"{{{name}}} means nothing here", f"Known: {', '.join(key.fields)}.")

    # ---- what extends what ----

    def check_circles(self, named: Mapping[str, Mapping[str, _Said]], defaults: Mapping[str, _Said]) -> None:
        for name, table in (("", defaults), *named.items()):
            base = table.get("extends")
            if base and base.value not in named:
                self.wrong(base.place, *_unknown("set", base.value, named))
            if base and name in (chain := list(_chain(base.value, named))):
                self.wrong(base.place, f"sets extend one another in a circle: {' -> '.join([name, *chain])}")

    def merged(
        self,
        said: Mapping[str, _Said],
        named: Mapping[str, Mapping[str, _Said]],
        defaults: Mapping[str, _Said],
    ) -> dict[str, _Said]:
        """What holds for one model."""
        base = said.get("extends")
        if base and base.value not in named:
            self.wrong(base.place, *_unknown("set", base.value, named))
        found: dict[str, _Said] = {}
        for table in (said, defaults):
            tables = (
                [table, *(named[name] for name in _chain(table["extends"].value, named))]
                if "extends" in table
                else [table]
            )
            for each in tables:
                found = {**each, **found}
        return found

    # ---- models ----

    def model(self, place: str, said: Mapping[str, _Said], output: Path) -> Model | None:
        """One model; None if there is no source to speak of."""
        if "source" not in said:
            self.wrong(place, "source is missing: the model folder or GGUF file")
            return None
        hub = self.hub(said)
        source = Path(hub.id) if hub else self.source(said["source"])
        if source is None:
            return None
        name = said["name"].value if "name" in said else source.name if hub else _name_of(source)
        if not _is_component(name):
            self.wrong(said["name"].place if "name" in said else place, f"{name!r} cannot be part of a file name")
            return None
        values = {key: said[key] if key in said else _Said(record.default, place) for key, record in SETTINGS.items()}
        for key, record in SETTINGS.items():
            if record.fields:
                values[key] = replace(values[key], value=values[key].value.replace(f"{{{MODEL}}}", name))
        folder = output / values["folder"].value
        self.check_settings(source, values, output)
        return Model(
            name,
            place,
            source,
            folder,
            tuple(self.wanted(values, folder)),
            {key: said.value for key, said in values.items()},
            imatrix=self.existing(values["imatrix"]),
            metadata=self.existing(values["metadata"]),
            shard_size=self.size(values["shard_size"]),
            lora=tuple(self.adapters(values["lora"])),
            hub=hub,
        )

    def hub(self, said: Mapping[str, _Said]) -> HubModel | None:
        """The model on a hub, if that is what is meant."""
        source, revision = said["source"], said.get("revision")
        if "://" in source.value:
            try:
                return hub_model(source.value, revision.value if revision else None)
            except Failure as error:
                self.wrong(source.place, error.what, error.fix)
        elif revision:
            self.wrong(revision.place, "revision is for models on a hub")
        return None

    def source(self, said: _Said) -> Path | None:
        """The model on the disk, whether it is there or not."""
        if "://" in said.value:
            return None
        source = self.beside(said.value)
        if not source.exists():
            fix = f"If the hub is meant, write hf://{said.value}." if ID.fullmatch(said.value) else None
            self.wrong(said.place, f"there is no such folder or file: {source}", fix)
        elif source.is_dir() and not any((source / name).is_file() for name in CONFIGS):
            self.wrong(said.place, f"{source} has no {CONFIGS[0]}: it is no model folder")
        elif source.is_file() and source.suffix != SUFFIX:
            self.wrong(said.place, f"{source} is no folder, and its name does not end in {SUFFIX}")
        return source

    def check_settings(self, source: Path, said: Mapping[str, _Said], output: Path) -> None:
        """What does not fit together."""
        folder = said["folder"]
        if not _is_inside(output, folder.value):
            self.wrong(folder.place, f"folder {folder.value!r} leads out of the output folder {output}")
        for key in ("card", "checksums"):
            if said[key].value and not _is_component(said[key].value):
                self.wrong(said[key].place, f"{key} names a file in the model's folder, not {said[key].value!r}")
        if source.is_file():
            for key in ("outtypes", "lora", "pre", "model_name", "metadata"):
                if said[key].value:
                    nothing = '""' if isinstance(said[key].value, str) else "[]"
                    fix = f"Give it {key} = {nothing}."
                    self.wrong(said[key].place, f"{key} is for model folders, and {source.name} is a GGUF file", fix)
        if not said["recipes"].value and not said["outtypes"].value:
            self.wrong(said["recipes"].place, "neither recipes nor outtypes: there is nothing to make")
        for key in ("include_weights", "exclude_weights"):
            if said[key].value and not said["imatrix"].value:
                self.wrong(said[key].place, f"{key} chooses entries of an importance matrix, but there is no imatrix")

    def wanted(self, said: Mapping[str, _Said], folder: Path) -> Iterator[Wanted]:
        """The outputs, unquantized ones first."""
        pattern: str = said["file"].value
        if not _is_component(pattern) or not pattern.endswith(SUFFIX):
            self.wrong(
                said["file"].place, f"file names a file that ends in {SUFFIX}, without a folder, not {pattern!r}"
            )

        def path(encoding: str) -> Path:
            return folder / pattern.replace(f"{{{ENCODING}}}", encoding.upper())

        for text in said["outtypes"].value:
            if text.lower() in OUTTYPES:
                yield Wanted(text.lower(), None, path(text))
            else:
                self.wrong(said["outtypes"].place, *_unknown("output type", text, OUTTYPES))
        for text in said["recipes"].value:
            try:
                recipe = recipe_of(text, self.document.path.parent)
            except Failure as error:
                self.wrong(
                    said["recipes"].place, f"{error.where}: {error.what}" if error.where else error.what, error.fix
                )
            else:
                yield Wanted(text, recipe, path(recipe.name))

    def beside(self, text: str) -> Path:
        """A path, relative to the job file."""
        return Path(os.path.abspath(self.document.path.parent / Path(text).expanduser()))

    def existing(self, said: _Said) -> Path | None:
        if not said.value:
            return None
        path = self.beside(said.value)
        if not path.is_file():
            self.wrong(said.place, f"there is no such file: {path}")
        return path

    def adapters(self, said: _Said) -> Iterator[tuple[Path, float]]:
        for text in said.value:
            try:
                folder, factor = parse_adapter(str(self.beside(text)))
            except Failure as error:
                self.wrong(said.place, error.what, error.fix)
                continue
            if not is_adapter(folder):
                self.wrong(said.place, f"{folder} is no folder of an adapter")
            yield folder, factor

    def size(self, said: _Said) -> int | None:
        try:
            return parse_size(said.value) if said.value else None
        except Failure as error:
            self.wrong(said.place, error.what, error.fix)
            return None

    # ---- models together ----

    def check_conflicts(self, models: Sequence[Model]) -> None:
        """No file is written twice, and none that is read is written."""
        inputs = {_same(path): path for model in models for path in (model.source, model.imatrix) if path}
        writers: dict[str, str] = {}
        for model in models:
            extra = [path for key in ("card", "checksums") if (path := model.beside(key))]
            for path in [*(each.path for each in model.wanted), *extra, state_path(model)]:
                key = _same(path)
                if key in inputs:
                    self.wrong(model.place, f"would write over the input {path}")
                if key not in writers:
                    writers[key] = model.place
                elif path == state_path(model):
                    fix = "Give one of them another `name`."
                    self.wrong(model.place, f"{writers[key]} is called {model.name!r} too, in the same folder", fix)
                else:
                    other = "twice" if writers[key] == model.place else f"as does {writers[key]}"
                    self.wrong(model.place, f"writes {path}, {other}")


def state_path(model: Model) -> Path:
    """Where it is recorded which outputs of a model are finished."""
    return model.folder / f".{model.name}.batch.json"


def _fits(value: Any, kind: Kind) -> bool:
    if kind == "texts" and isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return isinstance(value, bool if kind == "flag" else str)


def _chain(name: str, named: Mapping[str, Mapping[str, _Said]]) -> Iterator[str]:
    """A set and what it extends, each once."""
    seen: set[str] = set()
    while name in named and name not in seen:
        seen.add(name)
        yield name
        base = named[name].get("extends")
        name = base.value if base else ""


def _name_of(source: Path) -> str:
    """The model's name as its folder or file gives it, without encoding and shard."""
    if source.is_dir() or source.suffix != SUFFIX:
        return model_folder_name(source).strip().replace(" ", "-")
    return replace(parse(source.name), encoding=None, shard=None).format().removesuffix(SUFFIX)


def _is_inside(root: Path, text: str) -> bool:
    """Whether a relative path stays inside a folder, by its text and through links that are there."""
    path = PurePath(text)
    if path.anchor or ".." in path.parts:
        return False
    return Path(os.path.realpath(root / path)).is_relative_to(os.path.realpath(root))


def _is_component(text: str) -> bool:
    return bool(text) and text not in (".", "..") and not re.search(r"[/\\\x00-\x1f:]", text)


def _same(path: Path) -> str:
    """Equal for paths that may be one file, on a file system that does not tell cases apart too."""
    return os.path.normcase(os.path.realpath(path)).casefold()


def _unknown(kind: str, name: str, known: Iterable[str]) -> tuple[str, str]:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    fix = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names) or 'none'}."
    return f"{kind} {name!r} means nothing", fix
