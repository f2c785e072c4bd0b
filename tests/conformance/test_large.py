"""A checkpoint of 671 billion weights, of which only the headers are there, planned as llama.cpp would."""

import math
from pathlib import Path

import pytest
import quantizer

import large
from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import TensorSpec
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
from requesting import plan, request

pytestmark = pytest.mark.conformance


def test_deepseek_v3_is_planned_with_llama_cpps_types(tmp_path: Path) -> None:
    folder = large.write(tmp_path / "DeepSeek-V3")
    layout = plan(request(folder, "q4_K_M")).layout
    own = {
        name: math.prod(shape)
        for name, shape, _ in large.tensors()
        if not name.endswith("_scale_inv") and not name.startswith(f"model.layers.{large.LAYERS}.")
    }
    assert sum(math.prod(tensor.shape) for tensor in layout.tensors) == sum(own.values()) == 671_026_419_200
    specs = layout.tensors
    plain = [
        TensorSpec(each.name, each.shape, format_of("F32" if each.format.name == "F32" else "F16")) for each in specs
    ]
    source = quantizer.write_hollow(tmp_path / "f16.gguf", layout.metadata, plain)
    theirs = quantizer.dry_run(source, quantizer.Settings(FILE_TYPES["Q4_K_M"].number or 0))
    assert {each.name: each.format.name for each in specs} == theirs
    bytes_of = {each.name: math.prod(each.shape) // each.format.weights * each.format.size for each in specs}
    assert 404e9 < sum(bytes_of.values()) <= layout.size < sum(bytes_of.values()) + 30e6  # keys, names, padding
