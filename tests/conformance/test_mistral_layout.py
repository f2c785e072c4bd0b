"""Mistral's own layout against llama.cpp's converter, which reads it by mistral-common, and against transformers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mtmd
import numpy as np
import pytest
import tokenizer_oracles as oracles
from llama_models import logits
from test_convert import ours, tensors
from test_tokenizers import has_mark

import mistral
import reference
from ggufsmith.container.reader import open_gguf
from ggufsmith.tokenizer.read import read_vocabulary
from needed import REFERENCE, need
from requesting import request, run

pytestmark = pytest.mark.conformance

LINES = ("llama", "ministral3", "mistral4")
SEEING = ("mistral3", "pixtral")
# Keys of llama.cpp's converter that nothing reads, or that say what llama.cpp does anyway.
UNREAD = {"tokenizer.ggml.scores", "tokenizer.ggml.add_eos_token", "clip.rope.freq_base"}


def theirs(folder: Path, output: Path, *options: str) -> Any:
    """By the reference; its class for experts opens a config.json, which the layout does not have."""
    need("mistral")
    copy = shutil.copytree(folder, output.parent / "theirs" / folder.name, dirs_exist_ok=True)
    (copy / "config.json").write_text("{}", encoding="utf-8")
    more = ("--mistral-format", "--disable-mistral-community-chat-template", *options)
    return open_gguf(reference.convert(copy, output, *more))


def differences(mine: Any, other: Any) -> dict[str, Any]:
    a, b = mine.metadata, other.metadata
    keys = {key for key in (a.keys() | b.keys()) - UNREAD if a.get(key) != b.get(key)}
    return {key: (a.get(key), b.get(key)) for key in sorted(keys)}


@pytest.mark.parametrize("name", LINES + SEEING)
def test_tensors_keys_and_logits(name: str, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = mistral.release(folder, name)
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    other = theirs(folder, tmp_path / "theirs.gguf", "--outtype", "f32")
    assert tensors(mine) == tensors(other)
    assert not differences(mine, other)
    ids = np.random.default_rng(5).integers(3, 300, 48).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    error = ((logits(mine.path, ids) - expected) ** 2).sum() / (expected**2).sum()
    print(f"{name}: {error:.2e}")
    assert error < 1e-9


@pytest.mark.parametrize("name", ["llama", "ministral3"])
def test_weights_in_eight_bits(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    mistral.release(folder, name, eight_bits=True)
    other = theirs(folder, tmp_path / "theirs.gguf", "--outtype", "f32")
    assert tensors(ours(folder, tmp_path / "ours.gguf", "f32")) == tensors(other)


def test_experts_in_eight_bits(tmp_path: Path) -> None:
    """The converter has no name for the scales of what goes into them."""
    from safetensors.torch import load_file

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    mistral.release(folder, "mistral4", eight_bits=True)
    stored = load_file(folder / "consolidated.safetensors")
    names = [f"layers.1.experts.{number}.w2" for number in range(8)]
    expected = [stored[f"{name}.weight"].float() * stored[f"{name}.qscale_weight"].float() for name in names]
    raw = tensors(ours(folder, tmp_path / "ours.gguf", "f32"))["blk.1.ffn_down_exps.weight"][2]
    assert raw == np.stack([each.numpy() for each in expected]).tobytes()


@pytest.mark.parametrize("name", SEEING)
def test_the_projector(name: str, tmp_path: Path) -> None:
    """Its numbers are those of the same weights in Hugging Face's layout, which are compared with transformers'."""
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    mistral.release(folder, name)
    run(request(folder, outtype="f32", mmproj=True, mmproj_outtype="f32", outdir=tmp_path))
    mine = open_gguf(tmp_path / "mmproj-Tiny-Fixture-F32.gguf")
    other = theirs(folder, tmp_path / "theirs.gguf", "--mmproj", "--outtype", "f32")
    assert tensors(mine) == tensors(other)
    assert not differences(mine, other)
    image = np.random.default_rng(3).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    assert np.isfinite(mtmd.embeddings(tmp_path / "Tiny-Fixture-F32.gguf", mine.path, image, max_tokens=12)).any()


PRINT = """
import json, sys
from pathlib import Path
from gguf.vocab import MistralVocab
vocabulary = MistralVocab(Path(sys.argv[1]))
tokens, _, types = zip(*vocabulary.all_tokens())
ids = [vocabulary.tokenizer.encode(text, True, False) for text in json.load(sys.stdin)]
merges = vocabulary.extract_vocab_merges_from_model()
print(json.dumps([[text.decode() for text in tokens], list(map(int, types)), merges, ids]))
"""


def test_a_published_vocabulary(tmp_path: Path) -> None:
    """That of Mistral Nemo and Pixtral: tokens, types and merges as gguf-py has them, ids as mistral-common."""
    need("mistral")
    shutil.copyfile(need("vocabularies") / "mistral" / "tekken_240911.json", tmp_path / "tekken.json")
    found = read_vocabulary(tmp_path, config={}, size=None, architecture="MistralForCausalLM")
    assert (found.pre, found.notes) == ("tekken", ())
    texts = [text for text in oracles.probes([]) if not has_mark(text)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REFERENCE / 'gguf-py')!r})\n{PRINT}", tmp_path],
        input=json.dumps(texts),
        env=reference.environment(),
        encoding="utf-8",
        capture_output=True,
        check=True,
    )
    tokens, types, merges, ids = json.loads(done.stdout)
    assert list(found.tokens) == tokens
    assert found.types.tolist() == types
    assert list(found.merges) == merges
    with oracles.in_llama(found, tmp_path) as llama:
        wrong = [t for t, own in zip(texts, ids, strict=True) if encoded(llama, t) != own]
    assert not wrong


def encoded(llama: oracles.LlamaVocabulary, text: str) -> list[int]:
    return llama.encode(text, add_special=True, parse_special=False)
