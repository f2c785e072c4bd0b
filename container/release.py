"""The version of ggufsmith that runs."""

from functools import cache
from pathlib import Path


@cache
def own_version() -> str:
    """As pyproject.toml has it.

    An installer puts it into the name of a folder beside the package. To ask importlib.metadata takes five times as
    long as to read that: it imports a parser of mails.
    """
    found = [*Path(__file__).parents[2].glob("ggufsmith-*.dist-info")]
    if len(found) == 1:
        return found[0].name.removeprefix("ggufsmith-").removesuffix(".dist-info")
    from importlib.metadata import version

    return version("ggufsmith")
