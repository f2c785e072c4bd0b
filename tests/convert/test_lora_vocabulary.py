"""The vocabulary of a merged model: that of the adapter, whichever of its files name the tokens that were added."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import TokenType

import adapters
import checkpoints
import vocabularies
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.lora.merge import EMBEDDING, HEAD
from requesting import plan, request, run

TOKENS = {"<turn>": {"special": True}, "<think>": {"special": False}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary has no added tokens."""
    folder = tmp_path_factory.mktemp("models") / "Base"
    checkpoints.write("llama", folder, vocab_size=900)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    assert vocabularies.write_naming("llama-spm", folder, (), {}) == 900
    return folder


def merged(base: Path, adapter: Path, rows: int) -> dict[str, list[object]]:
    """Tokens and types from 900 on of the base with the adapter, which brings `rows` more rows."""
    rng = np.random.default_rng(5)
    grown = {name: rng.standard_normal((900 + rows, 256)).astype(np.float32) for name in (EMBEDDING, HEAD)}
    adapters.write(base, adapter, whole=grown)
    prepared = plan(request(base, outdir=adapter, lora=((adapter, 1.0),)))
    run(prepared)
    with open_gguf(prepared.output.path) as gguf:
        keys = {key: gguf.metadata[f"tokenizer.ggml.{key}"].data for key in ("tokens", "token_type")}
    return {key: list(value[900:]) for key, value in keys.items()}


@pytest.mark.parametrize("sources", vocabularies.SUBSETS, ids="+".join)
@pytest.mark.parametrize("whole", [True, False], ids=["own tokenizer", "added tokens only"])
def test_every_added_token_has_its_row(sources: Sequence[str], whole: bool, base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "Tune"
    vocabularies.write_naming("llama-spm", adapter, sources, TOKENS)
    if not whole:
        (adapter / "tokenizer.model").unlink()
    found = merged(base, adapter, 3)
    with_ids = {"tokenizer.json", "added_tokens_decoder", "added_tokens.json"} & {*sources}
    assert found["tokens"] == ["<turn>", "<think>" if with_ids else "[PAD901]", "[PAD902]"]
    turn = TokenType.USER_DEFINED if {*sources} == {"added_tokens.json"} else TokenType.CONTROL
    assert found["token_type"] == [turn, TokenType.USER_DEFINED if with_ids else TokenType.UNUSED, TokenType.UNUSED]


def test_vocab_json_in_an_adapter_is_a_tokenizer(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "Tune"
    count = vocabularies.write_naming("qwen2-pairs", adapter, ["added_tokens_decoder"], TOKENS)
    adapters.write(base, adapter)
    prepared = plan(request(base, outdir=adapter, lora=((adapter, 1.0),), vocab_only=False))
    tokens = prepared.layout.metadata["tokenizer.ggml.tokens"].data
    assert tokens[count : count + 2] == ("<turn>", "<think>")
