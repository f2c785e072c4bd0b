"""NVFP4, MLX and three-bit HQQ worked by hand, and what must stop a conversion of one."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
import quantized
import sourced
from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.dequantize.store import EIGHT_BITS
from requesting import plan, request, run

RNG = np.random.default_rng(12)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def folder_of(folder: Path, parts: Mapping[str, Any], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"x.{name}": part if isinstance(part, tuple) else quantized.plain(part) for name, part in parts.items()}
    quantized.save(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}), encoding="utf-8")
    return folder


def read(folder: Path) -> Any:
    (weight,) = sourced.weights(folder).values()
    return weight


def refused(folder: Path) -> Failure:
    with pytest.raises((Malformed, Unsupported)) as caught:
        sourced.recognised(folder)
    return caught.value


# -- NVFP4 ------------------------------------------------------------------------------------------------------------

COMPRESSED = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def nvfp4(form: str, out: int = 48, width: int = 96) -> tuple[dict[str, Any], Any]:
    codes = RNG.integers(0, 16, (out, width)).astype(np.uint8)
    scales = RNG.integers(1, 120, (out, width // 16)).astype(np.uint8)
    whole = np.float32(37.5 if form == "compressed" else 0.013)
    wide = EIGHT_BITS["F8_E4M3"][scales]
    wide = wide / whole if form == "compressed" else wide * whole
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    names = ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")
    if form != "compressed":
        names = ("weight", "weight_scale", "weight_scale_2", "input_scale")
    shape = (1,) if form == "compressed" else ()
    parts = zip(names, (packed, ("F8_E4M3", scales), np.full(shape, whole), np.full(shape, whole)), strict=True)
    return dict(parts), E2M1[codes] * wide.repeat(16, axis=1)


@pytest.mark.parametrize(("form", "config"), [("compressed", COMPRESSED), ("modelopt", MODELOPT)])
def test_nvfp4(tmp_path: Path, form: str, config: dict[str, Any]) -> None:
    parts, expected = nvfp4(form)
    folder = folder_of(tmp_path, parts, quantization_config=config)
    np.testing.assert_array_equal(read(folder), expected)
    assert list(sourced.recognised(folder).tensors) == ["x.weight"]


def test_settings_of_modelopt_in_a_file_of_their_own(tmp_path: Path) -> None:
    parts, expected = nvfp4("modelopt")
    folder = folder_of(tmp_path, parts)
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    (folder / "hf_quant_config.json").write_text(json.dumps(stated), encoding="utf-8")
    np.testing.assert_array_equal(read(folder), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_scale": ("F8_E4M3", np.zeros((48, 5), np.uint8))}, "F8_E4M3 [48, 6] is expected"),
        ({"weight_scale_2": np.ones(48, np.float32)}, "one F32 is expected"),
        ({"pre_quant_scale": np.ones(96, np.float32)}, "inputs scaled before the weights"),
        ({"weight": np.zeros((48, 50), np.uint8)}, "not divide into blocks of 16"),
        ({"weight_scale_2": None}, "global_scale is missing"),
    ],
)
def test_nvfp4_that_is_damaged(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    parts = {name: part for name, part in {**nvfp4("modelopt")[0], **change}.items() if part is not None}
    assert message in str(refused(folder_of(tmp_path, parts, quantization_config=MODELOPT)))


# -- MLX --------------------------------------------------------------------------------------------------------------


def mlx(out: int, width: int, bits: int, group: int) -> tuple[dict[str, Any], Any]:
    codes = quantized.codes_of(RNG, (out, width), bits)
    scales, biases = (RNG.standard_normal((out, width // group)).astype(np.float16) for _ in range(2))
    words = quantized.rows_of_words(codes, bits).view(np.uint32)
    wide = (part.astype(np.float32).repeat(group, axis=1) for part in (scales, biases))
    scale, bias = wide
    return {"weight": words, "scales": scales, "biases": biases}, codes.astype(np.float32) * scale + bias


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(tmp_path: Path, bits: int, group: int, key: str) -> None:
    parts, expected = mlx(48, 256, bits, group)
    config = {"bits": bits, "group_size": group, "mode": "affine"}
    np.testing.assert_array_equal(read(folder_of(tmp_path, parts, **{key: config})), expected)


def test_mlx_with_other_bits_for_one_module(tmp_path: Path) -> None:
    parts, expected = mlx(48, 256, 6, 32)
    config = {"bits": 4, "group_size": 64, "x": {"bits": 6, "group_size": 32}, "y": False}
    np.testing.assert_array_equal(read(folder_of(tmp_path, parts, quantization=config)), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bits": 8, "group_size": 64}, "words do not hold"),
        ({"bits": 7, "group_size": 64}, "7 bits in groups of 64"),
        ({"bits": 4}, "4 bits in groups of None"),
        ({"bits": 4, "group_size": 64, "mode": "mxfp4"}, "mode 'mxfp4'; supported: affine"),
        ({"bits": 4, "group_size": 64, "x": 3}, "must be an object"),
        ({"bits": 4, "group_size": [64]}, "in groups of [64]"),
    ],
)
def test_mlx_settings_that_do_not_fit(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    assert message in str(refused(folder_of(tmp_path, mlx(48, 256, 4, 64)[0], quantization=config)))


@pytest.mark.parametrize("part", ["scales", "biases"])
def test_mlx_without_a_part(tmp_path: Path, part: str) -> None:
    """Without scales nothing says that the words are weights; they are then no weights that can be read."""
    parts = {name: values for name, values in mlx(48, 256, 4, 64)[0].items() if name != part}
    folder = folder_of(tmp_path, parts, quantization={"bits": 4, "group_size": 64})
    if part == "biases":
        assert "its bias is missing" in str(refused(folder))
    else:
        assert sourced.recognised(folder).tensors["x.weight"].dtype == "U32"


def test_a_model_of_mlx(tmp_path: Path) -> None:
    """Its embedding and its head are quantized as well."""
    checkpoints.write("llama", tmp_path, dtype="float16")
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    tensors: quantized.Tensors = {}
    for name, array in checkpoints.tensors_of(settings, "float16").items():
        stem = name.removesuffix("weight")
        parts = mlx(*array.shape, 4, 64)[0] if array.ndim > 1 else {"weight": array}
        tensors |= {f"{stem}{end}": quantized.plain(part) for end, part in parts.items()}
    quantized.save(tensors, tmp_path / "model.safetensors")
    settings["quantization"] = {"bits": 4, "group_size": 64}
    path.write_text(json.dumps(settings), encoding="utf-8")
    prepared = plan(request(tmp_path))
    assert "16 weights are dequantized from MLX" in prepared.notes
    assert prepared.layout.metadata["llama.vocab_size"].data == settings["vocab_size"]


MOE = ("mixtral", "qwen2-moe", "qwen3-moe")
MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def switched(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """As mlx-lm stacks the experts of each layer (models/mixtral.py and qwen3_moe.py, sanitize)."""
    stacks: dict[str, list[Any]] = {}
    for name, array in tensors.items():
        block, separator, rest = name.partition(".experts.")
        if separator:
            end = rest.partition(".")[2].removesuffix(".weight")
            name = f"{block}.switch_mlp.{MIXTRAL.get(end, end)}.weight"
        stacks.setdefault(name, []).append(array)
    return {name: np.stack(arrays) if ".switch_mlp." in name else arrays[0] for name, arrays in stacks.items()}


def tensors_made(folder: Path, output: Path) -> dict[str, bytes]:
    run(request(folder, outfile=output, outtype="f32"))
    with open_gguf(output) as gguf:
        data = output.read_bytes()
        return {info.name: data[info.offset : info.offset + info.nbytes] for info in gguf.tensors.values()}


@pytest.mark.parametrize("kind", MOE)
def test_experts_that_mlx_stacked(tmp_path: Path, kind: str) -> None:
    apart = checkpoints.write(kind, tmp_path / "apart")
    config = json.loads((apart / "config.json").read_text(encoding="utf-8"))
    stacked = tmp_path / "stacked"
    shutil.copytree(apart, stacked)
    tensors = switched(checkpoints.tensors_of(config))
    checkpoints.save(tensors, stacked / "model.safetensors", "bfloat16")
    assert any(".switch_mlp." in name for name in tensors)
    assert tensors_made(apart, tmp_path / "a.gguf") == tensors_made(stacked, tmp_path / "b.gguf")


@pytest.mark.parametrize("kind", MOE)
def test_experts_that_mlx_stacked_and_quantized(tmp_path: Path, kind: str) -> None:
    """The router has eight bits, as mlx-lm gives it."""
    folder = checkpoints.write(kind, tmp_path / "m", dtype="float16")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors: quantized.Tensors = {}
    expected = {}
    settings: dict[str, Any] = {"bits": 4, "group_size": 64}
    for name, array in switched(checkpoints.tensors_of(config, "float16")).items():
        stem = name.removesuffix(".weight")
        if array.ndim < 2 or "expert_gate" in name:
            tensors[name] = quantized.plain(array)
            continue
        bits = 8 if stem.endswith((".gate", "_gate")) else 4
        if bits == 8:
            settings[stem] = {"bits": 8, "group_size": 64}
        made = [mlx(*matrix.shape, bits, 64) for matrix in array.reshape(-1, *array.shape[-2:])]
        for end in made[0][0]:
            part = np.stack([parts[end] for parts, _ in made]).reshape(*array.shape[:-1], -1)
            tensors[f"{stem}.{end}"] = quantized.plain(part)
        expected[name] = np.stack([weight for _, weight in made]).reshape(array.shape)
    quantized.save(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "quantization": settings}), encoding="utf-8")
    found = sourced.weights(folder)
    assert any(weight.ndim == 3 for weight in found.values())
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name], weight)
    made_tensors = tensors_made(folder, tmp_path / "m.gguf")
    gate = next(name for name in expected if "layers.1" in name and name.endswith("switch_mlp.gate_proj.weight"))
    assert made_tensors["blk.1.ffn_gate_exps.weight"] == expected[gate].tobytes()


@pytest.mark.parametrize("shape", [(4, 8, 32), (2, 4, 16, 32)])
def test_mlx_parts_of_different_ranks(tmp_path: Path, shape: tuple[int, ...]) -> None:
    parts = {**mlx(32, 256, 4, 64)[0], "weight": np.zeros(shape, np.uint32)}
    assert "stacks of them" in str(refused(folder_of(tmp_path, parts, quantization={"bits": 4, "group_size": 64})))


# -- HQQ --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_hqq_of_three_bits(tmp_path: Path, axis: int) -> None:
    """Ten codes in a word; 64 or 24 rows leave some of the last part empty."""
    group, groups = 24, 16 * 96 // 24
    grid, each = ((groups, group), (groups, 1)) if axis else ((group, groups), (1, groups))
    codes = quantized.codes_of(RNG, grid, 3)
    scale, zero = RNG.random(each).astype(np.float32), RNG.random(each).astype(np.float32) * 9
    step = -(-grid[0] // 10)
    filled = np.zeros((10 * step, grid[1]), np.int64)
    filled[: grid[0]] = codes
    packed = sum(filled[k * step : (k + 1) * step] << (27 - 3 * k) for k in range(10))
    parts = {
        "W_q": packed.astype(np.int32),
        "scale": scale,
        "zero": zero,
        "shape": np.array([16, 96]),
        "axis": np.array(axis, np.int32),
        "packing": np.frombuffer(b"3bit_32", np.uint8),
    }
    found = read(folder_of(tmp_path, parts, quantization_config={"quant_method": "hqq"}))
    np.testing.assert_array_equal(found, ((codes.astype(np.float32) - zero) * scale).reshape(16, 96))
    parts["W_q"] = packed[:-1].astype(np.int32)
    assert "of 3 bits" in str(refused(folder_of(tmp_path, parts, quantization_config={"quant_method": "hqq"})))
