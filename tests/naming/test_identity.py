"""What model ids say, on published names.

names.csv: ids and parameter counts of published models; the other columns are what gguf-py 0.19 (gguf/metadata.py)
makes of them, which the conformance test recomputes.
"""

import csv
from pathlib import Path

import pytest

from ggufsmith.naming.identity import Identity, Parameters, identify, rounded, title

with (Path(__file__).parent / "names.csv").open(encoding="utf-8", newline="") as file:
    NAMES = list(csv.DictReader(file))


@pytest.mark.parametrize("row", NAMES, ids=lambda row: row["model_id"])
def test_published_names(row: dict[str, str]) -> None:
    model_id = row["model_id"]
    said = identify(model_id, int(row["parameters"]))
    assert said == Identity(
        name=model_id.rpartition("/")[2],
        **{field: row[field] or None for field in ("organization", "basename", "finetune", "version", "size_label")},
    )
    assert title(said.name or "") == row["title"]


def test_a_size_far_from_the_count_is_a_context_length() -> None:
    assert identify("Phi-3-mini-4k-instruct", 3_821_079_552).finetune == "4k-instruct"
    assert identify("Phi-3-mini-4k-instruct", 4_000).size_label == "4K"
    assert identify("X-7B", 7_000_000_000 * 8).size_label == "7B"
    assert identify("X-7B", 7_000_000_000 * 8 + 8).finetune == "7b"


@pytest.mark.parametrize("model_id", ["", "-", "--", "/", "a/", ".", "7B", "v1", "-7B", "é", "1-2-3", "x" * 1000])
def test_odd_ids(model_id: str) -> None:
    identify(model_id, 7)
    title(model_id)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.00K"),
        (999, "1.0K"),
        (13_300, "13K"),
        (134_515_008, "135M"),
        (494_032_768, "494M"),
        (1_000_000_000, "1000M"),
        (1_100_048_384, "1.1B"),
        (9_960_000_000, "10B"),
        (671_026_419_200, "671B"),
        (1_026_470_731_056, "1.0T"),
    ],
)
def test_rounded(count: int, text: str) -> None:
    assert rounded(count) == text


def test_parameters_of_experts() -> None:
    counted = Parameters.of(
        [
            ("token_embd.weight", (100, 8)),
            ("blk.0.ffn_up_exps.weight", (4, 16, 8)),
            ("blk.0.ffn_up_exps.bias", (4, 16)),
            ("blk.1.ffn_up_exps.weight", (4, 16, 8)),
            ("blk.1.ffn_gate_inp.weight", (4, 8)),
        ]
    )
    assert counted == Parameters(total=800 + 512 + 64 + 512 + 32, shared=800 + 64 + 32, expert=256, expert_count=4)
    assert counted.size_label == "4x1.2K"
    assert Parameters.of([("a", (30, 50))]).size_label == "1.5K"
