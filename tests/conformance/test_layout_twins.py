"""Models whose class transformers does not have: our conversion against that of llama.cpp's converter.

What llama.cpp computes is compared with a class that computes the same.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_models import logits
from test_convert import PRE, ours, tensors
from test_zoo import same

import layout_twins
import reference
from ggufsmith.container.errors import Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.hf.run import ToHfJob, prepare
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.plan import make_plan
from ggufsmith.evaluate.skeleton import build_skeleton
from ggufsmith.evaluate.variants import opened_model
from requesting import request

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
    path = folder / "config.json"  # the converter has transformers read it too, which fails on some of an unknown type
    config = {**json.loads(path.read_text(encoding="utf-8")), "model_type": "llama"}
    path.write_text(json.dumps(config), encoding="utf-8")
    differs = layout_twins.TWINS[name].differs
    line, path = layout_twins.TWINS[name].model, tmp_path / "theirs.gguf"
    options = {"pre": PRE.get(line.vocabulary, ""), "raw": True, "generic": line.generic}
    theirs = open_gguf(reference.convert(folder, path, "--outtype", "f32", **options))
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys()
    unlike = [each for each in a if not same(each, a[each], b[each])]
    if layout_twins.TWINS[name].rounded:
        unlike = [each for each in unlike if not close(a[each], b[each])]
    assert not unlike, "tensors that differ"
    keys = {
        key for key in mine.metadata.keys() | theirs.metadata.keys() if not key.startswith("tokenizer.")
    } - differs.keys()
    assert {key: mine.metadata.get(key) for key in keys} == {key: theirs.metadata.get(key) for key in keys}


def close(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two matrices in float32 are equal but for the last bit."""
    values = (np.frombuffer(each[2], np.float32) for each in (one, other))
    return one[:2] == other[:2] == (one[0], "F32") and bool(np.allclose(*values, rtol=2e-7, atol=0))


def refused(said: str) -> AbstractContextManager[Any]:
    """That this is said; that nothing is, if it is empty."""
    return pytest.raises(Unsupported, match=said) if said else nullcontext()


@pytest.mark.parametrize("name", layout_twins.TWINS)
def test_what_needs_the_class_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    layout_twins.write(name, folder)
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    run, back = layout_twins.TWINS[name].run, layout_twins.TWINS[name].back
    with refused(run), opened_model(request(folder)) as model:
        build_skeleton(model)
    with refused(back):
        prepare(ToHfJob(mine.path, tmp_path / "back", sync=False))
