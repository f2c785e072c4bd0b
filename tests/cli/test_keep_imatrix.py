"""Where --keep-imatrix puts the file. The model is not run here: a stand-in gives known importance."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run

import checkpoints
from ggufsmith.calibrate import make
from ggufsmith.calibrate.auto import is_weighted
from ggufsmith.cli.convert import convert
from ggufsmith.quantize.imatrix.read import open_imatrix
from ggufsmith.quantize.imatrix.record import Entry, Imatrix


def importance(plain: Any, opener: Any, progress: Any, chunks: int | None, **options: Any) -> Imatrix:
    with opener(plain) as planned:
        specs = [each for each in planned.outputs[0].shards.whole.tensors if is_weighted(each, "llama")]
    sums = {each.name: np.ones((1, each.shape[-1]), np.float32) for each in specs}
    return Imatrix({name: Entry(each, np.array([2])) for name, each in sums.items()}, ("a text",), chunks or 1, 512)


@pytest.mark.parametrize("named", [False, True])
def test_it_is_said_where_it_is(named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "shipped_imatrix", importance)
    model = checkpoints.write("llama", tmp_path / "Tiny", num_hidden_layers=1)
    place = ("-o", tmp_path / "x.gguf") if named else ("--outdir", tmp_path / "out")
    words = (model, "-r", "q4_0", "--imatrix", "auto", "--keep-imatrix", *place, "--no-sync")
    done = run(convert, *words)
    assert done.exit_code == 0, done.output
    assert run(convert, *words, "--imatrix-chunks", 7).exit_code == 0
    (kept,) = tmp_path.rglob("*-imatrix.gguf")
    assert open_imatrix(kept).chunks == 7
    assert f"imatrix {kept}".replace(" ", "") in "".join(done.output.split())
    assert json.loads(run(convert, *words, "--json").stdout)["kept_imatrix"] == str(kept)
    plain = json.loads(run(convert, model, "-r", "q4_0", *place, "--no-sync", "--json").stdout)
    assert plain.get("kept_imatrix") is None
