"""Several outputs of one reading: each has the bytes that it has alone, whatever stands beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
import quantized
from ggufsmith.container.errors import Usage
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.checkpoint import LocalFiles
from ggufsmith.convert.open import open_pass
from ggufsmith.quantize.measured import with_budgets
from merging import stored
from requesting import plan, request, run

ASKED: dict[str, dict[str, Any]] = {
    "types": {"outtypes": ("f16", "bf16", "f32")},
    "a type and recipes": {"outtypes": ("bf16",), "recipes": ("q8_0", "q4_K_M")},
    "what it has, and a recipe": {"outtypes": ("auto",), "recipes": ("q8_0",)},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("llama", tmp_path_factory.mktemp("m") / "Tiny")


@pytest.fixture(scope="module")
def file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("f") / "Tiny-Q8_0.gguf"
    run(request(model, "q8_0", outfile=path))
    return path


def check_each_alone(
    source: Path, folder: Path, outtypes: tuple[str, ...], recipes: tuple[str, ...], **more: Any
) -> None:
    planned = plan(request(source, *recipes, outtypes=outtypes, outdir=folder, **more))
    labels = [output.label for output in planned.made.outputs]
    run(planned)
    alone = folder / "alone.gguf"
    each = [request(source, outtype=outtype, outfile=alone) for outtype in outtypes]
    each += [request(source, recipe, outfile=alone, **more) for recipe in recipes]
    for asked, output in zip(each, planned.made.outputs, strict=True):
        run(asked)
        assert alone.read_bytes() == output.path.read_bytes(), output.label
    alone.unlink()
    assert len(set(labels)) == len(labels) == len(list(folder.iterdir()))


@pytest.mark.parametrize("name", ASKED)
def test_of_a_folder(name: str, model: Path, tmp_path: Path) -> None:
    asked = ASKED[name]
    check_each_alone(model, tmp_path, asked["outtypes"], asked.get("recipes", ()))


def test_of_a_file(file: Path, tmp_path: Path) -> None:
    """Unquantized files may be made of quantized weights, quantized ones only if that was said."""
    check_each_alone(file, tmp_path, ("f16", "f32"), ())
    with pytest.raises(Usage, match="--allow-requantize"):
        plan(request(file, "q4_0", outtypes=("f16",), outdir=tmp_path))
    check_each_alone(file, tmp_path / "both", ("f16",), ("q4_0",), allow_requantize=True)


def test_the_weights_are_read_once(model: Path, tmp_path: Path) -> None:
    """And are told of once: what advances is the model, not each output."""
    reads = 0

    class Counting(LocalFiles):
        def read_into(self, path: Path, offset: int, buffer: memoryview) -> int:
            nonlocal reads
            reads += len(buffer)
            return super().read_into(path, offset, buffer)

    done: list[int] = []
    planned = plan(request(model, "q8_0", outtypes=("f16", "bf16"), outdir=tmp_path, threads=1), Counting)
    run(planned, done.append)
    assert sum(done) == planned.made.weights
    assert reads == planned.made.info.nbytes


@pytest.mark.parametrize(
    "options",
    [{"outtypes": ("f16", "F16")}, {"outtypes": ("bf16", "auto")}, {"outtypes": ("f16",), "recipes": ("f16",)}],
)
def test_two_of_one_name(model: Path, options: dict[str, Any]) -> None:
    with pytest.raises(Usage, match=r"would make the same file, .*Tiny-B?F16\.gguf"):
        plan(request(model, **options))


def test_one_name_for_several(model: Path, file: Path, tmp_path: Path) -> None:
    """Refused before anything is measured."""
    path = tmp_path / "x.gguf"
    for asked in (
        request(model, outtypes=("f16", "bf16"), outfile=path),
        request(model, "q8_0", outtypes=("f16",), outfile=path),
        request(file, "f16", "f32", outfile=path),
    ):
        with pytest.raises(Usage, match="--outfile names one file"):
            plan(asked)
    with pytest.raises(Usage, match="--outfile names one file"):
        with_budgets(request(model, target_bpw=(5.0, 6.0), outfile=path), open_pass, lambda weights: pytest.fail())


# ---- types of their own ----

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def mixed(kind: str, folder: Path, odd: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """A checkpoint in BF16, but for the tensors named in `odd`. The tensors and their types."""
    checkpoints.write(kind, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = {
        name: (odd.get(name, "BF16"), checkpoints.bits(array, DTYPES[odd.get(name, "BF16")]))
        for name, array in checkpoints.tensors_of(config, "float32").items()
    }
    quantized.save(tensors, folder / "model.safetensors")
    return tensors


def matrices(path: Path) -> dict[str, str]:
    with open_gguf(path) as gguf:
        return {info.name: info.format.name for info in gguf.tensors.values() if len(info.shape) > 1}


def test_a_copy_keeps_the_type_of_each_matrix(tmp_path: Path) -> None:
    """And every bit of it."""
    odd = {"model.layers.0.mlp.down_proj.weight": "F32", "model.layers.1.mlp.up_proj.weight": "F16"}
    tensors = mixed("llama", tmp_path / "Mixed", odd)
    run(request(tmp_path / "Mixed", "copy", outfile=tmp_path / "copy.gguf"))
    names = {"blk.0.ffn_down.weight": "F32", "blk.1.ffn_up.weight": "F16"}
    found = matrices(tmp_path / "copy.gguf")
    assert found == {name: names.get(name, "BF16") for name in found} and set(names) < set(found)
    with open_gguf(tmp_path / "copy.gguf") as gguf:
        for name, source in zip(names, odd, strict=True):
            np.testing.assert_array_equal(stored(gguf, name), tensors[source][1].view(np.uint8).reshape(-1))


def test_a_copy_of_experts(tmp_path: Path) -> None:
    experts = "model.layers.0.block_sparse_moe.experts"
    mixed("mixtral", tmp_path / "Mixed", {f"{experts}.{k}.w3.weight": "F16" for k in range(4)})
    run(request(tmp_path / "Mixed", "copy", outfile=tmp_path / "copy.gguf"))
    found = {name: kind for name, kind in matrices(tmp_path / "copy.gguf").items() if "_exps" in name}
    assert found == {name: "F16" if name == "blk.0.ffn_up_exps.weight" else "BF16" for name in found}
    assert len(found) == 6


def test_other_outputs_of_a_mixed_checkpoint_have_one_type(tmp_path: Path) -> None:
    mixed("llama", tmp_path / "Mixed", {"model.layers.0.mlp.down_proj.weight": "F32"})
    run(request(tmp_path / "Mixed", "copy", "q8_0", outtypes=("auto", "f16"), outdir=tmp_path))
    for kind in ("BF16", "F16", "Q8_0"):
        assert set(matrices(tmp_path / f"Mixed-{kind}.gguf").values()) == {kind}
    run(request(tmp_path / "Mixed-BF16.gguf", "q8_0", outfile=tmp_path / "again.gguf"))
    one, again = (matrices(tmp_path / name) for name in ("Mixed-Q8_0.gguf", "again.gguf"))
    assert one == again
