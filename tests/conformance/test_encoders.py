"""Every tiny encoder: our conversion against the converter's, and what llama.cpp makes of it against transformers.

GELU is exact in most of them, but llama.cpp looks an approximation up in a table of float16; transformers is told to do
the same, so that nothing else can differ.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantizer
import tokenizer_oracles as oracles
from gguf import PoolingType
from llama_models import embeddings
from numpy.typing import NDArray
from test_convert import PRE, ours, tensors

import checkpoints
import encoders
import reference
import vocabularies
from ggufsmith.container.errors import Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.hf.run import ToHfJob, prepare
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.open import open_pass
from ggufsmith.convert.plan import make_plan
from ggufsmith.evaluate.variants import opened_model
from ggufsmith.kvcache import cache_bytes, cache_type
from ggufsmith.modelfile import modelfile_of
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
from requesting import request, run

pytestmark = pytest.mark.conformance

LINES = [(name, False) for name in encoders.ENCODERS]
LINES += [(name, True) for name, line in encoders.ENCODERS.items() if line.two_spellings]
EXPERTS = 4  # of nomic-embed-text v2 here
IDS = np.random.default_rng(5).integers(7, 300, 48).tolist()


def as_ggml(model: Any) -> Any:
    """The model, with ggml's GELU."""
    import torch

    def gelu(x: Any) -> Any:
        return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()

    for module in model.modules():
        if type(module).__name__ in ("GELUTanh", "NewGELUActivation", "GELUActivation"):
            module.forward = gelu
    return model


def outputs(model: Any, ids: list[int]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
    """The scores of a classifier, if it is one, and the hidden states."""
    import torch

    with torch.no_grad():
        found = as_ggml(model)(torch.tensor([ids]), output_hidden_states=True)
    scores = getattr(found, "logits", None)
    hidden = getattr(found, "last_hidden_state", None)
    hidden = found.hidden_states[-1] if hidden is None else hidden
    scored = scores is not None and scores.ndim == 2
    return (scores[0].numpy() if scored else None), hidden[0].numpy()


def error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    assert found.shape == expected.shape
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


@pytest.mark.parametrize(
    ("name", "published"), LINES, ids=lambda value: {True: "published", False: ""}.get(value, value)
)
def test_a_line(name: str, published: bool, tmp_path: Path) -> None:
    line = encoders.ENCODERS[name]
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = encoders.write(name, folder, published=published)
    notes = make_plan(open_config(folder), None).notes
    assert not [note for note in notes if note.startswith("these keys of config.json")]
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    scores, hidden = outputs(model, IDS)
    found = embeddings(mine.path, IDS, PoolingType.NONE)
    print(f"{name}: {error(found, hidden):.2e}")
    assert error(found, hidden) < line.nmse
    pooled = {PoolingType.MEAN: hidden.mean(0), PoolingType.CLS: hidden[0], PoolingType.LAST: hidden[-1]}
    for kind, expected in pooled.items():
        assert error(embeddings(mine.path, IDS, kind), expected) < line.nmse
    if scores is not None:
        ranked = embeddings(mine.path, IDS, PoolingType.RANK)
        print(f"scores: {error(ranked, scores):.2e}")
        assert error(ranked, scores) < line.nmse
    if line.reference or (not published and line.two_spellings):
        return
    theirs = open_gguf(
        reference.convert(
            folder,
            tmp_path / "theirs.gguf",
            *("--outtype", "f32", *line.options),
            pre=PRE.get(line.vocabulary, "default"),
            raw=True,
            generic=line.generic,
        )
    )
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys()
    assert not [each for each in a if a[each] != b[each]], "tensors that differ"
    assert not oracles.unlike(mine.path, mine.metadata, theirs.metadata, line.differs.keys())


def with_experts(folder: Path) -> None:
    """Make a folder of nomic-embed-text v1 one of v2: biases, and experts in every second block."""
    import torch
    from safetensors.torch import load_file, save_file

    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_bytes())
    seeded = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Any:
        return torch.randn(shape, generator=seeded) * 0.05

    size = vocabularies.write("xlmr-unigram", folder)
    embd, inner = config["n_embd"], config["n_inner"]
    kept = {name: value for name, value in weights.items() if ".mlp." not in name}
    kept["embeddings.word_embeddings.weight"] = drawn(size, embd)
    kept["embeddings.token_type_embeddings.weight"] = drawn(1, embd)
    for block in range(config["n_layer"]):
        layer = f"encoder.layers.{block}."
        kept |= {f"{layer}attn.Wqkv.bias": drawn(3 * embd), f"{layer}attn.out_proj.bias": drawn(embd)}
        if block % 2:
            kept |= {f"{layer}mlp.experts.mlp.{name}": drawn(EXPERTS * inner, embd) for name in ("w1", "w2")}
            kept |= {f"{layer}mlp.experts.bias": drawn(embd), f"{layer}mlp.router.layer.weight": drawn(EXPERTS, embd)}
        else:
            kept |= {f"{layer}mlp.fc1.weight": drawn(inner, embd), f"{layer}mlp.fc1.bias": drawn(inner)}
            kept |= {f"{layer}mlp.fc2.weight": drawn(embd, inner), f"{layer}mlp.fc2.bias": drawn(embd)}
    save_file(kept, folder / "model.safetensors")
    config |= dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), True)
    config |= {"activation_function": "gelu", "moe_every_n_layers": 2, "num_experts": EXPERTS, "moe_top_k": 2}
    config |= {"moe_normalize_expert_weights": False, "type_vocab_size": 1, "vocab_size": size, "pad_token_id": 1}
    config |= {"n_positions": 2048, "max_trained_positions": 2048}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_experts_in_an_encoder_are_those_of_the_converter_and_run(tmp_path: Path) -> None:
    """transformers has no class for nomic-embed-text v2, so that what llama.cpp computes is only looked at."""
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    encoders.write("nomic", folder, published=True)
    with_experts(folder)
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    theirs = open_gguf(reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f32", pre="default", raw=True))
    assert tensors(mine) == tensors(theirs)
    keys = {key for key in mine.metadata | theirs.metadata if key.startswith("nomic-bert-moe.")}
    assert {key: mine.metadata.get(key) for key in keys} == {key: theirs.metadata.get(key) for key in keys}
    found = embeddings(mine.path, IDS, PoolingType.NONE)
    assert np.isfinite(found).all() and found.std() > 0.1


@pytest.mark.parametrize("hidden", [192, 128])
def test_the_matrices_behind_an_embedding(hidden: int, tmp_path: Path) -> None:
    """EmbeddingGemma's: llama.cpp's vector is that of the pooled hidden states and two products."""
    import torch

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = encoders.write("embedding-gemma", folder)
    encoders.write_pooling(folder, "mean")
    seeded = torch.Generator().manual_seed(3)
    matrices = encoders.write_dense(folder, ((128, hidden), (hidden, 128)), seeded)
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    _, hidden_states = outputs(model, IDS)
    expected = hidden_states.mean(0)
    for matrix in matrices:
        expected = matrix.numpy() @ expected
    assert error(embeddings(mine.path, IDS, PoolingType.MEAN), expected) < 1e-7
    options = ("--outtype", "f32", "--sentence-transformers-dense-modules")
    theirs = open_gguf(reference.convert(folder, tmp_path / "theirs.gguf", *options, raw=True))
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys() and not [each for each in a if a[each] != b[each]]
    assert not [k for k in theirs.metadata if "tokenizer" not in k and mine.metadata.get(k) != theirs.metadata[k]]


@pytest.mark.parametrize("name", ["Lfm2Model", "Lfm2BidirectionalModel"])
def test_the_matrix_behind_lfm2(name: str, tmp_path: Path) -> None:
    """transformers has no class that looks ahead, so that what llama.cpp computes then is only looked at."""
    import torch

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = encoders.write("lfm2-embedding", folder)
    encoders.write_pooling(folder, "mean")
    (matrix,) = encoders.write_dense(folder, ((128, 128),), torch.Generator().manual_seed(3))
    (folder / "2_Dense").rename(folder / "1_Dense")  # where the converter looks for it
    for path, was, now in (("modules.json", "2_Dense", "1_Dense"), ("config.json", "Lfm2Model", name)):
        text = (folder / path).read_text(encoding="utf-8")
        (folder / path).write_text(text.replace(was, now), encoding="utf-8")
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    found = embeddings(mine.path, IDS, PoolingType.MEAN)
    expected = matrix.numpy() @ outputs(model, IDS)[1].mean(0)
    causal = name == "Lfm2Model"
    assert np.isfinite(found).all() and (error(found, expected) < 1e-9) == causal
    theirs = open_gguf(reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f32", pre="qwen2", raw=True))
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys() and not [each for each in a if a[each] != b[each]]
    assert not oracles.unlike(mine.path, mine.metadata, theirs.metadata, set())


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_that_says_yes_or_no(tied: bool, tmp_path: Path) -> None:
    """Qwen3-Reranker: llama.cpp's scores are the softmax of two of transformers' logits."""
    import torch
    from transformers import AutoModelForCausalLM

    options = {"dtype": "float32", "vocab_size": 640, "tie_word_embeddings": tied}
    folder = checkpoints.write("qwen3", tmp_path / "Tiny-Qwen3-Reranker", **options)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    known = {**whole["model"]["vocab"], **{each["content"]: each["id"] for each in whole["added_tokens"]}}
    for text in ("yes", "no"):
        if text not in known:
            known[text] = len(known)
            whole["added_tokens"].append(vocabularies.added_token(known[text], text, False))
    path.write_text(json.dumps(whole), encoding="utf-8")
    path = folder / "tokenizer_config.json"  # which transformers reads beside the vocabulary
    config = json.loads(path.read_text(encoding="utf-8"))
    config["added_tokens_decoder"] = vocabularies.decoder_of(whole["added_tokens"])
    path.write_text(json.dumps(config), encoding="utf-8")
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0, -1, [known["yes"], known["no"]]].softmax(-1).numpy()
    assert error(embeddings(mine.path, IDS, PoolingType.RANK), expected) < 1e-9
    theirs = open_gguf(reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f32", pre="qwen2", raw=True))
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys() and not [each for each in a if a[each] != b[each]]
    llama = oracles.LlamaVocabulary(mine.path)
    stated = oracles.only_stated(mine.metadata, theirs.metadata, llama)
    llama.close()
    assert {k for k in theirs.metadata if mine.metadata.get(k) != theirs.metadata[k]} <= stated


@pytest.mark.parametrize("name", ["bert", "xlm-roberta-classifier", "modernbert", "embedding-gemma"])
@pytest.mark.parametrize("recipe", ["q8_0", "q4_K_M"])
def test_quantized_in_one_step_as_by_the_converter_and_the_quantizer(name: str, recipe: str, tmp_path: Path) -> None:
    line = encoders.ENCODERS[name]
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    encoders.write(name, folder, published=line.two_spellings, wide=True, dtype="bfloat16")
    run(request(folder, recipe, outfile=tmp_path / "ours.gguf"))
    path, pre = tmp_path / "middle.gguf", PRE.get(line.vocabulary, "default")
    reference.convert(folder, path, "--outtype", "bf16", pre=pre, raw=True, generic=line.generic)
    quantizer.quantize(path, tmp_path / "theirs.gguf", quantizer.Settings(FILE_TYPES[recipe.upper()].number or 0))
    a, b = tensors(open_gguf(tmp_path / "ours.gguf")), tensors(open_gguf(tmp_path / "theirs.gguf"))
    assert a.keys() == b.keys()
    assert not [(each, a[each][:2], b[each][:2]) for each in a if a[each] != b[each]], "tensors that differ"


def test_what_makes_no_sense_for_an_encoder_is_refused_and_the_rest_fits_it(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-bert"
    folder.mkdir()
    encoders.write("bert", folder)
    encoders.write_pooling(folder, "cls")
    with open_pass(request(folder)) as planned:
        notes = planned.notes
    run(request(folder))
    file = folder / "tiny-bert-F16.gguf"
    served = f"llama-server -m {file.name} --embeddings"
    assert [note for note in notes if note.endswith(served)]
    for path in (folder, file):
        with pytest.raises(Unsupported, match="predict no token"), opened_model(request(path)):
            pass
    with open_gguf(file) as made:
        assert made.metadata["bert.pooling_type"].data == PoolingType.CLS
        assert cache_bytes(made.metadata, 512, cache_type("f16")) == 0
    assert modelfile_of(file).text.splitlines()[1:] == [f"FROM ./{file.name}"]
    with pytest.raises(Unsupported, match="no Hugging Face class"):
        prepare(ToHfJob(file, tmp_path / "back", sync=False))
