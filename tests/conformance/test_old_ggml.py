"""Old Llama files, converted: llama.cpp computes and splits text as with the GGUF file whose model they hold."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import old_ggml
import pytest
from llama_models import open_llama
from numpy.typing import NDArray

import checkpoints
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.vocabulary import vocabulary_of
from requesting import request, run

pytestmark = pytest.mark.conformance

TEXTS = ("Hello, world! 12345", "  naïve café\n\n你好 \U0001f680", "def f(x):\n\treturn x ** 2")
# What a file from before GGUF does not say, and the fixture does.
KNOWN = ("llama.attention.layer_norm_rms_epsilon=float:1e-5",)


@pytest.fixture(scope="module")
def f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    source = checkpoints.write("llama", folder / "source")
    run(request(source, outfile=folder / "tiny-F16.gguf"))
    return folder / "tiny-F16.gguf"


def made(source: Path, path: Path, recipe: str, **options: Any) -> Path:
    run(request(source, recipe, outfile=path, **options))
    return path


def run_in_llama(path: Path, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[list[int]]]:
    """Logits of 48 fixed tokens, and the ids of the texts."""
    llama = open_llama(path)
    ids = np.random.default_rng(5).integers(3, 900, 48).tolist()
    llama.eval(ids)
    logits = np.array(llama.scores[: len(ids)], np.float32)
    tokens = [llama.tokenize(text.encode(), special=False) for text in texts]
    llama.close()
    return logits, tokens


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        *((kind, "f16") for kind in old_ggml.VERSIONS),
        ("ggjt v2", "q5_1"),
        *(("ggjt v3", recipe) for recipe in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q4_K_M", "q6_K")),
    ],
)
def test_logits_are_those_of_the_model_in_the_file(kind: str, recipe: str, f16: Path, tmp_path: Path) -> None:
    """Copied weights give the same bits, with the vocabulary of the file where it has scores."""
    # ggjt v2 has no K types, so no recipe that gives some to the output.
    source = f16 if recipe == "f16" else made(f16, tmp_path / "source.gguf", recipe, pure=recipe == "q5_1")
    with open_gguf(source) as gguf:
        old = old_ggml.write(kind, gguf, tmp_path / "old.bin")
    converted = made(old, tmp_path / "new.gguf", "copy", override_kv=KNOWN)
    was, now = (run_in_llama(path, TEXTS) for path in (source, converted))
    np.testing.assert_array_equal(now[0], was[0])
    if kind != "ggml":
        assert now[1] == was[1]


def test_a_vocabulary_from_a_folder_mends_a_file_without_scores(f16: Path, tmp_path: Path) -> None:
    with open_gguf(f16) as gguf:
        old = old_ggml.write("ggml", gguf, tmp_path / "old.bin")
    folder = f16.parent / "source"
    converted = made(old, tmp_path / "new.gguf", "copy", override_kv=KNOWN, tokenizer=folder)
    assert run_in_llama(converted, TEXTS)[1] == run_in_llama(f16, TEXTS)[1]
    assert vocabulary_of(old, folder)[1] == ()
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["rms_norm_eps"] == 1e-5
