"""A Llama checkpoint in every form that gguf-convert reads, of any shape; random codes under small scales.

usage: stored.py FORM PLAIN FOLDER

Writes FORM into FOLDER, a model of the same sizes as PLAIN, which is a plain checkpoint. A process of its own: what the
one that measures holds would count as memory of those that it measures.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "fixtures"))

import old_ggml  # noqa: E402

import checkpoints  # noqa: E402
import original  # noqa: E402
import quantized  # noqa: E402

Array = NDArray[Any]
Parts = dict[str, Any]  # end of a name -> array, or (dtype as safetensors spells it, array)
Json = dict[str, Any]
RNG = np.random.default_rng(1)


def codes(dtype: str, *shape: int, mask: int = 0xFF) -> Array:
    """Random bytes, masked, seen as `dtype`."""
    found = np.frombuffer(RNG.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), np.uint8)
    return (found & np.uint8(mask)).view(dtype).reshape(shape)


def floats(dtype: str, *shape: int) -> Array:
    """Scales: positive and small."""
    return (RNG.random(shape, dtype=np.float32) * np.float32(0.01) + np.float32(0.001)).astype(dtype)


def fp8(*shape: int) -> tuple[str, Array]:
    """E4M3 below two, so that none is NaN."""
    return "F8_E4M3", codes("u1", *shape, mask=0xBF)


def gptq(rows: int, width: int, *, bits: int = 4, group: int = 128, order: bool = False) -> Parts:
    g_idx = np.arange(width, dtype=np.int32) // group
    return {
        "qweight": codes("<i4", width * bits // 32, rows),
        "qzeros": np.full((width // group, rows * bits // 32), 0x77777777, np.int32),
        "scales": floats("f2", width // group, rows),
        "g_idx": RNG.permutation(g_idx) if order else g_idx,
    }


def awq_gemm(rows: int, width: int) -> Parts:
    groups = width // 128
    return {
        "qweight": codes("<i4", width, rows // 8),
        "qzeros": codes("<i4", groups, rows // 8),
        "scales": floats("f2", groups, rows),
    }


def awq_gemv(rows: int, width: int) -> Parts:
    words = -(-width // 128 // 8)
    return {
        "qweight": codes("<i4", rows, width // 8),
        "qzeros": codes("<i4", rows, words),
        "scales": floats("f2", rows, 8 * words),
    }


def bnb_4bit(rows: int, width: int, *, kind: str) -> Parts:
    """NF4 with double quantization, FP4 without."""
    blocks = rows * width // 64
    state: Json = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": [rows, width]}
    parts = {"weight": codes("u1", rows * width // 2, 1), "weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32)}
    if kind == "nf4":
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05}
        parts["weight.absmax"] = codes("u1", blocks)
        parts["weight.nested_absmax"] = floats("f4", -(-blocks // 256))
        parts["weight.nested_quant_map"] = np.linspace(-1, 1, 256, dtype=np.float32)
    else:
        parts["weight.absmax"] = floats("f4", blocks)
    parts[f"weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return parts


def packed(rows: int, width: int, *, bits: int, group: int) -> Parts:
    return {
        "weight_packed": codes("<i4", rows, width * bits // 32),
        "weight_scale": floats("f2", rows, width // group),
        "weight_shape": np.array([rows, width]),
    }


def nvfp4(rows: int, width: int) -> Parts:
    one = np.full(1, 50, np.float32)
    return {
        "weight_packed": codes("u1", rows, width // 2),
        "weight_scale": fp8(rows, width // 16),
        "weight_global_scale": one,
        "input_global_scale": one,
    }


def mxfp4(rows: int, width: int) -> Parts:
    return {
        "weight_packed": codes("u1", rows, width // 2),
        "weight_scale": np.full((rows, width // 32), 120, np.uint8),
    }


def hqq(rows: int, width: int) -> Parts:
    groups = rows * width // 64
    return {
        "W_q": codes("u1", groups // 2, 64),
        "scale": floats("f2", groups, 1),
        "zero": floats("f2", groups, 1),
        "shape": np.array([rows, width]),
        "axis": np.array(1, np.int32),
        "packing": np.frombuffer(b"4bit_u8", np.uint8),
    }


def bitnet(rows: int, width: int) -> Parts:
    """Codes of two bits, none of them 3."""
    return {"weight": codes("u1", rows // 4, width, mask=0b10_01_10_01), "weight_scale": np.full(1, 50, np.float32)}


def mlx(rows: int, width: int) -> Parts:
    scales = floats("f2", rows, width // 64)
    return {"weight": codes("<u4", rows, width // 8), "scales": scales, "biases": -8 * scales}


@dataclass(frozen=True)
class Stored:
    """config: the quantization_config. parts: (rows, columns) -> the tensors of a weight. takes: names of such."""

    config: Json
    parts: Callable[[int, int], Parts]
    takes: Callable[[str], bool] = quantized.linear

    def __call__(self, plain: Path, folder: Path) -> None:
        settings = json.loads((plain / "config.json").read_text(encoding="utf-8"))
        tensors: quantized.Tensors = {}
        for name, shape in checkpoints.shapes(settings):
            if not self.takes(name):
                tensors[name] = quantized.plain(
                    (RNG.standard_normal(shape, np.float32) * np.float32(0.02)).astype("f2")
                )
                continue
            for end, part in self.parts(*shape).items():
                tensors[name.removesuffix("weight") + end] = part if isinstance(part, tuple) else quantized.plain(part)
        copy_vocabulary(plain, folder)
        quantized.save(tensors, folder / "model.safetensors")
        settings |= {"quantization_config": self.config, "torch_dtype": "float16"}
        (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def copy_vocabulary(plain: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in plain.glob("*"):
        if "safetensors" not in path.name:
            shutil.copy(path, folder)


def pickles(plain: Path, folder: Path) -> None:
    """A pickled shard for each that there is, with its index."""
    import torch
    from safetensors.torch import load_file

    copy_vocabulary(plain, folder)
    index = json.loads((plain / "model.safetensors.index.json").read_text(encoding="utf-8"))
    names = {path.name: f"pytorch_{path.stem}.bin" for path in plain.glob("*.safetensors")}
    for name, pickled in names.items():
        torch.save(load_file(plain / name), folder / pickled)
    index["weight_map"] = {tensor: names[name] for tensor, name in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def consolidated(plain: Path, folder: Path) -> None:
    from safetensors.torch import load_file

    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    tensors = {name: tensor for path in plain.glob("*.safetensors") for name, tensor in load_file(path).items()}
    copy_vocabulary(plain, folder)
    (folder / "config.json").unlink()
    numbers = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "multiple_of": 256,
        "norm_eps": config["rms_norm_eps"],
    }
    original.write(folder, tensors, 2, **numbers)


def gguf(plain: Path, folder: Path, *options: str) -> None:
    """What gguf-convert makes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    convert = [sys.executable, "-c", "from ggufsmith.cli.app import convert_main; convert_main()"]
    command = [*convert, str(plain), *options, "-o", str(folder / "model.gguf"), "--no-sync", "--quiet"]
    subprocess.run(command, check=True)


def ggml(plain: Path, folder: Path, recipe: str) -> None:
    """The same blocks in a file from before GGUF."""
    from ggufsmith.container.reader import open_gguf

    gguf(plain, folder, "--recipe", recipe)
    with open_gguf(folder / "model.gguf") as opened:
        old_ggml.write("ggjt v3", opened, folder / "model.bin")
    (folder / "model.gguf").unlink()


def adapter(plain: Path, folder: Path, **options: Any) -> None:
    import adapters

    adapters.write(plain, folder, targets=adapters.ALL, rank=16, **options)


def method(name: str, **settings: Any) -> Json:
    return {"quant_method": name, **settings}


def compressed(form: str, **weights: Any) -> Json:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return method("compressed-tensors", format=form, config_groups=groups)


def under(scale: str, weight: Callable[..., Any], grid: Callable[[int, int], tuple[int, ...]]) -> Callable[..., Parts]:
    """Eight-bit weights and their scales."""
    return lambda rows, width: {"weight": weight(rows, width), scale: floats("f4", *grid(rows, width))}


int8 = partial(codes, "i1")
GPTQ = method("gptq", bits=4, group_size=128, sym=True, desc_act=False)
AWQ = method("awq", bits=4, group_size=128)
FORMS: Mapping[str, Callable[[Path, Path], None]] = {
    "gptq": Stored(GPTQ, gptq),
    "gptq act-order": Stored({**GPTQ, "desc_act": True}, partial(gptq, order=True)),
    "gptq 3 bits": Stored({**GPTQ, "bits": 3, "sym": False}, partial(gptq, bits=3)),
    "awq gemm": Stored({**AWQ, "version": "gemm"}, awq_gemm),
    "awq gemv": Stored({**AWQ, "version": "gemv"}, awq_gemv),
    "nf4": Stored(method("bitsandbytes", load_in_4bit=True), partial(bnb_4bit, kind="nf4")),
    "fp4": Stored(method("bitsandbytes", load_in_4bit=True), partial(bnb_4bit, kind="fp4")),
    "llm.int8": Stored(method("bitsandbytes", load_in_8bit=True), under("SCB", int8, lambda rows, _: (rows,))),
    "fp8 blocks": Stored(
        method("fp8", weight_block_size=[128, 128]),
        under("weight_scale_inv", fp8, lambda rows, width: (-(-rows // 128), -(-width // 128))),
    ),
    "fp8 tensor": Stored(method("fp8"), under("weight_scale", fp8, lambda *_: (1,))),
    "packed int4": Stored(
        compressed("pack-quantized", num_bits=4, group_size=128, symmetric=True), partial(packed, bits=4, group=128)
    ),
    "packed int8": Stored(
        compressed("pack-quantized", num_bits=8, group_size=128, symmetric=True), partial(packed, bits=8, group=128)
    ),
    "int8": Stored(compressed("int-quantized", num_bits=8), under("weight_scale", int8, lambda rows, _: (rows, 1))),
    "float": Stored(compressed("float-quantized", num_bits=8), under("weight_scale", fp8, lambda rows, _: (rows, 1))),
    "nvfp4": Stored(compressed("nvfp4-pack-quantized", num_bits=4, group_size=16), nvfp4),
    "mxfp4": Stored(compressed("mxfp4-pack-quantized", num_bits=4, group_size=32), mxfp4),
    "hqq": Stored(method("hqq"), hqq),
    "bitnet": Stored(method("bitnet"), bitnet),
    "mlx": Stored({"bits": 4, "group_size": 64}, mlx, lambda name: "norm" not in name),
    "pickles": pickles,
    "consolidated": consolidated,
    "gguf": lambda plain, folder: gguf(plain, folder, "--outtype", "bf16"),
    "ggml q4_0": partial(ggml, recipe="q4_0"),
    "ggml q4_K_M": partial(ggml, recipe="q4_K_M"),
    "lora": adapter,
    "dora": partial(adapter, use_dora=True),
}


if __name__ == "__main__":
    FORMS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
