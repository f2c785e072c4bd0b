"""Whole conversions against what we did not write: the reference converter's bytes and keys, transformers' logits.

All architectures in small shapes with small vocabularies, and some with published ones.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizer_oracles as oracles
from llama_models import logits

import checkpoints
import published
import reference
from ggufsmith.container.reader import Gguf, open_gguf
from requesting import request, run

pytestmark = pytest.mark.conformance

# The pre-tokenizer of each fixture vocabulary, which the reference has to be told.
PRE = {"llama3-bpe": "llama-bpe", "qwen2-bpe": "qwen2", "roberta-bpe": "roberta-bpe"}
OUTTYPES = ("f16", "bf16", "f32")

# Keys that differ from the reference on purpose, with the reason.
DIFFERENT: dict[str, dict[str, str]] = {
    "llama-linear": {
        "tokenizer.ggml.scores": "the reference gives every token of a tokenizer.json -1000, so llama.cpp merges in an "
        "arbitrary order; ours follow the merges, and give the ids that Hugging Face gives (test_tokenizers.py)",
        "tokenizer.ggml.token_type": "added tokens that say they are special are control tokens, not user-defined",
    },
}


@pytest.fixture(scope="module", params=[*checkpoints.KINDS, *published.WHOLE])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """What it is, the pre-tokenizer that the reference must be told (or ""), and the folder.

    The folder's name says nothing: llama.cpp treats vocabularies of models called "phi3" and others in special ways.
    """
    kind = request.param
    folder = tmp_path_factory.mktemp("models") / "Tiny-Fixture"
    if kind in published.WHOLE:
        published.write_model(kind, folder)
        yield kind, "", folder
    else:
        checkpoints.write(kind, folder)
        yield kind, PRE.get(checkpoints.KINDS[kind].vocabulary, ""), folder
    shutil.rmtree(folder.parent)


def ours(folder: Path, path: Path, outtype: str) -> Gguf:
    run(request(folder, outtype=outtype, outfile=path))
    return open_gguf(path)


def tensors(gguf: Gguf) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    data = gguf.path.read_bytes()
    return {
        info.name: (info.shape, info.format.name, data[info.offset : info.offset + info.nbytes])
        for info in gguf.tensors.values()
    }


def test_every_byte_and_key_as_the_reference(model: tuple[str, str, Path], tmp_path: Path) -> None:
    kind, pre, folder = model
    for outtype in OUTTYPES if kind in ("llama", "mixtral", "gemma3") else ("f16",):
        mine = ours(folder, tmp_path / "ours.gguf", outtype)
        theirs = open_gguf(reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", outtype, pre=pre))
        a, b = tensors(mine), tensors(theirs)
        assert a.keys() == b.keys()
        assert not [name for name in a if a[name] != b[name]], "tensors that differ"
        llama = oracles.LlamaVocabulary(mine.path)
        allowed = DIFFERENT.get(kind, {}).keys() | oracles.only_stated(mine.metadata, theirs.metadata, llama)
        llama.close()
        keys = mine.metadata.keys() | theirs.metadata.keys()
        wrong = {
            key: (mine.metadata.get(key), theirs.metadata.get(key))
            for key in sorted(keys - allowed)
            if mine.metadata.get(key) != theirs.metadata.get(key)
        }
        assert not wrong


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3-moe", "gemma3", "llama"])
def test_the_pooling_of_embedding_models_as_the_reference(kind: str, tmp_path: Path) -> None:
    folder = checkpoints.write(kind, tmp_path / "Tiny-Fixture")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}', encoding="utf-8")
    (folder / "modules.json").write_text('[{"path": "1_Pooling", "type": "models.Pooling"}]', encoding="utf-8")
    pre = PRE.get(checkpoints.KINDS[kind].vocabulary, "")
    theirs = open_gguf(reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f16", pre=pre))
    made = ours(folder, tmp_path / "ours.gguf", "f16")
    key = f"{made.metadata['general.architecture'].data}.pooling_type"
    assert made.metadata.get(key) == theirs.metadata.get(key)
    assert (key in made.metadata) == (kind in ("qwen2", "qwen3"))


def test_logits_as_transformers(model: tuple[str, str, Path], tmp_path: Path) -> None:
    """Normalised mean square error over 64 positions below 1e-9, everything in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    kind, _, folder = model
    gguf = ours(folder, tmp_path / "f32.gguf", "f32")
    rows = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    ids = np.random.default_rng(5).integers(3, min(rows, 30000), 64).tolist()
    source = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for module in source.modules():
        if type(module).__name__ == "GELUTanh":  # ggml looks GELU up in a table of float16, for Gemma
            module.forward = lambda x: torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    with torch.no_grad():
        expected = source(torch.tensor([ids])).logits[0].numpy()
    found = logits(gguf.path, ids)
    assert found.shape == expected.shape
    error = ((found - expected) ** 2).mean() / (expected**2).mean()
    # Where ggml's tanh and torch's round to different float16 table entries, more is left of the difference for Gemma.
    assert error < (1e-8 if "gemma" in kind else 1e-9)
