"""Adapters that stop a conversion: of another base, of other methods, damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import adapters
import checkpoints
from ggufsmith.container.errors import Failure, Malformed, Unsupported, Usage
from merging import EMBEDDING, HEAD, Q, V, dense, opened
from requesting import plan, request, run

TOKENS = "model.embed_tokens.token_adapter"


def refused(base: Path, adapter: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        plan(request(base, lora=((adapter, 1.0),)))
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
        plan(request(tmp_path / "a", base=bases["llama"]))


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"peft_type": "LOKR"}, Unsupported, "'LOKR' is not supported; only LORA is"),
        ({"peft_type": None}, Unsupported, "None is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, Unsupported, "weights were changed with it"),
        ({"layer_replication": [[0, 2]]}, Unsupported, "layers of the base are repeated"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, Unsupported, "fused experts"),
        ({"trainable_token_indices": [3]}, Malformed, "holds no trained rows"),
        ({"lora_bias": True}, Malformed, "has no lora_B.bias"),
        ({"alora_invocation_tokens": [3]}, Unsupported, "cannot be merged"),
        ({"lora_alpha": "16"}, Malformed, "lora_alpha must be a number"),
        ({"alpha_pattern": {"(a": 1}}, Malformed, "not a valid regular expression"),
        ({"alpha_pattern": {"(a+)+(b+)+": 1}}, Unsupported, "too complex"),
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
        (f"{Q}.lora_A.bias", np.zeros(6), "not belong to any known kind of LoRA"),
        (f"{Q}.lora_B.bias", np.zeros(255), "a bias of [255] for 256 rows"),
        (f"{Q}.lora_B.bias", np.zeros(256), "lora_bias adds [256] to it, nothing in the base"),
        (f"{TOKENS}.trainable_tokens_delta", np.zeros((2, 256)), "does not say which rows"),
        (f"{Q}.lora_E.weight", np.zeros(256), "not belong to any known kind of LoRA"),
        (f"{Q}.lora_A.default.weight", np.zeros((6, 256)), "lora_A.weight are the same"),
        ("model.layers.9.self_attn.q_proj.lora_A.weight", np.zeros((6, 256)), "has no lora_B"),
        ("model.nothing.weight", np.zeros((6, 256)), "model.nothing.weight: there is no GGUF tensor for it"),
        ("score.weight", np.zeros((2, 256)), "score.weight: there is no GGUF tensor for it"),
        (f"{V}.weight", np.zeros((2, 256)), "trained as [2, 256], [128, 256] in the base"),
    ],
)
def test_tensors_that_do_not_belong(
    tmp_path: Path, bases: dict[str, Path], name: str, array: NDArray[Any], message: str
) -> None:
    parts = adapters.write(bases["llama"], tmp_path, targets=("q_proj",))
    adapters.write(bases["llama"], tmp_path, targets=(), whole={**parts, name: array.astype(np.float32)})
    assert message in str(refused(bases["llama"], tmp_path))


@pytest.mark.parametrize("stated", [[1], [1, 1], [1, -1], [1, 904], [1, True], {"x": [1, 2], "y": [1, 2]}, "12", None])
def test_single_rows_that_nothing_names(tmp_path: Path, bases: dict[str, Path], stated: object) -> None:
    whole = {f"{TOKENS}.trainable_tokens_delta": np.zeros((2, 256), np.float32)}
    adapters.write(bases["llama"], tmp_path, whole=whole, trainable_token_indices=stated)
    message = "rows up to 904 of 256, [904, 256] in the base" if stated == [1, 904] else ""
    failure = refused(bases["llama"], tmp_path)
    assert isinstance(failure, Malformed)
    assert message in str(failure)


def test_what_a_gguf_adapter_has_no_place_for(tmp_path: Path, bases: dict[str, Path]) -> None:
    rows = {f"{TOKENS}.trainable_tokens_delta": np.zeros((2, 256), np.float32)}
    adapters.write(bases["llama"], tmp_path / "rows", whole=rows, trainable_token_indices=[1, 2])
    adapters.write(bases["llama"], tmp_path / "bias", whole={f"{Q}.lora_B.bias": np.zeros(256, np.float32)})
    for name, what in (("rows", "single trained rows"), ("bias", "an update with a bias")):
        with pytest.raises(Unsupported, match=rf"cannot hold {what}(.|\n)*--lora"):
            plan(request(tmp_path / name, outdir=tmp_path / "out"))


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_nan_in_an_adapter_is_named_and_nothing_is_written(tmp_path: Path, bases: dict[str, Path], part: str) -> None:
    parts = adapters.write(bases["llama"], tmp_path / "a", targets=("q_proj",))
    parts[f"{Q}.{part}.weight"][1, 1] = np.nan
    adapters.write(bases["llama"], tmp_path / "a", targets=(), whole=parts)
    for asked in (
        request(bases["llama"], outdir=tmp_path / "out", lora=((tmp_path / "a", 1.0),)),
        request(tmp_path / "a", outdir=tmp_path / "out"),
    ):
        with pytest.raises(Malformed, match=r"NaN"):
            run(asked)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_dora_without_its_lengths(tmp_path: Path, bases: dict[str, Path]) -> None:
    parts = adapters.write(bases["llama"], tmp_path, targets=("q_proj",))
    adapters.write(bases["llama"], tmp_path, targets=(), whole=parts, use_dora=True)
    assert "has no lora_magnitude_vector" in str(refused(bases["llama"], tmp_path))


def test_a_trained_head_that_llama_cpp_would_not_read(tmp_path: Path, bases: dict[str, Path]) -> None:
    """Gemma 2 always takes the embedding: the change would be lost."""
    head = np.zeros_like(dense(opened(bases["gemma2"]))[EMBEDDING])
    adapters.write(bases["gemma2"], tmp_path, whole={HEAD: head})
    assert "llama.cpp reads one tensor for both in gemma2" in str(refused(bases["gemma2"], tmp_path))


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_alpha": 0}])
def test_what_a_gguf_adapter_cannot_hold(tmp_path: Path, bases: dict[str, Path], config: dict[str, Any]) -> None:
    adapters.write(bases["llama"], tmp_path, **config)
    with pytest.raises(Unsupported):
        plan(request(tmp_path))


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_gguf_adapter_of_shared_embeddings(tmp_path: Path, bases: dict[str, Path], target: str) -> None:
    """llama.cpp aborts where it meets one for both, and does not find the head."""
    a, b = np.ones((4, 256), np.float32), np.ones((604, 4), np.float32)
    whole = {} if target == "embed_tokens" else {"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b}
    adapters.write(bases["qwen2"], tmp_path, targets=(target,), whole=whole)
    with pytest.raises(Unsupported, match="--lora"):
        plan(request(tmp_path))


def test_trained_tensors_in_a_gguf_adapter(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapters.write(bases["llama"], tmp_path, whole={HEAD: np.zeros((904, 256), np.float32)})
    with pytest.raises(Unsupported, match=r"trained whole(.|\n)*--lora"):
        plan(request(tmp_path))


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
        plan(request(bases["llama"], lora=((tmp_path / "a", 1.0), (tmp_path / "b", 1.0))))


def test_options_that_an_adapter_alone_has_no_use_for(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapters.write(bases["llama"], tmp_path)
    for asked in (request(tmp_path, vocab_only=True), request(tmp_path, lora=((tmp_path, 1.0),))):
        with pytest.raises(Usage, match="holds an adapter"):
            plan(asked)
    with pytest.raises(Usage, match="cannot be quantized"):
        plan(request(tmp_path, "q4_K_M"))
    with pytest.raises(Usage, match="only the vocabulary"):
        plan(request(bases["llama"], vocab_only=True, lora=((tmp_path, 1.0),)))


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
    assert "expected an object" in str(refused(bases["llama"], tmp_path))


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
        for asked in (request(bases["llama"], lora=((tmp_path / "a", 1.0),)), request(tmp_path / "a")):
            try:
                plan(asked)
            except Failure:
                stopped += 1
    assert stopped > 100
