"""LoRA adapters merged into a base: against float64."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapters
import checkpoints
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.lora.merge import merge
from ggufsmith.convert.lora.peft import open_adapter
from ggufsmith.convert.stored import LocalFiles
from merging import EMBEDDING, HEAD, K, Q, V, close, dense, merged, opened, stored, wide
from requesting import plan, request, run


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
    only = replace(adapter, updates=adapter.updates[:1])
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
    run(request(bases["mixtral"], outtype="f32", outfile=tmp_path / "m.gguf", lora=((tmp_path / "a", 1.0),)))
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
    prepared = plan(request(bases["llama"], outdir=tmp_path, lora=((tmp_path / "Chat", 0.5),), outtype="f32"))
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

    for name, open_files in (("far", far), ("near", LocalFiles)):
        merging = request(bases["llama"], outfile=tmp_path / f"{name}.gguf", lora=((tmp_path / "a", 1.0),))
        run(merging, open_files=open_files)
    assert set(asked) == {bases["llama"] / "model.safetensors"}
    assert (tmp_path / "far.gguf").read_bytes() == (tmp_path / "near.gguf").read_bytes()


def test_recipes_take_merged_weights(tmp_path: Path, bases: dict[str, Path]) -> None:
    """The merged float32 rows are quantized, in one pass, as from a file that holds them."""

    adapters.write(bases["llama"], tmp_path / "a", targets=adapters.ALL)
    lora = ((tmp_path / "a", 1.0),)
    run(request(bases["llama"], "q4_K_M", outfile=tmp_path / "one.gguf", lora=lora))
    run(request(bases["llama"], outtype="f32", outfile=tmp_path / "wide.gguf", lora=lora))
    run(request(tmp_path / "wide.gguf", "q4_K_M", outfile=tmp_path / "two.gguf"))
    with open_gguf(tmp_path / "one.gguf") as one, open_gguf(tmp_path / "two.gguf") as two:
        assert list(one.tensors) == list(two.tensors)
        for name in one.tensors:
            np.testing.assert_array_equal(stored(one, name), stored(two, name), err_msg=name)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("stated", [[70, 3], {"embed_tokens": [70, 3]}])
def test_single_rows_of_an_embedding(tmp_path: Path, bases: dict[str, Path], stated: object, kind: str) -> None:
    """They take the place of the base's, whatever the factor; weights that the head shares stay shared."""
    rows = np.random.default_rng(4).standard_normal((2, 256)).astype(np.float32)
    whole = {"model.embed_tokens.token_adapter.trainable_tokens_delta": rows}
    adapters.write(bases[kind], tmp_path, targets=("q_proj",), whole=whole, trainable_token_indices=stated)
    plain, found = merged(bases[kind]), merged(bases[kind], (tmp_path, 0.5))
    assert set(found) == set(plain)
    plain[EMBEDDING][[70, 3]] = rows
    np.testing.assert_array_equal(found[EMBEDDING], plain[EMBEDDING])


def test_biases_of_updates(tmp_path: Path, bases: dict[str, Path]) -> None:
    bias = np.arange(256, dtype=np.float32)
    adapters.write(bases["qwen2"], tmp_path, targets=("q_proj",), whole={f"{Q}.lora_B.bias": bias}, rank=6)
    plain, found = merged(bases["qwen2"]), merged(bases["qwen2"], (tmp_path, 1.0))  # alpha / rank is 2
    np.testing.assert_array_equal(found[f"{Q}.bias"], plain[f"{Q}.bias"] + 2 * bias)
