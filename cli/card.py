"""`ggufsmith card`: a README.md for a folder of GGUF files."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ggufsmith.naming.modelcard import Publisher


def card(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="The GGUF files; of shards, any one.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: README.md beside the first file. '-': print it.")
    ] = None,
    repo: Annotated[str | None, typer.Option(help="Where the files will be published: org/name-GGUF.")] = None,
    base_model: Annotated[str | None, typer.Option(help="What they were made from: org/name.")] = None,
    author: Annotated[str | None, typer.Option(help="Who quantized them.")] = None,
    no_hashes: Annotated[bool, typer.Option("--no-hashes", help="Do not read the files for their SHA-256.")] = False,
) -> None:
    """Write the model card of GGUF files: front matter, prompt template, table of files, hashes, how to run them.

    A README.md that this command did not write is never replaced.
    """
    from ggufsmith.cli.app import guarded

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.container.provenance import file_sha256
        from ggufsmith.container.text import printable
        from ggufsmith.naming.modelcard import Publisher

        text = card_of(files, Publisher(repo, base_model, author), digest=None if no_hashes else file_sha256)
        if output == Path("-"):
            render.out.print(printable(text, keep="\n\t"), end="", markup=False)
            return
        path = output or files[0].parent / "README.md"
        write_card(path, text)
        render.lines(iter([("card", str(path))]))

    guarded(work, False)


def card_of(files: Sequence[Path], publisher: "Publisher", *, digest: Callable[[Path], str] | None) -> str:
    """The card of these files, read from their headers. Several shards of one set count once.

    digest: gives the SHA-256 of a file; None leaves the hashes out.
    """
    from importlib.metadata import version

    from ggufsmith.container.shards import open_gguf_set
    from ggufsmith.naming.modelcard import CardFile, model_card
    from ggufsmith.naming.suggest import encoding_of

    found: dict[str, CardFile] = {}
    metadata = None
    for path in files:
        with open_gguf_set(path) as model:
            metadata = metadata or model.metadata
            names = tuple(each.name for each in model.paths)
            if names[0] in found:
                continue
            weights = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
            size = sum(tensor.nbytes for tensor in model.tensors.values())
            digests = tuple(map(digest, model.paths)) if digest else ()
            bits = 8 * size / max(weights, 1)
            found[names[0]] = CardFile(names, model.size, bits, encoding_of(model.metadata), digests)
    return model_card(metadata or {}, list(found.values()), publisher, version=version("ggufsmith"))


def check_card(path: Path, fix: str = "Name another with --output.") -> None:
    """OutputConflict for a file that is no card of ours."""
    from ggufsmith.container.errors import OutputConflict
    from ggufsmith.naming.modelcard import MARK

    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise OutputConflict("is there already, and is no card that was written here", where=path, fix=fix)


def write_card(path: Path, text: str) -> None:
    """Write the card. OutputConflict for a file that is no card of ours; Failure if it cannot be written."""
    from ggufsmith.container.errors import Failure

    try:
        check_card(path)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise Failure(f"cannot write: {error.strerror}", where=path) from error
