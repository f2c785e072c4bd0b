"""What a run leaves beside its outputs when asked: their hashes, a provenance record, a model card."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.pipeline.outputs import OutputFile
    from ggufsmith.pipeline.passes import Pass
    from ggufsmith.pipeline.publish import PublishOptions
    from ggufsmith.report import FileReport, OutputReport


NO_CARD = "Choose another folder with --outdir, or leave out --card."


@dataclass(frozen=True)
class Beside:
    """Leaves what `PublishOptions` asks for beside the outputs.

    hashes: the report has those of all files and tensors.
    """

    options: "PublishOptions"
    overwrite: bool
    hashes: bool
    display: Display

    def records(self, outputs: Sequence["OutputFile"]) -> list[Path]:
        """Where the provenance records will be."""
        if not self.options.provenance:
            return []
        from ggufsmith.container.provenance import record_path

        return [record_path(output.path) for output in outputs]

    def paths(self, outputs: Sequence["OutputFile"]) -> list[Path]:
        """Where all will be that is written beside the outputs."""
        found = self.records(outputs)
        if self.options.modelfile:
            from ggufsmith.modelfile import modelfile_path

            found += [modelfile_path(output.path) for output in _with_projector(outputs)[0]]
        return [*found, *([_card_path(outputs)] if self.options.card else [])]

    def check(self, outputs: Sequence["OutputFile"]) -> None:
        """OutputConflict, before the work, for what could not be written after it."""
        from ggufsmith.container.errors import OutputConflict, Usage

        if self.options.card_template is not None and not self.options.card:
            raise Usage("--card-template is about the model card, but --card was not given", fix="Add --card.")
        paths = self.records(outputs)
        if self.options.modelfile:
            _check_modelfiles(outputs, self.overwrite)
        if self.options.card:
            from ggufsmith.naming.filecard import check_card

            paths.append(_card_path(outputs))
            if self.options.card_template is not None:
                from ggufsmith.naming.cardtemplate import check_template

                check_template(self.options.card_template)
            check_card(paths[-1], fix=NO_CARD)
        for path in paths:
            if not self.overwrite and path.exists():
                raise OutputConflict(
                    "already exists",
                    where=path,
                    fix="Leave out --no-overwrite, or choose another folder with --outdir.",
                )

    def publish(
        self, planned: "Pass", entries: Sequence["OutputReport"]
    ) -> tuple[list["OutputReport"], list[tuple[str, str]]]:
        """Write what is wished. The entries with hashes, and lines for a summary. entries: of the outputs."""
        from ggufsmith.container.writer import noting_complete

        options = self.options
        if not (options.sha256 or options.provenance or options.card or options.modelfile or self.hashes):
            return list(entries), []
        with noting_complete([path for output in planned.outputs for path in output.paths]):
            made = list(_modelfiles(planned.outputs)) if options.modelfile else []
            if not (options.sha256 or options.provenance or options.card or self.hashes):
                return list(entries), made
            hashed, lines = self._publish(planned, entries)
            return hashed, [*lines, *made]

    def _publish(
        self, planned: "Pass", entries: Sequence["OutputReport"]
    ) -> tuple[list["OutputReport"], list[tuple[str, str]]]:
        options, outputs = self.options, planned.outputs
        hashed = []
        with self.display.progress("hashing", planned.size, "bytes") as advance:
            for output, entry in zip(outputs, entries, strict=True):
                files, tensors = _hashed(output, self.hashes, advance)
                hashed.append(replace(entry, files=files, tensor_sha256=tensors if self.hashes else None))
        digests = {file.name: file.sha256 for entry in hashed for file in entry.files or ()}
        lines = [("sha256", f"{digest}  {name}") for name, digest in digests.items() if options.sha256]
        if options.provenance:
            lines += [("record", str(path)) for path in _records(planned, hashed, self.display)]
        if options.card:
            lines.append(("card", str(_card(outputs, digests, options.card_template, options.push))))
        return hashed, lines


def _check_modelfiles(outputs: Sequence["OutputFile"], overwrite: bool) -> None:
    """Unsupported for outputs in several files, and for drafts, which Ollama does not take; OutputConflict (see
    `write_modelfile`).
    """
    from ggufsmith.container.drafts import is_draft
    from ggufsmith.container.errors import Unsupported
    from ggufsmith.modelfile import check_modelfile, modelfile_path

    models, _ = _with_projector(outputs)
    if not models:
        raise Unsupported(
            "a Modelfile is about a model, and only a projector is written",
            where=outputs[0].path,
            fix="Leave out --modelfile, or pass the projector with `ggufsmith modelfile MODEL.gguf --mmproj FILE`.",
        )
    for output in models:
        if len(output.paths) > 1:
            fix = "Leave out --modelfile, or do not split the output."
            raise Unsupported("Ollama takes no model in several files", where=output.path, fix=fix)
        whole = output.shards.whole
        if is_draft(whole.metadata, {spec.name for spec in whole.tensors}):
            what = "this model guesses tokens for a larger one, beside which Ollama does not run it"
            raise Unsupported(what, where=output.path, fix="Leave out --modelfile.")
        check_modelfile(modelfile_path(output.path), overwrite=overwrite)


def _modelfiles(outputs: Sequence["OutputFile"]) -> Iterator[tuple[str, str]]:
    """Write the Modelfile of every model, with the projector if there is one; lines for a summary."""
    from ggufsmith.modelfile import modelfile_of, modelfile_path, summary_of, write_modelfile

    models, projector = _with_projector(outputs)
    for output in models:
        found, path = modelfile_of(output.path, projector=projector), modelfile_path(output.path)
        write_modelfile(path, found)
        yield "Modelfile", str(path)
        yield from summary_of(found)


def _with_projector(outputs: Sequence["OutputFile"]) -> tuple[list["OutputFile"], Path | None]:
    """The models among the outputs, and where the projector is."""
    from ggufsmith.modelfile import is_projector

    sorted_out: dict[bool, list[OutputFile]] = {False: [], True: []}
    for output in outputs:
        sorted_out[is_projector(output.shards.whole.metadata)].append(output)
    return sorted_out[False], next((output.path for output in sorted_out[True]), None)


def _hashed(output: "OutputFile", tensors: bool, advance: Any) -> tuple[list["FileReport"], dict[str, str]]:
    from ggufsmith.container.shards import open_gguf_set
    from ggufsmith.pipeline.parallel import available_cores
    from ggufsmith.quantize.verify import digests
    from ggufsmith.report import FileReport

    with open_gguf_set(output.paths[0]) as model:
        files, found = digests(model, tensors=tensors, threads=available_cores(), advance=advance)
        return [
            FileReport(file.path.name, file.size, digest) for file, digest in zip(model.files, files, strict=True)
        ], found


def _records(planned: "Pass", entries: Sequence["OutputReport"], display: Display) -> Iterator[Path]:
    """Write the provenance record of every output."""
    from ggufsmith.container.provenance import described, record, record_path, write_record
    from ggufsmith.container.release import own_version

    there = {name: path for name, path in planned.inputs.items() if path.is_file()}  # what is streamed is not
    size = sum(path.stat().st_size for path in there.values())
    with display.progress("hashing inputs", size, "bytes") as advance:
        sources = [described(path, advance, name=name) for name, path in there.items()]
    for output, entry in zip(planned.outputs, entries, strict=True):
        types = {tensor.name: tensor.format.name for tensor in output.shards.whole.tensors}
        path = record_path(output.path)
        files = [asdict(file) for file in entry.files or ()]
        adapters = {"adapters": dict(planned.info.adapters)} if planned.info.adapters else {}
        recipe = {"recipe": entry.recipe, **adapters, "types": types}
        write_record(path, record(files, sources, recipe=recipe, version=own_version()))
        yield path


def _card(outputs: Sequence["OutputFile"], digests: Mapping[str, str], template: Path | None, repo: str | None) -> Path:
    from ggufsmith.naming.cardfacts import Publisher
    from ggufsmith.naming.filecard import card_of, write_card

    path = _card_path(outputs)
    text = card_of(
        [output.paths[0] for output in outputs],
        Publisher(repo),
        digest=lambda file: digests[file.name],
        template=template,
    )
    write_card(path, text, fix=NO_CARD)
    return path


def _card_path(outputs: Sequence["OutputFile"]) -> Path:
    return outputs[0].paths[0].parent / "README.md"
