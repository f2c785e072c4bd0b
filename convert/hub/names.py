"""Names of models on a hub: `org/name`, `hf://org/name`, `modelscope://org/name`; a folder of that name comes first."""

import re
from dataclasses import dataclass
from pathlib import Path

from ggufsmith.container.errors import Usage
from ggufsmith.convert.stored import LocalFiles, Opener

PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
ID = re.compile(rf"{PART}/{PART}")
HUGGING_FACE, MODELSCOPE = "hf", "modelscope"
PAGES = {HUGGING_FACE: "https://huggingface.co/", MODELSCOPE: "https://modelscope.cn/models/"}


@dataclass(frozen=True)
class HubModel:
    """A model on a hub. id: "org/name". revision: a branch, tag or commit; None is the hub's default branch."""

    hub: str
    id: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.revision is not None and not stays_inside(self.revision):
            fix = "Name a branch, a tag or a commit: --revision main."
            raise Usage(f"{self.revision!r:.80} is not the name of a revision", where=self.id, fix=fix)

    def __str__(self) -> str:
        return f"{self.hub}://{self.id}{f' at {self.revision}' if self.revision else ''}"


@dataclass(frozen=True)
class Located:
    """A model that can be opened.

    folder:     with its files.
    id:         "org/name", if it came from a hub.
    open_files: how its weights are read (see `stored.Checkpoint`).
    notes:      sentences on files of the hub that hold weights as well, and were not fetched.
    """

    folder: Path
    id: str | None = None
    open_files: Opener = LocalFiles
    notes: tuple[str, ...] = ()


def stays_inside(name: object) -> bool:
    """Whether this is a relative path that leads nowhere but further in, on every system."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    return not {"", ".", ".."} & set(name.split("/")) and "\\" not in name and ":" not in name


def hub_model(text: str, revision: str | None = None) -> HubModel | None:
    """The model that `text` names on a hub; None if it is a path.

    Usage for a malformed name, and for a revision of something local, and if it is neither a path nor a name.
    """
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme not in PAGES:
            known = " and ".join(f"{hub}://" for hub in PAGES)
            raise Usage(f"{scheme}:// is not a known hub; known are {known}", where=text)
        if not ID.fullmatch(rest):
            raise Usage(f"{rest!r} is not the name of a model", where=text, fix=f"Write {scheme}://ORGANIZATION/NAME.")
        return HubModel(scheme, rest, revision)
    if Path(text).exists():
        if revision is not None:
            meant = f", or write hf://{text} if that was meant" if ID.fullmatch(text) else ""
            raise Usage("--revision applies only to models on a hub", where=text, fix=f"Leave out --revision{meant}.")
        return None
    if ID.fullmatch(text):
        return HubModel(HUGGING_FACE, text, revision)
    raise Usage(
        "there is no such folder or file",
        where=text,
        fix="Pass the folder of a Hugging Face model, or its name on the hub: ORGANIZATION/NAME.",
    )
