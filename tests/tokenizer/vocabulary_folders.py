"""Model folders made from the fixture vocabularies, with single things changed."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import vocabularies
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.vocabulary import Vocabulary

Json = dict[str, Any]
Edit = Callable[[Json], object]


@cache
def made(kind: str) -> tuple[int, Mapping[str, bytes]]:
    return vocabularies.KINDS[kind]()


def folder_of(kind: str, folder: Path, **edits: Edit) -> Path:
    """The files of `kind`; an edit, named like the file without its suffix, changes the parsed JSON in place."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in made(kind)[1].items():
        (folder / name).write_bytes(content)
    for stem, edit in edits.items():
        path = folder / f"{stem}.json"
        whole = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        edit(whole)
        put(folder, path.name, whole)
    return folder


def put(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8", newline="")


def read(folder: Path, **options: Any) -> Vocabulary:
    return read_vocabulary(folder, **{"config": {}, "size": None, "architecture": "LlamaForCausalLM", **options})


def added(token: int, content: str, *, special: bool = False) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, "special": special, **flags}
