"""T5 as a whole: llama.cpp's encoder reads a text, and the logits of its decoder are those of transformers."""

from pathlib import Path

import numpy as np
import pytest
import tokenizer_oracles as oracles
from llama_models import answer_logits
from test_convert import ours, tensors

import encoders
import reference
from ggufsmith.container.errors import Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.plan import make_plan
from ggufsmith.evaluate.skeleton import build_skeleton
from ggufsmith.evaluate.variants import opened_model
from requesting import request

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("name", encoders.BOTH)
def test_a_line(name: str, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = encoders.write(name, folder)
    for module in model.modules():
        if type(module).__name__ == "NewGELUActivation":  # ggml looks GELU up in a table of float16
            module.forward = lambda x: torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    assert not [note for note in make_plan(open_config(folder), None).notes if note.startswith("these keys of")]
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    text, answer = (np.random.default_rng(seed).integers(7, 300, 24).tolist() for seed in (5, 6))
    answer[0] = 0
    with torch.no_grad():
        expected = model(torch.tensor([text]), decoder_input_ids=torch.tensor([answer])).logits[0].numpy()
    found = answer_logits(mine.path, text, answer)
    error = ((found - expected) ** 2).sum() / (expected**2).sum()
    print(f"{name}: {error:.2e}")
    assert error < encoders.BOTH[name].nmse
    theirs = open_gguf(reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f32", raw=True))
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys()
    scaled = getattr(model.config, "scale_decoder_outputs", False)  # llama.cpp does not, so that the norm does
    assert {name for name in a if a[name] != b[name]} == ({"dec.output_norm.weight"} if scaled else set())
    assert not oracles.unlike(mine.path, mine.metadata, theirs.metadata, set())
    with opened_model(request(folder)) as opened, pytest.raises(Unsupported, match="cannot be run here yet"):
        build_skeleton(opened)
