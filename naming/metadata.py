"""The `general.*` keys of a model: from overrides, the model card, the generation config, and the names.

The same keys, types and values as llama.cpp's converter writes (gguf-py/gguf/metadata.py; conversion/base.py,
prepare_metadata). Of several sources the first that has a value wins: an override, then the model card, then
`_name_or_path` of config.json, then the name of the folder, or of the hub's model in whose cache it stands. Whatever is
a path on somebody's machine (see `local`) is passed over; overrides are so only in base models and data sets.
"""

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from os.path import abspath
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_VERSION, GGUFType, Keys

from ggufsmith.container.errors import Failure, Usage
from ggufsmith.container.text import nearest
from ggufsmith.container.untrusted import read_object
from ggufsmith.container.values import FLOAT32_MAX, Metadata, Value, f32, i32, string, strings, u32
from ggufsmith.naming.card import read_card
from ggufsmith.naming.identity import Identity, Parameters, hub_id, identify, model_folder_name, title
from ggufsmith.naming.local import cached_id, folder_name, holds_path, is_id, is_local, is_path

General = Keys.General
Note = Callable[[str], None]
Found = dict[str, Any]

MAX_JSON = 2**20  # bytes of a generation config or an override file
BASE_MODELS, DATASETS = "general.base_models", "general.datasets"  # as override files name them

# GGUF key <- names in generation_config.json, and the maker of its value.
SAMPLING: tuple[tuple[str, str, Callable[[Any], Value]], ...] = (
    (General.SAMPLING_SEQUENCE, "sequence", string),
    (General.SAMPLING_TOP_K, "top_k", i32),
    (General.SAMPLING_TOP_P, "top_p", f32),
    (General.SAMPLING_MIN_P, "min_p", f32),
    (General.SAMPLING_XTC_PROBABILITY, "xtc_probability", f32),
    (General.SAMPLING_XTC_THRESHOLD, "xtc_threshold", f32),
    (General.SAMPLING_TEMP, "temperature", f32),
    (General.SAMPLING_PENALTY_LAST_N, "penalty_last_n", i32),
    (General.SAMPLING_PENALTY_REPEAT, "penalty_repeat", f32),
    (General.SAMPLING_MIROSTAT, "mirostat", i32),
    (General.SAMPLING_MIROSTAT_TAU, "mirostat_tau", f32),
    (General.SAMPLING_MIROSTAT_ETA, "mirostat_eta", f32),
)

# GGUF key <- names in the front matter of a model card, the first that is there wins. In the order they are written.
TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (General.NAME, ("name", "model_name")),
    (General.AUTHOR, ("author", "model_author", "model_creator")),
    (General.VERSION, ("version", "model_version")),
    (General.ORGANIZATION, ("organization", "model_organization")),
    (General.FINETUNE, ("finetune", "model_finetune")),
    (General.BASENAME, ("basename", "model_basename", "model_type")),
    (General.DESCRIPTION, ("description", "model_description")),
    (General.QUANTIZED_BY, ()),
    (General.SIZE_LABEL, ("size_label", "model_size_label")),
    (General.LICENSE, ("license",)),
    (General.LICENSE_NAME, ("license_name",)),
    (General.LICENSE_LINK, ("license_link",)),
    (General.URL, ()),
    (General.DOI, ()),
    (General.UUID, ()),
    (General.REPO_URL, ()),
    (General.SOURCE_URL, ("url", "model_url")),
    (General.SOURCE_DOI, ("doi", "model_doi")),
    (General.SOURCE_UUID, ("uuid", "model_uuid")),
    (General.SOURCE_REPO_URL, ("repo_url", "model_repo_url")),
)

# GGUF key <- names in the front matter, all of them joined.
LISTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (General.TAGS, ("tags", "pipeline_tag")),
    (General.LANGUAGES, ("languages", "language")),
)

# What a base model or a data set is described by; the front matter's names for the lists of them.
RELATED: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        BASE_MODELS,
        General.BASE_MODEL_COUNT,
        General.BASE_MODEL_NAME.removesuffix("name"),
        ("base_model", "base_models", "base_model_sources"),
    ),
    (
        DATASETS,
        General.DATASET_COUNT,
        General.DATASET_NAME.removesuffix("name"),
        ("datasets", "dataset", "dataset_sources"),
    ),
)
# Keys whose values name something, and those of ATTRIBUTES that are sentences.
NAMES = frozenset(
    (
        General.NAME,
        General.ORGANIZATION,
        General.BASENAME,
        General.FINETUNE,
        General.SOURCE_URL,
        General.SOURCE_REPO_URL,
    )
)
SENTENCES = frozenset(("author", "version", "description"))
ATTRIBUTES = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
HUB_URL = re.compile(r"https?://huggingface.co/([^/]+/[^/]+)$")

OVERRIDES = frozenset([key for key, *_ in SAMPLING] + [key for key, _ in TEXTS + LISTS] + [key for key, *_ in RELATED])


def general_metadata(
    folder: Path,
    config: Mapping[str, Any],
    parameters: Parameters,
    *,
    architecture: str,
    file_type: int,
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    note: Note = lambda text: None,
) -> Metadata:
    """The `general.*` keys for a model folder; `general.alignment` is the layout's.

    config:     config.json, for `_name_or_path`.
    parameters: for the size label, and to tell sizes from context lengths in names. All zero for a vocabulary.
    file_type:  gguf.LlamaFileType.
    name:       `general.name`, before every other source.
    overrides:  GGUF key -> plain value, see `read_overrides`; None drops what the other sources say.
    note:       told of each part of the card or the generation config that cannot be used.
    """
    path = Path(abspath(folder))
    card = read_card(path, note)
    sampling = _optional_object(path / "generation_config.json", note)
    saved_as = config.get("_name_or_path")
    total = parameters.total
    sources = (
        {key: sampling.get(source) for key, source, _ in SAMPLING},
        _from_card(card, note),
        _from_id(saved_as, total) if isinstance(saved_as, str) and is_id(saved_as) else {},
        _from_id(hub_id(path) or model_folder_name(path), total),
    )
    found: Found = {}
    for source in sources:
        for key, value in source.items():
            if found.get(key) is None:
                found[key] = value
    found.update(overrides or {})
    if name or found[General.NAME] is None:
        found[General.NAME] = name or model_folder_name(path)
    if found[General.SIZE_LABEL] is None and total:
        found[General.SIZE_LABEL] = parameters.size_label
    for key, *_ in RELATED:
        entries = _listed(found.get(key), key, note)
        known = [_related(entry, total, note) for entry in entries or ()]
        found[key] = None if entries is None else [entry for entry in known if entry is not None]
    return {
        General.ARCHITECTURE: string(architecture),
        General.TYPE: string(GGUFType.MODEL),
        **_values(found, note),
        General.QUANTIZATION_VERSION: u32(GGML_QUANT_VERSION),
        General.FILE_TYPE: u32(file_type),
    }


def read_overrides(path: Path) -> Mapping[str, Any]:
    """The JSON object of an override file: GGUF keys of this page -> plain values.

    `general.base_models` and `general.datasets` take lists of objects with the keys in ATTRIBUTES. Malformed if it is
    no JSON object; Usage for a key that is not one of these, with the nearest.
    """
    if not path.is_file():
        raise Usage("there is no such file", where=path, fix="Name a JSON file of general.* keys.")
    data = read_object(path, limit=MAX_JSON)
    for key in sorted(data.keys() - OVERRIDES):
        near = nearest(key, sorted(OVERRIDES), most=1, cutoff=0)[0]
        raise Usage(f"{key!r} is not a key that can be set here", where=path, fix=f"The nearest such key is {near!r}.")
    return data


def _optional_object(path: Path, note: Note) -> Mapping[str, Any]:
    """A small JSON object; empty, with a note, if it is none. Not every published generation config is valid."""
    if not path.is_file():
        return {}
    try:
        return read_object(path, inside=path.parent, limit=MAX_JSON)
    except Failure as error:
        note(f"{path} is not used: {error.what}")
        return {}


def _from_id(model_id: str, total: int) -> Found:
    said = identify(model_id, total)
    return {
        General.NAME: None if said.name is None else title(said.name),
        General.ORGANIZATION: None if said.organization is None else title(said.organization),
        General.BASENAME: said.basename,
        General.FINETUNE: said.finetune,
        General.VERSION: said.version,
        General.SIZE_LABEL: said.size_label,
    }


def _from_card(card: Mapping[str, Any], note: Note) -> Found:
    found: Found = {}
    for key, names in TEXTS:
        found[key] = next((card[name] for name in names if _tells(card.get(name), name, key in NAMES, note)), None)
    for key, names in LISTS:
        items = [item for name in names for item in _listed(card.get(name), f"model card: {name}", note) or ()]
        found[key] = [item for item in items if not (isinstance(item, str) and holds_path(item))]
    for key, _, _, names in RELATED:
        present = [name for name in names if name in card]
        if present:
            value = card[present[0]]
            found[key] = [] if value is None else _listed(value, f"model card: {present[0]}", note)
    return found


def _tells(value: Any, name: str, identifies: bool, note: Note) -> bool:
    """Whether a value of the card says something, and something that others may read.

    identifies: the value is a name or a URL, not a sentence.
    """
    if not isinstance(value, str):
        return value is not None
    if (is_local if identifies else is_path)(value):
        note(f"model card: {name} is a path, {_shown.repr(value)}, so it is not written")
        return False
    return bool(value.strip())


def _listed(value: Any, what: str, note: Note) -> Sequence[Any] | None:
    """A list, or one string as a list of one; None, with a note, for anything else."""
    if value is None or isinstance(value, list):
        return value
    if isinstance(value, str):
        return [value]
    note(f"{what}: {_shown.repr(value)} is not a list, so it is not written")
    return None


def _related(entry: Any, total: int, note: Note) -> Mapping[str, Any] | None:
    """One base model or data set: a description, a hub id or a URL. None for a path that says nothing."""
    if isinstance(entry, dict):
        return {
            key: value
            for key, value in entry.items()
            if not isinstance(value, str) or _tells(value, str(key), key not in SENTENCES, note)
        }
    if not isinstance(entry, str):
        note(f"model card: {_shown.repr(entry)} names neither a model nor a data set")
        return {}
    url: str | None
    if is_local(entry) or (not is_id(entry) and not any(mark in entry for mark in "/: ")):
        folder = folder_name(entry)
        note(f"model card: {_shown.repr(entry)} is a path; at most the name of its folder is written")
        if (cached := cached_id(entry)) is not None:
            return _related(cached, total, note)
        return None if folder is None else {"name": title(folder)}
    if entry.startswith(("http://", "https://", "ssh://")):
        match = HUB_URL.match(entry)
        said, url = identify(match[1], total) if match else Identity(), entry
    else:
        said = identify(entry, total)
        url = f"https://huggingface.co/{said.organization}/{said.name}" if said.organization is not None else None
    return {
        "name": None if said.name is None else title(said.name),
        "organization": None if said.organization is None else title(said.organization),
        "version": said.version,
        "repo_url": url,
    }


def _values(found: Found, note: Note) -> Metadata:
    out: Metadata = {}

    def put_text(key: str, value: Any) -> None:
        if isinstance(value, PLAIN) and str(value):
            out[key] = string(str(value))
        elif value not in (None, ""):
            note(f"{key}: {_shown.repr(value)} is not a text, so it is not written")

    for key, _, make in SAMPLING:
        value = found.get(key)
        if make is string:
            put_text(key, value)
        elif value is not None and (number := _number(value, whole=make is i32)) is not None:
            out[key] = make(number)
        elif value is not None:
            note(f"{key}: {_shown.repr(value)} is not a number of its type, so it is not written")
    for key, _ in TEXTS:
        value = found.get(key)
        if key == General.LICENSE and isinstance(value, list):
            value = ",".join(map(str, _plain(value, key, note)))
        put_text(key, value)
    for key, count, prefix, _ in RELATED:
        entries = found.get(key)
        if entries is not None:
            out[count] = u32(len(entries))
        for index, entry in enumerate(entries or ()):
            for attribute in ATTRIBUTES:
                put_text(prefix.format(id=index) + attribute, entry.get(attribute))
    for key, _ in LISTS:
        if items := _plain(_listed(found.get(key), key, note) or (), key, note):
            out[key] = strings(map(str, items))
    return out


_shown = reprlib.Repr()
_shown.maxlevel = 1  # lists in lists may be endless

PLAIN = (str, int, float, date)  # what YAML makes of a version, too


def _plain(items: Sequence[Any], key: str, note: Note) -> list[Any]:
    """Without lists in lists, whose text a few aliases could make endless; a note says which are left out."""
    for item in items:
        if not isinstance(item, PLAIN):
            note(f"{key}: {_shown.repr(item)} is not a text, so it is not written")
    return [item for item in items if isinstance(item, PLAIN)]


def _number(value: Any, *, whole: bool) -> float | int | None:
    """A finite number that fits an int32 (`whole`) or a float32."""
    if not isinstance(value, int | float) or not abs(value) <= (2**31 - 1 if whole else FLOAT32_MAX):
        return None
    return None if whole and value != int(value) else int(value) if whole else value
