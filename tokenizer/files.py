"""The files of a folder that describe its tokenizer, parsed and not yet understood."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufsmith.container.untrusted import MAX_BYTES, Json, child, read_bytes, read_object, read_text
from ggufsmith.tokenizer import tekken


@dataclass(frozen=True)
class TokenizerFiles:
    """The JSON files; an empty object stands for a missing one.

    folder:     where they are, apart from `config` and `generation`, which belong to the model.
    base:       another folder, whose files stand in for those that `folder` lacks (an adapter's base model).
    config:     config.json. generation: generation_config.json.
    tokenizer:  tokenizer.json, None if there is none.
    named:      what stands in for tokenizer.json, if another file does.
    """

    folder: Path
    base: Path | None
    config: Mapping[str, Any]
    generation: Json
    tokenizer_config: Json
    special_tokens_map: Json
    added_tokens: Json
    tokenizer: Json | None
    named: str = "tokenizer.json"

    @classmethod
    def read(
        cls, folder: Path, config: Mapping[str, Any], *, model: Path | None = None, base: Path | None = None
    ) -> "TokenizerFiles":
        """All of them. model: the folder of generation_config.json, if it is another. Malformed: see `read_object`."""

        def whole(name: str) -> Json | None:
            return optional_object(home_of(name, folder, base), name)

        tokenizer, tokenizer_config, named = whole("tokenizer.json"), whole("tokenizer_config.json") or {}, cls.named
        if tokenizer is None and (listed := whole(tekken.NAME)) is not None:
            tokenizer, roles = tekken.read_tekken(listed, home_of(tekken.NAME, folder, base) / tekken.NAME)
            tokenizer_config, named = {**roles, **tokenizer_config}, tekken.NAME
        return cls(
            folder,
            base,
            config,
            optional_object(model or folder, "generation_config.json") or {},
            tokenizer_config,
            whole("special_tokens_map.json") or {},
            whole("added_tokens.json") or {},
            tokenizer,
            named,
        )

    @property
    def sentencepiece(self) -> str:
        """The SentencePiece model's name. Mistral's have versions, as in tokenizer.model.v3: the newest counts."""
        name = "tokenizer.model"
        if (self.home(name) / name).exists():
            return name
        folders = [self.folder, *([self.base] if self.base else [])]
        found = [path.name for folder in folders for path in folder.glob(f"{name}.v*")]
        versions = {int(number): each for each in found if (number := each.removeprefix(f"{name}.v")).isdecimal()}
        return versions[max(versions)] if versions else name

    def home(self, name: str) -> Path:
        """The folder that a file is read from."""
        return home_of(name, self.folder, self.base)

    def path(self, name: str) -> Path:
        """Where a file is, or would be; what stands in for tokenizer.json counts as that."""
        name = self.named if name == "tokenizer.json" else name
        return self.home(name) / name

    @property
    def text_config(self) -> Json:
        """The language model's part of the config.json of a multimodal model. Malformed if it is not an object."""
        return child(self.config, "text_config", dict, where=self.folder / "config.json") or {}


def optional_bytes(folder: Path, name: str, limit: int = MAX_BYTES) -> bytes | None:
    """The bytes of folder/name, None if there is no such file. Malformed: see `untrusted.read_bytes`."""
    path = folder / name
    return read_bytes(path, inside=folder, limit=limit) if path.is_file() else None


def optional_text(folder: Path, name: str) -> str | None:
    """The text of folder/name, None if there is no such file. Malformed: see `untrusted.read_text`."""
    path = folder / name
    return read_text(path, inside=folder) if path.is_file() else None


def optional_object(folder: Path, name: str) -> Json | None:
    """The JSON object in folder/name, None if there is no such file. Malformed: see `untrusted.read_object`."""
    path = folder / name
    return read_object(path, inside=folder) if path.is_file() else None


def home_of(name: str, folder: Path, base: Path | None) -> Path:
    """`folder`, or `base` if there is one and `folder` lacks the file."""
    return folder if base is None or (folder / name).exists() else base
