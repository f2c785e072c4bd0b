"""Which tensor gets which type, against llama.cpp: its own snapshots, and dry runs of its quantizer."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import quantizer
from quantizer import Settings
from recipe_models import MODELS, SHARED_EXPERT, Model, attention, dense, stacked

from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import TensorSpec
from ggufsmith.container.reader import open_gguf
from ggufsmith.quantize.recipes.assign import (
    Override,
    Recipe,
    Stored,
    TypeOptions,
    assign,
    facts_of,
    file_order,
)
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
from ggufsmith.quantize.recipes.rules import Facts
from needed import need

pytestmark = pytest.mark.conformance

MIXED = [name for name in FILE_TYPES if name not in ("COPY", "NVFP4")]  # llama_model_quantize makes no NVFP4 file


def ours(
    file_type: str, specs: list[TensorSpec], facts: Facts, options: TypeOptions | None = None, overrides: tuple = ()
) -> dict[str, str]:
    by_name = {spec.name: Stored(spec.name, spec.shape, spec.format) for spec in specs}
    tensors = [by_name[name] for name in file_order(by_name)]
    recipe = Recipe(file_type, FILE_TYPES[file_type], overrides)
    return {found.tensor.name: found.format.name for found in assign(recipe, tensors, facts, options)}


# ---- llama.cpp's snapshots: whole models ----

GPT_OSS = {
    "attn_q": (4096, 2880),
    "attn_k": (512, 2880),
    "attn_v": (512, 2880),
    "attn_output": (2880, 4096),
    **stacked(128, 2880, 2880),
}
CODER_LINEAR = {  # three of four layers of Qwen3-Next have linear attention
    "attn_qkv": (8192, 2048),
    "attn_gate": (4096, 2048),
    "ssm_ba": (64, 2048),
    "ssm_out": (2048, 4096),
}
GEMMA = {
    "attn_q": (2048, 2560),
    "attn_k": (1024, 2560),
    "attn_v": (1024, 2560),
    "attn_output": (2560, 2048),
    **dense(2560, 10240),
}
WHOLE = {
    "gemma-3-4b-it": (Model("gemma3", 34, 8, 4, GEMMA, tied=True, width=2560), {}),
    "gpt-oss-120b": (Model("gpt-oss", 36, 64, 8, GPT_OSS, experts=128, width=2880), {}),
    "meta-llama-3.1-70b-instruct": (
        Model("llama", 80, 64, 8, attention(8192) | dense(8192, 28672), width=8192),
        {},
    ),
    "qwen3-0.6b": (Model("qwen3", 28, 16, 8, attention(1024) | dense(1024, 3072), width=1024), {}),
    "qwen3-14b": (Model("qwen3", 40, 40, 8, attention(5120) | dense(5120, 17408), width=5120), {}),
    "qwen3-coder-next": (
        Model("qwen3next", 48, 16, 2, stacked(512, 2048, 512) | SHARED_EXPERT, experts=512, width=2048),
        {n: attention(2048) if n % 4 == 3 else CODER_LINEAR for n in range(48)},
    ),
}


def sections(text: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(file type, base, the tensors that have another type) of a snapshot."""
    for part in re.split(r"^\[", text, flags=re.MULTILINE)[1:]:
        head, *lines = part.strip().splitlines()
        name, base = head.split("] ")
        yield name, base, dict(line.split(" ") for line in lines)


@pytest.mark.parametrize("name", WHOLE)
def test_snapshots(name: str) -> None:
    path = need("snapshots") / f"{name}.schema"
    model, extra = WHOLE[name]
    specs = model.specs()
    for block, matrices in extra.items():
        specs += [TensorSpec(f"blk.{block}.{part}.weight", s, format_of("F16")) for part, s in matrices.items()]
    text = path.read_text(encoding="utf-8")
    heads = dict(re.findall(r"(\w+)=(\d+)", text.splitlines()[1]))
    facts = facts_of(model.metadata)
    assert (facts.blocks, facts.heads, facts.kv_heads) == tuple(
        int(heads[k]) for k in ("n_layer", "n_head", "n_head_kv")
    )
    seen = 0
    for file_type, base, others in sections(text):
        assert FILE_TYPES[file_type].base is format_of(base)
        found = ours(file_type, specs, facts)
        quantized = {n for n in found if not re.search(r"norm|ffn_gate_inp\.", n)}
        assert others.keys() <= quantized, f"{file_type}: tensors of the snapshot that the test model lacks"
        wrong = {
            n: (found[n], others.get(n, base)) for n in quantized if found[n].lower() != others.get(n, base).lower()
        }
        assert not wrong, f"{file_type}: {list(wrong.items())[:5]}"
        seen += 1
    assert seen == len([kind for kind in MIXED if kind not in ("Q1_0", "Q2_0")])


# ---- dry runs of llama_model_quantize ----


@pytest.fixture(scope="module", params=MODELS)
def hollow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = MODELS[request.param]
    path = tmp_path_factory.mktemp("hollow") / "model.gguf"
    return quantizer.write_hollow(path, model.metadata, model.specs())


def compare(path: Path, file_type: str, settings: Settings, options: TypeOptions | None = None) -> None:
    with open_gguf(path) as gguf:
        facts = facts_of(gguf.metadata, importance=settings.importance is not None)
        specs = [TensorSpec(t.name, t.shape, t.format) for t in gguf.tensors.values()]
    theirs = quantizer.dry_run(path, settings)
    found = ours(file_type, specs, facts, options)
    assert list(found) == list(theirs), "the order of the tensors"
    wrong = {name: (found[name], theirs[name]) for name in found if found[name] != theirs[name]}
    assert not wrong, f"{file_type}: {list(wrong.items())[:5]}"


@pytest.mark.parametrize("importance", [False, True], ids=["plain", "importance"])
def test_every_file_type(hollow: Path, importance: bool) -> None:
    entries = {"blk.0.attn_q.weight": np.ones(256, np.float32)} if importance else None
    for name in MIXED:
        number = FILE_TYPES[name].number
        assert number is not None
        if name == "Q1_0" and has_ragged_rows(hollow, 128):
            continue  # no fallback: refused by both
        compare(hollow, name, Settings(number, importance=entries))


def has_ragged_rows(path: Path, block: int) -> bool:
    with open_gguf(path) as gguf:
        return any(len(t.shape) > 1 and t.shape[-1] % block for t in gguf.tensors.values())


OPTIONS = {
    "pure": (TypeOptions(pure=True), {"pure": True}),
    "leave output": (TypeOptions(leave_output=True), {"leave_output": True}),
    "output": (TypeOptions(output_type=format_of("Q8_0")), {"output_type": "Q8_0"}),
    "embedding": (TypeOptions(token_embedding_type=format_of("F16")), {"token_embedding_type": "F16"}),
    "both": (
        TypeOptions(output_type=format_of("BF16"), token_embedding_type=format_of("F32")),
        {"output_type": "BF16", "token_embedding_type": "F32"},
    ),
}
OVERRIDES = (
    ("attn_v|attn_qkv", "Q8_0"),
    (r"blk\.[0-9]\.ffn_down", "IQ4_XS"),
    ("blk.1[0-4].*ffn_up", "Q2_K"),
    ("embd", "Q4_1"),
)


@pytest.mark.parametrize("case", OPTIONS)
def test_options(hollow: Path, case: str) -> None:
    options, settings = OPTIONS[case]
    if case == "output" and has_ragged_rows(hollow, 32):
        return  # llama.cpp plans Q8_0 for it, and aborts when it comes to it; ours falls back
    for name in ("Q4_K_M", "IQ2_XXS", "IQ3_XXS", "Q8_0", "MXFP4_MOE", "Q4_0", "F16"):
        number = FILE_TYPES[name].number
        assert number is not None
        compare(hollow, name, Settings(number, **settings), options)


def test_overrides_by_name(hollow: Path) -> None:
    """The first match decides, and a tensor that one decides is not counted by the rules."""
    with open_gguf(hollow) as gguf:
        rows = [row for row in OVERRIDES if any(re.search(row[0], name) for name in gguf.tensors)]
    overrides = tuple(Override(format_of(name), re.compile(pattern), origin=pattern) for pattern, name in rows)
    for name in ("Q4_K_M", "Q3_K_M", "IQ1_S", "Q4_K_S"):
        number = FILE_TYPES[name].number
        assert number is not None
        compare(hollow, name, Settings(number, overrides=rows), TypeOptions(overrides=overrides))


def test_quantized_sources_and_importance_rules(tmp_path: Path) -> None:
    """Types that are there already stay: the source's format is no part of the decision."""
    model = MODELS["llama 8B, grouped queries"]
    path = quantizer.write_hollow(tmp_path / "q8.gguf", model.metadata, model.specs("Q8_0"))
    for name in ("Q4_K_M", "Q8_0", "Q6_K", "F16"):
        number = FILE_TYPES[name].number
        assert number is not None
        compare(path, name, Settings(number))
