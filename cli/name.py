"""`ggufsmith name`: what a GGUF file name says, whether it keeps the convention, and a better one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufsmith.cli.options import AsJson

if TYPE_CHECKING:
    from ggufsmith.container.reader import Gguf
    from ggufsmith.container.shards import GgufSet


def name(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="File names. If a file exists, its header is compared with its name."),
    ],
    strict: Annotated[
        bool,
        typer.Option(
            "--strict-name", help="Require a size label and a version in every name, as the naming convention does."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Explain, check and suggest GGUF file names: BaseName-SizeLabel-FineTune-Version-Encoding-Type-Shard.gguf.

    With --strict-name the exit code is 2 if a name does not conform.
    """
    from ggufsmith.cli.guard import guarded

    def work() -> None:
        from ggufsmith.cli import render

        reports = [_report(file, strict) for file in files]
        if as_json:
            render.as_json({"names": reports})
        else:
            for report in reports:
                render.lines(_shown(report))
        failed.extend(report["name"] for report in reports if strict and report["problems"])

    failed: list[str] = []
    guarded(work, as_json)
    if failed:
        raise typer.Exit(2)


def _report(file: Path, strict: bool) -> dict[str, Any]:
    from dataclasses import asdict, replace

    from ggufsmith.naming.filename import parse
    from ggufsmith.naming.suggest import FIRST_VERSION, disagreements, name_of

    said = parse(file.name)
    problems = [text for text in said.problems() if strict or said.version or not text.startswith("no version")]
    suggested = replace(said, version=said.version or (FIRST_VERSION if strict else None))
    if file.is_file():
        with _opened(file) as opened:
            tensors = {tensor.name: tensor.shape for tensor in opened.tensors.values()}
            suggested = name_of(opened.metadata, tensors, shard=said.shard, strict=strict)
        problems += disagreements(said, suggested)
    return {
        "name": file.name,
        "components": {key: value for key, value in asdict(said).items() if value is not None},
        "problems": problems,
        "suggested": suggested.format(),
    }


def _opened(file: Path) -> "Gguf | GgufSet":
    """The whole model; the shard alone if the others are not there."""
    from ggufsmith.container.errors import Malformed
    from ggufsmith.container.reader import open_gguf
    from ggufsmith.container.shards import open_gguf_set

    try:
        return open_gguf_set(file)
    except Malformed:
        return open_gguf(file)


def _shown(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from ggufsmith.container.summary import shown

    yield "name", shown(report["name"])
    for key, value in report["components"].items():
        text = f"{value[0]} of {value[1]}" if key == "shard" else value
        yield f"  {key.replace('_', ' ')}", shown(text)
    for problem in report["problems"]:
        yield "  problem", shown(problem)
    if report["suggested"] != report["name"]:
        yield "  suggested", shown(report["suggested"])
    elif not report["problems"]:
        yield "  conforms", "yes"
