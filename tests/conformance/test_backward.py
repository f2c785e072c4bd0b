"""The model run backward one block at a time, against torch's autograd through the whole of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, linear
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

import checkpoints
import zoo
from ggufsmith.container.errors import Malformed, NoSpace, Unsupported
from ggufsmith.evaluate import backward, hidden
from ggufsmith.evaluate.backward import EmbeddingFisher, Finished, HeadFisher, Told, run_backward
from ggufsmith.evaluate.skeleton import build_skeleton
from ggufsmith.evaluate.variants import opened_model
from requesting import request
from requesting import run as convert

pytestmark = pytest.mark.conformance

WINDOWS, CONTEXT = 3, 40
Key = tuple[str, int]  # GGUF tensor, and the expert of a stack


def tokens_for(vocabulary: int) -> NDArray[np.int32]:
    return np.random.default_rng(7).integers(3, vocabulary, (WINDOWS, CONTEXT)).astype(np.int32)


class Seen:
    """Sums of all that was told, by GGUF row: g^2 by row, and |g|^2 x x^T."""

    def __init__(self) -> None:
        self.squares: dict[Key, Any] = {}
        self.inputs: dict[Key, Any] = {}

    def observe(self, windows: Sequence[Sequence[Told]]) -> None:
        for tensor, x, g, expert in (told for window in windows for told in window):
            key = tensor, expert or 0
            squares, weighted = g.double().square(), x.double().T * g.double().square().sum(1)
            self.squares[key] = self.squares.get(key, 0) + squares.sum(0).numpy()
            self.inputs[key] = self.inputs.get(key, 0) + (weighted @ x.double()).numpy()

    def finished(self, block: Finished) -> None:
        for output in block.outputs:
            assert block.rows[output.name].size == np.prod(output.shape)


def streamed(path: Path, **options: Any) -> tuple[Seen, HeadFisher, EmbeddingFisher]:
    seen = Seen()
    with opened_model(request(path)) as model:
        skeleton = build_skeleton(model)
        head, embedding = run_backward(
            skeleton,
            model.source,
            tokens_for(skeleton.vocabulary),
            observe=seen.observe,
            finished=seen.finished,
            device="cpu",
            **options,
        )
    return seen, head, embedding


class Whole(TorchFunctionMode):  # type: ignore[misc]  # torch has no types here
    """Keeps inputs and outputs of all products, by the memory of the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is linear:
            made.retain_grad()
            weight = args[1]
            expert = weight.storage_offset() // weight.numel() if weight._is_view() else 0
            self.made.append((weight.untyped_storage().data_ptr(), expert, args[0], made))
        return made


ROLES: dict[str, dict[str, float]] = {  # parameter -> the tensors that it is, with their shares of its rows
    "self_attn.q_proj": {"attn_q": 1},
    "self_attn.k_proj": {"attn_k": 1},
    "self_attn.v_proj": {"attn_v": 1},
    "self_attn.o_proj": {"attn_output": 1},
    "mlp.gate_proj": {"ffn_gate": 1},
    "mlp.up_proj": {"ffn_up": 1},
    "mlp.down_proj": {"ffn_down": 1},
    "mlp.gate": {"ffn_gate_inp": 1},
    "mlp.experts.gate_up_proj": {"ffn_gate_exps": 0.5, "ffn_up_exps": 0.5},
    "mlp.experts.down_proj": {"ffn_down_exps": 1},
}


def permuted(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Of each head, one of the first half and one of the second in turn, as llama.cpp has the rows of llama."""
    return values.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


@pytest.mark.parametrize("kind", ["llama", "llama-3", "gemma2", "qwen3", "qwen3-moe", "mixtral"])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_gradients_are_those_of_the_whole_model(kind: str, form: str, tmp_path: Path) -> None:
    folder = checkpoints.write(kind, tmp_path / "Tiny-Fixture")
    path = folder
    if form == "file":
        path = tmp_path / "model.gguf"
        convert(request(folder, outtype="f32", outfile=path))
    seen, head, embedding = streamed(path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()
    tokens = torch.from_numpy(tokens_for(model.config.vocab_size)).long()
    labels = torch.from_numpy(head.labels).reshape(WINDOWS, CONTEXT)
    names = {
        value.untyped_storage().data_ptr(): name.removesuffix(".weight") for name, value in model.named_parameters()
    }
    squares: dict[Key, Any] = {}
    inputs: dict[Key, Any] = {}
    count, rows = WINDOWS * CONTEXT, 0.0
    weights: list[NDArray[np.float64]] = []
    embedded: list[NDArray[np.float64]] = []
    for window, wanted in zip(tokens, labels, strict=True):
        with Whole() as whole:
            caught: list[torch.Tensor] = []
            first = model.model.layers[0].register_forward_pre_hook(lambda module, args, c=caught: c.append(args[0]))
            logits = model(window[None], use_cache=False).logits[0]
            first.remove()
            caught[0].retain_grad()
            cross_entropy(logits, wanted, reduction="sum").backward()
        embedded.append(caught[0].grad[0].double().square().numpy())
        for place, expert, x, made in whole.made:
            name = names[place]
            block, _, role = name.removeprefix("model.layers.").partition(".")
            if made.grad is None or role not in ROLES:
                continue
            g = made.grad.reshape(-1, made.shape[-1]).double()
            x = x.detach().reshape(-1, x.shape[-1]).double()
            at = 0
            for tensor, share in ROLES[role].items():
                part = slice(at, at + int(g.shape[1] * share))
                at = part.stop
                key = f"blk.{block}.{tensor}.weight", expert
                squares[key] = squares.get(key, 0) + g[:, part].square().sum(0).numpy()
                inputs[key] = inputs.get(key, 0) + ((x.T * g[:, part].square().sum(1)) @ x).numpy()
        probabilities = logits.detach().double().softmax(-1)
        slope = 1.0
        if cap := getattr(model.config, "final_logit_softcapping", None):
            slope = 1 - (logits.detach().double() / cap).square()  # of cap * tanh(z / cap)
        own = probabilities * (1 - probabilities) * slope**2
        rows = rows + own.sum(0).numpy()
        weights.append(own.sum(1).numpy())
    config = model.config
    for key in squares:
        if kind in ("llama", "llama-3", "mixtral") and (".attn_q." in key[0] or ".attn_k." in key[0]):
            heads = config.num_attention_heads if ".attn_q." in key[0] else config.num_key_value_heads
            squares[key] = permuted(squares[key], heads)
    assert seen.squares.keys() == squares.keys()
    for key, expected in squares.items():
        np.testing.assert_allclose(seen.squares[key], expected, rtol=2e-3, atol=1e-6 * expected.max(), err_msg=str(key))
        scale = np.abs(inputs[key]).max()
        np.testing.assert_allclose(seen.inputs[key], inputs[key], rtol=0, atol=1e-4 * scale, err_msg=str(key))
    np.testing.assert_allclose(head.outputs, rows / count, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(head.weights, np.concatenate(weights), rtol=1e-4)
    factor = config.hidden_size**0.5 if kind.startswith("gemma") else 1.0
    expected = factor**2 * np.concatenate(embedded).mean(0)
    np.testing.assert_allclose(embedding.outputs, expected, rtol=1e-3)
    assert embedding.counts.sum() == count and embedding.counts[tokens[0, 0]] > 0


def test_labels_are_drawn_from_the_predictions(tmp_path: Path) -> None:
    """How often the drawn token is among the more probable half, against how probable that half is."""
    folder = checkpoints.write("llama", tmp_path / "Tiny-Fixture")
    _, head, _ = streamed(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens_for(model.config.vocab_size)).long()).logits.double()
    chances = logits.reshape(-1, logits.shape[-1]).softmax(-1)
    likely = chances > chances.median(dim=1, keepdim=True).values
    share = likely.gather(1, torch.from_numpy(head.labels)[:, None]).double().mean().item()
    expected = (chances * likely).sum(1).mean().item()
    assert abs(share - expected) < 4 * (expected * (1 - expected) / len(chances)) ** 0.5
    assert len(np.unique(head.labels)) > 30


def test_nothing_depends_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.write("qwen3-moe", tmp_path / "Tiny-Fixture")
    one, two = streamed(folder, threads=1), streamed(folder, threads=2, memory=0)
    for key, squares in one[0].squares.items():
        assert np.array_equal(squares, two[0].squares[key])
        assert np.array_equal(one[0].inputs[key], two[0].inputs[key])
    assert np.array_equal(one[1].labels, two[1].labels) and np.array_equal(one[1].outputs, two[1].outputs)
    monkeypatch.setattr(backward, "SEED", 5)
    assert not np.array_equal(streamed(folder)[1].labels, one[1].labels)


def test_hidden_states_that_no_disk_holds() -> None:
    with (
        pytest.raises(NoSpace, match="the hidden states of the text need"),
        hidden.room((1 << 20, 1 << 20, 1 << 12), 0),
    ):
        pass


def test_windows_that_cannot_be_run(tmp_path: Path) -> None:
    folder = checkpoints.write("llama", tmp_path / "Tiny-Fixture")
    with opened_model(request(folder)) as model:
        skeleton = build_skeleton(model)
        for tokens, said in (
            (np.empty((0, 8), np.int32), "not a single window"),
            (np.full((1, 8), -1, np.int32), "-1"),
        ):
            with pytest.raises(Malformed, match=said):
                run_backward(skeleton, model.source, tokens, observe=lambda told: None, finished=print, device="cpu")


# Matrices whose outputs are not those of one product with them: convolutions, biases of experts, and the part of latent
# attention that llama.cpp takes queries through.
NOT_TOLD = {
    "ssm_conv1d.weight",
    "ssm_conv1d_q.weight",
    "ssm_conv1d_k.weight",
    "ssm_conv1d_v.weight",
    "shortconv.conv.weight",
    "exp_probs_b.bias",
    "ffn_gate_exps.bias",
    "ffn_up_exps.bias",
    "ffn_down_exps.bias",
    "attn_k_b.weight",
    # of state spaces: numbers for each channel, head or group
    "ssm_a",
    "ssm_d",
    "ssm_norm.weight",
    # of indexers, which choose tokens: no gradient goes through a choice
    "indexer.attn_k.weight",
    "indexer.attn_q_b.weight",
    "indexer.k_proj.weight",
    "indexer.proj.weight",
    "indexer.q_proj.weight",
}
# The last blocks of Gemma 3n take keys and values of earlier ones; norms of Chameleon are one for each head.
NOT_TOLD_IN = {
    "gemma3n": {"attn_k.weight", "attn_v.weight"},
    "chameleon": {f"attn_{each}_norm.{kind}" for each in "qk" for kind in ("weight", "bias")},
}


USED_AGAIN = "hrm-text"  # its blocks are used several times, and the first times without gradients


def test_blocks_that_are_used_several_times(tmp_path: Path) -> None:
    zoo.write(USED_AGAIN, tmp_path)
    with opened_model(request(tmp_path)) as model, pytest.raises(Unsupported, match="uses blocks several times"):
        run_backward(build_skeleton(model), model.source, tokens_for(300), observe=print, finished=print, device="cpu")
    convert(request(tmp_path, outfile=tmp_path / "model.gguf", recipes=("q4_0",), tensor_types=("attn_q=q8_0",)))


@pytest.mark.parametrize("name", [name for name in zoo.ZOO if name != USED_AGAIN])
def test_every_architecture_runs_backward(name: str, tmp_path: Path) -> None:
    """Every matrix is told of its inputs and gradients, in its own shape."""
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    zoo.write(name, folder)
    told: dict[str, tuple[int, int]] = {}

    def observe(windows: Sequence[Sequence[Told]]) -> None:
        for each in (each for window in windows for each in window):
            assert torch.isfinite(each.gradients).all()
            told[each.tensor] = (each.gradients.shape[-1], each.inputs.shape[-1])

    with opened_model(request(folder)) as model:
        skeleton = build_skeleton(model)
        run_backward(
            skeleton, model.source, tokens_for(300), observe=observe, finished=lambda block: None, device="cpu"
        )
        matrices = [each for k in range(len(skeleton.blocks)) for each in skeleton.outputs(k) if len(each.shape) > 1]
    missing = {each.name.split(".", 2)[2] for each in matrices if told.get(each.name) != each.shape[-2:]}
    assert missing <= NOT_TOLD | NOT_TOLD_IN.get(name, set())


@pytest.mark.parametrize("form", ["folder", "file"])
@pytest.mark.parametrize(("name", "gate"), [("gpt-oss", slice(0, None, 2)), ("llama4", slice(0, 256))])
def test_outputs_of_gate_and_up_in_one(name: str, gate: slice, form: str, tmp_path: Path) -> None:
    """gpt-oss has them in turn, Llama 4 one behind the other; in both, outputs are the columns of the parameter."""
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    zoo.write(name, folder)
    path = folder
    if form == "file":
        path = tmp_path / "model.gguf"
        convert(request(folder, outtype="f32", outfile=path))
    with opened_model(request(path)) as model:
        (found,) = [
            backward.output_rows(each)
            for each in build_skeleton(model).outputs(1)
            if each.name.endswith("ffn_gate_exps.weight")
        ]
    assert found is not None and (found == np.arange(512)[gate]).all()
