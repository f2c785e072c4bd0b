"""`ggufsmith push`: GGUF files onto the Hugging Face hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufsmith.cli.options import AsJson, Quiet, with_records
from ggufsmith.pipeline.request import SourceOptions

if TYPE_CHECKING:
    from ggufsmith.convert.hub.upload import Uploaded


@with_records("model", only="token")
def push(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|FOLDER... ORG/NAME",
            help="GGUF files, or folders with them, and the repository where they are published.",
        ),
    ],
    *,
    create: Annotated[bool, typer.Option("--create", help="Make the repository, if it does not exist.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make it as a private one, if it does not exist.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Add new versions of files that are there with other content.")
    ] = False,
    card: Annotated[
        Path | None,
        typer.Option(
            "--card", metavar="FILE", help="The model card; by default the README.md beside the files, or a new one."
        ),
    ] = None,
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="What the commit is called.")] = None,
    source: SourceOptions,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Publish GGUF files on the Hugging Face hub, in one commit, with their model card.

    Every file is checked to be whole first. What is there already, by its hash, is not sent again, so that a push that
    was interrupted goes on. Shards go into a folder of their own, importance matrices and the card come last. Nothing
    is ever deleted. The token is taken from --token, HF_TOKEN or the stored login, and must be allowed to write.
    """
    from ggufsmith.cli.guard import guarded

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.container.errors import Usage
        from ggufsmith.pushing import PushTask
        from ggufsmith.pushing import push as publish

        if len(places) < 2:
            raise Usage("the files or the repository are missing", fix="Name files or a folder, and then ORG/NAME.")
        *names, repo = places
        files = [Path(name) for name in names]
        task = PushTask(files, repo, source.token, create, private, replace, card, message=message)
        done = publish(task, render.display(quiet or as_json))
        if as_json:
            render.as_json(_as_dict(done))
        elif not quiet:
            render.lines(_summary(done, repo))

    guarded(work, as_json)


def _as_dict(done: "Uploaded") -> dict[str, Any]:
    return {"commit": done.url, "sent": list(done.sent), "there": list(done.there)}


def _summary(done: "Uploaded", repo: str) -> Iterator[tuple[str, str]]:
    for place in done.sent:
        yield "sent", place
    for place in done.there:
        yield "there", place
    yield "done", done.url or f"everything was in {repo} already"
