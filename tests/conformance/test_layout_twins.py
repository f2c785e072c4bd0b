"""Models whose class transformers does not have: our conversion against that of llama.cpp's converter.

What llama.cpp computes is compared with a class that computes the same.
"""

from pathlib import Path

import numpy as np
import pytest
from llama_models import logits
from test_convert import PRE, ours, tensors

import layout_twins
import reference
from ggufsmith.container.errors import Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.hf.run import ToHfJob, prepare
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.plan import make_plan
from ggufsmith.evaluate.skeleton import build_skeleton
from ggufsmith.evaluate.variants import opened_model
from requesting import request, run
from tiny import write_line

PLAIN = {"published": False, "wide": False, "dtype": "float32", "seed": 0}

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("name", layout_twins.TWINS)
def test_a_line(name: str, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = layout_twins.write(name, folder)
    notes = make_plan(open_config(folder), None).notes
    assert not [note for note in notes if note.startswith("these keys of config.json")]
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    ids = np.random.default_rng(5).integers(3, 300, 48).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    found = logits(mine.path, ids)
    error = ((found - expected) ** 2).sum() / (expected**2).sum()
    print(f"{name}: {error:.2e}")
    assert error < 1e-9
    if layout_twins.TWINS[name].reference:
        return
    line, path = layout_twins.TWINS[name].model, tmp_path / "theirs.gguf"
    options = {"pre": PRE.get(line.vocabulary, ""), "raw": True, "generic": line.generic}
    theirs = open_gguf(reference.convert(folder, path, "--outtype", "f32", **options))
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys()
    assert not [each for each in a if a[each] != b[each]], "tensors that differ"
    keys = {key for key in mine.metadata.keys() | theirs.metadata.keys() if not key.startswith("tokenizer.")}
    assert {key: mine.metadata.get(key) for key in keys} == {key: theirs.metadata.get(key) for key in keys}


@pytest.mark.parametrize("name", [name for name, twin in layout_twins.TWINS.items() if twin.model.pixels])
def test_a_projector(name: str, tmp_path: Path) -> None:
    """As the converter's; and as from the other layout, of which test_projectors.py shows what libmtmd sees with it."""
    twin, made = layout_twins.TWINS[name], []
    for write in (layout_twins.write, lambda name, folder: write_line(twin.model, folder, **PLAIN)):
        folder = tmp_path / str(len(made)) / "Tiny-Fixture"
        folder.mkdir(parents=True)
        write(name, folder)
        run(request(folder, outtype="f32", mmproj=True, outdir=folder.parent))
        made.append(open_gguf(folder.parent / "mmproj-Tiny-Fixture-F16.gguf"))
    assert tensors(made[0]) == tensors(made[1])
    folder = tmp_path / "0" / "Tiny-Fixture"
    path = reference.convert(folder, tmp_path / "theirs.gguf", "--mmproj", "--outtype", "f16", raw=True)
    theirs = open_gguf(path)
    assert tensors(made[0]) == tensors(theirs)
    assert made[0].metadata == theirs.metadata
    more = {"clip.vision.preproc_min_tiles", "clip.vision.preproc_max_tiles"}
    assert {key: value for key, value in theirs.metadata.items() if key not in more} == dict(made[1].metadata)


@pytest.mark.parametrize("name", layout_twins.TWINS)
def test_what_needs_the_class_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    layout_twins.write(name, folder)
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    with pytest.raises(Unsupported, match="does not have the class"), opened_model(request(folder)) as model:
        build_skeleton(model)
    if layout_twins.TWINS[name].inside:  # the file of its text model is that of any
        return
    with pytest.raises(Unsupported, match="no Hugging Face class"):
        prepare(ToHfJob(mine.path, tmp_path / "back", sync=False))
