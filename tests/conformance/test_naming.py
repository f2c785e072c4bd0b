"""Model ids and general.* keys against gguf-py, which the reference converter takes them from."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, size_label
from gguf.constants import GGUFValueType as ValueType
from gguf.constants import Keys
from gguf.metadata import Metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufsmith.naming.identity import Parameters, identify, title
from ggufsmith.naming.metadata import general_metadata, read_overrides

pytestmark = pytest.mark.conformance

with (Path(__file__).parent.parent / "naming" / "names.csv").open(encoding="utf-8", newline="") as file:
    NAMES = list(csv.DictReader(file))


def ours(model_id: str, total: int) -> tuple[str | None, ...]:
    said = identify(model_id, total)
    return said.name, said.organization, said.basename, said.finetune, said.version, said.size_label


@pytest.mark.parametrize("total", [None, 0, 1_100_048_384, 70_553_706_496])
def test_published_names(total: int | None) -> None:
    for row in NAMES:
        count = int(row["parameters"]) if total is None else total
        assert ours(row["model_id"], count) == Metadata.get_model_id_components(row["model_id"], count)


PARTS = (
    "Llama llama Qwen2.5 Phi 3 mini 4k 128k 7b 7B 8x7B instruct Instruct chat v0.1 V2 iter3 Q4_0 q4_k_m F16 fp16 BF16"
    " A3B a22b large XL xxl small 7b1 1_5B 0.5B Coder  hf GGUF 2407 1T 30B 560M r1 .x _ é Lora vision 3.1 a7b1 k5"
).split(" ")
FRONTS = ("", "", "", "org/", "./", "../", "/", "a-b/c/")


@settings(max_examples=4000)
@given(st.sampled_from(FRONTS), st.lists(st.sampled_from(PARTS), min_size=1, max_size=7), st.integers(0, 10**12))
def test_any_name(front: str, parts: list[str], total: int) -> None:
    model_id = front + "-".join(parts)
    assert ours(model_id, total) == Metadata.get_model_id_components(model_id, total)
    assert title(model_id) == Metadata.id_to_title(model_id)


@given(st.integers(0, 10**14), st.integers(0, 10**13), st.integers(0, 10**13), st.integers(0, 512))
def test_size_labels(total: int, shared: int, expert: int, count: int) -> None:
    assert Parameters(total, shared, expert, count).size_label == size_label(total, shared, expert, count)


TENSORS = [
    ("token_embd.weight", (320, 64)),
    ("blk.0.ffn_down_exps.weight", (8, 64, 32)),
    ("blk.0.ffn_down_exps.bias", (8, 64)),
    ("blk.1.ffn_down_exps.weight", (4, 64, 32)),
    ("blk.0.attn_norm.weight", (64,)),
]


def test_parameter_counts(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "qwen3moe")
    for name, shape in TENSORS:
        writer.add_tensor(name, np.zeros(shape, "f4"))
    counted = Parameters.of(TENSORS)
    assert (counted.total, counted.shared, counted.expert, counted.expert_count) == writer.get_total_parameter_count()


CARDS = {
    "none": None,
    "published": """
license: llama3.1
license_name: llama
license_link: LICENSE
language:
- en
- no
tags:
- facebook
- pytorch
pipeline_tag: text-generation
base_model: meta-llama/Meta-Llama-3.1-8B
datasets:
- HuggingFaceH4/ultrachat_200k
- https://huggingface.co/datasets/a/b
- https://huggingface.co/a/b-7B-v2
library_name: transformers
""",
    "TheBloke": """
base_model: https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.2
inference: false
license: apache-2.0
model_creator: Mistral AI_
model_name: Mistral 7B Instruct v0.2
model_type: mistral
pipeline_tag: text-generation
prompt_template: '<s>[INST] {prompt} [/INST]

  '
quantized_by: TheBloke
""",
    "merge": """
base_models:
- {name: One, author: A, version: '1', organization: O, description: D, url: U, doi: X, uuid: Y, repo_url: Z}
- ssh://git@example.org/x
- some sentence with spaces
language: en
tags: merge
license: [mit, apache-2.0]
""",
    "own names": """
name: N
author: A
version: v9
organization: O
description: D
finetune: F
basename: B
size_label: 3B
url: U
doi: X
uuid: Y
repo_url: Z
dataset_sources: a/b
""",
    "empty lists": "base_model:\ndatasets: []\ntags: []\nlanguages: []\n",
}
GENERATION = {
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "min_p": 0.05,
    "sequence": "abc",
    "mirostat": 2,
    "mirostat_tau": 5,
    "penalty_last_n": 64,
    "penalty_repeat": 1.1,
    "repetition_penalty": 1.05,
    "xtc_probability": None,
}
OVERRIDE = {
    Keys.General.NAME: "Named",
    Keys.General.QUANTIZED_BY: "me",
    Keys.General.URL: "https://example.org",
    Keys.General.SAMPLING_TOP_K: 3,
    Keys.General.VERSION: None,
    Keys.General.TAGS: ["x", "y"],
    "general.base_models": [{"name": "Base", "repo_url": "https://example.org/base"}],
}


@pytest.mark.parametrize("name", [None, "Option"])
@pytest.mark.parametrize("override", [None, OVERRIDE], ids=["", "override"])
@pytest.mark.parametrize("config", [{}, {"_name_or_path": "acme/Rocket-9B-Chat-v3"}, {"_name_or_path": "/a/b/c"}])
@pytest.mark.parametrize("card", CARDS)
def test_general_keys(
    tmp_path: Path, card: str, config: dict[str, Any], override: dict[str, Any] | None, name: str | None
) -> None:
    folder = tmp_path / "TinyLlama-1.1B-Chat-v1.0"
    folder.mkdir()
    if CARDS[card] is not None:
        (folder / "README.md").write_text(f"---\n{CARDS[card]}---\ntext\n", encoding="utf-8")
        (folder / "generation_config.json").write_text(json.dumps(GENERATION), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    file = tmp_path / "override.json"
    if override:
        file.write_text(json.dumps(override), encoding="utf-8")
    parameters = Parameters(1_100_048_384, 1_100_048_384)

    # As conversion/base.py does in prepare_metadata.
    reference = Metadata.load(file if override else None, folder, name, parameters.total)
    if reference.size_label is None:
        reference.size_label = size_label(parameters.total, parameters.shared, 0, 0)
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_type("model")
    reference.set_gguf_meta_model(writer)
    writer.add_quantization_version(2)
    writer.add_file_type(1)
    expected = {key: (value.type, value.value) for key, value in writer.kv_data[0].items()}

    notes: list[str] = []
    found = general_metadata(
        folder,
        config,
        parameters,
        architecture="llama",
        file_type=1,
        name=name,
        overrides=read_overrides(file) if override else None,
        note=notes.append,
    )
    for key, (kind, data) in expected.items():
        stored = found[key].data
        assert found[key].type == kind, key
        wanted = np.float32(data) if kind == ValueType.FLOAT32 else data
        assert (list(stored) if isinstance(stored, tuple) else stored) == wanted, key
    assert found.keys() == expected.keys()
    assert notes == []
