"""Projectors: the file against llama.cpp's converter, and what libmtmd makes of images against transformers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

import mtmd
import numpy as np
import pytest
import quantizer
from numpy.typing import NDArray
from test_convert import tensors

import reference
import zoo
from ggufsmith.container.reader import open_gguf
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
from requesting import request, run

pytestmark = pytest.mark.conformance

LINES = [name for name, line in zoo.ZOO.items() if line.pixels]
HEARING = [name for name, line in zoo.ZOO.items() if line.hears and not line.pixels]
TYPES = ("f16", "bf16", "f32", "q8_0")
SOFTPLUS = ".per_dim_scale."  # torch rounds its exponentials differently on different processors
ULPS = 2
UNSEEN = "clip.vision.*"
SINUSOIDS = "a.position_embd.weight"
MISNAMED = (".conv_norm_var.", ".conv_norm.")  # by the converter; and as llama.cpp looks for it


def made(name: str, folder: Path, *types: str, published: bool = False, **options: Any) -> tuple[Any, dict[str, Path]]:
    """The model of a line, converted with a projector of each type; the last text model is in float32 too."""
    folder.mkdir()
    model = zoo.write(name, folder, published=published, **options)
    found = {}
    for type in types:
        run(request(folder, outtype="f32", mmproj=True, mmproj_outtype=type, outdir=folder.parent))
        found[type] = folder.parent / f"mmproj-{folder.name}-{type.upper()}.gguf"
    return model, found


@pytest.mark.parametrize("name", LINES + HEARING)
def test_a_projector_is_that_of_the_converter(name: str, tmp_path: Path) -> None:
    line = zoo.ZOO[name]
    folder = tmp_path / "Tiny-Fixture"
    _, files = made(name, folder, *TYPES, published=line.two_spellings)
    if UNSEEN in line.differs:  # the converter fails on the encoder of images
        without(folder, "thinker.visual.")
        (folder / "preprocessor_config.json").write_text(json.dumps(zoo.SIGLIP_PIXELS), encoding="utf-8")
    for type, file in files.items():
        mine = open_gguf(file)
        file = tmp_path / f"{type}.gguf"
        path = reference.convert(folder, file, "--mmproj", "--outtype", type, raw=True, asserts=not line.unchecked)
        theirs = open_gguf(path)
        a, b = tensors(mine), tensors(theirs)
        if f"a.blk.*{MISNAMED[0]}*" in line.differs:
            b = {each.replace(*MISNAMED): tensor for each, tensor in b.items()}
        only = {each for each in a.keys() ^ b.keys() if not any(fnmatch(each, name) for name in line.differs)}
        assert not only, (type, only)
        wrong = [each for each in a.keys() & b.keys() if a[each] != b[each] and not _nearly(each, a[each], b[each])]
        assert not wrong, (type, wrong)
        wrong = {
            key: (mine.metadata.get(key), theirs.metadata.get(key))
            for key in mine.metadata.keys() | theirs.metadata.keys()
            if mine.metadata.get(key) != theirs.metadata.get(key)
            and not any(fnmatch(key, name) for name in line.differs)
        }
        assert not wrong, type


def without(folder: Path, before: str) -> None:
    """The tensors whose names begin so, taken out of a checkpoint."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(before)}
    save_file(kept, path, {"format": "pt"})


def _nearly(name: str, a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether two tensors of a function that torch computes in float32 are equal but for the last bits."""
    if name == SINUSOIDS and a[:2] == b[:2]:  # frequencies are rounded, and multiplied by the number of the row
        apart = np.abs(np.frombuffer(a[2], np.float32) - np.frombuffer(b[2], np.float32)).reshape(a[0])
        return bool((apart <= (1 + np.arange(len(apart)))[:, None] * 2.0**-22).all())
    if SOFTPLUS not in name or a[:2] != b[:2]:
        return False
    steps = np.frombuffer(a[2], np.int32).astype(int) - np.frombuffer(b[2], np.int32)
    return int(np.abs(steps).max()) <= ULPS


@pytest.mark.parametrize("name", [name for name in LINES if zoo.ZOO[name].two_spellings])
def test_both_spellings_give_one_projector(name: str, tmp_path: Path) -> None:
    files = []
    for published in (False, True):
        (tmp_path / str(published)).mkdir()
        folder = tmp_path / str(published) / "Tiny-Fixture"
        files.append(made(name, folder, "f16", published=published)[1]["f16"].read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("recipe", ["q8_0", "q4_K_M", "q6_K", "f16"])
@pytest.mark.parametrize("name", ["qwen3-vl", "gemma3-vl"])
def test_quantized_as_by_the_quantizer(name: str, recipe: str, tmp_path: Path) -> None:
    """It aborts on Gemma 4, and where a rule asks for numbers of heads that projectors do not state (Q2_K)."""
    _, files = made(name, tmp_path / "Tiny-Fixture", "f32")
    run(request(files["f32"], recipe, outfile=tmp_path / "ours.gguf"))
    number = FILE_TYPES[recipe.upper()].number
    quantizer.quantize(files["f32"], tmp_path / "theirs.gguf", quantizer.Settings(number or 0))
    a, b = open_gguf(tmp_path / "ours.gguf"), open_gguf(tmp_path / "theirs.gguf")
    assert tensors(a) == tensors(b)
    assert a.metadata == b.metadata


@pytest.mark.parametrize("name", ["gemma4-vl", "granite-speech", "granite4-vision", "qwen3-asr"])
@pytest.mark.parametrize(("recipe", "bound"), [("q8_0", 1e-3), ("q4_K_M", 3e-2)])
def test_a_quantized_projector_sees_and_hears(name: str, recipe: str, bound: float, tmp_path: Path) -> None:
    _, files = made(name, tmp_path / "Tiny-Fixture", "f32")
    run(request(files["f32"], recipe, outfile=tmp_path / "quantized.gguf"))
    rng, text = np.random.default_rng(3), tmp_path / "Tiny-Fixture-F32.gguf"
    image = rng.integers(0, 256, (336, 480, 3), dtype=np.uint8)
    line = zoo.ZOO[name]
    for media in (*([image] if line.pixels else []), *([sound(16000)] if line.hears else [])):
        whole = mtmd.embeddings(text, files["f32"], media)
        found = mtmd.embeddings(text, tmp_path / "quantized.gguf", media)
        assert ((found - whole) ** 2).sum() / (whole**2).sum() < bound


# -- embeddings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seeing:
    """How transformers prepares images for a model.

    processor: module and class. sizes: (height, width) of images, the first of which needs no resizing.
    options:   of the processor. max_tokens: to which libmtmd scales larger images down.
    features:  the arguments of get_image_features, of those that the processor gives.
    """

    processor: str
    sizes: tuple[tuple[int, int], ...]
    options: dict[str, Any]
    features: tuple[str, ...]
    max_tokens: int | None = None


QWEN = Seeing(
    "qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil",
    sizes=((112, 112), (100, 100), (448, 448), (112, 224), (224, 448)),
    options={"size": {"shortest_edge": 8 * 28 * 28, "longest_edge": 32 * 28 * 28}},
    features=("pixel_values", "image_grid_thw"),
    max_tokens=32,
)
GLM = Seeing(  # of two frames, of which an image fills both
    "glm4v.image_processing_pil_glm4v.Glm4vImageProcessorPil",
    sizes=((56, 112), (112, 112), (100, 100), (448, 448), (112, 224), (224, 448)),
    options={"size": {"shortest_edge": 2 * 8 * 28 * 28, "longest_edge": 2 * 32 * 28 * 28}},
    features=("pixel_values", "image_grid_thw"),
    max_tokens=32,
)
HOW = {
    "granite4-vision": Seeing(
        "llava_next.image_processing_pil_llava_next.LlavaNextImageProcessorPil",
        sizes=((64, 128), (128, 128), (64, 64), (96, 128)),
        options={
            "size": {"height": 64, "width": 64},
            "crop_size": {"height": 64, "width": 64},
            "image_grid_pinpoints": [[64, 128], [128, 64], [128, 128]],
        },
        features=("pixel_values", "image_sizes"),
    ),
    "glm": GLM,
    "minicpm": Seeing(
        "minicpmv4_6.image_processing_pil_minicpmv4_6.MiniCPMV4_6ImageProcessorPil",
        sizes=((112, 112), (80, 100), (224, 112)),
        options={"scale_resolution": 112},
        features=("pixel_values", "target_sizes"),
    ),
    "janus": Seeing(
        "janus.image_processing_pil_janus.JanusImageProcessorPil",
        sizes=((112, 112), (150, 150), (70, 70)),
        options={"size": {"height": 112, "width": 112}},
        features=("pixel_values",),
    ),
    "hunyuan": Seeing(  # libmtmd scales images otherwise; torch does not stretch a grid of its own size
        "hunyuan_vl.image_processing_pil_hunyuan_vl.HunYuanVLImageProcessorPil",
        sizes=((64, 160), (256, 192)),
        options={"size": {"shortest_edge": 64 * 64, "longest_edge": 256 * 256}},
        features=("pixel_values", "image_grid_thw"),
    ),
    "paddleocr": Seeing(
        "paddleocr_vl.image_processing_pil_paddleocr_vl.PaddleOCRVLImageProcessorPil",
        sizes=((56, 112), (112, 112), (100, 100), (448, 448), (112, 224), (224, 448)),
        options={"size": {"shortest_edge": 8 * 28 * 28, "longest_edge": 32 * 28 * 28}},
        features=("pixel_values", "image_grid_thw"),
    ),
    "internvl": Seeing(
        "got_ocr2.image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil",
        sizes=((56, 56), (112, 56), (50, 50)),
        options={"size": {"height": 56, "width": 56}, "crop_to_patches": True},
        features=("pixel_values",),
    ),
    "internvl-qwen3": Seeing(
        "got_ocr2.image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil",
        sizes=((112, 112), (224, 112)),
        options={"size": {"height": 112, "width": 112}, "crop_to_patches": True},
        features=("pixel_values",),
    ),
    "exaone": QWEN,
    "qwen2": QWEN,
    "qwen3": QWEN,
    "gemma3": Seeing(
        "gemma3.image_processing_pil_gemma3.Gemma3ImageProcessorPil",
        sizes=((112, 112), (150, 150), (70, 70)),
        options={"size": {"height": 112, "width": 112}},
        features=("pixel_values",),
    ),
    "gemma4": Seeing(
        "gemma4.image_processing_pil_gemma4.Gemma4ImageProcessorPil",
        sizes=((336, 480), (168, 240), (672, 960)),
        options={"max_soft_tokens": 70, "do_normalize": False},
        features=("pixel_values", "image_position_ids"),
        max_tokens=70,
    ),
    "mistral3": Seeing(
        "pixtral.image_processing_pil_pixtral.PixtralImageProcessorPil",
        sizes=((96, 128), (192, 256)),
        options={"patch_size": {"height": 32, "width": 32}, "size": {"longest_edge": 128}},
        features=("pixel_values", "image_sizes"),
        max_tokens=12,
    ),
    "lighton": Seeing(
        "pixtral.image_processing_pil_pixtral.PixtralImageProcessorPil",
        sizes=((96, 192), (192, 192), (256, 384)),  # llama.cpp also scales smaller ones up
        options={"patch_size": {"height": 32, "width": 32}, "size": {"longest_edge": 192}},
        features=("pixel_values", "image_sizes"),
    ),
    "pixtral": Seeing(
        "pixtral.image_processing_pil_pixtral.PixtralImageProcessorPil",
        sizes=((96, 128), (192, 256)),
        options={"size": {"longest_edge": 128}},
        features=("pixel_values", "image_sizes"),
        max_tokens=48,
    ),
}


@dataclass(frozen=True)
class Scaled:
    """The same where a processor needs torchvision: an image is scaled to one size, and becomes the model's input here.

    size:     of the side. resample: of PIL.
    features: from the model and (1, 3, size, size) of scaled colours.
    order:    of tokens: the places in libmtmd's output, for (tokens).
    """

    sizes: tuple[tuple[int, int], ...]
    size: int
    resample: str
    features: Callable[[Any, Any], Any]
    order: Callable[[int], NDArray[np.int64]] = np.arange
    max_tokens: int | None = None


def of_llama4(model: Any, pixels: Any) -> Any:
    return model.multi_modal_projector(model.get_image_features(pixels).last_hidden_state)


def columns_first(count: int) -> NDArray[np.int64]:
    """llama.cpp gives the tokens of Llama 4 column by column, and transformers row by row."""
    side = int(count**0.5)
    return np.arange(count).reshape(side, side).T.ravel()


def of_smolvlm(model: Any, pixels: Any) -> Any:
    import torch

    whole = torch.ones(1, 1, *pixels.shape[-2:], dtype=torch.bool)
    return model.model.get_image_features(pixels[None], whole).pooler_output


def of_step(model: Any, pixels: Any) -> Any:
    return model.model.get_image_features(pixels).pooler_output


def of_lfm2(model: Any, pixels: Any) -> Any:
    import torch

    patch = model.config.vision_config.patch_size
    side = pixels.shape[-1] // patch
    patches = pixels[0].reshape(3, side, patch, side, patch).permute(1, 3, 2, 4, 0).reshape(1, side * side, -1)
    shapes, whole = torch.tensor([[side, side]]), torch.ones(1, side * side, dtype=torch.long)
    return model.model.get_image_features(patches, shapes, whole).pooler_output


def of_gemma4_unified(model: Any, pixels: Any) -> Any:
    import torch

    size = model.config.vision_config.model_patch_size
    side = pixels.shape[-1] // size
    patches = pixels[0].reshape(3, side, size, side, size).permute(1, 3, 2, 4, 0).reshape(1, side * side, -1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], -1)[None]
    return model.model.get_image_features(patches, places).pooler_output


SCALED = {
    "gemma4-unified": Scaled(((480, 480),), 480, "BICUBIC", of_gemma4_unified),
    "step3p7": Scaled(((112, 112),), 112, "BILINEAR", of_step),
    "llama4": Scaled(((112, 112),), 112, "BILINEAR", of_llama4, columns_first),
    "smolvlm": Scaled(((112, 112), (224, 224)), 112, "LANCZOS", of_smolvlm),
    "idefics3": Scaled(((112, 112), (224, 224)), 112, "LANCZOS", of_smolvlm),
    "lfm2": Scaled(((256, 256), (128, 128)), 256, "BILINEAR", of_lfm2, max_tokens=64),
}


def by_scaling(model: Any, how: Scaled, pixels: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(tokens, length), in libmtmd's order."""
    import torch
    from PIL import Image

    scaled = Image.fromarray(image).resize((how.size, how.size), getattr(Image.Resampling, how.resample))
    colours = (np.asarray(scaled, np.float32) / 255 - pixels["image_mean"]) / pixels["image_std"]
    with torch.no_grad():
        found = how.features(model, torch.tensor(colours.transpose(2, 0, 1)[None], dtype=torch.float32))
    found = torch.cat(list(found)) if isinstance(found, list | tuple) else found
    features: NDArray[np.float32] = found.flatten(0, -2).numpy()
    return features[how.order(len(features))]


def by_transformers(model: Any, how: Seeing, pixels: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(tokens, length); features for other layers of the text model stand behind those of the first."""
    import torch

    module, _, name = how.processor.rpartition(".")
    processor = getattr(import_module(f"transformers.models.{module}"), name)(**pixels, **how.options)
    ready = processor(images=[image], return_tensors="pt", input_data_format="channels_last")
    given = {name: torch.as_tensor(np.asarray(ready[name])) for name in how.features}
    with torch.no_grad():
        found = getattr(model, "thinker", model).model.get_image_features(**given)
    whole = found.pooler_output
    if whole is None:  # Granite Vision: what each layer of the text model gets
        reached = [torch.cat(each) for _, each in sorted(found.deepstack_features, key=lambda pair: pair[0])]
        together: NDArray[np.float32] = torch.cat(reached, dim=-1).numpy()
        return together
    whole = torch.cat(list(whole)) if isinstance(whole, list | tuple) else whole.flatten(0, -2)
    more = [torch.cat(list(each)) if isinstance(each, list | tuple) else each for each in deeper(found)]
    features: NDArray[np.float32] = torch.cat([whole, *more], dim=-1).numpy()
    return features


def deeper(found: Any) -> list[Any]:
    """What layers of the encoder before the last give to the text model."""
    return getattr(found, "deepstack_features", None) or []


def turn_positions(model: Any) -> None:
    """llama.cpp appends the class token of InternVL, and gives it the last position, and every patch that before it."""
    embeddings = model.model.vision_tower.embeddings
    embeddings.position_embeddings.data = embeddings.position_embeddings.data.roll(1, dims=1)


def stretch_positions(model: Any) -> None:
    """llama.cpp takes the positions of HunYuan-VL for a tenth of a patch more, as the model's first code did."""
    import torch

    embeddings = model.model.vision_tower.embeddings

    def interpolated(patches: Any, height: int, width: int) -> Any:
        side = embeddings.position_edge
        grid = embeddings.position_embedding.weight[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        factors = ((int(height) + 0.1) / side, (int(width) + 0.1) / side)
        found = torch.nn.functional.interpolate(grid, scale_factor=factors, mode="bilinear", align_corners=False)
        return found.permute(0, 2, 3, 1).reshape(1, -1, embeddings.embed_dim)

    embeddings.interpolate_pos_encoding = interpolated


# What llama.cpp's graphs do otherwise than transformers, whose model is changed to do the same (docs/architectures.md).
AS_LLAMACPP: dict[str, Callable[[Any], None]] = {
    "internvl": turn_positions,
    "internvl-qwen3": turn_positions,
    "hunyuan-vl": stretch_positions,
}


@pytest.mark.parametrize("name", LINES)
def test_images_become_the_embeddings_of_transformers(name: str, tmp_path: Path) -> None:
    line = zoo.ZOO[name]
    ways = {**HOW, **SCALED}
    how = ways[max((begin for begin in ways if name.startswith(begin)), key=len)]
    model, files = made(name, tmp_path / "Tiny-Fixture", "f32")
    AS_LLAMACPP.get(name, lambda model: None)(model)
    text = tmp_path / "Tiny-Fixture-F32.gguf"
    for size in how.sizes:
        image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
        colours = {key: line.pixels[key] for key in ("image_mean", "image_std")}
        seen = by_scaling if isinstance(how, Scaled) else by_transformers
        theirs = seen(model, how, colours, image)
        ours = mtmd.embeddings(text, files["f32"], image, max_tokens=how.max_tokens)
        if name in ("smolvlm", "idefics3"):  # the parts of the image follow, here the whole once more
            ours = ours[: len(theirs)]
        if len(ours) > len(theirs):  # Pixtral's rows end in the embedding of a token
            info = open_gguf(files["f32"]).tensors["v.token_embd.img_break"]
            row = np.frombuffer(files["f32"].read_bytes()[info.offset :][: info.nbytes], np.float32)
            ours = without_breaks(ours, len(theirs), row)
        assert ours.shape == theirs.shape, size
        error = ((ours - theirs) ** 2).sum() / (theirs**2).sum()
        print(f"{name} {size}: {error:.2e}")
        assert error < 1e-5, size


def without_breaks(rows: NDArray[np.float32], count: int, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """The embeddings of an image without those of the token between its lines.

    llama.cpp makes these of memory that it has not cleared, times zero, and so some of their numbers may be NaN.
    """
    lines = len(rows) - count + 1
    width = count // lines
    kept = [rows[line * (width + 1) : line * (width + 1) + width] for line in range(lines)]
    for each in rows[width :: width + 1]:
        assert np.array_equal(each[np.isfinite(each)], embedding[np.isfinite(each)])
    return np.concatenate(kept)


# -- sound ------------------------------------------------------------------------------------------------------------


def sound(samples: int) -> NDArray[np.float32]:
    return (np.random.default_rng(1).standard_normal(samples) * 0.1).astype(np.float32)


@pytest.mark.parametrize("samples", [16000, 24000])
def test_sound_becomes_the_embeddings_of_transformers(samples: int, tmp_path: Path) -> None:
    """Of the last frames one may be missing, as the two fill up the end of a sound differently."""
    import torch
    import transformers

    model, files = made("gemma4-vl", tmp_path / "Tiny-Fixture", "f32")
    ready = transformers.Gemma4AudioFeatureExtractor()([sound(samples)], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        features = model.model.get_audio_features(ready["input_features"], ready["input_features_mask"])
    theirs = features.pooler_output.flatten(0, -2).numpy()
    ours = mtmd.embeddings(tmp_path / "Tiny-Fixture-F32.gguf", files["f32"], sound(samples))
    assert len(theirs) - len(ours) in (0, 1)
    theirs = theirs[: len(ours)]
    error = ((ours - theirs) ** 2).sum() / (theirs**2).sum()
    print(f"{samples}: {error:.2e}")
    assert error < 1e-5
