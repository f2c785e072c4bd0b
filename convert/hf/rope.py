"""The rotary position embedding of a GGUF file as the keys of a config.json: `convert.rope`, read backwards."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gguf.constants import MODEL_TENSOR, TENSOR_NAMES, Keys, RopeScalingType
from numpy.typing import NDArray

from ggufsmith.container.errors import Unsupported
from ggufsmith.container.values import Metadata, Value
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.hf.config import plain
from ggufsmith.convert.rope import YARN, llama3_factors

LOW, HIGH = 1.0, 4.0  # of every published Llama 3 scaling
CONTEXTS = tuple(2**n for n in range(8, 24))
FREQS, LONG, SHORT = (
    f"{TENSOR_NAMES[tensor]}.weight"
    for tensor in (MODEL_TENSOR.ROPE_FREQS, MODEL_TENSOR.ROPE_FACTORS_LONG, MODEL_TENSOR.ROPE_FACTORS_SHORT)
)
FACTORS = (FREQS, LONG, SHORT)

Vector = Callable[[str], NDArray[np.float32] | None]


def rope_config(record: Architecture, metadata: Metadata, vector: Vector, where: object) -> dict[str, Any]:
    """rope_theta, rope_scaling and their neighbours, in the spelling that every release of transformers reads.

    vector: a tensor of FACTORS, or None. Unsupported: a scaling that config.json cannot express.
    """

    def key(name: str) -> Value | None:
        return metadata.get(name.format(arch=record.name))

    config: dict[str, Any] = {}
    theta, local, context = key(Keys.Rope.FREQ_BASE), key(Keys.Rope.FREQ_BASE_SWA), key(Keys.Rope.SCALING_ORIG_CTX_LEN)
    if record.rope.write_theta:
        config["rope_theta"] = plain(theta) if theta is not None else 10000.0  # as llama.cpp has it
    if local is not None:
        config["rope_local_base_freq"] = plain(local)
    if record.rope.original_context and context is not None:
        config["original_max_position_embeddings"] = plain(context)
    config |= _rotary(key)
    scaling = _scaling(key, config, context, vector, where)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config


def _rotary(key: Callable[[str], Value | None]) -> dict[str, float]:
    """partial_rotary_factor, for heads of which only a part rotates."""

    def size(name: str) -> int:
        value = key(name)
        return value.data if value is not None and isinstance(value.data, int) else 0

    rotary, heads = size(Keys.Rope.DIMENSION_COUNT), size(Keys.Attention.HEAD_COUNT)
    head = size(Keys.Attention.KEY_LENGTH) or size(Keys.LLM.EMBEDDING_LENGTH) // max(heads, 1)
    return {"partial_rotary_factor": rotary / head} if 0 < rotary < head else {}


def _scaling(
    key: Callable[[str], Value | None], config: Mapping[str, Any], context: Value | None, vector: Vector, where: object
) -> dict[str, Any] | None:
    freqs, long, short = (vector(name) for name in FACTORS)
    if freqs is not None:
        return _llama3(freqs, config["rope_theta"], where)
    if long is not None and short is not None:
        return {"rope_type": "longrope", "long_factor": _numbers(long), "short_factor": _numbers(short)}
    kind, factor = key(Keys.Rope.SCALING_TYPE), key(Keys.Rope.SCALING_FACTOR)
    if kind is None or kind.data == RopeScalingType.NONE.value:
        return None
    if kind.data not in (RopeScalingType.LINEAR.value, RopeScalingType.YARN.value) or factor is None:
        raise Unsupported(f"rope scaling {kind.data!r} cannot be written into a config.json", where=where)
    scaling = {"rope_type": kind.data, "factor": plain(factor)}
    if kind.data == RopeScalingType.YARN.value:
        if context is not None:
            scaling["original_max_position_embeddings"] = plain(context)
        found = ((names[0], key(name)) for name, names in YARN)
        scaling |= {name: plain(value) for name, value in found if value is not None}
    return scaling


def _llama3(factors: NDArray[np.float32], theta: float, where: object) -> dict[str, Any]:
    """Llama 3's parameters: the slowest frequencies are divided by the factor itself, the context decides the rest."""
    factor = float(str(factors.max(initial=1.0)))
    for context in CONTEXTS:
        made = llama3_factors(2 * len(factors), theta, factor=factor, low=LOW, high=HIGH, context=context)
        if np.allclose(made, factors, rtol=1e-5, atol=0):  # libraries differ in the last bits of the power
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": context,
            }
    raise Unsupported(f"{FREQS} follows no known scaling of Llama 3", where=where)


def _numbers(values: NDArray[np.float32]) -> list[float]:
    return [float(str(value)) for value in values]
