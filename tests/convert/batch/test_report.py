"""Reports for machines: nothing that a model or a file system says breaks their formats."""

from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from ggufsmith.container.errors import Failure, Malformed
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.report import Outcome, Status, annotations, as_junit, exit_code, verdict
from ggufsmith.convert.batch.state import FinishedFile, FinishedOutput
from ggufsmith.pipeline.request import Request

FOLDER = Path.cwd()
MADE = FinishedOutput(
    "q8_0", "plan", (FinishedFile("a.gguf", 7, "ab"),), 8.5, {"Q8_0": 1}, ("blk.0.x",), notes=("one falls back",)
)


def outcome(name: str, status: Status, error: Failure | None = None) -> Outcome:
    model = JobModel(name, f"{FOLDER / 'sub' / 'jobs.toml'}:7", Path("out"), (), {}, Request(Path("source")))
    if status == "done":
        return Outcome(model, status, (MADE,), frozenset({"q8_0"}), ("a note",), 2.0, 100)
    return Outcome(model, status, error=error)


def test_exit_code_and_last_line() -> None:
    bad = Malformed("is damaged", where="x")
    some = [outcome("a", "done"), outcome("b", "failed", bad), outcome("c", "finished"), outcome("d", "not begun")]
    assert exit_code(some) == 102
    assert verdict(some) == "4 models: 1 file made, 0 already existed, 1 model not done, 1 failed (b: is damaged)"
    assert exit_code(some[:1]) == 0
    assert exit_code([outcome("b", "failed", bad)] * 400) == 125, "126 and more mean something else to a shell"


def test_annotations() -> None:
    error = Malformed("50% is damaged", where="x", also=["this, too"])
    found = list(annotations([outcome("a,b:c", "failed", error), outcome("d", "done")], FOLDER))
    assert found == [
        "::error file=sub/jobs.toml,line=7,title=a%2Cb%3Ac::x: 50%25 is damaged%0A  - this, too",
        "::warning file=sub/jobs.toml,line=7,title=d::a note",
        "::warning file=sub/jobs.toml,line=7,title=d::q8_0: one falls back",
    ]


@given(st.text(), st.text())
def test_junit_holds_any_text(name: str, what: str) -> None:
    content = as_junit(
        [outcome(name, "failed", Failure(what)), outcome("b", "done"), outcome("c", "finished")], name, 1.0
    )
    root = ElementTree.fromstring(content)
    assert root.get("failures") == "1" and root.get("skipped") == "1"
    cases = root.findall("testsuite/testcase")
    assert [len(case.findall("failure")) for case in cases] == [1, 0, 0]
    if name.isprintable() and name.isascii():
        assert cases[0].get("name") == name


@given(st.text())
def test_annotations_stay_on_one_line(what: str) -> None:
    (line,) = annotations([outcome("a", "failed", Failure(what))], FOLDER)
    assert "\n" not in line and "\r" not in line
