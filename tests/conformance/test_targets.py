"""Draft models whose files need the folder of a larger model: our conversion against that of llama.cpp's converter.

What llama.cpp computes with both files is compared with a class of transformers, and of EAGLE-3, which has none, with
its method as it is published, in torch.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import drafting
import numpy as np
import pytest
import quantizer
import tokenizer_oracles as oracles
from numpy.typing import NDArray
from test_convert import PRE, ours, tensors
from test_zoo import same

import reference
import targeted
from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.reader import open_gguf
from ggufsmith.evaluate.variants import opened_model
from ggufsmith.fitting import fitting_of
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import SourceOptions
from ggufsmith.progress import Display
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
from ggufsmith.verifying import verified
from requesting import open_pass, request, run

pytestmark = pytest.mark.conformance

TEXT = 12  # tokens
STEPS = 3
VOCABULARY = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def error(found: NDArray[Any], expected: Any) -> float:
    expected = np.asarray(expected)
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


def folders(name: str, place: Path, **options: Any) -> tuple[Path, Path, Any, Any]:
    """The folders of the draft and of the larger model, and the models: the larger one, and the draft."""
    draft, target = place / "Tiny-Fixture", place / "Target"
    draft.mkdir()
    target.mkdir()
    return draft, target, *targeted.write(name, draft, target, **options)


def theirs(name: str, draft: Path, target: Path, path: Path, outtype: str) -> Path:
    """The converter's file."""
    line = targeted.TARGETS[targeted.LINES[name].target]
    if line.generic:  # it is told to read any vocabulary, and does so in the draft's folder
        for file in VOCABULARY:
            if (target / file).is_file():
                shutil.copy(target / file, draft / file)
    options = {"pre": PRE.get(line.vocabulary, ""), "raw": True, "generic": line.generic}
    return reference.convert(draft, path, "--outtype", outtype, "--target-model-dir", os.fspath(target), **options)


def made(draft: Path, target: Path, path: Path) -> Path:
    run(request(draft, outtype="f32", outfile=path, target=target))
    return path


@pytest.mark.parametrize("name", targeted.LINES)
def test_tensors_and_keys(name: str, tmp_path: Path) -> None:
    line = targeted.LINES[name]
    draft, target, *_ = folders(name, tmp_path)
    with open_pass(request(draft, target=target)) as planned:
        assert not [note for note in planned.notes if note.startswith("these keys of config.json")]
        assert [note for note in planned.notes if " -m MODEL.gguf -md Tiny-Fixture-F16.gguf --spec-type draft-" in note]
    mine = open_gguf(made(draft, target, tmp_path / "ours.gguf"))
    other = open_gguf(theirs(name, draft, target, tmp_path / "theirs.gguf", "f32"))
    a, b = tensors(mine), tensors(other)
    assert a.keys() == b.keys()
    assert not [each for each in a if not same(each, a[each], b[each])], "tensors that differ"
    generic = targeted.TARGETS[line.target].generic
    ids = {key for key in mine.metadata.keys() | other.metadata.keys() if generic and "tokenizer." in key}
    assert not oracles.unlike(mine.path, mine.metadata, other.metadata, ids | line.differs.keys())


@pytest.mark.parametrize("name", ["eagle3", "dflash"])
def test_it_is_what_its_source_gives(name: str, tmp_path: Path) -> None:
    draft, target, *_ = folders(name, tmp_path)
    file = made(draft, target, tmp_path / "draft.gguf")
    found = verified(file, str(draft), SourceOptions(target=target), Display())
    assert not found["problems"] and found["source"]
    assert fitting_of(str(draft), "1GiB", SourceOptions(target=target), Display()).recipes


@pytest.mark.parametrize("name", ["eagle3", "eagle3-speculator", "dflash2", "dspark"])
@pytest.mark.parametrize("recipe", ["q8_0", "q4_K_M"])
def test_quantized_in_one_step_as_by_the_converter_and_the_quantizer(name: str, recipe: str, tmp_path: Path) -> None:
    draft, target, *_ = folders(name, tmp_path, wide=True, dtype="bfloat16")
    run(request(draft, recipe, outfile=tmp_path / "ours.gguf", target=target))
    middle = theirs(name, draft, target, tmp_path / "middle.gguf", "bf16")
    quantizer.quantize(middle, tmp_path / "theirs.gguf", quantizer.Settings(FILE_TYPES[recipe.upper()].number or 0))
    a, b = tensors(open_gguf(tmp_path / "ours.gguf")), tensors(open_gguf(tmp_path / "theirs.gguf"))
    assert a.keys() == b.keys()
    unequal = [each for each in a if not same(each, a[each], b[each])]
    assert not [(each, a[each][:2], b[each][:2]) for each in unequal], "tensors that differ"


@pytest.mark.parametrize("name", [name for name in targeted.LINES if name.startswith("eagle3")])
def test_eagle3(name: str, tmp_path: Path) -> None:
    """Fused states of the larger model, logits after every token, and further steps from its own states."""
    import torch

    draft, target, larger, weights = folders(name, tmp_path)
    whole, file = ours(target, tmp_path / "target.gguf", "f32").path, made(draft, target, tmp_path / "draft.gguf")
    layers = open_gguf(file).metadata["eagle3.target_layers"].data.tolist()
    method = Eagle3(targeted.LINES[name].config, weights, larger)
    ids = np.random.default_rng(5).integers(3, 300, TEXT + 1).tolist()
    with torch.no_grad():
        states = larger(torch.tensor([ids[:TEXT]]), output_hidden_states=True).hidden_states
    features = torch.cat([states[layer][0] for layer in layers], -1)
    fused = method.fuse(features)
    with drafting.opened(whole) as (_, target_context), drafting.opened(file, target_context) as (_, context):
        drafting.keep_inputs(target_context, layers)
        drafting.keep_states(context, masked=True)
        drafting.decode(target_context, ids[:TEXT])
        found = drafting.inputs_of(target_context, layers, TEXT, larger.config.hidden_size)
        errors = [error(found, features)]
        drafting.decode(context, [], 0, found, encode=True)
        width, size = fused.shape[-1], larger.config.vocab_size
        g = [drafting.states_of(context, row, width) for row in range(TEXT)]
        errors.append(error(np.array(g), fused))
        # the token that follows, beside the state that it follows
        drafting.decode(context, ids[1:], 0, g)
        tokens, hidden = ids[1:], fused
        expected, last = method.step(tokens, hidden)
        logits = np.array([drafting.logits_of(context, row, size) for row in range(TEXT)])
        kept = np.isfinite(expected.numpy())
        assert np.array_equal(np.isfinite(logits), kept)
        errors.append(error(logits[kept], expected.numpy()[kept]))
        state = drafting.states_of(context, TEXT - 1, width)
        for step in range(STEPS):
            errors.append(error(state, last[-1]))
            tokens, hidden = [*tokens, int(expected[-1].argmax())], torch.cat([hidden, last[-1:]])
            expected, last = method.step(tokens, hidden)
            drafting.decode(context, tokens[-1:], TEXT + step, [state])
            state, logits = drafting.states_of(context, 0, width), drafting.logits_of(context, 0, size)
            errors.append(error(logits[kept[0]], expected[-1].numpy()[kept[0]]))
    print(name, errors)
    assert max(errors) < 1e-9


class Eagle3:
    """The method of arXiv:2503.01840, section 3.1, in float32: one block over the states so far."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Any], larger: Any) -> None:
        import torch
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        self.config = {**config, **config.get("transformer_layer_config", {})}
        self.weights = {name.removeprefix("midlayer.").removeprefix("layers.0."): w for name, w in weights.items()}
        own = self.weights.get("embed_tokens.weight")
        self.embedding = larger.get_input_embeddings().weight.detach() if own is None else own
        known = ("hidden_size", "num_attention_heads", "head_dim", "rope_theta", "rope_scaling")
        settings = LlamaConfig(**{key: self.config[key] for key in known if key in self.config})
        self.rotary = LlamaRotaryEmbedding(settings)
        self.size = len(self.embedding)
        self.torch = torch

    def norm(self, x: Any, name: str) -> Any:
        return self.torch.nn.functional.rms_norm(x, x.shape[-1:], self.weights[name], self.config["rms_norm_eps"])

    def fuse(self, features: Any) -> Any:
        if self.config.get("norm_before_fc"):
            features = self.norm(features, "input_norm.weight")
        return features @ self.weights["fc.weight"].T

    def step(self, tokens: list[int], states: Any) -> tuple[Any, Any]:
        """Logits of every token, and the states that further steps begin with."""
        torch, w = self.torch, self.weights
        embedded = self.norm(self.embedding[tokens], "input_layernorm.weight")
        normed = self.norm(states, "hidden_norm.weight")
        x = torch.cat([embedded, normed], -1)
        head = self.config.get("head_dim", self.config["hidden_size"] // self.config["num_attention_heads"])
        q, k, v = ((x @ w[f"self_attn.{p}_proj.weight"].T).view(len(tokens), -1, head).transpose(0, 1) for p in "qkv")
        cos, sin = self.rotary(x, torch.arange(len(tokens))[None])
        q, k = (each * cos + torch.cat((-each[..., head // 2 :], each[..., : head // 2]), -1) * sin for each in (q, k))
        repeated = len(q) // len(k)
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, k.repeat_interleave(repeated, 0), v.repeat_interleave(repeated, 0), is_causal=True
        )
        x = attended.transpose(0, 1).reshape(len(tokens), -1) @ w["self_attn.o_proj.weight"].T
        x = x + (normed if self.config.get("norm_before_residual") else states)
        inner = self.norm(x, "post_attention_layernorm.weight")
        gated = torch.nn.functional.silu(inner @ w["mlp.gate_proj.weight"].T) * (inner @ w["mlp.up_proj.weight"].T)
        x = x + gated @ w["mlp.down_proj.weight"].T
        logits = self.norm(x, "norm.weight") @ w["lm_head.weight"].T
        if "d2t" in w:
            all_logits = torch.full((len(tokens), self.size), -torch.inf)
            all_logits[:, torch.arange(len(w["d2t"])) + w["d2t"]] = logits
            logits = all_logits
        return logits, x


@pytest.mark.parametrize("name", [name for name, line in targeted.LINES.items() if line.dflash])
def test_dflash(name: str, tmp_path: Path) -> None:
    """A block of the last token and masks, beside the fused states of the larger model; twice, as in use."""
    import torch

    line = targeted.LINES[name]
    draft, target, larger, model = folders(name, tmp_path)
    whole, file = ours(target, tmp_path / "target.gguf", "f32").path, made(draft, target, tmp_path / "draft.gguf")
    keys = open_gguf(file).metadata
    layers, block = keys["dflash.target_layers"].data.tolist(), int(keys["dflash.block_size"].data)
    mask = int(keys["tokenizer.ggml.mask_token_id"].data)
    text, head = larger.config.get_text_config(), larger.get_output_embeddings().weight
    ids = np.random.default_rng(5).integers(8, 300, TEXT + 1).tolist()
    errors = []
    with drafting.opened(whole) as (_, target_context), drafting.opened(file, target_context) as (_, context):
        drafting.keep_inputs(target_context, layers)
        drafting.attend_both_ways(context)
        drafting.keep_states(context, masked=True)
        for first, after in ((0, TEXT - 4), (TEXT - 4, TEXT)):
            drafting.decode(target_context, ids[first:after], first)
            found = drafting.inputs_of(target_context, layers, after - first, text.hidden_size)
            drafting.decode(context, [], first, found)
            noise = [ids[after], *[mask] * (block - 1)]
            drafting.decode(context, noise, after)
            logits = np.array([drafting.logits_of(context, row, text.vocab_size) for row in range(block)])
            found_judged = np.array(
                [drafting.states_of(context, row, 1)[0] for row in range(block)] if line.judges else []
            )
            drafting.forget(context, after)
            with torch.no_grad():
                states = larger(input_ids=torch.tensor([ids[:after]]), output_hidden_states=True).hidden_states
                features = torch.cat([states[layer] for layer in layers], -1)
                errors.append(error(found, features[0, first:]))
                table = larger.get_input_embeddings().weight  # Muse Glimmer's own norm is not for drafts
                embedded = torch.nn.functional.embedding(torch.tensor([noise]), table)
                hidden = model(noise_embeds=embedded, context_hidden_states=features).last_hidden_state[0]
                expected, judged = guessed(line, draft, hidden, head, ids[after])
            kept = np.isfinite(expected.numpy())
            assert np.array_equal(np.isfinite(logits), kept) and logits[kept].std() > 0
            errors += [] if line.loads else [error(logits[kept], expected.numpy()[kept])]
            if judged is not None:
                errors.append(error(np.array(found_judged), judged))
    print(name, errors)
    assert max(errors) < 1e-9


def guessed(line: targeted.Targeted, draft: Path, hidden: Any, head: Any, anchor: int) -> tuple[Any, Any]:
    """Logits of a block, and how each guess is judged, if it is. DSpark corrects them by the guess before each."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(draft / "model.safetensors")
    if "markov_head.markov_w1.weight" not in weights:
        return hidden @ head.T, None
    first, second = (weights[f"markov_head.markov_{each}.weight"] for each in ("w1", "w2"))
    logits = hidden @ (weights["lm_head.weight"] if line.guesses else head).T
    places = torch.arange(len(second)) + weights.get("d2t", 0)
    whole, judged, before = torch.full((len(hidden), len(first)), -torch.inf), [], anchor
    anchored = "aux_hidden_state_layer_ids" not in line.config  # else the first place is no guess
    for row in range(len(hidden)):
        corrected = logits[row] + (second @ first[before] if row or anchored else 0)
        whole[row, places] = corrected
        if line.judges:
            both = torch.cat([hidden[row], first[before]])
            judge = weights["confidence_head.proj.weight"][0] @ both + weights["confidence_head.proj.bias"]
            judged.append(torch.sigmoid(judge))
        before = int(whole[row].argmax()) if row or anchored else anchor
    return whole, torch.cat(judged) if judged else None


def planned(draft: Path, **options: Any) -> Pass:
    with open_pass(request(draft, **options)) as found:
        return found


def test_a_larger_model_that_the_draft_was_not_trained_for(tmp_path: Path) -> None:
    draft, target, *_ = folders("dflash", tmp_path)
    written = json.loads((target / "config.json").read_text(encoding="utf-8"))
    planned(draft, target=target)
    for changes, said in (
        ({"num_hidden_layers": 9}, "num_target_layers 8, but num_hidden_layers of the larger model is 9"),
        ({"architectures": ["BertModel"]}, "not a model that writes with attention"),
        ({"architectures": ["T5EncoderModel"]}, "not a model that writes with attention"),
        ({"architectures": ["MambaForCausalLM"]}, "not a model that writes with attention"),
    ):
        (target / "config.json").write_text(json.dumps({**written, **changes}), encoding="utf-8")
        with pytest.raises(Usage, match=said):
            planned(draft, target=target)


def test_the_vocabulary_and_the_hidden_states_fit_the_draft(tmp_path: Path) -> None:
    draft, target, *_ = folders("eagle3-speculator", tmp_path)
    for key, value, said in (
        ("vocab_size", 1 << 16, "tokens, but the larger model has 65536"),
        ("hidden_size", 256, "target_hidden_size 128, but hidden_size of the larger model is 256"),
    ):
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        other = tmp_path / key
        shutil.copytree(target, other)
        (other / "config.json").write_text(json.dumps({**config, key: value}), encoding="utf-8")
        with pytest.raises(Usage, match=said):
            planned(draft, target=other)


def test_t2d_says_what_d2t_says(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    draft, target, *_ = folders("eagle3", tmp_path)
    weights = load_file(draft / "model.safetensors")
    weights["t2d"] = np.roll(weights["t2d"], 1)
    save_file(weights, draft / "model.safetensors", {"format": "pt"})
    with pytest.raises(Malformed, match="t2d names other tokens"):
        planned(draft, target=target)


def test_what_is_not_the_folder_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    for name in ("nope", "", os.devnull, "file.gguf", "Qwen/Qwen3-8B"):
        with pytest.raises(Usage, match=r"no such folder|not the folder of a model"):
            planned(tmp_path, target=Path(name))


def test_a_larger_model_that_is_missing_or_wrong(tmp_path: Path) -> None:
    draft, target, *_ = folders("eagle3", tmp_path)
    with pytest.raises(Usage, match="guesses tokens for a larger one") as missing:
        planned(draft)
    assert "--target" in str(missing.value.fix)
    with pytest.raises(Malformed, match=r"no config\.json"):
        planned(draft, target=tmp_path)
    (draft / "mask_embedding.pt").touch()
    with pytest.raises(Unsupported, match="for the mask"):
        planned(draft, target=target)
    (draft / "mask_embedding.pt").unlink()
    with pytest.raises(Usage, match="a draft model itself"):
        planned(draft, target=draft)
    with pytest.raises(Usage, match="this is not a draft model"):
        planned(target, target=target)
    with (
        pytest.raises(Unsupported, match="guesses tokens for a larger one"),
        opened_model(request(draft, target=target)),
    ):
        pass


@pytest.mark.parametrize(("moved", "what"), [(-(1 << 40), "outside of the vocabulary"), (-1, "there twice")])
def test_tokens_that_cannot_be_meant(moved: int, what: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    draft, target, *_ = folders("eagle3", tmp_path)
    path = draft / "model.safetensors"
    tensors = load_file(path)
    tensors["d2t"][5] = tensors["d2t"][4] + moved
    save_file(tensors, path)
    with pytest.raises(Malformed, match=what):
        planned(draft, target=target)
