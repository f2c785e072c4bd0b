"""`--imatrix auto`: what is planned is what is made, once, and the same again. The model is not run here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import small_models as models

from ggufsmith.calibrate.auto import AutoImatrix, imatrix_path, unquantized
from ggufsmith.container.errors import OutputConflict, Usage
from ggufsmith.container.fingerprint import file_mark
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import AUTO, Request
from ggufsmith.quantize.file_pass import open_file_pass
from ggufsmith.quantize.imatrix.read import open_imatrix
from ggufsmith.quantize.imatrix.record import CHUNK, Imatrix
from ggufsmith.quantize.measured import Progress
from ggufsmith.quantize.resolve import making_of
from requesting import request

RECIPES = ("iq2_xs", "q4_K_M")


class Making:
    """Stands for the run of a model: an importance matrix of known content, and how often it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked = 0
        self.source = models.write_imatrix(folder / "known", models.importance(models.arrays(width=256)))

    def __call__(
        self, plain: Request, open_pass: Callable[[Request], Pass], progress: Progress, chunks: int | None
    ) -> Imatrix:
        self.asked += 1
        self.chunks = chunks
        assert plain == unquantized(plain)
        with progress(1) as advance:
            advance(1)
        known = open_imatrix(self.source)
        return Imatrix(known.entries, ("a text",), 9, CHUNK)


@pytest.fixture
def making(tmp_path: Path) -> Making:
    return Making(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.write_model(tmp_path / "Tiny-F16.gguf", width=256)


def test_what_is_promised_has_the_types_and_the_size_of_what_is_made(model: Path, making: Making) -> None:
    wanted = request(model, *RECIPES, imatrix=AUTO)
    with AutoImatrix(making, ("a text",)) as auto:
        with open_file_pass(auto.promised(wanted, open_file_pass)) as promised:
            plans = [(output.shards.whole.tensors, output.size) for output in promised.outputs]
        assert making.asked == 0
        with open_file_pass(auto.made(wanted, open_file_pass)) as made:
            assert [(output.shards.whole.tensors, output.size) for output in made.outputs] == plans
        with open_file_pass(auto.made(wanted, open_file_pass)):
            assert making.asked == 1 and making.chunks is None
        fewer = request(model, *RECIPES, imatrix=AUTO, imatrix_chunks=3)
        with open_file_pass(auto.made(fewer, open_file_pass)):
            assert making.asked == 2 and making.chunks == 3, "another one"
        made_paths = list(auto._folder.rglob("*.gguf"))
    assert made_paths and not any(path.exists() for path in made_paths)


def test_it_is_kept_beside_the_outputs_if_wanted(model: Path, making: Making, tmp_path: Path) -> None:
    for outdir, kept in (
        (None, tmp_path / "Tiny-imatrix.gguf"),
        (tmp_path / "out", tmp_path / "out/Tiny-imatrix.gguf"),
    ):
        wanted = request(model, "q4_0", imatrix=AUTO, keep_imatrix=True, outdir=outdir)
        with AutoImatrix(making, ("a text",)) as auto:
            auto.made(wanted, open_file_pass)
        found = open_imatrix(kept)
        assert (found.datasets, found.chunks) == (("a text",), 9)
    refused = replace(wanted, write=replace(wanted.write, overwrite=False))
    with AutoImatrix(making, ("a text",)) as auto, pytest.raises(OutputConflict):
        auto.made(refused, open_file_pass)


def test_made_again_it_is_the_same_input_for_a_run_that_resumes(model: Path, making: Making) -> None:
    """Large inputs are known by the last two parts of their path, size and time."""
    marks = []
    for _ in range(2):
        with AutoImatrix(making, ("a text",)) as auto:
            path = auto.made(request(model, "q4_0", imatrix=AUTO), open_file_pass).make.imatrix
            assert path is not None
            marks.append((path.parts[-2:], file_mark(path), path.stat().st_mtime_ns))
    assert marks[0] == marks[1]


def test_names(model: Path, tmp_path: Path) -> None:
    with open_file_pass(unquantized(request(model, "q4_0"))) as planned:
        wanted = request(model, "q4_0", outfile=tmp_path / "x" / "odd.gguf").write
        assert imatrix_path(planned, wanted) == tmp_path / "x" / "Tiny-imatrix.gguf"
        assert imatrix_path(planned, request(model).write, "dat") == tmp_path / "Tiny-imatrix.dat"


def test_keeping_what_is_not_made() -> None:
    with pytest.raises(Usage, match="--imatrix auto"):
        making_of(request(Path("x"), "q4_0", keep_imatrix=True).make)


def test_a_layer_that_is_pruned_is_still_run(model: Path, making: Making) -> None:
    """The names of an importance matrix are those of the source."""
    wanted = request(model, "q4_0", imatrix=AUTO, prune_layers=("0",))
    with AutoImatrix(making, ("a text",)) as auto, open_file_pass(auto.made(wanted, open_file_pass)) as made:
        assert made.importance is not None and any(name.startswith("blk.1.") for name in made.importance["covered"])
