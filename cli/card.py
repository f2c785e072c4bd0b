"""`ggufsmith card`: a README.md for a folder of GGUF files."""

from pathlib import Path
from typing import Annotated

import typer


def card(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="The GGUF files. If a model is split, name any one shard.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write; README.md beside the first file by default. '-' prints the card."
        ),
    ] = None,
    repo: Annotated[
        str | None, typer.Option(help="The repository where the files will be published: org/name-GGUF.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="The original model: org/name.")] = None,
    author: Annotated[str | None, typer.Option(help="Who quantized them.")] = None,
    card_template: Annotated[
        Path | None,
        typer.Option(
            "--card-template", metavar="FILE", help="A Jinja2 template of the card. See docs/cards.md for its fields."
        ),
    ] = None,
    no_hashes: Annotated[
        bool, typer.Option("--no-hashes", help="Leave out the SHA-256 hashes, so that the files need not be read.")
    ] = False,
) -> None:
    """Write the model card of GGUF files: front matter, prompt template, a table of files, hashes, and how to run them.

    A README.md that this command did not write is never replaced.
    """
    from ggufsmith.cli.guard import guarded

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.container.apart import check_apart
        from ggufsmith.container.provenance import file_sha256
        from ggufsmith.container.replace import check_place
        from ggufsmith.naming.cardfacts import Publisher
        from ggufsmith.naming.filecard import card_of, check_card, write_card

        path, fix = output or files[0].parent / "README.md", "Choose another file with --output."
        if output != Path("-"):
            check_place(path)
            check_card(path, fix=fix)
            check_apart(path, [*files, *([card_template] if card_template else [])])
        publisher = Publisher(repo, base_model, author)
        text = card_of(files, publisher, digest=None if no_hashes else file_sha256, template=card_template)
        if output == Path("-"):
            render.document(text)
            return
        write_card(path, text, fix=fix)
        render.lines(iter([("card", str(path))]))

    guarded(work, False)
