"""The base model of an adapter: which folder it is, and what metadata calls it, and the two together."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import Keys

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.text import shell_command
from ggufsmith.convert.lora.peft import Adapter
from ggufsmith.naming.identity import hub_id, model_folder_name, title
from ggufsmith.naming.local import is_id
from ggufsmith.naming.metadata import BASE_MODELS, DATASETS

General = Keys.General
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "qwen.tiktoken")
# Files with added tokens: without a vocabulary beside them, that of the base is meant.
ADDED_TOKENS = ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
# What a model card says of the base, and not of what adapters make of it.
OF_THE_BASE = (
    *(General.AUTHOR, General.ORGANIZATION, General.VERSION, General.DESCRIPTION, General.URL, General.DOI),
    *(General.UUID, General.REPO_URL, General.SOURCE_URL, General.SOURCE_DOI, General.SOURCE_UUID),
    *(General.SOURCE_REPO_URL, DATASETS),
)


def find_base(adapter: Adapter, given: Path | None = None) -> Path:
    """The folder of the base model: the given one, or what the adapter names, on this machine.

    A name is a folder seen from the adapter or from here, or a model in the hub's cache. Unsupported if it is neither.
    """
    if given is not None:
        if not (given / "config.json").is_file():
            raise Malformed("there is no config.json, so this is not a base model", where=given)
        return Path(os.path.abspath(given))
    named = adapter.base
    fix = "Name the folder of its base model with --base."
    if named is None:
        raise Unsupported("its configuration names no base model", where=adapter.config.path, fix=fix)
    if not named.startswith(("//", "\\\\")):  # the name of a share is no reason to call on a server
        for folder in (adapter.folder / named, Path(named)):
            if os.path.isfile(folder / "config.json"):  # False as well for names that no file can have
                return Path(os.path.abspath(folder))
    cached = _in_hub_cache(named, adapter.config.first("revision"))
    if cached is None:
        if HUB_ID.fullmatch(named):
            fix += f" To merge, which fetches it: {shell_command('gguf-convert', named, '--lora', adapter.folder)}"
        raise Unsupported(f"its base model {named!r} is not on this machine", where=adapter.config.path, fix=fix)
    return cached


def _in_hub_cache(model: str, revision: object) -> Path | None:
    if not HUB_ID.fullmatch(model):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision if isinstance(revision, str) else None)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def base_models(adapter: Adapter, folder: Path) -> list[Any]:
    """general.base_models: the id on the hub, where it is certain, else the folder's name; never a path."""
    named = adapter.base or ""
    known = HUB_ID.fullmatch(named) is not None and is_id(named)
    if known and named.rpartition("/")[2].lower() == model_folder_name(folder).lower():
        return [named]
    return [hub_id(folder) or {"name": title(model_folder_name(folder))}]


@dataclass(frozen=True)
class Origin:
    """What a model is made of, apart from its weights.

    name:      of the model, for file names. home: the folder of outputs that were given none.
    tokenizer: the folder of its vocabulary. under: one whose files stand in for those that it lacks.
    general:   general.* keys that override what the model's folder says (see `naming.metadata.general_metadata`).
    """

    name: str
    home: Path
    tokenizer: Path
    general: Mapping[str, Any]
    under: Path | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> "Origin":
        """A model as it is."""
        return cls(model_folder_name(folder), folder, folder, {})

    @classmethod
    def of_merged(cls, folder: Path, adapters: Sequence[tuple[Adapter, float]]) -> "Origin":
        """The base and the adapters. The last adapter that has a tokenizer gives the vocabulary it was trained with;
        one that only names added tokens adds them to the base's.
        """
        folders = [adapter.folder for adapter, _ in adapters]
        names = [model_folder_name(found) for found in folders]
        name = "-".join([model_folder_name(folder), *names])
        whole = [found for found in folders if any((found / file).is_file() for file in VOCABULARIES)]
        partial = [found for found in folders if any((found / file).is_file() for file in ADDED_TOKENS)]
        tokenizer = [folder, *partial, *whole][-1]
        factors = (f":{factor!r}" if factor != 1 else "" for _, factor in adapters)
        general = {
            **dict.fromkeys(OF_THE_BASE),
            General.NAME: title(name),
            General.FINETUNE: "-".join(map("".join, zip(names, factors, strict=True))),
            BASE_MODELS: base_models(adapters[0][0], folder),
        }
        return cls(name, folders[0], tokenizer, general, folder if partial and not whole else None)


def parse_adapter(text: str) -> tuple[Path, float]:
    """`FOLDER` or `FOLDER:FACTOR`. Usage if the factor is no number."""
    folder, colon, factor = text.rpartition(":")
    if not colon or Path(text).is_dir() or (len(folder) == 1 and factor.startswith(("\\", "/"))):  # C:\folder
        return Path(text), 1.0
    try:
        value = float(factor)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise Usage(f"--lora {text}: {factor!r} is not a number", fix="Write FOLDER, or FOLDER:0.5.")
    return Path(folder), value
