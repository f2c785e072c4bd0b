"""T5 as a whole: llama.cpp's encoder reads a text, and the logits of its decoder are those of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_oracles as oracles
from llama_models import answer_logits
from test_convert import ours, tensors

import encoders
import reference
import vocabularies
from ggufsmith.container.errors import Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.plan import make_plan
from ggufsmith.evaluate.skeleton import build_skeleton
from ggufsmith.evaluate.variants import opened_model
from ggufsmith.tokenizer.read import read_vocabulary
from requesting import request
from vocabulary_parts import corpus

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


@pytest.mark.parametrize("extra", [None, 0, 7])
def test_pieces_alone_are_what_the_class_of_t5_makes_of_them(extra: int | None, tmp_path: Path) -> None:
    from transformers import T5Tokenizer

    size = vocabularies.write("t5-unigram", tmp_path)
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    told: Any = {"config": config, "size": size + 120, "architecture": "T5ForConditionalGeneration"}
    whole = read_vocabulary(tmp_path, **told).metadata()
    (tmp_path / "tokenizer.json").unlink()
    stated = {} if extra is None else {"extra_ids": extra}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", **stated}), "utf-8")
    found = read_vocabulary(tmp_path, **told)
    if extra == 0:
        assert found.metadata() == whole
    theirs = T5Tokenizer.from_pretrained(tmp_path)
    count = 100 if extra is None else extra
    assert len(theirs) == size + count
    assert found.tokens[: size + count] == tuple(theirs.convert_ids_to_tokens(list(range(size + count))))
    with oracles.in_llama(found, tmp_path) as llama:
        for text in [*corpus()[:100], "<extra_id_0>", "a <extra_id_3>"]:
            if count > 3 or "extra" not in text:
                assert llama.encode(text, add_special=True, parse_special=True) == theirs(text).input_ids, text


def test_keys_of_pieces_alone_are_those_of_the_converter(tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    encoders.write("t5-whole", folder)
    (folder / "tokenizer.json").unlink()
    stated = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**stated, "extra_ids": 0}), encoding="utf-8")
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    theirs = open_gguf(reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f32", raw=True))
    # Without a tokenizer.json, the converter says nothing of special tokens: llama.cpp has those of T5 built in.
    built_in = ("add_eos_token", "add_sep_token", "eos_token_id", "unknown_token_id", "padding_token_id")
    allowed = {f"tokenizer.ggml.{key}" for key in built_in}
    assert not oracles.unlike(mine.path, mine.metadata, theirs.metadata, allowed)
