"""Mixtral files of early 2024, written by the gguf package: llama.cpp refuses them, and runs what we make of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_models import logits

import checkpoints
from ggufsmith.convert.hf import run as back
from requesting import request, run

pytestmark = pytest.mark.conformance
IDS = np.random.default_rng(5).integers(3, 900, 48).tolist()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model in F16 as it is written today, and as it was written then."""
    folder = tmp_path_factory.mktemp("mixtral")
    source = checkpoints.write("mixtral", folder / "source")
    run(request(source, outfile=folder / "new-F16.gguf"))
    return folder / "new-F16.gguf", take_apart(folder / "new-F16.gguf", folder / "old-F16.gguf")


def take_apart(source: Path, path: Path) -> Path:
    import gguf

    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        kind: Any = field.types[0] if field.types else None
        if kind is None or key.startswith("GGUF.") or key == "general.architecture":
            continue
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), kind)
    for tensor in reader.tensors:
        name, experts = tensor.name.replace("_exps.weight", ".{}.weight"), "_exps" in tensor.name
        for number, data in enumerate(tensor.data if experts else [tensor.data]):
            writer.add_tensor(name.format(number), np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def made(source: Path, path: Path, recipe: str) -> Path:
    run(request(source, recipe, outfile=path))
    return path


def test_llama_cpp_refuses_the_old_file(files: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="Failed to load model"):
        logits(files[1], IDS)


@pytest.mark.parametrize("recipe", ["copy", "f32", "q8_0", "q4_K_M"])
def test_logits_as_from_the_new_file(files: tuple[Path, Path], tmp_path: Path, recipe: str) -> None:
    ours, theirs = (made(file, tmp_path / f"{k}.gguf", recipe) for k, file in enumerate(reversed(files)))
    np.testing.assert_array_equal(logits(ours, IDS), logits(theirs, IDS))


def test_back_to_a_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    for name, file in zip(("new", "old"), files, strict=True):
        with back.prepare(back.ToHfJob(file, tmp_path / name, sync=False)) as prepared:
            back.run(prepared)
    new, old = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("new", "old"))
    assert new == old
    assert json.loads((tmp_path / "old" / "config.json").read_text(encoding="utf-8"))["num_local_experts"] == 4
