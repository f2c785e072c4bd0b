"""LoRA adapters as GGUF adapters, and how their base is found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import adapters
import checkpoints
from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.lora.base import find_base, parse_adapter
from ggufsmith.convert.lora.peft import open_adapter
from merging import EMBEDDING, K, Q, V, close, stored, wide
from requesting import plan, request, run


def exported(folder: Path, output: Path, **options: Any) -> dict[str, NDArray[np.float32]]:
    """The tensors of a float32 GGUF adapter, and its alpha under "alpha"."""
    run(request(folder, outfile=output, **options))
    with open_gguf(output) as gguf:
        assert gguf.metadata["general.type"].data == "adapter"
        assert gguf.metadata["adapter.type"].data == "lora"
        assert not any(key.startswith(("tokenizer.", "llama.")) for key in gguf.metadata)
        found = {name: stored(gguf, name).view(np.float32).reshape(info.shape) for name, info in gguf.tensors.items()}
        return {**found, "alpha": np.float32(gguf.metadata["adapter.lora.alpha"].data)}


def test_an_adapter_alone_becomes_a_gguf_adapter(tmp_path: Path, bases: dict[str, Path]) -> None:
    """Rows of B lie as those of the converted weight: query and key heads are permuted."""
    folder = tmp_path / "My Chat"
    parts = adapters.write(bases["llama"], folder, targets=adapters.ALL)
    prepared = plan(request(folder))
    assert prepared.output.path == folder / "My-Chat-F32-LoRA.gguf"
    found = exported(folder, tmp_path / "a.gguf")
    assert found["alpha"] == 12
    assert len(found) == 1 + 2 * 14
    for name, module, heads in (("attn_q", Q, 4), ("attn_k", K, 2), ("attn_v", V, 0)):
        a, b = parts[f"{module}.lora_A.weight"], parts[f"{module}.lora_B.weight"]
        if heads:
            b = b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)
        np.testing.assert_array_equal(found[f"blk.0.{name}.weight.lora_a"], a)
        np.testing.assert_array_equal(found[f"blk.0.{name}.weight.lora_b"], b)


@pytest.mark.parametrize(
    "config", [{"use_rslora": True}, {"alpha_pattern": {"v_proj": 5}}, {"use_rslora": True, "lora_alpha": 3}]
)
def test_llama_cpp_gets_the_scale_of_every_weight(tmp_path: Path, bases: dict[str, Path], config: Any) -> None:
    """It computes alpha / rank with one alpha; the product has to be the adapter's, whatever is stored."""
    parts = adapters.write(bases["llama"], tmp_path, targets=("v_proj", "o_proj"), ranks={"v_proj": 3}, **config)
    found = exported(tmp_path, tmp_path / "a.gguf")
    scales = {update.target: update.scale for update in open_adapter(tmp_path).updates}
    for name, module in (("attn_v", V), ("attn_output", "model.layers.1.self_attn.o_proj")):
        block = int(module.split(".")[2])
        a, b = (found[f"blk.{block}.{name}.weight.lora_{end}"] for end in "ab")
        expected = scales[f"{module}.weight"] * wide(parts[f"{module}.lora_B.weight"])
        close(found["alpha"] / len(a) * wide(b), expected)


def test_an_updated_embedding_is_turned_for_llama_cpp(tmp_path: Path, bases: dict[str, Path]) -> None:
    parts = adapters.write(bases["llama"], tmp_path, targets=("embed_tokens", "lm_head"))
    found = exported(tmp_path, tmp_path / "a.gguf")
    module = EMBEDDING.removesuffix(".weight")
    np.testing.assert_array_equal(found["token_embd.weight.lora_a"], parts[f"{module}.lora_embedding_A"].T)
    np.testing.assert_array_equal(found["token_embd.weight.lora_b"], parts[f"{module}.lora_embedding_B"])
    np.testing.assert_array_equal(found["output.weight.lora_b"], parts["lm_head.lora_B.weight"])


def test_experts_are_stacked(tmp_path: Path, bases: dict[str, Path]) -> None:
    parts = adapters.write(bases["mixtral"], tmp_path, targets=("w1", "w2"))
    found = exported(tmp_path, tmp_path / "a.gguf")
    for end, side in (("a", "A"), ("b", "B")):
        name = "model.layers.1.block_sparse_moe.experts.{}.w2.lora_" + side + ".weight"
        expected = np.stack([parts[name.format(expert)] for expert in range(4)])
        np.testing.assert_array_equal(found[f"blk.1.ffn_down_exps.weight.lora_{end}"], expected)


def test_activation_tokens_are_kept(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapters.write(bases["llama"], tmp_path, alora_invocation_tokens=[5, 7])
    run(request(tmp_path, outfile=tmp_path / "a.gguf"))
    with open_gguf(tmp_path / "a.gguf") as gguf:
        assert list(gguf.metadata["adapter.alora.invocation_tokens"].data) == [5, 7]


def test_no_path_of_the_training_machine_is_written(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapters.write(bases["llama"], tmp_path)
    card = f"---\nbase_model: {bases['llama']}\ntags:\n- base_model:adapter:{bases['llama']}\n- lora\n---\n"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    run(request(tmp_path, outfile=tmp_path / "a.gguf"))
    assert str(bases["llama"]).encode() not in (tmp_path / "a.gguf").read_bytes()
    with open_gguf(tmp_path / "a.gguf") as gguf:
        assert gguf.metadata["general.base_model.0.name"].data == "Base Llama"
        assert gguf.metadata["general.tags"].data == ("lora",)


# -- the base ---------------------------------------------------------------------------------------------------------


def test_the_base_is_found_or_asked_for(
    tmp_path: Path, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = checkpoints.write("llama", tmp_path / "base")
    adapters.write(beside, tmp_path / "a", named="../base")
    assert find_base(open_adapter(tmp_path / "a")) == beside
    adapters.write(beside, tmp_path / "b", named="base")
    monkeypatch.chdir(tmp_path)
    assert find_base(open_adapter(tmp_path / "b")) == beside
    assert find_base(open_adapter(tmp_path / "b"), bases["qwen2"]) == bases["qwen2"]
    adapters.write(beside, tmp_path / "c", named="some/where-else")
    with pytest.raises(Unsupported, match=r"'some/where-else' is not on this machine(.|\n)*--base.*gguf-convert some/"):
        find_base(open_adapter(tmp_path / "c"))
    for named in ("a\0b", "x" * 5000, "//server/share", "\\\\server\\share"):
        adapters.write(beside, tmp_path / "c", named=named)
        with pytest.raises(Unsupported, match="is not on this machine"):
            find_base(open_adapter(tmp_path / "c"))


def test_the_base_is_found_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    cache = tmp_path / "models--org--Base-7B"
    base = checkpoints.write("llama", cache / "snapshots" / "abc123")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc123", encoding="utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    adapters.write(base, tmp_path / "a", named="org/Base-7B")
    assert find_base(open_adapter(tmp_path / "a")) == base
    prepared = plan(request(tmp_path / "a"))
    assert prepared.layout.metadata["general.base_model.0.repo_url"].data == "https://huggingface.co/org/Base-7B"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a", 1.0)),
        ("a:0.5", ("a", 0.5)),
        ("a/b:-1e-2", ("a/b", -0.01)),
        (r"C:\a", (r"C:\a", 1.0)),
        (r"C:\a:2", (r"C:\a", 2.0)),
    ],
)
def test_factors(text: str, expected: tuple[str, float]) -> None:
    assert parse_adapter(text) == (Path(expected[0]), expected[1])


@pytest.mark.parametrize("text", ["a:b", "a:nan", "a:inf", "a:"])
def test_factors_that_are_none(text: str) -> None:
    with pytest.raises(Usage, match="is not a number"):
        parse_adapter(text)
