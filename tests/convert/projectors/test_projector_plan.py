"""Projectors beside text models: one reading makes both files, and what is wrong is said before any byte is written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapters
import checkpoints
import seeing
from ggufsmith.container.errors import Failure, Malformed, Unsupported, Usage
from ggufsmith.container.reader import Gguf, open_gguf
from ggufsmith.convert.architectures.later import LATER
from ggufsmith.convert.config import Config
from ggufsmith.convert.projectors import PROJECTORS
from ggufsmith.convert.projectors.plan import find_projector, plan_projector
from ggufsmith.convert.stored import StoredTensor
from requesting import plan, request, run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing.write(tmp_path_factory.mktemp("m") / "Tiny-VL")


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def values(file: Gguf, name: str) -> np.ndarray:
    info = file.tensors[name]
    data = file.path.read_bytes()[info.offset : info.offset + info.nbytes]
    return np.frombuffer(data, np.float32).reshape(info.shape)


# -- one reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("making", [{}, {"recipes": ("q8_0", "q4_K_M")}, {"outtypes": ("bf16",), "recipes": ("q8_0",)}])
def test_each_file_is_what_it_is_alone(model: Path, tmp_path: Path, making: dict[str, Any]) -> None:
    recipes = making.pop("recipes", ())
    run(request(model, *recipes, **making, outdir=tmp_path / "together", mmproj=True))
    run(request(model, *recipes, **making, outdir=tmp_path / "text"))
    run(request(model, outdir=tmp_path / "seeing", outtype="f32", mmproj=True))
    together = written(tmp_path / "together")
    projector = together.pop("mmproj-Tiny-VL-F16.gguf")
    assert together == written(tmp_path / "text")
    assert projector == written(tmp_path / "seeing")["mmproj-Tiny-VL-F16.gguf"]


def test_what_is_in_it(model: Path, tmp_path: Path) -> None:
    run(request(model, outdir=tmp_path, mmproj=True, mmproj_outtype="F32"))
    source = seeing.tensors_of(604)
    with open_gguf(tmp_path / "mmproj-Tiny-VL-F32.gguf") as file:
        keys = {key: value.data for key, value in file.metadata.items()}
        assert keys["general.type"] == "mmproj" and keys["general.architecture"] == "clip"
        assert keys["general.name"] == "Tiny VL"
        assert keys["clip.projector_type"] == "qwen3vl_merger"
        assert list(keys["clip.vision.is_deepstack_layers"]) == [True, False, True]
        assert list(keys["clip.vision.image_std"]) == [0.5, 0.25, 0.5]
        assert not any(key.startswith("tokenizer.") for key in keys)
        patches = source["model.visual.patch_embed.proj.weight"]
        assert np.array_equal(values(file, "v.patch_embd.weight"), patches[:, :, 0])
        assert np.array_equal(values(file, "v.patch_embd.weight.1"), patches[:, :, 1])
        last = source["model.visual.deepstack_merger_list.1.linear_fc2.weight"]
        assert np.array_equal(values(file, "v.deepstack.2.fc2.weight"), last)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"Tiny-VL-F16.gguf", "mmproj-Tiny-VL-F16.gguf"}),
        ({"mmproj_outtype": "q8_0"}, {"Tiny-VL-F16.gguf", "mmproj-Tiny-VL-Q8_0.gguf"}),
        ({"outfile": "x.gguf"}, {"x.gguf", "mmproj-Tiny-VL-F16.gguf"}),
        ({"split_max_tensors": 12, "outfile": "x.gguf"}, {"mmproj-Tiny-VL-F16.gguf", "x-00001-of-00002.gguf"}),
        ({"strict_name": True}, {"Tiny-VL-2.1M-v1.0-F16.gguf", "mmproj-Tiny-VL-2.1M-v1.0-F16.gguf"}),
    ],
)
def test_names(model: Path, tmp_path: Path, options: dict[str, Any], names: set[str]) -> None:
    place = {"outfile": tmp_path / options.pop("outfile")} if "outfile" in options else {"outdir": tmp_path}
    run(request(model, mmproj=True, **place, **options))
    there = {path.name for path in tmp_path.iterdir()}
    assert names <= there, there
    assert sum(name.startswith("mmproj") for name in there) == 1, "a projector is never split"


def test_what_is_said(model: Path, tmp_path: Path) -> None:
    notes = plan(request(model, outdir=tmp_path)).notes
    assert "this checkpoint has a vision encoder, which --mmproj writes into a file of its own" in notes
    notes = plan(request(model, outdir=tmp_path, mmproj=True)).notes
    assert not any("vision" in note for note in notes), notes
    text = checkpoints.write("llama", tmp_path / "text")
    assert not any("mmproj" in note for note in plan(request(text)).notes)


def test_keys_that_nobody_knows(tmp_path: Path) -> None:
    folder = seeing.write(tmp_path / "m", made_up=3)
    assert "these keys of vision_config are not used: made_up" in plan(request(folder, mmproj=True)).notes


def test_a_text_model_that_lost_its_encoder_has_none(tmp_path: Path) -> None:
    folder = seeing.write(tmp_path / "m", without="visual")
    assert not any("mmproj" in note for note in plan(request(folder)).notes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(tmp_path: Path, dtype: str) -> None:
    run(request(seeing.write(tmp_path / "m", dtype=dtype), outdir=tmp_path, mmproj=True, mmproj_outtype="f32"))
    with open_gguf(tmp_path / "mmproj-m-F32.gguf") as file:
        wanted = next(t for n, t in seeing.tensors_of(604).items() if n.endswith("visual.pos_embed.weight"))
        found = values(file, "v.position_embd.weight")
    assert np.allclose(found, wanted, rtol=2**-8)


def test_adapters_reach_the_encoder(model: Path, tmp_path: Path) -> None:
    """What would be dropped without --mmproj is merged with it."""
    module = "model.visual.blocks.1.attn.proj"
    a, b = np.ones((2, 64), np.float32), np.full((64, 2), 0.25, np.float32)
    text = checkpoints.write("qwen3", tmp_path / "text", dtype="float32")
    whole = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    adapters.write(text, tmp_path / "lora", targets=(), whole=whole, named=str(model))
    run(request(model, outdir=tmp_path / "o", lora=((tmp_path / "lora", 1.0),), mmproj=True, mmproj_outtype="f32"))
    run(request(model, outdir=tmp_path / "p", mmproj=True, mmproj_outtype="f32"))
    (merged,) = (tmp_path / "o").glob("mmproj*")
    (plain,) = (tmp_path / "p").glob("mmproj*")
    with open_gguf(merged) as one, open_gguf(plain) as other:
        changed = [
            name for name in one.tensors if not np.array_equal(values(one, name).ravel(), values(other, name).ravel())
        ]
    assert changed == ["v.blk.1.attn_out.weight"]


# -- bad input --------------------------------------------------------------------------------------------------------


def refused(folder: Path, out: Path, **options: Any) -> Failure:
    out.mkdir(exist_ok=True)
    with pytest.raises(Failure) as caught:
        run(request(folder, outdir=out, **{"mmproj": True, **options}))
    assert not list(out.iterdir())
    return caught.value


def test_a_missing_tower(tmp_path: Path) -> None:
    failure = refused(seeing.write(tmp_path / "m", without="visual"), tmp_path / "o")
    assert isinstance(failure, Unsupported)
    assert "the checkpoint has no tensor of the vision encoder (visual.*)" in str(failure)


def test_everything_that_is_missing_is_listed(tmp_path: Path) -> None:
    folder = seeing.write(tmp_path / "m", without="merger", hidden_act="relu", made_up=3)
    (folder / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    failure = refused(folder, tmp_path / "o")
    text = str(failure)
    for name in ("merger.norm.bias", "merger.linear_fc2.weight", "deepstack_merger_list.1.linear_fc1.weight"):
        assert f"visual.{name} is missing" in text
    assert "hidden_act is 'relu'" in text
    assert "preprocessor_config.json: image_mean is missing" in text
    assert "preprocessor_config.json: image_std is missing" in text


def test_what_is_wrong_with_both_is_listed_together(tmp_path: Path) -> None:
    folder = seeing.write(tmp_path / "m", without="blocks.2.norm1")
    tensors = seeing.tensors_of(604)
    del tensors["model.language_model.layers.1.mlp.up_proj.weight"]
    kept = {name: tensor for name, tensor in tensors.items() if "blocks.2.norm1" not in name}
    checkpoints.save(kept, folder / "model.safetensors", "float32")
    failure = refused(folder, tmp_path / "o")
    assert "blk.1.ffn_up.weight: its source is missing" in str(failure)
    assert "visual.blocks.2.norm1.weight is missing" in str(failure)
    assert "visual" not in str(refused(folder, tmp_path / "o", mmproj=False))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 32}, "shape [64, 3, 2, 4, 4], but the config says [32, 3, 2, 4, 4]"),
        ({"depth": 2}, "visual.blocks.2.attn.proj.bias: llama.cpp has no tensor for it"),
        ({"depth": 4}, "visual.blocks.3.norm1.weight is missing"),
        ({"depth": None}, "depth must be a positive number, not None"),
        ({"depth": "3"}, "depth must be a whole number"),
        ({"depth": 10**6}, "1000000 blocks, over the limit"),
        ({"hidden_size": -1}, "hidden_size must be a positive number, not -1"),
        ({"out_hidden_size": 128}, "the embeddings of the encoder have 128 numbers, those of the text model 256"),
        ({"num_position_embeddings": 15}, "not a square"),
        ({"deepstack_visual_indexes": [7]}, "names blocks that there are not"),
        ({"deepstack_visual_indexes": [1, 1]}, "or one twice"),
        ({"depth": 4096}, "visual.blocks.4095.norm1.weight is missing"),
        ({"deepstack_visual_indexes": "all"}, "must be a list of int"),
        ({"spatial_merge_size": 3}, "spatial_merge_size is 3, but llama.cpp assumes 2"),
        ({"rope_parameters": {"rope_theta": 500.0}}, "rope_theta is 500.0, but llama.cpp assumes 10000"),
    ],
)
def test_configs_that_do_not_fit(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    failure = refused(seeing.write(tmp_path / "m", **change), tmp_path / "o")
    assert said in str(failure) or "more" in failure.also[-1]
    assert isinstance(failure, Unsupported | Malformed)


@pytest.mark.parametrize("pixels", [[0.5], "half", [0.5, 0.5, "x"], [0.5, 0.5, True], [0.5, 0.5, 1e300]])
def test_pixels_that_are_none(tmp_path: Path, pixels: object) -> None:
    folder = seeing.write(tmp_path / "m")
    (folder / "preprocessor_config.json").write_text(json.dumps({**seeing.PIXELS, "image_mean": pixels}))
    assert re.search("image_mean must be (three numbers|a number)", str(refused(folder, tmp_path / "o")))


def test_the_processor_may_hold_the_pixels(tmp_path: Path) -> None:
    folder = seeing.write(tmp_path / "m")
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": seeing.PIXELS}))
    run(request(folder, outdir=tmp_path, mmproj=True))


def test_text_models(tmp_path: Path, model: Path) -> None:
    failure = refused(checkpoints.write("llama", tmp_path / "text"), tmp_path / "o")
    assert isinstance(failure, Unsupported) and "is a text model" in failure.what
    folder = seeing.write(tmp_path / "m", without="visual")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["vision_config"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    failure = refused(folder, tmp_path / "o")
    assert "config.json has no vision_config" in failure.what


def test_projectors_that_are_not_supported_are_named() -> None:
    for name in [*sorted(LATER)[:3], "MadeUpForConditionalGeneration"]:
        config = Config({"architectures": [name], "vision_config": {}}, Path("config.json"))
        with pytest.raises(Unsupported, match=f"the projector of {name} is not supported yet"):
            find_projector(config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mmproj_outtype": "q4_K_M"}, "unknown type 'q4_K_M'"),
        ({"mmproj_outtype": "f16", "mmproj": False}, "--mmproj was not given"),
        ({"vocab_only": True}, "holds only the vocabulary"),
    ],
)
def test_options_that_do_not_fit(model: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    failure = refused(model, tmp_path / "o", **options)
    assert isinstance(failure, Usage) and said in failure.what


def test_a_file_has_no_projector(model: Path, tmp_path: Path) -> None:
    run(request(model, outfile=tmp_path / "x.gguf"))
    with pytest.raises(Usage, match="--mmproj cannot be used with a GGUF file"):
        run(request(tmp_path / "x.gguf", "q8_0", mmproj=True))


# -- records ----------------------------------------------------------------------------------------------------------


def test_records_are_whole() -> None:
    for record in PROJECTORS.records():
        for encoder in record.encoders:
            # Blocks of one kind may come from several places, each with numbers of its own.
            names = [(rule.name, rule.source if "{}" in rule.name else "") for rule in encoder.tensors]
            assert len(names) == len(set(names)), record.models
            sized = {word for rule in encoder.tensors for each in rule.shape.split() for word in each.split("*")}
            assert not {word for word in sized if not word.isdecimal()} - encoder.sizes.keys(), record.models
            sources = [rule.source for rule in encoder.tensors if rule.source]  # without what is computed
            assert all(each.startswith((*encoder.prefixes, "language_model.")) for each in sources), record.models
    assert len(PROJECTORS) == sum(len(record.classes) for record in PROJECTORS.records())


@pytest.mark.parametrize("strip", [lambda name: name.removeprefix("model."), lambda name: f"module.{name}"])
def test_other_spellings_of_names(model: Path, tmp_path: Path, strip: Callable[[str], str]) -> None:
    folder = seeing.write(tmp_path / "Tiny-VL")
    tensors = {strip(name): tensor for name, tensor in seeing.tensors_of(604).items()}
    checkpoints.save(tensors, folder / "model.safetensors", "float32")
    for source, out in ((model, "a"), (folder, "b")):
        run(request(source, outdir=tmp_path / out, outtype="f32", mmproj=True))
    assert written(tmp_path / "a") == written(tmp_path / "b")


WHOLE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "head_dim": 16,
    "patch_size": 16,
    "image_size": 64,
    "position_embedding_size": 8,
}


@pytest.mark.parametrize(
    ("name", "kind", "change", "said"),
    [
        ("Gemma4ForConditionalGeneration", "audio", {"subsampling_conv_channels": [3]}, "subsampling_conv_channels"),
        ("Gemma4ForConditionalGeneration", "audio", {"subsampling_conv_channels": "x"}, "subsampling_conv_channels"),
        ("Gemma4ForConditionalGeneration", "audio", {"num_attention_heads": 0}, "num_attention_heads"),
        ("Gemma4ForConditionalGeneration", "vision", {"pooling_kernel_size": -3}, "pooling_kernel_size"),
        ("Gemma3ForConditionalGeneration", "vision", {"patch_size": 128}, "image_size divided by patch_size"),
        ("Gemma3ForConditionalGeneration", "vision", {"patch_size": 1.5}, "patch_size must be a whole number"),
        ("Llama4ForConditionalGeneration", "vision", {"pixel_shuffle_ratio": 1e-320}, "pixel_shuffle_ratio"),
        ("Llama4ForConditionalGeneration", "vision", {"pixel_shuffle_ratio": 2}, "pixel_shuffle_ratio"),
        ("LlavaForConditionalGeneration", "vision", {"model_type": "clip_vision_model"}, "model_type is 'clip"),
        ("Mistral3ForConditionalGeneration", "vision", {"rope_parameters": 3}, "rope_parameters must be an object"),
        ("Lfm2VlForConditionalGeneration", "vision", {"patch_size": 14}, "patch_size is 14"),
        ("SmolVLMForConditionalGeneration", "vision", {"hidden_act": 5}, "hidden_act is 5"),
        ("Qwen2_5_VLForConditionalGeneration", "vision", {"fullatt_block_indexes": [1 << 60]}, "equal distances"),
        ("Qwen2_5_VLForConditionalGeneration", "vision", {"fullatt_block_indexes": None}, "equal distances"),
        ("Qwen2VLForConditionalGeneration", "vision", {"mlp_ratio": "4"}, "mlp_ratio must be a number"),
    ],
)
def test_configs_of_other_projectors(name: str, kind: str, change: dict[str, Any], said: str) -> None:
    """Every kind of value that a size is made of, without weights that would fit."""
    qwen = {"depth": 1, "num_heads": 4, "embed_dim": 64, "out_hidden_size": 64}
    llama = {"projector_input_dim": 64, "projector_output_dim": 64, "vision_output_dim": 64}
    audio = {"output_proj_dims": 64, "conv_kernel_size": 5, "subsampling_conv_channels": [4, 4]}
    section = {**WHOLE, **qwen, **llama, **audio, **change}
    config = {"architectures": [name], "hidden_size": 64, "vocab_size": 10, "vision_config": {**WHOLE, **qwen}}
    record = PROJECTORS[name]
    names = [prefix + "x.weight" for encoder in record.encoders for prefix in encoder.prefixes]
    tensors = {each: StoredTensor(each, (1,), "F32", Path("x"), 0, 4) for each in names}
    with pytest.raises(Unsupported) as caught:
        plan_projector(
            Config({**config, f"{kind}_config": section}, Path("config.json")),
            Config(seeing.PIXELS, Path("preprocessor_config.json")),
            tensors,
            lambda token: None,
        )
    assert said in str(caught.value), str(caught.value)
