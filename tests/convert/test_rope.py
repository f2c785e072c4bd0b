"""Rotary embeddings in both schemas. Factors are compared with values worked out in float64 from the published rule."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.values import Metadata, f32, string, u32
from ggufsmith.convert.architecture import Dims
from ggufsmith.convert.architectures.classic import GEMMA2, GEMMA3, LLAMA, PHI3, QWEN2, QWEN3_MOE
from ggufsmith.convert.config import Config
from ggufsmith.convert.rope import llama3_factors, rope_metadata

DIMS = Dims(blocks=2, vocab=10, embd=256, heads=4, kv_heads=2, head_dim=64, rotary=64, ff=8)
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
LINEAR = {"factor": 2.0}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def keys(values: dict[str, Any], record: Any = LLAMA) -> Metadata:
    return rope_metadata(Config(values, Path("config.json")), record.rope, DIMS)[0]


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}},
        {
            "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
            "rope_scaling": {"type": "linear", "factor": 2},
        },
    ],
)
def test_every_spelling_says_the_same(values: dict[str, Any]) -> None:
    assert keys(values) == {
        "{arch}.rope.scaling.type": string("linear"),
        "{arch}.rope.scaling.factor": f32(2.0),
        "{arch}.rope.freq_base": f32(5e5),
    }


@pytest.mark.parametrize("record", [LLAMA, QWEN2, QWEN3_MOE])
@pytest.mark.parametrize("new", [False, True])
def test_yarn_for_dense_and_expert_models(record: Any, new: bool) -> None:
    scaling = {**YARN, "rope_type": "yarn", "beta_fast": 32, "attention_factor": None}
    values = (
        {"rope_parameters": {**scaling, "rope_theta": 1e6}} if new else {"rope_theta": 1e6, "rope_scaling": scaling}
    )
    assert keys(values, record) == {
        "{arch}.rope.scaling.type": string("yarn"),
        "{arch}.rope.scaling.factor": f32(4.0),
        "{arch}.rope.scaling.original_context_length": u32(32768),
        "{arch}.rope.scaling.yarn_beta_fast": f32(32),
        "{arch}.rope.freq_base": f32(1e6),
    }


def test_a_silent_config_takes_the_default_of_transformers() -> None:
    assert keys({}) == {"{arch}.rope.freq_base": f32(10000.0)}
    assert keys({}, GEMMA3) == {"{arch}.rope.freq_base": f32(1e6), "{arch}.rope.freq_base_swa": f32(1e4)}


def test_layers_with_their_own_base() -> None:
    new = {
        "sliding_attention": {"rope_theta": 1e4},
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8},
    }
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8}}
    assert keys({"rope_parameters": new}, GEMMA3) == keys(old, GEMMA3)
    assert keys(old, GEMMA3)["{arch}.rope.freq_base_swa"] == f32(1e4)


def test_dynamic_scaling_is_reported() -> None:
    values = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    found, tensors, notes = rope_metadata(Config(values, Path("c")), LLAMA.rope, DIMS)
    assert found == {"{arch}.rope.freq_base": f32(10000.0)}
    assert not tensors
    assert "dynamic NTK" in notes[0]


@pytest.mark.parametrize(("record", "kind"), [(LLAMA, "wavelet"), (QWEN2, "llama3"), (GEMMA2, "linear")])
def test_an_unknown_or_impossible_type_is_an_error(record: Any, kind: str) -> None:
    with pytest.raises(Unsupported, match=f"rope type '{kind}' cannot be expressed"):
        keys({"rope_scaling": {"rope_type": kind, "factor": 2.0}}, record)


def test_a_base_that_llama_cpp_has_built_in() -> None:
    assert keys({"rope_theta": 10000.0}, GEMMA2) == {}
    with pytest.raises(Unsupported, match=r"rope_theta is 20000.0, but llama.cpp has 10000.0 built in"):
        keys({"rope_theta": 20000.0}, GEMMA2)


@pytest.mark.parametrize(
    ("scaling", "what"),
    [
        ({"type": "linear"}, "needs 'factor'"),
        ({"type": "linear", "factor": "2"}, "factor must be a number"),
        ({"rope_type": "llama3", "factor": 8.0}, "needs 'low_freq_factor'"),
        ({**LLAMA3, "rope_type": "llama3", "high_freq_factor": 1.0}, "impossible llama3 rope scaling"),
    ],
)
def test_missing_and_impossible_parameters(scaling: dict[str, Any], what: str) -> None:
    with pytest.raises(Malformed, match=what):
        keys({"rope_scaling": scaling, "max_position_embeddings": 100})


def interpolated(head_dim: int, theta: float, factor: float, low: float, high: float, context: int) -> list[float]:
    """Llama 3.1's rule, frequency by frequency, in float64."""
    found = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < context / high:
            found.append(1.0)
        elif wavelength > context / low:
            found.append(factor)
        else:
            ramp = (context / wavelength - low) / (high - low)
            found.append(1 / ((1 - ramp) / factor + ramp))
    return found


@pytest.mark.parametrize(("head_dim", "factor"), [(128, 8.0), (64, 32.0)])
def test_llama3_factors(head_dim: int, factor: float) -> None:
    found = llama3_factors(head_dim, 5e5, factor=factor, low=1.0, high=4.0, context=8192)
    np.testing.assert_allclose(found, interpolated(head_dim, 5e5, factor, 1.0, 4.0, 8192), rtol=1e-5)
    assert found[0] == 1.0
    assert found[-1] == factor
    assert any(1 < value < factor for value in found)


def test_llama3_makes_a_tensor_and_no_scaling_keys() -> None:
    values = {"rope_scaling": {**LLAMA3, "rope_type": "llama3"}, "rope_theta": 5e5}
    found, tensors, _ = rope_metadata(Config(values, Path("c")), LLAMA.rope, DIMS)
    assert found == {"{arch}.rope.freq_base": f32(5e5)}
    assert [(tensor.name, len(factors)) for tensor, factors in tensors.items()] == [("ROPE_FREQS", 32)]


def test_longrope_of_phi() -> None:
    values = {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 32, "short_factor": [1.0] * 32},
    }
    found, tensors, _ = rope_metadata(Config(values, Path("c")), PHI3.rope, DIMS)
    assert found["{arch}.rope.scaling.attn_factor"] == f32(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert found["{arch}.rope.scaling.original_context_length"] == u32(4096)
    assert [tensor.name for tensor in tensors] == ["ROPE_FACTORS_LONG", "ROPE_FACTORS_SHORT"]
    values["rope_scaling"]["long_factor"] = [2.0] * 31  # type: ignore[index]
    with pytest.raises(Malformed, match="long_factor must be 32 numbers, not 31 values"):
        rope_metadata(Config(values, Path("c")), PHI3.rope, DIMS)


@pytest.mark.parametrize("theta", [math.nan, math.inf, 1e300, 10**400, 0, -1.0])
def test_a_base_that_is_no_frequency_is_refused(theta: float) -> None:
    with pytest.raises(Malformed, match="rope_theta must be"):
        keys({"rope_theta": theta})


@pytest.mark.parametrize(
    "change",
    [
        {"factor": 0},
        {"factor": -2},
        {"factor": math.nan},
        {"original_max_position_embeddings": math.inf},
        {"beta_slow": math.nan},
    ],
)
def test_a_scaling_that_scales_nothing_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(Malformed, match=r"config\.json"):
        keys({"rope_scaling": {**YARN, "rope_type": "yarn", **change}})


@pytest.mark.filterwarnings("error")
def test_llama3_factors_that_are_none_are_refused() -> None:
    with pytest.raises(Malformed, match="gives no frequencies"):
        llama3_factors(64, 1e4, factor=1e-320, low=1.0, high=4.0, context=8192)
