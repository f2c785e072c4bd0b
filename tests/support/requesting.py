"""Requests as tests write them: options by name, whichever record they stand in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ggufsmith.container.layout import Layout
from ggufsmith.convert.open import open_pass
from ggufsmith.convert.stored import LocalFiles, Opener
from ggufsmith.pipeline.outputs import OutputFile, Written
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import MakeOptions, Request, SourceOptions, WriteOptions
from ggufsmith.quantize.recipes.assign import Recipe

RECORDS = {"source": SourceOptions, "make": MakeOptions, "write": WriteOptions}


def request(path: Path, *recipes: str | Recipe, **options: Any) -> Request:
    """A request that does not flush, as nothing here has to survive a power cut. outtype: one of `outtypes`."""
    given = {"sync": False, **options}
    if "outtype" in given:
        given["outtypes"] = (given.pop("outtype"),)
    records = {
        name: record(**{each.name: given.pop(each.name) for each in fields(record) if each.name in given})
        for name, record in RECORDS.items()
    }
    assert not given, f"no option is called {', '.join(given)}"
    asked = Request(path, **records)
    return replace(asked, make=replace(asked.make, recipes=recipes)) if recipes else asked


@dataclass(frozen=True)
class Planned:
    """A planned request, open inside `opened`."""

    request: Request
    made: Pass

    @property
    def output(self) -> OutputFile:
        return self.made.outputs[0]

    @property
    def layout(self) -> Layout:
        return self.output.shards.whole

    @property
    def notes(self) -> tuple[str, ...]:
        return self.made.notes


def plan(asked: Request, open_files: Opener = LocalFiles) -> Planned:
    """Plan a request; whoever reads weights opens it."""
    return Planned(asked, open_pass(asked, open_files))


@contextmanager
def opened(asked: Request, open_files: Opener = LocalFiles) -> Iterator[Pass]:
    """The pass of a request, open."""
    with open_pass(asked, open_files) as made:
        yield made


def run(
    asked: Request | Planned,
    advance: Callable[[int], None] = lambda weights: None,
    open_files: Opener = LocalFiles,
) -> Written:
    """Do what a request asks for."""
    planned = asked if isinstance(asked, Planned) else plan(asked, open_files)
    with planned.made as made:
        return made.run(planned.request.write, advance=advance)
