"""LoRA adapters: merged weights against float64, GGUF adapters against their factors, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import adapters
import checkpoints
from ggufsmith.container.errors import Failure, Malformed, Unsupported, Usage
from ggufsmith.container.reader import Gguf, open_gguf
from ggufsmith.convert.checkpoint import Checkpoint, LocalFiles, open_checkpoint
from ggufsmith.convert.config import Config
from ggufsmith.convert.lora.base import find_base, parse_adapter
from ggufsmith.convert.lora.merge import merge
from ggufsmith.convert.lora.peft import open_adapter
from ggufsmith.convert.quantized import Quantization
from ggufsmith.convert.quantized import prepare as prepare_quantized
from ggufsmith.convert.run import Job, prepare, run
from ggufsmith.convert.sources.recognise import recognise
from ggufsmith.convert.sources.scheme import Made
from ggufsmith.convert.sources.store import Store, to_f32
from ggufsmith.quantize.recipes.files import recipe_of
from ggufsmith.quantize.stream import rows_of

Q, K, V = (f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: checkpoints.write(kind, folder / f"Base-{kind}") for kind in ("llama", "qwen2", "mixtral", "gemma2")}


def dense(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """Every tensor, read in uneven pieces."""
    found = {}
    with checkpoint:
        store = Store(checkpoint)
        for name, source in checkpoint.tensors.items():
            rows, width = rows_of(source.shape)
            out = np.full((rows, width), np.nan, np.float32)
            for first in range(0, rows, 67):
                last = min(first + 67, rows)
                if isinstance(source, Made):
                    source.weights.rows(store, first, last, out[first:last])
                else:
                    out[first:last] = to_f32(store.rows(source, first, last), source.dtype)
            found[name] = out.reshape(source.shape)
    return found


def opened(folder: Path) -> Checkpoint:
    return recognise(open_checkpoint(folder), Config.of_folder(folder))


def merged(base: Path, *folders: tuple[Path, float]) -> dict[str, NDArray[np.float32]]:
    return dense(merge(opened(base), [(open_adapter(folder), factor) for folder, factor in folders])[0])


def stored(gguf: Gguf, name: str) -> NDArray[np.uint8]:
    out = np.empty(gguf.tensors[name].nbytes, np.uint8)
    gguf.read_into(gguf.tensors[name], 0, out)
    return out


def wide(array: Any) -> NDArray[np.float64]:
    return np.asarray(array, np.float64)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-7)


# -- merging ----------------------------------------------------------------------------------------------------------


def test_the_update_is_added_and_nothing_else_changes(tmp_path: Path, bases: dict[str, Path]) -> None:
    parts = adapters.write(bases["llama"], tmp_path, targets=adapters.ALL)
    before, after = dense(opened(bases["llama"])), merged(bases["llama"], (tmp_path, 1.0))
    assert before.keys() == after.keys()
    changed = 0
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in parts:
            update = wide(parts[f"{module}.lora_B.weight"]) @ wide(parts[f"{module}.lora_A.weight"])
            close(after[name], weight + 12 / 6 * update)
            changed += 1
        else:
            np.testing.assert_array_equal(after[name], weight)
    assert changed == 14


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, {Q: 12 / 6, V: 12 / 3}),
        ({"use_rslora": True}, {Q: 12 / 6**0.5, V: 12 / 3**0.5}),
        ({"alpha_pattern": {"v_proj": 5}}, {Q: 12 / 6, V: 5 / 3}),
        ({"alpha_pattern": {r"^model\.layers\.\d\.self_attn.q_proj": 7.5}}, {Q: 7.5 / 6, V: 12 / 3}),
        ({"alpha_pattern": {"proj": 5}}, {Q: 12 / 6, V: 12 / 3}),  # no name ends so, from a point on
        ({"lora_alpha": 3.5}, {Q: 3.5 / 6, V: 3.5 / 3}),
    ],
)
def test_scales(tmp_path: Path, bases: dict[str, Path], config: dict[str, Any], scales: dict[str, float]) -> None:
    adapters.write(bases["llama"], tmp_path, ranks={"v_proj": 3}, **config)
    found = {update.target.removesuffix(".weight"): update.scale for update in open_adapter(tmp_path).updates}
    assert {module: found[module] for module in scales} == pytest.approx(scales)


def test_several_adapters_under_factors(tmp_path: Path, bases: dict[str, Path]) -> None:
    one = adapters.write(bases["llama"], tmp_path / "one")
    two = adapters.write(bases["llama"], tmp_path / "two", seed=2, rank=3, targets=("q_proj",))
    before = dense(opened(bases["llama"]))[f"{Q}.weight"]
    after = merged(bases["llama"], (tmp_path / "one", 0.5), (tmp_path / "two", -2.0))[f"{Q}.weight"]
    first, second = (wide(a[f"{Q}.lora_B.weight"]) @ wide(a[f"{Q}.lora_A.weight"]) for a in (one, two))
    close(after, before + 0.5 * 12 / 6 * first - 2 * 12 / 3 * second)


def test_dora(tmp_path: Path, bases: dict[str, Path]) -> None:
    """Rows take the adapter's lengths; of two adapters each measures the base under itself alone."""
    one = adapters.write(bases["llama"], tmp_path / "one", targets=("q_proj",), use_dora=True)
    two = adapters.write(bases["llama"], tmp_path / "two", targets=("q_proj",), use_dora=True, seed=2)
    before = wide(dense(opened(bases["llama"]))[f"{Q}.weight"])

    def parts(tensors: Any) -> tuple[Any, Any]:
        update = 2 * wide(tensors[f"{Q}.lora_B.weight"]) @ wide(tensors[f"{Q}.lora_A.weight"])
        factor = wide(tensors[f"{Q}.lora_magnitude_vector"]) / np.linalg.norm(before + update, axis=1)
        return update, factor[:, None]

    (update, factor), (later, factor_later) = parts(one), parts(two)
    close(merged(bases["llama"], (tmp_path / "one", 1.0))[f"{Q}.weight"], factor * (before + update))
    both = merged(bases["llama"], (tmp_path / "one", 1.0), (tmp_path / "two", 1.0))[f"{Q}.weight"]
    close(both, factor_later * (factor * (before + update) + later))


@pytest.mark.parametrize("dora", [False, True])
def test_embeddings_are_updated_turned(tmp_path: Path, bases: dict[str, Path], dora: bool) -> None:
    parts = adapters.write(bases["llama"], tmp_path, targets=("embed_tokens",), use_dora=dora)
    before = wide(dense(opened(bases["llama"]))[EMBEDDING])
    module = EMBEDDING.removesuffix(".weight")
    expected = before + 2 * (wide(parts[f"{module}.lora_embedding_B"]) @ wide(parts[f"{module}.lora_embedding_A"])).T
    if dora:
        expected *= wide(parts[f"{module}.lora_magnitude_vector"]) / np.linalg.norm(expected, axis=0)
    after = merged(bases["llama"], (tmp_path, 1.0))
    close(after[EMBEDDING], expected)


def test_an_embedding_updated_alone_parts_from_the_head(tmp_path: Path, bases: dict[str, Path]) -> None:
    """Qwen2 shares the two; the adapter's forward leaves the head as it was."""
    adapters.write(bases["qwen2"], tmp_path, targets=("embed_tokens",))
    before, after = dense(opened(bases["qwen2"])), merged(bases["qwen2"], (tmp_path, 1.0))
    assert HEAD not in before
    np.testing.assert_array_equal(after[HEAD], before[EMBEDDING])
    assert not np.array_equal(after[EMBEDDING], before[EMBEDDING])


def test_a_shared_head_is_updated_apart(tmp_path: Path, bases: dict[str, Path]) -> None:
    """checkpoints.shapes has no head for this base, so that the adapter is put together here."""
    rng = np.random.default_rng(3)
    vocab, width = dense(opened(bases["qwen2"]))[EMBEDDING].shape
    a, b = ((rng.standard_normal(shape) * 0.1).astype(np.float32) for shape in ((4, width), (vocab, 4)))
    adapters.write(bases["qwen2"], tmp_path, targets=(), whole={"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b})
    before, after = dense(opened(bases["qwen2"])), merged(bases["qwen2"], (tmp_path, 1.0))
    close(after[HEAD], before[EMBEDDING] + 12 / 4 * (wide(b) @ wide(a)))
    np.testing.assert_array_equal(after[EMBEDDING], before[EMBEDDING])


def test_weights_stored_as_inputs_by_outputs(tmp_path: Path, bases: dict[str, Path]) -> None:
    """fan_in_fan_out is of modules that store the transpose; a Linear of the same config does not."""
    parts = adapters.write(bases["llama"], tmp_path, targets=("k_proj",), fan_in_fan_out=True)
    checkpoint = opened(bases["llama"])
    turned = {name: part for name, part in dense(checkpoint).items() if name == f"{K}.weight"}
    folder = tmp_path / "turned"
    folder.mkdir()
    checkpoints.save({name: part.T.copy() for name, part in turned.items()}, folder / "model.safetensors", "float32")
    adapter = open_adapter(tmp_path)
    only = adapter.__class__(adapter.folder, adapter.path, adapter.config, adapter.updates[:1], {}, {})
    update = 2 * wide(parts[f"{K}.lora_B.weight"]) @ wide(parts[f"{K}.lora_A.weight"])
    after = dense(merge(open_checkpoint(folder), [(only, 1.0)])[0])[f"{K}.weight"]
    close(after, (turned[f"{K}.weight"] + update).T)
    close(merged(bases["llama"], (tmp_path, 1.0))[f"{K}.weight"], turned[f"{K}.weight"] + update)


def test_experts_are_updated_one_by_one(tmp_path: Path, bases: dict[str, Path]) -> None:
    """A stack of experts, of which one is updated, is float32 as a whole."""
    module = "model.layers.0.block_sparse_moe.experts.2.w1"
    a, b = np.ones((2, 256), np.float32), np.ones((768, 2), np.float32)
    whole = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    adapters.write(bases["mixtral"], tmp_path / "a", targets=(), whole=whole)
    job = Job(bases["mixtral"], outtype="f32", outfile=tmp_path / "m.gguf", lora=((tmp_path / "a", 1.0),), sync=False)
    run(prepare(job))
    before = dense(opened(bases["mixtral"]))
    with open_gguf(tmp_path / "m.gguf") as gguf:
        found = stored(gguf, "blk.0.ffn_gate_exps.weight").view(np.float32).reshape(4, 768, 256)
    for expert in range(4):
        expected = before[module.replace("2.w1", f"{expert}.w1.weight")]
        close(found[expert], expected + (12 / 2 * 2 if expert == 2 else 0))


def test_trained_tensors_take_the_place_of_the_base(tmp_path: Path, bases: dict[str, Path]) -> None:
    """A vocabulary may have grown; the tokenizer that was trained with it comes along."""
    rng = np.random.default_rng(5)
    rows, width = dense(opened(bases["llama"]))[EMBEDDING].shape
    grown = {name: rng.standard_normal((rows + 3, width)).astype(np.float32) for name in (EMBEDDING, HEAD)}
    adapters.write(bases["llama"], tmp_path / "Chat", whole=grown)
    job = Job(bases["llama"], outdir=tmp_path, lora=((tmp_path / "Chat", 0.5),), outtype="f32", sync=False)
    prepared = prepare(job)
    run(prepared)
    assert prepared.output.path.name == "Base-llama-Chat-F32.gguf"
    with open_gguf(tmp_path / "Base-llama-Chat-F32.gguf") as gguf:
        found = stored(gguf, "output.weight").view(np.float32).reshape(rows + 3, width)
        np.testing.assert_array_equal(found, grown[HEAD])
        assert len(gguf.metadata["tokenizer.ggml.tokens"].data) == rows + 3
        assert gguf.metadata["general.name"].data == "Base Llama Chat"
        assert gguf.metadata["general.finetune"].data == "Chat:0.5"
        assert gguf.metadata["general.base_model.0.name"].data == "Base Llama"


def test_a_base_that_is_read_from_elsewhere(tmp_path: Path, bases: dict[str, Path]) -> None:
    """Only its own files are asked of where it is."""
    adapters.write(bases["llama"], tmp_path / "a")
    asked: list[Path] = []

    def far(paths: Sequence[Path]) -> LocalFiles:
        asked.extend(paths)
        return LocalFiles(paths)

    job = Job(bases["llama"], outfile=tmp_path / "far.gguf", lora=((tmp_path / "a", 1.0),), sync=False, open_files=far)
    run(prepare(job))
    run(prepare(replace(job, outfile=tmp_path / "near.gguf", open_files=LocalFiles)))
    assert set(asked) == {bases["llama"] / "model.safetensors"}
    assert (tmp_path / "far.gguf").read_bytes() == (tmp_path / "near.gguf").read_bytes()


def test_recipes_take_merged_weights(tmp_path: Path, bases: dict[str, Path]) -> None:
    """The merged float32 rows are quantized, in one pass, as from a file that holds them."""
    from ggufsmith.convert.quantized import run as run_quantized
    from ggufsmith.quantize.requantize import Job as QuantJob
    from ggufsmith.quantize.requantize import prepare as prepare_again
    from ggufsmith.quantize.requantize import run as run_again

    adapters.write(bases["llama"], tmp_path / "a", targets=adapters.ALL)
    job = Job(bases["llama"], outfile=tmp_path / "one.gguf", lora=((tmp_path / "a", 1.0),), sync=False)
    run_quantized(prepare_quantized(job, Quantization((recipe_of("q4_K_M"),))))
    run(prepare(replace(job, outtype="f32", outfile=tmp_path / "wide.gguf")))
    again = QuantJob(tmp_path / "wide.gguf", (recipe_of("q4_K_M"),), output=tmp_path / "two.gguf", sync=False)
    run_again(prepare_again(again))
    with open_gguf(tmp_path / "one.gguf") as one, open_gguf(tmp_path / "two.gguf") as two:
        assert list(one.tensors) == list(two.tensors)
        for name in one.tensors:
            np.testing.assert_array_equal(stored(one, name), stored(two, name), err_msg=name)


# -- GGUF adapters ----------------------------------------------------------------------------------------------------


def exported(folder: Path, output: Path, **job: Any) -> dict[str, NDArray[np.float32]]:
    """The tensors of a float32 GGUF adapter, and its alpha under "alpha"."""
    run(prepare(Job(folder, outfile=output, sync=False, **job)))
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
    prepared = prepare(Job(folder))
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
    run(prepare(Job(tmp_path, outfile=tmp_path / "a.gguf", sync=False)))
    with open_gguf(tmp_path / "a.gguf") as gguf:
        assert list(gguf.metadata["adapter.alora.invocation_tokens"].data) == [5, 7]


def test_no_path_of_the_training_machine_is_written(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapters.write(bases["llama"], tmp_path)
    card = f"---\nbase_model: {bases['llama']}\ntags:\n- base_model:adapter:{bases['llama']}\n- lora\n---\n"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    run(prepare(Job(tmp_path, outfile=tmp_path / "a.gguf", sync=False)))
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
    prepared = prepare(Job(tmp_path / "a"))
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
    with pytest.raises(Usage, match="no factor"):
        parse_adapter(text)


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(base: Path, adapter: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        prepare(Job(base, lora=((adapter, 1.0),)))
    return caught.value


def test_an_adapter_of_another_base(tmp_path: Path, bases: dict[str, Path]) -> None:
    other = checkpoints.write("llama", tmp_path / "Other", hidden_size=128, num_hidden_layers=3)
    adapters.write(other, tmp_path / "a", targets=("q_proj",))
    failure = refused(bases["llama"], tmp_path / "a")
    assert isinstance(failure, Malformed)
    text = str(failure)
    assert "does not fit the base Base-llama" in text
    assert f"{Q}.weight: an update of [128, 128] in the adapter, [256, 256] in the base" in text
    assert "layers.2.self_attn.q_proj.weight: an update of [128, 128] in the adapter, nothing in the base" in text
    assert "Other" in (failure.fix or "")
    with pytest.raises(Malformed, match=r"\[128, 128\], but the config says \[256, 256\]"):
        prepare(Job(tmp_path / "a", base=bases["llama"]))


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"peft_type": "LOKR"}, Unsupported, "'LOKR' is not supported; LORA is"),
        ({"peft_type": None}, Unsupported, "None is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, Unsupported, "weights were changed with it"),
        ({"layer_replication": [[0, 2]]}, Unsupported, "layers of the base are repeated"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, Unsupported, "fused experts"),
        ({"trainable_token_indices": [3]}, Unsupported, "single rows"),
        ({"lora_bias": True}, Unsupported, "biases"),
        ({"alora_invocation_tokens": [3]}, Unsupported, "cannot be merged"),
        ({"lora_alpha": "16"}, Malformed, "lora_alpha must be a number"),
        ({"alpha_pattern": {"(a": 1}}, Malformed, "no regular expression"),
        ({"alpha_pattern": {"(a+)+(b+)+": 1}}, Unsupported, "too intricate"),
    ],
)
def test_other_methods_and_variants_are_named(
    tmp_path: Path, bases: dict[str, Path], config: dict[str, Any], kind: type[Failure], message: str
) -> None:
    adapters.write(bases["llama"], tmp_path, **config)
    failure = refused(bases["llama"], tmp_path)
    assert isinstance(failure, kind)
    assert message in failure.what


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (f"{Q}.lora_A.weight", np.zeros((5, 256)), "do not fit together"),
        (f"{Q}.lora_A.weight", np.zeros((0, 256)), "do not fit together"),
        (f"{Q}.lora_magnitude_vector", np.zeros(7), "7] lengths for 256"),
        (f"{Q}.lora_B.bias", np.zeros(256), "no part of a LoRA"),
        (f"{Q}.lora_E.weight", np.zeros(256), "no part of a LoRA"),
        (f"{Q}.lora_A.default.weight", np.zeros((6, 256)), "lora_A.weight are the same"),
        ("model.layers.9.self_attn.q_proj.lora_A.weight", np.zeros((6, 256)), "has no lora_B"),
        ("model.nothing.weight", np.zeros((6, 256)), "model.nothing.weight: no GGUF tensor for it"),
        ("score.weight", np.zeros((2, 256)), "score.weight: no GGUF tensor for it"),
        (f"{V}.weight", np.zeros((2, 256)), "trained as [2, 256], [128, 256] in the base"),
    ],
)
def test_tensors_that_do_not_belong(
    tmp_path: Path, bases: dict[str, Path], name: str, array: NDArray[Any], message: str
) -> None:
    parts = adapters.write(bases["llama"], tmp_path, targets=("q_proj",))
    adapters.write(bases["llama"], tmp_path, targets=(), whole={**parts, name: array.astype(np.float32)})
    assert message in str(refused(bases["llama"], tmp_path))


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_nan_in_an_adapter_is_named_and_nothing_is_written(tmp_path: Path, bases: dict[str, Path], part: str) -> None:
    parts = adapters.write(bases["llama"], tmp_path / "a", targets=("q_proj",))
    parts[f"{Q}.{part}.weight"][1, 1] = np.nan
    adapters.write(bases["llama"], tmp_path / "a", targets=(), whole=parts)
    for job in (
        Job(bases["llama"], outdir=tmp_path / "out", lora=((tmp_path / "a", 1.0),), sync=False),
        Job(tmp_path / "a", outdir=tmp_path / "out", sync=False),
    ):
        with pytest.raises(Malformed, match=r"NaN"):
            run(prepare(job))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_dora_without_its_lengths(tmp_path: Path, bases: dict[str, Path]) -> None:
    parts = adapters.write(bases["llama"], tmp_path, targets=("q_proj",))
    adapters.write(bases["llama"], tmp_path, targets=(), whole=parts, use_dora=True)
    assert "has no lora_magnitude_vector" in str(refused(bases["llama"], tmp_path))


def test_a_trained_head_that_llama_cpp_would_not_read(tmp_path: Path, bases: dict[str, Path]) -> None:
    """Gemma 2 always takes the embedding: the change would be lost."""
    head = np.zeros_like(dense(opened(bases["gemma2"]))[EMBEDDING])
    adapters.write(bases["gemma2"], tmp_path, whole={HEAD: head})
    assert "changes lm_head.weight, which gemma2 in llama.cpp does not have" in str(refused(bases["gemma2"], tmp_path))


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_alpha": 0}])
def test_what_a_gguf_adapter_cannot_hold(tmp_path: Path, bases: dict[str, Path], config: dict[str, Any]) -> None:
    adapters.write(bases["llama"], tmp_path, **config)
    with pytest.raises(Unsupported):
        prepare(Job(tmp_path))


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_gguf_adapter_of_shared_embeddings(tmp_path: Path, bases: dict[str, Path], target: str) -> None:
    """llama.cpp aborts where it meets one for both, and does not find the head."""
    a, b = np.ones((4, 256), np.float32), np.ones((604, 4), np.float32)
    whole = {} if target == "embed_tokens" else {"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b}
    adapters.write(bases["qwen2"], tmp_path, targets=(target,), whole=whole)
    with pytest.raises(Unsupported, match="--lora"):
        prepare(Job(tmp_path))


def test_trained_tensors_in_a_gguf_adapter(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapters.write(bases["llama"], tmp_path, whole={HEAD: np.zeros((904, 256), np.float32)})
    with pytest.raises(Unsupported, match=r"trained whole(.|\n)*--lora"):
        prepare(Job(tmp_path))


def test_folders_that_are_no_adapter(tmp_path: Path, bases: dict[str, Path]) -> None:
    assert "no adapter_config.json" in str(refused(bases["llama"], bases["llama"]))
    assert "no such folder" in str(refused(bases["llama"], tmp_path / "nowhere"))
    adapters.write(bases["llama"], tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in str(refused(bases["llama"], tmp_path))


def test_two_adapters_that_trained_the_same_tensor(tmp_path: Path, bases: dict[str, Path]) -> None:
    for name in "ab":
        adapters.write(bases["llama"], tmp_path / name, whole={HEAD: np.zeros((904, 256), np.float32)})
    with pytest.raises(Usage, match="trained lm_head"):
        prepare(Job(bases["llama"], lora=((tmp_path / "a", 1.0), (tmp_path / "b", 1.0))))


def test_options_that_an_adapter_alone_has_no_use_for(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapters.write(bases["llama"], tmp_path)
    for job in (Job(tmp_path, vocab_only=True), Job(tmp_path, lora=((tmp_path, 1.0),))):
        with pytest.raises(Usage, match="holds an adapter"):
            prepare(job)
    with pytest.raises(Usage, match="not quantized"):
        prepare_quantized(Job(tmp_path), Quantization((recipe_of("q4_K_M"),)))
    with pytest.raises(Usage, match="vocabulary only"):
        prepare(Job(bases["llama"], vocab_only=True, lora=((tmp_path, 1.0),)))


def test_a_link_out_of_the_adapter_is_not_followed(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapters.write(bases["llama"], tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    try:
        weights.symlink_to(tmp_path / "elsewhere.safetensors")
    except OSError:
        pytest.skip("symbolic links cannot be made here")
    assert "outside the model folder" in str(refused(bases["llama"], tmp_path / "a"))


def test_a_config_that_is_no_object(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapters.write(bases["llama"], tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps([1]), encoding="utf-8")
    assert "JSON object" in str(refused(bases["llama"], tmp_path))


def test_any_damage_is_a_clear_error_or_harmless(tmp_path: Path, bases: dict[str, Path]) -> None:
    """Settings of other types; tensors renamed, missing, of other shapes."""
    rng = np.random.default_rng(9)
    odd: tuple[Any, ...] = (
        None,
        -1,
        0,
        1 << 70,
        1e400,
        True,
        "4",
        [],
        [0],
        {},
        {"a": 1},
        {"a": None},
        {"*": 1},
        "../x",
    )
    whole = adapters.write(bases["llama"], tmp_path / "whole", targets=("q_proj", "embed_tokens"), use_dora=True)
    keys = [*json.loads((tmp_path / "whole" / "adapter_config.json").read_text(encoding="utf-8")), "alpha_pattern"]
    keys += [
        "fan_in_fan_out",
        "use_rslora",
        "init_lora_weights",
        "revision",
        "alora_invocation_tokens",
        "modules_to_save",
    ]
    stopped = 0
    for turn in range(120):
        parts, config = dict(whole), {"use_dora": True}
        if turn % 2:
            config[str(rng.choice(keys))] = odd[int(rng.integers(len(odd)))]
        else:
            victim = str(rng.choice(list(parts)))
            array = parts.pop(victim)
            shape = tuple(max(int(n + rng.integers(-1, 2)), 0) for n in array.shape[: rng.integers(0, 3)])
            parts[victim[: int(rng.integers(1, len(victim) + 1))]] = np.zeros(shape, np.float32)
        named = {"named": config.pop("base_model_name_or_path")} if "base_model_name_or_path" in config else {}
        adapters.write(bases["llama"], tmp_path / "a", targets=(), whole=parts, **named, **config)
        for job in (Job(bases["llama"], lora=((tmp_path / "a", 1.0),)), Job(tmp_path / "a")):
            try:
                prepare(job)
            except Failure:
                stopped += 1
    assert stopped > 100
