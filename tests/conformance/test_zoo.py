"""Every line of the zoo: our conversion against llama.cpp's converter, and llama.cpp's logits against transformers'."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import as_llamacpp
import numpy as np
import pytest
import quantizer
import tokenizer_oracles as oracles
from llama_models import logits
from test_convert import PRE, ours, tensors

import reference
import tiny
import zoo
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.architectures import ARCHITECTURES
from ggufsmith.convert.architectures.later import LATER
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.plan import make_plan
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
from requesting import request, run

pytestmark = pytest.mark.conformance

# One for each shape of the models that are downloaded most, two of the newest, and those that keep states.
# `make recipes` takes all.
SAMPLE = (
    "north-mini",
    "glm-dsa",
    "qwen3_5-vl",
    "qwen3_5-moe",
    "gemma4-31b",
    "gemma4-e2b",
    "gemma4-26b",
    "gpt-oss",
    "ministral3",
    "falcon-40b",
    "qwen3-vl",
    *("dbrx", "hy-v4", "step3p7", "glm4v-moe", "minicpmv4_6"),
    *("mamba2", "granitehybrid", "nemotron_h", "nemotron_h_moe", "falcon-h1", "jamba", "kimi-linear"),
)
# Those that cannot be made four times as wide, and why.
NARROW = {
    "phimoe": "its factors of LongRoPE are for heads of one size",
    "glm": "llama.cpp wants the heads to be as wide as the embedding",
    "hunyuan-a13b": "the converter insists on the width of the published model's heads",
}
EVERY = [name for name, line in zoo.ZOO.items() if not line.reference and name not in NARROW]
QUANTIZED = EVERY if "EVERY_LINE" in os.environ else SAMPLE
LINES = [(name, False) for name in zoo.ZOO] + [(name, True) for name, line in zoo.ZOO.items() if line.two_spellings]


@pytest.mark.parametrize(
    ("name", "published"), LINES, ids=lambda value: {True: "published", False: ""}.get(value, value)
)
def test_a_line(name: str, published: bool, tmp_path: Path) -> None:
    import torch

    line = zoo.ZOO[name]
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = zoo.write(name, folder, published=published)
    notes = make_plan(open_config(folder), None).notes
    assert not [note for note in notes if note.startswith("these keys of config.json")]
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    ids = np.random.default_rng(5).integers(3, 300, 48).tolist()
    for module in model.modules():  # ggml looks GELU up in a table of float16
        if type(module).__name__ in ("GELUTanh", "NewGELUActivation", "BloomGelu"):
            module.forward = lambda x: torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    assert bool(line.unlike) == (name in as_llamacpp.CHANGES)
    as_llamacpp.CHANGES.get(name, lambda model: None)(model)
    with torch.no_grad():
        expected = tiny.text_model(model)(torch.tensor([ids])).logits[0].numpy()
    found = logits(mine.path, ids)
    kept = expected > np.finfo(np.float32).min  # tokens of pictures are never written
    found, expected = found[kept], expected[kept]
    error = ((found - expected) ** 2).sum() / (expected**2).sum()
    print(f"{name}: {error:.2e}")
    assert error < line.nmse
    if not line.reference and (published or not line.two_spellings):
        pre = PRE.get(line.vocabulary, "")
        path = tmp_path / "theirs.gguf"
        theirs = open_gguf(
            reference.convert(folder, path, "--outtype", "f32", *line.options, pre=pre, raw=True, generic=line.generic)
        )
        a, b = tensors(mine), tensors(theirs)
        assert a.keys() == b.keys()
        assert not [each for each in a if not same(each, a[each], b[each])], "tensors that differ"
        ids = {key for key in mine.metadata.keys() | theirs.metadata.keys() if line.generic and "tokenizer." in key}
        assert not oracles.unlike(mine.path, mine.metadata, theirs.metadata, ids | line.differs.keys())


def test_the_gating_that_transformers_5_leaves_out_of_config_json(tmp_path: Path) -> None:
    """llama.cpp's converter then says nothing, and softmax is assumed: the file loads, and computes something else."""
    import torch

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = zoo.write("deepseek-v3", folder)
    assert "scoring_func" not in (folder / "config.json").read_text(encoding="utf-8")
    theirs = reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f32", pre="qwen2", raw=True)
    ids = np.random.default_rng(5).integers(3, 300, 48).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    errors = [
        ((logits(path, ids) - expected) ** 2).sum() / (expected**2).sum()
        for path in (ours(folder, tmp_path / "ours.gguf", "f32").path, theirs)
    ]
    assert errors[0] < 1e-9 and errors[1] > 1e-3


def same(name: str, ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    """Whether two tensors are equal; torch rounds exponentials and powers otherwise from processor to processor."""
    if name.endswith((".ssm_a", "rope_freqs.weight")) and ours[:2] == theirs[:2] == (ours[0], "F32"):
        one, other = (np.frombuffer(each[2], np.float32) for each in (ours, theirs))
        return bool(np.allclose(one, other, rtol=2e-7, atol=0))
    return ours == theirs


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_in_one_step_as_by_the_converter_and_the_quantizer(name: str, tmp_path: Path) -> None:
    line = zoo.ZOO[name]
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    zoo.write(name, folder, published=line.two_spellings, wide=True, dtype="bfloat16")
    run(request(folder, "q4_K_M", outfile=tmp_path / "ours.gguf"))
    path, pre = tmp_path / "middle.gguf", PRE.get(line.vocabulary, "")
    middle = "f32" if line.folded else "bf16"  # we quantize the products themselves
    reference.convert(folder, path, "--outtype", middle, *line.options, pre=pre, raw=True, generic=line.generic)
    quantizer.quantize(path, tmp_path / "theirs.gguf", quantizer.Settings(FILE_TYPES["Q4_K_M"].number or 0))
    a, b = tensors(open_gguf(tmp_path / "ours.gguf")), tensors(open_gguf(tmp_path / "theirs.gguf"))
    assert a.keys() == b.keys()
    assert not [(each, a[each][:2], b[each][:2]) for each in a if not same(each, a[each], b[each])], (
        "tensors that differ"
    )


@pytest.mark.parametrize("recipe", ["q4_K_M", "q2_K", "iq4_xs"])
@pytest.mark.parametrize("name", [name for name, line in zoo.ZOO.items() if line.reference and name not in NARROW])
def test_quantized_in_one_step_as_by_the_quantizer_alone(name: str, recipe: str, tmp_path: Path) -> None:
    """Where the converter fails, of our own file in between."""
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    zoo.write(name, folder, published=zoo.ZOO[name].two_spellings, wide=True, dtype="bfloat16")
    run(request(folder, recipe, outfile=tmp_path / "ours.gguf"))
    middle = ours(folder, tmp_path / "middle.gguf", "bf16").path
    quantizer.quantize(middle, tmp_path / "theirs.gguf", quantizer.Settings(FILE_TYPES[recipe.upper()].number or 0))
    a, b = tensors(open_gguf(tmp_path / "ours.gguf")), tensors(open_gguf(tmp_path / "theirs.gguf"))
    assert a.keys() == b.keys()
    assert not [(each, a[each][:2], b[each][:2]) for each in a if a[each] != b[each]], "tensors that differ"


@pytest.mark.parametrize("name", ["glm-dsa", "dbrx", "hy-v4", "step3p7"])
def test_matrices_that_stay_in_float32_are_those_of_the_converter(name: str, tmp_path: Path) -> None:
    line = zoo.ZOO[name]
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    zoo.write(name, folder, published=line.two_spellings, dtype="bfloat16")
    pre = PRE.get(line.vocabulary, "")
    theirs = tmp_path / "theirs.gguf"
    reference.convert(folder, theirs, "--outtype", "bf16", *line.options, pre=pre, raw=True, generic=line.generic)
    a, b = tensors(ours(folder, tmp_path / "ours.gguf", "bf16")), tensors(open_gguf(theirs))
    assert a.keys() == b.keys()
    assert not [(each, a[each][:2], b[each][:2]) for each in a if not same(each, a[each], b[each])], (
        "tensors that differ"
    )


def test_norms_of_heads_that_are_alike_are_those_of_the_converter(tmp_path: Path) -> None:
    """Chameleon's: of other norms than those of the first head, the converter knows nothing."""
    from safetensors.torch import load_file, save_file

    line = zoo.ZOO["chameleon"]  # with as many heads of keys, or the converter fails
    line = replace(line, config={**line.config, "num_key_value_heads": 4})
    tiny.write_line(line, tmp_path, published=False, wide=False, dtype="float32", seed=0)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    norms = {name: weights[name] for name in weights if ".q_norm." in name or ".k_norm." in name}
    alike = {name: norm[:1].expand(norm.shape).contiguous() for name, norm in norms.items()}
    save_file({**weights, **alike}, path, {"format": "pt"})
    mine = ours(tmp_path, tmp_path / "ours.gguf", "f32")
    theirs = open_gguf(reference.convert(tmp_path, tmp_path / "theirs.gguf", "--outtype", "f32", pre="qwen2", raw=True))
    a, b = tensors(mine), tensors(theirs)
    assert len(norms) == 16
    assert a.keys() == b.keys() and not [each for each in a if a[each] != b[each]]
    assert not oracles.unlike(mine.path, mine.metadata, theirs.metadata, set())


def test_step_3_5_is_the_language_model_of_step_3_7_alone(tmp_path: Path) -> None:
    """Its folders have no object for the language model, and a class that transformers lacks."""
    zoo.write("step3p7", tmp_path, published=True)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    text = {**whole["text_config"], "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5"}
    path.write_text(json.dumps(text), encoding="utf-8")
    mine = ours(tmp_path, tmp_path / "ours.gguf", "f32")
    theirs = open_gguf(reference.convert(tmp_path, tmp_path / "theirs.gguf", "--outtype", "f32", pre="qwen2", raw=True))
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys() and not [each for each in a if not same(each, a[each], b[each])]
    assert not oracles.unlike(mine.path, mine.metadata, theirs.metadata, set())


@pytest.mark.parametrize("recipe", ["copy", "mxfp4_moe"])
def test_the_experts_of_gpt_oss_stay_bit_for_bit(recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    zoo.write("gpt-oss", folder, wide=True, dtype="bfloat16")
    tiny.to_mxfp4(folder)
    run(request(folder, recipe, outfile=tmp_path / "ours.gguf"))
    path = reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "bf16", pre="qwen2", raw=True)
    a, b = tensors(open_gguf(tmp_path / "ours.gguf")), tensors(open_gguf(path))
    assert a.keys() == b.keys()
    experts = {name for name in b if "_exps.weight" in name}
    assert experts and all(b[name][1] == "MXFP4" for name in experts)
    same = a.keys() if recipe == "copy" else experts
    assert not [(name, a[name][:2], b[name][:2]) for name in same if a[name] != b[name]], "tensors that differ"


def test_the_experts_of_gpt_oss_have_the_values_of_their_blocks(tmp_path: Path) -> None:
    """By gguf-py's decoder."""
    from gguf import GGMLQuantizationType, quants

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    zoo.write("gpt-oss", folder, dtype="bfloat16")
    tiny.to_mxfp4(folder)
    run(request(folder, "copy", outfile=tmp_path / "blocks.gguf"))
    blocks, dense = tensors(open_gguf(tmp_path / "blocks.gguf")), tensors(ours(folder, tmp_path / "dense.gguf", "f32"))
    for name in (name for name in blocks if "_exps.weight" in name):
        raw = np.frombuffer(blocks[name][2], np.uint8).reshape(*blocks[name][0][:-1], -1)
        values = quants.dequantize(raw, GGMLQuantizationType.MXFP4).ravel()
        assert np.array_equal(values, np.frombuffer(dense[name][2], np.float32)), name  # -0 is 0


def test_what_is_not_here_yet_is_what_the_converter_knows_besides() -> None:
    command = [
        sys.executable,
        "-c",
        "import conversion; print(*conversion.TEXT_MODEL_MAP, *conversion.MMPROJ_MODEL_MAP)",
    ]
    done = subprocess.run(command, env=reference.environment(), capture_output=True, text=True, check=True)
    known = {name for name in done.stdout.split() if "." not in name}  # without modules of remote code
    assert known - ARCHITECTURES.keys() == LATER
