"""Publishing: which files of a folder go to the hub, under which names, with which card. For `push` and `--push`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ggufsmith.container.errors import Usage
from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.convert.hub.listing import Listing
    from ggufsmith.convert.hub.upload import Repository, Uploaded, UploadFile
    from ggufsmith.pipeline.publish import PublishOptions

CARD = "README.md"


@dataclass(frozen=True)
class PushTask:
    """What to publish. files: GGUF files; of several shards any one. repo: org/name. sha256: of files, if known.

    create, private, replace: see `convert.hub.upload.Repository`. card: a README.md; None takes the one beside the
    files, unless that is not wanted (beside) or it is the card of a checkpoint in the same folder, or makes one.
    extra: files that are published too. message: of the commit.
    hashes: SHA-256 of files, where they are known.
    """

    files: Sequence[Path]
    repo: str
    token: str | None = None
    create: bool = False
    private: bool = False
    replace: bool = False
    card: Path | None = None
    beside: bool = True
    extra: Sequence[Path] = ()
    message: str | None = None
    hashes: Mapping[Path, str] = field(default_factory=dict)


def repository_of(task: PushTask, endpoint: str | None = None, pause: float = 1.0) -> "Repository":
    """The repository. Usage for a name that is none, without a token, and under HF_HUB_OFFLINE."""
    from ggufsmith.convert.hub.upload import Repository

    return Repository(
        task.repo,
        task.token,
        create=task.create,
        private=task.private,
        replace=task.replace,
        endpoint=endpoint,
        pause=pause,
    )


def gguf_files(places: Sequence[Path]) -> list[Path]:
    """The GGUF files that are named, or lie in the folders that are named. Usage if there are none."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(each for each in place.glob("*.gguf") if not each.name.startswith("."))
            if not inside:
                raise Usage("there are no GGUF files in this folder", where=place, fix="Name files, or another folder.")
            found += inside
        elif place.is_file() and place.suffix == ".gguf":
            found.append(place)
        else:
            raise Usage("this is not a GGUF file or a folder", where=place, fix="Name GGUF files, or their folder.")
    return list(dict.fromkeys(found))


def push(task: PushTask, display: Display, repository: "Repository | None" = None) -> "Uploaded":
    """Publish: the models, every file checked to be whole; then importance matrices, and the card last. One commit.

    Raises what is wrong with a file before the hub is asked for anything, and see `Repository.upload`.
    """
    found = gguf_files(task.files)
    if task.card is not None and not task.card.is_file():
        raise Usage("there is no such model card", where=task.card, fix="Name a file, or leave out --card.")
    models, matrices = _sorted(found)
    repository = repository or repository_of(task)
    listing = repository.check()
    card = _card(task, models, listing, repository)
    files = [*_placed(models, task.hashes), *_single([*matrices, *task.extra]), *card]
    names = [file.place for file in files]
    message = task.message or f"Upload {names[0] if len(names) == 1 else f'{len(names)} files'} with ggufsmith"
    total = sum(file.size for file in files)
    with display.progress(f"uploading to {repository.model.id}", total, "bytes") as advance:
        return repository.upload(files, message, advance=advance)


@dataclass(frozen=True)
class Pushing:
    """The publishing of a run. options: none of which means anything without a repository."""

    options: "PublishOptions"
    repository: "Repository | None" = None

    @classmethod
    def of(cls, options: "PublishOptions", token: str | None) -> "Pushing":
        """Usage for options without --push, and see `repository_of`."""
        if options.push is None:
            if options.create or options.private or options.replace:
                raise Usage(
                    "--create, --private and --replace are about --push", fix="Leave them out, or add --push ORG/NAME."
                )
            return cls(options)
        task = PushTask((), options.push, token, options.create, options.private, options.replace)
        return cls(options, repository_of(task))

    def check(self, outputs: "Sequence[Sequence[Path]]") -> None:
        """Before the work: see `Repository.check`. outputs: the files of each."""
        if self.repository is not None:
            self.repository.check([file.place for file in _placed(outputs)])

    def push(self, files: Sequence[Path], extra: Sequence[Path], display: Display) -> list[tuple[str, str]]:
        """Publish the files, and what else there is; lines for a summary."""
        if self.repository is None or self.options.push is None:
            return []
        done = push(PushTask(files, self.options.push, beside=self.options.card, extra=extra), display, self.repository)
        return [("published", done.url or f"everything was in {self.options.push} already")]


def _sorted(files: Sequence[Path]) -> tuple[list[list[Path]], list[Path]]:
    """Models, each with all its shards in order, and importance matrices. Raises what is wrong with a file."""
    from ggufsmith.container.shards import open_gguf_set

    models: dict[Path, list[Path]] = {}
    matrices = []
    for path in files:
        with open_gguf_set(path) as model:
            kind = model.metadata.get("general.type")
            if kind is not None and kind.data == "imatrix":
                matrices.append(path)
            else:
                models.setdefault(model.paths[0], list(model.paths))
    return list(models.values()), matrices


def _placed(models: Sequence[Sequence[Path]], hashes: Mapping[Path, str] = MappingProxyType({})) -> "list[UploadFile]":
    """Shards go into a folder of their own, as publishers do it."""
    from ggufsmith.convert.hub.upload import UploadFile
    from ggufsmith.naming.cardfacts import CardFile

    files = []
    for paths in models:
        folder = CardFile(tuple(path.name for path in paths), 0, 0).folder
        files += [
            UploadFile(f"{folder}/{path.name}" if folder else path.name, path, hashes.get(path)) for path in paths
        ]
    return files


def _single(paths: Sequence[Path]) -> "list[UploadFile]":
    from ggufsmith.convert.hub.upload import UploadFile

    return [UploadFile(path.name, path) for path in dict.fromkeys(paths)]


def _card(
    task: PushTask, models: Sequence[Sequence[Path]], listing: "Listing | None", repository: "Repository"
) -> "list[UploadFile]":
    """The card: the one that is named or lies beside the files; or one that is made, if the repository has none.

    A card in the repository that ggufsmith did not write is never replaced by one that it writes; its own is renewed.
    """
    from ggufsmith.container.provenance import file_sha256
    from ggufsmith.container.untrusted import begins
    from ggufsmith.convert.hub.upload import UploadFile
    from ggufsmith.naming.cardfacts import Publisher
    from ggufsmith.naming.filecard import card_of
    from ggufsmith.naming.modelcard import MARK

    given = task.card
    if given is None and task.beside and models:
        given = _beside(models[0][0].parent)
    if given is not None:
        old = repository.read(listing, CARD) if listing is not None and CARD in listing.files else None
        ours = MARK in begins(given)
        if old is not None and MARK not in old and ours and task.card is None:
            return []
        return [UploadFile(CARD, given, renews=old is not None and MARK in old)]
    if not models or (listing is not None and CARD in listing.files):
        return []
    made = card_of([paths[0] for paths in models], Publisher(task.repo), digest=file_sha256)
    return [UploadFile(CARD, made.encode())]


def _beside(folder: Path) -> Path | None:
    """The card in the files' folder. In the folder of a checkpoint, a README.md is that of the original model."""
    from ggufsmith.container.untrusted import begins
    from ggufsmith.naming.modelcard import MARK

    path = folder / CARD
    if not path.is_file():
        return None
    ours = MARK in begins(path)
    return path if ours or not (folder / "config.json").is_file() else None
