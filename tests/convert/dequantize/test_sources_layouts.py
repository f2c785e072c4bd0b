"""Every quantized layout worked by hand (fixtures/quantized.py), and what must stop a conversion of one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantized
import sourced
from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.dequantize.detect import METHODS, SCHEMES, table
from ggufsmith.convert.ops import RopePermute
from requesting import plan, request, run

Tensors = dict[str, tuple[str, Any]]


def folder_of(folder: Path, tensors: Mapping[str, tuple[str, Any]], config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    quantized.save(tensors, folder / "model.safetensors")
    settings: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
    if config is not None:
        settings["quantization_config"] = config
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def layer(parts: Mapping[str, Any]) -> Tensors:
    return {f"x.{name}": part if isinstance(part, tuple) else quantized.plain(part) for name, part in parts.items()}


def read(folder: Path) -> Any:
    (weight,) = sourced.weights(folder).values()
    return weight


def refused(folder: Path) -> Failure:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((Malformed, Unsupported)) as caught:
        sourced.recognised(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    return caught.value


RNG = np.random.default_rng(11)

# -- GPTQ -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("group", [32, 128, -1, 96])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(tmp_path: Path, bits: int, group: int, order: bool, version: int) -> None:
    """A group of 96 leaves a shorter one at the end of a row of 256."""
    parts, expected = quantized.gptq(RNG, 96, 256, bits=bits, group=group, order=order, version=version)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order}
    config["checkpoint_format"] = "gptq_v2" if version == 2 else "gptq"
    np.testing.assert_array_equal(read(folder_of(tmp_path, layer(parts), config)), expected)


@pytest.mark.parametrize("order", [False, True])
def test_gptq_with_other_groups_for_some_modules(tmp_path: Path, order: bool) -> None:
    """GPTQModel's "dynamic" gives modules bits and a group size of their own; the tensors have both."""
    parts, expected = quantized.gptq(RNG, 64, 256, bits=8, group=32, order=order)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": order}
    config["dynamic"] = {r"+:.*\.x": {"bits": 8, "group_size": 32}}
    np.testing.assert_array_equal(read(folder_of(tmp_path, layer(parts), config)), expected)


def test_gptq_words_by_hand(tmp_path: Path) -> None:
    """One word of eight codes 0 to 7 in the lowest nibbles first; a stored zero point of 1 stands for 2."""
    qweight = np.full((4, 32), 0x76543210, np.uint32).view(np.int32)
    parts = {
        "qweight": qweight,
        "qzeros": np.full((1, 4), 0x11111111, np.int32),
        "scales": np.full((1, 32), 0.5, np.float16),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    found = read(folder_of(tmp_path, layer(parts), config))
    np.testing.assert_array_equal(found, np.tile((np.arange(8, dtype=np.float32) - 2) / 2, (32, 4)))


@pytest.mark.parametrize("where", ["nowhere", "quantize_config.json"])
def test_gptq_without_a_word_in_config_json(tmp_path: Path, where: str) -> None:
    """GPTQ-for-LLaMa: the file's name and the tensors are all there is; AutoGPTQ: its own file beside it."""
    parts, expected = quantized.gptq(RNG, 64, 128, group=64, stored_order=False)
    folder = folder_of(tmp_path, layer(parts))
    (folder / "model.safetensors").rename(folder / "guanaco-13B-GPTQ-4bit-64g.no-act-order.safetensors")
    if where != "nowhere":
        (folder / where).write_text(json.dumps({"bits": 4, "group_size": 64, "desc_act": False}), encoding="utf-8")
    np.testing.assert_array_equal(read(folder), expected)


def test_a_quantized_head_and_whole_files(tmp_path: Path) -> None:
    """Through the whole conversion: permuted query and key rows, the file type, the notes."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True}
    dense = quantized.write_gptq("llama", tmp_path / "model", config=config, head=True, group=64, order=True)
    prepared = plan(request(tmp_path / "model", outtype="f32", outfile=tmp_path / "out.gguf"))
    assert "15 weights are dequantized from GPTQ" in prepared.notes
    run(prepared)
    gguf = open_gguf(tmp_path / "out.gguf")
    tensors = [gguf.tensors[name] for name in ("blk.1.ffn_up.weight", "blk.0.attn_k.weight", "output.weight")]
    found = [np.fromfile(gguf.path, "<f4", int(np.prod(t.shape)), offset=t.offset).reshape(t.shape) for t in tensors]
    np.testing.assert_array_equal(found[0], dense["model.layers.1.mlp.up_proj.weight"])
    np.testing.assert_array_equal(found[2], dense["lm_head.weight"])
    rows = dense["model.layers.0.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(found[1], RopePermute(2).rows(lambda _, a, b: rows[a:b], (rows.shape,), 0, len(rows)))


def test_auto_takes_the_type_the_weights_had(tmp_path: Path) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    quantized.write_gptq("llama", tmp_path / "model", config=config, group=64)
    assert plan(request(tmp_path / "model", outtype="auto")).output.path.name.endswith("-F16.gguf")


# -- AWQ --------------------------------------------------------------------------------------------------------------


def awq(version: str, out: int, width: int, group: int) -> tuple[Tensors, Any]:
    codes = quantized.codes_of(RNG, (out, width), 4)
    zeros = quantized.codes_of(RNG, (out, width // group), 4)
    scales = (RNG.random((out, width // group)) * 0.01 + 0.001).astype(np.float16)
    index = np.arange(width) // group
    expected = (codes - zeros[:, index]).astype(np.float32) * scales.astype(np.float32)[:, index]
    if version == "gemm":
        order = (np.arange(out).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]]).ravel()
        parts = {
            "qweight": quantized.rows_of_words(codes.T[:, order], 4),
            "qzeros": quantized.rows_of_words(zeros.T[:, order], 4),
            "scales": scales.T,
        }
    else:
        padded = -(-zeros.shape[1] // 8) * 8
        parts = {
            "qweight": quantized.rows_of_words(codes, 4),
            "qzeros": quantized.rows_of_words(np.pad(zeros, ((0, 0), (0, padded - zeros.shape[1]))), 4),
            "scales": np.pad(scales, ((0, 0), (0, padded - scales.shape[1]))),
        }
    return layer(parts), expected


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("version", ["gemm", "gemv"])
def test_awq(tmp_path: Path, version: str, group: int) -> None:
    tensors, expected = awq(version, 72, 384, group)
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": version}
    np.testing.assert_array_equal(read(folder_of(tmp_path, tensors, config)), expected)
    config["version"] = "gemv" if version == "gemm" else "gemm"
    assert "but the config says" in str(refused(folder_of(tmp_path, tensors, config)))


def test_awq_with_its_own_file(tmp_path: Path) -> None:
    tensors, expected = awq("gemm", 72, 384, 64)
    folder = folder_of(tmp_path, tensors)
    text = json.dumps({"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})
    (folder / "quant_config.json").write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(read(folder), expected)


# -- bitsandbytes -----------------------------------------------------------------------------------------------------


def bnb(out: int, width: int, *, nested: bool, changes: Mapping[str, Any] | None = None) -> tuple[Tensors, Any]:
    flat = quantized.codes_of(RNG, (out * width,), 4)
    blocksize = 64
    even = np.pad(flat, (0, flat.size % 2))
    values = np.sort(RNG.standard_normal(16)).astype(np.float32)
    blocks = -(-flat.size // blocksize)
    state = {"quant_type": "nf4", "blocksize": blocksize, "dtype": "bfloat16", "shape": [out, width]}
    parts = {
        "weight": (even[::2] << 4 | even[1::2]).astype(np.uint8)[:, None],
        "weight.quant_map": values,
    }
    if nested:
        codes = RNG.integers(0, 256, blocks, np.uint8)
        table, outer = RNG.random(256).astype(np.float32), RNG.random(-(-blocks // 256)).astype(np.float32)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
        parts |= {"weight.absmax": codes, "weight.nested_absmax": outer, "weight.nested_quant_map": table}
        absmax = table[codes] * outer[np.arange(blocks) // 256] + np.float32(0.25)
    else:
        absmax = parts["weight.absmax"] = RNG.random(blocks).astype(np.float32)
    text = json.dumps({**state, **(changes or {})}).encode()
    parts["weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(text, np.uint8)
    expected = values[flat] * absmax[np.arange(flat.size) // blocksize]
    return layer(parts), expected.reshape(out, width)


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("out", "width"), [(96, 512), (40, 100), (34, 77)])
def test_bitsandbytes_four_bits(tmp_path: Path, out: int, width: int, nested: bool) -> None:
    """Rows that end inside a block, and inside a byte."""
    tensors, expected = bnb(out, width, nested=nested)
    np.testing.assert_array_equal(read(folder_of(tmp_path, tensors, BNB)), expected)


# Its product is 2**64 + 64: what is counted in 64 bits takes it for 64 weights.
WRAPS = [64 * (2**29 - 2**15 + 1), 2**29 + 2**15 + 1]


def test_bitsandbytes_shapes_that_wrap_around(tmp_path: Path) -> None:
    tensors, _ = bnb(1, 64, nested=False, changes={"shape": WRAPS})
    assert isinstance(refused(folder_of(tmp_path, tensors, BNB)), Malformed)


def test_hqq_shapes_that_wrap_around(tmp_path: Path) -> None:
    parts = {
        "W_q": np.zeros((4, 8), np.uint8),
        "scale": np.ones((8, 1), np.float32),
        "zero": np.ones((8, 1), np.float32),
        "shape": np.array(WRAPS),
        "axis": np.array(1, np.int32),
        "packing": np.frombuffer(b"4bit_u8", np.uint8),
    }
    config = {"quant_method": "hqq"}
    assert "does not hold" in str(refused(folder_of(tmp_path, layer(parts), config)))


@pytest.mark.parametrize(("dtype", "bits"), [("BF16", "<u2"), ("F16", "<f2"), ("F32", "<f4")])
def test_bitsandbytes_codes_in_another_dtype(tmp_path: Path, dtype: str, bits: str) -> None:
    """bnb_4bit_quant_storage, which FSDP asks for; a plain weight of that dtype stays plain."""
    tensors, expected = bnb(96, 512, nested=True)
    tensors["x.weight"] = dtype, tensors["x.weight"][1].reshape(-1).view(bits)[:, None]
    tensors["y.weight"] = dtype, np.ones((2, 4), bits)
    found = sourced.weights(folder_of(tmp_path, tensors, BNB))
    np.testing.assert_array_equal(found["x.weight"], expected)
    assert sourced.recognised(tmp_path).tensors["y.weight"].dtype == dtype


@pytest.mark.parametrize(
    "changes",
    [{"shape": [96]}, {"shape": [96, -1]}, {"shape": [96, 64]}, {"blocksize": 0}, {"blocksize": "64"}, {"shape": None}],
)
def test_a_bitsandbytes_state_that_does_not_fit(tmp_path: Path, changes: dict[str, Any]) -> None:
    tensors, _ = bnb(96, 512, nested=False, changes=changes)
    assert isinstance(refused(folder_of(tmp_path, tensors, BNB)), Malformed)


def test_bitsandbytes_codes_cut_short(tmp_path: Path) -> None:
    tensors, _ = bnb(96, 512, nested=False)
    tensors["x.weight"] = ("U8", tensors["x.weight"][1][:-1])
    assert "24575 bytes of codes for a weight of shape [96, 512]" in str(refused(folder_of(tmp_path, tensors, BNB)))


def test_bitsandbytes_eight_bits(tmp_path: Path) -> None:
    codes, scb = RNG.integers(-127, 128, (96, 80)).astype(np.int8), RNG.random(96).astype(np.float32)
    parts = {"weight": codes, "SCB": scb, "weight_format": np.zeros((), np.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    found = read(folder_of(tmp_path, layer(parts), config))
    np.testing.assert_allclose(found, codes * scb[:, None] / 127, rtol=3e-7)
    parts["weight_format"] = np.ones((), np.uint8)
    assert "layout of a GPU kernel" in str(refused(folder_of(tmp_path, layer(parts), config)))


# -- eight bits under a grid of scales --------------------------------------------------------------------------------

# name -> (shape of the weights, shape of the scales, the settings)
GRIDS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "tensor": ((96, 80), (), {}),
    "tensor [1]": ((96, 80), (1,), {}),
    "rows": ((96, 80), (96, 1), {}),
    "rows, flat": ((96, 80), (96,), {}),
    "groups": ((96, 80), (96, 5), {}),
    "blocks that divide": ((256, 384), (2, 3), {}),
    "ragged blocks": ((300, 200), (3, 2), {"weight_block_size": [128, 128]}),
    "stacked blocks": ((3, 300, 200), (3, 3, 2), {"weight_block_size": [128, 128]}),
    "stacked rows": ((3, 64, 32), (3, 64, 1), {}),
    "stacked rows, flat": ((3, 64, 32), (3, 64), {}),
}


@pytest.mark.parametrize("end", ["scale", "scale_inv"])
@pytest.mark.parametrize("name", GRIDS)
def test_fp8(tmp_path: Path, name: str, end: str) -> None:
    """With E4M3 codes of small whole numbers, for which the expected values need no table."""
    shape, grid, settings = GRIDS[name]
    exact = RNG.integers(-8, 9, shape)
    signs, size = (exact < 0) << 7, np.abs(exact)
    power = np.where(size > 0, np.floor(np.log2(np.maximum(size, 1))), 0).astype(int)
    codes = np.where(size > 0, (power + 7) << 3 | ((size * 8 >> power) - 8), 0) | signs
    scale = RNG.random(grid).astype(np.float32)
    main = "gate_up_proj" if len(shape) == 3 else "weight"
    tensors = layer({main: ("F8_E4M3", codes.astype(np.uint8)), f"{main}_{end}": scale, "input_scale": scale})
    found = read(folder_of(tmp_path, tensors, {"quant_method": "fp8", **settings}))
    wide = scale.reshape(*grid, *(1,) * (len(shape) - len(grid)))
    for axis in (-2, -1):
        block = settings.get("weight_block_size", [shape[-2] // wide.shape[-2], shape[-1] // wide.shape[-1]])[axis]
        wide = wide.repeat(block, axis=axis)
    np.testing.assert_array_equal(found, exact.astype(np.float32) * wide[..., : shape[-2], : shape[-1]])


def test_fp8_scales_of_another_shape(tmp_path: Path) -> None:
    weight = ("F8_E4M3", np.zeros((300, 200), np.uint8))
    for grid in ((3, 2), (7,), (2, 300, 1)):
        tensors = layer({"weight": weight, "weight_scale_inv": np.ones(grid, np.float32)})
        error = refused(folder_of(tmp_path, tensors, {"quant_method": "fp8"}))
        assert "no block size in the config fits" in str(error) or "do not cover" in str(error)


def test_int8_with_zero_points(tmp_path: Path) -> None:
    codes, zero = RNG.integers(-128, 128, (64, 48)).astype(np.int8), RNG.integers(-9, 9, (64, 1)).astype(np.int8)
    scale = RNG.random((64, 1)).astype(np.float32)
    tensors = layer({"weight": codes, "weight_scale": scale, "weight_zero_point": zero})
    config = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    expected = (codes.astype(np.float32) - zero) * scale
    np.testing.assert_array_equal(read(folder_of(tmp_path, tensors, config)), expected)


# -- compressed-tensors -----------------------------------------------------------------------------------------------


def packed(bits: int, groups: int, zeros: str = "", order: bool = False) -> tuple[dict[str, Any], Any]:
    out, width = 72, 192
    codes = quantized.codes_of(RNG, (out, width), bits)
    scales = RNG.random((out, groups)).astype(np.float32)
    index = np.arange(width) * groups // width
    if order:
        index = RNG.permutation(index)
    parts = {
        "weight_packed": quantized.rows_of_words(codes, bits),
        "weight_scale": scales,
        "weight_shape": np.array([out, width], np.int64),
    }
    zero = np.full((out, groups), 1 << (bits - 1))
    if zeros:
        zero = quantized.codes_of(RNG, (out, groups), bits)
        parts["weight_zero_point"] = (
            quantized.rows_of_words(zero.T, bits).T if zeros == "packed" else (zero - (1 << (bits - 1))).astype(np.int8)
        )
    if order:
        parts["weight_g_idx"] = index.astype(np.int32)
    return parts, (codes - zero[:, index]).astype(np.float32) * scales[:, index]


def ct(**weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("zeros", ["", "packed", "plain"])
@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_pack_quantized(tmp_path: Path, bits: int, groups: int, zeros: str, order: bool) -> None:
    parts, expected = packed(bits, groups, zeros, order)
    config = ct(num_bits=bits, symmetric=not zeros, actorder="group" if order else None)
    np.testing.assert_array_equal(read(folder_of(tmp_path, layer(parts), config)), expected)


def test_pack_quantized_with_an_order_that_says_nothing(tmp_path: Path) -> None:
    parts, expected = packed(4, 3)
    parts["weight_g_idx"] = np.full(192, -1, np.int32)
    np.testing.assert_array_equal(read(folder_of(tmp_path, layer(parts), ct(num_bits=4))), expected)


PACKED_WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, Any], str]] = {
    "no zero point": (lambda p: None, {"num_bits": 4, "symmetric": False}, "weight_zero_point is missing"),
    "other bits": (lambda p: None, {"num_bits": 8}, "24 words do not hold 192 codes"),
    "no shape": (lambda p: p.pop("weight_shape"), {}, "its shape is missing"),
    "no scale": (lambda p: p.pop("weight_scale"), {}, "its scale is missing"),
    "no order": (lambda p: None, {"actorder": "group"}, "weight_g_idx is missing"),
    "a wrong shape": (lambda p: p.update(weight_shape=np.array([72, 0])), {}, "weight_shape says [72, 0]"),
    "scales": (lambda p: p.update(weight_scale=np.ones((7, 3), np.float32)), {}, "do not cover"),
    "groups": (lambda p: p.update(weight_scale=np.ones((72, 5), np.float32)), {}, "no group_size in the config"),
}


@pytest.mark.parametrize("name", PACKED_WRONG)
def test_pack_quantized_that_does_not_fit(tmp_path: Path, name: str) -> None:
    change, settings, what = PACKED_WRONG[name]
    parts, _ = packed(4, 3)
    change(parts)
    error = refused(folder_of(tmp_path, layer(parts), ct(**settings)))
    assert what in str(error)


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "marlin-24"},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"transform_config": {"config_groups": {"R1": {}}}},
    ],
)
def test_compressed_tensors_that_are_more_than_scales(tmp_path: Path, settings: dict[str, Any]) -> None:
    parts, _ = packed(4, 3)
    error = refused(folder_of(tmp_path, layer(parts), {**ct(num_bits=4), **settings}))
    assert isinstance(error, Unsupported)
    assert "supported: " in str(error)
    assert "Convert the 16-bit checkpoint" in str(error)


# -- small formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gpt-oss", "compressed-tensors"])
def test_mxfp4(tmp_path: Path, form: str) -> None:
    """0x21 is a one half, then a one; 0xF is minus six; a scale of 128 doubles."""
    blocks = np.zeros((2, 3, 2, 16), np.uint8)
    blocks[1, 2, 1, :2] = 0x21, 0x0F
    scales = np.full((2, 3, 2), 127, np.uint8)
    scales[1, 2, 1] = 128
    if form == "gpt-oss":
        tensors, config = layer({"down_proj_blocks": blocks, "down_proj_scales": scales}), {"quant_method": "mxfp4"}
    else:
        parts = {"weight_packed": blocks.reshape(6, 32), "weight_scale": scales.reshape(6, 2)}
        tensors, config = layer(parts), {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    found = read(folder_of(tmp_path, tensors, config)).reshape(2, 3, 64)
    np.testing.assert_array_equal(found[1, 2, 32:36], [1, 2, -12, 0])
    assert np.count_nonzero(found) == 3


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("bits", "packing"), [(8, "8bit_u8"), (4, "4bit_u8"), (2, "2bit_u8"), (1, "1bit_u8")])
def test_hqq(tmp_path: Path, bits: int, packing: str, axis: int) -> None:
    group, groups = 24, 16 * 96 // 24
    grid, each = ((groups, group), (groups, 1)) if axis else ((group, groups), (1, groups))
    codes = quantized.codes_of(RNG, grid, bits)
    scale, zero = RNG.random(each).astype(np.float32), RNG.random(each).astype(np.float32) * 9
    rows = grid[0] * bits // 8
    packed = sum(codes[k * rows : (k + 1) * rows] << (8 - bits * (k + 1)) for k in range(8 // bits))
    parts = {
        "W_q": packed.astype(np.uint8),
        "scale": scale,
        "zero": zero,
        "shape": np.array([16, 96]),
        "axis": np.array(axis, np.int32),
        "packing": np.frombuffer(packing.encode(), np.uint8),
    }
    found = read(folder_of(tmp_path, layer(parts), {"quant_method": "hqq"}))
    np.testing.assert_array_equal(found, ((codes.astype(np.float32) - zero) * scale).reshape(16, 96))
    parts["packing"] = np.frombuffer(b"5bit_32", np.uint8)
    assert "packing '5bit_32'; supported: 8bit_u8" in str(
        refused(folder_of(tmp_path, layer(parts), {"quant_method": "hqq"}))
    )


def test_bitnet(tmp_path: Path) -> None:
    """Rows 0, 2, 4, 6 of eight share a byte, as do 1, 3, 5, 7."""
    parts = {"weight": np.array([[0b00_01_10_00], [0b10_10_01_01]], np.uint8), "weight_scale": np.float32([4])}
    found = read(folder_of(tmp_path, layer(parts), {"quant_method": "bitnet"}))
    np.testing.assert_array_equal(found[:, 0] * 4, [-1, 0, 1, 0, 0, 1, -1, 1])


def test_bitnet_that_nothing_announces(tmp_path: Path) -> None:
    parts = {"weight": np.zeros((2, 4), np.uint8), "weight_scale": np.float32([4])}
    assert "no quantization_config says how they are scaled" in str(refused(folder_of(tmp_path, layer(parts))))


# -- what must stop ---------------------------------------------------------------------------------------------------

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False}
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, Any], str]] = {
    "no zero points": (lambda p: p.pop("qzeros"), {}, "its qzeros is missing"),
    "no scales": (lambda p: p.pop("scales"), {}, "its scales is missing"),
    "no order": (lambda p: p.pop("g_idx"), {"desc_act": True}, "act-order (desc_act) without its g_idx"),
    "other bits": (lambda p: None, {"bits": 8}, "it holds 4 bits, but the config says 8"),
    "impossible bits": (lambda p: p.update(qzeros=np.zeros((2, 20), np.int32)), {}, "do not give a number of bits"),
    "bits that are no number": (lambda p: None, {"bits": "4"}, "must be a whole number"),
    "another group size": (lambda p: p.pop("g_idx"), {"group_size": 32}, "do not match a group_size of 32"),
    "scales of other rows": (lambda p: p.update(scales=np.ones((2, 65), np.float16)), {}, "GPTQ is read as"),
    "narrower words": (lambda p: p.update(qweight=p["qweight"].astype(np.int8)), {}, "GPTQ is read as"),
    "whole-number scales": (lambda p: p.update(scales=np.ones((2, 64), np.int32)), {}, "scales is I32"),
    "groups beyond the scales": (lambda p: p.update(g_idx=p["g_idx"] + 1), {}, "g_idx names groups 1 to 2, of 2"),
    "a short order": (lambda p: p.update(g_idx=p["g_idx"][:-1]), {}, "g_idx is I32 [127]"),
    "a GPU kernel's layout": (lambda p: None, {"checkpoint_format": "marlin"}, "gptq and gptq_v2"),
    "the dense weight as well": (lambda p: p.update(weight=np.ones((64, 128), np.float16)), {}, "is stored twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_gptq_that_does_not_fit(tmp_path: Path, name: str) -> None:
    change, settings, what = WRONG[name]
    parts, _ = quantized.gptq(RNG, 64, 128, group=64)
    change(parts)
    assert what in str(refused(folder_of(tmp_path, layer(parts), {**GPTQ, **settings})))


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    parts, _ = quantized.gptq(RNG, 64, 128, group=64)
    del parts["qzeros"]
    tensors = {**layer(parts), **{name.replace("x.", "y."): part for name, part in layer(parts).items()}}
    error = refused(folder_of(tmp_path, tensors, GPTQ))
    assert "x.qweight: its qzeros is missing" in error.what
    assert error.also == ("y.qweight: its qzeros is missing",)


def test_act_order_in_the_name_and_no_order(tmp_path: Path) -> None:
    parts, _ = quantized.gptq(RNG, 64, 128, group=64, stored_order=False)
    folder = folder_of(tmp_path, layer(parts))
    (folder / "model.safetensors").rename(folder / "wizard-4bit-64g.act-order.safetensors")
    assert "without its g_idx" in str(refused(folder))


def test_methods_that_contradict_the_config(tmp_path: Path) -> None:
    parts, _ = quantized.gptq(RNG, 64, 128, group=64)
    error = refused(folder_of(tmp_path, layer(parts), {"quant_method": "bitsandbytes"}))
    assert "mixed or contradict the config: the config says 'bitsandbytes'" in str(error)
    assert "x.qweight is stored as GPTQ" in str(error)


def test_a_layout_that_could_be_another(tmp_path: Path) -> None:
    """Groups of eight inputs, four bits each, are as many as rows of words, and the shapes AWQ GEMV's as well."""
    parts, expected = quantized.gptq(RNG, 64, 64, group=8)
    settings = {**GPTQ, "group_size": 8}
    np.testing.assert_array_equal(read(folder_of(tmp_path / "said", layer(parts), settings)), expected)
    assert "could be GPTQ and AWQ (GEMV)" in str(refused(folder_of(tmp_path / "unsaid", layer(parts))))


@pytest.mark.parametrize("config", [None, GPTQ])
def test_mixed_methods(tmp_path: Path, config: dict[str, Any] | None) -> None:
    tensors, _ = bnb(96, 512, nested=False)
    parts, _ = quantized.gptq(RNG, 64, 128, group=64)
    mixed = {**{name.replace("x.", "y."): tensor for name, tensor in tensors.items()}, **layer(parts)}
    error = refused(folder_of(tmp_path, mixed, config))
    assert "y.weight is stored as bitsandbytes 4-bit" in str(error)


def test_a_leftover_companion(tmp_path: Path) -> None:
    quantized.write_gptq("llama", tmp_path / "model", config=GPTQ, group=64)
    from safetensors.numpy import load_file, save_file

    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.absmax"] = np.ones(4, np.float32)
    tensors["model.layers.1.mlp.spare_proj.qzeros"] = np.ones((2, 4), np.int32)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(Unsupported) as caught:
        plan(request(tmp_path / "model", outdir=tmp_path))
    assert len([line for line in caught.value.also if "a companion of a quantized tensor" in line]) == 2
    assert not list(tmp_path.glob("*.gguf*"))


def test_an_unknown_method_names_what_is_supported(tmp_path: Path) -> None:
    error = refused(folder_of(tmp_path, {}, {"quant_method": "aqlm"}))
    assert "quant_method 'aqlm' is not supported" in str(error)
    assert all(scheme.name in str(error) for scheme in SCHEMES)
    assert "the nearest known one is gptq" in str(refused(folder_of(tmp_path, {}, {"quant_method": "gptq2"})))


def test_a_config_that_says_quantized_over_plain_tensors(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a.weight": ("F16", np.ones((2, 2), np.float16))}, GPTQ)
    assert sourced.recognised(folder).notes == (
        "the config says that the weights are quantized (gptq), but no tensor is",
    )


def test_scales_of_activations_and_of_the_cache_are_dropped(tmp_path: Path) -> None:
    one = np.ones((), np.float32)
    parts = {"weight": ("F8_E4M3", np.zeros((64, 32), np.uint8)), "weight_scale": one, "input_scale": one}
    parts["k_scale"] = one
    checkpoint = sourced.recognised(folder_of(tmp_path, layer(parts), {"quant_method": "fp8"}))
    assert set(checkpoint.tensors) == {"x.weight"}
    assert "2 tensors dropped: scales of activations or of the cache, such as x.input_scale" in checkpoint.notes


def test_the_table_of_inputs() -> None:
    rows = table()
    assert len({name for name, _, _ in rows}) == len(rows) == len(SCHEMES)
    assert {method for _, methods, _ in rows for method in methods.split(", ")} == set(METHODS)
    assert all(note for _, _, note in rows)


def samples() -> dict[str, tuple[Tensors, dict[str, Any]]]:
    """A small weight of every scheme."""
    grid = {"weight": ("F8_E4M3", np.zeros((64, 32), np.uint8)), "weight_scale_inv": np.ones((2, 1), np.float32)}
    int8 = {"weight": np.zeros((64, 32), np.int8), "weight_scale": np.ones((64, 1), np.float32)}
    eight = {"weight": np.zeros((64, 32), np.int8), "SCB": np.ones(64, np.float32), "weight_format": np.uint8(0)}
    mxfp4 = {"up_blocks": np.zeros((2, 3, 2, 16), np.uint8), "up_scales": np.zeros((2, 3, 2), np.uint8)}
    hqq = {"W_q": np.zeros((8, 64), np.uint8), "scale": np.ones((16, 1), "f4"), "zero": np.ones((16, 1), "f4")}
    hqq |= {"shape": np.array([16, 64]), "axis": np.int32(1), "packing": np.frombuffer(b"4bit_u8", np.uint8)}
    ternary = {"weight": np.zeros((4, 8), np.uint8), "weight_scale": np.ones(1, np.float32)}
    order = packed(4, 3, "packed", order=True)[0]
    return {
        "gptq": (layer(quantized.gptq(RNG, 64, 128, group=64, order=True)[0]), GPTQ),
        "awq gemm": (awq("gemm", 64, 128, 64)[0], {"quant_method": "awq", "group_size": 64}),
        "awq gemv": (awq("gemv", 64, 128, 64)[0], {"quant_method": "awq", "group_size": 64}),
        "bnb": (bnb(32, 64, nested=True)[0], BNB),
        "bnb 8": (layer({k: np.asarray(v) for k, v in eight.items()}), {"quant_method": "bitsandbytes"}),
        "fp8": (layer(grid), {"quant_method": "fp8", "weight_block_size": [32, 32]}),
        "int8": (layer(int8), {"quant_method": "compressed-tensors"}),
        "packed": (layer(order), ct(num_bits=4, group_size=64)),
        "mxfp4": (layer(mxfp4), {"quant_method": "mxfp4"}),
        "bitnet": (layer(ternary), {"quant_method": "bitnet"}),
        "hqq": (layer({k: np.asarray(v) for k, v in hqq.items()}), {"quant_method": "hqq"}),
    }


@pytest.mark.parametrize("name", samples())
def test_any_damage_is_a_clear_error_or_harmless(tmp_path: Path, name: str) -> None:
    """Parts removed, of other dtypes and shapes, or filled with anything; settings of other types."""
    tensors, config = samples()[name]
    rng = np.random.default_rng(len(name))
    assert len(sourced.weights(folder_of(tmp_path / "whole", tensors, config))) == 1
    dtypes = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "I64": "<i8", "I8": "i1", "U8": "u1"}
    odd = (
        None,
        -1,
        0,
        3,
        1 << 70,
        0.5,
        True,
        "4",
        [],
        [0, 0],
        [128],
        {},
        {"a": 1},
        {"a": {"weights": {"num_bits": "x"}}},
    )
    stopped = 0
    for _ in range(150):
        damaged, settings = dict(tensors), dict(config)
        victim = str(rng.choice(list(damaged)))
        dtype, array = damaged[victim]
        kind = int(rng.integers(5))
        if kind == 0:
            del damaged[victim]
        elif kind == 1:
            other = str(rng.choice(list(dtypes)))
            damaged[victim] = other, np.zeros(array.shape, dtypes[other])
        elif kind == 2:
            shape = [max(int(n + rng.integers(-2, 3)), 0) for n in array.shape[: rng.integers(0, 4)]]
            damaged[victim] = dtype, np.zeros(shape, array.dtype)
        elif kind == 3:
            damaged[victim] = dtype, rng.integers(0, 256, array.nbytes, np.uint8).view(array.dtype).reshape(array.shape)
        else:
            key = str(rng.choice([*settings, "bits", "group_size", "desc_act", "weight_block_size", "config_groups"]))
            settings[key] = odd[int(rng.integers(len(odd)))]
        try:
            sourced.weights(folder_of(tmp_path / "damaged", damaged, settings))
        except (Malformed, Unsupported):
            stopped += 1
    assert stopped > 20
