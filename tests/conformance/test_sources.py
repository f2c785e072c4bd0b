"""Quantized checkpoints that foreign libraries wrote, and what those libraries make of them again, in float32."""

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_models import logits

import checkpoints
import foreign
import quantized
import reference
import sourced
from ggufsmith.container.reader import open_gguf
from requesting import plan, request, run

pytestmark = pytest.mark.conformance


def folder_of(folder: Path, tensors: Mapping[str, Any], **config: Any) -> Path:
    """A model folder of these torch tensors; contiguous copies, as safetensors wants them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}), encoding="utf-8")
    return folder


def only(found: Mapping[str, Any]) -> Any:
    (weight,) = found.values()
    return weight


# -- GPTQ -------------------------------------------------------------------------------------------------------------


def packed_by_autogptq(bits: int, group: int, order: bool) -> tuple[dict[str, Any], Any]:
    """The tensors of one AutoGPTQ layer, and its weight as its own forward uses it."""
    import torch

    out, width = 96, 256
    torch.manual_seed(bits)
    linear = torch.nn.Linear(width, out, bias=False)
    size = width if group == -1 else group
    groups = -(-width // size)
    g_idx = torch.arange(width, dtype=torch.int32) // size
    if order:
        g_idx = g_idx[torch.randperm(width)]
    scales = torch.rand(out, groups) * 0.02 + 0.005
    zeros = torch.randint(1, 1 << bits, (out, groups)).float()  # 0 breaks its packing
    codes = torch.randint(0, 1 << bits, (out, width)).float()
    linear.weight.data = (codes - zeros[:, g_idx.long()]) * scales[:, g_idx.long()]
    with foreign.module("auto_gptq.nn_modules.qlinear.qlinear_cuda") as module:
        layer = module.QuantLinear(bits, group, width, out, bias=False, weight_dtype=torch.float32)
        layer.pack(linear, scales, zeros, g_idx)
        layer.scales = layer.scales.half()
        tensors = {f"x.{name}": getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
        layer.scales = layer.scales.float()
        return tensors, layer(torch.eye(width)).T.numpy()


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_as_autogptq_computes(tmp_path: Path, bits: int, group: int, order: bool) -> None:
    tensors, expected = packed_by_autogptq(bits, group, order)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order}
    folder = folder_of(tmp_path, tensors, quantization_config=config)
    np.testing.assert_array_equal(only(sourced.weights(folder)), expected)


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_as_gptqmodel_dequantizes_it(tmp_path: Path, bits: int, form: str) -> None:
    """Zero points of every value, the wrapping ones included."""
    import torch

    config = {"quant_method": "gptq", "bits": bits, "group_size": 64, "desc_act": True, "checkpoint_format": form}
    version = 2 if form == "gptq_v2" else 1
    quantized.write_gptq("llama", tmp_path, config=config, bits=bits, group=64, order=True, version=version)
    with foreign.module("gptqmodel.utils.model_dequant") as module:
        theirs = module.convert_gptq_file(tmp_path / "model.safetensors", torch.float32, config, "cpu")
    ours = sourced.weights(tmp_path)
    assert len(ours) == 14
    for name, weight in ours.items():
        np.testing.assert_array_equal(weight, theirs[name].numpy())


# -- AWQ --------------------------------------------------------------------------------------------------------------


def on_the_grid(out: int, width: int, group: int) -> tuple[Any, Any, Any]:
    """A linear layer whose weights lie on a grid of four bits, with the grid's scales and zeros, (out, groups)."""
    import torch

    torch.manual_seed(group)
    scales = (torch.rand(out, width // group) * 0.02 + 0.005).half().float()
    zeros = torch.randint(0, 16, (out, width // group)).float()
    codes = torch.randint(0, 16, (out, width)).float()
    index = torch.arange(width) // group
    linear = torch.nn.Linear(width, out, bias=False)
    linear.weight.data = (codes - zeros[:, index]) * scales[:, index]
    return linear, scales, zeros


@pytest.mark.parametrize("group", [32, 64, 128])
def test_awq_gemm_as_autoawq_dequantizes_it(tmp_path: Path, group: int) -> None:
    linear, scales, zeros = on_the_grid(96, 256, group)
    with foreign.module("awq.modules.linear.gemm") as module:
        make = module.WQLinear_GEMM.from_linear
        layer = make(linear, 4, group, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    with foreign.module("awq.utils.packing_utils") as module:
        expected = module.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, group).T.numpy()
    tensors = {f"x.{name}": getattr(layer, name) for name in ("qweight", "qzeros", "scales")}
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    found = only(sourced.weights(folder_of(tmp_path, tensors, quantization_config=config)))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, linear.weight.detach().numpy())


@pytest.mark.parametrize("group", [32, 64, 128])
def test_awq_gemv_as_autoawq_packs_it(tmp_path: Path, group: int) -> None:
    """Its kernels run on GPUs only; the weights it packs lie on the grid, so they must come back as they were."""
    linear, scales, zeros = on_the_grid(96, 256, group)
    with foreign.module("awq.modules.linear.gemv") as module:
        layer = module.WQLinear_GEMV.from_linear(linear, 4, group, scales=scales, zeros=zeros)
    tensors = {f"x.{name}": getattr(layer, name) for name in ("qweight", "qzeros", "scales")}
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemv"}
    found = only(sourced.weights(folder_of(tmp_path, tensors, quantization_config=config)))
    np.testing.assert_array_equal(found, linear.weight.detach().numpy())


# -- bitsandbytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [384, 352])
@pytest.mark.parametrize("blocksize", [64, 128, 4096])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_four_bits(tmp_path: Path, kind: str, nested: bool, blocksize: int, width: int) -> None:
    """Where rows are not whole blocks, its kernel for CPUs takes scales of other blocks; its portable one does not."""
    import torch
    from bitsandbytes import functional
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute as portable

    torch.manual_seed(3)
    weight = torch.randn(192, width) * 0.02
    codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested, blocksize=blocksize)
    scales = state.absmax
    if nested:
        scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    expected = portable(codes.flatten(), scales, state.code, blocksize, weight.shape, torch.float32)
    if width % blocksize == 0:
        torch.testing.assert_close(functional.dequantize_4bit(codes, state), expected, rtol=3e-7, atol=0)
    tensors = {"x.weight": codes} | {f"x.weight.{key}": part for key, part in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    found = only(sourced.weights(folder_of(tmp_path, tensors, quantization_config=config)))
    np.testing.assert_allclose(found, expected.numpy(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_bitsandbytes_four_bits_stored_as_floats(tmp_path: Path, dtype: str) -> None:
    """bnb_4bit_quant_storage, which FSDP asks for: the codes' bytes are called floats."""
    import torch
    from bitsandbytes import functional

    torch.manual_seed(3)
    weight, stored = torch.randn(192, 384) * 0.02, getattr(torch, dtype)
    codes, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True, quant_storage=stored)
    assert codes.dtype == stored
    expected = functional.dequantize_4bit(codes, state)
    tensors = {"x.weight": codes} | {f"x.weight.{key}": part for key, part in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": dtype}
    found = only(sourced.weights(folder_of(tmp_path, tensors, quantization_config=config)))
    np.testing.assert_allclose(found, expected.numpy(), rtol=3e-7, atol=0)


def test_bitsandbytes_eight_bits(tmp_path: Path) -> None:
    import torch
    from bitsandbytes import functional

    torch.manual_seed(3)
    codes, scb, _ = functional.int8_vectorwise_quant(torch.randn(192, 352).half())
    expected = functional.int8_vectorwise_dequant(codes, scb).numpy()
    tensors = {"x.weight": codes, "x.SCB": scb, "x.weight_format": torch.tensor(0, dtype=torch.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    found = only(sourced.weights(folder_of(tmp_path, tensors, quantization_config=config)))
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=0)


# -- HQQ --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("group", [64, 32])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_hqq(tmp_path: Path, bits: int, group: int, axis: int) -> None:
    import torch

    torch.manual_seed(bits)
    linear = torch.nn.Linear(192, 64, bias=False)
    with foreign.module("hqq.core.quantize") as library:
        settings = library.BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
        layer = library.HQQLinear(linear, settings, compute_dtype=torch.float32, device="cpu")
        tensors = {f"x.{key}": part.data for key, part in layer.state_dict().items() if part is not None}
        expected = layer.dequantize().numpy()
    found = only(sourced.weights(folder_of(tmp_path, tensors, quantization_config={"quant_method": "hqq"})))
    np.testing.assert_array_equal(found, expected)


# -- compressed-tensors -----------------------------------------------------------------------------------------------

INT = {"type": "int", "dynamic": False}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"int{bits} {strategy} {'symmetric' if symmetric else 'asymmetric'}": (
            "pack-quantized",
            {**INT, "num_bits": bits, "symmetric": symmetric, "strategy": strategy, **extra},
        )
        for bits in (2, 3, 4, 5, 8)
        for symmetric in (True, False)
        for strategy, extra in (("channel", {}), ("group", {"group_size": 32}), ("group", {"group_size": 128}))
    },
    "int8 weights": ("int-quantized", {**INT, "num_bits": 8, "symmetric": True, "strategy": "channel"}),
    "int8 per tensor": ("int-quantized", {**INT, "num_bits": 8, "symmetric": True, "strategy": "tensor"}),
    "int8 asymmetric": ("int-quantized", {**INT, "num_bits": 8, "symmetric": False, "strategy": "channel"}),
    "float8 per row": ("float-quantized", {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "channel"}),
    "float8 per tensor": ("float-quantized", {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "tensor"}),
    "float8 blocks": (
        "float-quantized",
        {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "block", "block_structure": [128, 128]},
    ),
}


def compressed(form: str, args: Mapping[str, Any], shape: tuple[int, int]) -> tuple[dict[str, Any], Any]:
    import torch

    torch.manual_seed(len(form) + args["num_bits"])
    return compressed_weight(torch.randn(shape) * 0.02 + 0.003, form, args)


def compressed_weight(weight: Any, form: str, args: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """A weight compressed by the library, and decompressed by it again, with scales in float32."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    strategy, (out, width) = args["strategy"], weight.shape
    if strategy == "group":
        groups = weight.reshape(out, -1, args["group_size"])
        low, high = groups.amin(2), groups.amax(2)
    elif strategy == "block":
        rows, columns = args["block_structure"]
        padded = torch.nn.functional.pad(weight, (0, -width % columns, 0, -out % rows))
        blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    elif strategy == "channel":
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    else:
        low, high = weight.amin().reshape(1), weight.amax().reshape(1)
    scale, zero = calculate_qparams(low, high, scheme.weights)
    state = {"weight": weight, "weight_scale": scale.float(), "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(form)
    packed = compressor.compress(state, scheme)
    return packed, compressor.decompress(packed, scheme)["weight"]


@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors(tmp_path: Path, name: str) -> None:
    form, args = SCHEMES[name]
    packed, expected = compressed(form, args, (160, 384))
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}},
    }
    tensors = {f"x.{key}": tensor for key, tensor in packed.items()}
    found = only(sourced.weights(folder_of(tmp_path, tensors, quantization_config=config)))
    np.testing.assert_array_equal(found, expected.numpy())


def test_compressed_tensors_of_several_groups(tmp_path: Path) -> None:
    """Eight bits for one layer, four for another, floats for a third."""
    chosen = {"a": "int8 channel symmetric", "b": "int4 group asymmetric", "c": "float8 per row"}
    tensors, expected, groups = {}, {}, {}
    for name, scheme in chosen.items():
        form, args = SCHEMES[scheme]
        packed, dense = compressed(form, args, (96, 256))
        tensors |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
        expected[f"{name}.weight"] = dense.numpy()
        groups[f"group_{name}"] = {"targets": [f"re:.*{name}$"], "weights": args, "format": form}
    config = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    found = sourced.weights(folder_of(tmp_path, tensors, quantization_config=config))
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        np.testing.assert_array_equal(weight, expected[name])


def test_mxfp4_of_compressed_tensors(tmp_path: Path) -> None:
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.quant_scheme import MXFP4A16
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = QuantizationScheme(targets=["Linear"], weights=MXFP4A16["weights"])
    torch.manual_seed(1)
    weight = torch.randn(96, 256) * 0.02
    groups = weight.reshape(96, -1, 32)
    scale, _ = calculate_qparams(groups.amin(2), groups.amax(2), scheme.weights)
    compressor = BaseCompressor.get_value_from_registry("mxfp4-pack-quantized")
    packed = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    expected = compressor.decompress(packed, scheme)["weight"]
    config = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    tensors = {f"x.{key}": tensor for key, tensor in packed.items()}
    found = only(sourced.weights(folder_of(tmp_path, tensors, quantization_config=config)))
    np.testing.assert_array_equal(found, expected.float().numpy())


def test_nvfp4_of_compressed_tensors(tmp_path: Path) -> None:
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.quant_scheme import NVFP4A16
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = QuantizationScheme(targets=["Linear"], weights=NVFP4A16["weights"])
    torch.manual_seed(1)
    weight = torch.randn(96, 256) * 0.02
    groups, whole = weight.reshape(96, -1, 16), generate_gparam(weight.amin(), weight.amax())
    scale, _ = calculate_qparams(groups.amin(2), groups.amax(2), scheme.weights, global_scale=whole)
    compressor = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    dense = {"weight": weight, "weight_scale": scale, "weight_global_scale": whole}
    packed = compressor.compress(dense, scheme)
    codes = unpack_fp4_from_uint8(packed["weight_packed"], 96, 256, torch.float32)  # decompress() would use bfloat16
    scale = packed["weight_scale"].float()
    expected = dequantize(x_q=codes, scale=scale, args=scheme.weights, global_scale=whole).numpy()
    config = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    tensors = {f"x.{key}": tensor for key, tensor in packed.items()}
    found = only(sourced.weights(folder_of(tmp_path, tensors, quantization_config=config)))
    np.testing.assert_allclose(found, expected, rtol=2e-7)
    assert np.abs(found - weight.numpy()).mean() < 0.1 * np.abs(weight.numpy()).mean()


# -- what transformers reads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 1), (256, 1), (2, 3)])
def test_fp8_as_transformers_dequantizes_it(tmp_path: Path, grid: tuple[int, int]) -> None:
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    torch.manual_seed(2)
    values = (torch.randn(256, 384) * 100).to(torch.float8_e4m3fn)
    scale = torch.rand(grid) * 0.001
    expected = Fp8Dequantize(None)._dequantize_one(values, scale, torch.float32)
    config: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128] if grid == (2, 3) else None}
    tensors = {"x.weight": values, "x.weight_scale_inv": scale}
    found = only(sourced.weights(folder_of(tmp_path, tensors, quantization_config=config)))
    np.testing.assert_array_equal(found, expected.numpy())


def test_every_eight_bit_float_as_torch_reads_it() -> None:
    import torch

    from ggufsmith.convert.dequantize.store import EIGHT_BITS

    codes = torch.arange(256).to(torch.uint8)
    dtypes = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu}
    for name, dtype in dtypes.items():
        np.testing.assert_array_equal(EIGHT_BITS[name], codes.view(dtype).float().numpy())


def test_mxfp4_experts_as_transformers_dequantizes_them(tmp_path: Path) -> None:
    """transformers transposes them for its own matrix product; ggml wants the rows as they are stored."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(4)
    blocks = torch.randint(0, 256, (3, 64, 4, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (3, 64, 4), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": scales}
    found = sourced.weights(folder_of(tmp_path, tensors, quantization_config={"quant_method": "mxfp4"}))
    np.testing.assert_array_equal(only(found), expected.numpy())


def test_bitnet_as_transformers_packs_it(tmp_path: Path) -> None:
    import torch
    from transformers.integrations.bitnet import pack_weights

    torch.manual_seed(5)
    ternary = torch.randint(-1, 2, (64, 96))
    scale = torch.tensor([37.5], dtype=torch.bfloat16)
    tensors = {"x.weight": pack_weights(ternary.clone()), "x.weight_scale": scale}
    for kind, expected in (("bitlinear", ternary / scale.float()), ("autobitlinear", ternary * scale.float())):
        config = {"quant_method": "bitnet", "linear_class": kind}
        found = only(sourced.weights(folder_of(tmp_path / kind, tensors, quantization_config=config)))
        np.testing.assert_array_equal(found, expected.numpy())


# -- whole files against the reference converter ----------------------------------------------------------------------


def quantize_all(folder: Path, config: Mapping[str, Any], quantize: Any) -> None:
    """Replace every projection of a fixture checkpoint by what `quantize(weight)` gives, by the ends of names."""
    import torch
    from safetensors.torch import load_file, save_file

    checkpoints.write("llama", folder, dtype="float32")
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if quantized.linear(name):
            tensors |= {name.removesuffix("weight") + end: part for end, part in quantize(tensor).items()}
        else:
            tensors[name] = tensor.to(torch.float16)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings |= {"quantization_config": config, "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def fp8(block: int | None) -> Any:
    def quantize(weight: Any) -> dict[str, Any]:
        import torch

        rows, columns = (block, block) if block else (1, weight.shape[1])
        blocks = weight.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
        scale = blocks.abs().amax((1, 3)) / 448
        values = (blocks / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        return {"weight": values, "weight_scale_inv" if block else "weight_scale": scale}

    return quantize


def packed_int4(weight: Any) -> dict[str, Any]:
    packed, _ = compressed_weight(weight, *SCHEMES["int4 group asymmetric"])
    return dict(packed)


def ternary(weight: Any) -> dict[str, Any]:
    import torch
    from transformers.integrations.bitnet import pack_weights

    scale = 1 / weight.abs().mean()
    values = (weight * scale).round().clamp(-1, 1)
    return {"weight": pack_weights(values), "weight_scale": scale.reshape(1).to(torch.float32)}


def ct(form: str, args: Mapping[str, Any]) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": args}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


WHOLE: dict[str, tuple[dict[str, Any], Any]] = {
    "fp8 blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8(128)),
    "compressed fp8 per row": (ct(*SCHEMES["float8 per row"]), fp8(None)),
    "compressed int4": (ct(*SCHEMES["int4 group asymmetric"]), packed_int4),
    "bitnet": ({"quant_method": "bitnet"}, ternary),
}


@pytest.mark.parametrize("name", ["gptq v1", "gptq v2", "gptq 8 bits", "gptq 2 bits", *WHOLE])
def test_every_tensor_as_the_reference_converter(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "Tiny-Fixture"
    if name in WHOLE:
        quantize_all(folder, *WHOLE[name])
    else:
        bits = int(name.split()[1]) if "bits" in name else 4
        version = 2 if "v2" in name else 1
        config = {"quant_method": "gptq", "bits": bits, "group_size": 64, "desc_act": True}
        config["checkpoint_format"] = "gptq_v2" if version == 2 else "gptq"
        # The reference takes a wrapped zero point for 2^bits, AutoGPTQ and GPTQModel for 0: leave it out.
        quantized.write_gptq(
            "llama",
            folder,
            config=config,
            bits=bits,
            group=64,
            order=True,
            version=version,
            least=1 if version == 1 else 0,
        )
    run(request(folder, outtype="f32", outfile=tmp_path / "ours.gguf"))
    # Reading lazily, it fails on BitNet's packed weights.
    reference.convert(folder, tmp_path / "theirs.gguf", "--outtype", "f32", *["--no-lazy"][: name == "bitnet"])
    ours, theirs = open_gguf(tmp_path / "ours.gguf"), open_gguf(tmp_path / "theirs.gguf")
    assert ours.tensors.keys() == theirs.tensors.keys()
    for info in ours.tensors.values():
        other = theirs.tensors[info.name]
        a, b = (
            np.fromfile(gguf.path, np.float32, int(np.prod(tensor.shape)), offset=tensor.offset)
            for gguf, tensor in ((ours, info), (theirs, other))
        )
        assert (info.shape, info.format) == (other.shape, other.format)
        np.testing.assert_array_equal(a, b, err_msg=info.name)


# -- whole checkpoints that transformers quantized and saved ----------------------------------------------------------

SAVED: dict[str, dict[str, Any]] = {
    "nf4, double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize("name", SAVED)
def test_logits_as_the_library_that_wrote_the_checkpoint(tmp_path: Path, name: str) -> None:
    """The saved model is loaded and dequantized by transformers; bitsandbytes' own products round on CPUs."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source, folder = checkpoints.write("llama", tmp_path / "source", dtype="float32"), tmp_path / "saved"
    load = functools.partial(
        AutoModelForCausalLM.from_pretrained, dtype=torch.float32, device_map="cpu", attn_implementation="eager"
    )
    load(source, quantization_config=BitsAndBytesConfig(**SAVED[name])).save_pretrained(folder)
    model = load(folder).dequantize().float()
    for path in source.glob("*token*"):
        shutil.copy(path, folder / path.name)
    ids = np.random.default_rng(5).integers(3, 300, 64).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    prepared = plan(request(folder, outtype="f32", outfile=tmp_path / "out.gguf"))
    assert any(note.startswith("14 weights are dequantized from bitsandbytes") for note in prepared.made.notes)
    run(prepared)
    found = logits(prepared.output.path, ids)
    assert ((found - expected) ** 2).mean() / (expected**2).mean() < 1e-9
