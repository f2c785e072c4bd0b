"""Weights that are equivalent to a type of ggml: --recipe copy keeps them, to the last bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import adapters
import checkpoints
import quantized
import sourced
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.reader import Gguf, open_gguf
from ggufsmith.convert.dequantize.detect import offers
from ggufsmith.convert.dequantize.lossless_blocks import fill_mxfp4, fill_q4_0
from ggufsmith.convert.dequantize.store import EIGHT_BITS
from ggufsmith.convert.ops import RopePermute
from ggufsmith.quantize.rows import decode
from requesting import Planned, plan, request, run

Q4_0, MXFP4 = BY_NAME["Q4_0"], BY_NAME["MXFP4"]
HEADS = {"attn_q": 4, "attn_k": 2}
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
}


def converted(folder: Path, output: Path, recipe: str) -> tuple[Planned, Gguf]:
    prepared = plan(request(folder, recipe, outfile=output))
    run(prepared)
    return prepared, open_gguf(output)


def decoded(gguf: Gguf, name: str) -> NDArray[np.float32]:
    info = gguf.tensors[name]
    data = np.empty((info.shape[0], info.nbytes // info.shape[0]), np.uint8)
    gguf.read_into(info, 0, data)
    out = np.empty(info.shape, np.float32)
    decode(info.format, data, out)
    return out


def check_kept(gguf: Gguf, kind: str, dense: dict[str, Any]) -> None:
    """Every weight in the block type, and equal to the source's, permuted as llama.cpp wants it."""
    for name, module in NAMES.items():
        weight = dense[f"model.layers.1.{module}.weight"]
        if name in HEADS:
            weight = RopePermute(HEADS[name]).rows(lambda k, a, b, w=weight: w[a:b], (weight.shape,), 0, len(weight))
        assert gguf.tensors[f"blk.1.{name}.weight"].format.name == kind
        np.testing.assert_array_equal(decoded(gguf, f"blk.1.{name}.weight"), weight)


def symmetric_gptq(folder: Path, *, truly: bool = True, **layout: Any) -> dict[str, Any]:
    """A checkpoint whose settings say sym; its zero points are all 8, where `truly`."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": layout.get("group", 128), "sym": True}
    return quantized.write_gptq("llama", folder, config=config, **layout, **({"zero": 8} if truly else {}))


@pytest.mark.parametrize("group", [32, 128, -1])
def test_symmetric_gptq_is_q4_0(tmp_path: Path, group: int) -> None:
    dense = symmetric_gptq(tmp_path / "m", group=group)
    prepared, gguf = converted(tmp_path / "m", tmp_path / "out.gguf", "copy")
    assert "14 weights are equivalent to Q4_0; --recipe copy keeps them exactly" in prepared.notes
    with gguf:
        check_kept(gguf, "Q4_0", dense)
        assert gguf.tensors["token_embd.weight"].format.name == "F16"
        assert gguf.metadata["general.file_type"].data == 2


def test_the_recipe_of_the_type_keeps_them_too(tmp_path: Path) -> None:
    dense = symmetric_gptq(tmp_path / "m", group=32)
    with converted(tmp_path / "m", tmp_path / "out.gguf", "q4_0")[1] as gguf:
        check_kept(gguf, "Q4_0", dense)


def test_other_recipes_are_as_without(tmp_path: Path) -> None:
    """Of several outputs of one run, each has the bytes that it has alone."""
    symmetric_gptq(tmp_path / "m", group=32)
    converted(tmp_path / "m", tmp_path / "alone.gguf", "q6_K")[1].close()
    run(request(tmp_path / "m", "copy", "q6_K", outdir=tmp_path))
    assert (tmp_path / "m-Q6_K.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()


@pytest.mark.parametrize("layout", [{"group": 128, "order": True}, {"group": 48}, {"group": 64, "bits": 8}])
def test_what_is_no_q4_0_is_not_called_so(tmp_path: Path, layout: dict[str, Any]) -> None:
    config = {"quant_method": "gptq", "bits": layout.get("bits", 4), "group_size": layout["group"], "sym": True}
    quantized.write_gptq("llama", tmp_path, config=config, **layout)
    assert not offers(sourced.recognised(tmp_path).tensors.values())


def test_merged_weights_are_not_offered(tmp_path: Path) -> None:
    symmetric_gptq(tmp_path / "m", group=32)
    adapters.write(tmp_path / "m", tmp_path / "a", targets=("q_proj",))
    prepared = plan(request(tmp_path / "m", "copy", lora=((tmp_path / "a", 1.0),)))
    assert any(note.startswith("12 weights are equivalent to Q4_0") for note in prepared.notes)
    formats = {spec.name: spec.format.name for spec in prepared.layout.tensors}
    assert (formats["blk.0.attn_q.weight"], formats["blk.0.attn_k.weight"]) == ("F16", "Q4_0")


def test_settings_that_call_zero_points_symmetric_wrongly(tmp_path: Path) -> None:
    """The rows are then quantized anew, as any others."""
    dense = symmetric_gptq(tmp_path / "m", truly=False, group=32)
    with converted(tmp_path / "m", tmp_path / "out.gguf", "q4_0")[1] as gguf:
        weight = dense["model.layers.1.self_attn.v_proj.weight"]
        found = decoded(gguf, "blk.1.attn_v.weight")
    assert not np.array_equal(found, weight)
    assert np.abs(found - weight).max() < 0.2 * np.abs(weight).max()


def compressed(folder: Path, make: Any, config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of compressed-tensors with what `make` gives for every projection."""
    checkpoints.write("llama", folder, dtype="float16")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors: quantized.Tensors = {}
    dense = {}
    for name, array in checkpoints.tensors_of(settings, "float16").items():
        if not quantized.linear(name):
            tensors[name] = quantized.plain(array)
            continue
        parts, dense[name] = make(*array.shape)
        tensors |= {name.removesuffix("weight") + end: part for end, part in parts.items()}
    quantized.save(tensors, folder / "model.safetensors")
    settings["quantization_config"] = {"quant_method": "compressed-tensors", **config}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return dense


def test_symmetric_pack_quantized_is_q4_0(tmp_path: Path) -> None:
    """Scales are bfloat16, which half precision holds unless they are far from one."""
    rng = np.random.default_rng(3)

    def make(out: int, width: int) -> tuple[dict[str, Any], Any]:
        codes = quantized.codes_of(rng, (out, width), 4)
        scales = checkpoints.bits((rng.random((out, width // 32)) * 0.01 + 0.001).astype(np.float32), "bfloat16")
        wide = (scales.astype(np.uint32) << 16).view(np.float32).repeat(32, axis=1)
        parts = {
            "weight_packed": quantized.plain(quantized.rows_of_words(codes, 4)),
            "weight_scale": ("BF16", scales),
            "weight_shape": quantized.plain(np.array([out, width], np.int64)),
        }
        return parts, wide * (codes - 8).astype(np.float32)

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    config = {"format": "pack-quantized", "config_groups": {"g": {"targets": ["Linear"], "weights": weights}}}
    dense = compressed(tmp_path / "m", make, config)
    with converted(tmp_path / "m", tmp_path / "out.gguf", "copy")[1] as gguf:
        check_kept(gguf, "Q4_0", dense)


def test_mxfp4_is_mxfp4(tmp_path: Path) -> None:
    """Exponents over their whole range, -0 included."""
    rng = np.random.default_rng(4)

    def make(out: int, width: int) -> tuple[dict[str, Any], Any]:
        codes = rng.integers(0, 16, (out, width)).astype(np.uint8)
        exponents = rng.integers(90, 130, (out, width // 32)).astype(np.uint8)
        values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)[codes & 7] * np.where(codes > 7, -1, 1)
        dense = values.astype(np.float32) * EIGHT_BITS["F8_E8M0"][exponents].repeat(32, axis=1)
        packed = codes[:, ::2] | codes[:, 1::2] << 4
        return {"weight_packed": quantized.plain(packed), "weight_scale": quantized.plain(exponents)}, dense

    weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32}
    config = {"format": "mxfp4-pack-quantized", "config_groups": {"g": {"targets": ["Linear"], "weights": weights}}}
    dense = compressed(tmp_path / "m", make, config)
    prepared, gguf = converted(tmp_path / "m", tmp_path / "out.gguf", "copy")
    assert any("equivalent to MXFP4" in note for note in prepared.notes)
    with gguf:
        check_kept(gguf, "MXFP4", dense)


@pytest.mark.parametrize("scale", [1e-9, 7e4, np.nan, 1 + 2**-12])
def test_a_scale_that_half_precision_cannot_hold_is_refused(scale: float) -> None:
    codes, out = np.zeros((1, 64), np.uint8), np.empty((1, 36), np.uint8)
    assert fill_q4_0(codes, np.array([[1.0]], np.float32), out)
    assert not fill_q4_0(codes, np.array([[scale]], np.float32), out)


def test_an_exponent_that_is_no_number_is_refused() -> None:
    out = np.empty((1, 34), np.uint8)
    assert fill_mxfp4(np.zeros((1, 32), np.uint8), np.array([[0, 254]], np.uint8), out)
    assert not fill_mxfp4(np.zeros((1, 32), np.uint8), np.array([[0, 255]], np.uint8), out)
