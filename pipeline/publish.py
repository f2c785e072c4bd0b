"""What is left beside the outputs of a request, and what is published: a record of options, as those of `request`."""

from __future__ import annotations  # so that fields keep their types as they are written here

from dataclasses import dataclass
from pathlib import Path

from ggufsmith.pipeline.option import WEIGHTS, option


@dataclass(frozen=True)
class PublishOptions:
    """What is left beside the outputs."""

    sha256: bool = option(
        False,
        "Report the SHA-256 of every file; with --json, of every tensor too.",
        "Output",
        keyless="`checksums` writes the sums, and reports have them",
    )
    provenance: bool = option(
        False,
        "Write FILE.provenance.json, which says with hashes what each output was made from.",
        "Output",
        keyless="the record beside the outputs says what they were made from",
    )
    card: bool = option(
        False,
        "Write a model card, README.md, beside the outputs.",
        "Output",
        keyless="the key `card` names the file",
    )
    push: str | None = option(
        None,
        "Publish the outputs on the Hugging Face hub when they are verified, in one commit, with their card.",
        "Publishing",
        metavar="ORG/NAME",
        keyless="it has a key of its own, `push`",
    )
    create: bool = option(
        False,
        "With --push: make the repository, if it does not exist.",
        "Publishing",
        keyless="it has a key of its own, `create`",
    )
    private: bool = option(
        False,
        "With --push: make it as a private one, if it does not exist.",
        "Publishing",
        keyless="it has a key of its own, `private`",
    )
    replace: bool = option(
        False,
        "With --push: add new versions of files that are there with other content.",
        "Publishing",
        keyless="it has a key of its own, `replace`",
    )
    modelfile: bool = option(
        False,
        "Write FILE.Modelfile beside each output, with which Ollama runs it (see `ggufsmith modelfile`).",
        "Output",
        inputs=WEIGHTS,
        keyless="`ggufsmith modelfile` writes it for any file",
    )
    card_template: Path | None = option(
        None,
        "A Jinja2 template of the model card, instead of the usual card.",
        "Output",
        metavar="FILE",
        keyless="it has a key of its own, `card_template`, relative to the job file",
    )
