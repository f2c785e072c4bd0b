"""The model run one block at a time, against transformers' own forward of the whole model: logits, inputs, scores."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import as_llamacpp
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

import adapters
import checkpoints
import drafts
import encoder_twins
import encoders
import layout_twins
import mistral
import newest
import original
import quantized
import targeted
import tiny
import zoo
from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.convert.architectures import ARCHITECTURES
from ggufsmith.convert.architectures.lfm2 import LFM2_EMBEDDING
from ggufsmith.convert.hf.run import ToHfJob, prepare
from ggufsmith.convert.hf.run import run as write_folder
from ggufsmith.evaluate import forward
from ggufsmith.evaluate.forward import run_model, work
from ggufsmith.evaluate.hidden import HiddenStates
from ggufsmith.evaluate.needed import find_device
from ggufsmith.evaluate.scores import TokenScores, logits_of, read_head
from ggufsmith.evaluate.skeleton import build_skeleton
from ggufsmith.evaluate.variants import opened_file, opened_model
from merging import merged
from requesting import request, run

pytestmark = pytest.mark.conformance

WINDOWS, CONTEXT = 3, 96  # longer than the sliding window of the gemma fixtures
PIECE = 300  # of the vocabulary


@pytest.fixture(scope="module", params=checkpoints.KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("models")
    yield checkpoints.write(request.param, home / "Tiny-Fixture")
    shutil.rmtree(home)


def transformers_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokens_for(model: Any) -> NDArray[np.int32]:
    rows = min(model.config.vocab_size, 30000)
    return np.random.default_rng(5).integers(3, rows, (WINDOWS, CONTEXT)).astype(np.int32)


@torch.inference_mode()
def plain_logits(model: Any, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    return model(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()


@torch.inference_mode()
def streamed_logits(path: Path, tokens: NDArray[np.int32], **options: Any) -> NDArray[np.float32]:
    """The whole logits, piece by piece."""
    found: list[torch.Tensor] = []

    def keep_head(tensor: str, inputs: torch.Tensor, expert: int | None) -> None:
        if not tensor.startswith("blk."):
            found.append(inputs.clone())

    with opened_model(request(path, **options)) as model:
        skeleton = build_skeleton(model)
        assert run_model(skeleton, model.variants, tokens, device="cpu", observe=keep_head) is None
        hidden, rows = torch.cat(found), skeleton.vocabulary
        pieces = [(first, min(first + PIECE, rows)) for first in range(0, rows, PIECE)]
        heads = [read_head(model.source, *piece, threads=2, device=torch.device("cpu")) for piece in pieces]
        logits = torch.cat([logits_of(skeleton, hidden, head) for head in heads], dim=1)
    return logits.numpy().reshape(*tokens.shape, rows)


def error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Normalised mean square error."""
    assert found.shape == expected.shape
    never = expected == np.finfo(np.float32).min  # tokens that a model does not predict
    assert np.array_equal(never, found == np.finfo(np.float32).min)
    found, expected = found[~never], expected[~never]
    return float(((found - expected) ** 2).mean() / (expected**2).mean())


LINES = [(name, False) for name in zoo.ZOO] + [(name, True) for name, line in zoo.ZOO.items() if line.two_spellings]


UNLIKE = "cannot be run here yet: its parameters are not those of the checkpoint"
# Lines, and whether as they are published, that cannot be run here, and what is said: of MiMo's published config,
# transformers reads no dense block but the first.
NOT_RUN = {("mimo2", True): UNLIKE}
# Those that cannot be run from a GGUF file: there is no class for the text model alone, or the file does not say which
# tokens are pictures.
FOLDER_ONLY = {"minimax-m3": UNLIKE, "chameleon": "cannot make a ChameleonForConditionalGeneration"}


@pytest.mark.parametrize(("name", "published"), NOT_RUN)
def test_what_cannot_be_run_is_refused(name: str, published: bool, tmp_path: Path) -> None:
    zoo.write(name, tmp_path, published=published)
    with pytest.raises(Unsupported, match=NOT_RUN[name, published]):
        streamed_logits(tmp_path, np.random.default_rng(5).integers(3, 300, (2, 48)).astype(np.int32))


@pytest.mark.parametrize(
    ("name", "published"),
    [line for line in LINES if line not in NOT_RUN],
    ids=lambda value: {True: "published", False: ""}.get(value, value),
)
def test_every_line_of_the_zoo_and_its_gguf_file(name: str, published: bool, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = zoo.write(name, folder, published=published)
    tokens = np.random.default_rng(5).integers(3, 300, (2, 48)).astype(np.int32)
    as_llamacpp.CORRECTED.get(name, lambda model: None)(model)
    reference = tiny.text_model(model)
    if name == "gemma3n":  # whose 30 blocks make much of the last bit
        reference.set_attn_implementation("sdpa")
    expected = plain_logits(reference, tokens)
    assert error(streamed_logits(folder, tokens), expected) < 1e-10
    run(request(folder, outtype="f32", outfile=tmp_path / "model.gguf"))
    if name in FOLDER_ONLY:
        with pytest.raises(Unsupported, match=FOLDER_ONLY[name]):
            streamed_logits(tmp_path / "model.gguf", tokens)
        return
    assert error(streamed_logits(tmp_path / "model.gguf", tokens), expected) < 1e-10


def test_a_config_that_transformers_reads_otherwise(tmp_path: Path) -> None:
    """MiMo's published names of what transformers calls rope_parameters: it would turn a third of every head."""
    zoo.write("mimo2", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"rope_parameters": None, "partial_rotary_factor": 0.5, "rope_theta": 5e6, "swa_rope_theta": 1e4}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(Unsupported, match=r"reads config\.json otherwise") as raised:
        streamed_logits(tmp_path, np.ones((1, 8), np.int32))
    assert "mimo2.rope.dimension_count would be 10 instead of 16" in str(raised.value)


def test_a_file_that_is_not_what_its_class_makes(tmp_path: Path) -> None:
    """ChatGLM has the architecture of GLM-4, and biases that transformers' class for that has not."""
    layout_twins.write("chatglm", tmp_path)
    run(request(tmp_path, outtype="f32", outfile=tmp_path / "model.gguf"))
    with pytest.raises(Unsupported, match="has other tensors than this model"):
        streamed_logits(tmp_path / "model.gguf", np.ones((1, 8), np.int32))


@pytest.mark.parametrize("name", ["internvl-chat", "internvl-chat-qwen3"])
def test_a_text_model_inside_a_class_that_transformers_lacks(name: str, tmp_path: Path) -> None:
    model = layout_twins.write(name, tmp_path)
    tokens = np.random.default_rng(5).integers(3, 300, (2, 48)).astype(np.int32)
    assert error(streamed_logits(tmp_path, tokens), plain_logits(model, tokens)) < 1e-10


def test_every_architecture_is_here() -> None:
    lines = zoo.ZOO.values()
    classes = {line.model_class for line in (*lines, *encoders.BOTH.values())}
    classes |= {kind.model_class for kind in checkpoints.KINDS.values()}
    classes |= {draft.model.model_class for draft in drafts.DRAFTS.values()}
    classes |= {twin.model_class for twin in encoder_twins.TWINS.values()}
    classes |= {line.model_class for line in newest.NEWEST.values()}
    classes |= {line.model_class for line in targeted.LINES.values()}
    classes |= set(mistral.CLASSES) | {twin.model_class for twin in layout_twins.TWINS.values()}
    missing = [record for record in ARCHITECTURES.records() if not classes & set(record.classes)]
    assert [
        record.name for record in missing if record not in (*ARCHITECTURES.of_module("encoders"), LFM2_EMBEDDING)
    ] == []


def test_logits_from_the_folder_and_from_its_gguf_file(folder: Path, tmp_path: Path) -> None:
    model = transformers_model(folder)
    tokens = tokens_for(model)
    expected = plain_logits(model, tokens)
    run(request(folder, outtype="f32", outfile=tmp_path / "model.gguf"))
    assert error(streamed_logits(folder, tokens), expected) < 1e-10
    assert error(streamed_logits(tmp_path / "model.gguf", tokens), expected) < 1e-10


def test_scores_as_log_softmax_of_whole_logits(folder: Path, tmp_path: Path) -> None:
    """Of the source, a recipe on the way, and the file that the same recipe writes."""
    run(request(folder, "q4_K_M", outfile=tmp_path / "q4.gguf"))
    with prepare(ToHfJob(tmp_path / "q4.gguf", tmp_path / "q4", "float32", sync=False)) as prepared:
        write_folder(prepared)
    tokens = tokens_for(transformers_model(folder))
    told: list[int] = []
    with ExitStack() as stack:
        model = stack.enter_context(opened_model(request(folder, "q4_K_M")))
        file = stack.enter_context(opened_file(tmp_path / "q4.gguf"))
        skeleton, variants = build_skeleton(model), (*model.variants, file)
        scores = run_model(
            skeleton, variants, tokens, device="cpu", scored=slice(CONTEXT // 2, CONTEXT - 1), progress=told.append
        )
        assert sum(told) == work(skeleton, variants, scored=True)
    assert scores is not None
    expected = [
        plain_scores(plain_logits(transformers_model(each), tokens), tokens) for each in (folder, tmp_path / "q4")
    ]
    source = expected[0]
    for found, (logs, likelihood) in zip(scores, (source, expected[1], expected[1]), strict=True):
        assert found.nll.shape == (WINDOWS, CONTEXT - 1 - CONTEXT // 2)
        np.testing.assert_allclose(found.nll, -likelihood, rtol=2e-6)
        np.testing.assert_allclose(found.probability, np.exp(likelihood), rtol=2e-5)
        divergence = (np.exp(source[0]) * (source[0] - logs)).sum(axis=-1)
        np.testing.assert_allclose(found.divergence, divergence, rtol=2e-3, atol=2e-7)
        assert (found.same_top == (logs.argmax(-1) == source[0].argmax(-1))).mean() > 0.99  # ties in rounding
    assert equal(scores[1], scores[2])
    assert scores[0].divergence.max() == 0 and scores[0].same_top.all()
    assert scores[1].divergence.mean() > 1e-5


def plain_scores(logits: NDArray[np.float32], tokens: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Log-softmax in float64 of the second half of every window, and that of the token that follows."""
    scored = torch.from_numpy(logits[:, CONTEXT // 2 : -1]).double().log_softmax(-1)
    following = torch.from_numpy(tokens[:, CONTEXT // 2 + 1 :, None]).long()
    return scored.numpy(), scored.gather(-1, following)[..., 0].numpy()


def equal(one: TokenScores, other: TokenScores) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)


def test_inputs_of_every_linear_as_hooks_see_them(folder: Path) -> None:
    model = transformers_model(folder)
    tokens = tokens_for(model)
    expected: dict[tuple[str, int | None], list[torch.Tensor]] = {}
    for window in tokens:  # tokens come to an expert in the order in which they chose it, window by window
        for key, inputs in hooked(model, window[None]).items():
            expected.setdefault(key, []).append(inputs)
    found: dict[tuple[str, int | None], list[torch.Tensor]] = {}

    def keep(tensor: str, inputs: torch.Tensor, expert: int | None) -> None:
        assert inputs.dtype is torch.float32 and inputs.ndim == 2
        found.setdefault((tensor, expert), []).append(inputs.clone())

    with opened_model(request(folder)) as opened:
        run_model(build_skeleton(opened), opened.variants, tokens, device="cpu", observe=keep)
        matrices = {name for name, tensor in opened.source.tensors.items() if len(tensor.shape) > 1}
    assert found.keys() == expected.keys()
    assert {name for name, _ in found} | {"token_embd.weight"} == matrices | {"token_embd.weight"}
    for key, inputs in found.items():
        assert error(torch.cat(inputs).numpy(), torch.cat(expected[key]).numpy()) < 1e-10, key


# The end of a module's name in transformers -> that of the GGUF tensor.
GGUF = {
    "self_attn.q_proj": ("attn_q",),
    "self_attn.k_proj": ("attn_k",),
    "self_attn.v_proj": ("attn_v",),
    "self_attn.qkv_proj": ("attn_qkv",),
    "self_attn.o_proj": ("attn_output",),
    "mlp.gate_proj": ("ffn_gate",),
    "mlp.up_proj": ("ffn_up",),
    "mlp.gate_up_proj": ("ffn_up",),
    "mlp.down_proj": ("ffn_down",),
    "mlp.gate": ("ffn_gate_inp",),
    "mlp.shared_expert_gate": ("ffn_gate_inp_shexp",),
    "mlp.shared_expert.gate_proj": ("ffn_gate_shexp",),
    "mlp.shared_expert.up_proj": ("ffn_up_shexp",),
    "mlp.shared_expert.down_proj": ("ffn_down_shexp",),
}


@torch.inference_mode()
def hooked(model: Any, tokens: NDArray[np.int32]) -> dict[tuple[str, int | None], torch.Tensor]:
    """Inputs of all linears, caught by hooks on the modules of the whole model; those of experts worked out here."""
    found: dict[tuple[str, int | None], torch.Tensor] = {}

    def flat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(-1, tensor.shape[-1]).clone()

    def catch(names: list[str]) -> Any:
        return lambda module, args: found.update({(name, None): flat(args[0]) for name in names})

    def catch_experts(block: str) -> Any:
        def work_out(module: Any, args: Any) -> None:
            states, chosen, _ = args
            for expert in range(module.num_experts):
                inputs = flat(states)[torch.where((chosen == expert).T)[1]]  # the first choices first
                gate, up = (inputs @ module.gate_up_proj[expert].T).chunk(2, dim=1)
                if len(inputs):
                    found[f"blk.{block}.ffn_gate_exps.weight", expert] = inputs
                    found[f"blk.{block}.ffn_up_exps.weight", expert] = inputs
                    found[f"blk.{block}.ffn_down_exps.weight", expert] = module.act_fn(gate) * up

        return work_out

    for name, module in model.named_modules():
        block, _, end = name.removeprefix("model.layers.").partition(".")
        if end in GGUF and hasattr(module, "weight"):
            module.register_forward_pre_hook(catch([f"blk.{block}.{each}.weight" for each in GGUF[end]]))
        elif end == "mlp.experts":
            module.register_forward_pre_hook(catch_experts(block))
    tied = model.config.tie_word_embeddings
    model.lm_head.register_forward_pre_hook(catch(["token_embd.weight" if tied else "output.weight"]))
    plain_logits(model, tokens)
    return found


def test_quantized_weights_and_adapters_as_merged_by_hand(tmp_path: Path) -> None:
    """A GPTQ checkpoint, with a LoRA on top of it as well: the dense weights put into transformers' model."""
    folder, adapter = tmp_path / "gptq", tmp_path / "adapter"
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": False}
    dense = quantized.write_gptq("llama", folder, config=config)
    adapters.write(folder, adapter)
    plain = checkpoints.write("llama", tmp_path / "plain", dtype="float16")
    model = transformers_model(plain)
    tokens = tokens_for(model)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in dense.items()}, strict=False)
    assert error(streamed_logits(folder, tokens), plain_logits(model, tokens)) < 1e-10
    with_adapter = merged(folder, (adapter, 1.0))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in with_adapter.items()}, strict=True)
    assert error(streamed_logits(folder, tokens, lora=(str(adapter),)), plain_logits(model, tokens)) < 1e-10


def test_an_original_release_as_the_checkpoint_made_of_it(tmp_path: Path) -> None:
    """Its config.json is made of params.json, and its tensors are in pickles under other names."""
    folder = checkpoints.write("llama", tmp_path / "Tiny-Fixture", max_position_embeddings=4096)
    model = transformers_model(folder)
    tokens = tokens_for(model)
    expected = plain_logits(model, tokens)
    params = {"dim": 256, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 256, "norm_eps": 1e-05}
    original.write(folder, model.state_dict(), 2, **params)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    assert error(streamed_logits(folder, tokens), expected) < 1e-10


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return checkpoints.write("llama", tmp_path / "Tiny-Fixture")


OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "another architecture": ("qwen2", {}, "general.architecture is 'qwen2', not 'llama'"),
    "another vocabulary": ("llama-3", {}, "tokenizer.ggml.tokens differs"),
    "narrower": ("llama", {"intermediate_size": 512}, r"ffn_gate.weight has the shape \[512, 256\], not \[768, 256\]"),
    "fewer blocks": ("llama", {"num_hidden_layers": 1}, "blk.1.attn_norm.weight is missing"),
    "more blocks": ("llama", {"num_hidden_layers": 3}, "blk.2.attn_norm.weight is not a tensor of LlamaForCausalLM"),
    "biases": ("llama-bias", {}, "blk.0.attn_q.bias is not a tensor of LlamaForCausalLM"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_of_another_model_is_refused(llama: Path, tmp_path: Path, what: str) -> None:
    kind, changes, message = OTHERS[what]
    other = checkpoints.write(kind, tmp_path / "other", **changes)
    run(request(other, outtype="f16", outfile=tmp_path / "other.gguf"))
    with opened_model(request(llama)) as model, opened_file(tmp_path / "other.gguf") as file:
        with pytest.raises(Malformed, match=message) as raised:
            run_model(build_skeleton(model), (model.source, file), np.ones((1, 8), np.int32), device="cpu")
        assert str(tmp_path / "other.gguf") in str(raised.value)


def test_a_class_that_this_release_of_transformers_lacks(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "LlamaForCausalLM", None)
    with opened_model(request(llama)) as model, pytest.raises(Unsupported, match="does not have the class LlamaForCau"):
        build_skeleton(model)


def test_a_file_whose_keys_contradict_its_tensors(llama: Path, tmp_path: Path) -> None:
    """What no config.json can say would be computed otherwise than llama.cpp does."""
    run(request(llama, outtype="f32", outfile=tmp_path / "a.gguf"))
    wrong = request(tmp_path / "a.gguf", "copy", outfile=tmp_path / "b.gguf", override_kv=("llama.vocab_size=int:7",))
    run(wrong)
    with opened_model(request(tmp_path / "b.gguf")) as model, pytest.raises(Malformed, match="contradict") as raised:
        build_skeleton(model)
    assert "llama.vocab_size is 7" in str(raised.value)


def test_tokens_that_the_model_does_not_have(llama: Path) -> None:
    with opened_model(request(llama)) as model:
        skeleton = build_skeleton(model)
        for tokens in ([[1, 2, skeleton.vocabulary]], [[-1, 2]], [[]]):
            with pytest.raises(Malformed):
                run_model(skeleton, model.variants, np.array(tokens, np.int32), device="cpu")


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "mps:1", "cpu:0:1", ""])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(Usage, match="device"):
        find_device(device)


def test_hidden_states_in_a_file_and_other_batches_change_nothing(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_for(transformers_model(llama))
    with opened_model(request(llama, "q4_K_M")) as model:
        skeleton = build_skeleton(model)

        def scores(**options: Any) -> list[TokenScores]:
            return run_model(skeleton, model.variants, tokens, device="cpu", scored=slice(0, 95), **options) or []

        usual = scores()
        assert all(equal(*pair) for pair in zip(usual, scores(memory=0), strict=True))
        monkeypatch.setattr(forward, "ACTIVATIONS", 768 * CONTEXT * 2)  # two windows, and the one that is left
        for one, other in zip(usual, scores(threads=1), strict=True):
            np.testing.assert_allclose(one.nll, other.nll, rtol=1e-5)
            np.testing.assert_allclose(one.divergence, other.divergence, rtol=1e-3, atol=1e-7)


def test_what_blocks_are_given_besides_may_be_in_a_file(tmp_path: Path) -> None:
    """Gemma 4's embeddings for every layer, which are others for every window, and the keys that blocks share."""
    zoo.write("gemma4-e2b", tmp_path)
    tokens = np.random.default_rng(5).integers(3, 300, (5, 48)).astype(np.int32)
    with opened_model(request(tmp_path, "q8_0")) as model:
        skeleton = build_skeleton(model)
        usual, filed = (
            run_model(skeleton, model.variants, tokens, device="cpu", scored=slice(0, 47), **options) or []
            for options in ({}, {"memory": 0})
        )
    assert all(equal(*pair) for pair in zip(usual, filed, strict=True))


def test_windows_longer_than_the_positions_of_the_model(tmp_path: Path) -> None:
    zoo.write("gpt2", tmp_path)
    said = "windows of 600 tokens are longer than the 512 positions"
    with opened_model(request(tmp_path)) as model, pytest.raises(Usage, match=said):
        run_model(build_skeleton(model), model.variants, np.ones((1, 600), np.int32), device="cpu")


def test_what_enters_each_block_can_be_kept(llama: Path) -> None:
    model = transformers_model(llama)
    tokens = tokens_for(model)
    with torch.inference_mode():
        expected = model(torch.from_numpy(tokens).long(), output_hidden_states=True).hidden_states
    kept: dict[int, NDArray[np.float32]] = {}

    def keep(block: int, variant: int, hidden: HiddenStates) -> None:
        kept[block] = np.concatenate(list(hidden))

    with opened_model(request(llama)) as opened:
        run_model(build_skeleton(opened), opened.variants, tokens, device="cpu", entering=keep)
    assert sorted(kept) == [0, 1, 2]
    for block in (0, 1):  # the last of transformers' is behind the final norm
        assert error(kept[block], expected[block].numpy()) < 1e-10
