"""Memory and speed of gguf-convert on mixtures of 128 experts at full width. Prints a Markdown table.

The models have the shapes of published ones, few blocks, and no bytes: their weights are holes in files. Times are for
each byte of the input, next to those of TinyLlama's shape, made in the same way, in turn with it. One dense model is as
large as the mixtures: what a byte of a larger file costs more, whatever is in it.

usage: experts.py [--pairs N]
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "fixtures"))

import vocabularies  # noqa: E402
from convert import BENCH, CONVERT, TINYLLAMA, settle, timed  # noqa: E402

MEMORY, RATIO = 400, 1.3  # MB, and times the seconds per byte of TinyLlama


@dataclass(frozen=True)
class Shape:
    """A model. packed: ends of names whose weights are MXFP4, as published."""

    model_class: str
    config: Mapping[str, Any]
    packed: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=())


GPT_OSS = {"hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 128, "vocab_size": 201088}
QWEN = {
    "hidden_size": 2048,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 128,
    "num_hidden_layers": 4,
    "vocab_size": 248320,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
SHAPES = {
    "TinyLlama": Shape("LlamaForCausalLM", TINYLLAMA),
    "TinyLlama, four times the blocks": Shape("LlamaForCausalLM", {**TINYLLAMA, "num_hidden_layers": 88}),
    "qwen35moe, 4 blocks": Shape("Qwen3_5MoeForCausalLM", QWEN),
    "gpt-oss, 1 block": Shape("GptOssForCausalLM", {**GPT_OSS, "num_hidden_layers": 1}),
    "gpt-oss in MXFP4, 2 blocks, copied": Shape(
        "GptOssForCausalLM", {**GPT_OSS, "num_hidden_layers": 2}, EXPERTS, ("--recipe", "copy")
    ),
}


def write(shape: Shape, folder: Path) -> int:
    """A model folder whose weights are holes; the bytes of its weights."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    model_class = getattr(transformers, shape.model_class)
    config = model_class.config_class(**shape.config)
    with torch.device("meta"):
        model = model_class(config)
    listed: dict[str, Any] = {}
    end = 0
    for name, tensor in model.state_dict().items():
        for part, dtype, sizes, size in parts(name, tuple(tensor.shape), shape.packed):
            listed[part] = {"dtype": dtype, "shape": sizes, "data_offsets": [end, end + size]}
            end += size
    header = json.dumps(listed).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    vocabularies.write("qwen2-bpe", folder)
    config.architectures = [shape.model_class]
    stated = {**config.to_dict(), **({"quantization_config": {"quant_method": "mxfp4"}} if shape.packed else {})}
    (folder / "config.json").write_text(json.dumps(stated, default=str), encoding="utf-8")
    return end


def parts(name: str, shape: tuple[int, ...], packed: tuple[str, ...]) -> list[tuple[str, str, list[int], int]]:
    """(name, dtype, shape, bytes) of what is stored of one weight."""
    count = 1
    for each in shape:
        count *= each
    if not name.endswith(packed or ("\0",)):
        return [(name, "BF16", list(shape), 2 * count)]
    experts, inputs, rows = shape
    blocks = [experts, rows, inputs // 32]
    return [
        (f"{name}_blocks", "U8", [*blocks, 16], count // 2),
        (f"{name}_scales", "U8", blocks, count // 32),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--write", choices=tuple(SHAPES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write(SHAPES[given.write], BENCH / "experts" / given.write)
        return
    pairs = given.pairs
    home, output = BENCH / "experts", BENCH / "out.gguf"
    sizes, peaks = {}, dict.fromkeys(SHAPES, 0.0)
    for name in SHAPES:
        folder = home / name
        if not (folder / "config.json").is_file():  # by another process: what this one takes, Linux counts as theirs
            subprocess.run([sys.executable, __file__, "--write", name], check=True)
        sizes[name] = (folder / "model.safetensors").stat().st_size

    def seconds_per_gb(name: str) -> float:
        settle()
        command = [*CONVERT, str(home / name), "-o", str(output), "--quiet", "--no-sync", *SHAPES[name].options]
        seconds, memory = timed(command)
        output.unlink()
        peaks[name] = max(peaks[name], memory)
        return seconds / sizes[name] * 1e9

    first, *others = SHAPES
    print(f"| shape | input | seconds per GB | of TinyLlama's (goal {RATIO}) | peak memory (goal {MEMORY} MB) |")
    print("|---|---|---|---|---|")
    plain = []
    for name in others:
        both = [(seconds_per_gb(first), seconds_per_gb(name)) for _ in range(pairs)]
        plain += [each for each, _ in both]
        ratio = statistics.median(b / a for a, b in both)
        mine = statistics.median(b for _, b in both)
        print(f"| {name} | {sizes[name] / 1e9:.1f} GB | {mine:.2f} | {ratio:.2f} | {peaks[name]:.0f} MB |", flush=True)
    print(f"| {first} | {sizes[first] / 1e9:.1f} GB | {statistics.median(plain):.2f} | | {peaks[first]:.0f} MB |")


if __name__ == "__main__":
    main()
