"""Checkpoints saved through wrappers around the model, and in float64: read, or named in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import adapters
import checkpoints
import quantized
from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.names import unwrapped
from requesting import plan, request, run

Rename = Callable[[str], str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("qwen3", tmp_path_factory.mktemp("base") / "Model", tie_word_embeddings=False)


def renamed(base: Path, folder: Path, rename: Rename, dtype: str = "BF16", **more: np.ndarray) -> Path:
    """The same model under other names of tensors."""
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    tensors: quantized.Tensors = {}
    for name, array in checkpoints.tensors_of(config).items():
        wide = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[rename(name)] = ("F64", wide.astype(np.float64)) if dtype == "F64" else ("BF16", array)
    quantized.save({**tensors, **{n: ("F32", t) for n, t in more.items()}}, folder / "model.safetensors")
    return folder


def tensors(folder: Path, output: Path, **options: object) -> dict[str, bytes]:
    run(request(folder, outfile=output, **options))
    with open_gguf(output) as gguf:
        data = output.read_bytes()
        return {info.name: data[info.offset : info.offset + info.nbytes] for info in gguf.tensors.values()}


def in_blocks(wrapper: str) -> Rename:
    """As torch.compile and activation checkpointing name single blocks."""
    return lambda name: name.replace("layers.0.", f"layers.0.{wrapper}.")


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda name: f"_orig_mod.{name}", "_orig_mod"),
        (lambda name: f"module.{name}", "module."),
        (lambda name: f"base_model.model.{name}", "base_model.model."),
        (lambda name: f"model.{name}", "model."),
        (lambda name: f"module._orig_mod.{name}", "module."),
        (lambda name: f"_fsdp_wrapped_module.{name}", "_fsdp_wrapped_module"),
        (lambda name: f"student.policy.{name}", "student.policy."),
        (in_blocks("_orig_mod"), "_orig_mod"),
        (in_blocks("_checkpoint_wrapped_module"), "_checkpoint_wrapped_module"),
        (lambda name: f"module.{name.removeprefix('model.')}", "module."),
    ],
)
def test_wrappers_are_read_through(tmp_path: Path, base: Path, rename: Rename, said: str) -> None:
    folder = renamed(base, tmp_path / "m", rename)
    assert tensors(folder, tmp_path / "a.gguf") == tensors(base, tmp_path / "b.gguf")
    notes = [note for note in plan(request(folder)).notes if "a wrapper around the model" in note]
    assert any(repr(said) in note for note in notes), notes


def test_names_that_need_nothing_are_left_alone(base: Path, tmp_path: Path) -> None:
    assert not any("wrapper" in note for note in plan(request(base)).notes)
    bare = renamed(base, tmp_path / "m", lambda name: name.removeprefix("model."))
    assert not any("wrapper" in note for note in plan(request(bare)).notes)


@pytest.mark.parametrize(
    "names",
    [
        ["language_model.model.layers.0.x", "vision_tower.y"],
        ["language_model.model.layers.0.x"],
        ["model.language_model.layers.0.x", "model.vision_tower.y"],
        ["layers.0.attention.wq.weight", "norm.weight"],
        ["transformer.h.0.attn.weight"],
        ["x"],
        [],
    ],
)
def test_other_names_stay(names: list[str]) -> None:
    assert unwrapped(names, "x") == ({name: name for name in names}, ())


def test_a_name_with_and_without_its_wrapper() -> None:
    with pytest.raises(Malformed, match="occurs twice"):
        unwrapped(["model.layers.0.a", "_orig_mod.model.layers.0.a"], "x")


def test_an_adapter_that_was_never_merged(tmp_path: Path, base: Path) -> None:
    """What save_pretrained writes of a model inside peft: one line, and not one for each tensor."""

    def rename(name: str) -> str:
        return f"base_model.model.{name}".replace("proj.weight", "proj.base_layer.weight")

    q = "base_model.model.model.layers.0.self_attn.q_proj"
    more = {f"{q}.lora_{end}.default.weight": np.ones((4, 4), np.float32) for end in "AB"}
    folder = renamed(base, tmp_path / "m", rename, **more)
    with pytest.raises(Unsupported, match="not merged into the model") as failure:
        plan(request(folder))
    assert str(failure.value).count("\n") == 1
    assert "merge_and_unload" in str(failure.value)


@pytest.mark.parametrize("rename", [lambda name: name, lambda name: f"module.{name}"])
def test_float64_is_read(tmp_path: Path, base: Path, rename: Rename) -> None:
    wide = renamed(base, tmp_path / "m", rename, "F64")
    for outtype in ("f16", "bf16", "f32"):
        ours = tensors(wide, tmp_path / "a.gguf", outtype=outtype)
        assert ours == tensors(base, tmp_path / "b.gguf", outtype=outtype)


def test_float64_is_rounded_to_the_nearest_float32(tmp_path: Path) -> None:
    folder = checkpoints.write("llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(3)
    values = {name: rng.standard_normal(shape) * 0.02 for name, shape in checkpoints.shapes(config)}
    quantized.save({name: ("F64", value) for name, value in values.items()}, folder / "model.safetensors")
    found = tensors(folder, tmp_path / "a.gguf", outtype="f32")
    name, expected = "blk.1.ffn_down.weight", values["model.layers.1.mlp.down_proj.weight"]
    assert found[name] == expected.astype(np.float32).tobytes()
    values["model.layers.1.mlp.down_proj.weight"][3, 5] = 1e300
    quantized.save({name: ("F64", value) for name, value in values.items()}, folder / "model.safetensors")
    with pytest.raises(Malformed, match=r"blk\.1\.ffn_down"):
        tensors(folder, tmp_path / "b.gguf", outtype="f32")


@pytest.mark.parametrize("rename", [lambda name: name, lambda name: f"module.{name}", lambda n: f"_orig_mod.{n}"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adapters_too(tmp_path: Path, bases: dict[str, Path], rename: Rename, dtype: type) -> None:
    parts = adapters.write(bases["llama"], tmp_path / "plain", targets=adapters.ALL)
    adapters.write(bases["llama"], tmp_path / "other", targets=adapters.ALL)
    stored = {rename(adapters.PREFIX + name): array.astype(dtype) for name, array in parts.items()}
    path = tmp_path / "other" / "adapter_model.safetensors"
    quantized.save({name: ("F64" if dtype is np.float64 else "F32", a) for name, a in stored.items()}, path)
    ours, theirs = (tensors(tmp_path / name, tmp_path / f"{name}.gguf") for name in ("other", "plain"))
    assert ours == theirs
    merged = [
        tensors(bases["llama"], tmp_path / "m.gguf", lora=((tmp_path / name, 1.0),)) for name in ("other", "plain")
    ]
    assert merged[0] == merged[1]
