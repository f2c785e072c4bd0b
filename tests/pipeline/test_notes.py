"""What a run says of weights without usable importance: a line for each tensor, or one line for many."""

from ggufsmith.pipeline.findings import Finding
from ggufsmith.pipeline.outputs import MAX_NOTED, unweighted_notes


def test_few_have_a_line_each() -> None:
    notes = unweighted_notes([{"a": Finding(3, (0, 0))}, {"b": Finding(4, (1, 0))}])
    assert [note.split(" had ")[0] for note in notes] == ["a: 3 weights", "b: 4 weights"]


def test_many_have_one_line() -> None:
    (note,) = unweighted_notes([{f"t{k}": Finding(2, (0, 0)) for k in range(MAX_NOTED + 1)}])
    assert note.startswith("18 weights of 9 tensors had no usable importance") and note.endswith("t4 and 4 more")
