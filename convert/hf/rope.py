"""The rotary position embedding of a GGUF file as the keys of a config.json: `convert.rope`, read backwards."""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
from gguf.constants import MODEL_TENSOR, TENSOR_NAMES, Keys, RopeScalingType
from numpy.typing import NDArray

from ggufsmith.container.errors import Unsupported
from ggufsmith.container.typed import TypedKeys
from ggufsmith.container.untrusted import shown
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.rope import YARN, llama3_factors, yarn_attention

LOW, HIGHS = 1.0, (4.0, 32.0)  # of every published Llama 3 scaling; the second of Step 3.5
CONTEXTS = tuple(2**n for n in range(8, 24))
FREQS, LONG, SHORT = (
    f"{TENSOR_NAMES[tensor]}.weight"
    for tensor in (MODEL_TENSOR.ROPE_FREQS, MODEL_TENSOR.ROPE_FACTORS_LONG, MODEL_TENSOR.ROPE_FACTORS_SHORT)
)
FACTORS = (FREQS, LONG, SHORT)

Vector = Callable[[str], NDArray[np.float32] | None]


def rope_config(record: Architecture, keys: TypedKeys, vector: Vector) -> dict[str, Any]:
    """rope_theta, rope_scaling and their neighbours, in the spelling that every release of transformers reads.

    vector: a tensor of FACTORS, or None. Unsupported: a scaling that config.json cannot express.
    """

    def number(name: str) -> float | None:
        return keys.number(name.format(arch=record.name))

    if not record.rope.rotates:
        return {}
    if "proportional" in record.rope.scaling:
        return {"rope_parameters": _proportional(number, vector)}
    config: dict[str, Any] = {}
    if record.rope.write_theta:
        theta = number(Keys.Rope.FREQ_BASE)
        config["rope_theta"] = 10000.0 if theta is None else theta  # what llama.cpp takes
    found = {
        "rope_local_base_freq": number(Keys.Rope.FREQ_BASE_SWA),
        "original_max_position_embeddings": number(Keys.Rope.SCALING_ORIG_CTX_LEN)
        if record.rope.original_context
        else None,
        "partial_rotary_factor": _rotary(number, record.rope.partial),
        "rope_scaling": _scaling(record, keys, config, vector),
    }
    return config | {name: value for name, value in found.items() if value is not None}


def _proportional(number: Callable[[str], float | None], vector: Vector) -> dict[str, Any]:
    """Gemma 4's: blocks without a window rotate the first part of every head, the others all of it."""
    freqs = vector(FREQS)
    partial = 1.0 if freqs is None or not len(freqs) else float(np.mean(freqs == 1))
    full = {
        "rope_type": "proportional",
        "rope_theta": number(Keys.Rope.FREQ_BASE),
        "partial_rotary_factor": partial,
    }
    local = {"rope_type": "default", "rope_theta": number(Keys.Rope.FREQ_BASE_SWA)}
    return {"full_attention": full, "sliding_attention": local}


def _rotary(number: Callable[[str], float | None], usual: float) -> float | None:
    """partial_rotary_factor, for heads of which only a part rotates, and where that is usual."""
    rotary, head = number(Keys.Rope.DIMENSION_COUNT) or 0, number(Keys.Attention.KEY_LENGTH)
    if not head:  # the same in every block, then
        head = (number(Keys.LLM.EMBEDDING_LENGTH) or 0) // max(number(Keys.Attention.HEAD_COUNT) or 0, 1)
    if usual != 1 and head:
        return (rotary or head) / head
    return rotary / head if 0 < rotary < head else None


def _scaling(record: Architecture, keys: TypedKeys, config: Mapping[str, Any], vector: Vector) -> dict[str, Any] | None:
    freqs, long, short = (vector(name) for name in FACTORS)
    if freqs is not None and record.rope.padded:
        return None
    if freqs is not None:
        return llama3_parameters(freqs, config["rope_theta"], keys.where)
    if long is not None and short is not None:
        found: dict[str, Any] = {
            "rope_type": "longrope",
            "long_factor": _numbers(long),
            "short_factor": _numbers(short),
        }
        attention = keys.number(Keys.Rope.SCALING_ATTN_FACTOR.format(arch=record.name))
        stated: dict[str, Any] = dict.fromkeys(("short_mscale", "long_mscale"), attention or 1.0)
        stated["original_max_position_embeddings"] = keys.number(
            Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch=record.name)
        )
        return {**found, **stated} if record.rope.stated_attention else found
    kind = keys.optional(Keys.Rope.SCALING_TYPE.format(arch=record.name), str)
    factor = keys.number(Keys.Rope.SCALING_FACTOR.format(arch=record.name))
    if kind in (None, RopeScalingType.NONE.value):
        return None
    if kind not in (RopeScalingType.LINEAR.value, RopeScalingType.YARN.value) or factor is None:
        raise Unsupported(f"rope scaling {shown(kind)} cannot be written into a config.json", where=keys.where)
    scaling = {"rope_type": kind, "factor": factor}
    if kind == RopeScalingType.YARN.value:
        own = keys.number(Keys.Rope.SCALING_ATTN_FACTOR.format(arch=record.name))
        if own is not None:
            scaling["attention_factor"] = own * yarn_attention(factor)
        scaling |= yarn_parameters(lambda name: keys.number(name.format(arch=record.name)))
    return scaling


def yarn_parameters(number: Callable[[str], float | None]) -> dict[str, Any]:
    """What a file states of YaRN, but for its factor. number: a key of the architecture, with "{arch}" in it."""
    names = [(Keys.Rope.SCALING_ORIG_CTX_LEN, ("original_max_position_embeddings",)), *YARN]
    found = {name[0]: number(key) for key, name in names}
    return {name: value for name, value in found.items() if value is not None}


def llama3_parameters(factors: NDArray[np.float32], theta: float, where: object) -> dict[str, Any]:
    """Llama 3's parameters: the slowest frequencies are divided by the factor itself, the context decides the rest."""
    factor = float(str(factors.max(initial=1.0)))
    for high, context in product(HIGHS, CONTEXTS if theta > 1 else ()):
        made = llama3_factors(2 * len(factors), theta, factor=factor, low=LOW, high=high, context=context)
        if np.allclose(made, factors, rtol=1e-5, atol=0):  # libraries differ in the last bits of the power
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise Unsupported(f"{FREQS} does not follow any known scaling of Llama 3", where=where)


def _numbers(values: NDArray[np.float32]) -> list[float]:
    return [float(str(value)) for value in values]
