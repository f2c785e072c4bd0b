"""The table of an evaluation in a model card, with the command that made it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggufsmith.container.text import counted, told_apart
from ggufsmith.evaluate.judged import Evaluation, markdown
from ggufsmith.naming.modelcard import with_measurements
from ggufsmith.naming.quoting import code, file_word, word
from ggufsmith.pipeline.request import TextOptions

if TYPE_CHECKING:
    from ggufsmith.evaluate.evaluation import Engine


def with_table(card: str, found: Evaluation, command: str) -> str:
    """The card with what was found of its files, in the place of what was found before."""
    says = (
        f"Perplexity and Kullback-Leibler divergence from {code(found.source)}, with standard errors, over "
        f"{counted(found.scored_tokens, 'token')} ({', '.join(map(code, found.texts))}); 99.9 %: all but one token in "
        "a thousand diverge less. In bold: no other file is both smaller and closer to the source. Measured with:"
    )
    return with_measurements(card, markdown(found.files), says, command)


def command_of(files: Sequence[str], source: str, reading: TextOptions, engine: "Engine" = "torch") -> str:
    """The command that measures again, without folders of this machine and without secrets.

    files, source: names without folders, or the name of a model on a hub.
    """
    words = ["ggufsmith", "eval", *map(file_word, files), "--against", word(source)]
    words += [each for name in told_apart(reading.text) for each in ("--text", file_word(name))]
    words += ["--context", str(reading.context)] if reading.context != TextOptions().context else []
    words += ["--chunks", str(reading.chunks)] if reading.chunks else []
    words += ["--engine", engine] if engine != "torch" else []
    return " ".join(words)
