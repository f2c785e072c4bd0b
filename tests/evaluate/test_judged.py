"""What is made of qualities: the order, the marks, the CSV, the table, the picture."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from ggufsmith.container.text import told_apart
from ggufsmith.evaluate.judged import Candidate, Judged, TokenSpeed, csv_of, judged, labels_of, markdown
from ggufsmith.evaluate.quality import Quality, qualities
from ggufsmith.evaluate.token_scores import TokenScores


def rows(divergence: float, domains: int = 2) -> list[Quality]:
    shape = (4, 16)
    full = TokenScores(
        np.full(shape, 2.0, np.float32),
        np.full(shape, divergence, np.float32),
        np.ones(shape, bool),
        np.full(shape, np.exp(-2), np.float32),
    )
    return qualities(full, full, [f"d{k % domains}" for k in range(4)])


def files(*given: tuple[str, int, float], speed: TokenSpeed | None = None, group: str = "out") -> list[Judged]:
    candidates = [Candidate(name, group, size, 8.0) for name, size, _ in given]
    return judged(candidates, [rows(loss) for *_, loss in given], [speed] * len(given))


def test_the_smallest_comes_first_and_the_best_are_marked() -> None:
    found = files(("M-Q8_0.gguf", 300, 0.001), ("M-Q4_0.gguf", 120, 0.1), ("M-Q4_K_S.gguf", 110, 0.05))
    assert [(each.label, each.pareto) for each in found] == [("Q4_K_S", True), ("Q4_0", False), ("Q8_0", True)]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["M-7B-Q4_K_M.gguf", "M-7B-Q4_0.gguf"], ["Q4_K_M", "Q4_0"]),
        (["M.Q4_1.gguf", "M.Q4_0.gguf"], ["Q4_1", "Q4_0"]),
        (["M-Q4_0-00001-of-00003.gguf", "M-F16.gguf"], ["Q4_0", "F16"]),
        (["q4_K_M", "q8_0"], ["q4_K_M", "q8_0"]),
        (["M-Q4_0.gguf"], ["M-Q4_0"]),
        (["M-Q4_0.gguf", "M-Q4_0-imatrix.gguf"], ["M-Q4_0", "M-Q4_0-imatrix"]),
        (["a/M-Q4_0.gguf", "b/M-Q4_0.gguf", "M-Q8_0.gguf"], ["a/Q4_0", "b/Q4_0", "Q8_0"]),
        (["a/M-Q4_0.gguf", "b/M-Q4_0.gguf"], ["a/M-Q4_0", "b/M-Q4_0"]),
        (["q4_0.gguf", "q4_0"], ["q4_0.gguf", "q4_0"]),
    ],
)
def test_labels_are_what_distinguishes_the_names(names: list[str], labels: list[str]) -> None:
    assert labels_of(names) == labels


def test_equal_names_have_as_many_folders_as_tell_them_apart() -> None:
    paths = [Path("/x/a/out/M.gguf"), Path("/x/b/out/M.gguf"), Path("/x/b/M.gguf"), Path("/M.gguf"), Path("/x/N.gguf")]
    assert told_apart(paths) == ["a/out/M.gguf", "b/out/M.gguf", "b/M.gguf", "/M.gguf", "N.gguf"]
    assert told_apart([paths[0], paths[0]]) == ["M.gguf", "M.gguf"]


def test_csv_has_a_line_for_every_file_and_domain_in_full() -> None:
    found = files(("a,b.gguf", 10, 0.1), ("c.gguf", 20, 1 / 3), speed=TokenSpeed(100.0, 10.5))
    read = list(csv.DictReader(io.StringIO(csv_of(found))))
    assert [(each["name"], each["domain"]) for each in read] == [
        (name, domain) for name in ("a,b.gguf", "c.gguf") for domain in ("all", "d0", "d1")
    ]
    assert float(read[3]["divergence"]) == found[1].whole.divergence
    assert {each["generation_speed"] for each in read} == {"10.5"}
    assert "prompt_speed" not in csv_of(files(("a.gguf", 10, 0.1))).splitlines()[0]


def test_the_table_of_a_card_cannot_be_ended_by_a_name() -> None:
    lines = markdown(files(("a`|b.gguf", 10, 0.1), ("c.gguf", 20, 0.01))).splitlines()
    assert len(lines) == 4
    assert {line.replace(r"\|", "").count("|") for line in lines} == {lines[0].count("|")}
    assert "Prompt tokens/s" in markdown(files(("a.gguf", 10, 0.1), speed=TokenSpeed(1, 2)))
