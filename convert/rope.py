"""The rotary position embedding of a config, in both of its spellings, as GGUF keys and factor tensors.

transformers before 5 has `rope_theta` and `rope_scaling` at the top, transformers 5 one `rope_parameters` object, for
some models with one object per layer type inside. Both are read into one form first, so that no scaling is lost.

Sources: transformers' modeling_rope_utils.py for parameters and defaults; llama.cpp's load_hparams for the keys.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gguf.constants import MODEL_TENSOR, Keys, RopeScalingType

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.values import FLOAT32_MAX, Metadata, f32, string, u32
from ggufsmith.convert.architecture import Dims, Rope
from ggufsmith.convert.config import Config, as_number, as_share

# Optional YaRN parameters, under every name they go by.
YARN = (
    (Keys.Rope.SCALING_YARN_EXT_FACTOR, ("extrapolation_factor",)),
    (Keys.Rope.SCALING_YARN_ATTN_FACTOR, ("attention_factor", "attn_factor")),
    (Keys.Rope.SCALING_YARN_BETA_FAST, ("beta_fast",)),
    (Keys.Rope.SCALING_YARN_BETA_SLOW, ("beta_slow",)),
)

# What configs of models without a rotary embedding may have of one.
UNREAD = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")


# Tokens that Hunyuan's models have been trained for, whose configs say less: conversion/hunyuan.py of llama.cpp.
ALPHA_CONTEXT = 262144

MAX_HEAD_DIM = 65536


@dataclass(frozen=True)
class Rotary:
    """kind: "default" or a scaling type. theta, local_theta: frequency bases. fields: the scaling's own parameters."""

    kind: str
    theta: float
    local_theta: float | None
    fields: Mapping[str, Any]


def read_rope(config: Config, rope: Rope) -> Rotary:
    """Both schemas into one. Malformed for values of the wrong type."""
    old, new = config.mapping("rope_scaling"), config.mapping("rope_parameters")
    layered = "full_attention" in new or "sliding_attention" in new
    full = _object(new.get("full_attention", {}), config) if layered else new
    local = _object(new.get("sliding_attention", {}), config) if layered else {}
    if _kind(full) == "default":  # a config edited by hand can have both objects: the one that scales wins
        full = {key: value for key, value in full.items() if key not in ("rope_type", "type")}
        full = {**full, **old}
    theta = _first(config, full.get("rope_theta"), config.first("rope_theta", "rotary_emb_base"), rope.theta)
    local_theta = _first(config, local.get("rope_theta"), config.first("rope_local_base_freq"), rope.local_theta)
    return Rotary(_kind(full), theta if theta is not None else rope.theta, local_theta, full)


def partial_rotary_factor(config: Config, rope: Rope) -> float:
    """The part of every head that rotates, wherever the config says so."""
    names = ("partial_rotary_factor", "rotary_pct", "rope_pct")
    name = next((name for name in names if name in config), names[0])
    found = config.first(*names)
    for outer in ("rope_parameters", "rope_scaling"):
        fields = config.mapping(outer)
        for each in (fields, fields.get("full_attention")):
            if found is None and isinstance(each, Mapping):
                found = each.get("partial_rotary_factor")
    return rope.partial if found is None else as_share(found, name, config.path)


def _kind(fields: Mapping[str, Any]) -> str:
    kind = str(fields.get("rope_type") or fields.get("type") or "default").lower()
    return "default" if kind == "mrope" else kind  # sections, without a scaling


def _object(value: object, config: Config) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Malformed(f"rope_parameters must hold objects, not {value!r}", where=config.path)
    return value


def _first(config: Config, *values: object) -> float | None:
    found = next((value for value in values if value is not None), None)
    return None if found is None else _positive(found, "rope_theta", config)


def _positive(value: object, name: str, config: Config) -> float:
    number = as_number(value, name, config.path)
    if number <= 0:
        raise Malformed(f"{name} must be above 0, not {value!r}", where=config.path)
    return number


def rope_metadata(
    config: Config, rope: Rope, dims: Dims
) -> tuple[Metadata, dict[MODEL_TENSOR, tuple[float, ...]], tuple[str, ...]]:
    """Keys (with "{arch}" still in them), factor tensors to generate, and sentences for the report.

    Unsupported: a rope type llama.cpp cannot run for this architecture. Malformed: missing or impossible parameters.
    """
    if not rope.rotates:
        config.first(*UNREAD)
        return {}, {}, ()
    rotary = read_rope(config, rope)
    keys: Metadata = {}
    tensors: dict[MODEL_TENSOR, tuple[float, ...]] = {}
    notes: list[str] = []
    alpha = rotary.kind in ("dynamic", "xdrope") and bool(rotary.fields.get("alpha"))
    static, sections = (
        alpha and rotary.kind == "dynamic" and "alpha" in rope.scaling,
        alpha and "xdrope" in rope.scaling,
    )
    named = rotary.kind == "default" or (rotary.kind in rope.scaling and rotary.kind != "xdrope")
    if not named and not static and not sections:
        raise Unsupported(
            f"rope type {rotary.kind!r} cannot be expressed for this architecture",
            where=config.path,
            fix=f"Supported: default{''.join(', ' + kind for kind in rope.scaling)}.",
        )

    def number(*names: str) -> float:
        value = next((rotary.fields[name] for name in names if rotary.fields.get(name) is not None), None)
        if value is None:
            raise Malformed(f"rope type {rotary.kind!r} needs {names[0]!r}", where=config.path)
        return as_number(value, names[0], config.path)

    def factor() -> float:
        return _positive(number("factor"), "rope factor", config)

    def original_context() -> int:
        value = config.integer("original_max_position_embeddings")
        if rotary.fields.get("original_max_position_embeddings") is not None:
            value = int(number("original_max_position_embeddings"))
        if value is None:
            value = config.integer("max_position_embeddings")
        if value is None or value < 2:
            raise Malformed(f"rope type {rotary.kind!r} needs original_max_position_embeddings", where=config.path)
        return value

    if rope.original_context:
        keys[Keys.Rope.SCALING_ORIG_CTX_LEN] = u32(original_context())
    match rotary.kind:
        case "linear":
            keys[Keys.Rope.SCALING_TYPE] = string(RopeScalingType.LINEAR.value)
            keys[Keys.Rope.SCALING_FACTOR] = f32(factor())
        case "yarn":
            keys[Keys.Rope.SCALING_TYPE] = string(RopeScalingType.YARN.value)
            keys[Keys.Rope.SCALING_FACTOR] = f32(factor())
            keys[Keys.Rope.SCALING_ORIG_CTX_LEN] = u32(original_context())
            for key, names in YARN:
                if any(rotary.fields.get(name) is not None for name in names):
                    keys[key] = f32(number(*names))
            if Keys.Rope.SCALING_YARN_ATTN_FACTOR in keys and not rotary.fields.get("mscale_all_dim"):
                own = number(*YARN[1][1]) / yarn_attention(factor())
                if abs(own - 1) > 1e-6:
                    keys[Keys.Rope.SCALING_ATTN_FACTOR] = f32(own)
        case "llama3":
            factors = llama3_factors(
                dims.rotary if rope.padded else dims.head_dim,
                rotary.theta,
                factor=factor(),
                low=number("low_freq_factor"),
                high=number("high_freq_factor"),
                context=original_context(),
            )
            tensors[MODEL_TENSOR.ROPE_FREQS] = (*factors, *[1.0] * (dims.head_dim // 2 - len(factors)))
        case "longrope" | "su":
            context = config.integer("max_position_embeddings") or 0
            attention = longrope_attention(context / original_context(), original_context())
            if rope.stated_attention:
                attention = number("short_mscale")
                if number("long_mscale") != attention:
                    raise Unsupported("short_mscale and long_mscale differ, but llama.cpp has one", where=config.path)
            keys[Keys.Rope.SCALING_ATTN_FACTOR] = f32(attention)
            for name, tensor in (
                ("long_factor", MODEL_TENSOR.ROPE_FACTORS_LONG),
                ("short_factor", MODEL_TENSOR.ROPE_FACTORS_SHORT),
            ):
                tensors[tensor] = _factors(rotary.fields.get(name), name, dims.rotary // 2, config)
        case "proportional":
            tensors[MODEL_TENSOR.ROPE_FREQS] = proportional_factors(
                dims.size("g_head_dim"), partial_rotary_factor(config, rope)
            )
        case "dynamic" | "xdrope" if sections:  # llama.cpp computes the base for its sections by itself
            keys |= {
                Keys.Rope.SCALING_TYPE: string(RopeScalingType.NONE.value),
                Keys.Rope.SCALING_FACTOR: f32(factor() if rotary.fields.get("factor") is not None else 1.0),
                Keys.Rope.SCALING_ALPHA: f32(_positive(number("alpha"), "alpha", config)),
                Keys.Rope.SCALING_ORIG_CTX_LEN: u32(config.integer("max_position_embeddings") or 0),
            }
        case "dynamic" if static:
            power = _positive(number("alpha"), "alpha", config) ** (dims.head_dim / (dims.head_dim - 2))
            keys |= {
                Keys.Rope.SCALING_TYPE: string(RopeScalingType.NONE.value),
                Keys.Rope.SCALING_FACTOR: f32(1.0),
                Keys.Rope.SCALING_ORIG_CTX_LEN: u32(ALPHA_CONTEXT),
                Keys.LLM.CONTEXT_LENGTH: u32(ALPHA_CONTEXT),
            }
            rotary = replace(rotary, theta=rotary.theta * power)
        case "dynamic":
            notes.append(
                "llama.cpp does not support dynamic NTK rope scaling; longer contexts need its --rope-* options"
            )
    if rope.write_theta:
        keys[Keys.Rope.FREQ_BASE] = f32(rotary.theta)
    elif rotary.theta != rope.theta:
        raise Unsupported(f"rope_theta is {rotary.theta}, but llama.cpp has {rope.theta} built in", where=config.path)
    if rotary.local_theta is not None:
        keys[Keys.Rope.FREQ_BASE_SWA] = f32(rotary.local_theta)
    return keys, tensors, tuple(notes)


def llama3_factors(
    head_dim: int, theta: float, *, factor: float, low: float, high: float, context: int
) -> tuple[float, ...]:
    """By how much llama.cpp divides each of the head_dim / 2 frequencies: Llama 3.1's interpolation.

    Frequencies whose wavelength fits `high` times into the original context stay (1), those that fit less than `low`
    times are divided by `factor`, with a smooth ramp between. float32 throughout, as transformers computes it; only the
    power is rounded from float64, which is where libraries differ in the last bit.
    """
    if low == high or factor <= 0 or low <= 0 or high <= 0:
        raise Malformed(f"impossible llama3 rope scaling: factor {factor}, low {low}, high {high}")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    with np.errstate(all="ignore"):  # parameters far from any real ones are found by what comes of them
        powers = np.power(float(np.float32(theta)), exponents.astype(np.float64)).astype(np.float32)
        wavelengths = np.float32(2 * math.pi) / (np.float32(1) / powers)
        ramp = (np.float32(context) / wavelengths - np.float32(low)) / np.float32(high - low)
        smooth = np.float32(1) / ((np.float32(1) - ramp) / np.float32(factor) + ramp)
        factors = np.where(wavelengths < context / high, 1.0, np.where(wavelengths > context / low, factor, smooth))
    if not np.all((factors > 0) & (factors <= FLOAT32_MAX)):
        raise Malformed(f"llama3 rope scaling by {factor} ({low}, {high}) of base {theta} gives no frequencies")
    return tuple(factors.astype(np.float32).tolist())


def proportional_factors(head_dim: int, partial: float) -> tuple[float, ...]:
    """Of the head_dim / 2 frequencies the first part stay; the others are divided by 1e30, which is no rotation.

    Source: llama.cpp, conversion/gemma.py (Gemma4Model.generate_extra_tensors).
    """
    if head_dim > MAX_HEAD_DIM:
        raise Malformed(f"the head size of blocks without a window is {head_dim}, over the limit of {MAX_HEAD_DIM}")
    rotary = min(max(int(head_dim * partial / 2), 0), head_dim // 2)
    return (1.0,) * rotary + (1e30,) * (head_dim // 2 - rotary)


def yarn_attention(scale: float) -> float:
    """The attention factor of YaRN (arXiv 2309.00071, section 3.4) by default.

    llama.cpp multiplies it by `rope.scaling.attn_factor`, and reads no other factor (llama-context.cpp).
    """
    return 1 + math.log(scale) / 10 if scale > 1 else 1.0


def longrope_attention(scale: float, context: int) -> float:
    """The attention factor of LongRoPE (arXiv 2402.13753) as Phi-3 uses it."""
    return math.sqrt(1 + math.log(scale) / math.log(context)) if scale > 1 else 1.0


def _factors(values: object, name: str, count: int, config: Config) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} values" if isinstance(values, list) else repr(values)
        raise Malformed(f"rope {name} must be {count} numbers, not {found}", where=config.path)
    return tuple(as_number(value, name, config.path) for value in values)
