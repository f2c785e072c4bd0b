"""Whole files against `llama_model_quantize`: every tensor's bytes, for every file type and every option."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantizer
from numpy.typing import NDArray
from quantizer import Settings

import checkpoints
from ggufsmith.container.errors import Usage
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.reader import Gguf, open_gguf
from ggufsmith.container.shards import open_gguf_set
from ggufsmith.container.values import strings, u32
from ggufsmith.container.writer import Writer
from ggufsmith.pipeline.outputs import OutputFile
from ggufsmith.pipeline.request import Request
from ggufsmith.quantize.imatrix.read import COUNTS, SUMS
from ggufsmith.quantize.recipes.assign import Recipe
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
from requesting import plan, request, run

pytestmark = pytest.mark.conformance

# NVFP4 and Q1_0's neighbours that llama_model_quantize refuses are compared as types of single tensors.
FILES = [name for name in FILE_TYPES if name not in ("COPY", "NVFP4")]
# Kind of fixture, and changes to its config that make the rules for layers show.
MODELS: Mapping[str, tuple[str, dict[str, int]]] = {
    "llama": ("llama", {"num_hidden_layers": 8}),
    "llama-3": ("llama-3", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mixtral": ("mixtral", {"num_local_experts": 8}),
    "qwen2-moe": ("qwen2-moe", {}),
    "ragged": ("llama", {"hidden_size": 288, "intermediate_size": 416}),
}


def recipe(name: str) -> Recipe:
    return Recipe(name, FILE_TYPES[name])


def number(name: str) -> int:
    found = FILE_TYPES[name].number
    assert found is not None
    return found


def converted(kind: str, folder: Path, outtype: str, **changes: int) -> Path:
    checkpoints.write(kind, folder / "checkpoint", **changes)
    path = folder / f"Tiny-{outtype.upper()}.gguf"
    run(request(folder / "checkpoint", outtype=outtype, outfile=path))
    return path


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, changes = MODELS[request.param]
    return converted(kind, tmp_path_factory.mktemp("model"), "bf16", **changes)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted("llama", tmp_path_factory.mktemp("llama"), "f16", num_hidden_layers=8)


def importance_of(path: Path, seed: int = 3) -> dict[str, NDArray[np.float32]]:
    """(slices, width) of positive numbers over several magnitudes, for every matrix but the embeddings and output."""
    rng = np.random.default_rng(seed)
    with open_gguf_set(path) as gguf:
        return {
            info.name: np.exp(rng.normal(0, 2, (info.shape[0] if len(info.shape) > 2 else 1, info.shape[-1]))).astype(
                np.float32
            )
            for info in gguf.tensors.values()
            if info.name.startswith("blk.") and len(info.shape) > 1 and "_inp" not in info.name
        }


def write_imatrix(path: Path, means: Mapping[str, NDArray[np.float32]], count: int = 4) -> Path:
    """As llama-imatrix writes them; a count that is a power of two leaves the means exact."""
    data: dict[str, NDArray[np.float32]] = {}
    for name, values in means.items():
        data[name + SUMS] = values * np.float32(count)
        data[name + COUNTS] = np.full((len(values), 1), count, np.float32)
    keys = {
        "imatrix.datasets": strings(["/home/somebody/texts/calibration.txt"]),
        "imatrix.chunk_count": u32(10),
        "imatrix.chunk_size": u32(512),
    }
    layout = lay_out(keys, [TensorSpec(name, values.shape, BY_NAME["F32"]) for name, values in data.items()])
    with Writer(path, layout, sync=False) as writer:
        for offset, values in zip(layout.offsets, data.values(), strict=True):
            writer.write(offset, values)
        writer.commit()
    return path


def ours(asked: Request) -> tuple[OutputFile, ...]:
    planned = plan(asked)
    run(planned)
    return planned.made.outputs


def contents(gguf: Gguf) -> list[tuple[str, tuple[int, ...], str, bytes]]:
    data = gguf.path.read_bytes()
    return [(t.name, t.shape, t.format.name, data[t.offset : t.offset + t.nbytes]) for t in gguf.tensors.values()]


def differing(mine: Path, theirs: Path) -> list[str]:
    """Tensors that differ, after checking that both files have the same ones in the same order."""
    with open_gguf(mine) as a, open_gguf(theirs) as b:
        assert list(a.tensors) == list(b.tensors)
        return [f"{x[0]} {x[2]} {y[2]}" for x, y in zip(contents(a), contents(b), strict=True) if x != y]


def needs_importance(name: str) -> bool:
    return name in "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS IQ3_XS Q2_K_S".split()


def refused(path: Path, name: str) -> bool:
    """Q1_0 has blocks of 128, and no fallback for other widths; both refuse."""
    with open_gguf(path) as gguf:
        return name == "Q1_0" and any(len(t.shape) > 1 and t.shape[-1] % 128 for t in gguf.tensors.values())


@pytest.mark.parametrize("importance", [False, True], ids=["plain", "importance"])
def test_every_file_type(model: Path, tmp_path: Path, importance: bool) -> None:
    """All file types in one pass; without importance the whole file, header included, is theirs."""
    names = [name for name in FILES if not refused(model, name) and (importance or not needs_importance(name))]
    means = importance_of(model)
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", means) if importance else None
    outputs = ours(request(model, *map(recipe, names), outdir=tmp_path, imatrix=imatrix, threads=2))
    wrong = {}
    for name, output in zip(names, outputs, strict=True):
        settings = Settings(number(name), threads=2, importance=means if importance else None)
        theirs = quantizer.quantize(model, tmp_path / "theirs.gguf", settings)
        wrong[name] = differing(output.path, theirs)
        if not importance:
            assert output.path.read_bytes() == theirs.read_bytes() or wrong[name], f"{name}: the header differs"
        output.path.unlink()
    assert not {name: found[:4] for name, found in wrong.items() if found}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}  # file type, our options, llama.cpp's


def case(title: str, name: str, settings: dict[str, Any], **options: Any) -> None:
    CASES[title] = name, options, settings


case("pure", "Q4_K_M", {"pure": True}, pure=True)
case("output left", "Q4_K_M", {"leave_output": True}, leave_output_tensor=True)
case("output type", "Q4_K_M", {"output_type": "Q8_0"}, output_tensor_type="Q8_0")
case("embedding type", "Q4_K_M", {"token_embedding_type": "IQ4_XS"}, token_embedding_type="IQ4_XS")
PATTERNS = ((r"blk\.[1-3]\.ffn_(up|down)", "Q8_0"), ("ATTN_K", "Q5_1"), ("attn_", "IQ4_NL"), ("ffn_gate", "NVFP4"))
case(
    "types by name",
    "Q4_K_M",
    {"overrides": [(pattern.lower(), name) for pattern, name in PATTERNS]},
    tensor_types=tuple(f"{pattern}={name}" for pattern, name in PATTERNS),
)
case("pruned", "Q4_K_M", {"prune": [2, 3, 6]}, prune_layers=(6, 3, 2))
case("first layer pruned", "IQ4_XS", {"prune": [0]}, prune_layers=(0,))
OVERRIDES = {
    "llama.context_length": 77,
    "general.name": "Other",
    "llama.attention.head_count_kv": 1,
    "x.y": True,
    "x.z": 0.5,
}
case(
    "keys",
    "Q3_K_M",
    {"metadata": OVERRIDES},
    override_kv=(
        "llama.context_length=int:77",
        "general.name=str:Other",
        "llama.attention.head_count_kv=int:1",
        "x.y=bool:true",
        "x.z=float:0.5",
    ),
)
case("copy", "COPY", {"only_copy": True})


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("title", CASES)
def test_options(llama: Path, tmp_path: Path, title: str, threads: int) -> None:
    name, options, settings = CASES[title]
    file_type = 0 if name == "COPY" else number(name)
    theirs = quantizer.quantize(llama, tmp_path / "theirs.gguf", Settings(file_type, threads=threads, **settings))
    (output,) = ours(request(llama, recipe(name), outfile=tmp_path / "ours.gguf", threads=threads, **options))
    assert not differing(output.path, theirs)
    assert output.path.read_bytes() == theirs.read_bytes()


def test_requantizing(llama: Path, tmp_path: Path) -> None:
    """From Q8_0: refused unless allowed, and tensors that have their type already are copied."""
    first = ours(request(llama, recipe("Q8_0"), outdir=tmp_path))[0].path
    with pytest.raises(Usage, match="already quantized"):
        plan(request(first, recipe("Q4_K_M"), outdir=tmp_path))
    for name in ("Q4_K_M", "IQ4_XS", "Q8_0", "F16", "Q6_K"):
        theirs = quantizer.quantize(first, tmp_path / "theirs.gguf", Settings(number(name)))
        (output,) = ours(request(first, recipe(name), outfile=tmp_path / "o.gguf", allow_requantize=True))
        assert output.path.read_bytes() == theirs.read_bytes(), name


@pytest.fixture
def shards(llama: Path, tmp_path: Path) -> Path:
    """The first of three shards."""
    from ggufsmith.container.copy import copy, plan_split
    from ggufsmith.container.shards import Limits

    with open_gguf_set(llama) as source:
        plan = plan_split(source, Limits(max_tensors=len(source.tensors) // 3 + 1))
        return copy(source, plan, tmp_path / "Tiny-F16.gguf", sync=False).paths[0]


@pytest.mark.parametrize("split", [False, True], ids=["into one file", "split kept"])
def test_shards(shards: Path, tmp_path: Path, split: bool) -> None:
    (output,) = ours(request(shards, recipe("Q4_K_M"), outdir=tmp_path, keep_split=split))
    theirs = tmp_path / "theirs"
    quantizer.quantize(shards, theirs, Settings(number("Q4_K_M"), keep_split=split))
    others = [tmp_path / f"theirs-0000{k}-of-00003.gguf" for k in (1, 2, 3)] if split else [theirs]
    assert output.paths[0].name.startswith("Tiny-Q4_K_M")
    for mine, other in zip(output.paths, others, strict=True):
        assert not differing(mine, other)
        assert split or mine.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", ["llama", "llama-3", "qwen2", "qwen3-moe", "gemma3", "phi3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_one_step_equals_two(kind: str, dtype: str, tmp_path: Path) -> None:
    """From the checkpoint at once, as by way of a file in the checkpoint's own precision."""
    folder = checkpoints.write(kind, tmp_path / "Tiny", dtype=dtype)
    middle = tmp_path / "middle.gguf"
    run(request(folder, outtype="auto", outfile=middle))
    recipes = tuple(map(recipe, ("Q4_K_M", "IQ4_XS", "Q8_0", "Q3_K_S", "BF16")))
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", importance_of(middle))
    for file in (None, imatrix):
        two = ours(request(middle, *recipes, outdir=tmp_path, imatrix=file))
        for one, other in zip(ours(request(folder, *recipes, imatrix=file)), two, strict=True):
            assert one.path.name == f"Tiny-{one.label}.gguf"
            assert one.path.read_bytes() == other.path.read_bytes(), one.label
