"""Encoders whose class transformers does not have: our conversion against that of llama.cpp's converter.

What llama.cpp computes is compared with a class that computes the same, or is made to.
"""

import json
from pathlib import Path

import pytest
import tokenizer_oracles as oracles
from gguf import PoolingType
from llama_models import embeddings
from test_convert import PRE, ours, tensors
from test_encoders import IDS, error, outputs

import encoder_twins
import reference
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.plan import make_plan

pytestmark = pytest.mark.conformance

# Tensors that are not the converter's, and why.
TENSORS = {"neobert": (".attn_qkv.weight", "the converter leaves heads beside each other, which llama.cpp reads apart")}


@pytest.mark.parametrize("name", encoder_twins.TWINS)
def test_a_line(name: str, tmp_path: Path) -> None:
    twin = encoder_twins.TWINS[name]
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = encoder_twins.write(name, folder)
    notes = make_plan(open_config(folder), None).notes
    assert not [note for note in notes if note.startswith("these keys of config.json")]
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    _, hidden = outputs(model, IDS)
    bound = 1e-8 if "jina-v2" in name else 1e-9  # GELU comes from a table of float16
    pooled = {PoolingType.NONE: hidden, PoolingType.MEAN: hidden.mean(0), PoolingType.CLS: hidden[0]}
    for kind, expected in pooled.items():
        print(f"{name}: {error(embeddings(mine.path, IDS, kind), expected):.2e}")
        assert error(embeddings(mine.path, IDS, kind), expected) < bound
    path = folder / "config.json"  # the converter has transformers read it too, which fails on some of an unknown type
    config = {**json.loads(path.read_text(encoding="utf-8")), "model_type": "bert"}
    path.write_text(json.dumps(config), encoding="utf-8")
    pre = PRE.get(twin.model.vocabulary, "default")
    theirs = open_gguf(reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f32", pre=pre, raw=True))
    a, b = tensors(mine), tensors(theirs)
    end = TENSORS.get(name, ("", ""))[0]
    if end or twin.reference:
        wrong = error(embeddings(tmp_path / "theirs.gguf", IDS, PoolingType.NONE), hidden)
        print(f"{name}, by the converter: {wrong:.2e}")
        assert wrong > 0.01
    if not twin.reference:
        assert a.keys() == b.keys()
        assert {each for each in a if a[each] != b[each]} == {each for each in a if end and each.endswith(end)}
    assert not oracles.unlike(mine.path, mine.metadata, theirs.metadata, twin.differs.keys())
