"""The texts of command-line options that choose types, as llama-quantize writes them."""

import re
from pathlib import Path

from ggufsmith.container.errors import Failure, Usage
from ggufsmith.container.formats import format_of
from ggufsmith.container.untrusted import read_text
from ggufsmith.quantize.recipes.assign import Override, Recipe, TypeOptions

MAX_SIZE = 4 << 20  # bytes of a file of types


def override_of(text: str, origin: str | None = None) -> Override:
    """REGEX=TYPE; the expression is searched anywhere in a tensor's name, in any case. Usage if it is not that."""
    pattern, separator, name = text.rpartition("=")
    if not separator or not pattern:
        what = f"{text!r} does not have the form REGEX=TYPE"
        raise Usage(what, where=origin, fix="Write REGEX=TYPE, for example ffn_down=q6_K.")
    try:
        return Override(format_of(name), re.compile(pattern, re.IGNORECASE), origin=origin or f"--tensor-type {text}")
    except re.error as error:
        raise Usage(f"{pattern!r} is not a valid regular expression: {error}", where=origin) from None
    except Failure as error:
        raise Usage(error.what, where=origin, fix=error.fix) from None


def overrides_of_file(path: Path) -> list[Override]:
    """As many REGEX=TYPE as the file holds, separated by spaces or lines."""
    lines = read_text(path, limit=MAX_SIZE).splitlines()
    found = [
        override_of(text, f"{path}:{number}: {text}") for number, line in enumerate(lines, 1) for text in line.split()
    ]
    if not found:
        raise Usage("this file of tensor types is empty", where=path, fix="Write one REGEX=TYPE on each line.")
    return found


def layers_of(text: str) -> tuple[int, ...]:
    """Layer numbers from `0,1,30`. Usage for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise Usage(f"{text!r} is not a list of layer numbers", fix="Separate the numbers with commas: 0,1,30.")
    return tuple(sorted({int(part) for part in parts}))


def check_options(options: TypeOptions, recipes: list[Recipe]) -> None:
    """Usage for options that contradict each other."""
    chosen = {
        "--pure": options.pure,
        "--output-tensor-type": options.output_type is not None,
        "--token-embedding-type": options.token_embedding_type is not None,
        "--tensor-type": bool(options.overrides),
    }
    if options.leave_output and options.output_type is not None:
        raise Usage(
            "--leave-output-tensor and --output-tensor-type contradict each other", fix="Leave out one of the two."
        )
    if any(recipe.file_type.base is None for recipe in recipes):
        named = [option for option, given in chosen.items() if given]
        if named:
            raise Usage(
                f"copy does not change types, so {named[0]} cannot be used with it", fix="Choose another recipe."
            )
    if options.pure and any(recipe.overrides for recipe in recipes):
        raise Usage("--pure gives all tensors one type, but the recipe has rules", fix="Use its base recipe instead.")
