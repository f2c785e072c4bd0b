"""Folders made of GGUF files, as transformers sees them: the source's config, logits and token ids."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import as_llamacpp
import numpy as np
import pytest
import tokenizer_oracles as oracles

import checkpoints
import published
import reference
import requesting
import tiny
import zoo
from ggufsmith.container.errors import Unsupported
from ggufsmith.convert.hf.run import ToHfJob, prepare, run

pytestmark = pytest.mark.conformance

# Attributes of the configuration that change what a model computes.
SETTINGS = """hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    vocab_size rms_norm_eps max_position_embeddings rope_parameters tie_word_embeddings attention_bias mlp_bias
    hidden_act hidden_activation num_local_experts num_experts num_experts_per_tok moe_intermediate_size norm_topk_prob
    shared_expert_intermediate_size attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar
    original_max_position_embeddings layer_types""".split()


@pytest.fixture(scope="module", params=[*checkpoints.KINDS, *published.WHOLE])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """What it is, a float32 checkpoint, and the same from its F32 GGUF file."""
    kind, home = request.param, tmp_path_factory.mktemp("pair")
    source = home / "source"
    if kind in published.WHOLE:
        published.write_model(kind, source, dtype="float32")
    else:
        checkpoints.write(kind, source, dtype="float32")
    gguf = home / "model.gguf"
    requesting.run(requesting.request(source, outtype="f32", outfile=gguf))
    with prepare(ToHfJob(gguf, home / "back", sync=False)) as prepared:
        run(prepared)
    yield kind, source, home / "back"
    shutil.rmtree(home)


def test_transformers_computes_the_same(pair: tuple[str, Path, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    kind, *folders = pair
    logits, configs = [], []
    for folder in folders:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not any(info.values()), info
        ids = np.random.default_rng(5).integers(3, min(model.config.vocab_size, 30000), 64)
        with torch.no_grad():
            logits.append(model.eval()(torch.tensor(ids[None])).logits)
        configs.append(model.config)
    if kind.startswith("gemma"):  # norms are x + 1 in GGUF, rounded to float32
        assert torch.allclose(*logits, rtol=0, atol=1e-4 * float(logits[0].abs().max()))
    else:
        assert torch.equal(*logits)
    was, now = (settings(config) for config in configs)
    assert now == was


# Lines of the zoo that no folder can be made of -> what is said of them.
NO_FOLDER = {
    **dict.fromkeys(
        (
            *("qwen3-vl", "qwen3-vl-moe", "qwen2_5-vl", "qwen2-vl", "mistral3", "minimax-m3"),
            *(
                "glm4v",
                "glm4v-moe",
                "glm-ocr",
                "paddleocr",
                "hunyuan-vl",
                "chameleon",
                "muse-glimmer",
                "step3p7",
                "qwen3-asr",
                "qwen3-omni",
                "qwen2_5-omni",
            ),
        ),
        "its encoder for pictures",
    ),
    **dict.fromkeys(
        ("gemma4-31b", "gemma4-e2b", "gemma4-26b", "gemma4-vl", "gemma4-unified"),
        "'gemma4' cannot be written to a tokenizer.json",
    ),
}


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_line_of_the_zoo_comes_back(name: str, tmp_path: Path) -> None:
    """The same tensors in the same model of transformers; without the blocks for multi-token prediction."""
    import torch
    import transformers

    source, gguf = tmp_path / "source", tmp_path / "model.gguf"
    source.mkdir()
    model = zoo.write(name, source)
    as_llamacpp.CORRECTED.get(name, lambda model: None)(model)
    requesting.run(requesting.request(source, outtype="f32", outfile=gguf, mtp="drop"))
    job = ToHfJob(gguf, tmp_path / "back", sync=False)
    if name in NO_FOLDER:
        with pytest.raises(Unsupported, match=NO_FOLDER[name]):
            prepare(job)
        return
    with prepare(job) as prepared:
        run(prepared)
    (named,) = json.loads((tmp_path / "back/config.json").read_text(encoding="utf-8"))["architectures"]
    again, info = getattr(transformers, named).from_pretrained(
        tmp_path / "back", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = torch.from_numpy(np.random.default_rng(5).integers(3, 300, (2, 48)))
    with torch.no_grad():
        was, now = (each.eval()(ids).logits for each in (tiny.text_model(model), again))
    assert torch.allclose(now, was, rtol=0, atol=1e-4 * float(was.abs().max()))


def settings(config: Any) -> dict[str, Any]:
    """SETTINGS, two spellings of one thing made equal."""
    found = {key: getattr(config, key, None) for key in SETTINGS}
    found |= {key: bool(found[key]) for key in ("attention_bias", "mlp_bias")}  # Mistral has none, so no such key
    for key in ("partial_rotary_factor", "type"):  # 1.0; and what is rope_type now
        found["rope_parameters"].pop(key, None)
    return found


def test_transformers_splits_the_same(pair: tuple[str, Path, Path]) -> None:
    from transformers import AutoTokenizer, LlamaTokenizer

    kind, source, back = pair
    # What transformers makes of a tokenizer.model depends on model_type: for Mistral not what sentencepiece does.
    was = (LlamaTokenizer if kind.startswith("mistral") else AutoTokenizer).from_pretrained(source)
    now = AutoTokenizer.from_pretrained(back)
    specials = sorted(was.get_added_vocab())[:40]
    for special in (True, False):
        wrong = [
            text
            for text in oracles.probes(specials)
            if was.encode(text, add_special_tokens=special) != now.encode(text, add_special_tokens=special)
        ]
        assert wrong == []
    assert was.eos_token == now.eos_token
    assert was.chat_template == now.chat_template


@pytest.mark.parametrize(
    ("kind", "pre"), [("llama-3", "llama-bpe"), ("mixtral", ""), ("qwen2-moe", "qwen2"), ("phi3", "")]
)
def test_files_of_the_reference_converter_come_back(kind: str, pre: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    source = checkpoints.write(kind, tmp_path / "Tiny-Fixture")
    gguf = reference.convert(source, tmp_path / "theirs.gguf", "--outtype", "f32", pre=pre)
    with prepare(ToHfJob(gguf, tmp_path / "back", "bfloat16", sync=False)) as prepared:
        assert prepared.notes == ()
        assert run(prepared).notes == ()
    was, now = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert was.keys() == now.keys()
    assert {tensor.dtype for tensor in now.values()} == {torch.bfloat16}
    assert [name for name in was if not torch.equal(was[name], now[name])] == []
