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

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any, TypeVar

from ggufsmith.container.documents import read_document
from ggufsmith.container.errors import Malformed
from ggufsmith.container.formats import format_of
from ggufsmith.container.ggml import is_ggml
from ggufsmith.container.output_names import ADDED, DEVICE, LONGEST, NOT_IN_NAMES
from ggufsmith.container.shards import SUFFIX
from ggufsmith.container.units import parse_size
from ggufsmith.convert.batch.apart import conflicts, files_taken
from ggufsmith.convert.batch.job import JobFile, JobModel, WantedOutput
from ggufsmith.convert.batch.schema import ENCODING, MODELS, OUTPUT, SETTINGS, TABLES, meant
from ggufsmith.convert.batch.settings import Result, Said, Tables, unknown
from ggufsmith.convert.batch.together import BUDGETS, misfits
from ggufsmith.convert.hub.names import ID, HubModel, hub_model
from ggufsmith.convert.lora.base import find_base, parse_adapter
from ggufsmith.convert.lora.peft import is_adapter, open_adapter
from ggufsmith.naming.filename import SIDECARS, FileName, parse
from ggufsmith.naming.identity import model_folder_name
from ggufsmith.pipeline.option import CHECKPOINT, MODEL, Input, declared
from ggufsmith.pipeline.request import AUTO, MakeOptions, Request, SourceOptions, WriteOptions
from ggufsmith.quantize.budget import Budget, budget_of
from ggufsmith.quantize.old_llama import old_name
from ggufsmith.quantize.overrides import parse_override
from ggufsmith.quantize.recipes.assign import TypeOptions
from ggufsmith.quantize.recipes.files import recipe_of
from ggufsmith.quantize.recipes.options import check_options, layers_of, override_of
from ggufsmith.quantize.resolve import PROJECTOR_TYPES, check_projector_type

MAKING = ("recipes", "outtypes", "target_size", "target_bpw", "match")  # the keys that ask for outputs
CONFIGS = ("config.json", "params.json", "adapter_config.json")  # of a model, of Meta's own release, of an adapter
OUTTYPES = ("f32", "f16", "bf16")
Record = TypeVar("Record", SourceOptions, MakeOptions, WriteOptions)


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


class _Reader(Tables):
    """Makes models of the tables."""

    def job(self, shard: tuple[int, int]) -> JobFile | None:
        data, place = self.document.data, self.document.place
        for key in data.keys() - TABLES.keys() - {"output"}:
            self.wrong(place(key), *unknown("key", key, ["output", *TABLES]))
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
            self.wrong(place("model"), "the job has no model: add at least one")
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
        every, path = [*mine, *others], self.document.path
        for problem in conflicts(path, every):
            self.wrong(*problem)
        return JobFile(path, output, tuple(mine), tuple(files_taken(path, every)))

    # ---- models ----

    def model(self, place: str, said: Mapping[str, Said], output: Path) -> JobModel | None:
        """One model; None if there is no source to speak of."""
        if "source" not in said:
            self.wrong(place, "the key source is missing; it names the model")
            return None
        hub = self.hub(said)
        source = Path(hub.id) if hub else self.source(said["source"])
        if source is None:
            return None
        given = said["name"].value if "name" in said else source.name if hub else None
        name = self.tried(place, lambda: _name_of(source)) if given is None else given
        if name is None:
            return None
        if not _is_component(name):
            self.wrong(said["name"].place if "name" in said else place, f"{name!r} cannot be part of a file name")
            return None
        values = {key: said[key] if key in said else Said(record.default, place) for key, record in SETTINGS.items()}
        for key, record in SETTINGS.items():
            if record.fields:
                values[key] = replace(values[key], value=_named(values[key].value, name))
        folder = output / values["folder"].value
        wanted = tuple(self.wanted(values, folder))
        if not hub and is_adapter(source):
            wanted = named_as_adapter(wanted)
        self.check_types(values, wanted)
        self.check_shards(values)
        self.check_settings(None if hub else source, values, output, place)
        settings = {key: said.value for key, said in values.items()}
        settings["card_template"] = str(self.existing(values["card_template"]) or "")
        return JobModel(
            name, place, folder, wanted, settings, self.request(source, values, on_hub=hub is not None), hub
        )

    def request(self, source: Path, said: Mapping[str, Said], *, on_hub: bool) -> Request:
        """The request that the settings amount to, with paths relative to the job file."""
        list(self.each(said["override_kv"], parse_override))
        list(self.each(said["prune_layers"], lambda layer: layers_of(str(layer))))
        paths = {
            "imatrix": AUTO if said["imatrix"].value == str(AUTO) else self.existing(said["imatrix"]),
            "sensitivity": self.existing(said["sensitivity"]),
            "calibrate": tuple(self.texts(said["calibrate"])),
            "metadata": self.existing(said["metadata"]),
            "tokenizer": self.folder(said["tokenizer"]),
            "target": self.folder(said["target"]),
            "base": self.folder(said["base"]) if on_hub else self.base(source, said["base"]),
            "lora": tuple(self.adapters(said["lora"])),
        }
        named = dict.fromkeys(MAKING, ())  # what is made stands in `JobModel.wanted`

        def record(kind: type[Record]) -> Record:
            values = {field.name: _plain(said[field.key].value) for field in declared(kind) if field.key}
            return kind(**{name: {**paths, **named}.get(name, value) for name, value in values.items()})

        return Request(source, record(SourceOptions), record(MakeOptions), record(WriteOptions))

    def hub(self, said: Mapping[str, Said]) -> HubModel | None:
        """The model on a hub, if that is what is meant."""
        source, revision = said["source"], said.get("revision")
        if "://" in source.value:
            return self.tried(source.place, lambda: hub_model(source.value, revision.value if revision else None))
        if revision:
            self.wrong(revision.place, "revision applies only to models on a hub")
        return None

    def source(self, said: Said) -> Path | None:
        """The model on the disk, whether it is there or not."""
        if "://" in said.value:
            return None
        source = self.beside(said.value)
        if not source.exists():
            fix = f"If the hub is meant, write hf://{said.value}." if ID.fullmatch(said.value) else None
            self.wrong(said.place, f"there is no such folder or file: {source}", fix)
        elif source.is_dir() and not any((source / name).is_file() for name in CONFIGS):
            self.wrong(said.place, f"{source} has no {CONFIGS[0]}: so it is not a model folder")
        elif source.is_file() and source.suffix != SUFFIX and not is_ggml(source):
            self.wrong(
                said.place, f"{source} is neither a folder nor a GGML file, and its name does not end in {SUFFIX}"
            )
        return source

    def check_settings(self, source: Path | None, said: Mapping[str, Said], output: Path, at: str) -> None:
        """What does not fit together. source: None if it is on a hub. at: where the model stands."""
        folder = said["folder"]
        if not _is_inside(output, folder.value):
            self.wrong(folder.place, f"folder {folder.value!r} is outside the output folder {output}")
        for key in ("card", "checksums"):
            if said[key].value and not _is_component(said[key].value):
                self.wrong(said[key].place, f"{key} names a file in the model's folder, not {said[key].value!r}")
        kinds = CHECKPOINT if source is None else (_kind_of(source),)
        for key, record in SETTINGS.items():
            value, place = said[key].value, said[key].place
            if value and not set(kinds) & set(record.inputs) and (source is None or source.exists()):
                nothing = {str: '""', tuple: "[]", bool: "false"}[type(value)]
                what = f"{key} applies to {meant(record.inputs)}, but this source is {meant(kinds)}"
                self.wrong(place, what, f"Set {key} = {nothing} for it.")
        if not any(said[key].value for key in MAKING):
            self.wrong(said["recipes"].place, f"there is nothing to make: set at least one of {', '.join(MAKING)}")
        make = MakeOptions(mmproj=said["mmproj"].value, mmproj_outtype=said["mmproj_outtype"].value or None)
        self.tried(said["mmproj_outtype"].place, lambda: check_projector_type(make))
        for misfit in misfits(said, at):
            self.wrong(*misfit)

    def wanted(self, said: Mapping[str, Said], folder: Path) -> Iterator[WantedOutput]:
        """The outputs, unquantized ones first."""
        pattern: str = said["file"].value
        if not _is_component(pattern) or not pattern.endswith(SUFFIX):
            self.wrong(
                said["file"].place, f"file names a file that ends in {SUFFIX}, without a folder, not {pattern!r}"
            )

        def paths(encoding: str) -> tuple[Path, Path]:
            names = (encoding.upper(), f"{encoding.upper()}-LoRA")
            plain, lora = (folder / pattern.replace(f"{{{ENCODING}}}", name) for name in names)
            return plain, lora

        for text in said["outtypes"].value:
            if text.lower() in OUTTYPES:
                yield WantedOutput(text.lower(), None, *paths(text))
            else:
                self.wrong(said["outtypes"].place, *unknown("output type", text, OUTTYPES))
        for text, recipe in self.pairs(said["recipes"], lambda text: recipe_of(text, self.document.path.parent)):
            yield WantedOutput(text, recipe, *paths(recipe.name))
        for text, budget in self.pairs(said["target_size"], lambda text: budget_of(text, None)):
            yield WantedOutput(text, None, *paths(f"Q{text}".replace(".", "_")), budget)
        for bits, budget in self.pairs(said["target_bpw"], lambda bits: budget_of(None, bits)):
            yield WantedOutput(f"{bits:g} bpw", None, *paths(f"Q{bits:g}BPW".replace(".", "_")), budget)
        for text, recipe in self.pairs(said["match"], lambda text: recipe_of(text, self.document.path.parent)):
            yield WantedOutput(f"match {text}", None, *paths(f"{recipe.name}_MATCH"), Budget(match=recipe))
        if said["mmproj"].value:
            type = (said["mmproj_outtype"].value or PROJECTOR_TYPES[0]).lower()
            file = FileName(pattern.removesuffix(SUFFIX).replace(f"{{{ENCODING}}}", type.upper()), sidecar=SIDECARS[0])
            path = folder / file.format()
            yield WantedOutput(f"mmproj {type}", None, path, path, projector=type)

    def check_types(self, said: Mapping[str, Said], wanted: Sequence[WantedOutput]) -> None:
        """The settings that choose types, by themselves and together."""
        output, embedding = (
            self.tried(said[key].place, partial(format_of, said[key].value)) if said[key].value else None
            for key in ("output_tensor_type", "token_embedding_type")
        )
        overrides = self.each(said["tensor_types"], lambda text: override_of(text, f"tensor_types {text}"))
        pure, leave = said["pure"].value, said["leave_output_tensor"].value
        options = TypeOptions(pure, leave, output, embedding, tuple(overrides))
        if options != TypeOptions() and any(each.budget for each in wanted):
            key = next(key for key in BUDGETS if said[key].value)
            self.wrong(
                said[key].place,
                f"{key} chooses all types itself and cannot be combined with pure, tensor_types and similar keys",
            )
        recipes = [each.recipe for each in wanted if each.recipe]
        chosen = any(each.budget for each in wanted) or any(recipe.addition for recipe in recipes)
        if said["sensitivity"].value and not chosen:
            what = f"sensitivity says what types cost, but nothing chooses among them: set {' or '.join(BUDGETS)}"
            self.wrong(said["sensitivity"].place, what)
        self.tried(said["recipes"].place, lambda: check_options(options, recipes))

    def check_shards(self, said: Mapping[str, Said]) -> None:
        """The settings that say where new shards begin."""
        size, count = said["shard_size"], said["shard_tensors"].value
        if size.value:
            self.tried(size.place, lambda: parse_size(size.value))
        alone, keep = said["no_tensor_first_split"], said["keep_split"]
        if alone.value and not (size.value or count):
            self.wrong(
                alone.place, "no_tensor_first_split applies only to split outputs, with shard_size or shard_tensors"
            )
        if keep.value and (size.value or count):
            self.wrong(keep.place, "keep_split cannot be combined with shard_size or shard_tensors")

    def pairs(self, said: Said, make: Callable[[Any], Result | None]) -> Iterator[tuple[Any, Result]]:
        """Each of several values, with what it stands for; those that stand for nothing are noted."""
        for value in said.value:
            found = self.tried(said.place, partial(make, value))
            if found is not None:
                yield value, found

    def each(self, said: Said, make: Callable[[Any], Result]) -> Iterator[Result]:
        return (found for _, found in self.pairs(said, make))

    def beside(self, text: str) -> Path:
        """A path, relative to the job file."""
        return Path(os.path.abspath(self.document.path.parent / os.path.expanduser(text)))

    def existing(self, said: Said) -> Path | None:
        if not said.value:
            return None
        path = self.beside(said.value)
        if not path.is_file():
            self.wrong(said.place, f"there is no such file: {path}")
        return path

    def texts(self, said: Said) -> Iterator[Path]:
        """Files and folders to calibrate with."""
        for text in said.value:
            path = AUTO if text == str(AUTO) else self.beside(text)
            if path != AUTO and not path.exists():
                self.wrong(said.place, f"there is no such file or folder: {path}")
            yield path

    def folder(self, said: Said) -> Path | None:
        path = self.beside(said.value) if said.value else None
        if path and not path.is_dir():
            self.wrong(said.place, f"there is no such folder: {path}")
        return path

    def base(self, source: Path, said: Said) -> Path | None:
        """The base model of an adapter."""
        given = self.folder(said)
        return self.tried(said.place, lambda: find_base(open_adapter(source), given)) if is_adapter(source) else given

    def adapters(self, said: Said) -> Iterator[tuple[Path, float]]:
        for folder, factor in self.each(said, lambda text: parse_adapter(str(self.beside(text)))):
            if not is_adapter(folder):
                self.wrong(said.place, f"{folder} is not the folder of an adapter")
            yield folder, factor


def _named(value: Any, name: str) -> Any:
    """A text, or each of several, with the name of the model where it is asked for."""
    return (
        tuple(_named(each, name) for each in value) if isinstance(value, tuple) else value.replace(f"{{{MODEL}}}", name)
    )


def _plain(value: Any) -> Any:
    """A setting as a request has it: what is empty was not set."""
    return value if isinstance(value, tuple | bool) else value or None


def named_as_adapter(wanted: Sequence[WantedOutput]) -> tuple[WantedOutput, ...]:
    """What an adapter becomes is called so in its file's name."""
    return tuple(replace(each, path=each.lora) for each in wanted)


def _kind_of(source: Path) -> Input:
    return "adapter" if is_adapter(source) else "model" if source.is_dir() else "file"


def _name_of(source: Path) -> str:
    """The model's name as its folder or file gives it, without encoding and shard."""
    if source.is_file() and (source.suffix == SUFFIX or is_ggml(source)):
        name = parse(source.name) if source.suffix == SUFFIX else old_name(source.name)
        return replace(name, encoding=None, shard=None).format().removesuffix(SUFFIX)
    return model_folder_name(source).strip().replace(" ", "-")


def _is_inside(root: Path, text: str) -> bool:
    """Whether a relative path stays inside a folder, by its text and through links that are there."""
    path = PurePath(text)
    if path.anchor or ".." in path.parts:
        return False
    return Path(os.path.realpath(root / path)).is_relative_to(os.path.realpath(root))


def _is_component(text: str) -> bool:
    """Whether it can be a name inside a folder, on every system: job files travel."""
    plain = bool(text) and text not in (".", "..") and "/" not in text and "\\" not in text
    short = len(text.encode("utf-8", "surrogatepass")) <= LONGEST - ADDED
    return (
        plain and short and not DEVICE.fullmatch(text) and not NOT_IN_NAMES.search(text) and text == text.rstrip(" .")
    )
