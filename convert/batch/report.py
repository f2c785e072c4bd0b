"""What became of a job: the exit code, the last line, and for machines JUnit XML and GitHub's annotations."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from ggufsmith.container.errors import Failure
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.state import FinishedOutput

# done: made now; finished: was there already; interrupted, not begun: the job ended before it.
Status = Literal["done", "finished", "failed", "interrupted", "not begun"]
FAILED, MOST = 100, 25  # exit code of a job with n failed models: FAILED + n, at most FAILED + MOST


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    made:     all outputs that are there now; new: the labels of those made in this run.
    seconds:  wall time; weights: of the model, 0 if nothing was made.
    """

    model: JobModel
    status: Status
    made: tuple[FinishedOutput, ...] = ()
    new: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    weights: int = 0
    error: Failure | None = None

    @property
    def rate(self) -> float:
        """Weights per second."""
        return self.weights / self.seconds if self.seconds else 0.0

    @property
    def warnings(self) -> Iterator[str]:
        """Everything that was noted about the model and its new outputs."""
        yield from self.notes
        for made in self.made:
            if made.label in self.new:
                yield from (f"{made.label}: {note}" for note in made.notes)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0, or FAILED and the number of models that failed or were not done."""
    bad = sum(outcome.status not in ("done", "finished") for outcome in outcomes)
    return FAILED + min(bad, MOST) if bad else 0


def verdict(outcomes: Sequence[Outcome]) -> str:
    """The last line: how many failed and why."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    left = sum(outcome.status in ("interrupted", "not begun") for outcome in outcomes)
    new = sum(len(outcome.new) for outcome in outcomes)
    there = sum(len(outcome.made) for outcome in outcomes) - new
    parts = [f"{_counted(len(outcomes), 'model')}: {_counted(new, 'file')} made, {there} already existed"]
    if left:
        parts.append(f"{_counted(left, 'model')} not done")
    if failed:
        reasons = "; ".join(f"{each.model.name}: {each.error.what if each.error else ''}" for each in failed)
        parts.append(f"{len(failed)} failed ({reasons})")
    return ", ".join(parts)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def as_junit(outcomes: Sequence[Outcome], name: str, seconds: float) -> bytes:
    """JUnit XML: a suite for the job, a case for each model. name: of the suite."""
    counts = {
        "tests": len(outcomes),
        "failures": sum(outcome.status == "failed" for outcome in outcomes),
        "errors": 0,
        "skipped": sum(outcome.status in ("finished", "interrupted", "not begun") for outcome in outcomes),
    }
    attributes = {"name": _xml(name), "time": f"{seconds:.3f}", **{key: str(value) for key, value in counts.items()}}
    root = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    for outcome in outcomes:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {"name": _xml(outcome.model.name), "classname": _xml(name), "time": f"{outcome.seconds:.3f}"},
        )
        if outcome.error:
            attributes = {"message": _xml(outcome.error.what), "type": type(outcome.error).__name__}
            ElementTree.SubElement(case, "failure", attributes).text = _xml(str(outcome.error))
        elif outcome.status != "done":
            ElementTree.SubElement(case, "skipped", {"message": outcome.status})
        lines = [f"{file.sha256}  {file.bytes}  {file.name}" for made in outcome.made for file in made.files]
        ElementTree.SubElement(case, "system-out").text = _xml("\n".join([*lines, *outcome.warnings]))
    ElementTree.indent(root)
    found: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return found + b"\n"


def annotations(outcomes: Sequence[Outcome], folder: Path) -> Iterator[str]:
    """GitHub's workflow commands: an error for each failed model, a warning for what was noted.

    folder: what paths are relative to. Source: GitHub documentation, "Workflow commands for GitHub Actions".
    """
    for outcome in outcomes:
        path, _, line = outcome.model.place.rpartition(":")
        where = f"file={_property(_shown(path, folder))},line={line},title={_property(outcome.model.name)}"
        if outcome.error:
            yield f"::error {where}::{_data(str(outcome.error))}"
        for warning in outcome.warnings:
            yield f"::warning {where}::{_data(warning)}"


def problem_annotations(problems: Sequence[str], folder: Path) -> Iterator[str]:
    """An error for each problem of a job file, FILE:LINE: TEXT. folder: what paths are relative to."""
    for problem in problems:
        if found := re.fullmatch(r"(.+?):(\d+): (.*)", problem, re.DOTALL):
            yield f"::error file={_property(_shown(found[1], folder))},line={found[2]}::{_data(found[3])}"


def _shown(path: str, folder: Path) -> str:
    absolute = Path(path).absolute()
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else path


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold, even escaped."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)


def _data(text: str) -> str:
    text = "".join(each if each.isprintable() or each in "\r\n" else "\N{REPLACEMENT CHARACTER}" for each in text)
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
