"""What a run leaves beside its outputs when asked: their hashes, a provenance record, a model card."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ggufsmith.pipeline.outputs import OutputFile

Hashes = Annotated[bool, typer.Option("--sha256", help="The SHA-256 of every file; with --json of every tensor too.")]
Provenance = Annotated[
    bool, typer.Option("--provenance", help="Write FILE.provenance.json: what each output was made from, with hashes.")
]
Card = Annotated[bool, typer.Option("--card", help="Write the model card of the outputs, README.md, beside them.")]
StrictName = Annotated[
    bool, typer.Option("--strict-name", help="Name outputs by the letter of the convention: with a size and a version.")
]
# Files beside the weights that a conversion reads.
SMALL = (".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class Wishes:
    """What a run is asked to leave beside its outputs. machine: its report goes to a machine, hashes included."""

    hashes: bool = False
    provenance: bool = False
    card: bool = False
    overwrite: bool = True
    machine: bool = False
    quiet: bool = False

    @property
    def silent(self) -> bool:
        return self.quiet or self.machine

    def check(self, outputs: Sequence["OutputFile"]) -> None:
        """OutputConflict, before the work, for what could not be written after it."""
        from ggufsmith.container.errors import OutputConflict
        from ggufsmith.container.provenance import record_path
        from ggufsmith.naming.filecard import check_card

        paths = [record_path(output.path) for output in outputs] if self.provenance else []
        if self.card:
            paths.append(_card_path(outputs))
            check_card(paths[-1], fix="Write the outputs elsewhere with --outdir, or drop --card.")
        for path in paths:
            if not self.overwrite and path.exists():
                raise OutputConflict("is there already", where=path, fix="Allow overwriting, or write elsewhere.")


def publish(
    wishes: Wishes, outputs: Sequence["OutputFile"], inputs: Sequence[Path], entries: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Write what is wished; lines for a summary. entries: of the report, one per output; hashes are added to them."""
    from ggufsmith.container.writer import noting_complete

    if not (wishes.hashes or wishes.provenance or wishes.card or wishes.machine):
        return
    with noting_complete([path for output in outputs for path in output.paths]):
        yield from _published(wishes, outputs, inputs, entries)


def _published(
    wishes: Wishes, outputs: Sequence["OutputFile"], inputs: Sequence[Path], entries: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    from ggufsmith.cli import render

    with render.progress("hashing", sum(output.size for output in outputs), wishes.silent, rate=_bytes) as advance:
        for output, entry in zip(outputs, entries, strict=True):
            entry["files"], tensors = _hashed(output, wishes.machine, advance)
            if wishes.machine:
                entry["tensor_sha256"] = tensors
    if wishes.hashes:
        yield from (("sha256", f"{file['sha256']}  {file['name']}") for entry in entries for file in entry["files"])
    if wishes.provenance:
        yield from (("record", str(path)) for path in _records(outputs, inputs, entries, wishes.silent))
    if wishes.card:
        yield "card", str(_card(outputs, entries))


def _bytes(rate: float) -> str:
    from ggufsmith.cli import render

    return f"{render.size(rate)}/s"


def _hashed(output: "OutputFile", tensors: bool, advance: Any) -> tuple[list[dict[str, Any]], dict[str, str]]:
    from ggufsmith.container.shards import open_gguf_set
    from ggufsmith.pipeline.parallel import available_cores
    from ggufsmith.quantize.verify import digests

    with open_gguf_set(output.paths[0]) as model:
        files, found = digests(model, tensors=tensors, threads=available_cores(), advance=advance)
        return [
            {"name": file.path.name, "bytes": file.size, "sha256": digest}
            for file, digest in zip(model.files, files, strict=True)
        ], found


def _records(
    outputs: Sequence["OutputFile"], inputs: Sequence[Path], entries: Sequence[Mapping[str, Any]], silent: bool
) -> Iterator[Path]:
    from importlib.metadata import version

    from ggufsmith.cli import render
    from ggufsmith.container.provenance import described, record, record_path, write_record

    there = [path for path in inputs if path.is_file()]  # what was streamed from a hub is not
    size = sum(path.stat().st_size for path in there)
    with render.progress("hashing inputs", size, silent, rate=_bytes) as advance:
        sources = [described(path, advance) for path in there]
    for output, entry in zip(outputs, entries, strict=True):
        types = {tensor.name: tensor.format.name for tensor in output.shards.whole.tensors}
        recipe = {"recipe": entry.get("recipe"), "types": types}
        path = record_path(output.path)
        write_record(path, record(entry["files"], sources, recipe=recipe, version=version("ggufsmith")))
        yield path


def _card(outputs: Sequence["OutputFile"], entries: Sequence[Mapping[str, Any]]) -> Path:
    from ggufsmith.cli.card import write_card
    from ggufsmith.naming.filecard import card_of
    from ggufsmith.naming.modelcard import Publisher

    digests = {file["name"]: file["sha256"] for entry in entries for file in entry["files"]}
    path = _card_path(outputs)
    text = card_of(
        [output.paths[0] for output in outputs],
        Publisher(None, None, None),
        digest=lambda file: digests[file.name],
    )
    write_card(path, text)
    return path


def _card_path(outputs: Sequence["OutputFile"]) -> Path:
    return outputs[0].paths[0].parent / "README.md"


def small_files(folder: Path) -> list[Path]:
    """The files beside the weights that a conversion may have read, for its record."""
    found = (path for path in sorted(folder.iterdir()) if path.suffix in SMALL and path.is_file())
    return [path for path in found if not path.name.endswith(".provenance.json")]
