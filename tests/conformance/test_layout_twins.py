"""Models whose class transformers does not have: our conversion against that of llama.cpp's converter.

What llama.cpp computes is compared with a class that computes the same.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import mtmd
import numpy as np
import pytest
from llama_models import logits
from numpy.typing import NDArray
from safetensors.torch import load_file
from test_convert import PRE, ours, tensors
from test_zoo import same

import layout_twins
import reference
import seeing_twins
from ggufsmith.container.errors import Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.hf.run import ToHfJob, prepare
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.plan import make_plan
from ggufsmith.evaluate.skeleton import build_skeleton
from ggufsmith.evaluate.variants import opened_model
from requesting import request, run
from tiny import write_line

PLAIN = {"published": False, "wide": False, "dtype": "float32", "seed": 0}

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("name", layout_twins.TWINS)
def test_a_line(name: str, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = layout_twins.write(name, folder)
    notes = make_plan(open_config(folder), None).notes
    assert not [note for note in notes if note.startswith("these keys of config.json")]
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    ids = np.random.default_rng(5).integers(3, 300, 48).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    found = logits(mine.path, ids)
    error = ((found - expected) ** 2).sum() / (expected**2).sum()
    print(f"{name}: {error:.2e}")
    assert error < 1e-9
    if layout_twins.TWINS[name].reference:
        return
    path = folder / "config.json"  # the converter has transformers read it too, which fails on some of an unknown type
    config = {**json.loads(path.read_text(encoding="utf-8")), "model_type": "llama"}
    path.write_text(json.dumps(config), encoding="utf-8")
    differs = layout_twins.TWINS[name].differs
    line, path = layout_twins.TWINS[name].model, tmp_path / "theirs.gguf"
    options = {"pre": PRE.get(line.vocabulary, ""), "raw": True, "generic": line.generic}
    theirs = open_gguf(reference.convert(folder, path, "--outtype", "f32", **options))
    a, b = tensors(mine), tensors(theirs)
    assert a.keys() == b.keys()
    unlike = [each for each in a if not same(each, a[each], b[each])]
    if layout_twins.TWINS[name].rounded:
        unlike = [each for each in unlike if not close(a[each], b[each])]
    assert not unlike, "tensors that differ"
    keys = {
        key for key in mine.metadata.keys() | theirs.metadata.keys() if not key.startswith("tokenizer.")
    } - differs.keys()
    assert {key: mine.metadata.get(key) for key in keys} == {key: theirs.metadata.get(key) for key in keys}


def close(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two matrices in float32 are equal but for the last bit."""
    values = (np.frombuffer(each[2], np.float32) for each in (one, other))
    return one[:2] == other[:2] == (one[0], "F32") and bool(np.allclose(*values, rtol=2e-7, atol=0))


def refused(said: str) -> AbstractContextManager[Any]:
    """That this is said; that nothing is, if it is empty."""
    return pytest.raises(Unsupported, match=said) if said else nullcontext()


@pytest.mark.parametrize("name", [name for name in layout_twins.TWINS if name.startswith("internvl")])
def test_a_projector(name: str, tmp_path: Path) -> None:
    """As the converter's; and as from the other layout, of which test_projectors.py shows what libmtmd sees with it."""
    twin, made = layout_twins.TWINS[name], []
    for write in (layout_twins.write, lambda name, folder: write_line(twin.model, folder, **PLAIN)):
        folder = tmp_path / str(len(made)) / "Tiny-Fixture"
        folder.mkdir(parents=True)
        write(name, folder)
        run(request(folder, outtype="f32", mmproj=True, outdir=folder.parent))
        made.append(open_gguf(folder.parent / "mmproj-Tiny-Fixture-F16.gguf"))
    assert tensors(made[0]) == tensors(made[1])
    folder = tmp_path / "0" / "Tiny-Fixture"
    path = reference.convert(folder, tmp_path / "theirs.gguf", "--mmproj", "--outtype", "f16", raw=True)
    theirs = open_gguf(path)
    assert tensors(made[0]) == tensors(theirs)
    assert made[0].metadata == theirs.metadata
    more = {"clip.vision.preproc_min_tiles", "clip.vision.preproc_max_tiles"}
    assert {key: value for key, value in theirs.metadata.items() if key not in more} == dict(made[1].metadata)


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0"])
def test_the_projector_of_dots_ocr(type: str, tmp_path: Path) -> None:
    """As the converter's; and images become what its encoder, made of parts of Qwen2.5-VL, makes of them."""
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    layout_twins.write("dots-ocr", folder)
    run(request(folder, outtype="f32", mmproj=True, mmproj_outtype=type, outdir=tmp_path))
    mine = open_gguf(tmp_path / f"mmproj-Tiny-Fixture-{type.upper()}.gguf")
    theirs = open_gguf(reference.convert(folder, tmp_path / "t.gguf", "--mmproj", "--outtype", type, raw=True))
    assert tensors(mine) == tensors(theirs)
    assert mine.metadata == theirs.metadata
    if type != "f32":
        return
    for size in ((112, 112), (112, 224), (168, 112)):
        image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
        found = mtmd.embeddings(tmp_path / "Tiny-Fixture-F32.gguf", mine.path, image, max_tokens=32)
        expected = seen_by_dots(load_file(folder / "model.safetensors"), image)
        error = ((found - expected) ** 2).sum() / (expected**2).sum()
        print(f"{size}: {error:.2e}")
        assert error < 1e-5


def test_the_projector_of_step_vl(tmp_path: Path) -> None:
    """As the converter's; what libmtmd sees with it, test_projectors.py shows with that of Step 3.7."""
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    layout_twins.write("step-vl", folder)
    run(request(folder, outtype="f32", mmproj=True, outdir=tmp_path))
    mine, path = open_gguf(tmp_path / "mmproj-Tiny-Fixture-F16.gguf"), tmp_path / "theirs.gguf"
    reference.convert(folder, path, "--mmproj", "--outtype", "f16", raw=True, asserts=False)
    assert tensors(mine) == tensors(open_gguf(path))
    assert mine.metadata == open_gguf(path).metadata


def seen_by_dots(weights: dict[str, Any], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(tokens, length) of an image that needs no scaling."""
    import torch
    from torch.nn.functional import gelu, layer_norm, linear, rms_norm
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionBlock
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision, pixels = seeing_twins.DOTS_VISION, layout_twins.TWINS["dots-ocr"].model.pixels
    w = {name.removeprefix("vision_tower."): tensor for name, tensor in weights.items()}
    colours = {key: pixels[key] for key in ("image_mean", "image_std")}
    size = {"shortest_edge": pixels["min_pixels"], "longest_edge": pixels["max_pixels"]}
    processor = Qwen2VLImageProcessorPil(**colours, size=size, temporal_patch_size=1)
    ready = processor(images=[image], return_tensors="pt", input_data_format="channels_last")
    embd, heads, eps = vision["embed_dim"], vision["num_attention_heads"], vision["rms_norm_eps"]
    x = linear(ready["pixel_values"].float(), w["patch_embed.patchifier.proj.weight"].flatten(1))
    x = rms_norm(x + w["patch_embed.patchifier.proj.bias"], (embd,), w["patch_embed.patchifier.norm.weight"], eps)
    _, rows, columns = ready["image_grid_thw"][0].tolist()
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
    places = places.reshape(rows // 2, 2, columns // 2, 2, 2).transpose(1, 2).reshape(-1, 2)
    frequencies = 10000.0 ** -(torch.arange(0, embd // heads // 2, 2) / (embd // heads // 2))
    angles = (places[..., None] * frequencies).flatten(1).repeat(1, 2)
    settings = Qwen2_5_VLVisionConfig(
        hidden_size=embd, num_heads=heads, intermediate_size=vision["intermediate_size"], hidden_act="silu"
    )
    settings._attn_implementation = "eager"
    names = {"fc1": "gate_proj", "fc2": "down_proj", "fc3": "up_proj"}
    with torch.no_grad():
        for number in range(vision["num_hidden_layers"]):
            block = Qwen2_5_VLVisionBlock(settings).eval()
            for weight in block.parameters():
                weight.zero_()
            block.norm1.variance_epsilon = block.norm2.variance_epsilon = eps
            own = {name.removeprefix(f"blocks.{number}."): t for name, t in w.items() if f"blocks.{number}." in name}
            for before, after in names.items():
                own = {name.replace(before, after): tensor for name, tensor in own.items()}
            assert not block.load_state_dict(own, strict=False).unexpected_keys
            ends = torch.tensor([0, len(x)], dtype=torch.int32)
            x = block(x, cu_seqlens=ends, position_embeddings=(angles.cos(), angles.sin()))
    x = rms_norm(x, (embd,), w["post_trunk_norm.weight"], eps)
    x = layer_norm(x, (embd,), w["merger.ln_q.weight"], w["merger.ln_q.bias"], 1e-6).reshape(-1, 4 * embd)
    x = gelu(linear(x, w["merger.mlp.0.weight"], w["merger.mlp.0.bias"]))
    made: NDArray[np.float32] = linear(x, w["merger.mlp.2.weight"], w["merger.mlp.2.bias"]).numpy()
    return made


RUN = ("internvl-chat", "internvl-chat-qwen3")  # by the class of the text model (test_forward.py)


@pytest.mark.parametrize("name", [name for name in layout_twins.TWINS if name not in RUN])
def test_what_needs_the_class_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    layout_twins.write(name, folder)
    mine = ours(folder, tmp_path / "ours.gguf", "f32")
    run, back = layout_twins.TWINS[name].run, layout_twins.TWINS[name].back
    with refused(run), opened_model(request(folder)) as model:
        build_skeleton(model)
    if layout_twins.TWINS[name].model.pixels:  # the file of its text model is that of any
        return
    with refused(back):
        prepare(ToHfJob(mine.path, tmp_path / "back", sync=False))
