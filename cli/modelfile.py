"""`ggufsmith modelfile`: a Modelfile, with which Ollama runs a GGUF file."""

from pathlib import Path
from typing import Annotated

import typer


def modelfile(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A model, or a LoRA adapter, as GGUF.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write; FILE.Modelfile beside FILE by default. '-' prints it instead."
        ),
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", metavar="BASE.gguf", help="For an adapter: the base model, as GGUF.")
    ] = None,
    projector: Annotated[
        Path | None,
        typer.Option("--mmproj", metavar="FILE.gguf", help="For a model that sees or hears: its projector."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", metavar="NUMBER", min=1, help="How many tokens of context Ollama shall use (num_ctx)."
        ),
    ] = None,
) -> None:
    """Write the Modelfile of a GGUF file for Ollama: template, stop words, and parameters of its generation config.

    The chat template is translated into Ollama's own language if its format is known; otherwise a note says so. A
    Modelfile that this command did not write is never replaced.
    """
    from ggufsmith.cli.guard import guarded

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.container.apart import check_apart
        from ggufsmith.container.replace import check_place
        from ggufsmith.container.text import shell_command
        from ggufsmith.modelfile import check_modelfile, modelfile_of, modelfile_path, summary_of, write_modelfile

        path = output or modelfile_path(file)
        place = file if str(output) == "-" else path
        if place is path:
            check_place(path)
            check_apart(path, [each for each in (file, base, projector) if each])
            check_modelfile(path)
        found = modelfile_of(file, base=base, context=context, beside=place, projector=projector)
        if str(output) == "-":
            render.document(found.text)
            for note in found.notes:
                render.paragraph(f"note: {note}", render.err, indent=6)
            return
        write_modelfile(path, found)
        run = shell_command("ollama", "create", "my-model", "-f", path)
        render.lines([("Modelfile", str(path)), *summary_of(found), ("next", run)])

    guarded(work, False)
